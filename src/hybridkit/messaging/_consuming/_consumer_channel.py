"""The consumer's end of a channel: it takes the deliveries and sends their acknowledgements.

Acknowledgements are collected for a moment, because a write for each of them costs more than most handlers. They are
sent after 25 ms, in the loop's next turn when they are a sixteenth of the prefetch, and at once when no delivery of the
channel is unsettled: then the broker may be waiting for them.
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

    As long as a delivery is unsettled, the channel is not closed when it is retired.

    Attributes:
        received: the number of deliveries that came in.
        unsettled: the number of those that are not settled.

    Args:
        channel: the channel.
        queue: the consumer's name.
        prefetch: the number of deliveries that may be unacknowledged.
        lost_acks: remembers the events that could not be acknowledged.
        on_delivery: called with each delivery.
        on_closed: called when the channel has closed: the broker delivers the unsettled messages again.
    """

    def __init__(
        self,
        channel: OpenChannel,
        *,
        queue: str,
        prefetch: int,
        lost_acks: LostAcks,
        on_delivery: Callable[[Delivery], None],
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._lost_acks = lost_acks
        self._on_delivery = on_delivery
        self._on_closed = on_closed
        self._port = channel.open_port(self)
        self._acks = Acks(self._port.channel)
        self._acks_at_once = max(prefetch // PREFETCH_PER_ACK, 1)
        self._acked: deque[Identity] = deque(maxlen=prefetch)  # finished, and perhaps not known to the broker
        self._timer: asyncio.Handle | None = None
        self._prefetch = prefetch
        self.received = 0
        self.unsettled = 0

    def __repr__(self) -> str:
        return f"ConsumerChannel({self._queue!r}, received={self.received}, unsettled={self.unsettled})"

    @property
    def has_room(self) -> bool:
        """Whether the broker may deliver more."""
        return self.unsettled + len(self._acks) < self._prefetch

    # ── the acknowledger of deliveries ───────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        """Whether the channel is open, so that the broker still learns of an acknowledgement."""
        return self._channel.is_open

    def ack(self, tag: int, finished: Identity | None) -> None:
        """Acknowledge a delivery soon; `finished` names its event, to remember it where the broker can't be told."""
        if not self._port.is_open:
            # The broker delivers the message again, marked as redelivered: then it need not run.
            if finished is not None:
                self._lost_acks.add((finished,))
            return
        if self._acks.is_settled(tag):
            return
        if finished is not None:
            self._acked.append(
                finished
            )  # until the channel closes: the broker never confirms an acknowledgement
        self._acks.add(tag)
        unsent = len(self._acks)
        if unsent == self._acks_at_once:
            self._disarm()
            self._timer = asyncio.get_running_loop().call_soon(self.flush)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_SECONDS, self.flush)
        self._count_down()

    def requeue(self, tag: int) -> None:
        """Put a delivery back into its queue."""
        self._settle(tag, nack_frame(self._port.channel, tag))

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter a delivery."""
        self._settle(tag, nack_frame(self._port.channel, tag, requeue=False))

    def give_back(self) -> None:
        """Close the channel, so that all unsettled messages go back in their order; another one is opened."""
        # Retired first, so that another channel is opened. A close returns all at once: none is delivered in between.
        self._channel.retire()
        self.close()

    def was_finished(self, event: Identity) -> bool:
        """Return whether the event was acknowledged on a channel that closed, maybe before the broker knew of it."""
        return event in self._lost_acks

    def flush(self) -> None:
        """Send the collected acknowledgements."""
        self._disarm()
        if len(self._acks):
            self._port.send(self._acks.frames())

    def close(self) -> "asyncio.Task[None]":
        """Send the acknowledgements and close the channel; unsettled messages go back to their queue."""
        self.flush()
        return self._channel.close()

    def _settle(self, tag: int, frame: bytes) -> None:
        if self._port.is_open and not self._acks.is_settled(tag):
            self._acks.settle(tag)
            self._port.send(frame)
            self._count_down()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count_down(self) -> None:
        self.unsettled -= 1
        if not self.unsettled:
            # First the acknowledgements: a retired channel closes as soon as no delivery uses it.
            self.flush()
            self._channel.__exit__()

    # ── the receiver of a port ───────────────────────────────────────────────────────────────────────

    def delivered(self, message: IncomingMessage) -> None:
        """Hand the delivery on."""
        if not self.unsettled:
            self._channel.__enter__()
        self.unsettled += 1
        self.received += 1
        self._on_delivery(Delivery(self._queue, self, message))

    def closed(self, reason: str) -> None:
        """Remember the acknowledgements that the broker may not have got: the last `prefetch` of them."""
        del reason
        self._disarm()
        self._lost_acks.add(self._acked)
        if self._on_closed is not None:
            self._on_closed()

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Ignore it: nothing is published on this channel."""

    def returned(self, properties: bytes) -> None:
        """Ignore it: nothing is published on this channel."""
