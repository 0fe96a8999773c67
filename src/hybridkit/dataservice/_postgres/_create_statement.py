"""Run one create with its key and its events as one statement, committed by itself: one round trip instead of six.

```
free    the key's lock, if nobody has it
known   the key's row, if it was used before
made    the record, if the key is free and not known
shown   the record as JSON
kept    the key's row, with that JSON
locks   the locks of the events' keys
sent    the events; their rows get their numbers after the locks
```

The statement's snapshot may be older than the lock. Then `known` misses what the former holder has committed, and the
row of the record or of the key violates its uniqueness: nothing is done, and the transaction of many statements, which
is tried next, finds out why. The same goes for everything else that the database refuses here.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._columns import OUTBOX
from hybridkit.dataservice._postgres._driver._errors import UNTAKEN, commit_error
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._json_printing import literal, projection, quoted
from hybridkit.dataservice._postgres._keys import Recorded, key_lock
from hybridkit.dataservice._postgres._operations import new_row
from hybridkit.dataservice._postgres._outbox import ordering_locks, outbox_rows
from hybridkit.dataservice._postgres._refusals import UnnamedError
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import DIALECT, bare, document_depth, parameter_type
from hybridkit.dataservice._postgres._types._values import in_texts
from hybridkit.dataservice._store._documents import read_document
from hybridkit.dataservice._store._kept_outcomes import MAX_KEPT_BYTES
from hybridkit.dataservice._store._keys import retention_of
from hybridkit.dataservice._store._operations import Create, Outcome, Result, Write
from hybridkit.errors import ConflictError, InvalidRequestError, RejectedError

MAX_EVENTS: Final = 4
"""A write with more events goes the long way: each number of them is a statement that every connection prepares."""

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


class CreateStatement:
    """The statements for writes that are one create, with or without events.

    Args:
        pool: the connections for requests.
        tables: the tables by their resource's name.
    """

    def __init__(self, pool: Pool, tables: Mapping[str, ResourceTable]) -> None:
        self._pool = pool
        self._tables = tables
        self._simple = {name for name, table in tables.items() if _is_simple(table)}
        self._statements: dict[tuple[str, tuple[str, ...], int, int, bool], _Compiled] = {}

    def __repr__(self) -> str:
        return f"CreateStatement({len(self._statements)} statements)"

    def takes(self, write: Write) -> bool:
        """Return whether the write is one create into a table whose records PostgreSQL can print."""
        if len(write.operations) != 1 or len(write.emit) > MAX_EVENTS:
            return False
        if write.dry_run or write.isolation != "read_committed":
            return False
        [operation] = write.operations
        return isinstance(operation, Create) and operation.resource.name in self._simple

    async def write(self, write: Write) -> Outcome | Recorded | None:
        """Do the write, or return what was recorded under its key; None if another call has the key now.

        Raises:
            InvalidRequestError: the table can't hold a value.
            UnnamedError: the database refuses something, or another transaction won; nothing is done.
            OutcomeUnknownError: the connection broke; a call with the same key finds out.
        """
        [operation] = write.operations
        table = self._tables[operation.resource.name]
        row = new_row(table, operation)  # type: ignore[arg-type] # `takes` has looked
        locks = ordering_locks(write.emit)
        statement = self._statement(
            table, tuple(row), locks=len(locks), events=len(write.emit), minimal=write.minimal
        )
        arguments: list[Any] = [
            key_lock(write),
            write.caller,
            write.key,
            write.fingerprint,
            retention_of(write.key),
            *_converted(row, statement),
            *locks,
        ]
        for event in outbox_rows(write.emit, service=write.caller):
            arguments += _of_event(event)
        [found] = await self._pool.fetch(statement.sql, *arguments, translate=_translate)
        if found["body"] is not None:
            return Outcome((Result(read_document(found["body"]), created=True),))
        if found["results"] is not None:
            return found["fingerprint"], found["results"]
        return None

    def _statement(
        self, table: ResourceTable, names: tuple[str, ...], *, locks: int, events: int, minimal: bool
    ) -> _Compiled:
        name = (table.resource.name, names, locks, events, minimal)
        if (statement := self._statements.get(name)) is None:
            results = _reference(table) if minimal else _results(table)
            statement = _compile(table, names, locks=locks, events=events, results=results)
            self._statements[name] = statement
        return statement


def _translate(error: Exception) -> Exception | None:
    found = commit_error(error)
    return UnnamedError() if isinstance(found, RejectedError | ConflictError) else found


# ── the text ──────────────────────────────────────────────────────────────────────────────────────

_FIRST_VALUE: Final = 6
"""The number of the first field's argument; before it are lock, caller, key, fingerprint and retention."""

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
    """Return whether PostgreSQL can print the table's records, and makes all of its defaults."""
    return projection(table).is_printed and all(column.default is None for column in table.table.columns)


def _compile(
    table: ResourceTable, names: Sequence[str], *, locks: int, events: int, results: str
) -> _Compiled:
    shown = projection(table)
    columns = ", ".join(quoted(table[name].name) for name in names)
    values = ", ".join(
        f"CAST(${number} AS {parameter_type(table[name].type).compile(dialect=DIALECT)})"
        for number, name in enumerate(names, _FIRST_VALUE)
    )
    record = shown.record(lambda name: f"made.{quoted(table[name].name)}")
    sending = _events(_FIRST_VALUE + len(names), locks, events) if events else ""
    # Nothing in it comes from a request: names and types are those of the declarations.
    sql = f"""
        WITH free AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($1) AS is_free),
        known AS MATERIALIZED (SELECT fingerprint, results FROM hk_keys WHERE caller = $2 AND key = $3),
        made AS (
            INSERT INTO {table.source} ({columns})
            SELECT {values} FROM free WHERE is_free AND NOT EXISTS (SELECT FROM known)
            RETURNING *),
        shown AS (
            SELECT CAST(row_to_json(r.*) AS text) AS body, CAST(r."id" AS text) AS id, r."etag" AS etag
            FROM made, LATERAL {record} r),
        kept AS (
            INSERT INTO hk_keys (caller, key, fingerprint, results, expires_at)
            SELECT $2, $3, $4, convert_to({results}, 'UTF8'), now() + CAST($5 AS interval) FROM shown)
        {sending}
        SELECT fingerprint, results, body FROM free LEFT JOIN known ON true LEFT JOIN shown ON true
    """  # noqa: S608 # nosec B608
    return _Compiled(sql, {name: _converter(table, name) for name in names})


def _results(table: ResourceTable) -> str:
    """Write SQL for the outcome as `encode_outcome` encodes it."""
    whole = "'[[' || body || ',true]]'"
    return f"CASE WHEN octet_length(body) <= {MAX_KEPT_BYTES} THEN {whole} ELSE {_reference(table)} END"


def _reference(table: ResourceTable) -> str:
    """Write SQL for the outcome of which only the id and the state are kept."""
    name = literal(encode_json(table.resource.name).decode())
    return f"""'{{"records":[[' || {name} || ',' || to_json(id) || ',' || to_json(etag) || ',true]]}}'"""


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
