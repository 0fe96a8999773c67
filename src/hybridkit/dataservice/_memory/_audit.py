"""The audit trail in memory: entries as rows of a table, so that they are read, and undone, as records are."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridkit.codec import now
from hybridkit.dataservice._memory._table import MemoryTable, Row
from hybridkit.dataservice._store._audit import author_of, blanked, changes_of
from hybridkit.dataservice._store._operations import Write
from hybridkit.resources import AUDIT, AuditOperation
from hybridkit.resources._resource import AnyResource


class MemoryAudit:
    """The trail of a store in memory.

    Attributes:
        table: the entries.
    """

    def __init__(self) -> None:
        self.table = MemoryTable(AUDIT)
        self._ids = itertools.count(1)

    def __repr__(self) -> str:
        return f"MemoryAudit({self.table!r})"

    def add(
        self, write: Write, resource: AnyResource, record_id: Any, before: Row | None, after: Row | None
    ) -> None:
        """Add the entry of a change, unless the record is as it was."""
        if before is after:
            return
        live_before, live_after = _live(before), _live(after)
        moment = now() if live_after is None else live_after["updated_at"]
        version = after.version if after is not None else before.version + 1 if before is not None else 1
        entry_id = next(self._ids)
        values = {
            "id": entry_id,
            "version": 1,
            "created_at": moment,
            "updated_at": moment,
            "resource": resource.name,
            "record_id": str(record_id),
            "record_version": version,
            "operation": _operation(before, live_before, live_after),
            **author_of(write),
            "changes": changes_of(resource, live_before, live_after),
        }
        self.table.rows[entry_id] = Row(values, incarnation=0)

    def blank(self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]) -> int:
        """Blank the values of fields in the entries of records, and return the number of entries changed."""
        ids = {str(record_id) for record_id in record_ids}
        done = 0
        for entry_id, row in self.table.rows.items():
            if row.values["resource"] != resource.name or row.values["record_id"] not in ids:
                continue
            if (changes := blanked(row.values["changes"], fields)) is not None:
                stamps = {"version": row.version + 1, "updated_at": now(), "changes": changes}
                self.table.rows[entry_id] = replace(row, values={**row.values, **stamps})
                done += 1
        return done

    def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed."""
        found = [
            row.values["record_id"]
            for row in self.table.rows.values()
            if (row.values["resource"], row.values["operation"]) == (resource.name, "delete")
            and row.values["changes"].get(field, [None])[0] == value
        ]
        return list(dict.fromkeys(found))


def _live(row: Row | None) -> Mapping[str, Any] | None:
    return None if row is None or row.is_hidden else row.values


def _operation(before: Row | None, live_before: object, live_after: object) -> AuditOperation:
    if live_after is None:
        return "delete"
    if live_before is not None:
        return "update"
    return "create" if before is None else "undelete"
