"""A transport over HTTP/1.1 on asyncio: the one of a client that was given none.

It costs a fraction of what a general HTTP client costs, as it does less: no redirect, cookie, proxy, compression or
HTTP/2, none of which a call between services has. TLS is the standard library's, with its verification. An answer whose
head needs an interpretation is read by h11, as is every stream.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

import h11

from hybridkit.clients._transports._base import (
    EndsWhenCancelled,
    Request,
    Response,
    StreamedResponse,
    headers_of,
    read_body,
    refuse_compressed,
    too_large,
)
from hybridkit.clients._transports._heads import encode_head
from hybridkit.clients._transports._http1_connection import Http1Connection, PlainAnswer
from hybridkit.errors import MisuseError, OutcomeUnknownError, UnavailableError

KEEPALIVE_SECONDS: Final = 30.0
"""Below the 75 s after which our servers close an idle connection, so that no request meets the closing."""
CLOSE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Origin:
    """A server and the connections to it.

    Attributes:
        host: as a resolver takes it.
        port: the port.
        authority: host and port as the field `host` has them.
        is_secure: whether the connections use TLS.
        idle: those that wait for a request, the one that was used last at the end.
    """

    host: str
    port: int
    authority: str
    is_secure: bool
    idle: list[Http1Connection] = field(default_factory=list[Http1Connection])


class Http1Transport(EndsWhenCancelled):
    """Sends over connections that it opens as they are needed, keeps while they are used, and closes."""

    def __init__(self) -> None:
        self._origins: dict[str, _Origin] = {}
        self._connections: set[Http1Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"Http1Transport({len(self._connections)} connections)"

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        origin, target, head = self._encoded(request)
        connection = await self._connection(origin, request)
        keeps_alive = False
        try:
            # The length that the answer to a HEAD announces is another answer's.
            limit_bytes = None if request.method == "HEAD" else request.max_response_bytes
            plain = await _ask(connection, request, head, limit_bytes=limit_bytes)
            if plain is not None:
                (status, headers, length, keeps_alive), body = plain
                if "content-encoding" in headers:
                    refuse_compressed(request, status=status, headers=headers)
                if length > request.max_response_bytes:
                    raise too_large(request, status=status)
                return Response(status=status, headers=headers, body=body)
            answer = _Reader(connection, request, target)
            status, headers = await answer.head()
            body = await read_body(answer, request=request, status=status, headers=headers)
            keeps_alive = answer.keeps_alive
            return Response(status=status, headers=headers, body=body)
        finally:
            self._give_back(origin, connection, keeps_alive=keeps_alive)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """See `Transport.stream`."""
        origin, target, head = self._encoded(request)
        connection = await self._connection(origin, request)
        answer = _Reader(connection, request, target)
        try:
            await _ask(connection, request, head, limit_bytes=None)
            status, headers = await answer.head()
            yield StreamedResponse(status=status, headers=headers, chunks=answer)
        finally:
            self._give_back(origin, connection, keeps_alive=answer.keeps_alive)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._closed = asyncio.Event()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._connections:
            connection.abort()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._closed.wait()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def _encoded(self, request: Request) -> tuple[_Origin, str, bytes]:
        """Return the server, the target at it, and the head of the request.

        Raises:
            MisuseError: HTTP can't carry the request.
        """
        if self._closed is not None:
            raise MisuseError(f"{request}: can't be sent: the transport is closed")
        url = request.url
        path = url.find("/", 8)  # behind `https://`, or in the host behind `http://`, which has no slash
        base, target = (url, "/") if path < 0 else (url[:path], url[path:])
        try:
            if (origin := self._origins.get(base)) is None:
                origin = self._origins[base] = _origin(base)
            return origin, target, encode_head(request, target=target, authority=origin.authority)
        except ValueError as error:
            raise MisuseError(f"{request}: can't be sent: {error}") from None

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    async def _connection(self, origin: _Origin, request: Request) -> Http1Connection:
        while origin.idle:
            connection = origin.idle.pop()
            if connection.is_open:
                return connection
        try:
            async with asyncio.timeout(request.connect_timeout_seconds):
                return await self._connect(origin, request.connect_timeout_seconds)
        except (OSError, UnicodeError) as error:  # the latter by the encoding of a name that none has
            reason = f"{type(error).__name__} {error}".rstrip()
            raise UnavailableError(f"{request}: not sent: {reason}") from error

    async def _connect(self, origin: _Origin, seconds: float) -> Http1Connection:
        loop = asyncio.get_running_loop()
        if origin.is_secure and self._tls is None:
            self._tls = ssl.create_default_context()
        raw = await _connected_socket(origin, seconds)
        try:
            _, connection = await loop.create_connection(
                lambda: Http1Connection(self._lost),
                sock=raw,
                ssl=self._tls if origin.is_secure else None,
                server_hostname=origin.host if origin.is_secure else None,
            )
        except BaseException:
            raw.close()
            raise
        self._connections.add(connection)
        if self._closed is not None:
            connection.abort()
            raise ConnectionAbortedError("the transport was closed meanwhile")
        return connection

    def _give_back(self, origin: _Origin, connection: Http1Connection, *, keeps_alive: bool) -> None:
        if connection.finish(keeps_alive=keeps_alive and self._closed is None):
            origin.idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - KEEPALIVE_SECONDS
        for origin in self._origins.values():
            for connection in origin.idle:
                if connection.idle_since <= oldest:
                    connection.abort()
            origin.idle = [connection for connection in origin.idle if connection.is_open]
        waits = any(origin.idle for origin in self._origins.values())
        self._sweep = loop.call_later(KEEPALIVE_SECONDS, self._close_idle) if waits else None

    def _lost(self, connection: Http1Connection) -> None:
        self._connections.discard(connection)
        if self._closed is not None and not self._connections:
            self._closed.set()


def _origin(base: str) -> _Origin:
    parts = urlsplit(base)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("its URL should begin like http://127.0.0.1:8001/")
    is_secure = parts.scheme == "https"
    return _Origin(parts.hostname, parts.port or (443 if is_secure else 80), parts.netloc, is_secure)


async def _connected_socket(origin: _Origin, seconds: float) -> socket.socket:
    """Return a socket that is connected to one of the server's addresses, the first one that takes it.

    Each has half of the time that is left, and the last one all of it, so that a dead one leaves time for the others.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    failed: OSError | None = None
    for number, (family, kind, protocol, _, address) in enumerate(addresses, 1):
        left = end - loop.time()
        raw = socket.socket(family, kind, protocol)
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(left if number == len(addresses) else left / 2):
                await loop.sock_connect(raw, address)
        except OSError as error:
            raw.close()
            failed = error
        except BaseException:
            raw.close()
            raise
        else:
            return raw
    raise failed or OSError("the name has no address")


