"""The publisher confirms of one channel: which publish the broker's numbers mean, and the outcome that each one gets.

https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from hybridkit.errors import HybridkitError, NackedError, OutcomeUnknownError, PayloadTooLargeError
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._frames import FrameTemplate, message_frames
from hybridkit.messaging._amqp._port import IncomingMessage, Port
from hybridkit.observability import get_logger

WINDOW: Final = 1000
"""The most messages that may be unconfirmed on a channel; beyond that the broker slows a publisher down anyway."""
WINDOW_BYTES: Final = 32 * 1024 * 1024
"""The most bytes of unconfirmed bodies on a channel; a single message may be larger."""

_SIZES: Final = re.compile(r"message size ([0-9]+) is larger than configured max size ([0-9]+)")

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class PendingPublish:
    """A message that waits to be written, or for its confirm.

    Attributes:
        template: exchange, routing key, type and publisher, encoded.
        table: the headers, encoded.
        body: the bytes of the message.
        deadline: the `time.monotonic()` instant at which the caller gets an error.
        confirmation: whether a queue took the message, or a `HybridkitError`.
        sent_at: the `time.monotonic()` instant at which it was written; None while it waits.
    """

    template: FrameTemplate
    table: bytes
    body: bytes
    deadline: float
    confirmation: asyncio.Future[bool]
    sent_at: float | None = None

    def __str__(self) -> str:
        return str(self.template)

    def fail(self, error: HybridkitError) -> None:
        """Give the caller this error, unless there is an outcome already."""
        if not self.confirmation.done():
            self.confirmation.set_exception(error)
            self.confirmation.exception()  # a caller that has left is no reason for a warning


class Confirms:
    """The publishes of one channel, numbered as the broker numbers them; the receiver of the channel's port.

    Args:
        channel: a channel in confirm mode that has published nothing yet.
        on_settled: called after each confirm, and when the channel closes.
    """

    def __init__(self, channel: OpenChannel, on_settled: "Callable[[Confirms], None]") -> None:
        self.channel = channel
        self.port: Port = channel.open_port(self)
        self._on_settled = on_settled
        # By delivery tag, in the order of writing: the leftmost has the tag `_first` and is unconfirmed. One behind it
        # that is confirmed leaves None, as the broker may confirm in any order.
        self._sent: deque[PendingPublish | None] = deque()
        self._first = 1
        self._count = 0
        self._bytes = 0
        self._unrouted: set[int] = set()
        # A basic.return has no delivery tag: it is matched by the message id, which therefore is unique per attempt and
        # contains the tag. The event's identity is in the body and in a header.
        self._prefix = f"{uuid4().hex}.".encode()

    def __repr__(self) -> str:
        return f"Confirms({self.port}, unconfirmed={len(self)})"

    def __len__(self) -> int:
        return self._count

    @property
    def has_room(self) -> bool:
        """Whether the window takes one more message."""
        return self._count < WINDOW and self._bytes < WINDOW_BYTES

    def frames(self, pending: PendingPublish, *, now: float) -> bytes:
        """Give a publish its number and encode it; the caller must write the frames at once and in this order.

        Raises:
            PayloadTooLargeError: the headers don't fit into one frame; no number was used.
        """
        frames = message_frames(
            pending.template,
            pending.table,
            pending.body,
            message_id=self._prefix + b"%x" % (self._first + len(self._sent)),
            channel=self.port.channel,
            frame_max=self.port.frame_max,
        )
        # The channel is in use while anything is unconfirmed: entered with the first, left with the last.
        if not self._count:
            self.channel.__enter__()
        pending.sent_at = now
        self._sent.append(pending)
        self._count += 1
        self._bytes += len(pending.body)
        return frames

    def __iter__(self) -> Iterator[PendingPublish]:
        """Iterate over the unconfirmed publishes, the oldest first."""
        return (pending for pending in self._sent if pending is not None)

    # ── what the broker says: see `Receiver` ─────────────────────────────────────────────────────

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Settle one publish, or all up to that tag."""
        if multiple:
            while self._sent and self._first <= tag:
                self._settle(self._first, accepted=accepted)
        elif self._first <= tag < self._first + len(self._sent):  # nothing may raise while the socket is read
            self._settle(tag, accepted=accepted)
        self._on_settled(self)

    def returned(self, properties: bytes) -> None:
        """Note that no queue took a message; RabbitMQ sends its `basic.ack` after the `basic.return`."""
        if (start := properties.rfind(self._prefix)) < 1:
            return
        number = properties[start + len(self._prefix) : start + properties[start - 1]]
        try:
            self._unrouted.add(int(number, 16))
        except ValueError:  # the prefix stands in a header by chance
            _log.warning("a returned message is not one of ours", number=number.decode(errors="replace"))

    def delivered(self, message: IncomingMessage) -> None:
        """Ignore it: nothing consumes on this channel."""

    def closed(self, reason: str) -> None:
        """Fail all unconfirmed publishes: the broker confirms nothing after the end of a channel."""
        for pending in self:
            pending.fail(_too_large(pending, reason) or _closed(pending, reason))
        self._sent.clear()
        self._count = 0
        self._on_settled(self)

    def _settle(self, tag: int, *, accepted: bool) -> None:
        pending = self._take(tag)
        routed = tag not in self._unrouted
        self._unrouted.discard(tag)
        if pending is None or pending.confirmation.done():
            return
        if accepted:
            pending.confirmation.set_result(routed)
        else:
            pending.fail(NackedError(f"the broker gave {pending} back (basic.nack)"))

    def _take(self, tag: int) -> PendingPublish | None:
        sent = self._sent
        pending, sent[tag - self._first] = sent[tag - self._first], None
        while sent and sent[0] is None:
            sent.popleft()
            self._first += 1
        if pending is not None:
            self._bytes -= len(pending.body)
            self._count -= 1
            if not self._count:
                self.channel.__exit__()
        return pending


def _closed(pending: PendingPublish, reason: str) -> HybridkitError:
    return OutcomeUnknownError(
        f"the channel closed before the broker answered {pending} ({reason}); publish it again"
    )


def _too_large(pending: PendingPublish, reason: str) -> HybridkitError | None:
    """Return an error for the message whose size made the broker close the channel, with all others on it.

    https://www.rabbitmq.com/docs/configure (`max_message_size`)
    """
    said = _SIZES.search(reason)
    if said is None or int(said[1]) != len(pending.body):
        return None
    return PayloadTooLargeError(
        f"the broker takes no message of {said[1]} bytes, but {said[2]} at most: {pending}",
        size_bytes=int(said[1]),
        limit_bytes=int(said[2]),
    )
