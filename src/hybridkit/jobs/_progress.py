"""Tell how far long work has come: by log lines, metrics, and a record where one is wanted."""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from hybridkit.errors import DeclarationError
from hybridkit.observability import get_logger, metrics

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,99}")

_log = get_logger("hybridkit.progress")


@dataclass(frozen=True, slots=True)
class ProgressState:
    """The state of some work at one moment.

    Attributes:
        work: the name of the work.
        done: the items that are done.
        total: all items; None where that is not known.
        seconds: the time since its beginning.
        has_ended: whether the work is over.
        error: the class of the error that has ended it; None without one.
    """

    work: str
    done: int
    total: int | None
    seconds: float
    has_ended: bool = False
    error: str | None = None

    @property
    def ratio(self) -> float | None:
        """The part that is done, from 0 to 1; None where the total is not known."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0


class Progress:
    """A block of long work that tells how far it is.

    ```python
    async with Progress("import_users", total=len(rows)) as progress:
        for row in rows:
            await import_user(row)
            await progress.advance()
    ```

    There is a log line at most every `every_seconds`, and one at the end, with the error where the block leaves with
    one. The metric `hybridkit_work_items_total` counts the items, and `hybridkit_work_progress_ratio` is the part of
    them that is done.

    Args:
        work: the name of the work, in snake_case; a label of the metrics, so no id belongs into it.
        total: the number of items, if it is known.
        record: called with the state whenever there is a log line, to store it where people look. An error of it is
            logged, and doesn't end the work.
        every_seconds: the least time between two log lines.
        clock: gives seconds that never go back; for tests.

    Raises:
        DeclarationError: the name has another form, or a number is negative.
    """

    def __init__(
        self,
        work: str,
        *,
        total: int | None = None,
        record: Callable[[ProgressState], Awaitable[object]] | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _NAME.fullmatch(work):
            raise DeclarationError(
                f"the name of work is snake_case, of at most 100 characters, not {work[:100]!r}"
            )
        if (total is not None and total < 0) or not every_seconds >= 0:
            raise DeclarationError(f"{work}: total and every_seconds must not be negative")
        self._work = work
        self._total = total
        self._record = record
        self._every_seconds = every_seconds
        self._clock = clock
        self._done = 0
        self._began = self._told = clock()
        self._items = metrics.work_items.labels(work)
        self._ratio = metrics.work_progress.labels(work)

    def __repr__(self) -> str:
        return f"Progress({self._work!r}, done={self._done}, total={self._total})"

    @property
    def state(self) -> ProgressState:
        """The state now."""
        return ProgressState(self._work, self._done, self._total, self._clock() - self._began)

    async def __aenter__(self) -> Self:
        self._began = self._told = self._clock()
        self._ratio.set(0.0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        name = None if kind is None else kind.__qualname__
        state = self.state
        await self._tell(
            ProgressState(state.work, state.done, state.total, state.seconds, has_ended=True, error=name)
        )

    async def advance(self, count: int = 1) -> None:
        """Note that some more items are done."""
        self._done += count
        self._items.inc(count)
        if self._clock() - self._told >= self._every_seconds:
            self._told = self._clock()
            await self._tell(self.state)

    async def _tell(self, state: ProgressState) -> None:
        about = {"work": state.work, "done": state.done, "total": state.total}
        if state.ratio is not None:
            self._ratio.set(state.ratio)
            about["percent"] = round(100 * state.ratio)
        event = "work goes on"
        if state.has_ended:
            event = "work is done" if state.error is None else "work was broken off"
        _log.info(event, **about, seconds=round(state.seconds, 3), error_type=state.error)
        if self._record is None:
            return
        try:
            await self._record(state)
        except Exception as error:  # noqa: BLE001 - whoever looks on must not end the work
            _log.warning("progress could not be recorded", work=state.work, exc_info=error)
