"""The seam to the wire: one request out, one whole answer back."""

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hybridkit.errors import ResponseError

__all__ = ["Request", "Response", "Transport", "read_body"]


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
        headers: lower-case names.
        body: undecoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Whatever can send an HTTP request. One serves one client, with many requests at a time."""

    async def send(self, request: Request) -> Response:
        """The whole answer to that request.

        Raises:
            UnavailableError: nothing was sent: no address, no connection, no TLS.
            OutcomeUnknownError: it was sent, or a part of it, and no whole answer came back.
            ResponseError: the body is over the limit, or encoded in a way that was not asked for.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


async def read_body(
    chunks: AsyncIterable[bytes], *, request: Request, status: int, headers: Mapping[str, str]
) -> bytes:
    """The body in those chunks, given up on as soon as it is known to be too long.

    Raises:
        ResponseError: over the limit; or compressed, where `accept-encoding: identity` was asked for, since a few
            compressed bytes can become gigabytes.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise ResponseError(f"{request}: the answer is compressed, unasked", response_status=status)
    length = headers.get("content-length", "")
    size_bytes = int(length) if length.isdecimal() else 0
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
