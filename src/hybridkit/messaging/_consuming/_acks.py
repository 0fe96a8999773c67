"""Acknowledgements: those that one channel still has to send, and those that were lost with a channel.

A delivery's tag is its number on the channel, from 1. All deliveries below the oldest unsettled one are acknowledged
with one frame, `multiple`; those behind a slow one are acknowledged one by one, so that they free their places in the
prefetch. A tag that was sent to the broker is never sent again: that would close the channel (406).
https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from hybridkit.messaging._amqp._frames import ack_frame
from hybridkit.messaging._consuming._delivery import Identity

KEPT_SECONDS: Final = 3600.0
"""Longer than the broker leaves a message with a consumer (half an hour), or needs to notice that it is gone."""
CHANNELS: Final = 4
"""The number of lost channels in a row whose acknowledgements are all remembered."""


class Acks:
    """The settled deliveries of one channel, and their acknowledgements that are not sent yet.

    Args:
        channel: its number.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._oldest = 1  # unsettled: all below it are settled
        self._behind: set[int] = set()  # settled ones above it
        self._unsent: list[
            int
        ] = []  # settled ones that are to be acknowledged, in the order of their settlement

    def __repr__(self) -> str:
        return f"Acks(channel={self._channel}, oldest={self._oldest}, unsent={len(self)})"

    def __len__(self) -> int:
        """Return the number of acknowledgements that are not sent yet."""
        return len(self._unsent)

    def is_settled(self, tag: int) -> bool:
        """Return whether the broker has been told about this delivery, or is about to be."""
        return tag < self._oldest or tag in self._behind

    def add(self, tag: int) -> None:
        """Acknowledge a delivery that isn't settled, with the next frames."""
        self._unsent.append(tag)
        self.settle(tag)

    def settle(self, tag: int) -> None:
        """Note that a delivery is settled, by an acknowledgement or by a frame of its own."""
        if tag != self._oldest:
            self._behind.add(tag)
            return
        tag += 1
        behind = self._behind
        while tag in behind:
            behind.remove(tag)
            tag += 1
        self._oldest = tag

    def frames(self) -> bytes:
        """Return the frames that acknowledge all that was added since the last call."""
        unsent, self._unsent = self._unsent, []
        # The highest that wasn't sent yet: a higher one below the oldest may have been acknowledged before.
        last = max((tag for tag in unsent if tag < self._oldest), default=0)
        frames = [ack_frame(self._channel, tag, multiple=False) for tag in unsent if tag > last]
        if last:
            frames.insert(0, ack_frame(self._channel, last, multiple=True))
        return b"".join(frames)


class LostAcks:
    """Finished events whose acknowledgement may never have reached the broker; delivered again, they need not run.

    The broker lets a channel have `prefetch` unacknowledged messages. So at most the last `prefetch` acknowledgements
    of a channel can be lost with it: that many are remembered for each of the last four channels, and none for longer
    than an hour. A forgotten event runs again, unless the idempotency guard knows it.

    Args:
        prefetch: the prefetch of each channel.
    """

    def __init__(self, *, prefetch: int) -> None:
        self._most = CHANNELS * prefetch
        self._events: OrderedDict[Identity, float] = OrderedDict()  # and until when

    def __repr__(self) -> str:
        return f"LostAcks({len(self._events)} of at most {self._most})"

    def __contains__(self, event: Identity) -> bool:
        until = self._events.get(event)
        return until is not None and time.monotonic() < until

    def add(self, events: Iterable[Identity]) -> None:
        """Remember these events for an hour from now."""
        until = time.monotonic() + KEPT_SECONDS
        for event in events:
            self._events[event] = until
            self._events.move_to_end(event)
        while len(self._events) > self._most:
            self._events.popitem(last=False)
