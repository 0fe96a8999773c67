"""Run one create, or one conditional replacement, with its key and its events as one statement, committed by itself.

That is one round trip instead of six.

```
free    the key's lock, if nobody has it; the author, for the audit trail
known   the key's row, if it was used before
made    the record, if the key is free and not known, and the record to replace is in the state that is asked for
shown   the record as JSON
kept    the key's row, with that JSON
locks   the locks of the events' keys
sent    the events; their rows get their numbers after the locks
gone    earlier events that are cancelled
```

The statement's snapshot may be older than the lock. Then `known` misses what the former holder has committed, and the
row of the record or of the key violates its uniqueness: nothing is done, and the transaction of many statements, which
is tried next, finds out why. The same goes for everything else that the database refuses here, and for a record that is
in another state.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._columns import OUTBOX
from hybridkit.dataservice._postgres._driver._errors import UNTAKEN, commit_error
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._json_printing import literal, projection, quoted
from hybridkit.dataservice._postgres._keys import Recorded, author_text, key_lock
from hybridkit.dataservice._postgres._operations import new_row
from hybridkit.dataservice._postgres._outbox import ordering_locks, outbox_rows, service_member
from hybridkit.dataservice._postgres._outbox_sql import CANCELLABLE, EMITTED_BY
from hybridkit.dataservice._postgres._refusals import UnnamedError
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import DIALECT, bare, document_depth, parameter_type
from hybridkit.dataservice._postgres._types._values import in_texts
from hybridkit.dataservice._store._documents import read_document
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._kept_outcomes import MAX_KEPT_BYTES
from hybridkit.dataservice._store._keys import retention_of
from hybridkit.dataservice._store._operations import Create, Outcome, Result, Upsert, Write
from hybridkit.dataservice._store._refusals import pointer
from hybridkit.errors import ConflictError, InvalidRequestError, RejectedError

MAX_EVENTS: Final = 4
"""A write with more events goes the long way: each number of them is a statement that every connection prepares."""
MAX_CANCELLED: Final = 1
"""The same for events that are cancelled."""

type Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for a table and the fields that a create names.

    Attributes:
        sql: the text.
        convert: a function for each field that makes an argument of its value; None where the value is the argument.
    """

    sql: str
    convert: Mapping[str, Convert | None]


class SingleStatement:
    """The statements for writes that are one create or one conditional replacement, with or without events.

    Args:
        pool: the connections for requests.
        tables: the tables by their resource's name.
    """

    def __init__(self, pool: Pool, tables: Mapping[str, ResourceTable]) -> None:
        self._pool = pool
        self._tables = tables
        self._simple = {name for name, table in tables.items() if _is_simple(table)}
        self._statements: dict[_Shape, _Compiled] = {}

    def __repr__(self) -> str:
        return f"SingleStatement({len(self._statements)} statements)"

    def takes(self, write: Write) -> bool:
        """Return whether it is one create or conditional replacement in a table whose records PostgreSQL can print."""
        if len(write.operations) != 1 or len(write.emit) > MAX_EVENTS or len(write.cancel) > MAX_CANCELLED:
            return False
        if write.dry_run or write.appends or write.isolation != "read_committed":
            return False
        [operation] = write.operations
        if operation.resource.name not in self._simple:
            return False
        return isinstance(operation, Create) or (
            isinstance(operation, Upsert)
            and operation.only == "present"
            and not operation.increment
            and operation.if_match is not None
            and State.of(operation.if_match) is not None
        )

    async def write(self, write: Write) -> Outcome | Recorded | None:
        """Do the write, or return what was recorded under its key.

        Returns:
            The outcome, or what was recorded; None if another call has the key now, or the record is in another state.

        Raises:
            InvalidRequestError: the table can't hold a value.
            UnnamedError: the database refuses something, or another transaction won; nothing is done.
            OutcomeUnknownError: the connection broke; a call with the same key finds out.
        """
        operation = cast("Create | Upsert", write.operations[0])  # `takes` has looked
        table = self._tables[operation.resource.name]
        row, state = _values(table, operation)
        locks = ordering_locks(write.emit)
        statement = self._statement(
            table,
            _Shape(
                table=table.resource.name,
                names=tuple(row),
                creates=isinstance(operation, Create),
                locks=len(locks),
                events=len(write.emit),
                cancelled=len(write.cancel),
                minimal=write.minimal,
            ),
        )
        arguments: list[Any] = [
            key_lock(write),
            write.caller,
            write.key,
            write.fingerprint,
            retention_of(write.key),
            author_text(write),
            *state,
            *_converted(row, statement),
            *locks,
        ]
        for event in outbox_rows(write.emit, service=write.caller):
            arguments += _of_event(event)
        if write.cancel:
            arguments += (service_member(write.caller), *write.cancel)
        [found] = await self._pool.fetch(statement.sql, *arguments, translate=_translate)
        if found["body"] is not None:
            return Outcome((Result(read_document(found["body"]), created=isinstance(operation, Create)),))
        if found["results"] is not None:
            return found["fingerprint"], found["results"]
        return None

    def _statement(self, table: ResourceTable, shape: "_Shape") -> _Compiled:
        if (statement := self._statements.get(shape)) is None:
            statement = self._statements[shape] = _compile(table, shape)
        return statement


