"""Find the fields that PostgreSQL's refusal of a write is about, by the constraint that it names.

Only the catalogue knows which columns a check, an expression in an index or a generated column is made of. It is asked
after the refusal, by statements of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._driver._errors import Diagnosis
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._values import holds_nul
from hybridkit.dataservice._store._operations import Create, Operation, Update, Upsert
from hybridkit.dataservice._store._refusals import foreign_key_violation, pointed
from hybridkit.errors import (
    ForeignKeyError,
    HybridkitError,
    InvalidRequestError,
    RejectedError,
    UniqueViolationError,
)
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.dataservice")

_GENERATED: Final = "428C9"
_NULS: Final = ("22P05", "22021")
"""U+0000 in a document or a text, which PostgreSQL can't store."""
_CODES: Final = {
    "22": "invalid_value",
    "23502": "not_null",
    "23503": "foreign_key",
    "23001": "foreign_key",
    "23505": "unique",
    "23514": "check",
    "23P01": "exclusion",
    _GENERATED: "generated",
    "54": "too_long",
}
"""The code of a field's problem, by SQLSTATE or its class."""
_OTHER_CODE: Final = "refused"

_OF_CONSTRAINT: Final = r"""
    SELECT a.attname FROM pg_class t
    JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname = $2 AND t.relname = $3
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0
    WHERE to_regclass($1) IN (SELECT t.oid UNION ALL SELECT relid FROM pg_partition_ancestors(t.oid))
    AND (
        EXISTS (
            SELECT FROM pg_constraint c
            WHERE c.conrelid = t.oid AND c.conname = $4 AND a.attnum = ANY (c.conkey))
        OR EXISTS (
            SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid AND x.relname = $4
            WHERE i.indrelid = t.oid AND (
                a.attnum = ANY ((CAST(i.indkey AS int2[]))[0:i.indnkeyatts - 1])
                OR EXISTS (
                    SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = a.attnum)
                AND pg_get_expr(i.indexprs, i.indrelid)
                    ~ ('\m' || regexp_replace(a.attname, '(\W)', '\\\1', 'g') || '\M'))))
    ORDER BY a.attnum
"""
"""The columns of a constraint or index, without those of a predicate. Parameters: the table as declared, and the
schema, table (also a partition of it) and name that PostgreSQL gives."""
_OF_GENERATED: Final = """
    SELECT a.attname FROM pg_attribute a
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND (a.attgenerated <> '' OR a.attidentity = 'a')
"""

_OF_DOMAIN: Final = """
    SELECT a.attname FROM pg_attribute a
    JOIN pg_type d ON a.atttypid IN (d.oid, d.typarray) AND d.typname = $3
    JOIN pg_namespace n ON n.oid = d.typnamespace AND n.nspname = $2
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0
"""
"""The columns of a domain or of arrays of it. Parameters: the table, and the schema and name of the domain."""

_OF_INDEXES: Final = """
    SELECT DISTINCT a.attname FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND (
        a.attnum = ANY (i.indkey)
        OR EXISTS (
            SELECT FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))
    WHERE i.indrelid = to_regclass($1)
"""
"""The columns of all indexes of a table, also those in expressions. Parameter: the table."""
_INDEX_ROW_BYTES: Final = 8191
"""The largest row of any index; for a larger one PostgreSQL doesn't say of which index it is."""


class UnnamedError(Exception):
    """The database refuses one of several operations; `apply_carefully`, in a new transaction, finds out which."""


class RefusedError(Exception):
    """The database refuses an operation; `explained`, once the transaction is over, says which fields it means.

    Attributes:
        operation: the operation that is refused.
        reason: the error; its cause is the driver's.
    """

    def __init__(self, operation: Operation, reason: RejectedError) -> None:
        super().__init__(str(reason))
        self.operation = operation
        self.reason = reason


async def explained(pool: Pool, tables: Mapping[str, ResourceTable], refused: RefusedError) -> RejectedError:
    """Return the refusal's reason with the operation named, and a pointer to each field that it is about."""
    operation, reason = refused.operation, refused.reason
    found = Diagnosis.of(reason.__cause__ or reason)
    names = await _fields(pool, tables[operation.resource.name], operation, found)
    code = _CODES.get(found.sqlstate) or _CODES.get(found.sqlstate[:2], _OTHER_CODE)
    errors = pointed(operation, names, code)
    _log.info(
        "a write was refused",
        resource=operation.resource.name,
        table=tables[operation.resource.name].table.fullname,
        fields=list(names),
        code=reason.code,
    )
    message = operation.says(str(reason))
    match reason:
        case UniqueViolationError():
            return UniqueViolationError(message, fields=names, errors=errors)
        case ForeignKeyError():
            return foreign_key_violation(operation, names)
        case InvalidRequestError():
            return InvalidRequestError(message, errors=errors)
        case _:
            return reason


async def _fields(pool: Pool, table: ResourceTable, operation: Operation, found: Diagnosis) -> Sequence[str]:
    """Return the fields that PostgreSQL's refusal is about; none if it is about another table."""
    values = _values(operation)
    try:
        if found.domain:
            named = await _named(pool, table, _OF_DOMAIN, table.source, found.schema, found.domain)
            return [name for name in named if name in values]
        if found.constraint:
            asked = (_OF_CONSTRAINT, table.source, found.schema, found.table, found.constraint)
            return await _named(pool, table, *asked)
        if found.sqlstate == _GENERATED:
            return [name for name in await _named(pool, table, _OF_GENERATED, table.source) if name in values]
        if found.sqlstate in _NULS:
            return [name for name in table.fields if holds_nul(values.get(name))]
        if found.sqlstate.startswith("54"):
            indexed = await _named(pool, table, _OF_INDEXES, table.source)
            return [name for name in indexed if _is_long(values.get(name))]
    except HybridkitError:
        return ()  # the refusal stands, whether or not it can be explained
    if found.table not in ("", table.table.name):
        return ()
    return [name for name in table.fields if table[name].name == found.column]


async def _named(pool: Pool, table: ResourceTable, sql: str, *arguments: str) -> Sequence[str]:
    """Return the fields whose columns the statement finds."""
    found = {row[0] for row in await pool.fetch(sql, *arguments)}
    return [name for name in table.fields if table[name].name in found]


def _values(operation: Operation) -> Mapping[str, Any]:
    """Return the values that the operation sets, by field."""
    match operation:
        case Create():
            return {**operation.values, "id": operation.id}
        case Upsert():
            return {**operation.values, **operation.increment, "id": operation.id}
        case Update():
            return {**operation.changes, **operation.merges, **operation.increment}
        case _:
            return {}


def _is_long(value: Any) -> bool:
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass")) > _INDEX_ROW_BYTES
    return isinstance(value, dict | list) and len(encode_json(value)) > _INDEX_ROW_BYTES
