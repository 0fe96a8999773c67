"""The JSON of records' fields and ids, as bodies and paths have it."""

from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from hybridkit.errors import InvalidRequestError, MalformedPayloadError
from hybridkit.resources._resource import AnyResource


def parse_id(resource: AnyResource, id: object) -> Any:
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