class _Reader:
    """The answer to one request, read by h11; iterated over once, it yields the pieces of the body.

    Args:
        connection: has the answer's bytes.
        request: its method decides whether the answer has a body.
        target: of the request.

    Attributes:
        keeps_alive: whether the answer was read to its end, and the connection can take the next request.
    """

    def __init__(self, connection: Http1Connection, request: Request, target: str) -> None:
        self.keeps_alive = False
        self._connection = connection
        self._request = request
        self._http = h11.Connection(h11.CLIENT)
        # It is not told the fields and the body that were sent, as they make no difference to the answer.
        self._http.send(h11.Request(method=request.method, target=target, headers=[("host", "")]))
        self._http.send(h11.EndOfMessage())

    async def head(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of the answer, past the answers that only announce it.

        Raises:
            OutcomeUnknownError: there is no whole head.
        """
        while isinstance(event := await self._next(), h11.InformationalResponse):
            pass
        return event.status_code, headers_of(event.headers)  # h11 lets nothing else come first

    def __aiter__(self) -> Self:
        """Return the reader itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece of the body.

        Raises:
            OutcomeUnknownError: the body ends too early.
        """
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        http = self._http
        self.keeps_alive = http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]
        raise StopAsyncIteration

    async def _next(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._connection.receive())
        except (ConnectionError, h11.RemoteProtocolError) as error:
            raise _no_answer(self._request, error) from error
        return event


async def _ask(
    connection: Http1Connection, request: Request, head: bytes, *, limit_bytes: int | None
) -> PlainAnswer | None:
    try:
        return await connection.ask(head, request.body, limit_bytes=limit_bytes)
    except ConnectionError as error:
        raise _no_answer(request, error) from error


def _no_answer(request: Request, error: Exception) -> OutcomeUnknownError:
    reason = f"{type(error).__name__} {error}".rstrip()
    return OutcomeUnknownError(f"{request}: no whole answer: {reason}")
