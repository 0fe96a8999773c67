"""Take waiting events out of the outbox, publish them, and mark them once the broker has confirmed.

Each replica does it for its own partitions of the ordering keys, by leases (`_partition_leases`). Events with one
ordering key are published one after another, each confirmed before the next is sent. Keys are published side by side,
and a failure stops its own key only. Nothing in the database is locked while the broker is asked, and a crash between
the confirm and the mark publishes the same event again, by the same id.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, Self
from uuid import UUID

from hybridkit._tasks import TaskSet
from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._outbox._partition_leases import PartitionLeases
from hybridkit.dataservice._outbox._protocol import Backlog, Lease, Outbox, ParkedRow, WaitingRow
from hybridkit.errors import (
    HybridkitError,
    InvalidRequestError,
    PayloadError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.observability import get_logger, in_trace, metrics
from hybridkit.retry import UNLIMITED, Retry

POLL_SECONDS: Final = 0.25
"""The longest pause between two looks for waiting rows: how late another replica's event may be seen."""
BUSY_POLL_SECONDS: Final = 0.03
"""The pause before the next look after rows were found; each look that finds nothing doubles it."""
IDLE_SECONDS: Final = 1.0
"""The pause of a replica without partitions before it asks for some again."""
PUBLISH_SECONDS: Final = 10.0
"""The longest time that one publish may take."""
DATABASE_PAUSE_SECONDS: Final = 1.0
COALESCE_SECONDS: Final = 0.01
"""How long to wait for more keys to finish, so that their rows are marked together."""
BACKLOG_SECONDS: Final = 5.0
"""The pause between two measurements of the backlog."""
FORGET_SECONDS: Final = 60.0
"""How long after a pause the failures before it still count."""
STOP_SECONDS: Final = 5.0
"""How long a publish that is under way may take once the relay stops."""
MAX_ROWS: Final = 100
MAX_BUSY_KEYS: Final = 200
MAX_LOGGED_CHARS: Final = 255

_START_CONSUMER: Final = (
    "start the service that consumes it, whose queue binds to it, then send it again: hybridkit outbox retry"
)
_CORRECT_EVENT: Final = (
    "the service that emits it makes what can't be sent; look at it by: hybridkit outbox list"
)
_NOTHING: Final = Backlog(waiting=0, parked=0, lag_seconds=0.0)
_BACKOFF: Final = Retry.exponential(first_seconds=0.5, cap_seconds=30.0, attempts=UNLIMITED)
_log = get_logger("hybridkit.relay")


class EventSink(Protocol):
    """Where a relay sends events and commands; `hybridkit.messaging.RobustPublisher` is one."""

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> object:
        """Return when the broker has stored and routed the message; raise a `HybridkitError` otherwise.

        Args:
            body: the envelope, encoded.
            event_type: the routing key of an event.
            event_id: the identity by which consumers recognize an event that is published twice.
            queue: the queue of a command; None for an event.
        """
        ...


@dataclass(slots=True)
class _Backoff:
    """Failures in a row, and the `time.monotonic()` instant before which nothing is tried again."""

    failures: int = 0
    until: float = 0.0
    pauses: Iterator[float] | None = None

    def extend(self) -> None:
        self.failures += 1
        self.pauses = self.pauses or _BACKOFF.pauses()
        self.until = time.monotonic() + next(self.pauses)

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self.until

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until + FORGET_SECONDS


@dataclass(slots=True)
class _BusyKey:
    """An ordering key whose rows are being published."""

    partition: int
    task: asyncio.Task[None]


