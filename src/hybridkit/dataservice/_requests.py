"""What a request says besides its target: who calls, under which key, on which condition, with which body."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from fastapi import Request
from starlette.requests import ClientDisconnect

from hybridkit.codec import canonical_json, decode_object
from hybridkit.contract import CALLER_HEADER, IDEMPOTENCY_KEY_HEADER, MAX_BODY_BYTES, parse_key
from hybridkit.dataservice._etags import normal_tag
from hybridkit.dataservice._preferences import Preferences
from hybridkit.dataservice._store import Store
from hybridkit.errors import (
    InvalidRequestError,
    KeyMissingError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)

__all__ = [
    "Condition",
    "ContractRequest",
    "caller_of",
    "check_head",
    "condition_of",
    "fingerprint",
    "key_of",
    "known_tag",
    "read_body",
    "read_object",
    "without_times",
]

ANONYMOUS: Final = "anonymous"
MAX_URL_BYTES: Final = 8 * 1024
"""Of path and query together. What is longer is a body of `:query`."""

_CALLER_SYNTAX = re.compile(r"[a-z][a-z0-9_]{0,62}")


class ContractRequest(Request):
    """A request for a route of the contract.

    Attributes:
        caller: the service that asks; set once it is let in.
        record_id: the id in the URL, as text; empty where there is none.
    """

    caller: str = ""
    record_id: str = ""
    _fields: Mapping[bytes, bytes] | None = None
    _preferences: Preferences | None = None

    @property
    def store(self) -> Store:
        """The running application's."""
        store: Store = self.app.state.store
        return store

    @property
    def preferences(self) -> Preferences:
        """What `Prefer` says, and what of it was honoured so far."""
        if self._preferences is None:
            self._preferences = Preferences.of(self.field(b"prefer"))
        return self._preferences

    @property
    def applied(self) -> str:
        """What of the preferences was honoured."""
        return "" if self._preferences is None else self._preferences.applied

    def field(self, name: bytes) -> str | None:
        """A header field, by its name in lower case."""
        if (
            self._fields is None
        ):  # a route looks for several that are mostly not there: one pass for all of them
            self._fields = dict(reversed(self.scope["headers"]))
        value = self._fields.get(name)
        return None if value is None else value.decode("latin-1")


def check_head(request: ContractRequest) -> None:
    """Refuse what no route takes.

    Raises:
        UriTooLongError: the URL has more than 8 KiB.
    """
    scope = request.scope
    length = len(scope["path"]) + len(scope["query_string"])
    if length > MAX_URL_BYTES:
        raise UriTooLongError(
            f"the URL has {length} bytes, {MAX_URL_BYTES} are allowed; send the query as the body of `:query`"
        )


def caller_of(request: Request) -> str:
    """The name of the calling service; `anonymous` where it doesn't say.

    Raises:
        InvalidRequestError: what it says is no service name.
    """
    name = request.headers.get(CALLER_HEADER, ANONYMOUS)
    if not _CALLER_SYNTAX.fullmatch(name):
        raise InvalidRequestError(f"{CALLER_HEADER} is no snake_case name of at most 63 characters")
    return name


def key_of(request: ContractRequest) -> str:
    """The idempotency key, unquoted.

    Raises:
        KeyMissingError: a write needs one.
        InvalidRequestError: it is too long, or not printable ASCII.
    """
    value = request.field(IDEMPOTENCY_KEY_HEADER.encode())
    if value is None:
        raise KeyMissingError(
            "a write needs an Idempotency-Key header, the same for every attempt of one call"
        )
    return parse_key(value)


class Condition(NamedTuple):
    """What has to hold for a write to happen.

    Attributes:
        if_match: the ETag that the record must have.
        only: `absent` for `If-None-Match: *`, `present` for any `If-Match`.
    """

    if_match: str | None
    only: Literal["absent", "present"] | None


def condition_of(request: ContractRequest) -> Condition:
    """The condition of a write, https://www.rfc-editor.org/rfc/rfc9110#section-13.1.

    Raises:
        InvalidRequestError: `If-None-Match` with a tag, or `If-Match` with several.
    """
    absent, match = request.field(b"if-none-match"), request.field(b"if-match")
    if absent is not None:
        if absent.strip() != "*" or match is not None:
            raise InvalidRequestError("a write takes `If-None-Match: *` or one If-Match, nothing else")
        return Condition(None, "absent")
    if match is None:
        return Condition(None, None)
    if match.strip() == "*":
        return Condition(None, "present")
    if "," in match:
        raise InvalidRequestError("If-Match takes one entity tag")
    return Condition(normal_tag(match), "present")


def known_tag(request: ContractRequest, tag: str) -> bool:
    """Whether the reader has that state already (`If-None-Match`)."""
    known = request.field(b"if-none-match")
    return known is not None and (known.strip() == "*" or tag in map(normal_tag, known.split(",")))


async def read_body(request: ContractRequest) -> bytes:
    """The body, which is JSON, read no further than to its limit of 1 MiB.

    Raises:
        UnsupportedMediaTypeError: it says that it is something else than JSON, or that it is compressed.
        PayloadTooLargeError: it is longer.
        InvalidRequestError: the caller has left in the middle of it.
    """
    _check_type(request)
    declared = request.field(b"content-length") or ""
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large(int(declared))
    chunks: list[bytes] = []
    size_bytes = 0
    try:
        async for chunk in request.stream():
            size_bytes += len(chunk)
            if size_bytes > MAX_BODY_BYTES:
                raise _too_large(size_bytes)
            chunks.append(chunk)
    except ClientDisconnect:
        raise InvalidRequestError("the caller left before its body was complete") from None
    return b"".join(chunks)


async def read_object(request: ContractRequest) -> tuple[bytes, dict[str, Any]]:
    """The body as it came, and as the JSON object that it is.

    Raises:
        MalformedPayloadError: it is none; otherwise as `read_body`.
    """
    body = await read_body(request)
    return body, decode_object(body, limit_bytes=MAX_BODY_BYTES)


def fingerprint(request: Request, members: Mapping[str, Any] | None) -> bytes:
    """What a repeated request has in common with the first: method, path and body, whatever the order of members."""
    return hashlib.sha256(
        f"{request.method} {request.scope['path']}\n".encode() + canonical_json(members)
    ).digest()


def without_times(transaction: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction as its rerun repeats it: which makes the same events at another time, for another request."""
    emitted: list[Mapping[str, Any]] = transaction.get("emit") or []
    events = [{name: event[name] for name in event if name not in _VARYING} for event in emitted]
    return {**transaction, "emit": events}


_VARYING: Final = frozenset({"timestamp", "not_before", "request_id", "traceparent", "tracestate"})


def _check_type(request: ContractRequest) -> None:
    """JSON by any of its names; without a name it is taken for JSON."""
    encoding = request.field(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaTypeError("a compressed body is not taken; send it as it is")
    declared = request.field(b"content-type")
    if declared is None:
        return
    media_type = declared.partition(";")[0].strip().lower()
    if media_type not in ("", "application/json") and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError(
            "a body is application/json, or application/merge-patch+json for a PATCH"
        )


def _too_large(size_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the body has more than the {MAX_BODY_BYTES} bytes that are allowed",
        size_bytes=size_bytes,
        limit_bytes=MAX_BODY_BYTES,
    )
