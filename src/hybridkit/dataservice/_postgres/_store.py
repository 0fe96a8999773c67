"""Store records in PostgreSQL by the contract: reads, and writes that happen once per idempotency key."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, func, select, tuple_

from hybridkit.codec import now
from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._postgres._audit._erasure import blank, deleted_ids
from hybridkit.dataservice._postgres._audit._table import AuditTable
from hybridkit.dataservice._postgres._audit._triggers import AuditTrigger, missing_triggers, unaudited_reason
from hybridkit.dataservice._postgres._audit._upkeep import keep_months
from hybridkit.dataservice._postgres._columns import KEYS, SECRETS
from hybridkit.dataservice._postgres._driver._errors import read_only_error
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._erasure._eraser import Eraser
from hybridkit.dataservice._postgres._outbox import PostgresOutbox
from hybridkit.dataservice._postgres._reader import PostgresReader
from hybridkit.dataservice._postgres._schema import History, histories_of, migrate, missing_revisions
from hybridkit.dataservice._postgres._streams._epochs import rebase, restored_streams
from hybridkit.dataservice._postgres._streams._reading import PostgresStreams
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._writer import PostgresWriter
from hybridkit.dataservice._store._audit import AUDIT_DAYS
from hybridkit.dataservice._store._erasure import Erased, ErasureStep
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.dataservice._store._pool_metrics import sample_pool
from hybridkit.errors import ConflictError, DeclarationError, UnavailableError
from hybridkit.observability import sampled
from hybridkit.resources import AUDIT
from hybridkit.resources._resource import AnyResource

if TYPE_CHECKING:
    from hybridkit.dataservice._postgres._columns import RecordColumns

POOL_SIZE: Final = 10
OWN_POOL_SIZE: Final = 3
"""Connections for the relay, readiness and housekeeping, which must work while requests use all others."""
CHECK_SECONDS: Final = 0.9
CLEAN_ROWS: Final = 1000


class PostgresStore(PostgresReader):
    """A store in one PostgreSQL database.

    Args:
        pool: the connections for requests.
        own_pool: the connections for work that must go on while requests use all of theirs.
        tables: the tables by their resource's name.
        histories: the histories whose newest revisions the database must have.
        audit_days: for how many days the entries of the audit trail are kept.
        streams: the tables of streams by the stream's name.

    Attributes:
        outbox: the outbox in the same database.
        streams: the streams.
    """

    def __init__(
        self,
        pool: Pool,
        own_pool: Pool,
        tables: Mapping[str, ResourceTable],
        histories: Sequence[History],
        *,
        audit_days: int = AUDIT_DAYS,
        streams: Mapping[str, StreamTable] | None = None,
    ) -> None:
        self._audited = [table for table in tables.values() if table.resource.audited]
        super().__init__(pool, {**tables, AUDIT.name: AuditTable(tables)} if self._audited else tables)
        self._triggers = [AuditTrigger.of(table) for table in self._audited]
        self._audit_days = audit_days
        self._stream_tables = dict(streams or {})
        self.outbox = PostgresOutbox(own_pool)
        self.streams = PostgresStreams(pool, self._stream_tables)
        self._writer = PostgresWriter(pool, tables, streams=self._stream_tables, emitted=self.outbox.wake)
        self._eraser = Eraser(pool, tables, self._stream_tables)
        self._own_pool = own_pool
        self._histories = histories
        self._signing_key: bytes | None = None

    async def write(self, write: Write) -> Outcome:
        """Do all of a write once per caller and key; again, at most three times, if another transaction won."""
        return await self._writer.write(write)

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:
        """Erase the personal data of a person in one batch of a step."""
        return await self._eraser.erase(step, person, after=after, dry_run=dry_run)

    # ── upkeep ────────────────────────────────────────────────────────────────────────────────────

    async def signing_key(self) -> bytes:
        """Return the secret that page tokens are signed with; the first migration made it."""
        if self._signing_key is None:
            async with self._pool.session() as session:
                rows = await session.execute(select(SECRETS.c.value).where(SECRETS.c.name == "page_token"))
            self._signing_key = bytes(rows[0][0])
        return self._signing_key

    async def blank_audit(
        self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]
    ) -> int:
        """Blank the values of fields in the audit entries of records, and return the number of entries changed."""
        if not resource.audited:
            return 0
        return await blank(self._pool, self._tables[resource.name], fields, record_ids)

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed."""
        if not resource.audited:
            return []
        return await deleted_ids(self._pool, self._tables[resource.name], field, value)

    async def prepare_audit(self) -> None:
        """Make the months of the audit trail, and check that what is declared as audited is audited.

        Raises:
            DeclarationError: a trigger is missing, or was made for another declaration.
        """
        if not self._audited:
            return
        async with self._own_pool.session() as session:
            unaudited = await session.run_sync(missing_triggers, self._triggers)
        if unaudited:
            raise DeclarationError(unaudited_reason(unaudited))
        with suppress(ConflictError):  # somebody reads all of the trail; entries wait in its rest meanwhile
            await keep_months(self._own_pool, keep_days=self._audit_days, moment=now(), ahead=True)

    async def check(self) -> None:
        """Check that PostgreSQL answers within a second, takes writes, is migrated, and audits what is audited.

        Raises:
            UnavailableError: PostgreSQL does not answer, takes no writes, or lacks a revision or a trigger of the audit
                trail, which the message names.
        """
        with bind(RequestContext().within(CHECK_SECONDS)):
            async with self._own_pool.session() as session:
                [[only_reads]] = await session.execute(select(func.current_setting("transaction_read_only")))
                missing = await session.run_sync(
                    lambda connection: missing_revisions(connection, self._histories)
                )
                unaudited = await session.run_sync(missing_triggers, self._triggers)
        if only_reads == "on":
            # No request may find it out while none writes, so both pools look up the server again.
            self._own_pool.renew()
            self._pool.renew()
            raise read_only_error()
        if missing:
            raise UnavailableError(f"the database is not at revision {', '.join(missing)}; migrate it")
        if unaudited:
            raise UnavailableError(unaudited_reason(unaudited))
        if self._stream_tables:
            await self._check_streams()

    async def _check_streams(self) -> None:
        """Check that readers of the logs would miss nothing.

        Raises:
            UnavailableError: the database was restored into another cluster under the running service.
        """
        with bind(RequestContext().within(CHECK_SECONDS)):
            async with self._own_pool.session(read_only=True) as session:
                restored = await restored_streams(session, self._stream_tables.values())
        if restored:
            raise UnavailableError(
                f"the database was restored into another cluster, where readers of {', '.join(restored)} would miss"
                " events; run `hybridkit streams rebase`, or start the service anew"
            )

    async def clean(self) -> int:
        """Delete expired keys, months of the audit trail and events published a while ago, and return how many."""
        expired = (
            select(KEYS.c.caller, KEYS.c.key)
            .where(KEYS.c.expires_at < func.now())
            .limit(CLEAN_ROWS)
            .with_for_update(skip_locked=True)
        )
        async with self._own_pool.session() as session:
            keys = await session.execute(
                delete(KEYS).where(tuple_(KEYS.c.caller, KEYS.c.key).in_(expired)).returning(KEYS.c.key)
            )
        months = await keep_months(
            self._own_pool, keep_days=self._audit_days, moment=now(), ahead=bool(self._audited)
        )
        return len(keys) + months + await self.outbox.clean()


