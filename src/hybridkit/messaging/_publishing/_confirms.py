"""The publisher confirms of one channel: which publish the broker's numbers mean, and the outcome that each one gets.

https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from hybridkit.errors import HybridkitError, NackedError, OutcomeUnknownError, PayloadTooLargeError
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._frames import FrameTemplate, message_parts
from hybridkit.messaging._amqp._port import IncomingMessage, Port
from hybridkit.observability import get_logger

WINDOW: Final = 1000
"""The most messages that may be unconfirmed on a channel; beyond that the broker slows a publisher down anyway."""
WINDOW_BYTES: Final = 32 * 1024 * 1024
"""The most bytes of unconfirmed bodies on a channel; a single message may be larger."""

_SIZES: Final = re.compile(r"message size ([0-9]+) is larger than configured max size ([0-9]+)")

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class PendingPublish(ABC):
    """A message that waits to be written, or for its confirm.

    Attributes:
        template: exchange, routing key, type and publisher, encoded.
        table: the headers, encoded.
        body: the bytes of the message.
        deadline: the `time.monotonic()` instant at which the caller gets an error.
        sent_at: the `time.monotonic()` instant at which it was written; None while it waits.
    """

    template: FrameTemplate
    table: bytes
    body: bytes
    deadline: float
    sent_at: float | None = field(default=None, init=False)

    def __str__(self) -> str:
        return str(self.template)

    @property
    @abstractmethod
    def is_settled(self) -> bool:
        """Whether there is an outcome, or nobody waits for one."""

    @property
    @abstractmethod
    def ended(self) -> "asyncio.Future[Any]":
        """A future that is done when there is an outcome, of this publish and maybe of others."""

    @abstractmethod
    def confirm(self, *, routed: bool) -> None:
        """Note that the broker has the message, and whether a queue took it, unless there is an outcome already."""

    @abstractmethod
    def fail(self, error: HybridkitError) -> None:
        """Give the caller this error, unless there is an outcome already."""


@dataclass(slots=True, eq=False)
class AwaitedPublish(PendingPublish):
    """A publish with a caller of its own.

    Attributes:
        confirmation: whether a queue took the message, or a `HybridkitError`.
    """

    confirmation: asyncio.Future[bool]

    @property
    def is_settled(self) -> bool:
        return self.confirmation.done()

    @property
    def ended(self) -> asyncio.Future[bool]:
        return self.confirmation

    def confirm(self, *, routed: bool) -> None:
        if not self.confirmation.done():
            self.confirmation.set_result(routed)

    def fail(self, error: HybridkitError) -> None:
        if not self.confirmation.done():
            self.confirmation.set_exception(error)
            self.confirmation.exception()  # a caller that has left is no reason for a warning


class Batch:
    """Publishes that one caller waits for together: one future for all of them.

    Args:
        size: the number of outcomes that it waits for.

    Attributes:
        ended: done when all outcomes are there.
    """

    __slots__ = ("_missing", "ended")

    def __init__(self, size: int) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = size

    def __repr__(self) -> str:
        return f"Batch(missing={self._missing})"

    def count_down(self) -> None:
        """Note that one more outcome is there."""
        self._missing -= 1
        if not self._missing:
            self.ended.set_result(None)


@dataclass(slots=True, eq=False)
class BatchedPublish(PendingPublish):
    """A publish of a batch.

    Attributes:
        batch: the batch.
        outcome: whether a queue took the message, or the error; None while it is not known.
    """

    batch: Batch
    outcome: bool | HybridkitError | None = None

    @property
    def is_settled(self) -> bool:
        return self.outcome is not None

    @property
    def ended(self) -> asyncio.Future[None]:
        return self.batch.ended

    def confirm(self, *, routed: bool) -> None:
        self._end(routed)

    def fail(self, error: HybridkitError) -> None:
        self._end(error)

    def _end(self, outcome: bool | HybridkitError) -> None:  # noqa: FBT001 - the outcome is that
        if self.outcome is None:
            self.outcome = outcome
            self.batch.count_down()


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

    def frames(self, waiting: deque[PendingPublish], *, now: float) -> bytes:
        """Take publishes from the left as long as there is room, number them and encode them.

        The caller must write the frames at once. A publish whose headers don't fit into a frame fails, and uses no
        number.
        """
        port, sent, prefix = self.port, self._sent, self._prefix
        channel, frame_max = port.channel, port.frame_max
        tag = self._first + len(sent)
        parts: list[bytes] = []
        while waiting and self.has_room:
            pending = waiting.popleft()
            if pending.is_settled:
                continue
            try:
                parts += message_parts(
                    pending.template,
                    pending.table,
                    pending.body,
                    message_id=prefix + b"%x" % tag,
                    channel=channel,
                    frame_max=frame_max,
                )
            except PayloadTooLargeError as error:
                pending.fail(error)
                continue
            # The channel is in use while anything is unconfirmed: entered with the first, left with the last.
            if not self._count:
                self.channel.__enter__()
            pending.sent_at = now
            sent.append(pending)
            tag += 1
            self._count += 1
            self._bytes += len(pending.body)
        return b"".join(parts)

    def __iter__(self) -> Iterator[PendingPublish]:
        """Iterate over the unconfirmed publishes, the oldest first."""
        return (pending for pending in self._sent if pending is not None)

    # ── what the broker says: see `Receiver` ─────────────────────────────────────────────────────

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Settle one publish, or all up to that tag."""
        if multiple:
            while self._sent and self._first <= tag:
                pending = self._sent.popleft()
                self._settle(pending, self._first, accepted=accepted)
                self._first += 1
        elif self._first <= tag < self._first + len(self._sent):  # nothing may raise while the socket is read
            at = tag - self._first
            pending, self._sent[at] = self._sent[at], None
            self._settle(pending, tag, accepted=accepted)
        while self._sent and self._sent[0] is None:
            self._sent.popleft()
            self._first += 1
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

    def _settle(self, pending: PendingPublish | None, tag: int, *, accepted: bool) -> None:
        """Give a publish that is no longer among the sent ones its outcome."""
        routed = True
        if self._unrouted:
            routed = tag not in self._unrouted
            self._unrouted.discard(tag)
        if pending is None:
            return
        self._bytes -= len(pending.body)
        self._count -= 1
        if not self._count:
            self.channel.__exit__()
        if accepted:
            pending.confirm(routed=routed)
        else:
            pending.fail(NackedError(f"the broker gave {pending} back (basic.nack)"))


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
