"""A client's connection: its handshake, its heartbeats, and the frames to and from its channels.

Outgoing frames are collected and written once per chunk of input or turn of the loop: many small frames, one write.
"""

import asyncio
import logging
import struct
from contextlib import suppress
from enum import Enum
from typing import Any, Final, Protocol, cast

from pamqp import base, commands, decode

from hybridkit.dev._broker import _frames as frames
from hybridkit.dev._broker._channel import Channel
from hybridkit.dev._broker._consuming import CONSUMING
from hybridkit.dev._broker._declarations import DECLARATIONS
from hybridkit.dev._broker._fault_plan import FaultPlan
from hybridkit.dev._broker._refusals import RefusalError, reply_text
from hybridkit.dev._broker._virtual_host import VirtualHost

CHANNEL_MAX: Final = 2047
FRAME_MAX: Final = 131072
HEARTBEAT_SECONDS: Final = 60
SERVER_PROPERTIES: Final[dict[str, Any]] = {
    "product": "hybridkit development broker",
    "version": "4.3.0",
    "platform": "Python",
    "information": "For development and tests; it behaves as RabbitMQ of that version.",
    "capabilities": {
        "publisher_confirms": True,
        "exchange_exchange_bindings": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "authentication_failure_close": True,
        "per_consumer_qos": True,
    },
}
_FRAME_MIN: Final = 4096
_CLOSE_SECONDS: Final = 5.0
_FLUSH_AT_BYTES: Final = 65536
_PAUSE_AT_BYTES: Final = 1024 * 1024
_IDS: Final = struct.Struct(">HH")
_METHODS: Final = {**DECLARATIONS, **CONSUMING}

_log = logging.getLogger(__name__)


class _State(Enum):
    PROTOCOL = "waiting for the protocol header"
    START = "waiting for connection.start-ok"
    TUNE = "waiting for connection.tune-ok"
    OPEN = "waiting for connection.open"
    RUNNING = "running"
    CLOSING = "closing"


class ConnectionHost(Protocol):
    """The broker that a client has connected to."""

    def virtual_host(self, name: str) -> VirtualHost:
        """Return the virtual host of that name."""
        ...

    def authenticates(self, user: str, password: str) -> bool:
        """Return whether that user may connect."""
        ...

    def connected(self, connection: "Connection") -> None:
        """Register a connection that has begun."""
        ...

    def disconnected(self, connection: "Connection") -> None:
        """Forget a connection that has ended."""
        ...


