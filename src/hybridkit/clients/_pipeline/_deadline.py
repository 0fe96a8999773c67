"""A time limit that holds even for work which is slow to end when it is cancelled.

httpx has no total timeout, and a driver may take its time over a cancellation. So the work runs in a task of its own:
when its time is up, it is cancelled and left behind. Work that is known to end at once is spared the task, which costs
as much as all the rest of the pipeline.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from hybridkit._tasks import TaskSet

GRACE_SECONDS: Final = 1.0


class Deadlines:
    """Runs coroutines for a limited time, and remembers those that it has left behind until they have ended.

    Args:
        in_place: await the work without a task of its own, as it ends at once when it is cancelled.
    """

    def __init__(self, *, in_place: bool = False) -> None:
        self._in_place = in_place
        self._left_behind = TaskSet()

    def __repr__(self) -> str:
        return f"Deadlines({len(self._left_behind)} left behind)"

    async def run[T](self, work: Coroutine[Any, Any, T], *, timeout_seconds: float) -> T:
        """Return the result of the work.

        Raises:
            TimeoutError: the work has not ended in time; without any time, it has not begun.
        """
        if timeout_seconds <= 0:
            work.close()
            raise TimeoutError
        if self._in_place:
            async with asyncio.timeout(timeout_seconds):
                return await work
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task,), timeout=timeout_seconds)
            if not task.done():
                raise TimeoutError
        finally:
            if not task.done():
                self._left_behind.keep(task)
                task.cancel()
        return task.result()

    async def aclose(self) -> None:
        """Give the work that was left behind a second to end."""
        await self._left_behind.wait(seconds=GRACE_SECONDS)
