"""Isolation of a handler that may end its process, from the handlers beside it.

A process that dies on one message leaves the claims of all that ran beside it behind, and each of them is taken over.
The claims alone don't tell which of them it was. So an event that was taken over more than once runs by
itself, in a process that does nothing else meanwhile: the next death then has one suspect.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from weakref import WeakKeyDictionary


class HandlerLock:
    """A lock of all handlers in one event loop, shared or exclusive, as a process dies with all of its consumers."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._one = asyncio.Lock()

    def __repr__(self) -> str:
        return f"HandlerLock(running={self._running}, is_free={self._free.is_set()})"

    @classmethod
    def of_loop(cls) -> "HandlerLock":
        """Return the lock of the running loop."""
        loop = asyncio.get_running_loop()
        lock = _LOCKS.get(loop)
        if lock is None:
            lock = _LOCKS[loop] = cls()
        return lock

    @property
    def is_free(self) -> bool:
        """Whether no handler runs alone or waits to."""
        return self._free.is_set()

    async def acquire_shared(self) -> None:
        """Begin to run beside others; wait while a handler runs alone or waits to."""
        while not self._free.is_set():
            await self._free.wait()
        self.enter_shared()

    def enter_shared(self) -> None:
        """Begin to run beside others, while the lock is free."""
        self._running += 1

    def release_shared(self) -> None:
        """End a run that began with `acquire_shared` or `enter_shared`."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    @asynccontextmanager
    async def exclusive(
        self, *, wait_seconds: float, max_hold_seconds: float | None = None
    ) -> AsyncGenerator[bool]:
        """Run the block with no handler beside it.

        Args:
            wait_seconds: the time to wait for the end of the other handlers.
            max_hold_seconds: the time for which others wait; then they run beside the block. None: until its end.

        Yields:
            Whether the lock is held; False when the others have not ended in time.
        """
        is_alone = False
        try:
            async with asyncio.timeout(wait_seconds):
                await self._one.acquire()
                try:
                    # New shared runs wait from here on, or the others would never all have ended at the same time.
                    self._free.clear()
                    while self._running:
                        self._idle.clear()
                        await self._idle.wait()
                    is_alone = True
                finally:
                    if not is_alone:
                        self._leave()
        except TimeoutError:
            yield False
            return
        with ExitStack() as leaving:
            leaving.callback(self._leave)
            if max_hold_seconds is not None:
                # `close` releases once: the end of the block then finds nothing left to release.
                timer = asyncio.get_running_loop().call_later(max_hold_seconds, leaving.close)
                leaving.callback(timer.cancel)
            yield True

    def _leave(self) -> None:
        self._free.set()
        self._one.release()


_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, HandlerLock] = WeakKeyDictionary()
