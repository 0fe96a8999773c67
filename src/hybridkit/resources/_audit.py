"""The audit trail as data: one entry for each change of a record whose resource is declared with `audited=True`."""

from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from hybridkit.resources._resource import SYSTEM_FIELDS, AnyResource, Record, Resource

type AuditOperation = Literal["create", "update", "delete", "undelete"]

HIDDEN_VALUE: Final = "***"
"""The text that stands for a value which the trail doesn't keep."""

UNAUDITED_FIELDS: Final = frozenset(SYSTEM_FIELDS) - {"created_at"}
"""The fields of a record that no entry has among its changes, as the entry has them itself."""


class Change(NamedTuple):
    """A field's value before a change and after it.

    Attributes:
        before: the value before; None also for a record that was not there.
        after: the value after; None also for a record that is not there any more.
    """

    before: Any
    after: Any

    @property
    def is_hidden(self) -> bool:
        """Whether the trail only knows that the field has changed: it is in `audit_hide`, or its value was erased."""
        return self == (HIDDEN_VALUE, HIDDEN_VALUE)


class AuditEntry(Record[int]):
    """A change of a record: what was changed, by whom and in which request.

    Attributes:
        id: higher for a later change of the same record.
        version: of the entry: 1 until an erasure blanks some of its changes.
        created_at: the time of the change, the one that the record has as its `updated_at`.
        updated_at: the time of the last erasure; without one the same as `created_at`.
        resource: the name of the record's resource.
        record_id: the record's id as text.
        record_version: the record's version after the change; of a deleted one, one more than its last.
        operation: a soft delete is a `delete`, and takes away all values until an `undelete` brings them back.
        caller: the service that asked for the change; `sql:` and the role for one that was made by SQL alone.
        user_id: the user for whom the service asked.
        request_id: the request that led to the change; None for SQL alone.
        changes: by field, its value before and after. In an entry of `history` they have the types of the record's
            fields; in one of `find(AUDIT)`, which has entries of any resource, they are JSON.
    """

    resource: str
    record_id: str
    record_version: int
    operation: AuditOperation
    caller: str
    user_id: str | None = None
    request_id: str | None = None
    changes: dict[str, Change]


class _Nothing(BaseModel):
    """The fields of an entry that a caller may write."""


AUDIT: Final = Resource(
    "audit",
    record=AuditEntry,
    create=_Nothing,
    update=_Nothing,
    filterable=(
        "resource",
        "record_id",
        "operation",
        "caller",
        "user_id",
        "request_id",
        "created_at",
    ),
    sortable=("created_at",),
)
"""The entries of all audited resources of a data service, which callers only read: `find(AUDIT)`."""


def audited_fields(resource: AnyResource) -> tuple[str, ...]:
    """Return the fields of a record whose changes are in the trail."""
    return tuple(name for name in resource.record.model_fields if name not in UNAUDITED_FIELDS)
