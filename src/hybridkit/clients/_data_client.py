"""The client of a data service: a typed method for each of its routes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from decimal import Decimal
from itertools import batched
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients import _batches, _erasure, _requests
from hybridkit.clients._answers import (
    NO_CONTENT,
    answer_of,
    present,
    record_from,
    records_from,
    rows_from,
    transaction_from,
    written_record,
)
from hybridkit.clients._audit._history import HistorySource, record_as_of
from hybridkit.clients._base import BaseClient
from hybridkit.clients._coalescer import Coalescer
from hybridkit.clients._find import Find
from hybridkit.clients._modify import Change, modify
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._query_source import QuerySource
from hybridkit.clients._records import RecordId, given_id, target_of
from hybridkit.clients._transaction import DataTransaction, Isolation
from hybridkit.clients._transports._base import Response, StreamedResponse
from hybridkit.clients._transports._heads import NOT_MODIFIED
from hybridkit.clients._transports._httpx import AnyTransport
from hybridkit.clients._write_identity import WriteStep, begin_write
from hybridkit.codec import check_size
from hybridkit.context import bind, current
from hybridkit.contract import MAX_BATCH, MAX_BODY_BYTES, Transaction, TransactionResult
from hybridkit.contract._erasure import Forgotten
from hybridkit.contract._fields import parse_id
from hybridkit.errors import AnswerTooLargeError, InvalidRequestError, MisuseError, NotFoundError
from hybridkit.resources import AUDIT, AuditEntry, Call, Filter, Record, Resource
from hybridkit.resources._resource import AnyResource


class DataClient(BaseClient):
    """The methods that the clients of both data services share.

    A write's `step` names it inside a claim; it is needed only where the order of the writes can change between two
    runs of the same work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        service: str,
        transport: AnyTransport | None = None,
        policy: ClientPolicy | None = None,
        authorization: Callable[[], str] | None = None,
        coalesce: bool = False,
    ) -> None:
        super().__init__(
            base_url, service=service, transport=transport, policy=policy, authorization=authorization
        )
        self._source = QuerySource(self._send, self._stream, max_line_bytes=self._policy.max_response_bytes)
        self._coalesce = coalesce
        self._coalescer: Coalescer | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._coalesce:
            self._coalescer = Coalescer(self._get_one, self._get_batch)
            self._stack.push_async_callback(self._coalescer.aclose)
        return self

    # ── reads ────────────────────────────────────────────────────────────────────────────────────

    async def get[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any], id: RecordId) -> RecordT:
        """Return the record with that id.

        Raises:
            NotFoundError: there is no such record.
        """
        parsed = parse_id(resource, id)
        if self._coalescer is not None:
            return await self._coalescer.get(resource, parsed)
        return await self._get_one(resource, parsed)

    async def get_or_none[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId
    ) -> RecordT | None:
        """Return the record with that id, None where there is no such record."""
        try:
            return await self.get(resource, id)
        except NotFoundError:
            return None

    async def refresh[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], record: RecordT
    ) -> RecordT:
        """Return the present state of a record: the same object where it has not changed, which needs no body.

        Raises:
            NotFoundError: the record is not there any more.
        """
        response = await self._send(_requests.get_changed(resource, target_of(resource, record)))
        return record if response.status == NOT_MODIFIED else record_from(resource, response)

    async def get_many[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], ids: Sequence[RecordId]
    ) -> list[RecordT | None]:
        """Return the records with those ids, in their order, None for each that is not there.

        It takes one request for each 1,000 ids, and more where the records are too large for one answer.
        """
        parsed = [parse_id(resource, record_id) for record_id in ids]
        found: list[RecordT | None] = []
        for some in batched(parsed, MAX_BATCH):
            found += await self._get_batch(resource, some)
        return found

    def find[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any]) -> Find[RecordT]:
        """Begin a query: it has all records until `where`, `order_by`, `page_size` and `select` say otherwise."""
        return Find(self._source, resource, resource.record)

    def history[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId
    ) -> Find[AuditEntry]:
        """Begin a query for the changes of an audited record, in their order, also of one that is gone.

        ```python
        async for entry in client.history(USERS, user_id).where(AUDIT["operation"] == "update"):
            print(entry.created_at, entry.user_id, entry.changes["email"].before)
        ```

        `where` and `order_by` take the fields of `AUDIT`. Values in `changes` have the types of the record's fields.

        Raises:
            InvalidRequestError: the resource isn't declared with `audited=True`, or can't have that id.
        """
        if not resource.audited:
            raise InvalidRequestError(f"{resource.name} has no history: it isn't declared with audited=True")
        source = HistorySource(self._source, resource, parse_id(resource, id))
        return Find(source, AUDIT, AuditEntry)

    async def as_of[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId, moment: datetime
    ) -> RecordT | None:
        """Return an audited record as it was at a moment; None if it was not there.

        The record's present state is taken back change by change, so the trail has to reach back to the moment, not to
        the record's beginning. A field that the trail hides, and that has changed since, is `"***"`, or its default
        where it takes no text. The ETag is of no state that the record can be in: an update by what it was is refused.

        Args:
            resource: the kind of record, declared with `audited=True`.
            id: its id.
            moment: the moment; a naive one is taken as UTC.

        Raises:
            InvalidRequestError: the resource isn't declared with `audited=True`, or can't have that id.
            ResponseError: the record's model doesn't take the values that were kept.
        """
        history = self.history(resource, id)
        present: RecordT | None = None
        with suppress(NotFoundError):
            present = await self._get_one(resource, parse_id(resource, id))
        return await record_as_of(resource, present, history, moment)

    # ── writes of one record ─────────────────────────────────────────────────────────────────────

    async def create[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        data: CreateT,
        *,
        id: RecordId | None = None,
        step: str | None = None,
    ) -> RecordT:
        """Create a record.

        Args:
            resource: the kind of record.
            data: its fields.
            id: needed for natural keys; a UUID is made by the client, in a claim the same one on every run.
            step: the name of this write inside a claim, where the order of the writes can change between two runs.

        Raises:
            UniqueViolationError: another record has the id, or a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        given = given_id(resource, data, id)
        name = f"create {resource.name}" if given is None else f"create {resource.name} {given}"
        write = begin_write(name, method="create", step=step, content=(given, data), by_order=given is None)
        return await self._write(resource, write, lambda: _requests.create(resource, data, given, write))

    async def replace[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        record_or_id: RecordT | RecordId,
        data: CreateT,
        *,
        step: str | None = None,
    ) -> RecordT:
        """Replace all fields of a record that is there.

        Args:
            resource: the kind of record.
            record_or_id: a record is replaced only if it is still in the state in which it was read; an id alone
                means any state.
            data: the new fields; those that aren't set get their defaults.
            step: as for `create`.

        Raises:
            StaleVersionError: the record isn't there, or has changed since it was read.
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        target = target_of(resource, record_or_id)
        name = f"replace {resource.name} {target.id}"
        write = begin_write(name, method="replace", step=step, content=(target, data))
        return await self._write(
            resource, write, lambda: _requests.replace(resource, target, data, write.key)
        )

    async def update[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        changes: UpdateT | None = None,
        *,
        increment: Mapping[str, int | float | Decimal] | None = None,
        require: Filter | None = None,
        step: str | None = None,
    ) -> RecordT:
        """Set the fields that are set in `changes` (None included), or add to them; the others stay as they are.

        Args:
            resource: the kind of record.
            record_or_id: a record is changed only if it is still in the state in which it was read; an id alone means
                any state.
            changes: the fields to set.
            increment: numbers to add, as for `update` of a transaction, which this write then is.
            require: a condition that has to hold before the change, as there.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read; `modify` reads it again.
            RequirementNotMetError: the record is not as `require` demands.
            PreconditionRequiredError: the resource wants the record, not its id alone.
            InvalidRequestError: the changes don't fit.
        """
        if increment or require is not None:
            tx = self._begin_transaction("read_committed", dry_run=False, minimal=False, step=step)
            async with tx:
                changed = tx.update(resource, record_or_id, changes, increment=increment, require=require)
            return changed.result
        if changes is None:
            raise MisuseError(
                "an update has changes, or something to add: update(..., changes, increment=...)"
            )
        target = target_of(resource, record_or_id)
        name = f"update {resource.name} {target.id}"
        write = begin_write(name, method="update", step=step, content=(target, changes))
        return await self._write(
            resource, write, lambda: _requests.update(resource, target, changes, write.key)
        )

    async def modify[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        change: Change[RecordT, UpdateT],
        *,
        step: str | None = None,
    ) -> RecordT:
        """Change a record by its own values, so that no other write is lost.

        The record is read, changed, and written if it is still in that state; otherwise all over again, up to 10 times
        within the time of one read and one write.

        Args:
            resource: the kind of record.
            record_or_id: a record that was read is not read again for the first try.
            change: a function, `async` or not, from the record to its changes, or to None to leave it as it is. It
                may be called several times, so it should do nothing else.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: other writes came first each time.
            DeadlinePassedError: the time was over between two tries.
            DeadlineExceededError: the time was over during a write.
            InvalidRequestError: the changes don't fit.
        """
        target = target_of(resource, record_or_id)
        # Only what was done is recorded under a key, so each try can have the same; in a claim a rerun finds it.
        name, content = f"modify {resource.name} {target.id}", getattr(change, "__code__", change)
        seconds = self._policy.read_timeout_seconds + self._policy.write_timeout_seconds
        with (
            bind(current().within(seconds)),
            begin_write(name, method="modify", step=step, content=content) as step_of_all,
        ):

            async def write(record: RecordT, changes: UpdateT) -> RecordT | None:
                request = _requests.update(resource, target_of(resource, record), changes, step_of_all.key)
                return written_record(resource, await self._send(request))

            done = await modify(
                record_or_id if isinstance(record_or_id, Record) else None,
                change,
                read=lambda: self._get_one(resource, target.id),
                write=write,
            )
        return present(resource, done)

    async def upsert[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        id: RecordId,
        data: CreateT,
        *,
        increment: Mapping[str, int | float | Decimal] | None = None,
        step: str | None = None,
    ) -> RecordT:
        """Create the record with that id, or replace all its fields where it is there already.

        With `increment` a record that is there is only added to, and a new one begins with the data.

        Args:
            resource: the kind of record.
            id: its id.
            data: its fields; those that aren't set get their defaults.
            increment: numbers to add, as for `upsert` of a transaction, which this write then is.
            step: as for `create`.

        Raises:
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        if increment:
            async with self._begin_transaction(
                "read_committed", dry_run=False, minimal=False, step=step
            ) as tx:
                written = tx.upsert(resource, id, data, increment=increment)
            return written.result
        parsed = parse_id(resource, id)
        name = f"upsert {resource.name} {parsed}"
        write = begin_write(name, method="upsert", step=step, content=data)
        return await self._write(resource, write, lambda: _requests.upsert(resource, parsed, data, write.key))

    async def delete[RecordT: Record[Any]](
        self,
        resource: Resource[RecordT, Any, Any],
        record_or_id: RecordT | RecordId,
        *,
        step: str | None = None,
    ) -> None:
        """Remove a record, or hide it where the resource deletes softly.

        Args:
            resource: the kind of record.
            record_or_id: a record is removed only if it is still in the state in which it was read; an id alone means
                any state.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read.
            PreconditionRequiredError: the resource wants the record, not its id alone.
        """
        target = target_of(resource, record_or_id)
        name = f"delete {resource.name} {target.id}"
        with begin_write(name, method="delete", step=step, content=target) as write:
            await self._send(_requests.delete(resource, target, write.key))

    async def undelete[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId, *, step: str | None = None
    ) -> RecordT:
        """Bring back a record that a soft delete has hidden; one that is there stays as it is.

        Args:
            resource: the kind of record, declared with `soft_delete`.
            id: its id.
            step: as for `create`.

        Raises:
            NotFoundError: there never was such a record, or the resource doesn't delete softly.
            UniqueViolationError: meanwhile another record has a value that only one may have.
        """
        parsed = parse_id(resource, id)
        write = begin_write(f"undelete {resource.name} {parsed}", method="undelete", step=step)
        return await self._write(resource, write, lambda: _requests.undelete(resource, parsed, write.key))

    async def call[RequestT: BaseModel, ResponseT: BaseModel](
        self, call: Call[RequestT, ResponseT], body: RequestT, *, step: str | None = None
    ) -> ResponseT:
        """Call an operation that the service has declared beside its records.

        Args:
            call: the operation.
            body: its argument.
            step: as for `create`; a call that is declared as safe needs none.

        Raises:
            HybridkitError: the operation refuses, with any error of the tree.
        """
        if call.safe:
            return answer_of(call, await self._send(_requests.safe_call(call, body)))
        name = f"{call.name} {call.resource.name}"
        with begin_write(name, method="call", step=step, content=body, by_order=True) as write:
            return answer_of(call, await self._send(_requests.call(call, body, write.key)))

    # ── writes of many records ───────────────────────────────────────────────────────────────────

    async def create_many[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        data: Sequence[CreateT],
        *,
        ids: Sequence[RecordId] | None = None,
        step: str | None = None,
    ) -> list[RecordT]:
        """Create up to 1,000 records, all of them or none.

        Args:
            resource: the kind of record.
            data: the fields of each.
            ids: one for each, needed for natural keys; UUIDs are made by the client, in a claim the same on every run.
            step: as for `create`.

        Raises:
            UniqueViolationError: another record has one of the ids, or a value that only one may have.
            InvalidRequestError: one of the records doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: the records together have more than 1 MiB.
        """
        return await self._write_many(resource, _batches.create(resource, data, ids), step)

    async def update_many[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        changes: Iterable[tuple[RecordT | RecordId, UpdateT]],
        *,
        step: str | None = None,
    ) -> list[RecordT]:
        """Change up to 1,000 records, all of them or none.

        Args:
            resource: the kind of record.
            changes: pairs of a record, or its id, and the fields to set, as for `update`.
            step: as for `create`.

        Raises:
            NotFoundError: one of the records is not there.
            StaleVersionError: one of the records has changed since it was read.
            InvalidRequestError: one of the changes doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: the changes together have more than 1 MiB.
        """
        return await self._write_many(resource, _batches.update(resource, changes), step)

    async def upsert_many[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        records: Iterable[tuple[RecordId, CreateT]],
        *,
        step: str | None = None,
    ) -> list[RecordT]:
        """Create up to 1,000 records, or replace those that are there already; all of them or none.

        Args:
            resource: the kind of record.
            records: pairs of an id and the fields.
            step: as for `create`.

        Raises:
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: one of the records doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: the records together have more than 1 MiB.
        """
        return await self._write_many(resource, _batches.upsert(resource, records), step)

    async def delete_many[RecordT: Record[Any]](
        self,
        resource: Resource[RecordT, Any, Any],
        records_or_ids: Iterable[RecordT | RecordId],
        *,
        step: str | None = None,
    ) -> None:
        """Remove up to 1,000 records, all of them or none.

        Args:
            resource: the kind of record.
            records_or_ids: as for `delete`.
            step: as for `create`.

        Raises:
            NotFoundError: one of the records is not there.
            StaleVersionError: one of the records has changed since it was read.
            InvalidRequestError: there are more than 1,000 records.
        """
        batch = _batches.delete(resource, records_or_ids)
        if batch.items:
            with _batches.begin(resource, batch, step) as write:
                await self._send(_batches.request(resource, batch, write))

    async def _write_many[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], batch: _batches.Batch, step: str | None
    ) -> list[RecordT]:
        if not batch.items:
            return []
        with _batches.begin(resource, batch, step) as write:
            response = await self._send(_batches.request(resource, batch, write))
            records = records_from(resource, response, count=len(batch.items))
        return [present(resource, record) for record in records]

    async def _write[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], write: WriteStep, request: Callable[[], Intent]
    ) -> RecordT:
        """Return the record that a write answers with; what it answers belongs to its step."""
        with write:
            written = written_record(resource, await self._send(request()))
        return present(resource, written)

    async def forget(self, subject: str, id: UUID | str | int, *, dry_run: bool = False) -> Forgotten:
        """Erase the personal data of a person wherever the data service has it, as `Personal` marks the fields.

        It takes many requests, each for a part; what is erased already is passed over, so it may be called again after
        any failure. `subject.forgotten` is emitted at the end.

        Args:
            subject: the kind of id, such as `user_id`.
            id: the id of the person.
            dry_run: only count the rows.

        Returns:
            The number of rows by the name of their resource or stream.

        Raises:
            AccessDeniedError: the data service grants this service no `forget`.
            InvalidRequestError: no field is marked with this kind of id.
        """
        return await _erasure.forget(self._send, subject, str(id), dry_run=dry_run)

    # ── what the methods send ────────────────────────────────────────────────────────────────────

    async def _get_one[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: object
    ) -> RecordT:
        return record_from(resource, await self._send(_requests.get(resource, id)))

    async def _get_batch[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], ids: Sequence[object]
    ) -> list[RecordT | None]:
        try:
            response = await self._send(_requests.get_batch(resource, ids))
        except AnswerTooLargeError:
            if len(ids) == 1:
                raise
            middle = len(ids) // 2
            first = await self._get_batch(resource, ids[:middle])
            return first + await self._get_batch(resource, ids[middle:])
        return records_from(resource, response, count=len(ids))

    async def _aggregate[RowT](
        self, resource: AnyResource, aggregation: Mapping[str, Any], row_type: type[RowT]
    ) -> list[RowT]:
        response = await self._send(_requests.aggregate(resource, aggregation))
        return rows_from(f"rows of {resource.name}", row_type, response)

    def _begin_transaction(
        self, isolation: Isolation, *, dry_run: bool, minimal: bool, step: str | None
    ) -> DataTransaction:
        async def commit(transaction: Transaction, key: str) -> TransactionResult | None:
            request = _requests.transact(transaction, key, dry_run=dry_run, minimal=minimal)
            response = await self._send(request)
            if minimal and response.status == NO_CONTENT:
                return None
            return transaction_from(response, dry_run=dry_run)

        return DataTransaction(commit, isolation=isolation, step=step, dry_run=dry_run)

    async def _send(self, request: Intent) -> Response:
        check_size(request.body, limit_bytes=MAX_BODY_BYTES)
        return await self._open_pipeline().run(request)

    def _stream(self, request: Intent) -> AbstractAsyncContextManager[StreamedResponse]:
        return self._open_pipeline().stream(request)
