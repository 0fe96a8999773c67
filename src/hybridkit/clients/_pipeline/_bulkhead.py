"""A bulkhead: limits how many calls one slow target can hold in a process."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from hybridkit.errors import DeadlinePassedError, UnavailableError


class Bulkhead:
    """Permits for requests on the wire, and a queue of limited length before them.

    Args:
        target: the name of the target in the refusal.
        permits: the most requests at a time.
        queue: the most calls that wait for a permit.
        on_queue: called with the change of the queue's length, 1 or -1.
    """

    def __init__(
        self, target: str, *, permits: int, queue: int, on_queue: Callable[[int], object] | None = None
    ) -> None:
        self._target = target
        self._permits = permits
        self._queue = queue
        self._free = asyncio.Semaphore(permits)
        self._waiting = 0
        self._on_queue = on_queue

    def __repr__(self) -> str:
        return (
            f"Bulkhead({self._target!r}, permits={self._permits}, waiting={self._waiting} of {self._queue})"
        )

    def permit(self, *, timeout_seconds: float) -> AbstractAsyncContextManager[None]:
        """Hold a permit inside the `async with` block.

        Args:
            timeout_seconds: the time to wait for one.

        Raises:
            UnavailableError: the queue is full as well.
            DeadlinePassedError: no permit became free in time; nothing was sent.
        """
        return _Permit(self, timeout_seconds)

    async def acquire(self, timeout_seconds: float) -> None:
        """Take a permit, with the errors of `permit`."""
        if (
            self._free.locked()
        ):  # the semaphore is fair: it is locked as well while others wait for their turn
            await self._wait(timeout_seconds)
        else:
            await self._free.acquire()

    def release(self) -> None:
        """Give a permit back."""
        self._free.release()

    async def _wait(self, timeout_seconds: float) -> None:
        if self._waiting >= self._queue:
            raise UnavailableError(
                f"{self._target}: {self._permits} calls are under way and {self._waiting} wait; no more fit"
            )
        self._queue_by(1)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlinePassedError(
                f"{self._target}: none of {self._permits} calls under way ended within {timeout_seconds:.3f} s;"
                " nothing was sent"
            ) from None
        finally:
            self._queue_by(-1)

    def _queue_by(self, change: int) -> None:
        self._waiting += change
        if self._on_queue is not None:
            self._on_queue(change)


class _Permit:
    """A class, as a generator would cost each call three times as much."""

    __slots__ = ("_bulkhead", "_timeout_seconds")

    def __init__(self, bulkhead: Bulkhead, timeout_seconds: float) -> None:
        self._bulkhead = bulkhead
        self._timeout_seconds = timeout_seconds

    async def __aenter__(self) -> None:
        await self._bulkhead.acquire(self._timeout_seconds)

    async def __aexit__(self, *_: object) -> None:
        self._bulkhead.release()
