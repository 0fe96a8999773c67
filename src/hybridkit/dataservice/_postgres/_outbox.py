"""Keep the outbox in PostgreSQL: a write adds the rows that it causes, and they are read in commit order per key."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Uuid, any_, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, insert
from sqlalchemy.sql.elements import ColumnElement

from hybridkit.codec import encode_json
from hybridkit.context import RequestContext, bind
from hybridkit.contract import Emission
from hybridkit.dataservice._outbox._protocol import (
    LEASE_SECONDS,
    SAFETY_SECONDS,
    UNCLAIMED_SECONDS,
    AcquiredLeases,
    Backlog,
    Lease,
    OutboxEntry,
    ParkedRow,
    WaitingRow,
    envelope_of,
    fair_share,
    kept_share,
)
from hybridkit.dataservice._postgres._columns import LEASES, OUTBOX
from hybridkit.dataservice._postgres._driver._pool import Pool, Session
from hybridkit.dataservice._postgres._keys import lock_number
from hybridkit.dataservice._postgres._outbox_sql import (
    BACKLOG,
    CANCEL,
    COUNT_LEASES,
    HEARTBEAT,
    MARK,
    RENEW_LEASES,
    TAKE_FREE,
    WAITING,
)
from hybridkit.dataservice._store._keys import RETENTION

PATIENCE_SECONDS: Final = 3.0
"""How long the relay waits for the database; much shorter than its leases last."""
CLEAN_ROWS: Final = 1000
MAX_REASON_LENGTH: Final = 500

_COLUMNS: Final = OUTBOX.c
_IS_PARKED: Final = _COLUMNS.parked_at.is_not(None)


async def add_emissions(session: Session, emissions: Sequence[Emission], *, service: str) -> None:
    """Add events and commands to the outbox, except for those that are in it already.

    The keys are locked until the commit, before the rows get their numbers: of two transactions with one key the one
    that commits first has the lower numbers.

    Args:
        session: the transaction that emits them.
        emissions: the events and commands, in their order.
        service: the service that emits them.
    """
    if not emissions:
        return
    if locks := ordering_locks(emissions):
        numbers = func.unnest(literal(locks, ARRAY(BIGINT))).column_valued("number")
        await session.execute(select(func.pg_advisory_xact_lock(numbers)))
    rows = outbox_rows(emissions, service=service)
    await session.execute(
        insert(OUTBOX).values(rows).on_conflict_do_nothing(index_elements=[_COLUMNS.event_id])
    )


async def cancel_emissions(session: Session, event_ids: Sequence[UUID], *, service: str) -> None:
    """Take back events and commands of the service whose time has not come, so that they are not published."""
    if event_ids:
        bound = CANCEL.bindparams(event_ids=list(event_ids), service=service_member(service))
        await session.execute(bound)


def service_member(service: str) -> str:
    """Return the sender's name as it stands in an envelope, up to the next member."""
    return f"{encode_json(service).decode()},"


def ordering_locks(emissions: Sequence[Emission]) -> list[int]:
    """Return the advisory locks of the keys, sorted, so that two transactions can't wait for each other."""
    # Not to be renamed: during a deployment two releases must ask for the same lock.
    return sorted({lock_number("lane", emission.key) for emission in emissions if emission.key is not None})


def outbox_rows(emissions: Sequence[Emission], *, service: str) -> list[dict[str, Any]]:
    """Return rows of `hk_outbox` by column; the other columns have defaults.

    Take the `ordering_locks` before the rows get their numbers.
    """
    return [
        {
            "event_id": emission.event_id,
            "event_type": emission.event_type,
            "key": emission.key,
            "queue": emission.queue,
            "request_id": emission.request_id,
            "user_id": emission.user_id,
            "body": envelope_of(emission, service=service),
            "not_before": emission.not_before,
            "traceparent": emission.traceparent,
            "tracestate": emission.tracestate,
        }
        for emission in emissions
    ]


