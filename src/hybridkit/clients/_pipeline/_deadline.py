"""A limit on waiting that needs nobody's help.

httpx has no total timeout, and a driver may take its time over a cancellation. So the work runs in a task of its own:
when its time is up, it is cancelled and left behind. What is known to end at once is spared the task, which costs as
much as all the rest of the pipeline.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

GRACE_SECONDS: Final = 1.0


class Deadlines:
    """Runs coroutines for a limited time, and remembers those it has left behind until they have ended.

    Args:
        prompt: what it runs ends at once when it is cancelled.
    """

    def __init__(self, *, prompt: bool = False) -> None:
        self._prompt = prompt
        self._left_behind: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Deadlines({len(self._left_behind)} left behind)"

    async def run[T](self, work: Coroutine[Any, Any, T], *, timeout_seconds: float) -> T:
        """The result of that work.

        Raises:
            TimeoutError: it has not ended in time; without any time, it has not begun.
        """
        if timeout_seconds <= 0:
            work.close()
            raise TimeoutError
        if self._prompt:
            async with asyncio.timeout(timeout_seconds):
                return await work
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task,), timeout=timeout_seconds)
            if not task.done():
                raise TimeoutError
        finally:
            if not task.done():
                self._leave(task)
        return task.result()

    async def aclose(self) -> None:
        """Give what was left behind a second to end."""
        if self._left_behind:
            await asyncio.wait(self._left_behind, timeout=GRACE_SECONDS)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, so that asyncio doesn't report it as never retrieved