class _Shape(NamedTuple):
    """All that the text of a statement depends on.

    Attributes:
        table: the name of the resource.
        names: the fields that get a value, the id first where the record is replaced.
        creates: whether the record is new.
        locks: the number of the events' keys.
        events: the number of events.
        cancelled: the number of events that are cancelled.
        minimal: whether the key keeps no more than a reference.
    """

    table: str
    names: tuple[str, ...]
    creates: bool
    locks: int
    events: int
    cancelled: int
    minimal: bool


def _values(table: ResourceTable, operation: Create | Upsert) -> tuple[dict[str, Any], Sequence[int]]:
    """Return the fields with their values, and the state that the record must have, if it is to be replaced.

    Raises:
        InvalidRequestError: a column can't hold its value.
    """
    if isinstance(operation, Create):
        return new_row(table, operation), ()
    at = pointer(operation)
    values = {"id": operation.id, **operation.values}
    state = cast("State", State.of(cast("str", operation.if_match)))
    return {name: table.bind(name, value, at=at) for name, value in values.items()}, state


def _translate(error: Exception) -> Exception | None:
    found = commit_error(error)
    return UnnamedError() if isinstance(found, RejectedError | ConflictError) else found


# ── the text ──────────────────────────────────────────────────────────────────────────────────────

_FIRST_VALUE: Final = 7
"""The number of the first field's argument; before it are lock, caller, key, fingerprint, retention and author."""

_EVENT_COLUMNS: Final = (
    "event_id",
    "event_type",
    "key",
    "queue",
    "request_id",
    "user_id",
    "body",
    "not_before",
    "traceparent",
    "tracestate",
)
_of_event: Final = itemgetter(*_EVENT_COLUMNS)


def _is_simple(table: ResourceTable) -> bool:
    """Return whether PostgreSQL can print the table's records, and makes all values that no request names."""
    columns = table.table.columns
    return projection(table).is_printed and all(
        column.default is None and column.onupdate is None for column in columns
    )


def _compile(table: ResourceTable, shape: _Shape) -> _Compiled:
    shown = projection(table)
    first = _FIRST_VALUE + (0 if shape.creates else len(State._fields))
    values = {
        name: f"CAST(${number} AS {parameter_type(table[name].type).compile(dialect=DIALECT)})"
        for number, name in enumerate(shape.names, first)
    }
    record = shown.record(lambda name: f"made.{quoted(table[name].name)}")
    last = first + len(shape.names)
    sending = _events(last, shape.locks, shape.events) if shape.events else ""
    last += shape.locks + shape.events * len(_EVENT_COLUMNS)
    results = (_reference if shape.minimal else _results)(table, created=shape.creates)
    # Nothing in it comes from a request: names and types are those of the declarations.
    sql = f"""
        WITH free AS MATERIALIZED (
            SELECT pg_try_advisory_xact_lock($1) AS is_free, set_config('hk.who', $6, true)),
        known AS MATERIALIZED (SELECT fingerprint, results FROM hk_keys WHERE caller = $2 AND key = $3),
        made AS ({(_insert if shape.creates else _update)(table, values)}),
        shown AS (
            SELECT CAST(row_to_json(r.*) AS text) AS body, CAST(r."id" AS text) AS id, r."etag" AS etag
            FROM made, LATERAL {record} r),
        kept AS (
            INSERT INTO hk_keys (caller, key, fingerprint, results, expires_at)
            SELECT $2, $3, $4, convert_to({results}, 'UTF8'), now() + CAST($5 AS interval) FROM shown)
        {sending}
        {_cancelling(last, shape.cancelled) if shape.cancelled else ""}
        SELECT fingerprint, results, body FROM free LEFT JOIN known ON true LEFT JOIN shown ON true
    """  # noqa: S608 # nosec B608
    return _Compiled(sql, {name: _converter(table, name) for name in shape.names})


