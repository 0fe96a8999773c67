"""Find fields that their columns can't hold when a table is declared, not when its first record comes.

Only what can't work is found. A custom type, an enumeration of PostgreSQL, an array, and a field with its own validator
or serializer may hold anything.
"""

import types
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    WrapSerializer,
    WrapValidator,
)
from sqlalchemy import (
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.types import TypeEngine

from hybridkit._injection import bare_type
from hybridkit.dataservice._postgres._types._parameters import bare

_TEXT: Final = "text"
_NUMBER: Final = "number"
_INTEGER: Final = "integer"
_TRUTH: Final = "truth"
_MOMENT: Final = "moment"
_OTHER: Final = "other"

_COLUMNS: Final[tuple[tuple[type[TypeEngine[Any]], str], ...]] = (
    (String, _TEXT),
    (Boolean, _TRUTH),
    (Integer, _INTEGER),
    (Numeric, _NUMBER),
    (Float, _NUMBER),
    (DateTime, _MOMENT),
    (Date, _OTHER),
    (Time, _OTHER),
    (Interval, _OTHER),
    (LargeBinary, _OTHER),
    (Uuid, _OTHER),
)
"""The kind of a column's values, by its type; the first entry that fits counts."""

_ALL: Final = frozenset({_TEXT, _NUMBER, _INTEGER, _TRUTH, _MOMENT, _OTHER})
_NONE: Final = frozenset[str]()
_NUMBERS: Final = frozenset({_NUMBER, _INTEGER, _TRUTH})
_IMPOSSIBLE: Final[tuple[tuple[type[Any], frozenset[str]], ...]] = (
    (bool, _ALL - {_TRUTH}),
    (int, _ALL - {_INTEGER, _NUMBER}),
    (float, _ALL - {_NUMBER}),
    (Decimal, _ALL - {_NUMBER}),
    (str, _NUMBERS),
    (UUID, _NUMBERS | {_MOMENT}),
    (datetime, _NUMBERS),
    (date, _NUMBERS),
    (time, _NUMBERS | {_MOMENT}),
    (timedelta, _NUMBERS | {_MOMENT}),
    (BaseModel, _ALL),
    (dict, _ALL),
    (list, _ALL),
    (tuple, _ALL),
    (set, _ALL),
    (frozenset, _ALL),
)
"""The kinds of columns that can't hold a value, by its type; the first entry that fits counts."""

_OWN_WAYS: Final = (BeforeValidator, PlainSerializer, PlainValidator, WrapSerializer, WrapValidator)


def unfit_reason(record: type[BaseModel], name: str, kind: TypeEngine[Any]) -> str | None:
    """Return why no value of a field can be in a column of that type; None if some can, or it is unknown.

    Args:
        record: the record's model.
        name: the field's name.
        kind: the column's type.
    """
    holds = _holds(kind)
    info = record.model_fields[name]
    if holds is None or _has_own_way(record, name) or _is_own_way(info.metadata):
        return None
    wanted = list(_types(info.annotation))
    if not wanted or not all(holds in _impossible(each) for each in wanted):
        return None
    names = " or ".join(dict.fromkeys(each.__name__ for each in wanted))
    return f"the column {name} is {kind!r}, which can't hold the field's {names}"


def _holds(kind: TypeEngine[Any]) -> str | None:
    own = bare(kind)
    if isinstance(own, EnumType) or not type(own).__module__.startswith("sqlalchemy."):
        return None
    return next((holds for each, holds in _COLUMNS if isinstance(own, each)), None)


def _impossible(wanted: type[Any]) -> frozenset[str]:
    return next((holds for each, holds in _IMPOSSIBLE if issubclass(wanted, each)), _NONE)


def _has_own_way(record: type[BaseModel], name: str) -> bool:
    """Return whether methods of the model validate or serialize the field."""
    decorators: Any = record.__pydantic_decorators__
    methods = (*decorators.field_serializers.values(), *decorators.field_validators.values())
    return any(name in method.info.fields or "*" in method.info.fields for method in methods)


def _is_own_way(metadata: Any) -> bool:
    return any(isinstance(each, _OWN_WAYS) for each in metadata)


def _types(annotation: Any) -> Iterator[type[Any]]:
    """Yield the types that a value may have, without None; `object` for an unknown one."""
    if get_origin(annotation) is Annotated and _is_own_way(annotation.__metadata__):
        yield object
        return
    annotation = bare_type(annotation) if get_origin(annotation) is not Annotated else annotation.__origin__
    origin = get_origin(annotation)
    if get_origin(annotation) is Annotated:
        yield from _types(annotation)
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _types(each)
    elif origin is Literal:
        yield from {type(each) for each in get_args(annotation)}
    elif annotation is not types.NoneType:
        found: Any = origin or getattr(annotation, "__supertype__", annotation)
        if not isinstance(found, type):
            yield object
        elif issubclass(found, Enum):
            yield from {type(each.value) for each in found}
        else:
            yield found
