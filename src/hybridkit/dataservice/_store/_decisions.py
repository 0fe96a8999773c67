"""The rules of the contract: what an operation does to a record, given the record as it is.

MongoDB's store and the one in memory decide here and only translate the decision. PostgreSQL decides in SQL, where the
database itself compares and adds, and refuses with the same functions (`_refusals`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, assert_never

from hybridkit.dataservice._store._increments import incremented
from hybridkit.dataservice._store._merging import merged
from hybridkit.dataservice._store._operations import (
    Assert,
    Create,
    Delete,
    Operation,
    Undelete,
    Update,
    Upsert,
)
from hybridkit.dataservice._store._refusals import (
    hidden,
    not_found,
    requirement_not_met,
    stale_version,
    unique_violation,
)
from hybridkit.resources import Filter
from hybridkit.resources._resource import SYSTEM_FIELDS, AnyResource

type Decision = Written | Removed | Unchanged


class StoredRecord(Protocol):
    """A record as a store has it, perhaps hidden by a soft delete."""

    @property
    def version(self) -> int:
        """The version, from 1."""
        ...

    @property
    def tag(self) -> str:
        """The ETag."""
        ...

    @property
    def is_hidden(self) -> bool:
        """Whether a soft delete has hidden the record."""
        ...

    def value(self, name: str) -> Any:
        """Return the value of a field."""
        ...

    def mergeable(self, name: str) -> Any:
        """Return the value of a field in the form that a merge patch is applied to."""
        ...

    def meets(self, require: Filter) -> bool:
        """Return whether the filter holds; also True where the database itself checks it while it writes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A record is to be created, or to be shown with some other values.

    Attributes:
        given: values by field from the operation and from defaults; whether a field can hold its value is for the store
            to say.
        computed: values by field that their fields can hold: version and times, sums, merged documents, and of a new
            record the id.
    """

    given: Mapping[str, Any]
    computed: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A record is to be removed.

    Attributes:
        version: of what is left in its place.
        is_soft: the record is only hidden, and can be brought back.
    """

    version: int
    is_soft: bool


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The record stays as it is."""


def decide(operation: Operation, current: StoredRecord | None, *, moment: datetime) -> Decision:
    """Return what the operation does to its record.

    Args:
        operation: what is asked for.
        current: the record, live or hidden; None where there is none.
        moment: the time of the change.

    Raises:
        NotFoundError: the record is not there.
        StaleVersionError: the record is in another state.
        RequirementNotMetError: the record is not as the operation requires.
        UniqueViolationError: another record, perhaps a hidden one, has the id.
        InvalidRequestError: a sum or a merged document is not what its field can hold.
    """
    live = None if current is None or current.is_hidden else current
    match operation:
        case Assert():
            _in_state(operation, live)
            return Unchanged()
        case Create():
            if current is not None:
                raise unique_violation(operation, ["id"], "a record has this id")
            return _new(operation, moment)
        case Upsert():
            return _upserted(operation, current, moment)
        case Update():
            return _updated(operation, _in_state(operation, live), moment)
        case Delete():
            record = _in_state(operation, live)
            return Removed(version=record.version + 1, is_soft=operation.resource.soft_delete)
        case Undelete():
            record = _in_state(operation, current)
            return Written(given={}, computed=_stamps(record, moment)) if record.is_hidden else Unchanged()
        case _:
            assert_never(operation)


def _in_state(operation: Assert | Update | Delete | Undelete, record: StoredRecord | None) -> StoredRecord:
    if record is None:
        raise not_found(operation)
    if operation.if_match not in (None, record.tag):
        raise stale_version(operation, record.tag)
    return record


def _new(operation: Create | Upsert, moment: datetime) -> Written:
    stamps = {"id": operation.id, "version": 1, "created_at": moment, "updated_at": moment}
    given = {**_defaults(operation.resource), **operation.values}
    sums = _sums(operation, given.get) if isinstance(operation, Upsert) else {}
    return Written(given=given, computed={**sums, **stamps})


def _upserted(operation: Upsert, current: StoredRecord | None, moment: datetime) -> Written:
    if current is None or current.is_hidden:
        if operation.only == "present":
            raise stale_version(operation, None)
        if current is not None:
            raise hidden(operation)
        return _new(operation, moment)
    if operation.only == "absent" or operation.if_match not in (None, current.tag):
        raise stale_version(operation, current.tag)
    if operation.increment:
        return Written(given={}, computed={**_sums(operation, current.value), **_stamps(current, moment)})
    return Written(given=operation.values, computed=_stamps(current, moment))


def _sums(operation: Update | Upsert, value_of: Callable[[str], Any]) -> dict[str, Any]:
    return {name: incremented(operation, name, value_of(name)) for name in operation.increment}


def _updated(operation: Update, record: StoredRecord, moment: datetime) -> Written:
    if operation.require is not None and not record.meets(operation.require):
        raise requirement_not_met(operation, record.tag)
    documents = {name: merged(operation, name, record.mergeable(name)) for name in operation.merges}
    sums = _sums(operation, record.value)
    return Written(given=operation.changes, computed={**documents, **sums, **_stamps(record, moment)})


def _stamps(record: StoredRecord, moment: datetime) -> dict[str, Any]:
    return {"version": record.version + 1, "updated_at": moment}


def _defaults(resource: AnyResource) -> dict[str, Any]:
    """Return values for the fields that a create doesn't name."""
    return {
        name: info.get_default(call_default_factory=True, validated_data={})
        for name, info in resource.record.model_fields.items()
        if name not in SYSTEM_FIELDS and name not in resource.create.model_fields and not info.is_required()
    }
