"""Time limits for many runs at the same time. They are equally long, so one timer is enough for all of them."""

import asyncio
from types import TracebackType
from typing import Any, Self


class RunTimeout:
    """The time limit of one run: a context manager like `asyncio.timeout`, without a timer of its own.

    Attributes:
        expired: whether the time was up before the run's end.
    """

    __slots__ = ("_cancelling", "_task", "_timeouts", "expired")

    def __init__(self, timeouts: "RunTimeouts", task: asyncio.Task[Any]) -> None:
        self._timeouts = timeouts
        self._task = task
        self._cancelling = task.cancelling()
        self.expired = False

    def __enter__(self) -> Self:
        self._timeouts.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run.

        Raises:
            TimeoutError: the time was up, and nothing else had cancelled the task.
        """
        self._timeouts.end(self)
        if self.expired:
            nobody_else = self._task.uncancel() <= self._cancelling
            if nobody_else and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the run, as its time is up."""
        self.expired = True
        self._task.cancel()


class RunTimeouts:
    """The time limits of the runs that are under way.

    Args:
        seconds: the limit of each run.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._deadlines: dict[
            RunTimeout, float
        ] = {}  # of the event loop's clock; the earliest first, as all are equal
        self._expired: dict[RunTimeout, float] = {}  # and since when they haven't ended
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"RunTimeouts(seconds={self._seconds:g}, {len(self._deadlines)} runs)"

    def one(self) -> RunTimeout:
        """Return a time limit for one run, in the current task."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # nosec B101 - handlers run in tasks
        return RunTimeout(self, task)

    def begin(self, timeout: RunTimeout) -> None:
        """Start the time of a run."""
        loop = asyncio.get_running_loop()
        deadline = self._deadlines[timeout] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._sweep)

    def end(self, timeout: RunTimeout) -> None:
        """Forget a run that has ended."""
        self._deadlines.pop(timeout, None)
        self._expired.pop(timeout, None)

    def overdue(self, *, seconds: float) -> int:
        """Return the number of runs that have not ended so long after their timeout, although they were cancelled."""
        since = asyncio.get_running_loop().time() - seconds
        return sum(expired <= since for expired in self._expired.values())

    def _sweep(self) -> None:
        """Cancel the runs that are over their deadline, and set the timer for the next deadline."""
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        while self._deadlines:
            timeout, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                self._timer = loop.call_at(deadline, self._sweep)
                return
            del self._deadlines[timeout]
            self._expired[timeout] = now
            timeout.expire()
