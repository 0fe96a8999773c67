"""A channel: its publishes with their confirms, and the dispatch of its other methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pamqp import base, commands

from hybridkit.dev._broker import _frames as frames
from hybridkit.dev._broker._deliveries import Deliveries, DeliveryConnection
from hybridkit.dev._broker._messages import Message
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._queues import Queue
from hybridkit.dev._broker._refusals import RefusalError
from hybridkit.dev._broker._virtual_host import VirtualHost

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_MANDATORY: Final = 1
_IMMEDIATE: Final = 2


type ChannelMethods = Mapping[type[base.Frame], Callable[[Channel, Any], None]]
"""The handlers of a channel's methods, by type."""


@dataclass(slots=True)
class Incoming:
    """A publish whose content has not arrived completely."""

    exchange: str
    key: str
    mandatory: bool
    missing: int = -1
    size: int = 0
    properties: Properties | None = None
    pieces: list[bytes] | None = None


class ChannelConnection(DeliveryConnection, Protocol):
    """The connection that a channel belongs to."""

    @property
    def user(self) -> str:
        """The user that the client has logged in as."""
        ...

    @property
    def frame_max(self) -> int:
        """The size in bytes that no frame may exceed."""
        ...

    @property
    def virtual_host(self) -> VirtualHost:
        """The virtual host that the client has opened."""
        ...

    def send(self, data: bytes) -> None:
        """Send an encoded frame, soon."""
        ...

    def flush_later(self, channel: "Channel") -> None:
        """Call the channel's `flush_confirms`, soon."""
        ...


