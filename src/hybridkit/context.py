"""Who asked, for how long, and under which claim: the context that travels with the work.

The edge makes one `RequestContext` per request, update or message and binds it; everything below reads it with
`current()`. It crosses HTTP and AMQP in headers. The deadline crosses HTTP only: a message may wait in a queue for
longer than whoever caused it.
"""

import re
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from inspect import CO_GENERATOR, currentframe
from types import FrameType
from typing import Annotated, Final, Self
from urllib.parse import quote, unquote

from pydantic import StringConstraints

from hybridkit.errors import DeadlineExceededError, InvalidHeaderError, InvalidRequestError, MisuseError
from hybridkit.ids import new_request_id

__all__ = [
    "REQUEST_ID_HEADER",
    "REQUEST_TIMEOUT_HEADER",
    "USER_ID_HEADER",
    "Claim",
    "ContextId",
    "RequestContext",
    "bind",
    "bound",
    "current",
]

REQUEST_ID_HEADER: Final = "x-request-id"
USER_ID_HEADER: Final = "x-user-id"
REQUEST_TIMEOUT_HEADER: Final = "x-request-timeout"

MAX_TIMEOUT_SECONDS: Final = 3600.0
MAX_TIMEOUT_LENGTH: Final = 32
_TIMEOUT_SYNTAX = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
# Any text of one line: an id provider's `auth0|17`, an email address, a URN, a name in any script.
_ID_PATTERN: Final = "^[^\\x00-\\x1f\\x7f-\\x9f\u2028\u2029]{1,255}$"
_ID_SYNTAX: Final = re.compile("[^\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\\ud800-\\udfff]{1,255}")
_IN_HTTP: Final = re.compile(r"[!-~]+")
_NOT_ENCODED: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")

ContextId = Annotated[str, StringConstraints(pattern=_ID_PATTERN)]
"""A request's or a user's id in a model: 1 to 255 characters without control characters and line separators."""


@dataclass(slots=True)
class Claim:
    """The idempotency claim under which the current work runs, and what it has numbered so far.

    Attributes:
        key: `context:entity:id`, the same on every run of this work.
    """

    key: str
    _ordinals: dict[str, int] = field(default_factory=dict[str, int], repr=False)

    def step(self, name: str) -> str:
        """The name with its ordinal among equal ones in this run: the first `create users` is `create users#0`."""
        ordinal = self._ordinals.get(name, 0)
        self._ordinals[name] = ordinal + 1
        return f"{name}#{ordinal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """What every log line, header and event of one piece of work shares.

    Attributes:
        request_id: 1 to 255 characters, none of which controls or ends a line.
        user_id: the user on whose behalf this happens, same syntax; None for the system itself.
        deadline: the `time.monotonic()` instant at which the caller stops waiting; None without one.
        claim: the idempotency claim that this runs under, if any.

    Raises:
        InvalidRequestError: an id of another syntax, which could forge a line or a header.
    """

    request_id: str = field(default_factory=new_request_id)
    user_id: str | None = None
    deadline: float | None = None
    claim: Claim | None = None

    def __post_init__(self) -> None:
        for name, value in ("request_id", self.request_id), ("user_id", self.user_id):
            if value is not None and not is_context_id(value):
                raise InvalidRequestError(
                    f"a {name} has 1 to 255 characters, without control characters and line separators"
                )

    @classmethod
    def from_http_headers(cls, headers: Mapping[str, str]) -> Self:
        """The caller's context. A request id that is absent or can't be read is replaced by a new one.

        Args:
            headers: case-insensitive, or with lower-case names.

        Raises:
            InvalidHeaderError: `X-User-ID` can't be read, without which it would be somebody else's work; or
                `X-Request-Timeout` is no number of seconds. One of 0 or less is a deadline that has passed: callers
                compute what is left.
        """
        timeout_seconds = _timeout(headers.get(REQUEST_TIMEOUT_HEADER))
        user = headers.get(USER_ID_HEADER)
        user_id = _from_http(user) if user else None
        if user and user_id is None:
            raise InvalidHeaderError(
                f"{USER_ID_HEADER} is 1 to 255 characters, percent-encoded where they are not visible ASCII",
                field=USER_ID_HEADER,
            )
        return cls(
            request_id=_from_http(headers.get(REQUEST_ID_HEADER, "")) or new_request_id(),
            user_id=user_id,
            deadline=None if timeout_seconds is None else time.monotonic() + timeout_seconds,
        )

    @classmethod
    def from_amqp_headers(cls, headers: Mapping[str, object]) -> Self:
        """What a message's headers say, of any AMQP type: for one that can't be read otherwise; never a deadline."""
        return cls(
            request_id=_valid_id(headers.get(REQUEST_ID_HEADER)) or new_request_id(),
            user_id=_valid_id(headers.get(USER_ID_HEADER)),
        )

    def to_http_headers(self) -> dict[str, str]:
        """Headers for a call made now; the deadline becomes the seconds that are left, relative, never below 0."""
        headers = {name: to_http(value) for name, value in self.to_amqp_headers().items()}
        remaining = self.remaining_seconds()
        if remaining is not None:
            headers[REQUEST_TIMEOUT_HEADER] = f"{max(remaining, 0.0):.3f}"
        return headers

    def to_amqp_headers(self) -> dict[str, str]:
        """Headers for a message published now."""
        headers = {REQUEST_ID_HEADER: self.request_id}
        if self.user_id is not None:
            headers[USER_ID_HEADER] = self.user_id
        return headers

    def remaining_seconds(self) -> float | None:
        """The time left, negative once it has passed; None without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def within(self, seconds: float) -> "RequestContext":
        """This context with a deadline at most that many seconds from now, never later than it had."""
        deadline = time.monotonic() + seconds
        return replace(self, deadline=deadline if self.deadline is None else min(deadline, self.deadline))

    def check_deadline(self) -> None:
        """Stop before work that nobody waits for.

        Raises:
            DeadlineExceededError: the deadline has passed.
        """
        remaining = self.remaining_seconds()
        if remaining is not None and remaining <= 0:
            raise DeadlineExceededError(f"the deadline passed {-remaining:.3f} s ago; nothing was started")


