"""Convert values for columns and back: to types that the driver takes and PostgreSQL can hold, and to what is shown."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from math import isfinite
from struct import Struct
from typing import Any, Final, cast
from uuid import UUID

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic_core import to_jsonable_python
from sqlalchemy import (
    CHAR,
    BigInteger,
    Boolean,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Uuid,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.types import ARRAY as ANY_ARRAY
from sqlalchemy.types import TypeEngine

from hybridkit.codec import encode_json, truncate_timestamp
from hybridkit.dataservice._postgres._types._parameters import array_depth, bare, document_depth, is_real
from hybridkit.dataservice._store._losses import DECIMALS, is_exact, is_integer
from hybridkit.errors import MalformedPayloadError


def python_type(kind: TypeEngine[Any]) -> type[Any] | None:
    """Return the Python type of a column's values; None if SQLAlchemy doesn't say, or pydantic doesn't know it."""
    return _python_type(kind)[0]


def fitted(kind: TypeEngine[Any], value: Any) -> Any:
    """Convert a value to what a column of this type takes: a model's text to the UUID, time or decimal that it means.

    Raises:
        ValueError: the column can't hold the value unchanged; the message says which values it holds.
    """
    if value is None:
        return None
    if document_depth(kind) == 0:
        return _checked_document(value)
    match bare(kind):
        case ANY_ARRAY() as array:
            return _array(array, value, array_depth(array))
        case _:
            return _scalar(kind, value)


def is_kept(kind: TypeEngine[Any], value: Any) -> bool:
    """Return whether a value is one of those that nearly all are: of a simple type, and taken by the column as it is.

    False means nothing: `fitted` and `check_limits` find out.
    """
    wanted, low, high = _simple(kind)
    if type(value) is not wanted:
        return False
    if wanted is str:
        return len(value) <= high and "\0" not in value
    if wanted is Decimal:
        _, digits, exponent = value.as_tuple()
        return isinstance(exponent, int) and low <= exponent <= 0 and len(digits) + exponent <= high
    return wanted is not int or low <= value < high


@lru_cache(maxsize=1024)
def _simple(kind: TypeEngine[Any]) -> tuple[type[Any] | None, int, int]:
    """Return the type whose values a column takes as they are, with its limits.

    They are the limits of an integer, of a text's length, or of the exponent and the digits before a decimal's point.
    """
    match bare(kind):
        case EnumType() | CHAR():
            return None, 0, 0
        case String() as text if _python_type(kind)[0] is str:
            return str, 0, sys.maxsize if text.length is None else text.length
        case Integer() as number if _python_type(kind)[0] is int:
            return int, -(2 ** _bits(number)), 2 ** _bits(number)
        case Numeric(precision=int() as precision, asdecimal=True) as number if not isinstance(number, Float):
            scale = number.scale or 0
            return Decimal, -scale, precision - scale
        case Boolean():
            return bool, 0, 0
        case Uuid() if _python_type(kind)[0] is UUID:
            return UUID, 0, 0
        case _:
            return None, 0, 0


def in_texts(kind: TypeEngine[Any], value: Any) -> Any:
    """Encode a document, or each one in an array of them, as JSON; leave everything else as it is."""
    depth = document_depth(kind)
    return value if depth is None else _texts(value, depth)


def _texts(value: Any, depth: int) -> Any:
    if value is None:  # NULL, not JSON's null
        return None
    return [_texts(member, depth - 1) for member in value] if depth else encode_json(value).decode()


def _array(kind: Any, value: Any, depth: int | None) -> list[Any]:
    """Convert to a list of elements, or of lists of one length; PostgreSQL has no other arrays."""
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("the column holds arrays")  # noqa: TRY004 - the caller's mistake
    members = list(cast("Sequence[Any]", value))
    if document_depth(kind) is None:
        nested = depth != 1 and any(isinstance(member, list | tuple) for member in members)
    else:  # a list may be a document: only the declaration tells
        nested = depth != 1 and bool(members)
    if not nested:
        return [fitted(kind.item_type, member) for member in members]
    rows = [_array(kind, member, None if depth is None else depth - 1) for member in members]
    if len({_shape(row) for row in rows}) > 1 or not rows[0]:
        raise ValueError("the arrays in an array have one length, and at least one element")
    return rows


