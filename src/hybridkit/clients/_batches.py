"""What clients write many records at a time with: all of them happen, or none.

https://google.aip.dev/233
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from hybridkit.clients._base import BaseClient
from hybridkit.clients._keys import identify_batch
from hybridkit.clients._records import (
    RecordId,
    changed_fields,
    fields_of,
    found_in,
    gone_since,
    new_id_for,
    parse_id,
    target_of,
)
from hybridkit.clients._transports._base import Response
from hybridkit.codec import encode_json
from hybridkit.contract import MAX_BATCH, BatchRecord
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyResource

__all__ = ["Batches"]

type Kind = Literal["create", "update", "upsert", "delete"]


class Batches(BaseClient):
    """The batches of a data client: at most 1,000 records and 1 MiB each, as what doesn't fit can't be atomic."""

    async def create_many[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        data: Sequence[CreateT],
        *,
        ids: Sequence[RecordId] | None = None,
        step: str | None = None,
    ) -> list[RecordT]:
        """Create records, all of them or none.

        Args:
            resource: of which kind.
            data: the fields of each.
            ids: for records with natural keys, one for each; otherwise they are made here, in a claim always the same.
            step: what this write is called inside a claim, where the order of its writes can change between two runs.

        Raises:
            UniqueViolationError: another record has one of the ids, or a value that only one may have.
            InvalidRequestError: one of the records doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: together they have more than 1 MiB.
        """
        if ids is not None and len(ids) != len(data):
            raise InvalidRequestError(f"{len(data)} records of {resource.name} have {len(ids)} ids")
        key, id_at = identify_batch(f"create_many {resource.name} {len(data)}", step)
        items = [
            BatchRecord(
                id=str(new_id_for(resource, each, None if ids is None else ids[index], id_at(index))),
                data=fields_of(each),
            )
            for index, each in enumerate(data)
        ]
        return await self._write_many(resource, "create", items, key)

    async def update_many[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        changes: Iterable[tuple[RecordT | RecordId, UpdateT]],
        *,
        step: str | None = None,
    ) -> list[RecordT]:
        """Change records, all of them or none; those that were read only if they are still in that state.

        Args:
            resource: of which kind.
            changes: pairs of a record, or its id, and what to set in it.
            step: as for `create_many`.

        Raises:
            NotFoundError: one of them is not there.
            StaleVersionError: one of them has changed since it was read.
            InvalidRequestError: one of the changes doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: together they have more than 1 MiB.
        """
        items = [
            BatchRecord(id=str(target.id), data=changed_fields(change), if_match=target.etag)
            for record_or_id, change in changes
            for target in [target_of(resource, record_or_id)]
        ]
        key, _ = identify_batch(f"update_many {resource.name} {len(items)}", step)
        return await self._write_many(resource, "update", items, key)

    async def upsert_many[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        records: Iterable[tuple[RecordId, CreateT]],
        *,
        step: str | None = None,
    ) -> list[RecordT]:
        """Create records, or replace the fields of those that are there already; all of them or none.

        Args:
            resource: of which kind.
            records: pairs of an id and the fields.
            step: as for `create_many`.

        Raises:
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: one of the records doesn't fit, or there are more than 1,000.
            PayloadTooLargeError: together they have more than 1 MiB.
        """
        items = [
            BatchRecord(id=str(parse_id(resource, record_id)), data=fields_of(data))
            for record_id, data in records
        ]
        key, _ = identify_batch(f"upsert_many {resource.name} {len(items)}", step)
        return await self._write_many(resource, "upsert", items, key)

    async def delete_many[RecordT: Record[Any]](
        self,
        resource: Resource[RecordT, Any, Any],
        records_or_ids: Iterable[RecordT | RecordId],
        *,
        step: str | None = None,
    ) -> None:
        """Remove records, all of them or none; those that were read only if they are still in that state.

        Args:
            resource: of which kind.
            records_or_ids: which ones.
            step: as for `create_many`.

        Raises:
            NotFoundError: one of them is not there.
            StaleVersionError: one of them has changed since it was read.
            InvalidRequestError: there are more than 1,000.
        """
        targets = [target_of(resource, record_or_id) for record_or_id in records_or_ids]
        items = [BatchRecord(id=str(target.id), if_match=target.etag) for target in targets]
        key, _ = identify_batch(f"delete_many {resource.name} {len(items)}", step)
        await self._send_batch(resource, "delete", items, key)

    async def _write_many[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], kind: Kind, items: Sequence[BatchRecord], key: str
    ) -> list[RecordT]:
        response = await self._send_batch(resource, kind, items, key)
        if response is None:
            return []
        found = found_in(resource, response, count=len(items))
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            raise gone_since(resource)
        return records

    async def _send_batch(
        self, resource: AnyResource, kind: Kind, items: Sequence[BatchRecord], key: str
    ) -> Response | None:
        if not items:
            return None
        if len(items) > MAX_BATCH:
            raise InvalidRequestError(
                f"{len(items)} records of {resource.name} are more than the {MAX_BATCH} of one batch; several batches"
                " are not all or nothing, so splitting them is up to you"
            )
        body = encode_json({"items": [item.model_dump(exclude_none=True) for item in items]})
        return await self._write("POST", f"{resource.path}:batch_{kind}", body, key=key)
