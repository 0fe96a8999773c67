"""Buckets of tokens: what rate limits are to decide, in exact numbers and without their arithmetic."""

from collections.abc import Sequence
from fractions import Fraction

from hybridkit.coordination import Rate


class Buckets:
    """One bucket for each limit and key; a request takes from all of them or from none.

    Args:
        rates: the limits.
    """

    def __init__(self, rates: Sequence[Rate]) -> None:
        self._rates = rates
        self._tokens: dict[tuple[int, str], tuple[Fraction, int]] = {}

    def check(self, keys: Sequence[str], cost: int, now: int) -> list[int]:
        """Decide at a time in microseconds; the answer is that of the script `CHECK`."""
        levels = [self._level(index, key, now) for index, key in enumerate(keys)]
        intervals = [rate.interval_microseconds for rate in self._rates]
        waits = [(cost - level) * interval for level, interval in zip(levels, intervals, strict=True)]
        allowed = all(wait <= 0 for wait in waits)
        if allowed:
            levels = [level - cost for level in levels]
            decides = min(range(len(levels)), key=lambda index: int(levels[index]))
        else:
            decides = max(range(len(levels)), key=lambda index: waits[index])
        for index, key in enumerate(keys):
            self._tokens[index, key] = levels[index], now
        level, burst = levels[decides], self._rates[decides].burst
        wait, missing = waits[decides], (burst - level) * intervals[decides]
        return [int(allowed), decides, int(level), 0 if allowed else int(wait), int(missing)]

    def _level(self, index: int, key: str, now: int) -> Fraction:
        rate = self._rates[index]
        level, since = self._tokens.get((index, key), (Fraction(rate.burst), now))
        return min(level + Fraction(now - since, rate.interval_microseconds), Fraction(rate.burst))