def _shape(rows: Sequence[Any]) -> tuple[int, ...]:
    first = rows[0] if rows else None
    return (len(rows), *(_shape(cast("list[Any]", first)) if isinstance(first, list) else ()))


def _scalar(kind: TypeEngine[Any], value: Any) -> Any:
    wanted, adapter = _python_type(kind)
    if adapter is None or wanted is None:
        return value
    given = value
    if not isinstance(value, wanted) or isinstance(value, Enum):
        try:
            value = adapter.validate_python(to_jsonable_python(value))
        except ValueError:
            raise ValueError(f"the column holds {wanted.__name__}") from None
    match value:
        case datetime():
            moment = truncate_timestamp(value)
            return moment if getattr(bare(kind), "timezone", False) else moment.replace(tzinfo=None)
        case time() if value.tzinfo is not None and not getattr(bare(kind), "timezone", False):
            raise ValueError("the column holds times without an offset")
        case Decimal() if isinstance(bare(kind), Float):
            return _checked_float(float(_checked_decimal(value)), value)
        case Decimal():
            return _checked_decimal(value)
        case float():
            return _checked_float(value, given)
        case str() if isinstance(bare(kind), Uuid):
            return _checked_uuid(value)
        case _:
            return value


def _checked_document(value: Any) -> Any:
    """Refuse a value that JSON doesn't have: inside SQLAlchemy it would fail the statement."""
    try:
        encoded = encode_json(value)
    except MalformedPayloadError as error:
        raise ValueError(str(error)) from None
    if b"\\u0000" in encoded and holds_nul(value):  # that may also be a text with a backslash
        raise ValueError("the column holds documents without U+0000")
    return value


def holds_nul(value: Any) -> bool:
    """Return whether U+0000 is in a text, list or document, at any depth: no text of PostgreSQL can have it.

    A column of `json` would take it, and fail every later look into the document.
    """
    match value:
        case str():
            return "\0" in value
        case Mapping():
            members = cast("Mapping[Any, Any]", value)
            return any(holds_nul(each) for pair in members.items() for each in pair)
        case list() | tuple() | set() | frozenset():
            return any(holds_nul(each) for each in cast("Sequence[Any]", value))
        case _:
            return False


def _checked_uuid(value: str) -> str:
    """Return a UUID as the column gives it back, by which a batch finds its records."""
    if value.lower() != (found := str(UUID(value))):
        raise ValueError("the column holds UUIDs: five groups of hexadecimal digits")
    return found


def _checked_float(value: float, given: Any) -> float:
    """Refuse a number that no float equals."""
    if not isfinite(value):
        raise ValueError("the column holds numbers that JSON has")
    match given:
        case int() if not is_integer(value, given):
            raise ValueError("the column holds floats, and none is this integer")
        case Decimal() if Decimal(repr(value)) != given:
            raise ValueError("the column holds floats, and none is this decimal")
        case _:
            return value


def _checked_decimal(value: Decimal) -> Decimal:
    if not is_exact(value):
        raise ValueError(f"the column holds {DECIMALS}")
    return value


@lru_cache(maxsize=1024)
def _python_type(kind: TypeEngine[Any]) -> tuple[type[Any] | None, TypeAdapter[Any] | None]:
    try:
        found: type[Any] = bare(kind).python_type
        return (None, None) if found is object else (found, TypeAdapter(found))
    except (NotImplementedError, PydanticSchemaGenerationError):  # SQLAlchemy 2.0 says so; 2.1 says `object`
        return None, None


