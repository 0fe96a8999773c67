"""The resource in which the projections of a data service keep their positions."""

from typing import Final, Literal

from pydantic import BaseModel, Field

from hybridkit.codec import Timestamp, now
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource

MAX_SKIPPED: Final = 100
"""The most events that a projection skips; one that wants more is to be mended, and filled anew."""


class SkippedEvent(BaseModel):
    """An event that a person has told a projection to skip.

    Attributes:
        position: its place in the log.
        event: its type and id, for people.
        error: the error that it failed with.
        by: the person.
        note: the reason.
        at: when.
    """

    position: str
    event: str
    error: str
    by: str
    note: str
    at: Timestamp


class ProjectionFields(BaseModel):
    """The fields of a projection's row.

    Attributes:
        name: the projection's name.
        projection_version: the version of its handlers and records.
        source: the name of the stream that it reads.
        position: the place in the log behind the last event that counts; None at the beginning.
        events: the number of events read so far.
        recorded_at: when the last event that counts was recorded; None at the beginning.
        resources: the names of the resources that it has written to.
        status: `failed` after an event that fails, until a person retries or skips it.
        error: the error of that event.
        failed_position: the position of that event.
        failed_event: its type and id.
        failed_at: when it failed.
        skipped: the events that were skipped, by whom and why.
    """

    name: str
    projection_version: int
    source: str
    position: str | None = None
    events: int = 0
    recorded_at: Timestamp | None = None
    resources: list[str] = Field(default_factory=list)
    status: Literal["running", "failed"] = "running"
    error: str | None = None
    failed_position: str | None = None
    failed_event: str | None = None
    failed_at: Timestamp | None = None
    skipped: list[SkippedEvent] = Field(default_factory=list[SkippedEvent])


class ProjectionRow(ProjectionFields, Record[str]):
    """A projection's row; its id is name and version, as in `balances.2`."""


class ProjectionChanges(BaseModel):
    """The fields of a projection's row that change."""

    position: str | None = None
    events: int = 0
    recorded_at: Timestamp | None = None
    resources: list[str] = Field(default_factory=list)
    status: Literal["running", "failed"] = "running"
    error: str | None = None
    failed_position: str | None = None
    failed_event: str | None = None
    failed_at: Timestamp | None = None
    skipped: list[SkippedEvent] = Field(default_factory=list[SkippedEvent])


PROJECTIONS: Final[Resource[ProjectionRow, ProjectionFields, ProjectionChanges]] = Resource(
    "projections",
    record=ProjectionRow,
    create=ProjectionFields,
    update=ProjectionChanges,
    filterable=("name", "source", "status"),
    sortable=("name",),
)
"""The positions of projections: `create_data_service(…, {BALANCES: BalanceTable, **projection_tables()})`."""


def retried(row: ProjectionRow) -> ProjectionChanges:
    """Return the changes that let a failed projection try its event again.

    Raises:
        InvalidRequestError: the projection has not failed.
    """
    if row.status != "failed":
        raise InvalidRequestError(f"projection {row.id} runs, so there is nothing to retry")
    return _going_on()


def skipped(row: ProjectionRow, position: str, *, by: str, note: str) -> ProjectionChanges:
    """Return the changes that let a failed projection go on behind its event, and keep who said so and why.

    Raises:
        InvalidRequestError: the projection has not failed at that position, or has skipped as many events as it may.
    """
    if row.status != "failed" or row.failed_position != position:
        at = f"it has failed at {row.failed_position}" if row.status == "failed" else "it runs"
        raise InvalidRequestError(f"projection {row.id} doesn't stand at {position}: {at}")
    if len(row.skipped) >= MAX_SKIPPED:
        raise InvalidRequestError(
            f"projection {row.id} has skipped {MAX_SKIPPED} events: mend its handlers, and fill another version"
        )
    entry = SkippedEvent(
        position=position, event=row.failed_event or "", error=row.error or "", by=by, note=note, at=now()
    )
    changes = _going_on()
    changes.position, changes.events, changes.skipped = position, row.events + 1, [*row.skipped, entry]
    return changes


def _going_on() -> ProjectionChanges:
    return ProjectionChanges(
        status="running", error=None, failed_position=None, failed_event=None, failed_at=None
    )
