"""Find the parameter types for columns, so that each value arrives as it was given."""

from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    JSON,
    REAL,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    BIT,
    CITEXT,
    DOMAIN,
    HSTORE,
    INTERVAL,
    JSONB,
    TSQUERY,
    TSVECTOR,
    asyncpg,
)
from sqlalchemy.dialects.postgresql import JSON as PG_JSON
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.types import ARRAY as ANY_ARRAY
from sqlalchemy.types import TypeEngine, UserDefinedType

from hybridkit.codec import encode_json


def _to_json(value: object) -> str:
    return encode_json(value).decode()


_Dialect: Final[Any] = asyncpg.dialect  # it has no annotations
DIALECT: Final = _Dialect(
    dbapi=_Dialect.import_dbapi(),  # some types make the driver's own objects of their values
    json_serializer=_to_json,
)

MAX_PARAMETERS: Final = 16_000
"""The most parameters of a filter, and of the rows of a write: PostgreSQL's protocol counts them in 16 bits."""

_LISTS: Final = (JSON, ANY_ARRAY, AbstractRange, UserDefinedType)
"""Types whose values may be lists, by themselves or under a custom type."""
_BY_TEXT: Final = (CITEXT, HSTORE, TSQUERY, TSVECTOR)
"""Types that asyncpg sends as text because they have no binary form, and that have an empty text."""
_SCALARS: Final = (
    Boolean,
    Date,
    DateTime,
    Float,
    INTERVAL,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
)


@lru_cache(maxsize=1024)
def bare(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type as PostgreSQL has it; of a domain its base type."""
    own = kind.dialect_impl(DIALECT)
    return bare(own.data_type) if isinstance(own, DOMAIN) else own


def is_document(kind: TypeEngine[Any]) -> bool:
    """Return whether the type is JSON, without a custom type over it."""
    return document_depth(kind) == 0


@lru_cache(maxsize=1024)
def document_depth(kind: TypeEngine[Any]) -> int | None:
    """Return the dimensions of an array of JSON, 0 for JSON itself; None for everything else."""
    match bare(kind):
        case JSON():
            return 0
        case ANY_ARRAY(item_type=item) as array if is_document(item):
            return array_depth(array)
        case _:
            return None


def array_depth(array: ANY_ARRAY[Any]) -> int | None:
    """Return the dimensions of an array: one if none are declared and its elements may be lists; None if values tell.

    SQLAlchemy judges by the first element, so that a list in it, a document or composite, would be another dimension.
    """
    return array.dimensions or (1 if isinstance(_innermost(array.item_type), _LISTS) else None)


@lru_cache(maxsize=1024)
def is_perilous(kind: TypeEngine[Any]) -> bool:
    """Return whether the driver would crash the process on an empty text in an array of this type."""
    match _innermost(kind):
        case ANY_ARRAY(item_type=item):
            return isinstance(_innermost(item), _BY_TEXT)
        case _:
            return False


@lru_cache(maxsize=1024)
def _innermost(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type under domains and custom types."""
    own = bare(kind)
    return _innermost(own.load_dialect_impl(DIALECT)) if isinstance(own, TypeDecorator) else own


def is_real(kind: TypeEngine[Any]) -> bool:
    """Return whether the type is a float of 32 bits."""
    if isinstance(kind, DOMAIN):
        return is_real(kind.data_type)
    own = bare(kind)
    return isinstance(kind, REAL) or (isinstance(own, Float) and (own.precision or DOUBLE_BITS) <= REAL_BITS)


REAL_BITS: Final = 24
DOUBLE_BITS: Final = 53


def is_scalar(kind: TypeEngine[Any]) -> bool:
    """Return whether values of the type can be the elements of an array.

    The list is closed: the driver takes every sequence in Python for another dimension of the array, and its leaves for
    the elements. Arrays, JSON, composites and multiranges have such values, and custom types may have them.
    """
    own = bare(kind)
    return isinstance(own, _SCALARS) and type(own).__module__.startswith("sqlalchemy.")


@lru_cache(maxsize=1024)
def parameter_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the parameter type for a column: a cast to it loses nothing, and None is NULL, not JSON's null.

    A cast to `varchar(3)` would shorten a text silently, where storing a longer one is an error.
    """
    match kind if isinstance(kind, TypeDecorator) else bare(kind):
        case TypeDecorator() as decorated:
            own = decorated.dialect_impl(DIALECT)
            if not isinstance(own, TypeDecorator):
                return parameter_type(own)
            wide = decorated.copy()
            wide.impl = wide.impl_instance = parameter_type(decorated.load_dialect_impl(DIALECT))
            return wide
        case ANY_ARRAY() as array:
            item = parameter_type(array.item_type)
            return ARRAY(item, as_tuple=array.as_tuple, dimensions=array_depth(array))
        case JSONB():
            return JSONB(none_as_null=True)
        case JSON():
            return PG_JSON(none_as_null=True)
        case BIT():
            return BIT(varying=True)
        case Enum() | CITEXT() as own:
            return own
        case String():
            return Text()
        case own:
            return own
