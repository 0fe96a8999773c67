"""A transport over httpx: any `httpx.AsyncClient` or `httpx.AsyncBaseTransport`, in-process ASGI among them."""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from hybridkit.clients._transports._base import (
    Request,
    Response,
    StreamedResponse,
    Transport,
    headers_of,
    read_body,
)
from hybridkit.clients._transports._http1 import KEEPALIVE_SECONDS, Http1Transport
from hybridkit.errors import MisuseError, OutcomeUnknownError, UnavailableError

type AnyTransport = Transport | httpx.AsyncClient | httpx.AsyncBaseTransport
"""The values that a client takes as its `transport`."""


def open_transport(given: AnyTransport | None) -> Transport:
    """Return the given transport, in a wrapper where it is httpx's; for None a new `Http1Transport`."""
    if given is None:
        return Http1Transport()
    if isinstance(given, httpx.AsyncClient):
        return HttpxTransport(given, owned=False)
    if isinstance(given, httpx.AsyncBaseTransport):
        return HttpxTransport(new_client(given), owned=True)
    return given


def new_client(transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    """Return an httpx client with our settings, over that transport or the network."""
    limits = httpx.Limits(
        max_connections=None,  # the bulkhead limits them, and its queue has a length and a deadline
        max_keepalive_connections=None,
        keepalive_expiry=KEEPALIVE_SECONDS,
    )
    # A cookie that is kept would go with the next call, which another user may have caused.
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    if transport is None:
        transport = httpx.AsyncHTTPTransport(verify=_tls_context(), limits=limits, trust_env=False)
    # No proxies from the environment: they are for the way out, and data services are inside.
    return httpx.AsyncClient(transport=transport, cookies=no_cookies, trust_env=False)


@cache
def _tls_context() -> ssl.SSLContext:
    """Load the certificates of the authorities, which takes 20 ms, once per process."""
    return httpx.create_ssl_context(trust_env=False)


class HttpxTransport:
    """Sends by an `httpx.AsyncClient`.

    Args:
        client: sends the requests.
        owned: whether closing the transport closes the client.
    """

    def __init__(self, client: httpx.AsyncClient, *, owned: bool) -> None:
        self._client = client
        self._owned = owned

    def __repr__(self) -> str:
        return f"HttpxTransport(owned={self._owned})"

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        with _meaning(request):
            async with self._ask(request) as answer:
                headers = headers_of(answer.headers.raw)
                # Not aiter_raw: it refuses an answer that a mock transport holds in memory.
                body = await read_body(
                    answer.aiter_bytes(), request=request, status=answer.status_code, headers=headers
                )
                return Response(status=answer.status_code, headers=headers, body=body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """See `Transport.stream`."""
        async with AsyncExitStack() as stack:
            with _meaning(request):
                answer = await stack.enter_async_context(self._ask(request))
            yield StreamedResponse(
                status=answer.status_code,
                headers=headers_of(answer.headers.raw),
                chunks=_chunks(request, answer.aiter_bytes()),
            )

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        if self._owned:
            await self._client.aclose()

    def _ask(self, request: Request) -> AbstractAsyncContextManager[httpx.Response]:
        return self._client.stream(
            request.method,
            request.url,
            headers=[(name.encode(), value.encode()) for name, value in request.headers.items()],
            content=request.body or None,
            timeout=httpx.Timeout(request.timeout_seconds, connect=request.connect_timeout_seconds),
            follow_redirects=False,
        )


async def _chunks(request: Request, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    while True:
        with _meaning(request):
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextmanager
def _meaning(request: Request) -> Generator[None]:
    """Raise what httpx's errors mean for that request."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
        raise UnavailableError(f"{request}: not sent: {_reason(error)}") from error
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise TimeoutError(f"{request}: {_reason(error)}") from error
    except (httpx.LocalProtocolError, RuntimeError) as error:  # httpx says by the latter that it is closed
        raise MisuseError(f"{request}: can't be sent: {error}") from error
    except httpx.TransportError as error:
        raise OutcomeUnknownError(f"{request}: no whole answer: {_reason(error)}") from error


def _reason(error: httpx.TransportError) -> str:
    return f"{type(error).__name__} {error}".rstrip()
