"""How much of a process one slow target can occupy."""

import asyncio
from collections.abc import Callable

from hybridkit.errors import DeadlinePassedError, UnavailableError


class Bulkhead:
    """Places for requests on the wire, and a queue of bounded length and patience before them.

    Args:
        target: named in the refusal.
        places: how many requests at a time.
        queue: how many more may wait.
        on_queue: told by how much the queue has grown.
    """

    def __init__(
        self, target: str, *, places: int, queue: int, on_queue: Callable[[int], object] | None = None
    ) -> None:
        self._target = target
        self._places = places
        self._queue = queue
        self._free = asyncio.Semaphore(places)
        self._waiting = 0
        self._on_queue = on_queue

    def __repr__(self) -> str:
        return f"Bulkhead({self._target!r}, places={self._places}, waiting={self._waiting} of {self._queue})"

    def place(self, *, timeout_seconds: float) -> "_Place":
        """Hold a place inside the `async with` block.

        Args:
            timeout_seconds: how long to wait for one.

        Raises:
            UnavailableError: the queue is full as well.
            DeadlinePassedError: no place became free in time; nothing was sent.
        """
        return _Place(self, timeout_seconds)

    async def enter(self, timeout_seconds: float) -> None:
        """Take a place; as `place`."""
        if self._free.locked():
            await self._wait(timeout_seconds)
        else:
            await self._free.acquire()

    def leave(self) -> None:
        """Give it back."""
        self._free.release()

    async def _wait(self, timeout_seconds: float) -> None:
        if self._waiting >= self._queue:
            raise UnavailableError(
                f"{self._target}: {self._places} calls are under way and {self._waiting} wait; no more fit"
            )
        self._queue_by(1)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlinePassedError(
                f"{self._target}: no place among {self._places} calls within {timeout_seconds:.3f} s;"
                " nothing was sent"
            ) from None
        finally:
            self._queue_by(-1)

    def _queue_by(self, change: int) -> None:
        self._waiting += change
        if self._on_queue is not None:
            self._on_queue(change)


class _Place:
    """A class, as a generator would cost each call three times as much."""

    __slots__ = ("_bulkhead", "_timeout_seconds")

    def __init__(self, bulkhead: Bulkhead, timeout_seconds: float) -> None:
        self._bulkhead = bulkhead
        self._timeout_seconds = timeout_seconds

    async def __aenter__(self) -> None:
        await self._bulkhead.enter(self._timeout_seconds)

    async def __aexit__(self, *_: object) -> None:
        self._bulkhead.leave()
