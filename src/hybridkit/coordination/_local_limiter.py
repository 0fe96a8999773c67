"""Limits in this process alone, for the time in which Redis doesn't answer."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from hybridkit.coordination._rates import Rate

MAX_KEYS: Final = 10_000
"""The most keys that are remembered. The one that was let through longest ago is forgotten: it begins anew."""


class LocalLimiter:
    """The share of one replica in some limits.

    A share of a burst is rounded down, but is at least 1. A request that costs more than the share of the burst waits
    until all of that is free, so that no cost is refused for ever.

    Args:
        rates: the limits of all replicas together.
        replicas: the number of replicas.
        clock: gives seconds that never go back; for tests.
    """

    def __init__(
        self, rates: Sequence[Rate], *, replicas: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = [
            (rate.interval_microseconds * replicas, max(rate.burst // replicas, 1)) for rate in rates
        ]
        self._clock = clock
        self._full_at: OrderedDict[str, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"LocalLimiter({len(self._full_at)} keys)"

    def check(self, names: Sequence[str], cost: int, limits: Sequence[int] | None = None) -> list[int]:
        """Decide as the script `CHECK` does, and return the same numbers.

        Args:
            names: the key of each limit.
            cost: how much the request takes of each.
            limits: the indexes of the limits, one for each name; by default all of them.
        """
        chosen = self._limits if limits is None else [self._limits[index] for index in limits]
        now = int(self._clock() * 1_000_000)
        before = [max(self._full_at.get(name, now), now) for name in names]
        waits = [
            full_at + (min(cost, burst) - burst) * interval - now
            for full_at, (interval, burst) in zip(before, chosen, strict=True)
        ]
        longest = max(range(len(waits)), key=lambda index: waits[index])
        if waits[longest] > 0:
            return [0, longest, *self._left(before[longest] - now, chosen[longest], wait=waits[longest])]
        after = [full_at + cost * interval for full_at, (interval, _) in zip(before, chosen, strict=True)]
        for name, full_at in zip(names, after, strict=True):
            self._full_at[name] = full_at
            self._full_at.move_to_end(name)
        while len(self._full_at) > MAX_KEYS:
            self._full_at.popitem(last=False)
        left = [
            self._left(full_at - now, limit, wait=0) for full_at, limit in zip(after, chosen, strict=True)
        ]
        tightest = min(range(len(left)), key=lambda index: left[index][0])
        return [1, tightest, *left[tightest]]

    def _left(self, missing: int, limit: tuple[int, int], *, wait: int) -> tuple[int, int, int]:
        interval, burst = limit
        return max((burst * interval - missing) // interval, 0), wait, missing
