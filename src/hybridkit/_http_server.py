"""A small HTTP/1.1 server: for the health of workers and bots, and for the fakes of `hybridkit.testing`.

h11 reads and writes the protocol, https://h11.readthedocs.io/en/latest/api.html. Applications are served by uvicorn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http.client import responses as reason_phrases
from typing import Final, NamedTuple

import h11

from hybridkit._tasks import TaskSet
from hybridkit.observability import get_logger

MAX_HEAD_BYTES: Final = 64 * 1024

_log = get_logger("hybridkit.http_server")


class HttpRequest(NamedTuple):
    """A request.

    Attributes:
        method: as it was sent; methods are case-sensitive.
        target: path and query, percent-encoded.
        headers: names in lower case, and values.
        body: without its framing.
        is_reusing: whether the connection has carried another request before.
        peer: the address of the other side of the connection, without its port; empty where there is none.
    """

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    is_reusing: bool = False
    peer: str = ""


class HttpResponse(NamedTuple):
    """A response; the server adds `Content-Length`.

    Attributes:
        status: the HTTP status.
        headers: names and values; `Connection: close` ends the connection after the response.
        body: left out in the response to HEAD, and with 204 and 304.
        drip_seconds: the pause before each byte of the body; 0 sends it at once.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    drip_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """The limits of a server.

    Attributes:
        head_bytes: the largest head; more is refused with 431.
        body_bytes: the largest body; more is refused with 413. None for any size; 0 leaves bodies unread, and ends the
            connection after the response to a request that has one.
        exchange_seconds: the longest time for a request and its response, then the connection ends; None for any.
        read_seconds: the longest wait for a whole request, then the connection ends; None for any.
        connections: the most connections at a time; more are closed at once. None for any number.
    """

    head_bytes: int = MAX_HEAD_BYTES
    body_bytes: int | None = None
    exchange_seconds: float | None = None
    read_seconds: float | None = None
    connections: int | None = None


