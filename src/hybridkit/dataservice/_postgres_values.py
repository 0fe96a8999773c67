"""Values on their way into columns: of the types that the driver takes, and such as PostgreSQL can hold."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Final, cast

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic_core import to_jsonable_python
from sqlalchemy.types import ARRAY as ANY_ARRAY
from sqlalchemy.types import TypeEngine

from hybridkit.codec import encode_json, truncate_timestamp
from hybridkit.dataservice._postgres_types import DIALECT, document_depth
from hybridkit.errors import MalformedPayloadError

__all__ = ["fitted", "in_texts", "python_type"]

MAX_INTEGER_DIGITS: Final = 131_072
MAX_FRACTION_DIGITS: Final = 16_383
"""Of `numeric`, https://www.postgresql.org/docs/current/datatype-numeric.html; the driver's form of it wraps around."""


def python_type(kind: TypeEngine[Any]) -> type[Any] | None:
    """What the values are in Python; None where SQLAlchemy doesn't say, or pydantic doesn't know it."""
    return _python_type(kind)[0]


def fitted(kind: TypeEngine[Any], value: Any) -> Any:
    """The value as a column of that type takes it: text that a model gave is a UUID, time or decimal again.

    Raises:
        ValueError: the column can't hold it, or not without changing it; says what it holds.
    """
    if value is None:
        return None
    if document_depth(kind) == 0:
        return _checked_document(value)
    match kind.dialect_impl(DIALECT):
        case ANY_ARRAY() as array:
            return _array(array, value, document_depth(array) or array.dimensions)
        case _:
            return _scalar(kind, value)


def in_texts(kind: TypeEngine[Any], value: Any) -> Any:
    """A document as its JSON, an array of them as an array of their JSON; anything else as it is."""
    depth = document_depth(kind)
    return value if depth is None else _texts(value, depth)


def _texts(value: Any, depth: int) -> Any:
    if value is None:  # JSON's own null is another thing than no value
        return None
    return [_texts(member, depth - 1) for member in value] if depth else encode_json(value).decode()


def _array(kind: Any, value: Any, depth: int | None) -> list[Any]:
    """A list of elements, or of lists that all have as many; PostgreSQL has no other arrays."""
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("the column holds arrays")  # noqa: TRY004 - the caller's, not ours
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
    if not isinstance(value, wanted) or isinstance(value, Enum):
        try:
            value = adapter.validate_python(to_jsonable_python(value))
        except ValueError:
            raise ValueError(f"the column holds {wanted.__name__}") from None
    match value:
        case datetime():
            moment = truncate_timestamp(value)
            return moment if getattr(kind, "timezone", False) else moment.replace(tzinfo=None)
        case Decimal():
            return _checked_decimal(value)
        case float() if value - value != 0:
            raise ValueError("the column holds numbers that JSON has")
        case _:
            return value


def _checked_document(value: Any) -> Any:
    """Refuse here what has no JSON form: inside SQLAlchemy it would be a failure of the statement."""
    try:
        encode_json(value)
    except MalformedPayloadError as error:
        raise ValueError(str(error)) from None
    return value


def _checked_decimal(value: Decimal) -> Decimal:
    exponent = value.as_tuple().exponent
    if isinstance(exponent, str):
        raise ValueError("the column holds numbers that JSON has")  # noqa: TRY004 - NaN and the infinities
    if value.adjusted() >= MAX_INTEGER_DIGITS or -exponent > MAX_FRACTION_DIGITS:
        raise ValueError(
            f"the column holds at most {MAX_INTEGER_DIGITS} digits before the point, {MAX_FRACTION_DIGITS} after it"
        )
    return value


@lru_cache(maxsize=1024)
def _python_type(kind: TypeEngine[Any]) -> tuple[type[Any] | None, TypeAdapter[Any] | None]:
    try:
        found: type[Any] = kind.python_type
        return (None, None) if found is object else (found, TypeAdapter(found))
    except (NotImplementedError, PydanticSchemaGenerationError):  # SQLAlchemy 2.0 says so; 2.1 says `object`
        return None, None
