"""Records on their way to HTTP: ids and paths."""

from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients._pipeline._texts import quoted
from hybridkit.contract._fields import parse_id
from hybridkit.errors import InvalidRequestError
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