class Relay:
    """A relay that publishes the waiting events of an outbox, inside its `async with` block.

    Any number of replicas may run one on the same outbox. While the broker or the database is away it waits; rows that
    it could not finish are found again, and published again, by whichever replica has their partition next.

    Args:
        outbox: where events wait.
        publisher: the sink to publish to; it is called for many ordering keys at a time.
    """

    def __init__(self, outbox: Outbox, publisher: EventSink) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._leases = PartitionLeases(outbox)
        self._measure_at = 0.0
        self._poll_seconds = BUSY_POLL_SECONDS
        self._busy_keys: dict[str, _BusyKey] = {}
        self._key_backoffs: defaultdict[str, _Backoff] = defaultdict(_Backoff)
        self._broker_backoff = _Backoff()
        self._published: list[WaitingRow] = []
        self._parked: list[ParkedRow] = []
        self._stopping = False
        self._running = TaskSet()

    def __repr__(self) -> str:
        return f"Relay(partitions={sorted(self._leases.partitions)}, busy_keys={len(self._busy_keys)})"

    async def __aenter__(self) -> Self:
        self._running.start(self._run(), name="hybridkit relay")
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Finish what is being published, mark it, and let other replicas take over at once."""
        self._stopping = True
        await self._running.cancel()
        if self._busy_keys:
            _done, late = await asyncio.wait(self._tasks(), timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        with suppress(HybridkitError):  # then the leases run out, and what is not marked is published again
            # In this order: the marks count only as long as the leases are this replica's.
            await self._mark()
            await self._leases.release_all()

    async def _run(self) -> None:
        while True:
            try:
                await self._step()
            except HybridkitError as error:
                _log.warning("the relay waits for the database", reason=str(error))
                await asyncio.sleep(DATABASE_PAUSE_SECONDS)
            except Exception:  # noqa: BLE001 - a defect in one turn must not end the publishing of all events
                _log.exception("the relay failed and goes on")
                await asyncio.sleep(DATABASE_PAUSE_SECONDS)
            else:
                await self._wait()

    async def _step(self) -> None:
        """Take one turn: renew the leases, mark what is done, and only then take up rows that are not marked."""
        await self._leases.renew(busy={key.partition for key in self._busy_keys.values()})
        # Before the marks, not after: a key that ends while others are marked has confirmed rows without a mark.
        # Dropped now, it would be taken up again with the same rows.
        ended = [name for name, key in self._busy_keys.items() if key.task.done()]
        await self._mark()
        for name in ended:
            del self._busy_keys[name]
        if self._leases.active and not self._broker_backoff.is_on and len(self._busy_keys) < MAX_BUSY_KEYS:
            rows = await self._waiting_rows()
            self._poll_seconds = BUSY_POLL_SECONDS if rows else min(2 * self._poll_seconds, POLL_SECONDS)
            self._start_publishing(rows)
        if time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + BACKLOG_SECONDS
            partitions = self._leases.partitions
            _show(await self._outbox.backlog(partitions) if partitions else _NOTHING)

    async def _wait(self) -> None:
        """Wait until there may be something to do: a key has finished, rows were added, or the pause is over."""
        seconds = self._poll_seconds if self._leases.partitions else IDLE_SECONDS
        changed = asyncio.create_task(self._outbox.changed(timeout_seconds=seconds))
        try:
            await asyncio.wait({changed, *self._tasks()}, return_when=asyncio.FIRST_COMPLETED)
            if self._busy_keys:
                await asyncio.wait(self._tasks(), timeout=COALESCE_SECONDS)
        finally:
            changed.cancel()

    def _tasks(self) -> Sequence[asyncio.Task[None]]:
        return [key.task for key in self._busy_keys.values()]

    async def _waiting_rows(self) -> dict[str, list[WaitingRow]]:
        """Return waiting rows by ordering key, without the keys that are busy or have to pause."""
        for name in [name for name, backoff in self._key_backoffs.items() if backoff.is_over]:
            del self._key_backoffs[name]
        paused = {name for name, backoff in self._key_backoffs.items() if backoff.is_on}
        rows = await self._outbox.waiting(
            self._leases.active, without=paused | self._busy_keys.keys(), limit=MAX_ROWS
        )
        by_key: defaultdict[str, list[WaitingRow]] = defaultdict(list)
        for row in rows:
            by_key[row.ordering_key].append(row)
        return by_key

    def _start_publishing(self, by_key: dict[str, list[WaitingRow]]) -> None:
        leases = {lease.partition: lease for lease in self._leases.of(self._leases.active)}
        for name, rows in by_key.items():
            if lease := leases.get(rows[0].partition):
                task = asyncio.create_task(self._publish_key(name, rows, lease))
                self._busy_keys[name] = _BusyKey(lease.partition, task)

    async def _publish_key(self, name: str, rows: Sequence[WaitingRow], lease: Lease) -> None:
        """Publish the rows of an ordering key in their order, until one has to wait or the lease is over."""
        for row in rows:
            # Checked before each row, by the lease that the rows were taken up under: after another replica had the
            # partition in between, it may have published them.
            left = min(self._leases.seconds_left(lease), PUBLISH_SECONDS)
            if self._stopping or left <= 0 or self._broker_backoff.is_on:
                return
            if not await self._publish(name, row, seconds=left):
                return

    async def _publish(self, key: str, row: WaitingRow, *, seconds: float) -> bool:
        """Publish or park a row, and return whether its key may go on.

        A row whose fate is unknown is published again later, as the same event.
        """
        try:
            context = RequestContext(request_id=row.request_id, user_id=row.user_id).within(seconds)
            with bind(context), in_trace(_trace(row)):
                async with asyncio.timeout(seconds + 1):  # the publisher keeps to the deadline, if it is ours
                    await self._publisher.publish_encoded(
                        row.body, event_type=row.event_type, event_id=row.event_id, queue=row.queue
                    )
        except (UnroutableError, PayloadError, InvalidRequestError) as error:  # it never could be sent
            self._park(row, error)
        except UnavailableError as error:
            if not self._broker_backoff.is_on:  # of many keys that fail together, one counts
                self._broker_backoff.extend()
                _log.warning("the relay waits for the broker", reason=str(error))
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, only this key has to wait
            self._pause_key(key, row, error)
            return False
        else:
            self._published.append(row)
        self._key_backoffs.pop(key, None)
        if (
            self._broker_backoff.failures
        ):  # it is back: what failed meanwhile needn't sit out its own interval
            self._broker_backoff = _Backoff()
            self._key_backoffs.clear()
        return True

    def _pause_key(self, key: str, row: WaitingRow, error: Exception) -> None:
        self._key_backoffs[key].extend()
        expected = isinstance(error, HybridkitError | TimeoutError)
        _log.warning(
            "an event was not published and holds up its key",
            event_type=row.event_type,
            event_id=str(row.event_id),
            request_id=row.request_id[:MAX_LOGGED_CHARS],
            failures=self._key_backoffs[key].failures,
            reason=f"{type(error).__name__}: {error}",
            exc_info=None if expected else error,
        )

    def _park(self, row: WaitingRow, error: HybridkitError) -> None:
        self._parked.append(ParkedRow(row, f"{error.code}: {error}"))
        is_unwanted = isinstance(
            error, UnroutableError
        )  # the order of a deploy, most often, and nothing is lost
        report = _log.warning if is_unwanted else _log.error
        report(
            "an event can't be published and is parked",
            event_type=row.event_type,
            event_id=str(row.event_id),
            request_id=row.request_id[:MAX_LOGGED_CHARS],
            reason=str(error),
            remedy=_START_CONSUMER if is_unwanted else _CORRECT_EVENT,
        )

    async def _mark(self) -> None:
        """Mark the rows that the broker has confirmed and those to park, as far as their partitions are still ours."""
        # Keys go on publishing while the database is asked: only what is in these copies is taken off the lists.
        published, parked = tuple(self._published), tuple(self._parked)
        rows = [*published, *(each.row for each in parked)]
        if not rows:
            return
        partitions = {row.partition for row in rows}
        leases = self._leases.of(partitions)
        lost = partitions - {lease.partition for lease in leases}
        if leases:
            lost |= set(
                await self._outbox.mark(
                    leases,
                    published=[row for row in published if row.partition not in lost],
                    parked=[each for each in parked if each.row.partition not in lost],
                )
            )
        # Only now: had the database failed, the next turn would mark them.
        del self._published[: len(published)], self._parked[: len(parked)]
        if lost:
            self._leases.forget(lost)
            _log.warning(
                "other replicas have these partitions; what this one published may be published twice",
                partitions=sorted(lost),
                events=sum(row.partition in lost for row in rows),
            )


def _trace(row: WaitingRow) -> dict[str, str]:
    trace = {"traceparent": row.traceparent, "tracestate": row.tracestate}
    return {name: value for name, value in trace.items() if value is not None}


def _show(backlog: Backlog) -> None:
    metrics.outbox_pending.set(backlog.waiting)
    metrics.outbox_parked.set(backlog.parked)
    metrics.outbox_lag.set(backlog.lag_seconds)
