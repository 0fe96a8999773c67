"""Read the values in audit entries, which `to_jsonb` has written, back into the form that a record shows.

`to_jsonb` loses nothing, but has forms of its own: numbers with all their digits, bytes in hexadecimal, labels of
enumerations. A value of a type that a column had earlier is shown as it was written.
"""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache, partial
from math import isfinite
from typing import Any, Final, cast

from sqlalchemy import Float, Integer, LargeBinary, Numeric, TypeDecorator
from sqlalchemy.types import ARRAY, TypeEngine

from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import DIALECT, bare, document_depth
from hybridkit.dataservice._postgres._types._values import fitted, shown_by
from hybridkit.dataservice._store._audit import BLANK
from hybridkit.dataservice._store._documents import MAX_DIGITS
from hybridkit.resources._audit import audited_fields

type Convert = Callable[[Any], Any]

_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})


def read_changes(table: ResourceTable, text: str) -> dict[str, Any]:
    """Return the changes in an entry by field, in the form that the records of the table show.

    Args:
        table: the table of the entry's resource.
        text: the JSON by column.
    """
    written: Mapping[str, Any] = json.loads(text, parse_float=Decimal)
    found: dict[str, Any] = {}
    for name, column, convert in _fields(table):
        if column not in written:
            continue
        pair = written[column]
        found[name] = pair if pair == BLANK else [_shown(convert, value) for value in pair]
    return found


def raw_changes(text: str) -> dict[str, Any]:
    """Return the changes in an entry of a resource that the service doesn't have any more."""
    written: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return written


@lru_cache(maxsize=256)
def _fields(table: ResourceTable) -> tuple[tuple[str, str, Convert], ...]:
    return tuple(
        (name, table[name].name, _converter(table[name].type)) for name in audited_fields(table.resource)
    )


def _shown(convert: Convert, value: Any) -> Any:
    if value is None:
        return None
    try:
        return convert(value)
    except (ValueError, TypeError, ArithmeticError, AttributeError):
        return _document(value)


def _converter(kind: TypeEngine[Any]) -> Convert:
    own = bare(kind)
    if isinstance(own, TypeDecorator):
        inner = _converter(own.load_dialect_impl(DIALECT))
        return lambda value: own.process_result_value(inner(value), DIALECT)
    if document_depth(kind) is not None:
        return _document
    show = shown_by(kind)
    match own:
        case ARRAY(item_type=item):
            return partial(_each, _converter(item))
        case LargeBinary():
            return partial(_bytes, cast("Convert", show))
        case Float() | Numeric():
            return _decimal if own.asdecimal else _float
        case Integer():
            return int
        case _:
            return partial(fitted, kind) if show is None else show


def _bytes(show: Convert, value: str) -> Any:
    return show(bytes.fromhex(value.removeprefix("\\x")))


def _each(convert: Convert, value: Any) -> Any:
    if isinstance(value, list):
        return [_each(convert, member) for member in cast("list[Any]", value)]
    return None if value is None else convert(value)


def _float(value: Any) -> Any:
    return value if value in _NOT_FINITE else float(value)


def _decimal(value: Any) -> Any:
    return value if value in _NOT_FINITE else Decimal(value)


def _document(value: Any) -> Any:
    """Return a document with the numbers that JSON readers have, as `read_document` reads them."""
    match value:
        case Decimal():
            number = float(value)
            if isfinite(number):
                return number
            return int(value) if value.adjusted() < MAX_DIGITS else value
        case list():
            return [_document(member) for member in cast("list[Any]", value)]
        case dict():
            return {name: _document(member) for name, member in cast("dict[str, Any]", value).items()}
        case _:
            return value
