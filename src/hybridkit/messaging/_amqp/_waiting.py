"""Waiting for the client library without trusting it: its calls run in tasks of ours, and nobody cancels them.

A call into aiormq that is cancelled or that times out leaves a channel in doubt (a lock that is never released,
delivery tags off by one). So a caller that stops waiting only stops waiting; what was begun goes on, and its end is
looked at.
"""

import asyncio
import os
import random
from collections.abc import Coroutine
from typing import Any

from hybridkit._tasks import TaskSet
from hybridkit.errors import MisuseError


async def bounded[T](work: Coroutine[Any, Any, T], *, seconds: float, tasks: TaskSet, name: str) -> T:
    """The result of a library call, or `TimeoutError`; the call itself is not cancelled.

    A `CancelledError` out of the library, which nobody asked for, becomes a `ConnectionError`.
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
    """Whether somebody has cancelled this task: aiormq raises `CancelledError` also where nobody has."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Home:
    """The process and the event loop in which something was opened: in no other one it would ever get an answer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"Home(process={self._process})"

    def check(self, what: str) -> None:
        """Refuse to go on elsewhere.

        Raises:
            MisuseError: this is another process, a fork of the first one, another loop, or a thread that runs none.
        """
        if os.getpid() != self._process:
            raise MisuseError(f"{what} was opened before this process was forked; open one in here")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            raise MisuseError(
                f"{what} was opened in an event loop, and is used in a thread without one;"
                " hand the call over with `loop.call_soon_threadsafe`"
            ) from None
        if here is not self._loop:
            raise MisuseError(f"{what} was opened in another event loop; open one in this one")


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