class Channel:
    """One channel of a connection.

    Args:
        connection: the connection that it belongs to.
        number: its number on that connection.
        methods: the handlers of the methods that `Channel` does not handle itself.

    Attributes:
        connection: the connection that it belongs to.
        number: its number on that connection.
        deliveries: its consumers and their unsettled messages.
        last_queue: the queue declared last, which an empty queue name stands for.
        is_closing: whether `channel.close` has been sent.
    """

    def __init__(
        self,
        connection: ChannelConnection,
        number: int,
        methods: ChannelMethods,
    ) -> None:
        self.connection = connection
        self.number = number
        self._methods = methods
        self.deliveries = Deliveries(self)
        self.last_queue = ""
        self.is_closing = False
        self._incoming: Incoming | None = None
        self._is_confirming = False
        self._published = 0
        self._confirmed: list[int] = []
        self._can_confirm_many = True

    def __repr__(self) -> str:
        return f"Channel({self.number}, {self.deliveries})"

    def send(self, method: base.Frame) -> None:
        """Send a method."""
        self.connection.send(frames.encode_method(method, self.number))

    def send_content(self, head: bytes, properties: Properties, body: bytes) -> None:
        """Send a method that is encoded already, and its content."""
        content = frames.encode_content(self.number, properties, body, self.connection.frame_max)
        self.connection.send(head + content)

    def close(self) -> None:
        """End the channel; return its unsettled messages to their queues."""
        self.is_closing = True
        self._incoming = None
        self.deliveries.close()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────

    def on_method(self, payload: bytes) -> None:
        """Handle a method frame.

        Raises:
            RefusalError: the broker refuses the method.
        """
        if self._incoming:
            raise _unexpected("expected content header for class 60, got non content header frame instead")
        kind = payload[:4]
        if kind == frames.PUBLISH:
            self._on_publish(*frames.decode_publish(payload))
        elif kind == frames.ACK:
            tag, multiple = frames.decode_ack(payload)
            self.deliveries.ack(tag, multiple=multiple)
        else:
            self._answer(frames.decode_method(payload))

    def on_header(self, payload: bytes) -> None:
        """Handle the content header of a publish.

        Raises:
            RefusalError: no header is expected (505), or the broker refuses the message (406).
        """
        if (incoming := self._incoming) is None:
            raise _unexpected("expected method frame, got non method frame instead")
        if incoming.properties is not None:
            raise _unexpected("expected content body, got non content body frame instead")
        incoming.size, incoming.properties = frames.decode_header(payload)
        incoming.missing = incoming.size
        incoming.pieces = []
        if incoming.size > MAX_MESSAGE_BYTES:
            self._incoming = None
            limit = f"is larger than configured max size {MAX_MESSAGE_BYTES}"
            raise RefusalError(406, f"message size {incoming.size} {limit}")
        if not incoming.size:
            self._complete(incoming, b"")

    def on_body(self, payload: bytes) -> None:
        """Handle a part of the body of a publish.

        Raises:
            RefusalError: no body is expected (505), or it is longer than announced (501).
        """
        incoming = self._incoming
        if incoming is None:
            raise _unexpected("expected method frame, got non method frame instead")
        if incoming.pieces is None:
            raise _unexpected("expected content header for class 60, got non content header frame instead")
        incoming.missing -= len(payload)
        if incoming.missing < 0:
            raise RefusalError(501, "content body frame exceeds remaining content size")
        incoming.pieces.append(payload)
        if not incoming.missing:
            self._complete(incoming, b"".join(incoming.pieces))

    # ── publishing ───────────────────────────────────────────────────────────────────────────────

    def _on_publish(self, exchange: str, key: str, flags: int) -> None:
        if flags & _IMMEDIATE:
            raise RefusalError(540, "immediate=true")
        self._incoming = Incoming(exchange, key, bool(flags & _MANDATORY))

    def _complete(self, incoming: Incoming, body: bytes) -> None:
        self._incoming = None
        properties = incoming.properties or Properties(b"\x00\x00")
        self._check_publish(incoming.exchange, properties)
        message = _message(incoming.exchange, incoming.key, properties, body)
        ttl_seconds = message.ttl_seconds
        queues = self.connection.virtual_host.route(message.exchange, message.keys, properties)
        if self._is_confirming:
            self._published += 1
        if not queues and incoming.mandatory:
            self.send_content(frames.encode_return(self.number, message), properties, body)
        faults = self.connection.faults
        if faults.concern_confirms and self._is_confirming and faults.take_nack():
            self._confirm(is_ack=False)
            return
        is_taken = True
        for queue in queues:
            is_taken = queue.put(message, ttl_seconds=ttl_seconds) and is_taken
        if self._is_confirming:
            self._confirm(is_ack=is_taken)

    def _check_publish(self, exchange: str, properties: Properties) -> None:
        if self.connection.virtual_host.exchange(exchange).internal:
            where = f"exchange '{exchange}' in vhost '{self.connection.virtual_host.name}'"
            raise RefusalError(403, f"cannot publish to internal {where}")
        user = properties.text("user_id")
        if user is not None and user != self.connection.user:
            who = f"authenticated user was '{self.connection.user}'"
            raise RefusalError(406, f"user_id property set to '{user}' but {who}")

    def _confirm(self, *, is_ack: bool) -> None:
        tag = self._published
        faults = self.connection.faults
        if faults.concern_confirms and faults.take_confirm(tag, self.confirm_late, is_ack=is_ack):
            # A confirm with `multiple` would include the one that was dropped.
            self._can_confirm_many = False
        elif is_ack:
            self._confirmed.append(tag)
            self.connection.flush_later(self)
        else:
            self.flush_confirms()
            self.send_confirm(tag, is_ack=False)

    def send_confirm(self, tag: int, *, is_ack: bool, multiple: bool = False) -> None:
        """Confirm one publish, or with `multiple` all up to it."""
        confirm = frames.encode_confirm(self.number, tag, multiple=multiple, is_ack=is_ack)
        self.connection.send(confirm)

    def confirm_late(self, tag: int) -> None:
        """Confirm one publish, unless the channel has been closed meanwhile."""
        if not self.is_closing:
            self.send_confirm(tag, is_ack=True)

    def flush_confirms(self) -> None:
        """Send the confirms collected since the last flush, as one for many where none of those was left out."""
        if not self._confirmed:
            return
        confirmed, self._confirmed = self._confirmed, []
        if self._can_confirm_many:
            self.send_confirm(confirmed[-1], is_ack=True, multiple=len(confirmed) > 1)
        else:
            for tag in confirmed:
                self.send_confirm(tag, is_ack=True)

    def on_control(self, method: base.Frame) -> None:
        """Handle a method of the channel class other than open and close.

        Raises:
            RefusalError: the method is not implemented (540 or 503).
        """
        if not isinstance(method, commands.Channel.Flow):
            raise RefusalError(503, "unimplemented method")
        if not method.active:
            raise RefusalError(540, "active=false")
        self.send(commands.Channel.FlowOk(active=True))

    # ── methods ──────────────────────────────────────────────────────────────────────────────────

    def _answer(self, method: base.Frame) -> None:
        if handler := self._methods.get(type(method)):
            handler(self, method)
        elif isinstance(method, (commands.Tx.Select, commands.Tx.Commit, commands.Tx.Rollback)):
            raise RefusalError(540, "the development broker has no transactions")
        else:
            raise RefusalError(503, "unimplemented method")

    def start_confirming(self) -> None:
        """Confirm every publish from now on."""
        self._is_confirming = True

    def queue(self, name: str | None) -> Queue:
        """Return the queue of that name, or with an empty name the queue declared last.

        Raises:
            RefusalError: there is no such queue (404), or it belongs to another connection (405).
        """
        name = name or self.last_queue
        if not name:
            raise RefusalError(404, "no previously declared queue")
        return self.connection.virtual_host.queue(name, user=self.connection)


def _unexpected(text: str) -> RefusalError:
    return RefusalError(505, text)


def _message(exchange: str, key: str, properties: Properties, body: bytes) -> Message:
    """Return the message, routed also by its CC and BCC headers (sender-selected distribution)."""
    # Most messages have neither, and a search of the bytes costs less than decoding the table.
    if b"CC" not in properties.raw:
        return Message(exchange, (key,), properties, body)
    keys = [key, *_copies(properties, "CC"), *_copies(properties, "BCC")]
    if "BCC" in properties.headers:
        headers = {name: raw for name, raw in properties.headers.items() if name != "BCC"}
        properties = properties.with_headers(headers)
    return Message(exchange, tuple(dict.fromkeys(keys)), properties, body)


def _copies(properties: Properties, name: str) -> list[str]:
    keys = properties.header(name)
    if keys is None:
        return []
    if not isinstance(keys, list):
        raise RefusalError(406, f'invalid message: {{unacceptable_type_in_header,"{name}",longstr}}')
    return [key for key in keys if isinstance(key, str)]  # pyright: ignore[reportUnknownVariableType] - a table's list
