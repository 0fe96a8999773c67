"""Erase a person's data in the audit trail: of the records that are there, and of those that have been deleted."""

from collections.abc import Collection
from typing import Any

from hybridkit.dataservice._store._erasure import Erased, HistoryStep, RecordStep
from hybridkit.dataservice._store._protocol import Store


async def erase_history(store: Store, step: HistoryStep, person: str) -> Erased:
    """Erase the history of the person's records that have been deleted."""
    records = step.records
    key = records.key_of(person)
    if key is None:
        ids: Collection[Any] = ()
    elif records.marks.key == "id":
        ids = [key]
    else:
        ids = await store.deleted_ids(records.resource, records.marks.key, key)
    return await erase_entries(store, records, ids)


async def erase_entries(store: Store, step: RecordStep, ids: Collection[Any]) -> Erased:
    """Erase the personal fields in the history of records."""
    count = await store.blank_audit(step.resource, list(step.marks.blanks), ids) if ids else 0
    return Erased({f"history of {step.resource.name}": count})