class Connection(asyncio.Protocol):
    """The server's side of one AMQP 0-9-1 connection.

    Args:
        broker: the broker that the client has connected to.
        faults: the faults that are due.

    Attributes:
        faults: the faults that are due.
        user: the name of the user that has logged in.
        name: the client's name for the connection.
        virtual_host: the virtual host that the client has opened.
        frame_max: the size in bytes that no frame in either direction exceeds.
        wants_cancel_notifications: whether the client accepts `basic.cancel` from the server.
    """

    def __init__(self, broker: ConnectionHost, faults: FaultPlan) -> None:
        self.faults = faults
        self.user = ""
        self.name = ""
        self.frame_max = FRAME_MAX
        self.wants_cancel_notifications = False
        self.virtual_host: VirtualHost
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._state = _State.PROTOCOL
        self._channels: dict[int, Channel] = {}
        self._capabilities: dict[str, Any] = {}
        self._unread = b""
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._unflushed: dict[Channel, None] = {}
        self._flushing: asyncio.Handle | None = None
        self._is_reading = False
        self._is_blocked = False
        self._is_lost = False
        self._client_is_slow = False
        self._received_at = self._sent_at = self._loop.time()
        self._timers: list[asyncio.TimerHandle] = []

    def __repr__(self) -> str:
        return f"Connection({self.name!r}, {self._state.value}, channels={len(self._channels)})"

    @property
    def channels(self) -> list[Channel]:
        """The open channels."""
        return [channel for channel in self._channels.values() if not channel.is_closing]

    # ── the socket ───────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._broker.connected(self)
        if self.faults.is_frozen:
            self.freeze()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """See `asyncio.Protocol`."""
        self._is_lost = True
        for timer in self._timers:
            timer.cancel()
        self._end()
        self._broker.disconnected(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received_at = self._loop.time()
        passing = self.faults.passing(self, "to_server", data)
        self._unread += passing
        self._read()
        if len(passing) < len(data):
            self.abort()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`; the client reads too slowly."""
        self._client_is_slow = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._client_is_slow = False
        self._wake()

    @property
    def can_send(self) -> bool:
        """Whether the client keeps up with reading."""
        return not (self._client_is_slow or self._is_lost or self._outgoing_bytes > _PAUSE_AT_BYTES)

    def send(self, data: bytes) -> None:
        """Send an encoded frame with the next flush."""
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        if self._outgoing_bytes > _FLUSH_AT_BYTES:
            self.flush()
        elif not self._is_reading and self._flushing is None:
            self._flushing = self._loop.call_soon(self.flush)

    def flush_later(self, channel: Channel) -> None:
        """Have the channel's confirms sent with the next flush."""
        self._unflushed[channel] = None
        if not self._is_reading and self._flushing is None:
            self._flushing = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all pending confirms and frames to the socket."""
        self._flushing = None
        if self._is_lost or self.faults.is_frozen:
            return
        while self._unflushed:
            self._unflushed.popitem()[0].flush_confirms()
        if not self._outgoing:
            return
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        passing = self.faults.passing(self, "to_client", data)
        self._transport.write(passing)
        self._sent_at = self._loop.time()
        if len(passing) < len(data):
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection without a closing handshake."""
        self._transport.abort()

    def freeze(self) -> None:
        """Stop reading."""
        self._transport.pause_reading()

    def thaw(self) -> None:
        """Continue reading and writing after a freeze."""
        self._received_at = self._loop.time()
        self.flush()
        self._wake()
        if not self._is_blocked:
            self._transport.resume_reading()
            self._read()

    def _wake(self) -> None:
        for channel in self.channels:
            channel.deliveries.wake()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        if self._is_blocked or self.faults.is_frozen or self._is_lost:
            return
        self._is_reading = True
        try:
            if self._state is not _State.PROTOCOL or self._read_protocol():
                self._read_frames()
        except RefusalError as refusal:
            # The beginning of the next frame is unknown now.
            self._unread = b""
            self.refuse(refusal)
        finally:
            self._is_reading = False
        self.flush()

    def _read_protocol(self) -> bool:
        if len(self._unread) < len(frames.PROTOCOL) and frames.PROTOCOL.startswith(self._unread):
            return False
        if not self._unread.startswith(frames.PROTOCOL):
            self.send(frames.PROTOCOL)
            self.flush()
            self._transport.close()
            return False
        self._unread = self._unread[len(frames.PROTOCOL) :]
        self._state = _State.START
        start = commands.Connection.Start(
            server_properties=SERVER_PROPERTIES, mechanisms="AMQPLAIN PLAIN", locales="en_US"
        )
        self.send(frames.encode_method(start, 0))
        return True

    def _read_frames(self) -> None:
        data, done = self._unread, 0
        try:
            for kind, number, payload, end in frames.split_frames(data, self.frame_max):
                done = end
                self._on_frame(kind, number, payload)
                if self._is_blocked:
                    break
        finally:
            self._unread = data[done:]

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        try:
            if number and self._state is _State.RUNNING:
                self._on_channel_frame(kind, number, payload)
            elif kind != frames.HEARTBEAT:
                self._on_connection_frame(kind, payload)
        except RefusalError as refusal:
            self.refuse(refusal, number, _refused_method(kind, payload))
        except Exception:  # noqa: BLE001 - one client's input must not take the broker from the others
            _log.exception("the development broker failed at a frame; the connection is closed")
            self.refuse(RefusalError(541, ""), number)

    def refuse(self, refusal: RefusalError, number: int = 0, method: bytes = b"") -> None:
        """Close the channel or the connection, whichever the reply code demands.

        Args:
            refusal: the reason.
            number: the channel's number, or 0.
            method: the class and method ids of the refused method.
        """
        class_id, method_id = _IDS.unpack(method) if len(method) == _IDS.size else (0, 0)
        if refusal.ends_connection or number not in self._channels:
            self.close(refusal.code, refusal.text, class_id, method_id)
        else:
            self.close_channel(self._channels[number], refusal.code, refusal.text, class_id, method_id)

    # ── channels ─────────────────────────────────────────────────────────────────────────────────

    def _on_channel_frame(self, kind: int, number: int, payload: bytes) -> None:
        channel = self._channels.get(number)
        if kind == frames.HEARTBEAT:
            raise RefusalError(505, "type 8, all octets = <<>>")
        if channel is None or channel.is_closing:
            self._on_closed_channel(channel, number, kind, payload)
        elif kind == frames.METHOD:
            if payload[:2] == b"\x00\x14":
                self._on_channel_method(channel, frames.decode_method(payload))
                return
            channel.on_method(payload)
            if payload[:4] == frames.PUBLISH and self.faults.blocked_because is not None:
                self._block(self.faults.blocked_because)
        elif kind == frames.HEADER:
            channel.on_header(payload)
        else:
            channel.on_body(payload)

    def _on_channel_method(self, channel: Channel, method: base.Frame) -> None:
        match method:
            case commands.Channel.Open():
                raise RefusalError(504, "second 'channel.open' seen")
            case commands.Channel.Close():
                channel.flush_confirms()
                del self._channels[channel.number]
                channel.close()
                channel.send(commands.Channel.CloseOk())
            case commands.Channel.CloseOk():
                pass
            case _:
                channel.on_control(method)

    def _on_closed_channel(self, channel: Channel | None, number: int, kind: int, payload: bytes) -> None:
        method = frames.decode_method(payload) if kind == frames.METHOD else None
        if channel is None:
            if not isinstance(method, commands.Channel.Open):
                raise RefusalError(504, "expected 'channel.open'")
            if len(self._channels) >= CHANNEL_MAX:
                reached = f"has reached the negotiated channel_max ({CHANNEL_MAX})"
                raise RefusalError(530, f"number of channels opened ({len(self._channels)}) {reached}")
            self._channels[number] = Channel(self, number, _METHODS)
            self._channels[number].send(commands.Channel.OpenOk())
        elif isinstance(method, commands.Channel.Close):
            channel.send(commands.Channel.CloseOk())
        elif isinstance(method, commands.Channel.CloseOk):
            del self._channels[number]

    def close_channel(
        self, channel: Channel, code: int, text: str, class_id: int = 0, method_id: int = 0
    ) -> None:
        """Close one channel, and tell the client why."""
        channel.flush_confirms()
        channel.close()
        channel.send(commands.Channel.Close(code, text, class_id, method_id))

    # ── the connection itself ────────────────────────────────────────────────────────────────────

    def _on_connection_frame(self, kind: int, payload: bytes) -> None:
        if kind != frames.METHOD:
            if self._state is _State.CLOSING:
                return
            raise RefusalError(505, f"type {kind} on channel 0")
        method = frames.decode_method(payload)
        match self._state, method:
            case _, commands.Connection.CloseOk():
                self.flush()
                self._transport.close()
            case _, commands.Connection.Close():
                self._answer_close()
            case _State.CLOSING, _:
                pass
            case _State.START, commands.Connection.StartOk():
                self._start(method)
            case _State.TUNE, commands.Connection.TuneOk():
                self._tune(method)
            case _State.OPEN, commands.Connection.Open():
                self._open(method)
            case _State.RUNNING, commands.Connection.UpdateSecret():
                self.send(frames.encode_method(commands.Connection.UpdateSecretOk(), 0))
            case _:
                raise RefusalError(504, f"unexpected method in connection state {self._state.value}")

    def _start(self, method: commands.Connection.StartOk) -> None:
        properties: dict[str, Any] = method.client_properties or {}
        self._capabilities = properties.get("capabilities") or {}
        self.wants_cancel_notifications = bool(self._capabilities.get("consumer_cancel_notify"))
        self.name = str(properties.get("connection_name", ""))
        self.user, password = _credentials(method.mechanism, method.response)
        if not self._broker.authenticates(self.user, password):
            if not self._capabilities.get("authentication_failure_close"):
                self._transport.close()
                return
            text = f"Login was refused using authentication mechanism {method.mechanism}."
            raise RefusalError(403, f"{text} For details see the broker logfile.")
        self._state = _State.TUNE
        tune = commands.Connection.Tune(CHANNEL_MAX, FRAME_MAX, HEARTBEAT_SECONDS)
        self.send(frames.encode_method(tune, 0))

    def _tune(self, method: commands.Connection.TuneOk) -> None:
        wanted = method.frame_max or FRAME_MAX
        if not _FRAME_MIN <= wanted <= FRAME_MAX:
            allowed = f"not between {_FRAME_MIN} and {FRAME_MAX}"
            raise RefusalError(530, f"negotiated frame_max = {wanted} is {allowed}")
        self.frame_max = wanted
        self._state = _State.OPEN
        if method.heartbeat:
            self._beat(method.heartbeat)

    def _open(self, method: commands.Connection.Open) -> None:
        self.virtual_host = self._broker.virtual_host(method.virtual_host)
        self._state = _State.RUNNING
        self.send(frames.encode_method(commands.Connection.OpenOk(), 0))

    def close(self, code: int, text: str, class_id: int = 0, method_id: int = 0) -> None:
        """Close the connection, and tell the client why; it has 5 s to answer."""
        if self._state is _State.CLOSING or self._is_lost:
            return
        self._end()
        self._state = _State.CLOSING
        close = commands.Connection.Close(code, reply_text(0, text), class_id, method_id)
        self.send(frames.encode_method(close, 0))
        self._timers.append(self._loop.call_later(_CLOSE_SECONDS, self._transport.abort))

    def _answer_close(self) -> None:
        self._end()
        self._state = _State.CLOSING
        self.send(frames.encode_method(commands.Connection.CloseOk(), 0))
        self.flush()
        self._transport.close()

    def _end(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.flush_confirms()
            channel.close()
        if self._state is _State.RUNNING:
            for queue in self.virtual_host.queues_of(self):
                self.virtual_host.delete_queue(queue)

    # ── heartbeats and blocking ──────────────────────────────────────────────────────────────────

    def _beat(self, interval_seconds: float) -> None:
        now = self._loop.time()
        is_held = self._is_blocked or self.faults.is_frozen
        if not is_held and now - self._received_at > 2 * interval_seconds:
            self.abort()
            return
        if now - self._sent_at >= interval_seconds / 2:
            self.send(frames.HEARTBEAT_FRAME)
        self._timers = [timer for timer in self._timers if timer.when() > now and not timer.cancelled()]
        self._timers.append(self._loop.call_later(interval_seconds / 2, self._beat, interval_seconds))

    def _block(self, reason: str) -> None:
        # As RabbitMQ does: the publisher is told, and nothing more is read, not even the content of that publish.
        self._is_blocked = True
        self._transport.pause_reading()
        if self._capabilities.get("connection.blocked"):
            self.send(frames.encode_method(commands.Connection.Blocked(reason), 0))

    def unblock(self) -> None:
        """End the alarm for this connection, and continue reading."""
        if not self._is_blocked:
            return
        self._is_blocked = False
        self._received_at = self._loop.time()
        if self._capabilities.get("connection.blocked"):
            self.send(frames.encode_method(commands.Connection.Unblocked(), 0))
        if not self.faults.is_frozen:
            self._transport.resume_reading()
            self._read()


def _refused_method(kind: int, payload: bytes) -> bytes:
    match kind:
        case frames.METHOD:
            return payload[:4]
        case frames.HEADER | frames.BODY:
            return frames.PUBLISH
        case _:
            return b""


def _credentials(mechanism: str | None, response: str | bytes | None) -> tuple[str, str]:
    """Return user and password, by PLAIN (RFC 4616) or RabbitMQ's AMQPLAIN (a field table without its length).

    Raises:
        RefusalError: the mechanism is another one, or the response is malformed (503).
    """
    raw = response.encode() if isinstance(response, str) else response or b""
    with suppress(ValueError, struct.error, KeyError):
        if mechanism == "PLAIN":
            _, user, password = raw.split(b"\x00")
            return user.decode(), password.decode()
        if mechanism == "AMQPLAIN":
            table = decode.field_table(struct.pack(">I", len(raw)) + raw)[1]
            return str(table["LOGIN"]), str(table["PASSWORD"])
    raise RefusalError(503, f"no user and password by mechanism {mechanism}")
