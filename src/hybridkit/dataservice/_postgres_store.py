"""The contract's store on PostgreSQL: reads, and writes that happen once per idempotency key."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import delete, func, select, tuple_

from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._in_flight import PATIENCE_SECONDS, InFlight
from hybridkit.dataservice._keys import RETENTION, count, replayed
from hybridkit.dataservice._operations import AnyResource, Document, Outcome, Write
from hybridkit.dataservice._postgres_apply import apply
from hybridkit.dataservice._postgres_columns import KEYS, OUTBOX, SECRETS
from hybridkit.dataservice._postgres_database import Database
from hybridkit.dataservice._postgres_errors import query_error
from hybridkit.dataservice._postgres_filters import Ordering, condition
from hybridkit.dataservice._postgres_keys import claim_key, record_key
from hybridkit.dataservice._postgres_migrations import History, histories_of, migrate, missing_revisions
from hybridkit.dataservice._postgres_outbox import PostgresOutbox, add_emissions
from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.dataservice._store import Found
from hybridkit.errors import ConflictError, InProgressError, RejectedError, UnavailableError
from hybridkit.queries import Query

__all__ = ["POOL_SIZE", "PostgresStore", "open_postgres_store"]

POOL_SIZE: Final = 10
OWN_POOL_SIZE: Final = 3
"""For the relay, readiness and housekeeping, which must work while requests take every other connection."""
CHECK_SECONDS: Final = 0.9
POLL_SECONDS: Final = 0.04
"""How long to leave a key at most that another process has, before it is asked for again."""
MAX_RETRIES: Final = 3
RETRY_SECONDS: Final = 0.02
CLEAN_ROWS: Final = 1000


class PostgresStore:
    """One PostgreSQL database behind the contract.

    Args:
        database: for requests.
        own: for what must work while requests take every connection.
        tables: by the resource's name.
        histories: whose newest revisions the database has to have.
    """

    def __init__(
        self,
        database: Database,
        own: Database,
        tables: Mapping[str, ResourceTable],
        histories: Sequence[History],
    ) -> None:
        self.outbox = PostgresOutbox(own)
        self._database = database
        self._own = own
        self._tables = tables
        self._histories = histories
        self._in_flight = InFlight()
        self._signing_key: bytes | None = None

    def __repr__(self) -> str:
        return f"PostgresStore({sorted(self._tables)})"

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, resource: AnyResource, record_id: Any) -> Document | None:
        """The record with that id, if there is one."""
        table = self._tables[resource.name]
        async with self._database.session() as session:
            rows = await session.execute(
                select(*table.all).where(table["id"] == record_id), meaning=query_error
            )
        return table.document(rows[0]) if rows else None

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> Found:
        """One page of a query, by keyset: no row is skipped or seen twice, whatever is inserted meanwhile."""
        table = self._tables[resource.name]
        ordering = Ordering(table, query)
        view = table.view(query.select)
        statement = select(*view.columns, *ordering.columns).order_by(*ordering.clauses)
        if query.where is not None:
            statement = statement.where(condition(table, query.where))
        if after is not None:
            statement = statement.where(ordering.after(after))
        async with self._database.session() as session:
            rows = await session.execute(statement.limit(query.page_size + 1), meaning=query_error)
        page, more = rows[: query.page_size], len(rows) > query.page_size
        position = list(page[-1][len(view.columns) :]) if more else None
        return Found([view.document(row) for row in page], position)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def write(self, write: Write) -> Outcome:
        """Do all of it, once per caller and key; again, at most three times, where another transaction won."""

        def replay(fingerprint: bytes, outcome: Outcome) -> Outcome:
            return replayed(write, fingerprint, Outcome(outcome.results, replayed=True))

        try:
            return await self._in_flight.run(write, lambda: self._write(write), replay=replay)
        except InProgressError:
            count("in_progress")
            raise

    async def _write(self, write: Write) -> Outcome:
        give_up = time.monotonic() + PATIENCE_SECONDS
        retries = 0
        # Above `read_committed` the snapshot is older than the lock on the key: what looks like a refusal may be the
        # doing of the key's former holder, which a second look shows.
        looks = 1 if write.isolation == "read_committed" else 2
        while True:
            try:
                return await self._write_once(write)
            except InProgressError:
                if time.monotonic() >= give_up:
                    raise
                pause = POLL_SECONDS
            except ConflictError:
                retries += 1
                if retries > MAX_RETRIES:
                    raise
                pause = RETRY_SECONDS * 2**retries
            except RejectedError:
                looks -= 1
                if looks == 0:
                    raise
                pause = 0.0
            # Without a connection: those who wait must not keep those from working whom they wait for.
            await asyncio.sleep(pause * random.random())  # noqa: S311 - spreads load # nosec B311

    async def _write_once(self, write: Write) -> Outcome:
        async with self._database.session(isolation=write.isolation) as session:
            recorded = await claim_key(session, write)
            if recorded is not None:
                return replayed(write, *recorded)
            results = [
                await apply(session, self._tables[operation.resource.name], operation)
                for operation in write.operations
            ]
            await add_emissions(session, write.emit, service=write.caller)
            await record_key(session, write, results)
        count("acquired")
        if write.emit:
            self.outbox.wake()
        return Outcome(tuple(results))

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def signing_key(self) -> bytes:
        """The secret that page tokens are signed with; the first migration made it."""
        if self._signing_key is None:
            async with self._database.session() as session:
                rows = await session.execute(select(SECRETS.c.value).where(SECRETS.c.name == "page_token"))
            self._signing_key = bytes(rows[0][0])
        return self._signing_key

    async def check(self) -> None:
        """Answer within a second, at the newest revision.

        Raises:
            UnavailableError: PostgreSQL doesn't, or a migration has not been run.
        """
        with bind(RequestContext().within(CHECK_SECONDS)):
            async with self._own.session() as session:
                missing = await session.run_sync(
                    lambda connection: missing_revisions(connection, self._histories)
                )
        if missing:
            raise UnavailableError(f"the database is not at revision {', '.join(missing)}; migrate it")

    async def clean(self) -> int:
        """Delete keys that have expired and events that were published a while ago, a batch of each."""
        expired = (
            select(KEYS.c.caller, KEYS.c.key)
            .where(KEYS.c.expires_at < func.now())
            .limit(CLEAN_ROWS)
            .with_for_update(skip_locked=True)
        )
        published = (
            select(OUTBOX.c.sequence)
            .where(OUTBOX.c.published_at < func.now() - RETENTION)
            .limit(CLEAN_ROWS)
            .with_for_update(skip_locked=True)
        )
        async with self._own.session() as session:
            keys = await session.execute(
                delete(KEYS).where(tuple_(KEYS.c.caller, KEYS.c.key).in_(expired)).returning(KEYS.c.key)
            )
            events = await session.execute(
                delete(OUTBOX).where(OUTBOX.c.sequence.in_(published)).returning(OUTBOX.c.sequence)
            )
        return len(keys) + len(events)


@asynccontextmanager
async def open_postgres_store(
    url: str,
    tables: Mapping[str, ResourceTable],
    *,
    name: str,
    pool_size: int = POOL_SIZE,
    migrations: Path | str | None = None,
    wait_seconds: float = 60.0,
) -> AsyncGenerator[PostgresStore]:
    """The store, its database brought to the newest revision.

    Args:
        url: `postgresql://user:password@host:5432/name`.
        tables: by the resource's name.
        name: of the service, for `pg_stat_activity`.
        pool_size: connections for requests.
        migrations: the folder with the service's revisions; without one its tables are somebody else's concern.
        wait_seconds: how long to wait for another replica that migrates.

    Raises:
        UnavailableError: PostgreSQL does not answer, or another replica is still migrating.
    """
    await migrate(url, migrations=migrations, wait_seconds=wait_seconds)
    database = Database(url, pool_size=pool_size, application_name=name)
    own = Database(url, pool_size=OWN_POOL_SIZE, application_name=f"{name}_relay")
    try:
        yield PostgresStore(database, own, tables, histories_of(migrations))
    finally:
        await own.close()
        await database.close()
