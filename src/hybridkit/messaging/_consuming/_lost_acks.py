"""Work that was finished, and whose acknowledgement was lost together with its channel."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from hybridkit.messaging._consuming._delivery import Identity

KEPT_SECONDS: Final = 3600.0
"""Longer than the broker leaves any message with a consumer (half an hour) or needs to notice that one is gone."""
CHANNELS: Final = 4
"""How many lost channels in a row are remembered in full."""


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
