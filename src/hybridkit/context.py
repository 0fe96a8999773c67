"""Carry the context of one piece of work: its request id, user, deadline and idempotency claim.

The edge makes one `RequestContext` per request, update or message and binds it; everything below reads it with
`current()`. It crosses HTTP and AMQP in headers. The deadline crosses HTTP only: a message may wait in a queue for
longer than its sender does.
"""

import re
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from inspect import CO_GENERATOR
from types import FrameType, TracebackType
from typing import Annotated, Final, Protocol, Self
from urllib.parse import quote, unquote
from uuid import UUID
from weakref import ReferenceType

from pydantic import StringConstraints

from hybridkit.errors import (
    AnswerNotKeptError,
    DeadlinePassedError,
    InvalidHeaderError,
    InvalidRequestError,
    MisuseError,
    RejectedError,
    SharedStepError,
    TemporaryError,
)
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
_SENT_AS_IS: Final = re.compile(r"[!-$&-~]*")
_NOT_ENCODED: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")

ContextId = Annotated[str, StringConstraints(pattern=_ID_PATTERN)]
"""The id of a request or a user in a model: 1 to 255 characters without control characters and line separators."""


@dataclass(slots=True)
class Claim:
    """The idempotency claim of the current work, with the steps that the work has taken.

    Attributes:
        key: `context:entity:id`, the same on every run of this work.
    """

    key: str
    # Not `dict[str, int]`: as a factory it takes three times as long, for each message.
    _ordinals: dict[str, int] = field(default_factory=lambda: {}, repr=False, compare=False)  # noqa: PIE807
    _steps: "dict[str, _EqualSteps]" = field(default_factory=lambda: {}, repr=False, compare=False)  # noqa: PIE807
    _begun: int = field(default=0, repr=False, compare=False)

    def fresh(self) -> "Claim":
        """Return a claim with the same key that has taken no step yet, for work that is done again from its beginning.

        Steps that are equal are numbered in the order in which they commit. Work that begins again in this run, after
        a lost race for example, would go on counting: its writes would have other keys and ids than those of a run
        that needs one try. With a fresh claim for each try they have the same ones:

        ```python
        with bind(replace(current(), claim=claim.fresh())):
            ...
        ```

        `modify` needs none: it writes one record, and a write that was refused gives its number back.
        """
        return Claim(self.key)

    def step(self, name: str) -> str:
        """Add to a name its ordinal among equal ones in this run: the first `emit user.created` is number 0."""
        ordinal = self._ordinals.get(name, 0)
        self._ordinals[name] = ordinal + 1
        return f"{name}#{ordinal}"

    def begin(
        self, name: str, task: "ReferenceType[RunningTask]", *, method: str, content: object = None
    ) -> "Step":
        """Begin a write; use the step as a context manager, which tells the claim how the write ended.

        Equal names are numbered in the order in which they commit, and a number is kept until its write has
        committed. So a write that is tried again, by this run or the next, is the same step. After an error that
        leaves the outcome open, only an equal content is a further try.

        Args:
            name: the operation, the resource and the target, or the name that the caller gave.
            task: the task that writes, by the one reference that `weakref.ref` makes of it.
            method: the method of the client, for the error.
            content: the arguments of the write, compared by `==`.

        Raises:
            SharedStepError: another task writes under the name, or has written and still runs, so the order of the two
                may be another one in the next run.
        """
        if (equal := self._steps.get(name)) is None:
            equal = self._steps[name] = _EqualSteps()
        progress = _progress.get()
        if progress is not None and progress.claim is not self:
            progress = None
        if not equal.are_ordered(task, progress):
            raise SharedStepError(
                f"{method}(): another task of this claim writes the same ({name}), and the next run may number the two"
                f" the other way round; name each: {method}(..., step=...)",
                method=method,
            )
        self._begun += 1
        starter = progress.starter if progress is not None and progress.task is task else progress
        equal.last = _Progress(self, task, self._begun, starter)
        _progress.set(equal.last)
        return Step(name, equal, equal.take(task, content), content)


