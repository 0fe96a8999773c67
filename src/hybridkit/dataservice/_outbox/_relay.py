"""The relay: takes waiting events out of the outbox, publishes them, and marks them once the broker has confirmed.

Each replica does it for its own partitions of the keys, by leases. Events with one key form a lane: one after another,
each confirmed before the next is sent. Lanes run side by side, and a failure stops its own lane only. Nothing in the
database is locked while the broker is asked, and a crash between the confirm and the mark publishes the same event
again, by the same id.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, Self
from uuid import UUID

from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._outbox._leases import Holdings
from hybridkit.dataservice._outbox._protocol import Backlog, Lease, Outbox, Parked, Waiting
from hybridkit.errors import (
    HybridkitError,
    InvalidRequestError,
    PayloadError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.observability import get_logger, in_trace, metrics
from hybridkit.retry import Retry

__all__ = ["Publisher", "Relay"]

POLL_SECONDS: Final = 0.25
"""How soon an event is seen that another replica has stored, where it is the first one for a while."""
BUSY_POLL_SECONDS: Final = 0.03
"""How soon right after another one; each look that finds nothing doubles it."""
IDLE_SECONDS: Final = 1.0
"""How soon a replica without partitions asks for some."""
PUBLISH_SECONDS: Final = 10.0
DATABASE_PAUSE_SECONDS: Final = 1.0
COALESCE_SECONDS: Final = 0.01
"""How long to wait for more lanes to end, so that they are marked together."""
BACKLOG_SECONDS: Final = 5.0
"""How often the backlog is measured."""
FORGET_SECONDS: Final = 60.0
"""How long after a pause the failures before it still count."""
STOP_SECONDS: Final = 5.0
MAX_ROWS: Final = 100
MAX_LANES: Final = 200
MAX_LOGGED_CHARS: Final = 255

_NOTHING: Final = Backlog(waiting=0, parked=0, lag_seconds=0.0)
_BACKOFF: Final = Retry.exponential(first_seconds=0.5, cap_seconds=30.0)
_log = get_logger("hybridkit.relay")


class Publisher(Protocol):
    """What the relay needs of the broker; `hybridkit.messaging.RobustPublisher` is one."""

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> object:
        """Return when the broker has stored and routed the message; raise a `HybridkitError` otherwise."""
        ...


@dataclass(slots=True)
class _Pause:
    """After failures in a row: nothing until a `time.monotonic()` instant, later each time."""

    failures: int = 0
    until: float = 0.0

    def extend(self) -> None:
        self.failures += 1
        # From half of the bound upwards: an immediate retry of what has just failed helps nobody.
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load # nosec B311
        self.until = time.monotonic() + _BACKOFF.bound_seconds(self.failures) * jitter

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self.until

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until + FORGET_SECONDS


@dataclass(slots=True)
class _Lane:
    """Rows of one key that are being published."""

    partition: int
    task: asyncio.Task[None]


class Relay:
    """Publishes what waits in an outbox, inside its `async with` block.

    Any number of replicas may run one on the same outbox. While the broker or the database is away it waits; what it
    could not finish is found again, and published again, by whoever comes next.

    Args:
        outbox: where events wait.
        publisher: what publishes them; used by many lanes at a time.
    """

    def __init__(self, outbox: Outbox, publisher: Publisher) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._held = Holdings(outbox)
        self._measure_at = 0.0
        self._poll_seconds = BUSY_POLL_SECONDS
        self._lanes: dict[str, _Lane] = {}
        self._pauses: defaultdict[str, _Pause] = defaultdict(_Pause)
        self._broker = _Pause()
        self._published: list[Waiting] = []
        self._parked: list[Parked] = []
        self._stopping = False
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Relay(partitions={sorted(self._held.partitions)}, lanes={len(self._lanes)})"

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name="hybridkit relay")
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Finish what is being published, mark it, and let other replicas take over at once."""
        self._stopping = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        if self._lanes:
            _done, late = await asyncio.wait(self._tasks(), timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        with suppress(HybridkitError):  # then the leases run out, and what is not marked is published again
            await self._mark()
            await self._held.leave()

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
        """One turn. First what is done is marked, so that no row is taken up that is published already."""
        await self._held.renew(busy={lane.partition for lane in self._lanes.values()})
        # Taken before: a lane that ends while others are marked has confirmed rows without a mark.
        ended = [name for name, lane in self._lanes.items() if lane.task.done()]
        await self._mark()
        for name in ended:
            del self._lanes[name]
        if self._held.open and not self._broker.is_on and len(self._lanes) < MAX_LANES:
            lanes = await self._take()
            self._poll_seconds = BUSY_POLL_SECONDS if lanes else min(2 * self._poll_seconds, POLL_SECONDS)
            self._begin(lanes)
        if time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + BACKLOG_SECONDS
            held = self._held.partitions
            _show(await self._outbox.backlog(held) if held else _NOTHING)

    async def _wait(self) -> None:
        """Until there may be something to do: a lane ended, rows came, or a while has passed."""
        seconds = self._poll_seconds if self._held.partitions else IDLE_SECONDS
        changed = asyncio.create_task(self._outbox.changed(timeout_seconds=seconds))
        try:
            await asyncio.wait({changed, *self._tasks()}, return_when=asyncio.FIRST_COMPLETED)
            if self._lanes:
                await asyncio.wait(self._tasks(), timeout=COALESCE_SECONDS)
        finally:
            changed.cancel()

    def _tasks(self) -> Sequence[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values()]

    async def _take(self) -> dict[str, list[Waiting]]:
        """Waiting rows by lane, none of a lane that is at work or has to pause."""
        for name in [name for name, pause in self._pauses.items() if pause.is_over]:
            del self._pauses[name]
        paused = {name for name, pause in self._pauses.items() if pause.is_on}
        rows = await self._outbox.waiting(
            self._held.open, without=paused | self._lanes.keys(), limit=MAX_ROWS
        )
        lanes: defaultdict[str, list[Waiting]] = defaultdict(list)
        for row in rows:
            lanes[row.lane].append(row)
        return lanes

    def _begin(self, lanes: dict[str, list[Waiting]]) -> None:
        leases = {lease.partition: lease for lease in self._held.of(self._held.open)}
        for name, rows in lanes.items():
            if lease := leases.get(rows[0].partition):
                task = asyncio.create_task(self._publish_lane(name, rows, lease))
                self._lanes[name] = _Lane(lease.partition, task)

    async def _publish_lane(self, name: str, rows: Sequence[Waiting], lease: Lease) -> None:
        """Publish one row after another, until one has to wait or the lease is over."""
        for row in rows:
            left = min(self._held.seconds_left(lease), PUBLISH_SECONDS)
            if self._stopping or left <= 0 or self._broker.is_on:
                return
            if not await self._publish(name, row, seconds=left):
                return

    async def _publish(self, lane: str, row: Waiting, *, seconds: float) -> bool:
        """Whether the lane may go on. A row whose fate is unknown is published again, as the same event."""
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
            if not self._broker.is_on:  # of many lanes that fail together, one counts
                self._broker.extend()
                _log.warning("the relay waits for the broker", reason=str(error))
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, only this lane has to wait
            self._hold_up(lane, row, error)
            return False
        else:
            self._published.append(row)
        self._pauses.pop(lane, None)
        if self._broker.failures:  # it is back: what failed meanwhile needn't sit out its own interval
            self._broker = _Pause()
            self._pauses.clear()
        return True

    def _hold_up(self, lane: str, row: Waiting, error: Exception) -> None:
        self._pauses[lane].extend()
        expected = isinstance(error, HybridkitError | TimeoutError)
        _log.warning(
            "an event was not published and holds up its key",
            event_type=row.event_type,
            event_id=str(row.event_id),
            request_id=row.request_id[:MAX_LOGGED_CHARS],
            failures=self._pauses[lane].failures,
            reason=f"{type(error).__name__}: {error}",
            exc_info=None if expected else error,
        )

    def _park(self, row: Waiting, error: HybridkitError) -> None:
        self._parked.append(Parked(row, f"{error.code}: {error}"))
        _log.error(
            "an event can't be published and is parked",
            event_type=row.event_type,
            event_id=str(row.event_id),
            request_id=row.request_id[:MAX_LOGGED_CHARS],
            reason=str(error),
        )

    async def _mark(self) -> None:
        published, parked = tuple(self._published), tuple(self._parked)
        rows = [*published, *(each.row for each in parked)]
        if not rows:
            return
        partitions = {row.partition for row in rows}
        leases = self._held.of(partitions)
        lost = partitions - {lease.partition for lease in leases}
        if leases:
            lost |= set(
                await self._outbox.mark(
                    leases,
                    published=[row for row in published if row.partition not in lost],
                    parked=[each for each in parked if each.row.partition not in lost],
                )
            )
        del self._published[: len(published)], self._parked[: len(parked)]
        if lost:
            self._held.lose(lost)
            _log.warning(
                "other replicas have these partitions; what this one published may be published twice",
                partitions=sorted(lost),
                events=sum(row.partition in lost for row in rows),
            )


def _trace(row: Waiting) -> dict[str, str]:
    trace = {"traceparent": row.traceparent, "tracestate": row.tracestate}
    return {name: value for name, value in trace.items() if value is not None}


def _show(backlog: Backlog) -> None:
    metrics.outbox_pending.set(backlog.waiting)
    metrics.outbox_parked.set(backlog.parked)
    metrics.outbox_lag.set(backlog.lag_seconds)
