"""The data plane of one channel: messages and acknowledgements in both directions, beside aiormq's control plane.

aiormq opens and closes the channel, declares, subscribes and cancels. The frames of messages go through a port instead:
a publish is bytes in the socket's buffer, a confirm is a call of the receiver, with no task, lock or queue in between.
"""

from typing import Final, NamedTuple, Protocol

from hybridkit.messaging._amqp._frames import (
    ACK,
    DELIVER,
    HEADER,
    METHOD,
    NACK,
    PROPERTIES_AT,
    RETURN,
    DeliverMethod,
    ack_frame,
    nack_frame,
    read_body_size,
    read_deliver,
    read_settled,
)
from hybridkit.observability import get_logger

_MULTIPLE: Final = 1
_OF_MESSAGES: Final = frozenset({DELIVER, RETURN, ACK, NACK})

_log = get_logger(__name__)


class IncomingMessage(NamedTuple):
    """A message that the broker delivers.

    Attributes:
        method: its delivery tag, exchange and routing key, and whether it was delivered before.
        properties: encoded, for `decode_properties`.
        body: the bytes of the message.
    """

    method: DeliverMethod
    properties: bytes
    body: bytes


class Receiver(Protocol):
    """The owner of a port, called in the order of the broker's frames; no method may raise or wait."""

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Settle a publish, or all up to that tag: the broker has (`basic.ack`) or has not (`basic.nack`) taken it."""
        ...

    def returned(self, properties: bytes) -> None:
        """Note that no queue took a mandatory message; its `basic.ack` follows."""
        ...

    def delivered(self, message: IncomingMessage, /) -> None:
        """Take a message for a consumer on this channel."""
        ...

    def closed(self, reason: str) -> None:
        """Note the end of the port: nothing comes any more, and nothing can be sent."""
        ...


class FrameWriter(Protocol):
    """A connection as ports see it."""

    frame_max: int

    def write(self, octets: bytes) -> None:
        """Send whole frames."""
        ...


class Port:
    """Sends and receives the messages of one channel.

    Args:
        writer: writes the frames to the connection.
        channel: the channel's number.
        receiver: gets what the broker sends.
    """

    def __init__(self, writer: FrameWriter, channel: int, receiver: Receiver) -> None:
        self.channel = channel
        self.is_open = True
        self._writer = writer
        self._receiver = receiver
        self._deliver: DeliverMethod | None = (
            None  # of the message that is coming in; None also for a returned one
        )
        self._properties = b""
        self._parts: list[bytes] = []
        self._missing = 0

    def __repr__(self) -> str:
        return f"Port(channel={self.channel}, is_open={self.is_open})"

    @property
    def frame_max(self) -> int:
        """The largest frame that the broker takes, in bytes."""
        return self._writer.frame_max

    def send(self, octets: bytes) -> None:
        """Write whole frames of this channel; nothing happens when it is closed."""
        if self.is_open:
            self._writer.write(octets)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Acknowledge a delivery, or all up to that tag."""
        self.send(ack_frame(self.channel, tag, multiple=multiple))

    def requeue(self, tag: int) -> None:
        """Put a delivery back into its queue; the broker counts that, up to the delivery limit of the queue."""
        self.send(nack_frame(self.channel, tag))

    def close(self, reason: str) -> None:
        """Send and receive nothing more."""
        if self.is_open:
            self.is_open = False
            self._receiver.closed(reason)

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take the payload of a frame of this channel, or return False for one that belongs to the control plane.

        A closed port takes the messages that were on their way, and drops them: the control plane would decode their
        properties, and end the connection over some that can't be decoded.
        """
        if not self.is_open:
            return kind != METHOD or data[start : start + 4] in _OF_MESSAGES
        if kind == METHOD:
            return self._take_method(data[start : start + 4], data, start, stop)
        if kind == HEADER:
            self._properties = data[start + PROPERTIES_AT : stop]
            self._missing = read_body_size(data, start)
        else:
            self._missing -= stop - start
            if self._missing <= 0 and not self._parts:  # nearly all bodies are one frame
                self._complete(data[start:stop])
                return True
            self._parts.append(data[start:stop])
        if self._missing <= 0:
            body, self._parts = b"".join(self._parts), []
            self._complete(body)
        return True

    def _take_method(self, method: bytes, data: bytes, start: int, stop: int) -> bool:
        if method == DELIVER:
            self._deliver = read_deliver(data, start, stop)
        elif method in {ACK, NACK}:
            tag, bits = read_settled(data, start)
            try:
                self._receiver.settled(tag, multiple=bool(bits & _MULTIPLE), accepted=method == ACK)
            except Exception as error:  # noqa: BLE001 - see `_complete`
                _log.error("a channel failed over an answer", channel=self.channel, exc_info=error)
        elif method != RETURN:
            return False
        return True

    def _complete(self, body: bytes) -> None:
        deliver, self._deliver = self._deliver, None
        try:
            if deliver is None:
                self._receiver.returned(self._properties)
            else:
                self._receiver.delivered(IncomingMessage(deliver, self._properties, body))
        except Exception as error:  # noqa: BLE001 - a mistake over one message must not end everybody's connection
            _log.error("a channel failed over a message", channel=self.channel, exc_info=error)
