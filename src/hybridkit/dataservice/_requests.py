"""What a request says besides its target: who calls, under which key, on which condition, with which body."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import orjson
from fastapi import Request

from hybridkit.contract import CALLER_HEADER, IDEMPOTENCY_KEY_HEADER, MAX_BODY_BYTES, parse_key
from hybridkit.dataservice._etags import normal_tag
from hybridkit.errors import InvalidRequestError, KeyMissingError, PayloadTooLargeError

__all__ = [
    "Condition",
    "caller_of",
    "condition_of",
    "fingerprint",
    "key_of",
    "known_tag",
    "read_body",
    "without_times",
]

ANONYMOUS: Final = "anonymous"
_CALLER_SYNTAX = re.compile(r"[a-z][a-z0-9_]{0,62}")


def caller_of(request: Request) -> str:
    """The name of the calling service; `anonymous` where it doesn't say.

    Raises:
        InvalidRequestError: what it says is no service name.
    """
    name = request.headers.get(CALLER_HEADER, ANONYMOUS)
    if not _CALLER_SYNTAX.fullmatch(name):
        raise InvalidRequestError(f"{CALLER_HEADER} is no snake_case name of at most 63 characters")
    return name


def key_of(request: Request) -> str:
    """The idempotency key, unquoted.

    Raises:
        KeyMissingError: a write needs one.
        InvalidRequestError: it is too long, or not printable ASCII.
    """
    value = request.headers.get(IDEMPOTENCY_KEY_HEADER)
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


def condition_of(request: Request) -> Condition:
    """The condition of a write, https://www.rfc-editor.org/rfc/rfc9110#section-13.1.

    Raises:
        InvalidRequestError: `If-None-Match` with a tag, or `If-Match` with several.
    """
    absent, match = request.headers.get("if-none-match"), request.headers.get("if-match")
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


def known_tag(request: Request, tag: str) -> bool:
    """Whether the reader has that state already (`If-None-Match`)."""
    known = request.headers.get("if-none-match")
    return known is not None and (known.strip() == "*" or tag in map(normal_tag, known.split(",")))


async def read_body(request: Request) -> bytes:
    """The body, read no further than to its limit of 1 MiB.

    Raises:
        PayloadTooLargeError: it is longer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large(int(declared))
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > MAX_BODY_BYTES:
            raise _too_large(size_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def fingerprint(request: Request, members: Mapping[str, Any] | None) -> bytes:
    """What a repeated request has in common with the first: method, path and body, whatever the order of members."""
    canonical = orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(f"{request.method} {request.url.path}\n".encode() + canonical).digest()


def without_times(transaction: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction as its rerun repeats it: which makes the same events at another time, for another request."""
    emitted: list[Mapping[str, Any]] = transaction.get("emit") or []
    varying = ("timestamp", "request_id", "not_before", "traceparent", "tracestate")
    events = [{name: event[name] for name in event if name not in varying} for event in emitted]
    return {**transaction, "emit": events}


def _too_large(size_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the body has more than the {MAX_BODY_BYTES} bytes that are allowed",
        size_bytes=size_bytes,
        limit_bytes=MAX_BODY_BYTES,
    )
