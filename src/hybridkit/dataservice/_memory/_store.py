"""The contract's store in memory: what a data service promises, without a database.

`FakeDataService` stands on it. The routes above it are the real ones, and the conformance suite holds it to the same
answers as PostgreSQL and MongoDB.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, Final, NamedTuple

from hybridkit.codec import encode_json, now
from hybridkit.context import current
from hybridkit.contract import Emission  # noqa: TC001 - the attribute's type, for whoever reads it
from hybridkit.dataservice._memory._aggregations import aggregated
from hybridkit.dataservice._memory._audit import MemoryAudit
from hybridkit.dataservice._memory._erasure import erase
from hybridkit.dataservice._memory._filters import Ordering, fits
from hybridkit.dataservice._memory._streams import MemoryStreams
from hybridkit.dataservice._memory._table import MemoryTable, Row, Unique
from hybridkit.dataservice._store._audit import any_audited
from hybridkit.dataservice._store._erasure import Erased, ErasureStep
from hybridkit.dataservice._store._in_flight import InFlight
from hybridkit.dataservice._store._kept_outcomes import (
    decode_outcome,
    encode_outcome,
    kept_versions,
    result_of,
)
from hybridkit.dataservice._store._keys import replayed, retention_of
from hybridkit.dataservice._store._operations import CallAnswer, CallWork, Operation, Outcome, Result, Write
from hybridkit.dataservice._store._protocol import (
    AnswerSpace,
    EncodedPage,
    EncodedRecord,
    ExportChunk,
    encoded_list,
)
from hybridkit.errors import (
    DeadlinePassedError,
    DeclarationError,
    NotSupportedError,
    TransactionsUnavailableError,
)
from hybridkit.resources import AUDIT, Aggregation, Filter, Query
from hybridkit.resources._resource import AnyResource
from hybridkit.streams._stream import AnyStream

PIECE_RECORDS: Final = 100


class _Kept(NamedTuple):
    """What an idempotency key keeps: the fingerprint of its request, and the encoded outcome, for a while."""

    fingerprint: bytes
    outcome: bytes
    expires_at: datetime


class MemoryStore:
    """Records in memory: one write at a time, each as a whole or not at all.

    Args:
        resources: the collections.
        unique: by resource, the fields (or tuples of fields) whose values only one record may have.
        references: by resource, the fields that are the id of another resource's record.
        streams: the kinds of streams.
        has_transactions: whether a write may have several operations; without them it refuses such a write, as some
            servers of MongoDB do.

    Attributes:
        emitted: the events and commands of all writes, in commit order, without those that were cancelled in time.
        streams: the streams of events.
    """

    outbox = None

    def __init__(
        self,
        resources: Iterable[AnyResource],
        *,
        unique: Mapping[AnyResource, Iterable[Unique]] | None = None,
        references: Mapping[AnyResource, Mapping[str, AnyResource]] | None = None,
        streams: Iterable[AnyStream] = (),
        has_transactions: bool = True,
    ) -> None:
        self.streams = MemoryStreams(streams, self._kept)
        self.emitted: list[Emission] = []
        self._tables = {
            resource.name: MemoryTable(resource, (unique or {}).get(resource, ())) for resource in resources
        }
        self._audit = (
            MemoryAudit() if any_audited([table.resource for table in self._tables.values()]) else None
        )
        if self._audit is not None:
            self._tables[AUDIT.name] = self._audit.table
        for resource, fields in (references or {}).items():
            for name, other in fields.items():
                self._table(resource).refer(name, self._table(other))
        self._has_transactions = has_transactions
        self._emitters: dict[object, str] = {}
        self._done: dict[tuple[str, str], _Kept] = {}
        self._in_flight = InFlight()
        self._turn = asyncio.Lock()
        self._signing_key = secrets.token_bytes(32)

    def __repr__(self) -> str:
        return f"MemoryStore({sorted(self._tables)})"

    def _table(self, resource: AnyResource) -> MemoryTable:
        if resource.name not in self._tables:
            raise DeclarationError(f"{resource.name} is not among the resources: {sorted(self._tables)}")
        return self._tables[resource.name]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """Return the record with that id, or None."""
        row = self._read(resource).find(record_id)
        return None if row is None else EncodedRecord(encode_json(row.document()), row.tag)

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """Return a JSON array of the records with those ids, in their order, with null for one that is not there."""
        rows = map(self._read(resource).find, record_ids)
        return encoded_list(encode_json(row.document()) if row else None for row in rows)

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return one page of a query."""
        ordering = Ordering(resource, query)
        rows = self._ordered(resource, query, ordering)
        if after is not None:
            start = ordering.read(after)
            rows = [row for row in rows if ordering.is_after(row.values, start)]
        space = AnswerSpace()
        records = (encode_json(row.document(query.select)) for row in rows[: query.page_size])
        page = list(takewhile(space.takes, records))
        more = len(rows) > len(page)
        return EncodedPage(
            b"[%b]" % b",".join(page), ordering.position(rows[len(page) - 1].values) if more else None
        )

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:  # noqa: ARG002 - there is nothing to guess
        """Count the records for which the filter holds."""
        return sum(fits(where, row.values) for row in self._read(resource).live)

    async def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield every record of a query as it is when the export begins."""
        rows = self._ordered(resource, query, Ordering(resource, query))
        lines = [encode_json(row.document(query.select)) + b"\n" for row in rows]
        for start in range(0, len(lines), PIECE_RECORDS):
            piece = lines[start : start + PIECE_RECORDS]
            yield ExportChunk(b"".join(piece), len(piece))

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """Return a JSON array of rows, each with a member for each group field and function."""
        records = [row.values for row in self._read(resource).live]
        return encode_json(aggregated(resource, aggregation, records))

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:  # noqa: ARG002 - the protocol's
        """Refuse: only MongoDB has pipelines."""
        raise NotSupportedError("there is no MongoDB here to run a pipeline; send group_by and functions")

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing; it gets this store."""
        return (await self._call(work)).body

    def _read(self, resource: AnyResource) -> MemoryTable:
        current().check_deadline()
        return self._tables[resource.name]

    def _ordered(self, resource: AnyResource, query: Query, ordering: Ordering) -> list[Row]:
        rows = [row for row in self._read(resource).live if fits(query.where, row.values)]
        return sorted(rows, key=lambda row: ordering.key(row.values))

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def write(self, write: Write) -> Outcome:
        """Do all operations of the write or none, once per caller and key; a service's own call gets this store."""
        current().check_deadline()
        if not self._has_transactions and (write.dry_run or len(write.operations) + len(write.appends) > 1):
            raise TransactionsUnavailableError("this data service writes one record at a time")
        if write.dry_run:
            return await self._write(write)

        async def work() -> Outcome:
            done = self._done.get((write.caller, write.key))
            if done is not None and done.expires_at > now():
                return replayed(write, done.fingerprint, self._outcome_of(write, done.outcome))
            return await self._write(write)

        return await self._in_flight.run(write, work)

    def _outcome_of(self, write: Write, kept: bytes) -> Outcome:
        outcome = decode_outcome(kept, write)
        if isinstance(outcome, Outcome):
            return outcome
        results: list[Result] = []
        for reference in outcome:
            row = None
            if reference is not None:
                table = self._tables[reference.resource]
                row = table.find(table.resource.kept_id(reference.id))
            results.append(result_of(reference, None if row is None else row.document()))
        return Outcome(tuple(results), replayed=True, reread=True, versions=kept_versions(kept))

    def _kept(self, caller: str, key: str) -> bytes | None:
        """Return what a key keeps, if it was used."""
        done = self._done.get((caller, key))
        return None if done is None else done.outcome

    async def _write(self, write: Write) -> Outcome:
        async with self._turn:
            before = {name: dict(table.rows) for name, table in self._tables.items()}
            emitted, streams = list(self.emitted), self.streams.mark()
            committed = False
            try:
                outcome = await self._do(write)
                if not write.dry_run:
                    self._done[write.caller, write.key] = _Kept(
                        write.fingerprint, encode_outcome(write, outcome), now() + retention_of(write.key)
                    )
                    committed = True
                return outcome
            finally:
                if not committed:
                    self.emitted[:] = emitted
                    self.streams.restore(streams)
                    for name, rows in before.items():
                        self._tables[name].rows = rows

    async def _do(self, write: Write) -> Outcome:
        appended = [self.streams.append(each, caller=write.caller) for each in write.appends]
        results = tuple(self._apply(write, operation) for operation in write.operations)
        answer = b""
        emit = (*write.emit, *(each for _, emissions in appended for each in emissions))
        if write.call is not None:
            audited = [table for table in self._tables.values() if table.resource.audited]
            before = [dict(table.rows) for table in audited]
            called = await self._call(write.call)
            answer, emit = called.body, (*emit, *called.emit)
            for table, rows in zip(audited, before, strict=True):
                for record_id in rows | table.rows:
                    self._note(write, table, record_id, rows.get(record_id))
        known = {emission.event_id for emission in self.emitted}
        new = [emission for emission in emit if emission.event_id not in known]
        self._emitters.update((emission.event_id, write.caller) for emission in new)
        self.emitted += new
        if write.cancel:
            self._cancel(write)
        return Outcome(results, answer=answer, versions=tuple(version for version, _ in appended))

    def _cancel(self, write: Write) -> None:
        moment = now()
        self.emitted[:] = [
            each
            for each in self.emitted
            if each.event_id not in write.cancel
            or each.not_before is None
            or each.not_before <= moment
            or self._emitters[each.event_id] != write.caller
        ]

    def _apply(self, write: Write, operation: Operation) -> Result:
        table = self._tables[operation.resource.name]
        before = table.rows.get(operation.id)
        result = table.apply(operation)
        self._note(write, table, operation.id, before)
        return result

    def _note(self, write: Write, table: MemoryTable, record_id: Any, before: Row | None) -> None:
        """Add what has become of a record to the audit trail."""
        if self._audit is not None and table.resource.audited:
            self._audit.add(write, table.resource, record_id, before, table.rows.get(record_id))

    async def _call(self, work: CallWork) -> CallAnswer:
        """Run a service's own call within the deadline, as a database would."""
        context = current()
        context.check_deadline()
        try:
            async with asyncio.timeout(context.remaining_seconds()):
                return await work(self)
        except TimeoutError:
            raise DeadlinePassedError("stopped at the deadline; nothing was changed") from None

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:  # noqa: ARG002 - one batch has all
        """Erase the personal data of a person in one step, or count the rows."""
        current().check_deadline()
        async with self._turn:
            return erase(self._tables, self.streams, step, person, dry_run=dry_run)

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def blank_audit(
        self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]
    ) -> int:
        """Blank the values of fields in the audit entries of records, and return the number of entries changed."""
        async with self._turn:
            return 0 if self._audit is None else self._audit.blank(resource, fields, record_ids)

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed."""
        return [] if self._audit is None else self._audit.deleted_ids(resource, field, value)

    async def signing_key(self) -> bytes:
        """Return the secret that page tokens are signed with."""
        return self._signing_key

    async def check(self) -> None:
        """Do nothing: memory is always ready."""

    async def clean(self) -> int:
        """Delete the idempotency keys past their retention, and return their number."""
        moment = now()
        expired = [key for key, kept in self._done.items() if kept.expires_at <= moment]
        for key in expired:
            del self._done[key]
        return len(expired)
