"""A clock for tests, which only moves when the test says so."""

from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from hybridkit.codec import in_utc, now, replace_clock
from hybridkit.errors import MisuseError


class VirtualClock:
    """The time that hybridkit reads inside a `with` block, in place of the system's clock.

    ```python
    with VirtualClock() as clock:
        async with postgres.transaction() as tx:
            tx.emit(Reminder(order_id=order.id), delay_seconds=3600)
        clock.advance(timedelta(hours=1))
    ```

    Timestamps of events, `not_before`, `created_at` of records in `FakeDataService`, and the time for which it keeps
    idempotency keys follow it. It is one clock for the whole process, all tasks and threads included, whenever they
    were started; so a second one inside the block is refused. `time.monotonic()`, `asyncio.sleep` and servers outside
    of the process go on as before.

    Args:
        start: the time at which it begins, where a naive one is in UTC; None for the current time.

    Raises:
        MisuseError: another one is in use when the block begins.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._moment = now() if start is None else in_utc(start)

    def __repr__(self) -> str:
        return f"VirtualClock({self._moment.isoformat()})"

    @property
    def moment(self) -> datetime:
        """The time that it shows."""
        return self._moment

    def advance(self, time: timedelta) -> datetime:
        """Move it forward, and return the time that it then shows.

        Raises:
            MisuseError: the time is negative.
        """
        if time < timedelta(0):
            raise MisuseError(f"time only moves forward, not by {time}")
        self._moment += time
        return self._moment

    def __enter__(self) -> Self:
        replace_clock(self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        replace_clock(None)

    def _read(self) -> datetime:
        return self._moment
