"""What clients write, one record at a time."""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from hybridkit._header_fields import read_preferences
from hybridkit.clients._base import JSON
from hybridkit.clients._keys import WriteIdentity, identify
from hybridkit.clients._reads import Reads
from hybridkit.clients._records import (
    RecordId,
    Target,
    adapter_of,
    changed_fields,
    fields_of,
    new_id_for,
    parse_id,
    read_answer,
    record_path,
    target_of,
    written_record,
)
from hybridkit.clients._transaction import DataTransaction, Isolation
from hybridkit.clients._transports._base import Response
from hybridkit.codec import encode_json
from hybridkit.context import bind, current
from hybridkit.contract import Transaction, TransactionResult
from hybridkit.errors import ResponseError, StaleVersionError
from hybridkit.resources import Call, Record, Resource

__all__ = ["Change", "Writes"]

MERGE_PATCH: Final = {"content-type": "application/merge-patch+json"}
DRY_RUN: Final = "tx=rollback"
MAX_CHANGES: Final = 10
"""How often `modify` reads a record and tries: whoever loses that often should use an increment, or a lock."""
PAUSE_SECONDS: Final = 0.02
"""Between two of its tries, times how many there were, and less by chance."""

_TRANSACTION_RESULT = TypeAdapter(TransactionResult)

type Change[RecordT, UpdateT] = Callable[[RecordT], UpdateT | Awaitable[UpdateT | None] | None]
"""From a record to what should change in it, None for nothing; called again where somebody else was faster."""


