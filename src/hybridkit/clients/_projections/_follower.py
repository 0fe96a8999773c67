"""Follow a stream with one projection: read its log, fold what happened, and commit it with the position.

The position's row is changed only in the state in which it was read. Effect and position are one commit, so each event
counts once after any crash; and of two runners of one projection one is refused, and waits, without any election.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hybridkit._tasks import TaskSet, is_set_within
from hybridkit.clients._client import PostgresDataClient
from hybridkit.clients._projections._commits import commit
from hybridkit.codec import now
from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    HybridkitError,
    MisuseError,
    NoRouteError,
    NotFoundError,
    RejectedError,
    StaleVersionError,
    UnauthenticatedError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.observability import get_logger, metrics
from hybridkit.streams import LogPage, Projection, RecordedEvent
from hybridkit.streams._changes import Fold
from hybridkit.streams._positions import PROJECTIONS, ProjectionChanges, ProjectionFields, ProjectionRow

MAX_ERROR_CHARS: Final = 2000
MAX_FOLDED: Final = 1000
"""The most events of one commit, so that the loop of the process is not kept for long."""

_NOT_THE_EVENT: Final = (AccessDeniedError, NoRouteError, StaleVersionError, UnauthenticatedError)
"""Errors that blame the deployment or another runner, and would be the same for any event."""

_log = get_logger("hybridkit.projections")

type ReadLog = Callable[[str | None], Awaitable[LogPage]]
"""Reads the page of the log behind a position; None for the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """The seconds between two looks.

    Attributes:
        shortest: after the last event of the log, when another is likely.
        longest: after a while without an event.
        standby: where another runner is ahead; and while the projection has failed.
        away: after an error of the data service, doubling up to ten times as long.
    """

    shortest: float = 0.02
    longest: float = 0.5
    standby: float = 2.0
    away: float = 0.5


class _Failure(NamedTuple):
    """An event that a projection can't count, and why."""

    event: RecordedEvent
    error: Exception


