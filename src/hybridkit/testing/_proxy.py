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

from hybridkit._tasks import TaskSet

Direction = Literal["to_server", "to_client"]
_CHUNK_BYTES = 65536
_LOOPBACK = "127.0.0.1"


class _Mode(Enum):
    PASSING = "passing"
    FROZEN = "frozen"
    SWALLOWING = "swallowing"


class FaultProxy:
    """A proxy between clients and a server that treats their connections as failing networks and hosts do.

    `freeze`, `swallow`, `delay` and `cut` apply to open and new connections, until `let_pass` ends them all. Call the
    methods from the event loop that entered the proxy.

    Args:
        host: the host of the real server.
        port: its port.

    Attributes:
        port: the port of the proxy on 127.0.0.1, once it is entered.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self._target = (host, port)
        self._mode = _Mode.PASSING
        self._delay_seconds = 0.0
        self._cuts: dict[Direction, int] = {}
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._pairs: set[_ConnectionPair] = set()
        self._tasks = TaskSet()
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
        await self._tasks.cancel()
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """The number of open connections through the proxy."""
        return len(self._pairs)

    def url_for(self, url: str) -> str:
        """Return the URL with the proxy's address in place of the server's."""
        parts = urlsplit(url)
        user, found, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{found}{_LOOPBACK}:{self.port}"))

    def let_pass(self) -> None:
        """End every fault. A connection that has lost bytes to `swallow` is reset, as TCP can't go on without them."""
        self._mode = _Mode.PASSING
        self._delay_seconds = 0.0
        self._cuts.clear()
        self._thawed.set()
        for pair in [pair for pair in self._pairs if pair.has_lost_bytes]:
            pair.reset()

    def freeze(self) -> None:
        """Hold all bytes back and close nothing, like a server under SIGSTOP; `let_pass` delivers them."""
        self._mode = _Mode.FROZEN
        self._thawed.clear()

    def swallow(self) -> None:
        """Read all bytes and drop them, like a network that has lost the other side."""
        self._mode = _Mode.SWALLOWING
        self._thawed.set()

    def delay(self, seconds: float) -> None:
        """Delay every byte in each direction, without limiting the bandwidth."""
        self._delay_seconds = seconds

    def reset(self) -> None:
        """Close all open connections with RST on both sides; new ones are accepted."""
        for pair in list(self._pairs):
            pair.reset()

    def cut(self, direction: Direction, *, at_byte: int) -> None:
        """Close each connection after a number of bytes in one direction; exactly those arrive.

        Args:
            direction: `to_server` or `to_client`; each can have its own cut.
            at_byte: the number of bytes, counted per connection from now, or from the start of a new one.
        """
        self._cuts[direction] = at_byte
        for pair in self._pairs:
            pair.passed[direction] = 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, _ConnectionPair(writer)))

    async def _serve(self, reader: asyncio.StreamReader, pair: "_ConnectionPair") -> None:
        self._pairs.add(pair)
        try:
            # A frozen host does not answer a new connection either: its kernel only queues it.
            await self._thawed.wait()
            server_reader, pair.server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(pair, "to_server", reader, pair.server))
                group.create_task(self._forward(pair, "to_client", server_reader, pair.client))
        except* OSError:
            pair.reset()
        finally:
            pair.close()
            self._pairs.discard(pair)

    async def _forward(
        self,
        pair: "_ConnectionPair",
        direction: Direction,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
    ) -> None:
        # The time of arrival and the bytes, which are empty at the end of the stream.
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=16)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(source, on_the_way))
            group.create_task(self._deliver(pair, direction, on_the_way, sink))

    async def _take(
        self, source: asyncio.StreamReader, on_the_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            # While frozen nothing is read, so that the sender's buffers fill up.
            await self._thawed.wait()
            data = await source.read(_CHUNK_BYTES)
            await on_the_way.put((loop.time() + self._delay_seconds, data))

    async def _deliver(
        self,
        pair: "_ConnectionPair",
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
                pair.has_lost_bytes = True
                continue
            if sink.is_closing():
                continue
            if not data:
                sink.write_eof()
                return
            allowed = self._allowance(pair, direction)
            pair.passed[direction] += len(data)
            sink.write(data[:allowed])
            await sink.drain()
            if allowed is not None and len(data) >= allowed:
                pair.close()

    def _allowance(self, pair: "_ConnectionPair", direction: Direction) -> int | None:
        limit = self._cuts.get(direction)
        return None if limit is None else max(limit - pair.passed[direction], 0)


@dataclass(eq=False, slots=True)
class _ConnectionPair:
    """A client's connection, and the connection to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    has_lost_bytes: bool = False
    passed: dict[Direction, int] = field(default_factory=lambda: {"to_server": 0, "to_client": 0})

    def close(self) -> None:
        """Close both sides; written bytes still arrive."""
        for writer in self._writers():
            writer.close()

    def reset(self) -> None:
        """Close both sides with RST, as a socket with SO_LINGER of 0 seconds does (socket(7))."""
        for writer in self._writers():
            connection: socket.socket = writer.get_extra_info("socket")
            # Where the loop has closed the socket already, asyncio raises the one error and uvloop the other.
            with suppress(OSError, ValueError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self.client] if self.server is None else [self.client, self.server]