def check_limits(kind: TypeEngine[Any], value: Any) -> None:
    """Refuse a fitted value that the column is too small for, or would cut silently, such as blanks at the end.

    Raises:
        ValueError: the column can't hold the value; the message says which values it holds.
    """
    match bare(kind), value:
        case (ANY_ARRAY() as array, list()):
            for member in cast("Sequence[Any]", value):
                check_limits(array if isinstance(member, list) else array.item_type, member)
        case (EnumType(), _):
            pass
        case (String() as text, str()) if text.length is not None and len(value) > text.length:
            raise ValueError(f"the column holds at most {text.length} characters")
        case (CHAR(), str()) if value.endswith(" "):
            raise ValueError("the column holds text without blanks at its end")
        case (String(), str()) if "\0" in value:
            raise ValueError("the column holds text without U+0000")
        case (Integer() as number, int()) if not -(2 ** (bits := _bits(number))) <= value < 2**bits:
            raise ValueError(f"the column holds integers of {bits + 1} bits")
        case (Numeric() as number, Decimal()) if number.precision is not None:
            _check_digits(value, number.precision, number.scale or 0)
        case _:
            pass


def _check_digits(value: Decimal, precision: int, scale: int) -> None:
    """Refuse a decimal that is too large, or that the column would round."""
    if abs(value) >= 10 ** (precision - scale):
        raise ValueError(f"the column holds {precision - scale} digits before the point")
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and -exponent <= scale:
        return
    if _digits_behind(value) > scale:
        raise ValueError(f"the column holds {scale} digits behind the point")


def _digits_behind(value: Decimal) -> int:
    """Return the number of digits after the decimal point, without zeros at the end."""
    _, digits, exponent = value.as_tuple()
    written = "".join(map(str, digits))
    zeros = len(written) - len(written.rstrip("0"))
    return -exponent - zeros if value and isinstance(exponent, int) else 0


def _bits(number: Integer) -> int:
    return 63 if isinstance(number, BigInteger) else 15 if isinstance(number, SmallInteger) else 31


# ── out ───────────────────────────────────────────────────────────────────────────────────────────


def shown_by(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Return the function that converts a column's value to what readers are shown; None if they are the same."""
    match bare(kind):
        case ANY_ARRAY() as array:
            show = shown_by(array.item_type)
            return None if show is None else partial(_each, show)
        case EnumType() as labels:
            members = labels.enum_class.__members__.values() if labels.enum_class else labels.enums
            return partial(_member, dict(zip(labels.enums, members, strict=True)))
        case Float() if is_real(kind):
            return _short
        case Float() | Numeric():
            return _in_words
        case CHAR():
            return _without_padding
        case LargeBinary():
            return _in_text
        case _:
            return None


_REAL: Final = Struct("f")
_MAX_REAL: Final = 3.4028235677973366e38
"""The least number that would become infinite as a float of 32 bits."""


def _short(value: Any) -> Any:
    """Round a float of 32 bits to the fewest digits that identify it, as PostgreSQL prints it: `0.1`."""
    if not isinstance(value, float) or not isfinite(value):
        return _in_words(value)
    bits = _REAL.pack(value)
    texts = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    alike = (number for number in texts if abs(number) < _MAX_REAL and _REAL.pack(number) == bits)
    return next(alike, float(f"{value:.9g}"))


def _without_padding(value: str | None) -> str | None:
    """Remove the blanks with which PostgreSQL pads a `char`."""
    return None if value is None else value.rstrip(" ")


def _in_text(value: bytes | None) -> str | None:
    """Decode bytes as pydantic does for JSON: as UTF-8, with everything else escaped."""
    return None if value is None else value.decode(errors="backslashreplace")


def _each(show: Callable[[Any], Any], values: Any) -> Any:
    if not isinstance(values, list):
        return show(values)
    return [_each(show, value) for value in cast("list[Any]", values)]


def _member(members: Mapping[str, Any], label: Any) -> Any:
    return members.get(label, label)


def _in_words(value: Any) -> Any:
    """Replace numbers that JSON lacks by their names: `NaN`, `Infinity`, `-Infinity`."""
    return str(Decimal(value)) if isinstance(value, float) and not isfinite(value) else value