class HttpServer:
    """Answers the requests of one address, over connections that stay open.

    Args:
        answer: returns the response to a request; None ends the connection without one.
        refuse: returns the response to what is no request or is too large, given the HTTP status and the reason.
        name: the name of the tasks, for debuggers.
        limits: the limits of heads, bodies and time.
    """

    def __init__(
        self,
        answer: Callable[[HttpRequest], Awaitable[HttpResponse | None]],
        *,
        refuse: Callable[[int, str], HttpResponse],
        name: str,
        limits: HttpLimits,
    ) -> None:
        self.answer = answer
        self.refuse = refuse
        self.limits = limits
        self._name = name
        self._server: asyncio.Server | None = None
        self._connections = TaskSet()
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._is_draining = False

    def __repr__(self) -> str:
        return f"HttpServer({self._name!r}, connections={len(self._connections)})"

    async def listen(self, host: str, port: int, *, is_shared: bool = False) -> int:
        """Listen on that address, and return the port: a free one for 0.

        Args:
            host: the address.
            port: the port.
            is_shared: whether other processes may listen there too, each for a part of the connections.

        Raises:
            OSError: the port is taken, or may not be used.
        """
        self._server = await asyncio.start_server(self._accept, host, port, reuse_port=is_shared or None)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def stop_listening(self) -> None:
        """Accept no further connections; those that are open end after their next response."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()

    @property
    def is_draining(self) -> bool:
        """Whether a connection ends after its response."""
        return self._is_draining

    async def drain(self, seconds: float) -> None:
        """Stop listening, end the idle connections, and wait for the responses to requests that have begun.

        Args:
            seconds: how long to wait at most.
        """
        self.stop_listening()
        for task, connection in list(self._open.items()):
            if connection.is_idle:
                task.cancel()
        await self._connections.wait(seconds=seconds)

    async def close(self) -> None:
        """Stop listening, and end the open connections without waiting for their responses."""
        self.stop_listening()
        await self._connections.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.limits.connections is not None and len(self._connections) >= self.limits.connections:
            writer.close()
            return
        # asyncio can't cancel the task that it makes of a coroutine function without a complaint before 3.12.2.
        connection = _Connection(self, reader, writer)
        task = self._connections.start(connection.serve(), name=self._name)
        self._open[task] = connection

        # Not in the task's own `finally`: it may be cancelled before its first step.
        def end(ended: asyncio.Task[None]) -> None:
            del self._open[ended]
            writer.close()

        task.add_done_callback(end)


class _Connection:
    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.head_bytes)
        self._is_reused = False
        address: tuple[str, int] | None = writer.get_extra_info("peername")
        self._peer = address[0] if address else ""

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has arrived."""
        return self._protocol.states == {h11.SERVER: h11.IDLE, h11.CLIENT: h11.IDLE}

    async def serve(self) -> None:
        """Answer request after request until the connection ends."""
        try:
            while True:
                async with asyncio.timeout(self._server.limits.exchange_seconds):
                    await self._exchange()
                is_over = self._protocol.states != {h11.SERVER: h11.DONE, h11.CLIENT: h11.DONE}
                if is_over or self._server.is_draining:
                    return
                self._protocol.start_next_cycle()
                self._is_reused = True
        except OSError:  # the peer has left or, as a TimeoutError, is too slow to be answered
            pass
        except Exception:  # noqa: BLE001 - of a handler; the other connections go on
            _log.exception("a request was not answered", server=repr(self._server))

    async def _exchange(self) -> None:
        try:
            async with asyncio.timeout(self._server.limits.read_seconds):
                request = await self._read_request()
        except h11.RemoteProtocolError as error:
            await self._send(self._server.refuse(error.error_status_hint, str(error)), method="")
            return
        response = None if request is None else await self._server.answer(request)
        if request is not None and response is not None:
            await self._send(response, method=request.method)

    async def _read_request(self) -> HttpRequest | None:
        """Read the next request; None where the connection ends before or within it."""
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        if head.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here")
        if head.method == b"CONNECT":  # a response of success would promise a tunnel, and have no body
            raise h11.RemoteProtocolError(
                "CONNECT asks for a tunnel: this is no proxy", error_status_hint=501
            )
        limit_bytes = self._server.limits.body_bytes
        body = bytearray()
        while limit_bytes != 0:
            match await self._next_event():
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage():
                    break
                case _:
                    return None
            if limit_bytes is not None and len(body) > limit_bytes:
                raise h11.RemoteProtocolError(
                    f"the body has more than {limit_bytes} bytes", error_status_hint=413
                )
        return HttpRequest(
            head.method.decode(),
            head.target.decode("latin-1"),
            list(head.headers),
            bytes(body),
            self._is_reused,
            self._peer,
        )

    async def _next_event(self) -> h11.Event | None:
        """Wait for the next part of a request; None where the connection ends."""
        while not isinstance(event := self._protocol.next_event(), h11.Event):
            if self._protocol.they_are_waiting_for_100_continue:
                self._write(h11.InformationalResponse(status_code=100, headers=[]))
            # No more than a head may have: h11 takes a larger one that arrives at once.
            unread_bytes = len(self._protocol.trailing_data[0])
            data = await self._reader.read(self._server.limits.head_bytes + 1 - unread_bytes)
            if not data:
                return None
            self._protocol.receive_data(data)
        return event

    async def _send(self, response: HttpResponse, *, method: str) -> None:
        may_have_body = response.status not in (204, 304)
        has_body = may_have_body and method != "HEAD"
        headers = [field for field in response.headers if not has_body or field[0] != b"content-length"]
        # To HEAD too: without it, h11 announces chunks.
        if may_have_body and not any(name == b"content-length" for name, _ in headers):
            headers.append((b"content-length", b"%d" % len(response.body)))
        if self._server.is_draining:
            headers.append((b"connection", b"close"))
        reason = reason_phrases.get(response.status, "").encode()
        self._write(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if has_body and response.drip_seconds:
            for byte in response.body:
                await self._writer.drain()
                await asyncio.sleep(response.drip_seconds)
                self._write(h11.Data(data=bytes([byte])))
        elif has_body:
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())
        await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        self._writer.write(self._protocol.send(event) or b"")
