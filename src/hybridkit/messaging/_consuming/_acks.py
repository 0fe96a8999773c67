"""Which deliveries of one channel are settled, and what the broker still has to be told about them.

A delivery's tag is its number on the channel, from 1. Whatever lies below the oldest unsettled delivery is acknowledged
with one frame, `multiple`; what is done behind a slow one is acknowledged one by one, so that it frees its place in the
prefetch. A tag that the broker has been told about is never named again: that would close the channel (406).
https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from hybridkit.messaging._amqp._frames import ack_frame
from hybridkit.messaging._consuming._delivery import Identity

KEPT_SECONDS: Final = 3600.0
"""Longer than the broker leaves any message with a consumer (half an hour) or needs to notice that one is gone."""
CHANNELS: Final = 4
"""How many lost channels in a row are remembered in full."""


class Acks:
    """The tags of one channel.

    Args:
        channel: its number.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._oldest = 1  # unsettled: all below it are settled
        self._behind: set[int] = set()  # settled ones above it
        self._untold: list[int] = []  # settled ones that are to be acknowledged, as they came

    def __repr__(self) -> str:
        return f"Acks(channel={self._channel}, oldest={self._oldest}, untold={len(self)})"

    def __len__(self) -> int:
        """How many are to be acknowledged."""
        return len(self._untold)

    def is_settled(self, tag: int) -> bool:
        """Whether nothing can be said about that delivery any more."""
        return tag < self._oldest or tag in self._behind

    def add(self, tag: int) -> None:
        """Have a delivery acknowledged, that isn't settled, with the next frames."""
        self._untold.append(tag)
        self.settle(tag)

    def settle(self, tag: int) -> None:
        """Note that the broker is told of a delivery in another way."""
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
        """What acknowledges all that are to be, once."""
        untold, self._untold = self._untold, []
        # The highest that hasn't been told yet: a higher one below the oldest may have been acknowledged before.
        last = max((tag for tag in untold if tag < self._oldest), default=0)
        frames = [ack_frame(self._channel, tag, multiple=False) for tag in untold if tag > last]
        if last:
            frames.insert(0, ack_frame(self._channel, last, multiple=True))
        return b"".join(frames)


class LostAcks:
    """Events that needn't run when they are delivered again.

    The broker lets a channel have `prefetch` unacknowledged messages. So at most the last `prefetch` acknowledgements
    of a channel can be lost with it: that many are remembered for each of the last four channels, and none for longer
    than an hour. What is forgotten runs again, or the idempotency guard knows it.

    Args:
        prefetch: of each channel.
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
        """Remember them."""
        until = time.monotonic() + KEPT_SECONDS
        for event in events:
            self._events[event] = until
            self._events.move_to_end(event)
        while len(self._events) > self._most:
            self._events.popitem(last=False)
