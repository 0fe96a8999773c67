"""What was published on one channel and has no answer yet, and what the broker's answers mean for it."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from hybridkit.errors import HybridkitError, NackedError, OutcomeUnknownError, PayloadTooLargeError
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._frames import Address, message_frames
from hybridkit.messaging._amqp._port import Delivered, Port
from hybridkit.observability import get_logger

__all__ = ["Confirms", "Publish"]

WINDOW: Final = 1000
"""How many messages may be unanswered at a time; the broker slows down beyond that anyway."""
WINDOW_BYTES: Final = 32 * 1024 * 1024
"""How many bytes of them; one message may be larger."""

_SIZES: Final = re.compile(r"message size ([0-9]+) is larger than configured max size ([0-9]+)")

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Publish:
    """One message on its way.

    Attributes:
        to: exchange, routing key, type and publisher.
        table: the headers, encoded.
        body: as it goes out.
        deadline: by `time.monotonic()`.
        answer: whether a queue took it, or a `HybridkitError`.
        sent_at: when it was written, by `time.monotonic()`; None as long as it waits.
    """

    to: Address
    table: bytes
    body: bytes
    deadline: float
    answer: asyncio.Future[bool]
    sent_at: float | None = None

    def __str__(self) -> str:
        return str(self.to)

    def fail(self, error: HybridkitError) -> None:
        """End it, if nothing has."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # a caller that has left is no reason for a warning


class Confirms:
    """The publishes of one channel: numbered as the broker numbers them, answered as it answers.

    Args:
        channel: the channel.
        told: called after each answer.
    """

    def __init__(self, channel: OpenChannel, told: "Callable[[Confirms], None]") -> None:
        self.channel = channel
        self.port: Port = channel.open_port(self)
        self._told = told
        # By tag, in the order in which they were sent: the leftmost has the tag `_first` and has no answer, others that
        # have one leave a gap.
        self._sent: deque[Publish | None] = deque()
        self._first = 1
        self._count = 0
        self._bytes = 0
        self._unrouted: set[int] = set()
        # A returned message is known by its id alone: so each attempt has another, with the tag in it. Two messages
        # that shared one would get each other's verdict. The event's identity is in the body and in a header.
        self._prefix = f"{uuid4().hex}.".encode()

    def __repr__(self) -> str:
        return f"Confirms({self.port}, unanswered={len(self)})"

    def __len__(self) -> int:
        return self._count

    @property
    def has_room(self) -> bool:
        """Whether one more may be sent."""
        return self._count < WINDOW and self._bytes < WINDOW_BYTES

    def frames(self, publish: Publish, *, now: float) -> bytes:
        """Number it and encode it; the caller writes it at once.

        Raises:
            PayloadTooLargeError: no frame holds its headers; nothing was numbered.
        """
        frames = message_frames(
            publish.to,
            publish.table,
            publish.body,
            message_id=self._prefix + b"%x" % (self._first + len(self._sent)),
            channel=self.port.channel,
            frame_max=self.port.frame_max,
        )
        if not self._count:
            self.channel.__enter__()
        publish.sent_at = now
        self._sent.append(publish)
        self._count += 1
        self._bytes += len(publish.body)
        return frames

    def __iter__(self) -> Iterator[Publish]:
        """Those that have no answer, the oldest first."""
        return (publish for publish in self._sent if publish is not None)

    # ── what the broker says: see `Receiver` ─────────────────────────────────────────────────────

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Answer one publish, or all up to that tag."""
        if multiple:
            while self._sent and self._first <= tag:
                self._answer(self._first, accepted=accepted)
        elif self._first <= tag < self._first + len(self._sent):
            self._answer(tag, accepted=accepted)
        self._told(self)

    def returned(self, properties: bytes) -> None:
        """Remember it for the answer that follows."""
        if (start := properties.rfind(self._prefix)) < 1:
            return
        number = properties[start + len(self._prefix) : start + properties[start - 1]]
        try:
            self._unrouted.add(int(number, 16))
        except ValueError:  # the same letters within somebody's header
            _log.warning("a returned message is not one of ours", number=number.decode(errors="replace"))

    def delivered(self, message: Delivered) -> None:
        """Nobody consumes here."""

    def closed(self, reason: str) -> None:
        """What has no answer now gets none."""
        for publish in self:
            publish.fail(_too_large(publish, reason) or _closed(publish, reason))
        self._sent.clear()
        self._count = 0
        self._told(self)

    def _answer(self, tag: int, *, accepted: bool) -> None:
        publish = self._take(tag)
        routed = tag not in self._unrouted
        self._unrouted.discard(tag)
        if publish is None or publish.answer.done():
            return
        if accepted:
            publish.answer.set_result(routed)
        else:
            publish.fail(NackedError(f"the broker gave {publish} back (basic.nack)"))

    def _take(self, tag: int) -> Publish | None:
        sent = self._sent
        publish, sent[tag - self._first] = sent[tag - self._first], None
        while sent and sent[0] is None:
            sent.popleft()
            self._first += 1
        if publish is not None:
            self._bytes -= len(publish.body)
            self._count -= 1
            if not self._count:
                self.channel.__exit__()
        return publish


def _closed(publish: Publish, reason: str) -> HybridkitError:
    return OutcomeUnknownError(
        f"the channel closed before the broker answered {publish} ({reason}); publish it again"
    )


def _too_large(publish: Publish, reason: str) -> HybridkitError | None:
    """Whether this is the message for whose size the broker has closed the channel, along with all others on it.

    https://www.rabbitmq.com/docs/configure (`max_message_size`)
    """
    said = _SIZES.search(reason)
    if said is None or int(said[1]) != len(publish.body):
        return None
    return PayloadTooLargeError(
        f"the broker takes no message of {said[1]} bytes, but {said[2]} at most: {publish}",
        size_bytes=int(said[1]),
        limit_bytes=int(said[2]),
    )
