"""Declarations of data: records, resources, and a service's own calls."""

import dataclasses
from decimal import Decimal
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema
from typing_extensions import TypeVar

from hybridkit._injection import bare_type
from hybridkit._personal import personal_fields
from hybridkit._syntax import NAME_SYNTAX
from hybridkit.codec import Timestamp
from hybridkit.errors import DeclarationError, InvalidQueryError
from hybridkit.resources._filters import PLAIN_VALUES, element_type, operand_type
from hybridkit.resources._filters import Field as FilterField

IdT = TypeVar("IdT", UUID, str, int, default=UUID)

RESERVED_NAMES: Final = frozenset({"select", "order", "or", "and", "not", "page_size", "page_token"})
"""Names of query parameters, which no field may have."""

SYSTEM_FIELDS: Final = ("id", "version", "created_at", "updated_at", "etag")
"""The fields of `Record`, which only the data service writes."""

NO_SEGMENTS: Final = frozenset({"", ".", ".."})
"""Texts that can't be an id, as no path leads to them."""


def _allow_nan(schema: object) -> None:
    """Let decimals be NaN or infinite; those of limited digits can't be, as pydantic has no such type."""
    match schema:
        case {"type": "decimal"}:
            number = cast("dict[str, Any]", schema)
            if number.keys().isdisjoint(("max_digits", "decimal_places")):
                number.setdefault("allow_inf_nan", True)
        case dict():
            for member in cast("dict[str, object]", schema).values():
                _allow_nan(member)
        case list() | tuple():
            for member in cast("list[object]", schema):
                _allow_nan(member)
        case _:
            pass


class Record(BaseModel, Generic[IdT]):
    """The base of stored models: `class User(Record)`, or `Record[str]` for a natural key.

    Attributes:
        id: a UUIDv6 made by the client, unless the type argument says otherwise.
        version: from 1, one more with each change.
        created_at: in UTC, to the millisecond.
        updated_at: in UTC, to the millisecond.
        etag: an opaque validator of this state of this record; an update sends it back, so that it changes what was
            read and nothing else.
    """

    id: IdT
    version: int = Field(ge=1)
    created_at: Timestamp
    updated_at: Timestamp
    etag: str

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Build pydantic's schema, in which decimals may be `NaN` or infinite: SQL may have stored those."""
        schema = handler(source)
        _allow_nan(schema)
        return schema


@dataclasses.dataclass(frozen=True, slots=True)
class Resource[RecordT: Record[Any], CreateT: BaseModel, UpdateT: BaseModel]:
    """A named collection of records and the models of its reads and writes.

    Attributes:
        name: plural snake_case, the path segment under `/v1/`; at most 63 characters.
        record: the model of what a read returns.
        create: the model of what a create takes.
        update: the model of what an update takes; a field that isn't set isn't touched.
        filterable: record fields (or dotted paths into them) that a filter may name; `id` always may.
        sortable: record fields that an order may name; `id` always may.
        soft_delete: a deleted record is only hidden, and `undelete` brings it back.
        require_match: an update or delete of a record that is there has to name the state that the caller has read
            (its ETag), or it is refused with 428.
        audited: each change of a record is kept as an `AuditEntry`, in the transaction of the change.
        audit_hide: fields of which the audit trail keeps only that they have changed.
    """

    name: str
    record: type[RecordT] = dataclasses.field(kw_only=True)
    create: type[CreateT] = dataclasses.field(kw_only=True)
    update: type[UpdateT] = dataclasses.field(kw_only=True)
    filterable: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    sortable: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    soft_delete: bool = dataclasses.field(default=False, kw_only=True)
    require_match: bool = dataclasses.field(default=False, kw_only=True)
    audited: bool = dataclasses.field(default=False, kw_only=True)
    audit_hide: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    if TYPE_CHECKING:
        # Makes both type parameters invariant: without it a client's `create(USERS, OrderChanges(...))` would
        # type-check, as a create of their common base.
        def _takes(self, create: CreateT, update: UpdateT) -> None: ...

    def __post_init__(self) -> None:
        """Check the declaration.

        Raises:
            DeclarationError: a name is no snake_case, reserved, or of a field that the record doesn't have; a field is
                marked as personal that can't be erased; or fields are hidden from a trail that isn't kept.
        """
        if not NAME_SYNTAX.fullmatch(self.name):
            raise DeclarationError(f"resource {self.name!r}: a name is snake_case with at most 63 characters")
        for name in self.record.model_fields:
            if name in RESERVED_NAMES:
                raise DeclarationError(
                    f"{self.name}: the query grammar reserves {name!r}; call the field otherwise"
                )
        if self.audit_hide and not self.audited:
            raise DeclarationError(f"{self.name}: audit_hide needs audited=True")
        for path in (*self.filterable, *self.sortable, *self.audit_hide):
            if path.partition(".")[0] not in self.record.model_fields:
                raise DeclarationError(f"{self.name}: {self.record.__name__} has no field {path!r}")
        for model in (self.create, self.update):
            for name in model.model_fields:
                if name not in self.record.model_fields:
                    raise DeclarationError(
                        f"{self.name}: {model.__name__}.{name} is not in {self.record.__name__}"
                    )
        personal_fields(self.record)

    def __repr__(self) -> str:
        return f"Resource({self.name!r}, record={self.record.__name__})"

    def __getitem__(self, path: str) -> FilterField:
        """Return the field to filter by: `USERS["email"] == "a@example.com"`.

        Raises:
            InvalidQueryError: the resource doesn't declare it as filterable.
        """
        return self.field(path)

    def field(self, path: str, *, pointer: str = "") -> FilterField:
        """Return the field to filter by, as `USERS[path]` does, with a JSON pointer into the query for the error."""
        if path != "id" and path not in self.filterable:
            raise InvalidQueryError(
                f"{self.name} can't be filtered by {path[:100]!r}, only by {sorted({'id', *self.filterable})}",
                pointer=pointer,
            )
        return FilterField(path, _operand_adapter(self.record, path), _element_adapter(self.record, path))

    @property
    def path(self) -> str:
        """The path of the collection: `/v1/users`."""
        return f"/v1/{self.name}"

    def parse_id(self, text: str) -> Any:
        """Read an id from a URL as the record's id type.

        Raises:
            ValueError: the text is no id of that type (pydantic's `ValidationError` is a ValueError), a UUID in another
                form than its own, or a natural key that no path leads to: an empty one, one that is no Unicode text, or
                one of the segments `.` and `..`, which everything on the way takes for directories
                (https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4).
        """
        parsed = self.kept_id(text)
        if isinstance(parsed, UUID) and text.lower() != str(parsed):
            raise ValueError(f"{self.name}: a UUID has five groups of hexadecimal digits")
        if isinstance(parsed, str):
            parsed.encode()  # half a surrogate pair has no encoding, and a UnicodeEncodeError is a ValueError
            if parsed in NO_SEGMENTS:
                raise ValueError(f"{self.name}: an id is neither empty nor one of the segments . and ..")
        return parsed

    def kept_id(self, text: str) -> Any:
        """Read the id of a record that is there already, as `parse_id` does but in any form.

        Raises:
            ValueError: the text is no id of that type.
        """
        return _adapter(self.record, "id").validate_strings(text)

    def field_adapter(self, name: str) -> TypeAdapter[Any]:
        """Return the adapter for the values of one field of the record, without its null."""
        return _field_adapter(self.record, name)

    def number_of(self, name: str) -> type[int | float | Decimal] | None:
        """Return the type of a number that an update may change, so that an increment can add to it.

        None for any other field, and for a name that no field has.
        """
        return _number(self.record, name) if name in self.update.model_fields else None


