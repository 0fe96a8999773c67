"""Which deliveries of one channel are settled, and what the broker still has to be told about them.

A delivery's tag is its number on the channel, from 1. Whatever lies below the oldest unsettled delivery is acknowledged
with one frame, `multiple`; what is done behind a slow one is acknowledged one by one, so that it frees its place in the
prefetch. A tag that the broker has been told about is never named again: that would close the channel (406).
https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter
"""

from hybridkit.messaging._amqp._frames import ack_frame


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
