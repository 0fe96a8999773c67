"""Each operation as SQL: one statement where it succeeds, one more to say why it doesn't."""

from collections.abc import Mapping
from typing import Any, assert_never

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy import Update as UpdateStatement
from sqlalchemy.dialects.postgresql import insert

from hybridkit.dataservice._etags import State
from hybridkit.dataservice._operations import (
    Assert,
    Create,
    Delete,
    Document,
    Operation,
    Result,
    Undelete,
    Update,
    Upsert,
    merge_patch,
)
from hybridkit.dataservice._postgres_columns import now_in_milliseconds
from hybridkit.dataservice._postgres_database import Session
from hybridkit.dataservice._postgres_filters import condition
from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.dataservice._refusals import (
    fitting,
    missing,
    not_a_number,
    pointer,
    set_and_incremented,
    stale,
)
from hybridkit.errors import NotFoundError, NotSupportedError, StaleVersionError

__all__ = ["apply"]


async def apply(session: Session, table: ResourceTable, operation: Operation) -> Result:
    """Carry it out inside the session's transaction.

    Raises:
        NotFoundError: its record is not there.
        StaleVersionError: its condition does not hold.
        InvalidRequestError: a value that the table can't hold.
    """
    match operation:
        case Assert():
            await _assert(session, table, operation)
            return Result()
        case Create():
            return await _create(session, table, operation)
        case Update():
            return Result(await _update(session, table, operation))
        case Upsert():
            return await _upsert(session, table, operation)
        case Undelete():
            raise NotSupportedError("undelete is not there yet")
        case Delete():
            await _delete(session, table, operation)
            return Result()
        case _:
            assert_never(operation)


async def _assert(session: Session, table: ResourceTable, operation: Assert) -> None:
    locked = select(*table.all).where(table["id"] == operation.id).with_for_update(read=True)
    rows = await session.execute(locked)
    if not rows:
        raise missing(operation)
    if operation.if_match not in (None, current := table.tag(rows[0])):
        raise stale(operation, current)


async def _create(session: Session, table: ResourceTable, operation: Create) -> Result:
    statement = insert(table.table).values(_new_row(table, operation)).returning(*table.all)
    rows = await session.execute(statement)
    return Result(table.document(rows[0]), created=True)


async def _update(session: Session, table: ResourceTable, operation: Update) -> Document:
    changes = table.bound(operation.changes, at=pointer(operation))
    changes |= _increments(table, operation)
    changes |= await _merged(session, table, operation)
    where = _target(table, operation, operation.if_match)
    if operation.require is not None:
        where = and_(where, condition(table, operation.require))
    rows = await session.execute(_change(table, changes).where(where).returning(*table.all))
    if rows:
        return table.document(rows[0])
    current = await _current_tag(session, table, operation)
    if operation.if_match in (None, current):
        raise StaleVersionError(operation.says("the requirement does not hold"), current=current)
    raise stale(operation, current)


async def _upsert(session: Session, table: ResourceTable, operation: Upsert) -> Result:
    if operation.only == "present":
        return await _replace(session, table, operation)
    statement = insert(table.table).values(_new_row(table, operation))
    if operation.only == "absent":
        statement = statement.on_conflict_do_nothing(index_elements=[table["id"]])
    else:
        changes = _versioned(table, table.bound(operation.values, at=pointer(operation)))
        statement = statement.on_conflict_do_update(index_elements=[table["id"]], set_=changes)
    rows = await session.execute(statement.returning(*table.all))
    if not rows:
        raise stale(operation, await _current_tag(session, table, operation))
    document = table.document(rows[0])
    return Result(document, created=document["version"] == 1)


async def _replace(session: Session, table: ResourceTable, operation: Upsert) -> Result:
    changes = table.bound(operation.values, at=pointer(operation))
    where = _target(table, operation, operation.if_match)
    rows = await session.execute(_change(table, changes).where(where).returning(*table.all))
    if rows:
        return Result(table.document(rows[0]))
    try:
        current = await _current_tag(session, table, operation)
    except NotFoundError:  # a condition on a record that is not there does not hold: RFC 9110, section 13.1.1
        current = None
    raise stale(operation, current)


async def _delete(session: Session, table: ResourceTable, operation: Delete) -> None:
    where = _target(table, operation, operation.if_match)
    if not await session.execute(delete(table.table).where(where).returning(table["id"])):
        raise stale(operation, await _current_tag(session, table, operation))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _new_row(table: ResourceTable, operation: Create | Upsert) -> dict[str, Any]:
    values = table.bound({**table.defaults(), **operation.values}, at=pointer(operation))
    return {**values, table["id"].name: operation.id}


def _change(table: ResourceTable, changes: Mapping[str, Any]) -> UpdateStatement:
    return update(table.table).values(_versioned(table, changes))


def _versioned(table: ResourceTable, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **changes,
        table["version"].name: table["version"] + 1,
        table["updated_at"].name: now_in_milliseconds(),
    }


def _target(
    table: ResourceTable, operation: Update | Upsert | Delete, if_match: str | None
) -> ColumnElement[bool]:
    """The record, in the state that was asked for; a tag that no record can have matches none."""
    target: ColumnElement[bool] = table["id"] == operation.id
    if if_match is None:
        return target
    state = State.of(if_match) or State(version=0, incarnation=0)
    return and_(target, table["version"] == state.version, table["incarnation"] == state.incarnation)


def _increments(table: ResourceTable, operation: Update) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, amount in operation.increment.items():
        if not table.is_number(name):
            raise not_a_number(operation, name)
        if name in operation.changes:
            raise set_and_incremented(operation, name)
        column = table[name]
        changes[column.name] = func.coalesce(column, 0) + table.bind(
            name, amount, at=pointer(operation, "increment")
        )
    return changes


async def _merged(session: Session, table: ResourceTable, operation: Update) -> dict[str, Any]:
    """The documents after their merge patches; the record stays locked until they are written."""
    if not operation.merges:
        return {}
    names = tuple(operation.merges)
    columns = [table[name] for name in names]
    rows = await session.execute(select(*columns).where(table["id"] == operation.id).with_for_update())
    if not rows:
        raise missing(operation)
    merged = {
        name: fitting(operation, name, merge_patch(current, operation.merges[name]))
        for name, current in zip(names, rows[0], strict=True)
    }
    return table.bound(merged, at=pointer(operation))


async def _current_tag(session: Session, table: ResourceTable, operation: Operation) -> str:
    rows = await session.execute(select(*table.all).where(table["id"] == operation.id))
    if not rows:
        raise missing(operation)
    return table.tag(rows[0])
