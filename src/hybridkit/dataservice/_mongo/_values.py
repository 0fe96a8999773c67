"""Values in BSON: how they are stored, and how they are read.

BSON keeps milliseconds and has a type for decimals. Identifiers are stored as text, so that they are the same in a
shell, in another language's driver and inside a document that came as JSON; what BSON doesn't know (dates, durations,
enumerations) is stored as JSON has it. A field without a value isn't stored at all, so that a unique index allows many
of them, as SQL's do.

Others may have stored what JSON doesn't know, and every document has to be readable: such a value is read as MongoDB's
Extended JSON, https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID

from bson import MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import Binary, UuidRepresentation
from bson.code import Code
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.errors import InvalidDocument
from bson.int64 import Int64
from bson.json_util import RELAXED_JSON_OPTIONS, default
from bson.regex import Regex
from pydantic_core import to_jsonable_python

from hybridkit.codec import truncate_timestamp

CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    # A value that something else has stored must not make the other records of a page unreadable.
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""The options with which documents are read and written."""

_REFERENCE: Final = ("$ref", "$id", "$db")
"""The members by which drivers take an object for a reference (DBRef), in the order in which they give it back."""


def to_bson(value: Any) -> Any:
    """Return the value in the form in which it is stored."""
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
            stored = {str(to_bson(name)): to_bson(member) for name, member in members.items()}
            return _as_read_back(stored) if "$ref" in stored else stored
        case list() | tuple() | set() | frozenset():
            return [to_bson(member) for member in cast("list[Any]", value)]
        case ObjectId() | Regex() | Code() | Timestamp() | MinKey() | MaxKey() | DatetimeMS():
            return cast("Any", value)
        case _:
            return to_jsonable_python(value)


def _as_read_back(members: dict[str, Any]) -> dict[str, Any]:
    """Return the object in the form that drivers give back, who take it for a reference."""
    if not isinstance(members["$ref"], str) or "$id" not in members:
        return members
    if members.get("$db", "") is None:  # would come back without it
        raise InvalidDocument("a reference ($ref, $id) names its database ($db) or has no such member")
    first = {name: members[name] for name in _REFERENCE if name in members}
    return first | {name: member for name, member in members.items() if name not in first}


def from_bson(value: Any) -> Any:
    """Return the value as a record has it: types that JSON doesn't have become objects of Extended JSON."""
    match value:
        case Code() | Regex() | ObjectId() | Timestamp() | MinKey() | MaxKey() | DatetimeMS():
            return default(value, RELAXED_JSON_OPTIONS)
        case bytes():
            return _readable(value)
        case dict() | DBRef():
            members = _members(cast("dict[str, Any] | DBRef", value))
            return {name: from_bson(member) for name, member in members.items()}
        case list():
            return [from_bson(member) for member in cast("list[Any]", value)]
        case _:
            return _scalar(value)


def mergeable(value: Any) -> Any:
    """Return the value as `from_bson` does, but with BSON's own types as they are, so that a patch keeps them."""
    match value:
        case dict() | DBRef():
            members = _members(cast("dict[str, Any] | DBRef", value))
            return {name: mergeable(member) for name, member in members.items()}
        case list():
            return [mergeable(member) for member in cast("list[Any]", value)]
        case _:
            return _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case Decimal128():
            return value.to_decimal()
        case datetime():
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        case Int64():
            return int(value)
        case _:
            return value


def _members(value: dict[str, Any] | DBRef) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else value.as_doc()


def _readable(value: bytes) -> Any:
    """Return bytes that are UTF-8 as they are, for JSON to have as text, and others as Extended JSON."""
    if not isinstance(value, Binary):
        try:
            value.decode()
        except UnicodeDecodeError:
            pass
        else:
            return value
    return default(value, RELAXED_JSON_OPTIONS)