class PostgresOutbox:
    """The outbox as the relay and people see it.

    Args:
        pool: connections of the relay's own, so that a busy service doesn't keep events waiting.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"PostgresOutbox({self._pool!r})"

    # ── leases ────────────────────────────────────────────────────────────────────────────────────

    async def renew_leases(self, owner: str) -> AcquiredLeases:
        """Send a heartbeat, renew the leases of this replica, and take free partitions up to its share."""
        asked = time.monotonic()
        async with self._session() as session:
            await session.execute(HEARTBEAT.bindparams(owner=owner))
            free, *others = [row[0] for row in await session.execute(COUNT_LEASES.bindparams(owner=owner))]
            mine = await session.execute(RENEW_LEASES.bindparams(owner=owner))
            room = fair_share(1 + len(others)) - len(mine)
            take = (
                {"room": room, "free_seconds": 0}
                if room > 0
                else {"room": 1, "free_seconds": UNCLAIMED_SECONDS}
            )
            taken = await session.execute(TAKE_FREE.bindparams(owner=owner, **take))
        # From before the round trip: the database may have renewed them at any time since.
        valid_until = asked + LEASE_SECONDS - SAFETY_SECONDS
        leases = [Lease(partition, fence, valid_until) for partition, fence in (*mine, *taken)]
        return AcquiredLeases(leases, kept_share(len(leases), others, free=free - len(taken)))

    async def release_leases(self, owner: str, partitions: Collection[int] | None = None) -> None:
        """Give partitions back, or all of them together with the heartbeat."""
        mine = (LEASES.c.owner == owner) & LEASES.c.name.startswith("relay.partition.")
        if partitions is not None:
            mine &= LEASES.c.name.in_([f"relay.partition.{partition:02}" for partition in partitions])
        async with self._session() as session:
            await session.execute(update(LEASES).where(mine).values(owner="", expires_at=func.now()))
            if partitions is None:
                await session.execute(delete(LEASES).where(LEASES.c.name == f"relay.replica.{owner}"))

    # ── rows ──────────────────────────────────────────────────────────────────────────────────────

    async def waiting(
        self, partitions: Collection[int], *, without: Collection[str], limit: int
    ) -> Sequence[WaitingRow]:
        """Return the oldest rows of these partitions whose time has come, by sequence, without some ordering keys."""
        asked = WAITING.bindparams(partitions=sorted(partitions), without=sorted(without), most=limit)
        async with self._session() as session:
            rows = await session.execute(asked)
        return [WaitingRow(**row._asdict()) for row in rows]

    async def mark(
        self, leases: Sequence[Lease], *, published: Sequence[WaitingRow], parked: Sequence[ParkedRow]
    ) -> Collection[int]:
        """Record what became of rows, and return the partitions that another replica has by now."""
        asked = MARK.bindparams(
            partitions=[lease.partition for lease in leases],
            fences=[lease.fence for lease in leases],
            published=[row.sequence for row in published],
            published_of=[row.partition for row in published],
            parked=[each.row.sequence for each in parked],
            parked_of=[each.row.partition for each in parked],
            reasons=[each.reason[:MAX_REASON_LENGTH] for each in parked],
        )
        async with self._session() as session:
            held = {row[0] for row in await session.execute(asked)}
        return {lease.partition for lease in leases} - held

    async def backlog(self, partitions: Collection[int]) -> Backlog:
        """Return the backlog of these partitions."""
        async with self._session() as session:
            [row] = await session.execute(BACKLOG.bindparams(partitions=sorted(partitions)))
        return Backlog(waiting=row.waiting, parked=row.parked, lag_seconds=float(row.lag_seconds))

    async def changed(self, *, timeout_seconds: float) -> None:
        """Wait until this process has added rows, at most for that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Tell the relay that this process has added rows."""
        self._changed.set()

    async def clean(self) -> int:
        """Delete a batch of rows published a while ago and the heartbeats of dead replicas; return how many rows."""
        published = (
            select(_COLUMNS.sequence)
            .where(_COLUMNS.published_at < func.now() - RETENTION)
            .limit(CLEAN_ROWS)
            .with_for_update(skip_locked=True)
        )
        gone = (
            select(LEASES.c.name)
            .where(LEASES.c.name.startswith("relay.replica."), LEASES.c.expires_at < func.now())
            .with_for_update(skip_locked=True)
        )
        async with self._session() as session:
            await session.execute(delete(LEASES).where(LEASES.c.name.in_(gone)))
            rows = await session.execute(
                delete(OUTBOX).where(_COLUMNS.sequence.in_(published)).returning(_COLUMNS.sequence)
            )
        return len(rows)

    # ── for people ────────────────────────────────────────────────────────────────────────────────

    async def entries(
        self, *, parked: bool, event_type: str | None = None, event_ids: Collection[UUID] = (), limit: int
    ) -> Sequence[OutboxEntry]:
        """Return parked rows, or waiting ones, by sequence."""
        state = _IS_PARKED if parked else _COLUMNS.parked_at.is_(None) & _COLUMNS.published_at.is_(None)
        shown = [_COLUMNS[name] for name in OutboxEntry.__slots__]
        statement = select(*shown).where(state, *_filters(event_type, event_ids))
        async with self._session() as session:
            rows = await session.execute(statement.order_by(_COLUMNS.sequence).limit(limit))
        return [OutboxEntry(**row._asdict()) for row in rows]

    async def retry(self, *, event_type: str | None = None, event_ids: Collection[UUID] = ()) -> int:
        """Let parked rows wait again, in their old order, and return their number."""
        parked = update(OUTBOX).where(_IS_PARKED, *_filters(event_type, event_ids))
        async with self._session() as session:
            rows = await session.execute(
                parked.values(parked_at=None, reason=None).returning(_COLUMNS.sequence)
            )
        return len(rows)

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session]:
        with bind(RequestContext().within(PATIENCE_SECONDS)):
            async with self._pool.session() as session:
                yield session


def _filters(event_type: str | None, event_ids: Collection[UUID]) -> Sequence[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = []
    if event_type is not None:
        filters.append(_COLUMNS.event_type == event_type)
    if event_ids:
        filters.append(_COLUMNS.event_id == any_(literal(list(event_ids), ARRAY(Uuid))))
    return filters
