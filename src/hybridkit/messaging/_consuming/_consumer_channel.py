"""The consumer's end of a channel: what comes in, and what the broker is told of it.

Acknowledgements are collected for a moment, because a write of its own for each costs more than most handlers; `Acks`
knows what is sent. They leave after 25 ms, in the loop's next turn when they are a sixteenth of the prefetch, and at
once when nothing of this channel is in hand: then the broker may be waiting for them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._frames import nack_frame
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._acks import Acks, LostAcks
from hybridkit.messaging._consuming._delivery import Delivery, Identity

ACK_SECONDS: Final = 0.025
PREFETCH_PER_ACK: Final = 16


class ConsumerChannel:
    """The consumer's end of one channel: the `Receiver` of its port, and the `Acknowledger` of its deliveries.

    Attributes:
        received: how many deliveries came in.
        in_hand: how many of them are not settled.

    As long as something of it is in hand, the channel is not closed when it is retired.

    Args:
        channel: the channel.
        queue: the consumer's name.
        prefetch: how many deliveries may be unacknowledged.
        lost_acks: remembers what could not be acknowledged.
        take: gets each delivery.
        left: called when the channel has closed: what is in hand comes again.
    """

    def __init__(
        self,
        channel: OpenChannel,
        *,
        queue: str,
        prefetch: int,
        lost_acks: LostAcks,
        take: Callable[[Delivery], None],
        left: Callable[[], None] | None = None,
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._lost_acks = lost_acks
        self._take = take
        self._left = left
        self._port = channel.open_port(self)
        self._acks = Acks(self._port.channel)
        self._acks_at_once = max(prefetch // PREFETCH_PER_ACK, 1)
        self._last: deque[Identity] = deque(maxlen=prefetch)  # finished, and perhaps not known to the broker
        self._timer: asyncio.Handle | None = None
        self._prefetch = prefetch
        self.received = 0
        self.in_hand = 0

    def __repr__(self) -> str:
        return f"ConsumerChannel({self._queue!r}, received={self.received}, in_hand={self.in_hand})"

    @property
    def has_room(self) -> bool:
        """Whether the broker may deliver more."""
        return self.in_hand + len(self._acks) < self._prefetch

    # ── the acknowledger of deliveries ─────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        """Whether the broker still hears what is said here."""
        return self._channel.is_open

    def ack(self, tag: int, finished: Identity | None) -> None:
        """Done with a delivery; remembered where the broker can't be told."""
        if not self._port.is_open:
            if finished is not None:
                self._lost_acks.add((finished,))
            return
        if self._acks.is_settled(tag):
            return
        if finished is not None:
            self._last.append(finished)
        self._acks.add(tag)
        unsent = len(self._acks)
        if unsent == self._acks_at_once:
            self._disarm()
            self._timer = asyncio.get_running_loop().call_soon(self.flush)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_SECONDS, self.flush)
        self._let_go()

    def requeue(self, tag: int) -> None:
        """Put a delivery back into its queue."""
        self._settle(tag, nack_frame(self._port.channel, tag))

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter a delivery."""
        self._settle(tag, nack_frame(self._port.channel, tag, requeue=False))

    def give_back(self) -> None:
        """Have the queue get everything that is in hand, in its order, and another channel opened."""
        self._channel.retire()
        self.close()

    def was_finished(self, event: Identity) -> bool:
        """Whether it was acknowledged on a channel that closed, maybe before the broker knew."""
        return event in self._lost_acks

    def flush(self) -> None:
        """Send the acknowledgements that were collected."""
        self._disarm()
        if len(self._acks):
            self._port.send(self._acks.frames())

    def close(self) -> "asyncio.Task[None]":
        """Send them and close the channel; what is in hand goes back to its queue."""
        self.flush()
        return self._channel.close()

    def _settle(self, tag: int, frame: bytes) -> None:
        if self._port.is_open and not self._acks.is_settled(tag):
            self._acks.settle(tag)
            self._port.send(frame)
            self._let_go()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        self.in_hand -= 1
        if not self.in_hand:
            self.flush()
            self._channel.__exit__()

    # ── what the broker says: see `Receiver` ─────────────────────────────────────────────────────

    def delivered(self, message: IncomingMessage) -> None:
        """Hand it on."""
        if not self.in_hand:
            self._channel.__enter__()
        self.in_hand += 1
        self.received += 1
        self._take(Delivery(self._queue, self, message))

    def closed(self, reason: str) -> None:
        """Remember what the broker may not know."""
        del reason
        self._disarm()
        self._lost_acks.add(self._last)
        if self._left is not None:
            self._left()

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published here."""

    def returned(self, properties: bytes) -> None:
        """Nothing is published here."""
