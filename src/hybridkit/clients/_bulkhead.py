"""How much of a process one slow target can occupy."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from hybridkit.errors import DeadlineExceededError, UnavailableError

__all__ = ["Bulkhead"]


class Bulkhead:
    """Places for requests on the wire, and a queue of bounded length and patience before them.

    Args:
        target: named in the refusal.
        places: how many requests at a time.
        queue: how many more may wait.
    """

    def __init__(self, target: str, *, places: int, queue: int) -> None:
        self._target = target
        self._places = places
        self._queue = queue
        self._free = asyncio.Semaphore(places)
        self._waiting = 0

    def __repr__(self) -> str:
        return f"Bulkhead({self._target!r}, places={self._places}, waiting={self._waiting} of {self._queue})"

    @asynccontextmanager
    async def place(self, *, timeout_seconds: float) -> AsyncGenerator[None]:
        """Hold a place inside the `async with` block.

        Args:
            timeout_seconds: how long to wait for one.

        Raises:
            UnavailableError: the queue is full as well.
            DeadlineExceededError: no place became free in time; nothing was sent.
        """
        if self._free.locked():
            await self._wait(timeout_seconds)
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self, timeout_seconds: float) -> None:
        if self._waiting >= self._queue:
            raise UnavailableError(
                f"{self._target}: {self._places} calls are under way and {self._waiting} wait; no more fit"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlineExceededError(
                f"{self._target}: no place among {self._places} calls within {timeout_seconds:.3f} s;"
                " nothing was sent"
            ) from None
        finally:
            self._waiting -= 1
