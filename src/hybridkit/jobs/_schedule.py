"""Slots: the moments at which a job is to run, the same for all replicas."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from hybridkit.errors import DeclarationError, MisuseError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SHORTEST_PERIOD: Final = timedelta(seconds=1)
LONGEST_PERIOD: Final = timedelta(days=366)


class Schedule(Protocol):
    """The rule by which slots follow each other."""

    def next_after(self, moment: datetime) -> datetime:
        """Return the first slot after a moment, in UTC."""
        ...


class Every:
    """A slot each period, counted from the beginning of 1970 in UTC: every 5 minutes is at :00, :05, :10 and so on.

    Args:
        period: the time from slot to slot, in whole seconds.

    Raises:
        DeclarationError: the period is out of its range.
    """

    def __init__(self, period: timedelta) -> None:
        if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD or period.microseconds:
            raise DeclarationError(
                f"a job runs every second at most, every 366 days at least, and every so many whole seconds, not every"
                f" {period.total_seconds():g} s"
            )
        self._period = period

    def __repr__(self) -> str:
        return f"Every({self._period!r})"

    def __str__(self) -> str:
        return f"every {self._period}"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first slot after a moment, in UTC."""
        return EPOCH + ((moment - EPOCH) // self._period + 1) * self._period


class BySetting:
    """A schedule that a setting of the worker has; only the worker knows it.

    Args:
        name: the field of the settings: a `timedelta`, a `Cron`, or the text of a cron expression.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"BySetting({self.name!r})"

    def __str__(self) -> str:
        return f"by the setting {self.name}"

    def next_after(self, moment: datetime) -> datetime:
        """Refuse to say the slot after a moment.

        Raises:
            MisuseError: it depends on the settings of the worker.
        """
        raise MisuseError(f"the slot after {moment} depends on the worker's setting {self.name}")

    def read_from(self, settings: object) -> object:
        """Return the value of the setting.

        Raises:
            DeclarationError: the settings have no such field.
        """
        if not hasattr(settings, self.name):
            raise DeclarationError(
                f"a job runs by the setting {self.name!r}, which {type(settings).__name__} doesn't have"
            )
        found: object = getattr(settings, self.name)
        return found


def latest_slots(schedule: Schedule, *, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """Return the last slots after one moment and until another, oldest first, and `limit` of them at most.

    The time that this takes doesn't depend on how long the two are apart.
    """
    span = timedelta(minutes=1)
    while True:
        since = max(after, until - span)
        slots: list[datetime] = []
        moment = since
        while (moment := schedule.next_after(moment)) <= until and len(slots) <= 4 * limit:
            slots.append(moment)
        if moment <= until:  # a burst: more in this span than were wanted, and its end is not reached
            return latest_slots(schedule, after=slots[-limit - 1], until=until, limit=limit)
        if len(slots) >= limit or since == after:
            return slots[-limit:]
        span *= 4


def jitter_of(job: str, slot: datetime, *, seconds: float) -> timedelta:
    """Return the delay of a slot, evenly spread from 0 to `seconds`, which all replicas agree on."""
    digest = hashlib.sha256(f"{job}@{slot.isoformat()}".encode()).digest()
    return timedelta(seconds=seconds * int.from_bytes(digest[:6]) / 2**48)
