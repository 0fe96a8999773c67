"""The socket under an AMQP connection, which aiormq's control plane and our data plane share.

aiormq lets its user open the socket. This one looks at every frame that comes in: frames of messages on a channel with
a port go to that port, all others to aiormq. Both sides write whole frames, so they never mix.
https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, section 4.2.3.
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


ALIVE_SECONDS: Final = 1.0
"""How often aiormq gets a heartbeat for frames that it doesn't see, as it closes a connection that is silent."""
FRAME_MAX: Final = 131_072
"""The largest frame in bytes until `connection.tune` says otherwise: RabbitMQ's default."""

_log = get_logger(__name__)


class SocketFactory(TransportFactory):
    """Opens a socket for aiormq and keeps it, because aiormq's own way to close waits for a peer that may be frozen."""

    def __init__(self) -> None:
        self.protocol: FrameProtocol | None = None

    def __repr__(self) -> str:
        return f"SocketFactory({self.protocol})"

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, with TLS for `amqps`, as `asyncio.open_connection` does, but with a `FrameProtocol`."""
        certificates: SSLContextProvider = options.pop("ssl_context_provider")
        context = await certificates.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        transport, protocol = await loop.create_connection(
            lambda: FrameProtocol(reader, loop), url.host or "", url.port or 0, ssl=context, **options
        )
        self.protocol = protocol
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def opened(self) -> "FrameProtocol":
        """Return the protocol of the open socket."""
        assert self.protocol is not None  # noqa: S101 # nosec B101 - connecting ended well
        return self.protocol

    def abort(self) -> None:
        """Drop the connection without `connection.close`."""
        if self.protocol is not None:
            self.protocol.abort()


class FrameProtocol(asyncio.StreamReaderProtocol):
    """Hands each incoming frame to a port or to aiormq, and writes the frames of the ports.

    Attributes:
        frame_max: the largest frame that the broker takes, in bytes.
        unblocked: cleared between `connection.blocked` and `connection.unblocked` (a memory or disk alarm).
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
        return f"FrameProtocol({self._out}, ports={sorted(self._ports)}, is_writable={self.is_writable})"

    @property
    def is_writable(self) -> bool:
        """Whether a message written now would leave soon."""
        return self.unblocked.is_set() and not self._is_full

    def open_port(self, channel: int, receiver: Receiver) -> Port:
        """Send the messages of an open channel to the receiver from now on."""
        port = self._ports[channel] = Port(self, channel, receiver)
        return port

    def write(self, octets: bytes) -> None:
        """Send whole frames."""
        if self._out is not None:
            self._out.write(octets)

    def abort(self) -> None:
        """Drop the connection without `connection.close`."""
        if self._out is not None:
            self._out.abort()

    # ── what asyncio calls ───────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, for writing."""
        super().connection_made(transport)
        self._out = cast("asyncio.Transport", transport)  # by its methods: uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Close all ports."""
        super().connection_lost(exc)
        for port in list(self._ports.values()):
            port.close(f"connection lost: {exc or 'closed by the broker'}")

    def pause_writing(self) -> None:
        """Note that the socket's buffer is full."""
        super().pause_writing()
        self._is_full = True

    def resume_writing(self) -> None:
        """Note that the socket's buffer has room again."""
        super().resume_writing()
        self._is_full = False
        self._tell_writable()

    def data_received(self, data: bytes) -> None:
        """Hand on whole frames; the beginning of one waits for its rest."""
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
        """Hand on every whole frame, and return the number of their bytes."""
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
        """Act at once on some methods for the control plane, which aiormq handles later, in a task."""
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
