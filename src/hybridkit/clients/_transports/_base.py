"""The interface of a transport: one request out, one answer back, whole or in chunks."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from hybridkit.errors import ResponseError

MAX_LENGTH_DIGITS: Final = 20
"""The most digits of an announced length that are read; a longer one is nonsense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One attempt of a call, as it is sent.

    Attributes:
        method: the HTTP method, in upper case.
        url: absolute and percent-encoded; sent as it is.
        headers: the header fields, by lower-case names.
        body: empty for none.
        timeout_seconds: the time until the last byte of the answer. The pipeline stops waiting by itself; a transport
            uses this to free what it holds.
        connect_timeout_seconds: the time for the connection alone, TLS included.
        max_response_bytes: the most bytes of the answer's body; a longer one is given up.
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
        status: any status; a transport judges none and follows no redirect.
        headers: the header fields, by lower-case names; a field on several lines is one list.
        body: the body, undecoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedResponse:
    """An answer whose body is still on its way.

    Attributes:
        status: as in `Response`.
        headers: as in `Response`.
        chunks: the body in pieces of any size, undecoded; to be iterated once.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Transport(Protocol):
    """Sends HTTP requests for one client, many at a time."""

    async def send(self, request: Request) -> Response:
        """Send a request, and return its whole answer.

        Raises:
            UnavailableError: nothing was sent: no address, no connection, no TLS.
            OutcomeUnknownError: the request was sent, or a part of it, and no whole answer came back.
            TimeoutError: no whole answer came within `timeout_seconds`.
            ResponseError: the body is over the limit, or encoded in a way that was not asked for.
        """
        ...

    def stream(self, request: Request) -> AbstractAsyncContextManager[StreamedResponse]:
        """Send a request, and open its answer once the headers are there; the `async with` block reads the body.

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


class EndsWhenCancelled:
    """Base of the transports whose methods all end at once when they are cancelled.

    The methods of others run in tasks, to be left behind when their time is over.
    """


def headers_of(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the header fields of an answer, by their names in lower case.

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
    """Return the body in those chunks; stop reading as soon as it is known to be too long.

    Raises:
        ResponseError: the body is over the limit, or compressed.
    """
    refuse_compressed(request, status=status, headers=headers)
    length = "" if request.method == "HEAD" else headers.get("content-length", "")
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
        raise too_large(request, status=status)
    return b"".join(received)


def too_large(request: Request, *, status: int) -> ResponseError:
    """Return the error of an answer whose body is over the limit."""
    return ResponseError(
        f"{request}: the answer has more than {request.max_response_bytes} bytes; ask for smaller pages",
        response_status=status,
    )


def refuse_compressed(request: Request, *, status: int, headers: Mapping[str, str]) -> None:
    """Refuse a compressed answer: a few bytes can become gigabytes, and `accept-encoding: identity` was asked for.

    Raises:
        ResponseError: the answer is compressed.
    """
    codings = {coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")}
    if codings - {"", "identity"}:
        raise ResponseError(f"{request}: the answer is compressed, unasked", response_status=status)