class Step:
    """One write of a claim; made by `Claim.begin`.

    Attributes:
        name: the name with the ordinal, such as `create users#0`.
    """

    __slots__ = ("_content", "_equal", "_try", "name")

    def __init__(self, name: str, equal: "_EqualSteps", attempt: "_Try", content: object) -> None:
        self.name = f"{name}#{attempt.ordinal}"
        self._equal = equal
        self._try = attempt
        self._content = content

    def __repr__(self) -> str:
        return f"Step({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, AnswerNotKeptError):  # the second says that it was done before
            self._equal.open.remove(self._try)
        elif isinstance(error, TemporaryError | RejectedError | MisuseError):
            self.give_back()
        else:
            self._try.task, self._try.content = None, (self._content,)

    def give_back(self) -> None:
        """End a try that has recorded nothing: the next write of the name takes the number over."""
        self._try.task = self._try.content = None


class RunningTask(Protocol):
    """A task of an event loop, of which the core only knows whether it has ended."""

    def done(self) -> bool:
        """Return whether the task has ended."""
        ...


type _TaskRef = ReferenceType[RunningTask]


class _Try:
    """A number whose write has not committed, as far as is known.

    Attributes:
        ordinal: the number.
        task: the task that writes now; None for none.
        content: the content of a write whose outcome is open, in a tuple; None where any content goes on.
    """

    __slots__ = ("content", "ordinal", "task")

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.task: _TaskRef | None = None
        self.content: tuple[object] | None = None


class _EqualSteps:
    """The writes of one name in a claim."""

    __slots__ = ("count", "last", "open")

    def __init__(self) -> None:
        self.count = 0
        self.open: list[_Try] = []
        self.last: _Progress | None = None

    def are_ordered(self, task: _TaskRef, progress: "_Progress | None") -> bool:
        """Return whether every run would take the last step of the name before the one that the task begins now."""
        if any(each.task is not None and each.task is not task for each in self.open):
            return False
        if self.last is None or self.last.task is task:
            return True
        writer = self.last.task()
        return writer is None or writer.done() or self.last.is_before(progress)

    def take(self, task: _TaskRef, content: object) -> _Try:
        """Return the try to go on with, or a new one."""
        for each in self.open:
            if each.task is None and each.content in (None, (content,)):
                each.task = task
                return each
        attempt = _Try(self.count)
        attempt.task = task
        self.count += 1
        self.open.append(attempt)
        return attempt


class _Progress:
    """The last step of a task in a claim; a task that is started inherits that of its starter."""

    __slots__ = ("claim", "number", "starter", "task")

    def __init__(self, claim: Claim, task: _TaskRef, number: int, starter: "_Progress | None") -> None:
        self.claim = claim
        self.task = task
        self.number = number
        self.starter = starter

    def is_before(self, progress: "_Progress | None") -> bool:
        """Return whether a task with that progress was started by this step's task, and after this step."""
        while progress is not None:
            if progress.task is self.task:
                return progress.number >= self.number
            progress = progress.starter
        return False


