"""Have PostgreSQL print records as JSON, in the bytes that `codec.encode_json` makes of them.

A column's type has an expression that gives these bytes through `row_to_json`, or none: then Python prints the table's
records, which is decided once. A test compares the two for every type.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

from pydantic_core import to_jsonable_python
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    Numeric,
    String,
    Uuid,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.types import TypeEngine

from hybridkit.dataservice._postgres._table import ResourceTable, View
from hybridkit.dataservice._postgres._types._parameters import bare, is_real

MAX_NAME_BYTES: Final = 63
"""The length to which PostgreSQL cuts longer names."""

type Reference = Callable[[str], str]
"""From a column's name to its SQL."""


class Projection:
    """Some fields of a record, or all of them, as PostgreSQL returns them.

    Attributes:
        view: the same fields for records that Python prints.
        is_printed: whether PostgreSQL prints the record; otherwise its columns are read, and Python prints it.
        has_documents: whether the printed JSON still has to be made canonical, as it contains documents.
    """

    def __init__(self, table: ResourceTable, fields: Sequence[str]) -> None:
        self.view: View = table.view(fields)
        names = dict.fromkeys((*(fields or table.resource.record.model_fields), "etag"))
        self._is_whole = not fields
        self._names = [name for name in names if name != "etag"] + ["etag"] if fields else list(names)
        self._table = table
        stored = [name for name in self._names if name != "etag"]
        self.is_printed = all(
            printed(table[name].type, "x") is not None and len(name.encode()) <= MAX_NAME_BYTES
            for name in stored
        )
        self.has_documents = any(table.holds_document(name) for name in stored)

    def __repr__(self) -> str:
        return f"Projection({self.view!r}, is_printed={self.is_printed})"

    @property
    def columns(self) -> Sequence[str]:
        """The fields whose columns have to be read."""
        return self.view.stored

    def record(self, reference: Reference) -> str:
        """Write a subquery of one row, to join as LATERAL: `row_to_json` of it is the record, `etag` the entity tag."""
        members = [f"{self._member(name, reference)} AS {quoted(name)}" for name in self._names]
        return f"(SELECT {', '.join(members)})"

    @cached_property
    def numbered(self) -> str:
        """As `record`, for rows with the columns `c0`, `c1` and so on."""
        numbered = {name: f"c{n}" for n, name in enumerate(self.columns)}
        return self.record(numbered.__getitem__)

    @cached_property
    def selected(self) -> str:
        """The columns as `c0`, `c1` and so on."""
        return ", ".join(f"{self._table.read_sql(name)} AS c{n}" for n, name in enumerate(self.columns))

    def _member(self, name: str, reference: Reference) -> str:
        if name != "etag":
            return str(printed(self._table[name].type, reference(name)))
        strong = f"'\"' || {reference('version')} || '-' || to_hex({reference('incarnation')}) || '\"'"
        return strong if self._is_whole else f"'W/' || {strong}"


@lru_cache(maxsize=512)
def projection(table: ResourceTable, fields: Sequence[str] = ()) -> Projection:
    """Return the projection to some fields (a tuple) of the table's record, or to all of them."""
    return Projection(table, fields)


def printed(kind: TypeEngine[Any], value: str) -> str | None:  # noqa: C901 - one line per type
    """Write the SQL that `row_to_json` prints as `encode_json` prints such a value; None if there is none.

    Args:
        kind: the column's type; a custom one may do anything, so Python has to print it.
        value: the SQL of the value.
    """
    match bare(kind):
        case ours if not type(ours).__module__.startswith("sqlalchemy."):
            return None
        case EnumType() as names:
            return _enumerated(names, value)
        case Float() as number:
            return None if number.asdecimal else _float(value, "float4" if is_real(kind) else "float8")
        case Numeric() as number:
            return f"CAST({value} AS text)" if number.asdecimal else None
        case DateTime() as moment:
            return _timestamp(value, f"{value} AT TIME ZONE 'UTC'" if moment.timezone else value)
        case Date():
            return _within_years(value, f"CAST({value} AS text)", "0001-01-01", "9999-12-31")
        case ARRAY() as array:
            return value if _is_printed_as_is(bare(array.item_type)) else None
        case Uuid() as identifier:
            return value if identifier.native_uuid else None
        case CHAR():
            return f"CAST({value} AS text)"  # without the blanks that pad it
        case JSON():
            return value
        case plain:
            return value if _is_printed_as_is(plain) else None


def _is_printed_as_is(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, Integer | String | Boolean) and not isinstance(kind, EnumType | CHAR)


def quoted(name: str) -> str:
    """Quote a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _timestamp(value: str, in_utc: str) -> str:
    shown = f"replace(to_char({in_utc}, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), '.000Z', 'Z')"
    return _within_years(value, shown, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z")


def _within_years(value: str, shown: str, first: str, last: str) -> str:
    """Print the first or last value for one before the year 1 or after 9999, also for an infinity."""
    return (
        f"CASE WHEN {value} < '{first}' THEN '{first}' WHEN {value} > '{last}' THEN '{last}' ELSE {shown} END"
    )


def _float(value: str, kind: str) -> str:
    """Print a float as orjson does, with fraction or exponent (`1.0`, `1e16`, `1e-6`); NaN and infinities as text."""
    text = f"CAST(CAST({value} AS {kind}) AS text)"
    size = f"abs(CAST({text} AS float8))"  # of the printed number: as a float of 32 bits, 0.1 is another one
    plain = f"CAST(CAST({text} AS numeric) AS text)"
    return (
        f"CAST(CASE WHEN {value} IN ('NaN', 'Infinity', '-Infinity') THEN CAST(to_json({text}) AS text)"
        f" WHEN {value} = 0 THEN {text} || '.0'"
        f" WHEN {size} >= 1e-5 AND {size} < 1e16"
        f" THEN {plain} || CASE WHEN strpos({plain}, '.') = 0 THEN '.0' ELSE '' END"
        f" ELSE replace(replace({text}, 'e+', 'e'), 'e-0', 'e-') END AS json)"
    )


def _enumerated(names: EnumType, value: str) -> str | None:
    """Print the values of a Python enumeration, whose members' names are stored; None if that can't be done in SQL."""
    label = f"CAST({value} AS text)"
    if names.enum_class is None:
        return label
    members = names.enum_class
    if list(names.enums) != [member.name for member in members]:
        return None  # `values_callable`: kept by something else
    shown = {member.name: to_jsonable_python(member.value) for member in members}
    if not all(isinstance(text, str) for text in shown.values()):
        return None
    cases = " ".join(f"WHEN {literal(name)} THEN {literal(text)}" for name, text in shown.items())
    return f"CASE {label} {cases} ELSE {label} END"
