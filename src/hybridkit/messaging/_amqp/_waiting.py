"""Waiting for aiormq without trusting it: its calls run in tasks that nobody cancels.

A call into aiormq that is cancelled or times out leaves its channel in doubt: a lock that is never released, delivery
tags off by one. So a caller that stops waiting only stops waiting, and the call goes on.
"""

import asyncio
import random
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


class Backoff:
    """Growing pauses: each is a random part, at least a quarter, of a bound that doubles up to the cap."""

    def __init__(self, *, first_seconds: float = 0.2, cap_seconds: float = 10.0) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._bound_seconds = first_seconds

    def __repr__(self) -> str:
        return f"Backoff(bound_seconds={self._bound_seconds:g})"

    def reset(self) -> None:
        """Start again with the shortest pause."""
        self._bound_seconds = self._first_seconds

    def next_seconds(self) -> float:
        """The next pause."""
        bound = self._bound_seconds
        self._bound_seconds = min(bound * 2, self._cap_seconds)
        return random.uniform(bound / 4, bound)  # noqa: S311 - spreads reconnects, protects nothing
