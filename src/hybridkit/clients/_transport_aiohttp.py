"""The wire by aiohttp: what a client uses where aiohttp is installed and nothing else was given.

It costs a fraction of httpx's CPU time per request, and its pool doesn't slow down with the number of connections.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import aiohttp
from yarl import URL

from hybridkit.clients._transport import Request, Response, StreamedResponse, read_body
from hybridkit.errors import MisuseError, OutcomeUnknownError, UnavailableError

__all__ = ["AiohttpTransport"]

KEEPALIVE_SECONDS: Final = 30.0
DNS_CACHE_SECONDS: Final = 10


class AiohttpTransport:
    """Sends by an own `aiohttp.ClientSession`; made while the event loop runs."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the bulkhead limits them, and its queue has a length and a deadline
                keepalive_timeout=KEEPALIVE_SECONDS,
                ttl_dns_cache=DNS_CACHE_SECONDS,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    def __repr__(self) -> str:
        return f"AiohttpTransport(closed={self._session.closed})"

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        with _meaning(request):
            async with await self._ask(request) as answer:
                headers = _headers(answer)
                body = await read_body(
                    answer.content.iter_any(), request=request, status=answer.status, headers=headers
                )
                return Response(status=answer.status, headers=headers, body=body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """See `Transport.stream`."""
        with _meaning(request):
            answer = await self._ask(request)
        try:
            yield StreamedResponse(
                status=answer.status, headers=_headers(answer), chunks=_chunks(request, answer)
            )
        finally:
            answer.release()  # closes the connection where the body was not read to its end

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._session.close()

    async def _ask(self, request: Request) -> aiohttp.ClientResponse:
        return await self._session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=request.headers,
            data=request.body or None,
            timeout=aiohttp.ClientTimeout(connect=request.connect_timeout_seconds),
            allow_redirects=False,
        )


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


async def _chunks(request: Request, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    while True:
        with _meaning(request):
            chunk = await answer.content.readany()
        if not chunk:
            return
        yield chunk


@contextmanager
def _meaning(request: Request) -> Generator[None]:
    """Raise what aiohttp's errors mean for that request."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise UnavailableError(f"{request}: not sent: {_reason(error)}") from error
    except ValueError as error:  # aiohttp's way to refuse a header or URL
        raise MisuseError(f"{request}: can't be sent: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise OutcomeUnknownError(f"{request}: no whole answer: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}".rstrip()