class Follower:
    """One projection in this process.

    Args:
        projection: the projection.
        client: the client of the data service that has its position and its records.
        read: reads the log of its stream.
        pauses: the times between two looks.
    """

    def __init__(
        self,
        projection: Projection,
        client: PostgresDataClient,
        read: ReadLog,
        *,
        pauses: Pauses | None = None,
    ) -> None:
        self.projection = projection
        self._client = client
        self._read = read
        self._pauses = pauses or Pauses()
        self._handled = frozenset(event.message_type for event in projection.events)
        self._stopping = asyncio.Event()
        self._row: ProjectionRow | None = None
        self._ahead: int | None = None
        self._away: Exception | None = None
        self._away_seconds = self._pauses.away
        self._idle_seconds = self._pauses.shortest
        self._limit = MAX_FOLDED
        self._reads = TaskSet()
        self._next: tuple[str | None, asyncio.Task[LogPage]] | None = None
        self._is_caught_up = False

    def __repr__(self) -> str:
        return f"Follower({self.projection!r})"

    @property
    def is_caught_up(self) -> bool:
        """Whether it has counted every event that was there at its last look."""
        return self._is_caught_up

    @property
    def is_standby(self) -> bool:
        """Whether another runner is ahead, so that this one waits."""
        return self._ahead is not None

    def stop(self) -> None:
        """Begin no further commit."""
        self._stopping.set()

    async def run(self) -> None:
        """Follow the log until `stop`; errors are logged and waited out, and never end it."""
        try:
            while not self._stopping.is_set():
                with bind(RequestContext()):
                    pause = await self.look()
                if pause:
                    await is_set_within(self._stopping, seconds=pause)
                else:
                    await asyncio.sleep(0)  # others of this process are served between two commits
        finally:
            self._forget()
            await self._reads.cancel()

    async def look(self) -> float:
        """Count the events that are there now, a page at most, and return the seconds until the next look."""
        try:
            pause = await self._look()
        except StaleVersionError:
            return self._stand_by()
        except Exception as error:  # noqa: BLE001 - a projection that ended silently would be the worst of all
            return self._note_away(error)
        if self._away is not None:
            _log.info("the projection goes on", projection=self.projection.id)
        self._away, self._away_seconds = None, self._pauses.away
        return pause

    def probe(self) -> str:
        """Return the projection's state in one sentence, for `/ready`.

        Raises:
            UnavailableError: it has failed at an event, or its data service doesn't answer.
        """
        if self._away is not None:
            raise UnavailableError(f"it waits for its data service: {self._away}") from self._away
        row = self._row
        if row is not None and row.status == "failed":
            raise UnavailableError(f"it has failed at {row.failed_event}: {row.error}")
        if self._ahead is not None:
            return "another replica runs it"
        return f"{0 if row is None else row.events} events" + ("" if self._is_caught_up else ", catching up")

    async def _look(self) -> float:
        if self._row is None or self._ahead is not None or self._row.status == "failed":
            row = await self._read_row()
            if self._ahead is not None and row.version != self._ahead:
                self._ahead = row.version
                return self._pauses.standby
            self._take(row)
            if row.status == "failed":
                return self._pauses.standby
        page = await self._page()
        if not page.events:
            return self._idle()
        self._idle_seconds = self._pauses.shortest
        self._is_caught_up = False
        await self._count(page)
        return 0.0

    # ── the row ──────────────────────────────────────────────────────────────────────────────────

    async def _read_row(self) -> ProjectionRow:
        projection = self.projection
        try:
            row = await self._client.get_or_none(PROJECTIONS, projection.id)
            if row is not None:
                return row
            fields = ProjectionFields(
                name=projection.name, projection_version=projection.version, source=projection.source.name
            )
            return await self._client.create(PROJECTIONS, fields, id=projection.id)
        except UniqueViolationError:  # another runner was first
            return await self._client.get(PROJECTIONS, projection.id)
        except NotFoundError as error:
            raise DeclarationError(
                "the data service keeps no positions of projections: declare"
                " create_data_service(…, {…, **projection_tables()})"
            ) from error

    def _take(self, row: ProjectionRow) -> None:
        if row.source != self.projection.source.name:
            raise DeclarationError(
                f"projection {row.id} reads {row.source}, not {self.projection.source.name}: give this one another"
                " name, or another version"
            )
        if self._row is None or row.position != self._row.position:
            self._forget()
        self._row, self._ahead = row, None
        metrics.projection_state.labels(*self._labels).set(2 if row.status == "failed" else 0)

    def _stand_by(self) -> float:
        """Leave the projection to the runner that is ahead, until its row rests for as long as one pause."""
        if self._ahead is None:
            _log.info("another replica runs the projection", projection=self.projection.id)
        self._ahead, self._row = -1, None
        metrics.projection_state.labels(*self._labels).set(1)
        self._is_caught_up = False
        self._forget()
        metrics.projection_lag_events.labels(*self._labels).set(0)
        metrics.projection_lag.labels(*self._labels).set(0)
        return self._pauses.standby

    def _note_away(self, error: Exception) -> float:
        if type(error) is not type(self._away):
            unexpected = None if isinstance(error, HybridkitError) else error
            _log.warning(
                "the projection waits", projection=self.projection.id, reason=str(error), exc_info=unexpected
            )
        self._away, self._row = error, None
        self._is_caught_up = False
        self._forget()
        pause, longest = self._away_seconds, 10 * self._pauses.away
        self._away_seconds = min(2 * pause, longest)
        return pause

    # ── the log ──────────────────────────────────────────────────────────────────────────────────

    async def _page(self) -> LogPage:
        """Return the page behind the position, which is read while the one before is counted."""
        assert self._row is not None  # noqa: S101 # nosec B101 - `_look` has read it
        position = self._row.position
        reading = None if self._next is None or self._next[0] != position else self._next[1]
        self._next = None
        page = await (self._read(position) if reading is None else reading)
        if page.has_more:
            ahead = self._reads.start(self._read_ahead(page.position), name="hybridkit projection log")
            self._next = page.position, ahead
        return page

    async def _read_ahead(self, position: str | None) -> LogPage:
        return await self._read(position)

    def _forget(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
            self._next = None

    def _idle(self) -> float:
        self._is_caught_up = True
        metrics.projection_lag_events.labels(*self._labels).set(0)
        metrics.projection_lag.labels(*self._labels).set(0)
        pause = self._idle_seconds
        self._idle_seconds = min(2 * pause, self._pauses.longest)
        return pause

    # ── counting ─────────────────────────────────────────────────────────────────────────────────

    async def _count(self, page: LogPage) -> None:
        events: Sequence[RecordedEvent] = page.events
        while events and not self._stopping.is_set():
            fold, taken, failure = self._folded(events[: self._limit])
            if taken:
                try:
                    await self._commit(events[:taken], fold)
                except (RejectedError, MisuseError) as error:
                    if isinstance(error, _NOT_THE_EVENT):
                        raise
                    if taken > 1:  # one of them is to blame; fewer at a time show which
                        self._limit = max(taken // 2, 1)
                        continue
                    failure = _Failure(events[0], error)
                else:
                    events = events[taken:]
                    self._limit = min(2 * self._limit, MAX_FOLDED)
            if failure is not None:
                await self._fail(failure)
                return
            self._note_lag(page, events)
            await asyncio.sleep(0)

    def _folded(self, events: Sequence[RecordedEvent]) -> tuple[Fold, int, _Failure | None]:
        """Fold events until their changes fill a transaction, and return how many they are, and what failed behind."""
        fold = Fold()
        for index, event in enumerate(events):
            try:
                handled = event.event_type in self._handled
                if handled and not fold.take(self.projection.changes_of(event.event)):
                    return fold, index, None
            except Exception as error:  # noqa: BLE001 - handlers raise anything
                return fold, index, _Failure(event, error)
        return fold, len(events), None

    async def _commit(self, events: Sequence[RecordedEvent], fold: Fold) -> None:
        row = self._row
        assert row is not None  # noqa: S101 # nosec B101 - `_look` has read it
        fields = ProjectionChanges(
            position=events[-1].position, events=row.events + len(events), recorded_at=events[-1].recorded_at
        )
        written = {change.resource.name for change in fold.changes}
        if not written.issubset(row.resources):
            await self._check_own(written)
            fields.resources = sorted(written.union(row.resources))
        self._row = await commit(self._client, row, fields, fold.changes)
        metrics.projection_events.labels(*self._labels).inc(len(events))

    async def _check_own(self, written: set[str]) -> None:
        """Check that no other version of the projection writes to these resources: both would count there.

        Raises:
            DeclarationError: another version does.
        """
        versions = self._client.find(PROJECTIONS).where(PROJECTIONS["name"] == self.projection.name)
        async for other in versions:
            if other.id != self.projection.id and (shared := written.intersection(other.resources)):
                raise DeclarationError(
                    f"{', '.join(sorted(shared))} is filled by version {other.projection_version} already; version"
                    f" {self.projection.version} fills a resource of its own beside it"
                )

    async def _fail(self, failure: _Failure) -> None:
        """Stop at an event, until a person retries or skips it."""
        row, event, error = self._row, failure.event, failure.error
        assert row is not None  # noqa: S101 # nosec B101 - `_look` has read it
        said = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
        _log.error(
            "the projection stops at an event",
            projection=self.projection.id,
            position=event.position,
            event_type=event.event_type,
            event_id=str(event.event_id),
            reason=said,
            exc_info=None if isinstance(error, HybridkitError) else error,
        )
        fields = ProjectionChanges(
            status="failed",
            error=said,
            failed_position=event.position,
            failed_event=f"{event.event_type} version {event.event_version} {event.event_id}",
            failed_at=now(),
        )
        self._limit = MAX_FOLDED
        self._take(await commit(self._client, row, fields, ()))

    # ── metrics ──────────────────────────────────────────────────────────────────────────────────

    @property
    def _labels(self) -> tuple[str, str]:
        return self.projection.name, str(self.projection.version)

    def _note_lag(self, page: LogPage, left: Sequence[RecordedEvent]) -> None:
        row = self._row
        is_behind = bool(left) or page.has_more
        recorded_at = row.recorded_at if row is not None else None
        lag = (now() - recorded_at).total_seconds() if is_behind and recorded_at is not None else 0.0
        metrics.projection_lag.labels(*self._labels).set(max(lag, 0.0))
        metrics.projection_lag_events.labels(*self._labels).set(len(left))