_current: ContextVar[RequestContext | None] = ContextVar("hybridkit_context", default=None)


def current() -> RequestContext:
    """The bound context; outside of any, a new one that nothing else shares."""
    return _current.get() or RequestContext()


def bound() -> RequestContext | None:
    """The bound context, or None outside of any: for logs, which must not make a request id up."""
    return _current.get()


def bind(context: RequestContext) -> AbstractContextManager[RequestContext]:
    """Make it the current context inside the `with` block, and in the tasks started there.

    A dependency of FastAPI's that binds is an `async def`: any other runs in a thread, and the route wouldn't see it.

    Raises:
        MisuseError: when the block is entered, in such a dependency.
    """
    return _Binding(context)


class _Binding(AbstractContextManager[RequestContext]):
    """A class, as a generator would cost each message and request twice as much."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._token: Token[RequestContext | None] | None = None

    def __enter__(self) -> RequestContext:
        caller = currentframe()
        caller = None if caller is None else caller.f_back
        if caller is not None and caller.f_code.co_flags & CO_GENERATOR:
            _check_seen(caller)
        note = _note.get()
        if note is not None and note.user_id is None:
            note.user_id = self._context.user_id
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)


class _UserNote:
    """The first user whom work was bound to: shared with its threads and tasks."""

    __slots__ = ("user_id",)

    def __init__(self) -> None:
        self.user_id: str | None = None


_note: ContextVar[_UserNote | None] = ContextVar("hybridkit_user_note", default=None)


@contextmanager
def noting_user() -> Generator[None]:
    """Note inside of the block the first user whom its work gets bound to, for `with_noted_user`."""
    token = _note.set(_UserNote())
    try:
        yield
    finally:
        _note.reset(token)


def with_noted_user(context: RequestContext) -> RequestContext:
    """This context, or where it has no user, with the one who was noted: to tell of work whose binding is over."""
    note = _note.get()
    if note is None or note.user_id is None or context.user_id is not None:
        return context
    return replace(context, user_id=note.user_id)


def _check_seen(frame: FrameType | None) -> None:
    """Refuse what nobody would see: FastAPI enters a dependency that is a plain generator in a thread of its own.

    Raises:
        MisuseError: the generator is such a dependency.
    """
    dependency = ""
    while frame is not None and (
        frame.f_code.co_flags & CO_GENERATOR or frame.f_globals.get("__name__") == "contextlib"
    ):
        dependency = frame.f_code.co_name if frame.f_code.co_flags & CO_GENERATOR else dependency
        frame = frame.f_back
    if frame is not None and str(frame.f_globals.get("__name__")).startswith("anyio."):
        raise MisuseError(
            f"bind() in the dependency {dependency} is seen by nobody, as FastAPI runs it in a thread: "
            f"write it as `async def {dependency}`"
        )


def is_context_id(value: str) -> bool:
    """Whether it may be a request's or a user's id: they end up in logs, headers and keys."""
    return _ID_SYNTAX.fullmatch(value) is not None


def to_http(value: str) -> str:
    """An id as the value of a header: percent-encoded where it isn't visible ASCII, and where it has a `%`."""
    return quote(value, safe=_NOT_ENCODED)


def _from_http(value: str) -> str | None:
    if not _IN_HTTP.fullmatch(value):
        return None
    try:
        decoded = unquote(value, errors="strict")
    except UnicodeDecodeError:
        return None
    return decoded if is_context_id(decoded) else None


def _valid_id(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value if isinstance(value, str) and is_context_id(value) else None


def _timeout(value: str | None) -> float | None:
    if value is None:
        return None
    if len(value) > MAX_TIMEOUT_LENGTH or not _TIMEOUT_SYNTAX.fullmatch(value.strip()):
        raise InvalidHeaderError(
            f"{REQUEST_TIMEOUT_HEADER} is a number of seconds, such as 2.5", field=REQUEST_TIMEOUT_HEADER
        )
    return min(max(float(value), 0.0), MAX_TIMEOUT_SECONDS)