class Writes(Reads):
    """The writing half of a data client, but for batches."""

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
            resource: of which kind.
            data: its fields.
            id: for records with natural keys; otherwise it is made here, in a claim always the same.
            step: what this write is called inside a claim, where the order of its writes can change between two runs.

        Raises:
            UniqueViolationError: another record has the id, or a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        identity = identify(f"create {resource.name}", step)
        new_id = new_id_for(resource, data, id, identity.id)
        body = encode_json({**fields_of(data), "id": new_id})
        return written_record(resource, await self._write("POST", resource.path, body, key=identity.key))

    async def replace[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        record_or_id: RecordT | RecordId,
        data: CreateT,
        *,
        step: str | None = None,
    ) -> RecordT:
        """Give a record that is there other values, all of them. One that was read only if it is still in that state.

        Args:
            resource: of which kind.
            record_or_id: which one.
            data: its new fields; what isn't set has its default.
            step: as for `create`.

        Raises:
            StaleVersionError: the record isn't there, or has changed since it was read.
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        target = target_of(resource, record_or_id)
        response = await self._write(
            "PUT",
            record_path(resource, target.id),
            encode_json(fields_of(data)),
            key=identify(f"replace {resource.name} {target.id}", step).key,
            headers=JSON | {"if-match": target.etag or "*"},
        )
        return written_record(resource, response)

    async def update[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        changes: UpdateT,
        *,
        step: str | None = None,
    ) -> RecordT:
        """Set the fields that are set in `changes` (None included); the others stay as they are.

        Args:
            resource: of which kind.
            record_or_id: a record that was read is only changed if it is still in that state; an id alone means
                whatever state it is in.
            changes: what to set.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read; `modify` reads it again.
            PreconditionRequiredError: the resource wants the record, not its id alone.
            InvalidRequestError: the changes don't fit.
        """
        target = target_of(resource, record_or_id)
        identity = identify(f"update {resource.name} {target.id}", step)
        return await self._update(resource, target, changes, identity)

    async def modify[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        change: Change[RecordT, UpdateT],
        *,
        step: str | None = None,
    ) -> RecordT:
        """Change a record by what is in it, so that no write of anybody is lost.

        It is read, changed, and written if it is still in that state; otherwise all over again, up to 10 times within
        the time of one read and one write.

        Args:
            resource: of which kind.
            record_or_id: a record that was read is not read again for the first try.
            change: a function, `async` or not, from the record to its changes, or to None to leave it as it is. It
                may be called several times, so it should do nothing else.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: others were faster each time.
            DeadlinePassedError: the time was over between two tries.
            DeadlineExceededError: the time was over during a write.
            InvalidRequestError: the changes don't fit.
        """
        target = target_of(resource, record_or_id)
        # Only what was done is recorded under a key, so each try can have the same; in a claim a rerun finds it.
        identity = identify(f"modify {resource.name} {target.id}", step)
        seconds = self._policy.read_timeout_seconds + self._policy.write_timeout_seconds
        with bind(current().within(seconds)):
            record = record_or_id if isinstance(record_or_id, Record) else None
            for attempt in range(1, MAX_CHANGES + 1):
                if record is None:
                    record = await self._get_one(resource, target.id)
                changes = change(record)
                if inspect.isawaitable(changes):
                    changes = await changes
                if changes is None:
                    return record
                try:
                    return await self._update(resource, target_of(resource, record), changes, identity)
                except StaleVersionError as stale:
                    if attempt == MAX_CHANGES:
                        stale.add_note(f"given up after {MAX_CHANGES} tries")
                        raise
                record = None
                await asyncio.sleep(PAUSE_SECONDS * attempt * random.random())  # noqa: S311 - no secret
            raise AssertionError  # pragma: no cover - the last try has returned or raised

    async def upsert[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        id: RecordId,
        data: CreateT,
        *,
        step: str | None = None,
    ) -> RecordT:
        """Create the record with that id, or replace its fields where it is there already.

        Args:
            resource: of which kind.
            id: which one.
            data: its fields; what isn't set has its default.
            step: as for `create`.

        Raises:
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        parsed = parse_id(resource, id)
        response = await self._write(
            "PUT",
            record_path(resource, parsed),
            encode_json(fields_of(data)),
            key=identify(f"upsert {resource.name} {parsed}", step).key,
        )
        return written_record(resource, response)

    async def delete[RecordT: Record[Any]](
        self,
        resource: Resource[RecordT, Any, Any],
        record_or_id: RecordT | RecordId,
        *,
        step: str | None = None,
    ) -> None:
        """Remove a record, or hide it where the resource deletes softly. One that was read only in that state.

        Args:
            resource: of which kind.
            record_or_id: which one.
            step: as for `create`.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read.
            PreconditionRequiredError: the resource wants the record, not its id alone.
        """
        target = target_of(resource, record_or_id)
        await self._write(
            "DELETE",
            record_path(resource, target.id),
            b"",
            key=identify(f"delete {resource.name} {target.id}", step).key,
            headers=_if_match(target),
        )

    async def undelete[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId, *, step: str | None = None
    ) -> RecordT:
        """Bring back a record that a soft delete has hidden; one that is there stays as it is.

        Args:
            resource: of which kind; declared with `soft_delete`.
            id: which one.
            step: as for `create`.

        Raises:
            NotFoundError: there never was such a record, or the resource doesn't delete softly.
            UniqueViolationError: meanwhile another record has a value that only one may have.
        """
        parsed = parse_id(resource, id)
        response = await self._write(
            "POST",
            f"{record_path(resource, parsed)}:undelete",
            b"",
            key=identify(f"undelete {resource.name} {parsed}", step).key,
            headers={},
        )
        return written_record(resource, response)

    async def call[RequestT: BaseModel, ResponseT: BaseModel](
        self, call: Call[RequestT, ResponseT], body: RequestT, *, step: str | None = None
    ) -> ResponseT:
        """Ask for an operation of the service's own.

        Args:
            call: which one.
            body: what it takes.
            step: as for `create`; a call that is declared as safe needs none.

        Raises:
            HybridkitError: whatever the operation refuses with.
        """
        content = encode_json(fields_of(body))
        if call.safe:
            response = await self._read(call.path, body=content)
        else:
            key = identify(f"{call.name} {call.resource.name}", step).key
            response = await self._write("POST", call.path, content, key=key)
        answer: ResponseT = read_answer(
            adapter_of(call.response), response, what=f"a {call.response.__name__}"
        )
        return answer

    async def _update[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        target: Target,
        changes: UpdateT,
        identity: WriteIdentity,
    ) -> RecordT:
        response = await self._write(
            "PATCH",
            record_path(resource, target.id),
            encode_json(changed_fields(changes)),
            key=identity.key,
            headers=MERGE_PATCH | _if_match(target),
        )
        return written_record(resource, response)

    def _begin_transaction(self, isolation: Isolation, *, dry_run: bool, step: str | None) -> DataTransaction:
        commit = partial(self._transact, dry_run=dry_run, step=step)
        return DataTransaction(commit, isolation=isolation, step=step)

    async def _transact(
        self, transaction: Transaction, *, dry_run: bool, step: str | None
    ) -> TransactionResult:
        name, headers = ("dry run", JSON | {"prefer": DRY_RUN}) if dry_run else ("transact", JSON)
        key = identify(name, step).key
        body = encode_json(transaction)
        response = await self._write("POST", "/v1:transact", body, key=key, headers=headers)
        if dry_run:
            _check_taken_back(response)
        return read_answer(_TRANSACTION_RESULT, response, what="a transaction's results")


def _if_match(target: Target) -> dict[str, str]:
    return {} if target.etag is None else {"if-match": target.etag}


def _check_taken_back(response: Response) -> None:
    """A service that ignores the wish for a dry run has done it (RFC 7240, section 2)."""
    applied: Mapping[str, str] = {}
    with suppress(ValueError):  # what can't be read says nothing
        applied = read_preferences(response.headers.get("preference-applied", ""))
    if applied.get("tx", "").lower() != "rollback":
        raise ResponseError(
            "the service doesn't say that it took the dry run back, so it was carried out",
            response_status=response.status,
        )