_progress: ContextVar[_Progress | None] = ContextVar("hybridkit_claim_progress", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """What every log line, header and event of one piece of work shares.

    Attributes:
        request_id: 1 to 255 characters without control characters and line separators.
        user_id: the user on whose behalf the work happens, in the same syntax; None for the system itself.
        deadline: the `time.monotonic()` instant at which the caller stops waiting; None without one.
        claim: the idempotency claim of the work, if any.
        causation_id: the id of the event or command that is being handled, which what the work emits names as its
            cause; None where the work began otherwise. It doesn't cross HTTP.

    Raises:
        InvalidRequestError: an id has another syntax, which could forge a line or a header.
    """

    request_id: str = field(default_factory=new_request_id)
    user_id: str | None = None
    deadline: float | None = None
    claim: Claim | None = None
    causation_id: UUID | None = None

    def __post_init__(self) -> None:
        name = None if is_context_id(self.request_id) else "request_id"
        if name is None and self.user_id is not None and not is_context_id(self.user_id):
            name = "user_id"
        if name is not None:
            raise InvalidRequestError(
                f"a {name} has 1 to 255 characters, without control characters and line separators"
            )

    @classmethod
    def from_http_headers(cls, headers: Mapping[str, str], *, within_seconds: float | None = None) -> Self:
        """Read the context of a caller; a request id that is absent or can't be read is replaced by a new one.

        Args:
            headers: a case-insensitive mapping, or one with lower-case names.
            within_seconds: the longest time to the deadline; None for as long as the caller waits.

        Raises:
            InvalidHeaderError: `X-User-ID` can't be read, and the work would count as another user's; or
                `X-Request-Timeout` is not a number of seconds. A timeout of 0 or less is a deadline that has passed, as
                callers compute what is left.
        """
        timeout_seconds = _timeout(headers.get(REQUEST_TIMEOUT_HEADER))
        user = headers.get(USER_ID_HEADER)
        user_id = _from_http(user) if user else None
        if user and user_id is None:
            raise InvalidHeaderError(
                f"{USER_ID_HEADER} is 1 to 255 characters, percent-encoded where they are not visible ASCII",
                field=USER_ID_HEADER,
            )
        if within_seconds is not None and (timeout_seconds is None or timeout_seconds > within_seconds):
            timeout_seconds = within_seconds
        request_id = headers.get(REQUEST_ID_HEADER)
        made = object.__new__(cls)  # the ids are checked already
        _set(made, "request_id", (request_id and _from_http(request_id)) or new_request_id())
        _set(made, "user_id", user_id)
        _set(made, "deadline", None if timeout_seconds is None else time.monotonic() + timeout_seconds)
        _set(made, "claim", None)
        _set(made, "causation_id", None)
        return made

    @classmethod
    def from_amqp_headers(cls, headers: Mapping[str, object]) -> Self:
        """Read the context from a message's headers, which have any AMQP type; it has no deadline."""
        return cls(
            request_id=_valid_id(headers.get(REQUEST_ID_HEADER)) or new_request_id(),
            user_id=_valid_id(headers.get(USER_ID_HEADER)),
        )

    def to_http_headers(self) -> dict[str, str]:
        """Return the headers for a call made now; the deadline becomes the seconds that are left, never below 0."""
        headers = {name: to_http(value) for name, value in self.to_amqp_headers().items()}
        remaining = self.remaining_seconds()
        if remaining is not None:
            headers[REQUEST_TIMEOUT_HEADER] = f"{max(remaining, 0.0):.3f}"
        return headers

    def to_amqp_headers(self) -> dict[str, str]:
        """Return the headers for a message published now."""
        headers = {REQUEST_ID_HEADER: self.request_id}
        if self.user_id is not None:
            headers[USER_ID_HEADER] = self.user_id
        return headers

    def remaining_seconds(self) -> float | None:
        """Return the seconds until the deadline, negative once it has passed; None without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def within(self, seconds: float) -> "RequestContext":
        """Return this context with a deadline in `seconds` from now at most, never later than the one that it has."""
        deadline = time.monotonic() + seconds
        return replace(self, deadline=deadline if self.deadline is None else min(deadline, self.deadline))

    def claimed(self, claim: Claim, *, deadline: float | None) -> Self:
        """Return this context with another claim and deadline; its ids were checked before, and aren't again."""
        copy = object.__new__(type(self))
        _set(copy, "request_id", self.request_id)
        _set(copy, "user_id", self.user_id)
        _set(copy, "deadline", deadline)
        _set(copy, "claim", claim)
        _set(copy, "causation_id", self.causation_id)
        return copy

    def check_deadline(self) -> None:
        """Stop before work that nobody waits for.

        Raises:
            DeadlinePassedError: the deadline has passed.
        """
        remaining = self.remaining_seconds()
        if remaining is not None and remaining <= 0:
            raise DeadlinePassedError(f"the deadline passed {-remaining:.3f} s ago; nothing was started")


_set = object.__setattr__  # past `frozen`
_current: ContextVar[RequestContext | None] = ContextVar("hybridkit_context", default=None)


def current() -> RequestContext:
    """Return the bound context; outside of any, a new one that nothing else shares."""
    return _current.get() or RequestContext()


def bound() -> RequestContext | None:
    """Return the bound context, or None outside of any: for logs, which must not make up a request id."""
    return _current.get()


def bind(context: RequestContext) -> AbstractContextManager[RequestContext]:
    """Make a context the current one inside the `with` block, and in the tasks started there.

    A dependency of FastAPI's that binds has to be an `async def`: any other runs in a thread, whose binding the route
    doesn't see.

    Raises:
        MisuseError: the block is entered in a plain generator that FastAPI runs in a thread.
    """
    return _Binding(context)


class _Binding(AbstractContextManager[RequestContext]):
    """The context manager of `bind`: a class, as a generator would cost each message and request twice as much."""

    __slots__ = ("_context", "_token")

    _token: Token[RequestContext | None]

    def __init__(self, context: RequestContext) -> None:
        self._context = context

    def __enter__(self) -> RequestContext:
        caller = sys._getframe(1)  # noqa: SLF001 - as `inspect.currentframe`, for each message and request
        if caller.f_code.co_flags & CO_GENERATOR:
            _check_seen(caller)
        note = _note.get()
        if note is not None and note.user_id is None:
            note.user_id = self._context.user_id
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


class _UserNote:
    """The first user whom work was bound to, shared with the threads and tasks of that work."""

    __slots__ = ("user_id",)

    def __init__(self) -> None:
        self.user_id: str | None = None


_note: ContextVar[_UserNote | None] = ContextVar("hybridkit_user_note", default=None)


def serving(context: RequestContext) -> AbstractContextManager[None]:
    """Bind a request's context inside the block, and note the first user whom its work is bound to."""
    return _Serving(context)


class _Serving(AbstractContextManager[None]):
    """The context manager of `serving`: a class for the reason that `_Binding` is one."""

    __slots__ = ("_context", "_context_token", "_note_token")

    _context_token: Token[RequestContext | None]
    _note_token: Token[_UserNote | None]

    def __init__(self, context: RequestContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._context_token = _current.set(self._context)
        self._note_token = _note.set(_UserNote())

    def __exit__(self, *_: object) -> None:
        _note.reset(self._note_token)
        _current.reset(self._context_token)


def with_noted_user(context: RequestContext) -> RequestContext:
    """Give a context without a user the one who was noted, so that a log line after the binding can name the user."""
    note = _note.get()
    if note is None or note.user_id is None or context.user_id is not None:
        return context
    return replace(context, user_id=note.user_id)


def has_noted_user() -> bool:
    """Return whether the work inside `serving` was bound to a user."""
    note = _note.get()
    return note is not None and note.user_id is not None


def _check_seen(frame: FrameType | None) -> None:
    """Refuse a binding that the route would not see: FastAPI enters a plain generator in a thread of its own.

    Raises:
        MisuseError: the generator is a dependency of FastAPI's.
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
    """Return whether a text may be the id of a request or a user: these end up in logs, headers and keys."""
    return _ID_SYNTAX.fullmatch(value) is not None


def to_http(value: str) -> str:
    """Percent-encode an id for a header: what isn't visible ASCII, and `%`."""
    return value if _SENT_AS_IS.fullmatch(value) else quote(value, safe=_NOT_ENCODED)


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
