"""Resources in their collections: indexes, and records as documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined
from pymongo import ASCENDING, DESCENDING, IndexModel

from hybridkit.dataservice._mongo._values import from_bson, mergeable, to_bson
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._operations import Document
from hybridkit.errors import DeclarationError
from hybridkit.resources._resource import AnyResource
from hybridkit.sagas import SAGAS

SAGA_COLLECTION: Final = "hk_sagas"
"""The collection of sagas, the only one of hybridkit's own that is a resource."""

HIDDEN: Final = "_hk"
"""The member of a stored document that readers never see: incarnation, keys, events, audit entry, tombstone."""


_UNKNOWN_TIME: Final = datetime.fromtimestamp(0, UTC)
"""The time of a document that was stored by something else without one: every record has a time."""
_KEPT: Final[Mapping[str, type]] = {"incarnation": int, "keys": list, "events": list, "audit": list}


@dataclass(frozen=True, slots=True)
class DocumentIndex:
    """An index over fields of the record, in that order: `DocumentIndex("owner_id", "-created_at")`.

    Attributes:
        fields: of the record, or dotted paths into it; with a `-` before it, a field is descending.
        unique: whether no two records may have the same values; records without a value don't count.
    """

    fields: tuple[str, ...]
    unique: bool = False

    def __init__(self, *fields: str, unique: bool = False) -> None:
        if not fields:
            raise DeclarationError("an index has at least one field")
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "unique", unique)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, without their directions."""
        return tuple(name.removeprefix("-") for name in self.fields)

    def model(self) -> IndexModel:
        """Return the index in the driver's form."""
        keys = [
            (stored_name(name.removeprefix("-")), DESCENDING if name.startswith("-") else ASCENDING)
            for name in self.fields
        ]
        name = "__".join(self.fields)
        if not self.unique:
            return IndexModel(keys, name=name)
        present = {stored_name(name): {"$exists": True} for name in self.names}
        return IndexModel(keys, name=name, unique=True, partialFilterExpression=present)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCollection:
    """The collection of a resource in MongoDB.

    Attributes:
        name: of the collection; the resource's name where it is empty.
        indexes: created when the service starts.
    """

    name: str = ""
    indexes: tuple[DocumentIndex, ...] = field(default=())


class ResourceCollection:
    """A resource with its collection, and the translation between its records and documents.

    Args:
        resource: the declaration.
        declared: name and indexes.

    Raises:
        DeclarationError: an index names a field that the record doesn't have, or MongoDB reserves a name.
    """

    def __init__(self, resource: AnyResource, declared: DocumentCollection) -> None:
        self.resource = resource
        self.name = declared.name or resource.name
        self.indexes = declared.indexes
        known = resource.record.model_fields
        is_ours = self.name == SAGA_COLLECTION and resource == SAGAS
        if (self.name.startswith(("hk_", "system.")) and not is_ours) or "$" in self.name:
            raise DeclarationError(
                f"{resource.name}: the collection {self.name!r} isn't the resource's own; call it otherwise"
            )
        if paths := [name for name in known if "." in name or name.startswith("$")]:
            raise DeclarationError(
                f"{resource.name}: MongoDB takes the field {paths[0]!r} for a path or an operator; call it otherwise"
            )
        for index in declared.indexes:
            unknown = [name for name in index.names if name.partition(".")[0] not in known]
            if unknown:
                raise DeclarationError(f"{resource.name}: an index names {unknown[0]!r}, which no record has")

        self._nullable = frozenset(name for name, info in known.items() if _takes_none(info.annotation))

    def __repr__(self) -> str:
        return f"ResourceCollection({self.resource!r}, {self.name!r})"

    def document(self, stored: Mapping[str, Any], fields: Sequence[str] = ()) -> Document:
        """Return the record in a stored document, or some fields of it with a weak ETag."""
        tag = tag_of(stored)
        names = [name for name in fields or self.resource.record.model_fields if name != "etag"]
        record = {name: self.value(stored, name) for name in names}
        return {**record, "etag": f"W/{tag}" if fields else tag}

    def value(self, stored: Mapping[str, Any], name: str) -> Any:
        """Return the value of a field; where none is stored, None if the record allows it, otherwise the default."""
        return from_bson(self._stored_value(stored, name))

    def mergeable(self, stored: Mapping[str, Any], name: str) -> Any:
        """Return the value of a field as `value` does, but with BSON's own types as they are, to be patched."""
        return mergeable(self._stored_value(stored, name))

    def _stored_value(self, stored: Mapping[str, Any], name: str) -> Any:
        if name == "id":
            return stored["_id"]
        if name == "version":
            return version_of(stored)
        if name in ("created_at", "updated_at") and stored.get(name) is None:
            return _UNKNOWN_TIME
        if name in stored:
            return stored[name]
        return None if self.is_nullable(name) else self._default(name)

    def is_nullable(self, field: str) -> bool:
        """Return whether a record may have no value for the field, or for the path into it."""
        name, dot, _ = field.partition(".")
        return bool(dot) or name in self._nullable

    def may_be_number(self, field: str) -> bool:
        """Return whether values of the field, or of the path into it, can be added."""
        if "." in field:
            return True
        adapter: TypeAdapter[Any] = TypeAdapter(self.resource.record.model_fields[field].annotation)
        try:
            found = adapter.validate_python(1)
        except ValidationError:
            return False
        return isinstance(found, int | float | Decimal) and not isinstance(found, bool)

    def _default(self, name: str) -> Any:
        """Return the default of a field that the record got after the document was stored."""
        default = self.resource.record.model_fields[name].get_default(
            call_default_factory=True, validated_data={}
        )
        return None if default is PydanticUndefined else default

    def stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values as members of a document; fields without a value are left out."""
        return {name: to_bson(value) for name, value in values.items() if value is not None}


def stored_name(field: str) -> str:
    """Return the name under which a field of the record is stored."""
    return "_id" if field == "id" else field


def bookkeeping(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hidden member; it is empty in a document that was stored by something else than a data service.

    Parts of another type than the data service stores are left out: a shell that stores a document again may make
    floats of integers.
    """
    found = stored.get(HIDDEN)
    members = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {name: value for name, value in members.items() if isinstance(value, _KEPT.get(name, object))}


def version_of(stored: Mapping[str, Any]) -> int:
    """Return the version; 1 for a document that was stored by something else than a data service."""
    found = stored.get("version")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 1


def tag_of(stored: Mapping[str, Any]) -> str:
    """Return the ETag of the record in a document."""
    return State(version_of(stored), bookkeeping(stored).get("incarnation", 0)).tag


def _takes_none(annotation: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(None)
    except ValidationError:
        return False
    return True
