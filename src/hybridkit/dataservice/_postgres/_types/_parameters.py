"""Columns' types as parameters of statements: which value goes how, so that it arrives as it was given."""

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
"""Of a filter, and of the rows that are written: PostgreSQL's protocol counts those of a statement in 16 bits."""

_LISTS: Final = (JSON, ANY_ARRAY, AbstractRange, UserDefinedType)
"""What may have lists for values, by itself or under a type of one's own."""
_BY_TEXT: Final = (CITEXT, HSTORE, TSQUERY, TSVECTOR)
"""What asyncpg has no binary form for; of core's types only those that have an empty text."""
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
    """The type as PostgreSQL has it; of a domain what it is over."""
    own = kind.dialect_impl(DIALECT)
    return bare(own.data_type) if isinstance(own, DOMAIN) else own


def is_document(kind: TypeEngine[Any]) -> bool:
    """Whether it is JSON, and nobody else's type stands over it."""
    return document_depth(kind) == 0


@lru_cache(maxsize=1024)
def document_depth(kind: TypeEngine[Any]) -> int | None:
    """How many dimensions an array of JSON has, 0 for JSON itself; None for everything else."""
    match bare(kind):
        case JSON():
            return 0
        case ANY_ARRAY(item_type=item) as array if is_document(item):
            return array_depth(array)
        case _:
            return None


def array_depth(array: ANY_ARRAY[Any]) -> int | None:
    """How many dimensions it has: one where none are declared and its elements may be lists; None where they tell.

    SQLAlchemy takes the first element for a hint, so that a document or a composite would be another dimension.
    """
    return array.dimensions or (1 if isinstance(_innermost(array.item_type), _LISTS) else None)


@lru_cache(maxsize=1024)
def is_perilous(kind: TypeEngine[Any]) -> bool:
    """Whether it is an array in which the driver reads an empty text as no object at all, which ends the process."""
    match _innermost(kind):
        case ANY_ARRAY(item_type=item):
            return isinstance(_innermost(item), _BY_TEXT)
        case _:
            return False


@lru_cache(maxsize=1024)
def _innermost(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type under domains and types of one's own."""
    own = bare(kind)
    return _innermost(own.load_dialect_impl(DIALECT)) if isinstance(own, TypeDecorator) else own


def is_real(kind: TypeEngine[Any]) -> bool:
    """Whether it is a float of 32 bits."""
    if isinstance(kind, DOMAIN):
        return is_real(kind.data_type)
    own = bare(kind)
    return isinstance(kind, REAL) or (isinstance(own, Float) and (own.precision or DOUBLE_BITS) <= REAL_BITS)


REAL_BITS: Final = 24
DOUBLE_BITS: Final = 53


def is_scalar(kind: TypeEngine[Any]) -> bool:
    """Whether its values can be the elements of an array.

    A closed list: a driver takes whatever is a sequence in Python for another dimension of the array, and its leaves
    for the elements. Arrays, JSON, composites and multiranges have such values, and nobody knows what others have.
    """
    own = bare(kind)
    return isinstance(own, _SCALARS) and type(own).__module__.startswith("sqlalchemy.")


@lru_cache(maxsize=1024)
def parameter_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type for a value of such a column: PostgreSQL's cast to it cuts nothing off, and no value is NULL.

    A cast to `varchar(3)` would shorten a text unseen, which storing one refuses.
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
