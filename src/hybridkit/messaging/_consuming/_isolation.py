"""Keep handlers from harming each other, and whoever runs them.

A handler runs in a task of its own, so that whatever it does to its task happens to no task of ours.

A process that dies on one message leaves the claims of all that ran beside it behind, and each of them is taken over.
From the claims alone nobody can tell which of them it was. So an event that was taken over more than once runs by
itself, in a process that does nothing else meanwhile: the next death then has one suspect.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary


async def run_isolated(work: Coroutine[Any, Any, object], *, name: str) -> BaseException | None:
    """Run it to its end in a task of its own, which begins at once: one that never waits costs no turn of the loop.

    A cancellation of the caller goes through to it, and is raised here when it has ended by that. A cancellation of its
    own task, by itself or by anybody else, is only how it ended.

    Returns:
        What it raised, whatever that is, or None. What ends the process is raised: `KeyboardInterrupt`, `SystemExit`.
    """
    loop = asyncio.get_running_loop()
    is_done = False

    async def run() -> None:
        nonlocal is_done
        await work
        is_done = True

    task = asyncio.Task(run(), loop=loop, name=name, eager_start=True)
    is_cancelled = False
    while not task.done():
        # Not the task itself: a `GeneratorExit` that it raises would be thrown into whoever awaits it, and close him.
        ended: asyncio.Future[None] = loop.create_future()
        task.add_done_callback(partial(_wake, ended))
        try:
            await ended
        except asyncio.CancelledError:
            is_cancelled = True
            task.cancel()
    try:
        error = task.exception()
    except asyncio.CancelledError as cancelled:
        if is_cancelled:
            raise
        return None if is_done else cancelled
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return error


def _wake(ended: asyncio.Future[None], _: object) -> None:
    if not ended.done():
        ended.set_result(None)


class HandlerLock:
    """Of all handlers in one event loop, whichever consumer they belong to: a process dies as a whole."""

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
        """Those of the running loop."""
        loop = asyncio.get_running_loop()
        lock = _LOCKS.get(loop)
        if lock is None:
            lock = _LOCKS[loop] = cls()
        return lock

    @property
    def is_free(self) -> bool:
        """Whether nobody is or wants to be alone."""
        return self._free.is_set()

    async def acquire_shared(self) -> None:
        """Begin beside others; waits while one is or wants to be alone."""
        while not self._free.is_set():
            await self._free.wait()
        self._running += 1

    def release_shared(self) -> None:
        """End what was begun."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    @asynccontextmanager
    async def exclusive(
        self, *, wait_seconds: float, max_hold_seconds: float | None = None
    ) -> AsyncGenerator[bool]:
        """The block runs with nothing beside it; with False if that could not be had in that time.

        Args:
            wait_seconds: how long to wait for the end of the others.
            max_hold_seconds: how long they wait; then they go on beside the block. None for as long as it takes.
        """
        is_alone = False
        try:
            async with asyncio.timeout(wait_seconds):
                await self._one.acquire()
                try:
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
                timer = asyncio.get_running_loop().call_later(max_hold_seconds, leaving.close)
                leaving.callback(timer.cancel)
            yield True

    def _leave(self) -> None:
        self._free.set()
        self._one.release()


_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, HandlerLock] = WeakKeyDictionary()
