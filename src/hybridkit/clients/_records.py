"""Between typed records and what HTTP carries: ids, bodies, answers."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticSerializationError

from hybridkit.clients._find import Page
from hybridkit.clients._pipeline._texts import quoted
from hybridkit.clients._transports._base import Response
from hybridkit.codec import validate_json, validate_object
from hybridkit.errors import InvalidRequestError, MalformedPayloadError, NotFoundError, ResponseError
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyResource

__all__ = [
    "RecordId",
    "Target",
    "adapter_of",
    "changed_fields",
    "fields_of",
    "found_in",
    "gone_since",
    "new_id_for",
    "page_from",
    "parse_id",
    "read_answer",
    "record_from",
    "record_path",
    "result_from",
    "rows_from",
    "target_of",
    "written_record",
]

type RecordId = UUID | str | int
"""What identifies a record; which of them it is says the record's declaration."""

NO_CONTENT: Final = 204


class Target(NamedTuple):
    """Which record a write means.

    Attributes:
        id: of the type that the record declares.
        etag: the state in which the caller has read it; None for whatever state it is in.
    """

    id: Any
    etag: str | None


def target_of(resource: AnyResource, record_or_id: Record[Any] | RecordId) -> Target:
    """A record says which state the caller has seen; an id alone doesn't.

    Raises:
        InvalidRequestError: an id, or an ETag, that no record of that resource can have.
    """
    if isinstance(record_or_id, Record):
        if not record_or_id.etag.isascii() or not record_or_id.etag.isprintable():
            raise InvalidRequestError(
                f"{resource.name} {record_or_id.id}: its etag can't be sent as a header"
            )
        return Target(parse_id(resource, record_or_id.id), record_or_id.etag)
    return Target(parse_id(resource, record_or_id), None)


def parse_id(resource: AnyResource, id: RecordId) -> Any:
    """The id as the record's own type.

    Raises:
        InvalidRequestError: it is no id of that resource, or a natural key that no path leads to: empty, `.` or `..`.
    """
    try:
        return resource.parse_id(str(id))
    except ValueError:
        raise InvalidRequestError(
            f"{resource.name}: {str(id)[:100]!r} is no id of a {resource.record.__name__}"
        ) from None


def new_id_for(resource: AnyResource, data: BaseModel, id: RecordId | None, minted: UUID) -> Any:
    """The id of a record to be created: the given one, that in the data, or the minted one where ids are UUIDs.

    Raises:
        InvalidRequestError: a natural key is missing, or it is no id of that resource.
    """
    given = getattr(data, "id", None) if id is None else id
    if given is not None:
        return parse_id(resource, given)
    try:
        parsed = resource.parse_id(str(minted))
    except ValueError:
        parsed = None
    if not isinstance(parsed, UUID):
        raise InvalidRequestError(
            f"{resource.name}: the id of a {resource.record.__name__} is a natural key; pass it as id="
        )
    return parsed


def record_path(resource: AnyResource, id: object) -> str:
    """`/v1/users/1f0…`, percent-encoded."""
    return f"{resource.path}/{quoted(str(id))}"


def fields_of(data: BaseModel) -> dict[str, Any]:
    """Every field, as JSON values.

    Raises:
        MalformedPayloadError: something in it has no JSON form.
    """
    return _dump(data, exclude_unset=False)


def changed_fields(changes: BaseModel) -> dict[str, Any]:
    """The fields that were set, None included (RFC 7396: null removes the value).

    Raises:
        MalformedPayloadError: something in it has no JSON form.
    """
    return _dump(changes, exclude_unset=True)


def record_from[RecordT: Record[Any]](resource: Resource[RecordT, Any, Any], response: Response) -> RecordT:
    """The record in that answer.

    Raises:
        ResponseError: the body is no such record.
    """
    adapter: TypeAdapter[RecordT] = adapter_of(resource.record)
    return read_answer(adapter, response, what=f"a record of {resource.name}")


def written_record[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], response: Response
) -> RecordT:
    """The record in the answer to a write.

    Raises:
        NotFoundError: an earlier call with the same key wrote it, and it has been removed since.
        ResponseError: the body is no such record.
    """
    if response.status == NO_CONTENT:
        raise gone_since(resource)
    return record_from(resource, response)


def gone_since(resource: AnyResource) -> NotFoundError:
    """What a repeated write finds that was too large for its answer to be kept."""
    return NotFoundError(
        f"{resource.name}: an earlier call with this key wrote the record; it has been removed since"
    )


