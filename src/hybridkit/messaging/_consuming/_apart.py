"""Running what others have written, so that whatever it does to its own task happens to no task of ours."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any


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
