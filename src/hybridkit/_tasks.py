"""Tasks that nobody awaits: kept alive while they run, waited for at the end, and their errors looked at.

And code of others in a task of its own, so that it can cancel or end no task of ours.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextvars import Context
from functools import partial
from typing import Any


class TaskSet:
    """Tasks that run beside their owner.

    asyncio holds no reference to a running task and reports an error that nobody has asked for; this set does the
    first and asks for the second. https://docs.python.org/3/library/asyncio-task.html#asyncio.create_task
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"TaskSet({len(self._tasks)} running)"

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        """Iterate over the tasks that run now; tasks may end meanwhile."""
        return iter(list(self._tasks))

    def start[T](
        self, work: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Run the coroutine in a task of this set, and return the task.

        Args:
            work: the coroutine.
            name: the task's name, for debuggers and logs.
            context: the context variables of the task; a copy of the caller's by default.
        """
        task = asyncio.create_task(work, name=name, context=context)
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Add a task that was started elsewhere."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Add a task that takes itself out with `release` as its last step, and whose error it has looked at itself.

        This costs a third of `keep`, which has the loop call back for each task.
        """
        self._tasks.add(task)

    def release(self, task: asyncio.Task[Any]) -> None:
        """Take out a task that ends now."""
        self._tasks.discard(task)

    async def wait(self, *, seconds: float | None = None) -> bool:
        """Wait until the tasks that run now have ended, for `seconds` at most, and return whether they have."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(set(self._tasks), timeout=seconds)
        return not pending

    async def cancel(self, *, seconds: float | None = None) -> bool:
        """Cancel the tasks that run now, wait for their end as `wait` does, and return whether they have ended."""
        for task in self._tasks:
            task.cancel()
        return await self.wait(seconds=seconds)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever awaits the task gets it too; nobody is not a reason for a warning


async def is_set_within(event: asyncio.Event, *, seconds: float | None) -> bool:
    """Wait until the event is set, for `seconds` at most (None: without a limit), and return whether it is.

    Unlike `asyncio.wait_for`, this loses neither a cancellation nor an event that arrives together with the timeout.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return event.is_set()


async def run_isolated(work: Coroutine[Any, Any, object], *, name: str) -> BaseException | None:
    """Run a coroutine to its end in a task of its own; it starts at once, so one that never waits costs no loop turn.

    A cancellation of the caller cancels the coroutine, and is raised here if the coroutine ends by it. A cancellation
    of the coroutine's own task, by itself or by any other task, is returned like an error.

    Args:
        work: the coroutine.
        name: the task's name.

    Returns:
        The exception that the coroutine raised, whatever its class, or None. `KeyboardInterrupt` and `SystemExit` are
        raised instead, as they end the process.
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
        # Not the task itself: a `GeneratorExit` that it raises would be thrown into this coroutine, and close it.
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
        return None if is_done else cancelled  # one that came after the end of the work changes nothing
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return error


def _wake(ended: asyncio.Future[None], _: object) -> None:
    if not ended.done():
        ended.set_result(None)
