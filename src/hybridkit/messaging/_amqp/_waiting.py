"""Waiting for aiormq without trusting it: its calls run in tasks that nobody cancels.

A call into aiormq that is cancelled or times out leaves its channel in doubt: a lock that is never released, delivery
tags off by one. So a caller that stops waiting only stops waiting, and the call goes on.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hybridkit._tasks import TaskSet


async def bounded[T](work: Coroutine[Any, Any, T], *, seconds: float, tasks: TaskSet, name: str) -> T:
    """Return the result of a call into aiormq, or stop waiting for it; the call itself is never cancelled.

    Args:
        work: the call.
        seconds: how long to wait.
        tasks: keeps the call while it runs.
        name: for errors and debuggers.

    Raises:
        TimeoutError: there is no result in that time.
        ConnectionError: aiormq raised a `CancelledError`, which is how it says that the connection has ended.
    """
    task = tasks.start(work, name=name)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise TimeoutError(f"{name}: no answer in {seconds:g} s")
    try:
        return task.result()
    except asyncio.CancelledError as error:
        raise ConnectionError(f"{name}: the connection ended meanwhile") from error


def is_cancelled() -> bool:
    """Return whether this task was cancelled: aiormq raises `CancelledError` also where it was not."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