@cache
def _number(record: type[Record[Any]], name: str) -> type[int | float | Decimal] | None:
    members: list[Any] = [bare_type(record.model_fields[name].annotation)]
    if isinstance(members[0], UnionType) or get_origin(members[0]) is Union:
        members = [bare_type(member) for member in get_args(members[0]) if member is not type(None)]
    numbers = [kind for kind in (Decimal, float, int) if kind in members]
    return numbers[0] if numbers and len(numbers) == len(members) else None


@cache
def _adapter(record: type[Record[Any]], path: str) -> TypeAdapter[Any]:
    """Return the adapter for a field without its null, or for anything where the path leads into a document."""
    return TypeAdapter(_annotation(record, path))


class _WithNan:
    """Lets the decimals of an annotation be NaN or infinite, as they may be in a `Record`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _allow_nan(schema)
        return schema


@cache
def _field_adapter(record: type[Record[Any]], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[_annotation(record, name), _WithNan()])


@cache
def _operand_adapter(record: type[Record[Any]], path: str) -> TypeAdapter[Any]:
    """Return the adapter for the operands of a field."""
    return TypeAdapter(operand_type(_annotation(record, path)))


@cache
def _element_adapter(record: type[Record[Any]], path: str) -> TypeAdapter[Any] | None:
    """Return the adapter for the elements of a list of plain values; None for any other field."""
    element = element_type(_annotation(record, path))
    if element is None:
        return None
    return PLAIN_VALUES if element is Any else TypeAdapter(element)


def _annotation(record: type[Record[Any]], path: str) -> Any:
    head, dot, _ = path.partition(".")
    info = record.model_fields[head]
    if dot:
        return Any
    annotation: Any = info.annotation
    members = [member for member in get_args(annotation) if member is not type(None)]
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        annotation = Union[tuple(members)]  # noqa: UP007 - built from a list
    return Annotated[annotation, *info.metadata] if info.metadata else annotation


type AnyResource = Resource[Any, Any, Any]
"""A resource of any models."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call[RequestT: BaseModel, ResponseT: BaseModel]:
    """An operation that a service defines itself beside the contract's: `POST /v1/{resource}:{name}`.

    Attributes:
        name: snake_case; not one of the contract's own calls (`query`, `batch_get`, …).
        resource: the collection that it belongs to.
        request: the model of the body.
        response: the model of the answer.
        safe: whether it changes nothing, so that it needs no idempotency key.
    """

    name: str
    resource: AnyResource = dataclasses.field(kw_only=True)
    request: type[RequestT] = dataclasses.field(kw_only=True)
    response: type[ResponseT] = dataclasses.field(kw_only=True)
    safe: bool = dataclasses.field(default=False, kw_only=True)

    if TYPE_CHECKING:
        # As in `Resource`: a client's `call(DEACTIVATE, Something(...))` must not type-check.
        def _takes(self, request: RequestT) -> None: ...

    def __post_init__(self) -> None:
        """Check the declaration.

        Raises:
            DeclarationError: the name is not snake_case, or the contract has a call with that name.
        """
        if not NAME_SYNTAX.fullmatch(self.name) or self.name in RESERVED_CALLS:
            raise DeclarationError(
                f"call {self.name!r} of {self.resource.name}: a name is snake_case and not reserved"
            )

    @property
    def path(self) -> str:
        """The path of the call: `/v1/users:deactivate`."""
        return f"{self.resource.path}:{self.name}"


type AnyCall = Call[Any, Any]
"""A call of any request and response."""

RESERVED_CALLS: Final = frozenset(
    {
        "query",
        "aggregate",
        "undelete",
        "transact",
        "batch_get",
        "batch_create",
        "batch_update",
        "batch_upsert",
        "batch_delete",
    }
)