@asynccontextmanager
async def open_postgres_store(
    url: str,
    tables: Mapping[str, ResourceTable],
    *,
    streams: Mapping[str, StreamTable] | None = None,
    name: str,
    pool_size: int = POOL_SIZE,
    migrations: Path | str | None = None,
    mapped: "Mapping[AnyResource, type[RecordColumns]] | None" = None,
    audit_days: int = AUDIT_DAYS,
    wait_seconds: float = 60.0,
) -> AsyncGenerator[PostgresStore]:
    """Bring a database to the newest revision, and open the store in it; streams that were restored are rebased.

    Args:
        url: `postgresql://user:password@host:5432/name`.
        tables: the tables by their resource's name.
        streams: the tables of streams by the stream's name.
        name: the service's name, for `pg_stat_activity`.
        pool_size: the largest number of connections for requests.
        migrations: the folder with the service's revisions; without one its tables are left as they are, but for the
            triggers of the audit trail.
        mapped: the declarative classes of the tables by resource, for these triggers.
        audit_days: for how many days the entries of the audit trail are kept.
        wait_seconds: how long to wait for another replica that migrates.

    Raises:
        UnavailableError: PostgreSQL does not answer, or another replica is still migrating.
        DeclarationError: a revision fails, or a table that should be audited has no trigger for that.
    """
    await migrate(url, migrations=migrations, tables=mapped, wait_seconds=wait_seconds)
    pool = Pool(url, pool_size=pool_size, application_name=name)
    own_pool = Pool(url, pool_size=OWN_POOL_SIZE, application_name=f"{name}_relay")
    try:
        with (
            sampled(partial(sample_pool, "requests", pool)),
            sampled(partial(sample_pool, "outbox", own_pool)),
        ):
            histories = histories_of(migrations)
            store = PostgresStore(pool, own_pool, tables, histories, audit_days=audit_days, streams=streams)
            await store.prepare_audit()
            await rebase(own_pool, (streams or {}).values())
            yield store
    finally:
        await own_pool.close()
        await pool.close()
