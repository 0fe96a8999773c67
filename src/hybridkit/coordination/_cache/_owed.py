"""Invalidations that Redis has not confirmed: told again until it does, as long as this process lives."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit._tasks import TaskSet
from hybridkit.errors import UnavailableError
from hybridkit.observability import get_logger
from hybridkit.retry import Retry

MAX_OWED: Final = 10_000
"""The keys that are remembered; the oldest is dropped for another, and its value ends with its lifetime."""

_AGAIN: Final = Retry.exponential(first_seconds=0.05, cap_seconds=1.0, attempts=sys.maxsize)

_log = get_logger("hybridkit.coordination")


class OwedInvalidations:
    """Invalidations by key, in the order in which they were asked for.

    Args:
        name: the cache's name, for logs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._owed: dict[str, Callable[[], Awaitable[object]]] = {}
        self._tasks = TaskSet()

    def __repr__(self) -> str:
        return f"OwedInvalidations({self._name!r}, {len(self._owed)} owed)"

    def __contains__(self, key: str) -> bool:
        """Return whether a key may have a value in Redis that is invalid."""
        return key in self._owed

    async def tell(self, key: str, invalidate: Callable[[], Awaitable[object]]) -> bool:
        """Invalidate, or owe it, and return whether Redis has confirmed.

        Args:
            key: a key of Redis.
            invalidate: does it; it may run again.
        """
        try:
            await invalidate()
        except UnavailableError:
            self._owe(key, invalidate)
            return False
        except asyncio.CancelledError:
            self._owe(key, invalidate)
            raise
        return True

    def _owe(self, key: str, invalidate: Callable[[], Awaitable[object]]) -> None:
        self._owed[key] = invalidate
        if len(self._owed) > MAX_OWED:
            dropped = next(iter(self._owed))
            del self._owed[dropped]
            _log.warning("an invalidation is given up", cache=self._name, key=dropped)
        if not self._tasks:
            self._tasks.start(self._settle(), name=f"hybridkit cache {self._name} invalidations")

    async def _settle(self) -> None:
        pauses = _AGAIN.pauses()
        while self._owed:
            await asyncio.sleep(next(pauses))
            for key, invalidate in list(self._owed.items()):
                try:
                    await invalidate()
                except UnavailableError:
                    break
                if self._owed.get(key) is invalidate:
                    del self._owed[key]