def _insert(table: ResourceTable, values: Mapping[str, str]) -> str:
    """Write the part that creates the record."""
    columns = ", ".join(quoted(table[name].name) for name in values)
    return (
        f"INSERT INTO {table.source} ({columns}) SELECT {', '.join(values.values())}"  # noqa: S608 # nosec B608
        " FROM free WHERE is_free AND NOT EXISTS (SELECT FROM known) RETURNING *"
    )


def _update(table: ResourceTable, values: Mapping[str, str]) -> str:
    """Write the part that replaces the record if it is in the state of the two arguments before the values."""
    own = {name: quoted(table[name].name) for name in ("id", "version", "incarnation", "updated_at")}
    changes = [f"{quoted(table[name].name)} = {value}" for name, value in values.items() if name != "id"]
    changes += [
        f"{own['version']} = hk_own.{own['version']} + 1",
        f"{own['updated_at']} = date_trunc('milliseconds', now())",
    ]
    live = f" AND hk_own.{quoted(table['deleted_at'].name)} IS NULL" if table.resource.soft_delete else ""
    return (
        f"UPDATE {table.source} AS hk_own SET {', '.join(changes)}"  # noqa: S608 # nosec B608
        f" FROM free WHERE is_free AND NOT EXISTS (SELECT FROM known) AND hk_own.{own['id']} = {values['id']}"
        f" AND hk_own.{own['version']} = CAST(${_FIRST_VALUE} AS bigint)"
        f" AND hk_own.{own['incarnation']} = CAST(${_FIRST_VALUE + 1} AS bigint){live} RETURNING hk_own.*"
    )


def _results(table: ResourceTable, *, created: bool) -> str:
    """Write SQL for the outcome as `encode_outcome` encodes it."""
    whole = f"'[[' || body || ',{_json(created)}]]'"
    reference = _reference(table, created=created)
    return f"CASE WHEN octet_length(body) <= {MAX_KEPT_BYTES} THEN {whole} ELSE {reference} END"


def _reference(table: ResourceTable, *, created: bool) -> str:
    """Write SQL for the outcome of which only the id and the state are kept."""
    name = literal(_json(table.resource.name))
    end = f",{_json(created)}]]}}"
    return f"""'{{"records":[[' || {name} || ',' || to_json(id) || ',' || to_json(etag) || '{end}'"""


def _json(value: object) -> str:
    return encode_json(value).decode()


def _events(first: int, locks: int, events: int) -> str:
    """Write the parts that lock the events' keys and add the events.

    Both are joined to `shown`, so a call that creates nothing waits for no other call's events. They are lists of
    values, not arrays: PostgreSQL would plan anew for each call, by the length of the array.
    """
    kinds = [OUTBOX.c[name].type.compile(dialect=DIALECT) for name in _EVENT_COLUMNS]
    given = ", ".join(f"(CAST(${first + number} AS bigint))" for number in range(locks))
    numbers = f"VALUES {given}" if locks else "SELECT 0 WHERE false"
    parameters = itertools.count(first + locks)
    rows = ", ".join(
        f"({number}, {', '.join(f'CAST(${next(parameters)} AS {kind})' for kind in kinds)})"
        for number in range(events)
    )
    names = ", ".join(_EVENT_COLUMNS)
    values = ", ".join(f"event.{name}" for name in _EVENT_COLUMNS)
    return f""",
        locks AS MATERIALIZED (SELECT pg_advisory_xact_lock(number) FROM shown, ({numbers}) AS key_lock(number)),
        sent AS (
            INSERT INTO hk_outbox ({names})
            SELECT {values} FROM shown, (SELECT count(*) FROM locks) AS taken,
                (VALUES {rows}) AS event(place, {names}) ORDER BY event.place
            ON CONFLICT (event_id) DO NOTHING)
    """  # noqa: S608 # nosec B608


def _cancelling(first: int, cancelled: int) -> str:
    """Write the part that takes back events whose time has not come, if the same service has emitted them."""
    ids = ", ".join(f"CAST(${first + number} AS uuid)" for number in range(1, cancelled + 1))
    return f""",
        gone AS (
            DELETE FROM hk_outbox USING shown
            WHERE event_id IN ({ids}) AND {CANCELLABLE} AND {EMITTED_BY.format(service=f"CAST(${first} AS text)")})
    """  # noqa: S608 # nosec B608


def _converted(row: Mapping[str, Any], statement: _Compiled) -> Sequence[Any]:
    try:
        return [
            row[name] if convert is None else convert(row[name])
            for name, convert in statement.convert.items()
        ]
    except UNTAKEN:
        raise InvalidRequestError("the database refuses a value") from None


def _converter(table: ResourceTable, name: str) -> Convert | None:
    kind = table[name].type
    if document_depth(kind) is not None:
        return partial(in_texts, kind)
    return bare(kind).bind_processor(DIALECT)
