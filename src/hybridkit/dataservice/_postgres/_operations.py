"""Run operations as SQL: one statement for a run of them if it succeeds, and one more to find out why it doesn't."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Row,
    and_,
    delete,
    func,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from hybridkit.dataservice._postgres._columns import now_in_milliseconds
from hybridkit.dataservice._postgres._driver._errors import database_error, query_error, sqlstate_of
from hybridkit.dataservice._postgres._driver._pool import Session
from hybridkit.dataservice._postgres._filters import condition
from hybridkit.dataservice._postgres._operation_rows import Rows, chunks, runs
from hybridkit.dataservice._postgres._refusals import RefusedError, UnnamedError
from hybridkit.dataservice._postgres._table import ResourceTable, as_read
from hybridkit.dataservice._postgres._upsert import InsertOnConflict, target
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._increments import incremented
from hybridkit.dataservice._store._merging import merged
from hybridkit.dataservice._store._operations import (
    Assert,
    Create,
    Delete,
    Operation,
    Result,
    Undelete,
    Update,
    Upsert,
)
from hybridkit.dataservice._store._refusals import (
    hidden,
    left_out,
    not_a_number,
    not_found,
    pointer,
    requirement_not_met,
    set_and_incremented,
    stale_version,
)
from hybridkit.errors import InvalidQueryError, RejectedError
from hybridkit.resources import Filter

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

type AnyRow = Row[*tuple[Any, ...]]

_TWICE = "21000"
"""Two different ids name one record to PostgreSQL, which changes no record twice in one statement."""
_NO_STATE = State(version=0, incarnation=0)
"""The state for a tag that no record can have."""


async def apply(
    session: Session, tables: Mapping[str, ResourceTable], operations: Sequence[Operation]
) -> list[Result]:
    """Carry out the operations inside the session's transaction, in their order.

    Raises:
        NotFoundError: a record is not there.
        StaleVersionError: a record is in another state.
        RequirementNotMetError: a record is not as its operation requires.
        InvalidRequestError: the table can't hold a value.
        RefusedError: the database refuses an operation.
        UnnamedError: the database refuses one of several operations.
    """
    results: list[Result] = []
    for run in runs(operations):
        table = tables[run[0].resource.name]
        for chunk in chunks(table, run):
            results += await _Run(session, table, chunk).apply()
    return results


async def apply_carefully(
    session: Session, tables: Mapping[str, ResourceTable], operations: Sequence[Operation]
) -> list[Result]:
    """Carry out operations as `apply`, but halve them down to the first that is refused, so that the error names it."""
    await session.execute(text("SAVEPOINT half"))
    try:
        results = await apply(session, tables, operations)
    except UnnamedError:
        await session.roll_back_to("half")
        middle = len(operations) // 2
        first = await apply_carefully(session, tables, operations[:middle])
        return first + await apply_carefully(session, tables, operations[middle:])
    await session.execute(text("RELEASE SAVEPOINT half"))
    return results


def new_row(table: ResourceTable, operation: Create | Upsert) -> dict[str, Any]:
    """Return the values of a new record, by field.

    Raises:
        InvalidRequestError: a column can't hold its value.
    """
    values = {**table.defaults(), **operation.values, "id": operation.id}
    if isinstance(operation, Upsert):
        values |= {name: incremented(operation, name, values.get(name)) for name in operation.increment}
    at = pointer(operation)
    return {name: table.bind(name, value, at=at) for name, value in values.items()}


class _Run:
    """Operations of one shape on one table; see `runs`."""

    def __init__(self, session: Session, table: ResourceTable, run: Sequence[Operation]) -> None:
        self._session = session
        self._table = table
        self._run = run

    async def apply(self) -> list[Result]:
        match self._run[0]:
            case Assert():
                return await self._assert()
            case Create():
                return await self._create()
            case Update():
                return await self._update()
            case Upsert(only="present"):
                return await self._replace()
            case Upsert():
                return await self._upsert()
            case Delete():
                return await self._delete()
            case _:
                return await self._undelete()

    # ── each kind ─────────────────────────────────────────────────────────────────────────────────

    async def _assert(self) -> list[Result]:
        rows = self._targets()
        locked = (
            select(rows.position)
            .where(self._hit(rows), self._table.live)
            .order_by(rows.position)
            .with_for_update(read=True, of=self._table.table)
        )
        hit = await self._hits(locked)
        await self._explain(hit)
        return [Result()] * len(self._run)

    async def _create(self) -> list[Result]:
        rows, names = self._new_rows()
        statement = insert(self._table.table).from_select(
            [self._table[name].key for name in names], select(*(rows[name] for name in names))
        )
        made = await self._by_id(statement.returning(*self._table.all))
        results: list[Result] = []
        for operation, row in zip(self._run, made, strict=True):
            if row is None:
                raise left_out(operation)
            results.append(Result(self._table.document(row), created=True))
        return results

    async def _update(self) -> list[Result]:
        operations = cast("Sequence[Update]", self._run)
        values = [self._bound(operation, operation.changes) for operation in operations]
        documents = await self._merged(operations)
        added = [self._increments(operation) for operation in operations]
        every = [{**one, **two} for one, two in zip(values, documents, strict=True)]
        first = operations[0]
        rows = self._targets(every, added)
        changes: dict[str, Any] = {self._table[name].key: rows[name] for name in every[0]}
        for name in first.increment:
            changes[self._table[name].key] = func.coalesce(self._table[name], 0) + rows[f"+{name}"]
        where = and_(self._hit(rows), self._table.live)
        if first.require is not None:
            where = and_(where, self._requirement(first, first.require))
        return await self._changed(rows, changes, where)

    async def _replace(self) -> list[Result]:
        operations = cast("Sequence[Upsert]", self._run)
        values = [self._bound(operation, operation.values) for operation in operations]
        rows = self._targets(values)
        changes: dict[str, Any] = {self._table[name].key: rows[name] for name in values[0]}
        return await self._changed(rows, changes, and_(self._hit(rows), self._table.live))

    async def _upsert(self) -> list[Result]:
        rows, names = self._new_rows()
        first = cast("Upsert", self._run[0])
        table = self._table
        statement = InsertOnConflict(table.table).from_select(
            [table[name].key for name in names], select(*(rows[name] for name in names))
        )
        if first.only == "absent":
            statement = statement.on_conflict_do_nothing(index_elements=[table["id"]])
        else:
            changes: dict[str, Any] = {
                table[name].key: func.coalesce(target(table, name), 0) + amount
                for name, amount in self._increments(first).items()
            } or {table[name].key: statement.excluded[table[name].key] for name in first.values}
            statement = statement.on_conflict_do_update(
                index_elements=[table["id"]],
                set_={**self._versioned(changes), table["version"].key: target(table, "version") + 1},
                where=target(table, "deleted_at").is_(None) if table.resource.soft_delete else None,
            )
        written = statement.returning(*(as_read(target(table, name)) for name in table.whole.stored))
        results: list[Result] = []
        for operation, row in zip(self._run, await self._by_id(written), strict=True):
            if row is None:
                raise await self._unwritten(cast("Upsert", operation))
            document = self._table.document(row)
            results.append(Result(document, created=document["version"] == 1))
        return results

    async def _unwritten(self, operation: Upsert) -> RejectedError:
        current = await self._current(operation)
        if current is None and self._table.resource.soft_delete:
            return hidden(operation)
        if current is not None and operation.only == "absent":
            return stale_version(operation, current)
        return left_out(operation)

    async def _delete(self) -> list[Result]:
        rows, table = self._targets(), self._table
        where = and_(self._hit(rows), table.live)
        if table.resource.soft_delete:
            hiding = {
                table["deleted_at"].key: now_in_milliseconds(),
                table["version"].key: table["version"] + 1,
            }
            hit = await self._hits(update(table.table).values(hiding).where(where).returning(rows.position))
        else:
            hit = await self._hits(delete(table.table).where(where).returning(rows.position))
        await self._explain(hit)
        return [Result()] * len(self._run)

    async def _undelete(self) -> list[Result]:
        found: dict[int, AnyRow] = {}
        if self._table.resource.soft_delete:
            rows = self._targets()
            showing = self._versioned({self._table["deleted_at"].key: null()})
            was_hidden = self._table["deleted_at"].is_not(None)
            statement = update(self._table.table).values(showing).where(self._hit(rows), was_hidden)
            found = self._by_position(
                await self._execute(statement.returning(rows.position, *self._table.all))
            )
        results: list[Result] = []
        for position, operation in enumerate(self._run, 1):
            row = found.get(position) or await self._undeleted_already(cast("Undelete", operation))
            results.append(Result(self._table.document(row)))
        return results

    async def _undeleted_already(self, operation: Undelete) -> AnyRow:
        """Return the record that was not deleted at all; if it was, only the condition on it can have failed."""
        statement = select(*self._table.all).where(self._table["id"] == self._id(operation))
        rows = await self._execute(statement)
        if not rows:
            raise not_found(operation)
        if operation.if_match not in (None, current := self._table.tag(rows[0])):
            raise stale_version(operation, current)
        return rows[0]

    # ── rows ──────────────────────────────────────────────────────────────────────────────────────

    def _new_rows(self) -> tuple[Rows, Sequence[str]]:
        values = [new_row(self._table, cast("Create | Upsert", operation)) for operation in self._run]
        names = tuple(values[0])
        kinds = {name: self._table[name].type for name in names}
        return Rows(self._table.own("given"), kinds, [[row[name] for name in names] for row in values]), names

    def _targets(
        self, values: Sequence[Mapping[str, Any]] = (), added: Sequence[Mapping[str, Any]] = ()
    ) -> Rows:
        """Return the row of each operation: the record's id, the state that it must have, and its values."""
        kinds: dict[str, TypeEngine[Any]] = {
            "id": self._table["id"].type,
            "=version": BigInteger(),
            "=incarnation": BigInteger(),
        }
        kinds |= {name: self._table[name].type for name in (values[0] if values else ())}
        kinds |= {f"+{name}": self._table[name].type for name in (added[0] if added else ())}
        rows: list[Sequence[Any]] = []
        for number, operation in enumerate(self._run):
            state = (None, None) if (tag := _tag(operation)) is None else State.of(tag) or _NO_STATE
            given = values[number].values() if values else ()
            more = added[number].values() if added else ()
            rows.append((self._id(operation), *state, *given, *more))
        return Rows(self._table.own("given"), kinds, rows)

    def _id(self, operation: Operation) -> Any:
        return self._table.bind("id", operation.id)

    def _hit(self, rows: Rows) -> ColumnElement[bool]:
        """Return the condition for the record of a row, in the state that it must have."""
        target: ColumnElement[bool] = self._table["id"] == rows["id"]
        if _tag(self._run[0]) is None:
            return target
        same_version = self._table["version"] == rows["=version"]
        return and_(target, same_version, self._table["incarnation"] == rows["=incarnation"])

    def _bound(self, operation: Operation, values: Mapping[str, Any]) -> dict[str, Any]:
        at = pointer(operation)
        return {name: self._table.bind(name, value, at=at) for name, value in values.items()}

    def _increments(self, operation: Update | Upsert) -> dict[str, Any]:
        at = pointer(operation, "increment")
        amounts: dict[str, Any] = {}
        for name, amount in operation.increment.items():
            if not self._table.is_number(name):
                raise not_a_number(operation, name)
            if isinstance(operation, Update) and name in operation.changes:
                raise set_and_incremented(operation, name)
            amounts[name] = self._table.bind(name, amount, at=at)
        return amounts

    def _requirement(self, operation: Update, require: Filter) -> ColumnElement[bool]:
        try:
            return condition(self._table, require)
        except InvalidQueryError as error:
            raise _incomparable(operation, str(error)) from None

    async def _merged(self, operations: Sequence[Update]) -> list[dict[str, Any]]:
        """Return the documents after their merge patches; the records stay locked until they are written."""
        names = tuple(operations[0].merges)
        if not names:
            return [{}] * len(operations)
        rows = self._targets()
        columns = [self._table[name] for name in names]
        locked = (
            select(rows.position, *columns)
            .where(self._table["id"] == rows["id"], self._table.live)
            .order_by(rows.position)
            .with_for_update(of=self._table.table)
        )
        found = self._by_position(await self._execute(locked))
        changed: list[dict[str, Any]] = []
        for position, operation in enumerate(operations, 1):
            if position not in found:
                raise not_found(operation)
            changed.append(
                {
                    name: self._table.bind(
                        name,
                        merged(operation, name, document),
                        at=pointer(operation),
                    )
                    for name, document in zip(names, found[position], strict=True)
                }
            )
        return changed

    # ── statements ────────────────────────────────────────────────────────────────────────────────

    async def _changed(
        self, rows: Rows, changes: Mapping[str, Any], where: ColumnElement[bool]
    ) -> list[Result]:
        statement = update(self._table.table).values(self._versioned(changes)).where(where)
        found = self._by_position(await self._execute(statement.returning(rows.position, *self._table.all)))
        await self._explain(found)
        return [Result(self._table.document(found[position + 1])) for position in range(len(self._run))]

    def _versioned(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        version, updated_at = self._table["version"], self._table["updated_at"]
        return {**changes, version.key: version + 1, updated_at.key: now_in_milliseconds()}

    async def _execute(self, statement: Executable) -> Sequence[AnyRow]:
        try:
            return await self._session.execute(statement, translate=self._translate)
        except RejectedError as error:
            raise RefusedError(self._run[0], error) from error

    def _translate(self, error: Exception) -> Exception | None:
        first, found = self._run[0], database_error(error)
        if found is None and isinstance(first, Update) and first.require is not None:
            meant = query_error(error)
            found = meant and _incomparable(first, str(meant))
        is_one_of_several = isinstance(found, RejectedError) or sqlstate_of(error) == _TWICE
        return UnnamedError() if is_one_of_several and len(self._run) > 1 else found

    async def _by_id(self, statement: Executable) -> list[AnyRow | None]:
        """Return the row of each operation's record, from a statement that returns `all` columns."""
        rows = await self._execute(statement)
        if len(self._run) == 1:
            return [rows[0] if rows else None]
        found = {self._table.document(row)["id"]: row for row in rows}
        asked = [self._id(operation) for operation in self._run]
        if not found.keys() >= set(asked):
            # Left out, or equal to PostgreSQL and not to Python, as texts of CITEXT may be.
            raise UnnamedError
        return [found[record_id] for record_id in asked]

    async def _hits(self, statement: Executable) -> set[int]:
        return {row[0] for row in await self._execute(statement)}

    @staticmethod
    def _by_position(rows: Sequence[AnyRow]) -> dict[int, Any]:
        return {row[0]: row[1:] for row in rows}

    async def _explain(self, hit: Mapping[int, Any] | set[int]) -> None:
        """Find out why the first operation without an effect had none.

        Raises:
            NotFoundError: its record is not there.
            StaleVersionError: its record is in another state.
            RequirementNotMetError: its record is not as the operation requires.
        """
        for position, operation in enumerate(self._run, 1):
            if position in hit:
                continue
            current = await self._current(operation)
            if current is None and not isinstance(operation, Upsert):
                raise not_found(operation)
            # A condition on a missing record does not hold: RFC 9110, section 13.1.1.
            if current is not None and _tag(operation) in (None, current):
                if not isinstance(operation, Update) or operation.require is None:
                    raise left_out(operation) if len(self._run) == 1 else UnnamedError
                raise requirement_not_met(operation, current)
            raise stale_version(operation, current)

    async def _current(self, operation: Operation) -> str | None:
        """Return the ETag of the operation's record; None if it is not there."""
        own = self._table["id"] == self._id(operation)
        rows = await self._execute(select(*self._table.all).where(own, self._table.live))
        return self._table.tag(rows[0]) if rows else None


def _incomparable(operation: Update, reason: str) -> InvalidQueryError:
    """Return the error for a requirement whose values can't be compared."""
    return InvalidQueryError(operation.says(reason), pointer=pointer(operation, "require"))


def _tag(operation: Operation) -> str | None:
    """Return the ETag that the operation's record must have, if any."""
    return None if isinstance(operation, Create) else operation.if_match
