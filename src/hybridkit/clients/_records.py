"""Records on their way to HTTP: ids, paths, and the JSON of their fields."""

from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from hybridkit.clients._pipeline._texts import quoted
from hybridkit.errors import InvalidRequestError, MalformedPayloadError
from hybridkit.resources import Record
from hybridkit.resources._resource import AnyResource

type RecordId = UUID | str | int
"""The id of a record, of the type that the record declares, or as text."""


class Target(NamedTuple):
    """The record that a write means.

    Attributes:
        id: of the type that the record declares.
        etag: the state in which the caller has read it; None for whatever state it is in.
    """

    id: Any
    etag: str | None


def target_of(resource: AnyResource, record_or_id: Record[Any] | RecordId) -> Target:
    """Return the record to be written: a record names the state that the caller has read, an id alone doesn't.

    Raises:
        InvalidRequestError: no record of that resource can have this id or ETag.
    """
    if isinstance(record_or_id, Record):
        if not record_or_id.etag.isascii() or not record_or_id.etag.isprintable():
            raise InvalidRequestError(
                f"{resource.name} {record_or_id.id}: its etag can't be sent as a header"
            )
        return Target(parse_id(resource, record_or_id.id), record_or_id.etag)
    return Target(parse_id(resource, record_or_id), None)


def parse_id(resource: AnyResource, id: RecordId) -> Any:
    """Return the id as the type that the record declares.

    Raises:
        InvalidRequestError: it is no id of that resource, or a natural key that no path leads to: empty, `.` or `..`.
    """
    try:
        return resource.parse_id(str(id))
    except ValueError:
        raise InvalidRequestError(
            f"{resource.name}: {str(id)[:100]!r} is no id of a {resource.record.__name__}"
        ) from None


def given_id(resource: AnyResource, data: BaseModel, id: RecordId | None) -> Any:
    """Return the id that the caller gives a record to be created, as `id=` or in the data; None where it gives none.

    Raises:
        InvalidRequestError: it is no id of that resource.
    """
    given = getattr(data, "id", None) if id is None else id
    return None if given is None else parse_id(resource, given)


def minted_id(resource: AnyResource, minted: UUID) -> UUID:
    """Return the id of a record to be created that has none of its own.

    Raises:
        InvalidRequestError: the resource has natural keys, so the caller has to give one.
    """
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
    """Return a path like `/v1/users/1f0…`, percent-encoded."""
    return f"{resource.path}/{quoted(str(id))}"


def fields_of(data: BaseModel) -> dict[str, Any]:
    """Return every field as a JSON value.

    Raises:
        MalformedPayloadError: something in it has no JSON form.
    """
    return _dump(data, exclude_unset=False)


def changed_fields(changes: BaseModel) -> dict[str, Any]:
    """Return the fields that were set, None included (RFC 7396: null removes the value).

    Raises:
        MalformedPayloadError: something in it has no JSON form.
    """
    return _dump(changes, exclude_unset=True)


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
