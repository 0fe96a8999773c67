"""Batches of writes: up to 1,000 records in one request, all of them or none.

https://google.aip.dev/233
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._records import (
    RecordId,
    changed_fields,
    fields_of,
    new_id_for,
    parse_id,
    target_of,
)
from hybridkit.clients._requests import JSON
from hybridkit.clients._write_identity import identify_batch
from hybridkit.codec import encode_json
from hybridkit.contract import MAX_BATCH, BatchRecord
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyResource

type Kind = Literal["create", "update", "upsert", "delete"]


class Batch(NamedTuple):
    """A batch of one kind, ready to be sent.

    Attributes:
        kind: the operation.
        items: its records, in the caller's order.
        key: the `Idempotency-Key` of all of it.
    """

    kind: Kind
    items: Sequence[BatchRecord]
    key: str


def create[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any],
    data: Sequence[CreateT],
    ids: Sequence[RecordId] | None,
    step: str | None,
) -> Batch:
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
    return Batch("create", items, key)


def update[RecordT: Record[Any], UpdateT: BaseModel](
    resource: Resource[RecordT, Any, UpdateT],
    changes: Iterable[tuple[RecordT | RecordId, UpdateT]],
    step: str | None,
) -> Batch:
    items = [
        BatchRecord(id=str(target.id), data=changed_fields(change), if_match=target.etag)
        for record_or_id, change in changes
        for target in [target_of(resource, record_or_id)]
    ]
    return _batch(resource, "update", items, step)


def upsert[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], records: Iterable[tuple[RecordId, CreateT]], step: str | None
) -> Batch:
    items = [
        BatchRecord(id=str(parse_id(resource, record_id)), data=fields_of(data))
        for record_id, data in records
    ]
    return _batch(resource, "upsert", items, step)


def delete[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], records_or_ids: Iterable[RecordT | RecordId], step: str | None
) -> Batch:
    targets = [target_of(resource, record_or_id) for record_or_id in records_or_ids]
    items = [BatchRecord(id=str(target.id), if_match=target.etag) for target in targets]
    return _batch(resource, "delete", items, step)


def _batch(resource: AnyResource, kind: Kind, items: Sequence[BatchRecord], step: str | None) -> Batch:
    return Batch(kind, items, identify_batch(f"{kind}_many {resource.name} {len(items)}", step).key)


def request(resource: AnyResource, batch: Batch) -> Intent:
    """Return the request of that batch.

    Raises:
        InvalidRequestError: the batch has more than 1,000 records.
    """
    if len(batch.items) > MAX_BATCH:
        raise InvalidRequestError(
            f"{len(batch.items)} records of {resource.name} are more than the {MAX_BATCH} of one batch; several batches"
            " are not all or nothing, so splitting them is up to you"
        )
    body = encode_json({"items": [item.model_dump(exclude_none=True) for item in batch.items]})
    return Intent(
        method="POST", path=f"{resource.path}:batch_{batch.kind}", headers=JSON, body=body, key=batch.key
    )
