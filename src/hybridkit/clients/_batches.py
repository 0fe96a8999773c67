"""Batches of writes: up to 1,000 records in one request, all of them or none.

https://google.aip.dev/233
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._records import RecordId, given_id, minted_id, target_of
from hybridkit.clients._requests import JSON
from hybridkit.clients._write_identity import WriteStep, begin_write, digest_of
from hybridkit.codec import encode_json
from hybridkit.contract import MAX_BATCH, BatchRecord
from hybridkit.contract._fields import changed_fields, fields_of, parse_id
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyResource

type Kind = Literal["create", "update", "upsert", "delete"]


class Batch(NamedTuple):
    """A batch of one kind.

    Attributes:
        kind: the operation.
        items: its records, in the caller's order; without an id where the client makes it.
    """

    kind: Kind
    items: Sequence[BatchRecord]


def create[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], data: Sequence[CreateT], ids: Sequence[RecordId] | None
) -> Batch:
    if ids is not None and len(ids) != len(data):
        raise InvalidRequestError(f"{len(data)} records of {resource.name} have {len(ids)} ids")
    given = [given_id(resource, each, None if ids is None else ids[index]) for index, each in enumerate(data)]
    items = [
        BatchRecord(id=None if record_id is None else str(record_id), data=fields_of(each))
        for record_id, each in zip(given, data, strict=True)
    ]
    return Batch("create", items)


def update[RecordT: Record[Any], UpdateT: BaseModel](
    resource: Resource[RecordT, Any, UpdateT], changes: Iterable[tuple[RecordT | RecordId, UpdateT]]
) -> Batch:
    items = [
        BatchRecord(id=str(target.id), data=changed_fields(change), if_match=target.etag)
        for record_or_id, change in changes
        for target in [target_of(resource, record_or_id)]
    ]
    return Batch("update", items)


def upsert[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], records: Iterable[tuple[RecordId, CreateT]]
) -> Batch:
    items = [
        BatchRecord(id=str(parse_id(resource, record_id)), data=fields_of(data))
        for record_id, data in records
    ]
    return Batch("upsert", items)


def delete[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], records_or_ids: Iterable[RecordT | RecordId]
) -> Batch:
    targets = [target_of(resource, record_or_id) for record_or_id in records_or_ids]
    return Batch("delete", [BatchRecord(id=str(target.id), if_match=target.etag) for target in targets])


def begin(resource: AnyResource, batch: Batch, step: str | None) -> WriteStep:
    """Begin the write of that batch: its targets, in no order, tell it from others where the caller knows all ids."""
    ids = [item.id for item in batch.items]
    has_targets = None not in ids
    method = f"{batch.kind}_many"
    name = f"{method} {resource.name}"
    return begin_write(
        f"{name} {digest_of(ids)}" if has_targets else name,
        method=method,
        step=step,
        content=batch.items,
        by_order=not has_targets,
    )


def request(resource: AnyResource, batch: Batch, write: WriteStep) -> Intent:
    """Return the request of that batch.

    Raises:
        InvalidRequestError: the batch has more than 1,000 records, or a natural key is missing.
    """
    if len(batch.items) > MAX_BATCH:
        raise InvalidRequestError(
            f"{len(batch.items)} records of {resource.name} are more than the {MAX_BATCH} of one batch; several batches"
            " are not all or nothing, so splitting them is up to you"
        )
    items = [item.model_dump(exclude_none=True) for item in batch.items]
    for index, item in enumerate(items):
        if "id" not in item:
            item["id"] = str(minted_id(resource, write.id_of(str(index))))
    body = encode_json({"items": items})
    return Intent(
        method="POST", path=f"{resource.path}:batch_{batch.kind}", headers=JSON, body=body, key=write.key
    )