def page_from[ModelT: BaseModel](
    resource: AnyResource, model: type[ModelT], response: Response
) -> Page[ModelT]:
    """The page in that answer.

    Raises:
        ResponseError: the body is no page of such records.
    """
    adapter: TypeAdapter[Page[ModelT]] = _page_adapter(model)
    return read_answer(adapter, response, what=f"a page of {resource.name}")


def found_in[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], response: Response, *, count: int
) -> list[RecordT | None]:
    """The records in the answer to a batch of so many, None for what is not there.

    Raises:
        ResponseError: the body has other or not as many items.
    """
    adapter: TypeAdapter[_Items[RecordT | None]] = _items_adapter(resource.record, nullable=True)
    items = read_answer(adapter, response, what=f"records of {resource.name}").items
    if len(items) != count:
        raise ResponseError(
            f"{resource.name}: the batch has {count} records, the answer {len(items)}",
            response_status=response.status,
        )
    return items


def rows_from[RowT](what: str, row_type: type[RowT], response: Response) -> list[RowT]:
    """The items in that answer: written records, or rows of an aggregation.

    Raises:
        ResponseError: the body has other items.
    """
    adapter: TypeAdapter[_Items[RowT]] = _items_adapter(cast("Hashable", row_type), nullable=False)
    return read_answer(adapter, response, what=what).items


def read_answer[T](adapter: TypeAdapter[T], response: Response, *, what: str) -> T:
    """The body of that answer as the adapter's type.

    Raises:
        ResponseError: it doesn't fit; the message has no values.
    """
    try:
        return validate_json(adapter, response.body, what="it")
    except MalformedPayloadError as error:
        raise ResponseError(
            f"the answer ({response.status}, {len(response.body)} bytes) should be {what}, but {error}",
            response_status=response.status,
        ) from None


def result_from[RecordT: Record[Any]](resource: Resource[RecordT, Any, Any], value: object) -> RecordT:
    """An operation's result in a transaction as the record it is.

    Raises:
        ResponseError: it is no such record.
    """
    adapter: TypeAdapter[RecordT] = adapter_of(resource.record)
    try:
        return validate_object(adapter, value, what="it")
    except MalformedPayloadError as error:
        raise ResponseError(
            f"a result of the transaction should be a record of {resource.name}, but {error}",
            response_status=200,
        ) from None


def _dump(model: BaseModel, *, exclude_unset: bool) -> dict[str, Any]:
    try:
        dumped = model.model_dump(mode="json", exclude_unset=exclude_unset, by_alias=True, round_trip=True)
    except PydanticSerializationError as error:
        raise MalformedPayloadError(f"{type(model).__name__} has no JSON form: {error}") from None
    # pydantic refuses half a surrogate pair in a value, and replaces it in a key.
    if any(map(_has_replaced_key, dumped.values())) and not _has_unicode_keys(model.model_dump()):
        raise MalformedPayloadError(f"{type(model).__name__} has no JSON form: a key is no Unicode text")
    return dumped


def _has_replaced_key(value: object) -> bool:
    match value:
        case dict():
            found = cast("dict[str, object]", value)
            return any("\ufffd" in key for key in found) or any(map(_has_replaced_key, found.values()))
        case list():
            return any(map(_has_replaced_key, cast("list[object]", value)))
        case _:
            return False


def _has_unicode_keys(value: object) -> bool:
    match value:
        case dict():
            found = cast("dict[object, object]", value)
            keys = (str(key) for key in found)
            return not any("\ud800" <= character <= "\udfff" for key in keys for character in key) and all(
                map(_has_unicode_keys, found.values())
            )
        case list() | tuple():
            return all(map(_has_unicode_keys, cast("list[object]", value)))
        case _:
            return True


@dataclass(frozen=True, slots=True)
class _Items[ItemT]:
    """The body of most answers with several records."""

    items: list[ItemT]


@cache
def adapter_of(type_: type[Any]) -> TypeAdapter[Any]:
    """The one adapter of that type: making one takes longer than reading many records with it."""
    return TypeAdapter(type_)


@cache
def _page_adapter(model: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(Page[model])  # type: ignore[valid-type] # the class is only known at run time


@cache
def _items_adapter(type_: Hashable, *, nullable: bool) -> TypeAdapter[Any]:
    item: Any = cast("Any", type_) | None if nullable else type_
    return TypeAdapter(_Items[item])
