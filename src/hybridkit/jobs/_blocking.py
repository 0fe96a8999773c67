"""Call functions that block, in threads: bounded in number, with the caller's context, drained at the stop."""

import asyncio
import os
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any, Final
from weakref import WeakKeyDictionary

from hybridkit.context import current
from hybridkit.errors import OverloadedError
from hybridkit.observability import metrics

MAX_THREADS: Final = min(32, (os.cpu_count() or 1) + 4)
"""The most calls that run at a time in a process, as in Python's own pool of threads."""
MAX_WAITING: Final = 100
"""The most calls that wait for a thread."""


async def run_blocking[**P, T](function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread, and return what it returns; the event loop goes on meanwhile.

    For what computes (an image, a hash, an archive) or reads files. The function sees the context of its caller, so its
    log lines have the request id. At most 32 calls (the processors and four) run at a time in a process, and 100 wait.

    A thread can't be cancelled: when the caller is, the function goes on, its result is thrown away, and its place is
    taken until it ends. At the stop of a process such calls are waited for within the drain budget, and left behind
    after it. Something that may take for ever needs a limit of its own.

    Args:
        function: the function; it may not use the event loop, or objects that belong to it, such as clients.
        *args: its arguments.
        **kwargs: its arguments by name.

    Raises:
        OverloadedError: too many calls wait; nothing was called.
        DeadlinePassedError: the deadline of the context was over before there was a thread; nothing was called.
        Exception: the function raised it.
    """
    return await _threads_of(asyncio.get_running_loop()).call(partial(function, *args, **kwargs))


async def drain_blocking(seconds: float) -> bool:
    """Wait until no call of this event loop runs, for `seconds` at most, and return whether none does.

    The adapters do this when a process stops.
    """
    return await _threads_of(asyncio.get_running_loop()).drain(seconds)


class _Threads:
    """The calls of one event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_THREADS)
        self._waiting = 0
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"_Threads(running={self._running}, waiting={self._waiting})"

    async def call[T](self, function: Callable[[], T]) -> T:
        await self._take_place()
        try:
            current().check_deadline()
            result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._start(function, result)
        except BaseException:
            self._places.release()
            raise
        return await result

    async def drain(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _take_place(self) -> None:
        if self._places.locked() and self._waiting >= MAX_WAITING:
            metrics.blocking_refused.inc()
            raise OverloadedError(
                f"all {MAX_THREADS} threads are busy, and {self._waiting} calls wait for one",
                retry_after_seconds=1.0,
            )
        self._waiting += 1
        metrics.blocking_queued.inc()
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
            metrics.blocking_queued.dec()

    def _start[T](self, function: Callable[[], T], result: "asyncio.Future[T]") -> None:
        loop, context = asyncio.get_running_loop(), copy_context()

        def work() -> None:
            end: partial[Any]
            try:
                end = partial(_set_result, result, context.run(function))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                end = partial(_set_error, result, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end, end)

        # Daemon threads, one for each call: Python waits at its end for those of its own pool, however long they take.
        thread = Thread(target=work, name="hybridkit blocking call", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OverloadedError("the system gives no further thread", retry_after_seconds=1.0) from error
        self._running += 1
        self._idle.clear()
        metrics.blocking_in_flight.inc()

    def _end(self, end: Callable[[], None]) -> None:
        self._running -= 1
        metrics.blocking_in_flight.dec()
        self._places.release()
        if not self._running:
            self._idle.set()
        end()


_threads: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads]] = WeakKeyDictionary()


def _threads_of(loop: asyncio.AbstractEventLoop) -> _Threads:
    if (threads := _threads.get(loop)) is None:
        threads = _threads[loop] = _Threads()
    return threads


def _set_result[T](future: "asyncio.Future[T]", value: T) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # which a future can't carry
        wrapped = RuntimeError("the function raised StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    future.set_exception(error)
