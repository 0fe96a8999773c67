"""The socket under an AMQP connection, shared by two: aiormq's control plane and our own data plane.

aiormq lets its user open the socket. This one looks at every frame that comes in: those that carry messages on a
channel with a port go to that port, all others to aiormq. What goes out is written in whole frames by both sides, so
they never mix. https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, section 4.2.3.
"""

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final, cast

from aiormq.connection import SSLContextProvider, TransportFactory
from yarl import URL

from hybridkit.messaging._amqp._frames import (
    CHANNEL_CLOSE,
    CONNECTION_BLOCKED,
    CONNECTION_UNBLOCKED,
    FRAME_KINDS,
    FRAME_OVERHEAD,
    HEAD,
    HEARTBEAT_FRAME,
    METHOD,
    read_close,
)
from hybridkit.messaging._amqp._port import Port, Receiver
from hybridkit.observability import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Sockets", "Wire"]

ALIVE_SECONDS: Final = 1.0
"""How often aiormq, which watches for a silent peer, is told that frames come in."""
FRAME_MAX: Final = 131_072
"""What RabbitMQ proposes, until the connection is tuned."""

_log = get_logger(__name__)


class Sockets(TransportFactory):
    """Opens a socket for aiormq and keeps it, because aiormq's own way to close waits for a peer that may be frozen."""

    def __init__(self) -> None:
        self.wire: Wire | None = None

    def __repr__(self) -> str:
        return f"Sockets({self.wire})"

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, with TLS for `amqps`: what `asyncio.open_connection` does, around a protocol of ours."""
        certificates: SSLContextProvider = options.pop("ssl_context_provider")
        context = await certificates.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, wire = await loop.create_connection(
            lambda: Wire(reader, loop), url.host or "", url.port or 0, ssl=context, **options
        )
        self.wire = wire
        return reader, asyncio.StreamWriter(transport, wire, reader, loop)

    def opened(self) -> "Wire":
        """The socket, once there is one."""
        assert self.wire is not None  # noqa: S101 # nosec B101 - connecting ended well
        return self.wire

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self.wire is not None:
            self.wire.abort()


class Wire(asyncio.StreamReaderProtocol):
    """Sorts the frames that come in, and writes those that carry messages.

    Attributes:
        frame_max: the largest frame that the broker takes, in bytes.
        unblocked: cleared while the broker reads nothing from this connection: a memory or disk alarm.
        on_writable: called when messages can be written again, after an alarm or a full buffer.
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.frame_max = FRAME_MAX
        self.unblocked = asyncio.Event()
        self.unblocked.set()
        self.on_writable: Callable[[], None] | None = None
        self._time = loop.time
        self._out: asyncio.Transport | None = None
        self._ports: dict[int, Port] = {}
        self._rest = b""
        self._speaks_amqp = True
        self._is_full = False
        self._alive_at = 0.0

    def __repr__(self) -> str:
        return f"Wire({self._out}, ports={sorted(self._ports)}, is_writable={self.is_writable})"

    @property
    def is_writable(self) -> bool:
        """Whether a message written now would leave soon."""
        return self.unblocked.is_set() and not self._is_full

    def open_port(self, channel: int, receiver: Receiver) -> Port:
        """Take the messages of an open channel, also those that are on their way when the port is closed."""
        port = self._ports[channel] = Port(self, channel, receiver)
        return port

    def write(self, octets: bytes) -> None:
        """Send whole frames."""
        if self._out is not None:
            self._out.write(octets)

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self._out is not None:
            self._out.abort()

    # ── what asyncio calls ───────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        super().connection_made(transport)
        self._out = cast("asyncio.Transport", transport)  # by its methods: uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Close all ports."""
        super().connection_lost(exc)
        for port in list(self._ports.values()):
            port.close(f"connection lost: {exc or 'closed by the broker'}")

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        super().pause_writing()
        self._is_full = True

    def resume_writing(self) -> None:
        """There is room again."""
        super().resume_writing()
        self._is_full = False
        self._tell_writable()

    def data_received(self, data: bytes) -> None:
        """Sort whole frames; the beginning of one waits for its rest."""
        if not self._speaks_amqp:
            super().data_received(data)
            return
        if self._rest:
            data = self._rest + data
        try:
            done = self._sort(data)
        except (struct.error, IndexError) as error:  # a frame that is shorter than what it should hold
            _log.error("broker sent a malformed frame", error=repr(error))
            self.abort()
            return
        self._rest = data[done:]

    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _sort(self, data: bytes) -> int:
        """Hand on every whole frame; how many bytes that was."""
        start, stop, end = 0, 0, len(data)
        taken = False
        while end - start >= FRAME_OVERHEAD:
            kind, channel, size = HEAD.unpack_from(data, start)
            if kind not in FRAME_KINDS:  # another protocol answers: aiormq has the words for it
                self._speaks_amqp = False
                super().data_received(data[start:])
                return end
            stop = start + size + FRAME_OVERHEAD
            if stop > end:
                break
            port = self._ports.get(channel)
            if port is not None and port.take(kind, data, start + HEAD.size, stop - 1):
                taken = True
            else:
                if kind == METHOD:
                    self._observe(port, data, start + HEAD.size)
                super().data_received(data[start:stop])
            start = stop
        if taken:
            self._show_life()
        return start

    def _observe(self, port: Port | None, data: bytes, start: int) -> None:
        """See what the control plane is told, at once: it acts on it later, and must not be overtaken."""
        method = data[start : start + 4]
        if method == CONNECTION_BLOCKED:
            self.unblocked.clear()
        elif method == CONNECTION_UNBLOCKED:
            self.unblocked.set()
            self._tell_writable()
        elif method == CHANNEL_CLOSE and port is not None:
            port.close(read_close(data, start))

    def _tell_writable(self) -> None:
        if self.on_writable is not None and self.is_writable:
            self.on_writable()

    def _show_life(self) -> None:
        now = self._time()
        if now - self._alive_at > ALIVE_SECONDS:
            self._alive_at = now
            super().data_received(HEARTBEAT_FRAME)
