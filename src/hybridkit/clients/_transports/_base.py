"""The seam to the wire: one request out, one answer back, whole or in chunks."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from hybridkit.errors import ResponseError

MAX_LENGTH_DIGITS: Final = 20
"""Of an announced length that is read; a longer one is nonsense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One attempt of one call, as it goes out.

    Attributes:
        method: upper case.
        url: absolute and percent-encoded; sent as it is.
        headers: lower-case names.
        body: empty for none.
        timeout_seconds: until the last byte of the answer. The pipeline stops waiting by itself; a transport uses
            this to free what it holds.
        connect_timeout_seconds: for the connection alone, TLS included.
        max_response_bytes: an answer with a longer body is given up on.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    timeout_seconds: float
    connect_timeout_seconds: float
    max_response_bytes: int

    def __str__(self) -> str:
        return f"{self.method} {self.url.partition('?')[0]}"  # the query may hold what a log shouldn't


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer.

    Attributes:
        status: whatever it is; a transport judges nothing and follows no redirect.
        headers: lower-case names; a field on several lines is one list.
        body: undecoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedResponse:
    """An answer of which the body is still on its way.

    Attributes:
        status: as in `Response`.
        headers: lower-case names.
        chunks: the body in pieces of any size, undecoded; to be iterated once.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Transport(Protocol):
    """Whatever can send an HTTP request. One serves one client, with many requests at a time."""

    async def send(self, request: Request) -> Response:
        """The whole answer to that request.

        Raises:
            UnavailableError: nothing was sent: no address, no connection, no TLS.
            OutcomeUnknownError: it was sent, or a part of it, and no whole answer came back.
            TimeoutError: not within `timeout_seconds`.
            ResponseError: the body is over the limit, or encoded in a way that was not asked for.
        """
        ...

    def stream(self, request: Request) -> AbstractAsyncContextManager[StreamedResponse]:
        """The answer to that request once its headers are there; its body is read inside the `async with` block.

        The connection is given back at the end of the block; where the body was not read to its end, it is closed.
        `max_response_bytes` doesn't apply. The chunks raise `OutcomeUnknownError` where the body is cut.

        Raises:
            UnavailableError: as `send`.
            OutcomeUnknownError: as `send`.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class Prompt:
    """Base of the transports of which every method ends at once when it is cancelled.

    Others run in tasks of their own, to be left behind when their time is over.
    """


def headers_of(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The header fields of an answer, by their names in lower case.

    Several lines of one field are one list, in their order; a line that is there twice counts once, as that of a field
    with one value (https://www.rfc-editor.org/rfc/rfc9110#section-5.3).
    """
    headers: dict[str, str] = {}
    for name, value in lines:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        before = headers.get(key)
        if before is None:
            headers[key] = text
        elif before != text:
            headers[key] = f"{before}, {text}"
    return headers


async def read_body(
    chunks: AsyncIterable[bytes], *, request: Request, status: int, headers: Mapping[str, str]
) -> bytes:
    """The body in those chunks, given up on as soon as it is known to be too long.

    Raises:
        ResponseError: over the limit, or compressed.
    """
    refuse_compressed(request, status=status, headers=headers)
    length = headers.get("content-length", "")
    is_length = length.isascii() and length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS
    size_bytes = int(length) if is_length else 0
    received: list[bytes] = []
    if size_bytes <= request.max_response_bytes:
        size_bytes = 0
        async for chunk in chunks:
            received.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > request.max_response_bytes:
                break
    if size_bytes > request.max_response_bytes:
        raise ResponseError(
            f"{request}: the answer has more than {request.max_response_bytes} bytes; ask for smaller pages",
            response_status=status,
        )
    return b"".join(received)


def refuse_compressed(request: Request, *, status: int, headers: Mapping[str, str]) -> None:
    """A few compressed bytes can become gigabytes, and `accept-encoding: identity` was asked for.

    Raises:
        ResponseError: it is compressed.
    """
    codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
    if codings - {"", "identity"}:
        raise ResponseError(f"{request}: the answer is compressed, unasked", response_status=status)
