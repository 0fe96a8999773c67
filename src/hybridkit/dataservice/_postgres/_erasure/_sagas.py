"""Erase a person's data in the rows of sagas, which only Python can read: their data and commands are JSON."""

from typing import Any

from sqlalchemy import Text, bindparam, cast, or_, select, update

from hybridkit.dataservice._postgres._columns import now_in_milliseconds
from hybridkit.dataservice._postgres._driver._pool import Session
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._erasure import BATCH_ROWS, Erased, SagaStep

FIELDS = ("id", "saga", "status", "user_id", "data", "sent", "undo", "notes")


async def erase_sagas(
    session: Session, table: ResourceTable, step: SagaStep, person: str, *, after: str, dry_run: bool
) -> Erased:
    """Erase the sagas among the next rows that mention the person anywhere; they are locked meanwhile."""
    mentions = [
        cast(table[name], Text).contains(person, autoescape=True) for name in ("data", "sent", "undo")
    ]
    found = (
        select(*(table[name] for name in FIELDS))
        .where(or_(table["user_id"] == person, *mentions))
        .order_by(table["id"])
        .limit(BATCH_ROWS)
    )
    if after:
        found = found.where(table["id"] > table.resource.kept_id(after))
    rows: list[dict[str, Any]] = [
        dict(zip(FIELDS, row, strict=True))
        for row in await session.execute(found if dry_run else found.with_for_update())
    ]
    changes = {row["id"]: step.erased(row, person) for row in rows}
    changed = {record_id: new for record_id, new in changes.items() if new}
    for record_id, new in () if dry_run else changed.items():
        values: dict[Any, Any] = {
            table[name]: bindparam(f"new_{name}", value, type_=table[name].type)
            for name, value in new.items()
        }
        values |= {table["version"]: table["version"] + 1, table["updated_at"]: now_in_milliseconds()}
        await session.execute(update(table.table).where(table["id"] == record_id).values(values))
    last = str(rows[-1]["id"]) if len(rows) == BATCH_ROWS else None
    return Erased({table.resource.name: len(changed)}, last)
