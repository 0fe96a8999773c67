"""Values on their way into BSON and out of it.

BSON keeps milliseconds and has a type for decimals. Identifiers are stored as text, so that they are the same in a
shell, in another language's driver and inside a document that came as JSON; what BSON doesn't know (dates, durations,
enumerations) is stored as JSON has it. A field without a value isn't stored at all, so that a unique index allows many
of them, as SQL's do.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

from bson.decimal128 import Decimal128
from bson.int64 import Int64
from pydantic_core import to_jsonable_python

from hybridkit.codec import truncate_timestamp

__all__ = ["from_bson", "to_bson"]


def to_bson(value: Any) -> Any:
    """The value as it is stored."""
    match value:
        case Enum():
            return to_bson(value.value)
        case None | bool() | int() | float() | str() | bytes() | Decimal128():
            return value
        case UUID():
            return str(value)
        case datetime():
            return truncate_timestamp(value)
        case Decimal():
            return Decimal128(value)
        case Mapping():
            members = cast("Mapping[Any, Any]", value)
            return {str(to_bson(name)): to_bson(member) for name, member in members.items()}
        case list() | tuple() | set() | frozenset():
            return [to_bson(member) for member in cast("list[Any]", value)]
        case _:
            return to_jsonable_python(value)


def from_bson(value: Any) -> Any:
    """The value as a record has it."""
    match value:
        case Decimal128():
            return value.to_decimal()
        case datetime():
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        case Int64():
            return int(value)
        case dict():
            return {name: from_bson(member) for name, member in cast("dict[str, Any]", value).items()}
        case list():
            return [from_bson(member) for member in cast("list[Any]", value)]
        case _:
            return value
