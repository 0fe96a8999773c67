"""The limits of a request: the size of its head, its URL, and the length of its body.

The limits of the head are those of common servers (gunicorn: 100 fields; h11: 64 KiB), so that what is accepted here is
accepted behind another server as well.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from hybridkit._asgi_types import Message, Receive
from hybridkit._header_fields import Fields
from hybridkit.context import RequestContext
from hybridkit.contract import MAX_BODY_BYTES
from hybridkit.errors import (
    DeadlinePassedError,
    DeclarationError,
    HeadTooLargeError,
    PayloadTooLargeError,
    RejectedError,
    UriTooLongError,
)

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEAD_FIELDS: Final = 100
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_WITHOUT_HOST: Final = frozenset({"", "0.9", "1.0", "2", "3"})
"""Versions of HTTP without `Host`; from 2 on, `:authority` names the host."""
MAX_TARGET_BYTES: Final = 8 * 1024
"""The limit of path and query together, which common proxies have too."""
MAX_LENGTH_DIGITS: Final = 20
"""How many digits of a length are parsed; longer numbers are beyond any limit."""


class AmbiguousHeadError(RejectedError):
    """A head that can be read in several ways; the connection is closed after the response."""


def check_head(scope: Mapping[str, Any], fields: Fields) -> int:
    """Refuse a head that is too large, ambiguous, or not UTF-8.

    Args:
        scope: the scope of the request.
        fields: its header fields.

    Returns:
        The declared length of the body in bytes; 0 when none is declared.

    Raises:
        HeadTooLargeError: the head has over 100 fields or 64 KiB.
        AmbiguousHeadError: a proxy could read the head in another way, by its length, transfer coding or target (RFC
            9112, sections 3.2 and 6), so that the rest of the connection can't be trusted either.
        RejectedError: an HTTP/1.1 request does not have exactly one `Host` (RFC 9112, section 3.2), or its URL has
            escapes that are not UTF-8, so that several URLs would be one.
    """
    lines: list[tuple[bytes, bytes]] = scope["headers"]
    if len(lines) > MAX_HEAD_FIELDS:
        raise HeadTooLargeError(f"the request has {len(lines)} header fields, {MAX_HEAD_FIELDS} are allowed")
    size_bytes = sum(map(len, chain.from_iterable(lines)))
    body_bytes = _check_framing(scope, lines) if fields.has_any(_FRAMING) else 0
    if not scope["path"].startswith("/"):
        raise AmbiguousHeadError("the target of a request is a path")
    if size_bytes > MAX_HEAD_BYTES:
        raise HeadTooLargeError(f"the header fields have {size_bytes} bytes, {MAX_HEAD_BYTES} are allowed")
    if fields.count(b"host") != 1 and scope.get("http_version", "") not in _WITHOUT_HOST:
        raise RejectedError("a request has exactly one Host field")
    if "\ufffd" in scope["path"]:
        _check_utf8(scope.get("raw_path") or b"", part="path")
    if b"%" in scope["query_string"]:
        _check_utf8(scope["query_string"], part="query")
    return body_bytes


def check_target(scope: Mapping[str, Any]) -> None:
    """Refuse a URL that is too long; a data service has its own check, which knows a way out.

    Raises:
        UriTooLongError: path and query have over 8 KiB.
    """
    size_bytes = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    if size_bytes > MAX_TARGET_BYTES:
        raise UriTooLongError(f"the URL has {size_bytes} bytes, {MAX_TARGET_BYTES} are allowed")


def _check_framing(scope: Mapping[str, Any], lines: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the declared length of a body, if everybody sees its end at the same place."""
    body_bytes = 0
    framing: list[bytes] = []
    for name, value in lines:
        if name == b"transfer-encoding":
            framing.append(value.lower())
        elif name == b"content-length" and value.isdigit():
            framing.append(name)
            body_bytes = int(value[:MAX_LENGTH_DIGITS])
    is_clear = framing in ([], [b"content-length"], [b"chunked"])
    if not is_clear or (framing == [b"chunked"] and scope.get("http_version") == "1.0"):
        raise AmbiguousHeadError(
            "a body has one length, or is sent in chunks by HTTP/1.1, in no other coding"
        )
    return body_bytes


def _check_utf8(escaped: bytes, *, part: str) -> None:
    try:
        unquote_to_bytes(escaped).decode()
    except UnicodeDecodeError:
        raise RejectedError(f"the {part} of the URL is no UTF-8") from None


def by_segments[T](by_path: Mapping[str, T]) -> list[tuple[str, T]]:
    """Return values by the path that a URL begins with, for `of_path`; `/` stands for all other paths."""
    return [(path.rstrip("/"), by_path[path]) for path in sorted(by_path, key=len, reverse=True)]


def of_path[T](values: Sequence[tuple[str, T]], path: str) -> T:
    """Return the value whose path has the most segments of this one."""
    for segments, value in values:
        if not segments or path == segments or path.startswith(f"{segments}/"):
            return value
    raise LookupError(path)


class BodyLimits:
    """The limits of request bodies, by path.

    Args:
        by_path: limits in bytes for the paths that begin with these segments; the longest match decides. `/` stands for
            all other paths, and is 1 MiB by default.

    Raises:
        DeclarationError: a path does not begin with a slash, or a limit is not positive.
    """

    def __init__(self, by_path: Mapping[str, int]) -> None:
        for path, limit_bytes in by_path.items():
            if not path.startswith("/") or limit_bytes <= 0:
                raise DeclarationError(
                    f"body limit {path!r}: {limit_bytes}: a path begins with `/`, a limit is positive"
                )
        self._by_segments = by_segments({"/": MAX_BODY_BYTES, **by_path})

    def __repr__(self) -> str:
        return f"BodyLimits({ {path or '/': limit for path, limit in self._by_segments} })"

    def of(self, path: str) -> int:
        """Return the limit for a path, in bytes."""
        return of_path(self._by_segments, path)


class LimitedReceive:
    """A `receive` that ends a body at its limit, and waits for it no longer than until the request's deadline.

    Args:
        receive: the server's `receive`.
        context: the context whose deadline applies.
        limit_bytes: the limit of the body.
        declared_bytes: the declared length of the body.

    Raises:
        PayloadTooLargeError: the declared length is over the limit. A body that turns out longer raises while it is
            read.
    """

    def __init__(
        self, receive: Receive, context: RequestContext, *, limit_bytes: int, declared_bytes: int
    ) -> None:
        if declared_bytes > limit_bytes:
            raise _too_large(declared_bytes, limit_bytes)
        self._receive = receive
        self._context = context
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:  # the application waits for a disconnect
            return await self._receive()
        remaining_seconds = self._context.remaining_seconds()
        try:
            async with asyncio.timeout(remaining_seconds):
                message = await self._receive()
        except TimeoutError:
            raise DeadlinePassedError("the body did not come in the time allowed; nothing was done") from None
        self._size_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size_bytes > self._limit_bytes:
            raise _too_large(self._size_bytes, self._limit_bytes)
        return message


def _too_large(size_bytes: int, limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the body has more than the {limit_bytes} bytes that are allowed",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )
