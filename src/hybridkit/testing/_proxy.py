"""A TCP proxy on loopback that makes a healthy server look broken.

```python
async with FaultProxy("127.0.0.1", 5672) as proxy:
    client = await connect(proxy.url_for("amqp://guest:guest@127.0.0.1:5672/"))
    proxy.freeze()                                  # nothing comes through any more, nothing is closed
    proxy.let_pass()
```
"""

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

Direction = Literal["to_server", "to_client"]
_CHUNK_BYTES = 65536
_LOOPBACK = "127.0.0.1"


class _Mode(Enum):
    PASSING = "passing"
    FROZEN = "frozen"
    SWALLOWING = "swallowing"


class FaultProxy:
    """Stands between clients and a server, and does to their connections what networks and dying hosts do.

    `freeze`, `swallow`, `delay` and `cut` hold for the connections that are open and for those that come, until
    `let_pass` ends them all. Call everything from the event loop that entered the proxy.

    Args:
        host: where the real server is.
        port: the port it listens on.

    Attributes:
        port: where the proxy listens on 127.0.0.1, once it is entered.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self._target = (host, port)
        self._mode = _Mode.PASSING
        self._delay_seconds = 0.0
        self._cuts: dict[Direction, int] = {}
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        host, port = self._target
        return f"FaultProxy({self.port} -> {host}:{port}, {self._mode.value}, connections={self.connections})"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, _LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy."""
        return len(self._links)

    def url_for(self, url: str) -> str:
        """The same URL with the proxy's address in place of the server's."""
        parts = urlsplit(url)
        user, found, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{found}{_LOOPBACK}:{self.port}"))

    def let_pass(self) -> None:
        """End every fault. A connection that has lost bytes to `swallow` is reset: no network would heal it so."""
        self._mode = _Mode.PASSING
        self._delay_seconds = 0.0
        self._cuts.clear()
        self._thawed.set()
        for link in [link for link in self._links if link.has_lost_bytes]:
            link.reset()

    def freeze(self) -> None:
        """Let no byte through and close nothing, as a server under SIGSTOP does; `let_pass` delivers what waits."""
        self._mode = _Mode.FROZEN
        self._thawed.clear()

    def swallow(self) -> None:
        """Take all bytes and throw them away, as a network does that has lost the other side."""
        self._mode = _Mode.SWALLOWING
        self._thawed.set()

    def delay(self, seconds: float) -> None:
        """Deliver each byte that much later, in each direction; how many fit through stays the same."""
        self._delay_seconds = seconds

    def reset(self) -> None:
        """Close every open connection with RST on both sides, once; new ones are accepted."""
        for link in list(self._links):
            link.reset()

    def cut(self, direction: Direction, *, at_byte: int) -> None:
        """Close each connection when that many more bytes went in that direction; exactly those arrive.

        Args:
            direction: `to_server` or `to_client`; each can have its own cut.
            at_byte: how many bytes pass, counted per connection: from now, or from its start if it comes later.
        """
        self._cuts[direction] = at_byte
        for link in self._links:
            link.passed[direction] = 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, _Link(writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, link: "_Link") -> None:
        self._links.add(link)
        try:
            # A frozen host does not answer a new connection either: its kernel has only queued it.
            await self._thawed.wait()
            server_reader, link.server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(link, "to_server", reader, link.server))
                group.create_task(self._forward(link, "to_client", server_reader, link.client))
        except* OSError:
            link.reset()
        finally:
            link.close()
            self._links.discard(link)

    async def _forward(
        self, link: "_Link", direction: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        # What is on its way: when it is to arrive, and the bytes; none at the end of the stream.
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=16)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(source, on_the_way))
            group.create_task(self._deliver(link, direction, on_the_way, sink))

    async def _take(
        self, source: asyncio.StreamReader, on_the_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            # While frozen nothing is read, so that the sender comes to feel the full buffers.
            await self._thawed.wait()
            data = await source.read(_CHUNK_BYTES)
            await on_the_way.put((loop.time() + self._delay_seconds, data))

    async def _deliver(
        self,
        link: "_Link",
        direction: Direction,
        on_the_way: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            due, data = await on_the_way.get()
            await asyncio.sleep(due - loop.time())
            await self._thawed.wait()
            if self._mode is _Mode.SWALLOWING:
                link.has_lost_bytes = True
                continue
            if sink.is_closing():
                continue
            if not data:
                sink.write_eof()
                return
            allowed = self._allowance(link, direction)
            link.passed[direction] += len(data)
            sink.write(data[:allowed])
            await sink.drain()
            if allowed is not None and len(data) >= allowed:
                link.close()

    def _allowance(self, link: "_Link", direction: Direction) -> int | None:
        limit = self._cuts.get(direction)
        return None if limit is None else max(limit - link.passed[direction], 0)


@dataclass(eq=False, slots=True)
class _Link:
    """One client's connection and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    has_lost_bytes: bool = False
    passed: dict[Direction, int] = field(default_factory=lambda: {"to_server": 0, "to_client": 0})

    def close(self) -> None:
        """Close both sides in good order: what was written still arrives."""
        for writer in self._writers():
            writer.close()

    def reset(self) -> None:
        """Close both sides with RST, which is what a socket with SO_LINGER of 0 seconds does (socket(7))."""
        for writer in self._writers():
            connection: socket.socket = writer.get_extra_info("socket")
            # Where the loop has closed the socket already, asyncio raises the one error and uvloop the other.
            with suppress(OSError, ValueError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self.client] if self.server is None else [self.client, self.server]
