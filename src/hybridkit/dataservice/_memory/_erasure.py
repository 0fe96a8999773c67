"""Erasure of a person's data in memory."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from hybridkit.codec import now
from hybridkit.dataservice._memory._streams import MemoryStreams
from hybridkit.dataservice._memory._table import MemoryTable, Row
from hybridkit.dataservice._store._erasure import Erased, ErasureStep, RecordStep, SagaStep, StreamStep
from hybridkit.sagas import SAGAS


def erase(
    tables: Mapping[str, MemoryTable],
    streams: MemoryStreams,
    step: ErasureStep,
    person: str,
    *,
    dry_run: bool,
) -> Erased:
    """Do a step at once, or only count what it would change."""
    match step:
        case RecordStep():
            table = tables[step.resource.name]
            changes = {record_id: _record_changes(step, row, person) for record_id, row in table.rows.items()}
            ids = [record_id for record_id, row in table.rows.items() if step.is_about(row.values, person)]
            return Erased({table.resource.name: _change(table, changes, dry_run=dry_run)}, ids=ids)
        case SagaStep():
            table = tables[SAGAS.name]
            changes = {
                record_id: step.erased(to_jsonable_python(row.values), person)
                for record_id, row in table.rows.items()
            }
            return Erased({table.resource.name: _change(table, changes, dry_run=dry_run)})
        case _:
            return _erase_events(streams, step, person, dry_run=dry_run)


def _record_changes(step: RecordStep, row: Row, person: str) -> dict[str, Any]:
    if not step.is_about(row.values, person):
        return {}
    stored = to_jsonable_python({name: row.values[name] for name in step.marks.blanks})
    return {name: blank for name, blank in step.marks.blanks.items() if stored[name] != blank}


def _change(table: MemoryTable, changes: Mapping[Any, Mapping[str, Any]], *, dry_run: bool) -> int:
    """Change fields of records, given as JSON values by the record's id, and return the number of changed records."""
    fields = table.resource.record.model_fields
    changed = {record_id: new for record_id, new in changes.items() if new}
    for record_id, new in () if dry_run else changed.items():
        row = table.rows[record_id]
        values = {
            name: TypeAdapter[Any](fields[name].annotation).validate_python(value)
            for name, value in new.items()
        }
        stamps = {"version": row.version + 1, "updated_at": now()}
        table.rows[record_id] = replace(row, values={**row.values, **values, **stamps})
    return len(changed)


def _erase_events(streams: MemoryStreams, step: StreamStep, person: str, *, dry_run: bool) -> Erased:
    entries = streams.logs[step.stream.name]
    changes = [(entry, step.erased(entry["event_type"], entry["data"], person)) for entry in entries]
    found = [(entry, data) for entry, data in changes if data is not None]
    about = {
        (step.stream.name, entry["stream_id"])
        for entry in entries
        if step.is_about(entry["event_type"], entry["data"], person)
    }
    snapshots = about & streams.snapshots.keys()
    if not dry_run:
        for entry, data in found:
            entry |= {"data": data, "redacted_at": entry["redacted_at"] or now()}
        for name in snapshots:
            del streams.snapshots[name]
    return Erased({step.stream.name: len(found), f"snapshots of {step.stream.name}": len(snapshots)})
