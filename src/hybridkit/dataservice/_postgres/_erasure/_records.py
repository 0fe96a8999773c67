"""Erase the personal fields of a resource's records, those too that a soft delete has hidden."""

from typing import Any

from sqlalchemy import ColumnElement, func, null, or_, select, update

from hybridkit.dataservice._postgres._columns import now_in_milliseconds
from hybridkit.dataservice._postgres._driver._pool import Session
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._erasure import BATCH_ROWS, Erased, RecordStep


async def erase_records(
    session: Session, table: ResourceTable, step: RecordStep, person: str, *, after: str, dry_run: bool
) -> Erased:
    """Erase the records of a batch, and return their ids, those included that had nothing left to erase."""
    key = step.key_of(person)
    if key is None:
        return Erased({table.resource.name: 0})
    found = select(table["id"]).where(table[step.marks.key] == key).order_by(table["id"]).limit(BATCH_ROWS)
    if after:
        found = found.where(table["id"] > table.resource.kept_id(after))
    ids = [row[0] for row in await session.execute(found)]
    values = {name: table.bind(name, blank) for name, blank in step.marks.blanks.items()}
    is_left = table["id"].in_(ids) & or_(*(_differs(table[name], value) for name, value in values.items()))
    if dry_run:
        [[count]] = await session.execute(select(func.count()).select_from(table.table).where(is_left))
    else:
        changed: dict[Any, Any] = {
            table[name]: null() if value is None else value for name, value in values.items()
        }
        changed |= {table["version"]: table["version"] + 1, table["updated_at"]: now_in_milliseconds()}
        statement = update(table.table).where(is_left).values(changed).returning(table["id"])
        count = len(await session.execute(statement))
    last = str(ids[-1]) if len(ids) == BATCH_ROWS else None
    return Erased({table.resource.name: count}, last, ids)


def _differs(column: Any, value: Any) -> ColumnElement[bool]:
    differs: ColumnElement[bool] = column.is_not(None) if value is None else column.is_distinct_from(value)
    return differs
