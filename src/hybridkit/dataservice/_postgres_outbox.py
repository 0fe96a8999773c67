"""The outbox in PostgreSQL: rows go in with the write that causes them, and out in commit order per key."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Integer, Text, any_, func, literal, not_, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, insert

from hybridkit.codec import encode_json, format_timestamp
from hybridkit.context import RequestContext, bind
from hybridkit.contract import Emission
from hybridkit.dataservice._postgres_columns import LEASES, OUTBOX
from hybridkit.dataservice._postgres_database import Database, Session
from hybridkit.dataservice._postgres_keys import lock_number
from hybridkit.dataservice._single_outbox import Backlog, Lease, Parked, Waiting

__all__ = ["PostgresOutbox", "add_emissions"]

LEASE_NAME: Final = "relay"
LEASE_SECONDS: Final = 10.0
SAFETY_SECONDS: Final = 1.0
"""How long before others may take over that an owner stops publishing."""
PATIENCE_SECONDS: Final = 3.0
"""How long the relay waits for the database; well within its lease."""
MAX_REASON_LENGTH: Final = 500

_IS_WAITING: Final = OUTBOX.c.published_at.is_(None) & OUTBOX.c.parked_at.is_(None)
_LANE: Final = func.coalesce(OUTBOX.c.key, sql_cast(OUTBOX.c.event_id, Text))


async def add_emissions(session: Session, emissions: Sequence[Emission], *, service: str) -> None:
    """Put events and commands into the outbox; one that has been there already is left out.

    The keys are locked until the commit, before the rows get their numbers: of two transactions with one key the one
    that commits first has the lower numbers. They are sorted, so that two transactions can't wait for each other.

    Args:
        session: of the transaction that causes them.
        emissions: in their order.
        service: whose events they are.
    """
    if not emissions:
        return
    locks = sorted({lock_number("lane", emission.key) for emission in emissions if emission.key is not None})
    if locks:
        numbers = func.unnest(literal(locks, ARRAY(BIGINT))).column_valued("number")
        await session.execute(select(func.pg_advisory_xact_lock(numbers)))
    rows = [_row(emission, service) for emission in emissions]
    await session.execute(
        insert(OUTBOX).values(rows).on_conflict_do_nothing(index_elements=[OUTBOX.c.event_id])
    )


class PostgresOutbox:
    """The relay's side of the outbox.

    Args:
        database: of the relay's own, so that a busy service doesn't keep events waiting.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"PostgresOutbox({self._database!r})"

    async def acquire(self, owner: str) -> Lease | None:
        """Take the lease, or renew it; None while somebody else has it."""
        asked = time.monotonic()
        ours = insert(LEASES).values(
            name=LEASE_NAME, owner=owner, fence=1, expires_at=func.now() + timedelta(seconds=LEASE_SECONDS)
        )
        changed_hands = sql_cast(LEASES.c.owner != owner, Integer)  # there is no way from boolean to bigint
        statement = ours.on_conflict_do_update(
            index_elements=[LEASES.c.name],
            set_={
                "owner": owner,
                "fence": LEASES.c.fence + changed_hands,
                "expires_at": ours.excluded.expires_at,
            },
            where=(LEASES.c.owner == owner) | (LEASES.c.expires_at < func.now()),
        )
        async with self._session() as session:
            rows = await session.execute(statement.returning(LEASES.c.fence))
        return Lease(rows[0][0], asked + LEASE_SECONDS - SAFETY_SECONDS) if rows else None

    async def release(self, owner: str) -> None:
        """Give the lease back, so that another replica needn't wait until it runs out."""
        mine = (LEASES.c.name == LEASE_NAME) & (LEASES.c.owner == owner)
        async with self._session() as session:
            await session.execute(
                update(LEASES).where(mine).values(expires_at=func.now() - timedelta(seconds=1))
            )

    async def waiting(self, *, without: Collection[str], limit: int) -> Sequence[Waiting]:
        """The oldest waiting rows, by sequence, without those of some lanes."""
        columns = OUTBOX.c
        statement = (
            select(
                columns.sequence,
                _LANE,
                columns.event_id,
                columns.event_type,
                columns.queue,
                columns.request_id,
                columns.user_id,
                columns.body,
            )
            .where(_IS_WAITING)
            .order_by(columns.sequence)
            .limit(limit)
        )
        if without:
            statement = statement.where(not_(any_(literal(sorted(without), ARRAY(Text))) == _LANE))
        async with self._session() as session:
            rows = await session.execute(statement)
        names = ("sequence", "lane", "event_id", "event_type", "queue", "request_id", "user_id", "body")
        return [Waiting(**dict(zip(names, row, strict=True))) for row in rows]

    async def backlog(self) -> Backlog:
        """How much there is."""
        age = func.extract("epoch", func.clock_timestamp() - OUTBOX.c.created_at)
        waiting = select(func.count()).select_from(OUTBOX).where(_IS_WAITING).scalar_subquery()
        parked = (
            select(func.count()).select_from(OUTBOX).where(OUTBOX.c.parked_at.is_not(None)).scalar_subquery()
        )
        oldest = select(age).where(_IS_WAITING).order_by(OUTBOX.c.sequence).limit(1).scalar_subquery()
        async with self._session() as session:
            [row] = await session.execute(select(waiting, parked, func.coalesce(oldest, 0)))
        return Backlog(waiting=row[0], parked=row[1], lag_seconds=float(row[2]))

    async def changed(self, *, timeout_seconds: float) -> None:
        """Return when this process has added rows, and in any case after that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """This process has added rows."""
        self._changed.set()

    async def mark(self, lease: Lease, *, published: Sequence[int], parked: Sequence[Parked]) -> bool:
        """Record what became of rows; False, with nothing recorded, for a lease that somebody else has by now."""
        held = select(LEASES.c.fence).where(LEASES.c.name == LEASE_NAME, LEASES.c.fence == lease.fence)
        async with self._session() as session:
            if not await session.execute(held.with_for_update(read=True)):
                return False
            if published:
                done = OUTBOX.c.sequence == any_(literal(list(published), ARRAY(BIGINT)))
                await session.execute(update(OUTBOX).where(done).values(published_at=func.now()))
            for row in parked:
                await session.execute(
                    update(OUTBOX)
                    .where(OUTBOX.c.sequence == row.sequence)
                    .values(parked_at=func.now(), reason=row.reason[:MAX_REASON_LENGTH])
                )
        return True

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session]:
        with bind(RequestContext().within(PATIENCE_SECONDS)):
            async with self._database.session() as session:
                yield session


def _row(emission: Emission, service: str) -> dict[str, Any]:
    return {
        "event_id": emission.event_id,
        "event_type": emission.event_type,
        "key": emission.key,
        "queue": emission.queue,
        "request_id": emission.request_id,
        "user_id": emission.user_id,
        "body": _envelope(emission, service),
    }


def _envelope(emission: Emission, service: str) -> bytes:
    """The bytes that are published, as `EventEnvelope.encode` writes them; this service doesn't know the types."""
    wire: dict[str, Any] = {
        "event_type": emission.event_type,
        "event_id": emission.event_id,
        "timestamp": format_timestamp(emission.timestamp),
        "service": service,
        "request_id": emission.request_id,
        "user_id": emission.user_id,
        "data": emission.data,
    }
    if emission.version != 1:
        wire["version"] = emission.version
    return encode_json(wire)
