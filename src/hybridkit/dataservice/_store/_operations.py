"""Operations that routes ask of a store, and their outcomes, without HTTP and without a database.

Every write is a `Write`: one operation for a `POST`, `PUT`, `PATCH` or `DELETE` on a record, many for `:transact`. A
store carries it out once per idempotency key, as a whole or not at all.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, cast
from uuid import UUID

from hybridkit.contract import Emission
from hybridkit.dataservice._store._streams import StreamAppend
from hybridkit.resources import Filter
from hybridkit.resources._resource import AnyResource

type Document = Mapping[str, Any]
"""A record by field, `etag` included, ready for `codec.encode_json`."""

type Operation = Assert | Create | Update | Upsert | Delete | Undelete

type CallWork = Callable[[Any], Awaitable[CallAnswer]]
"""The work of a service's own call: it gets the driver's object for the database, inside of the write's transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The record that an operation is about.

    Attributes:
        resource: the collection.
        id: of the resource's id type.
        label: the place of the operation in the request, for messages: `operations/3`; empty for a single one.
    """

    resource: AnyResource
    id: Any
    label: str = ""

    def says(self, message: str) -> str:
        """Return the message, preceded by the operation's place in the request."""
        return f"{self.label}: {message}" if self.label else message


@dataclass(frozen=True, slots=True, kw_only=True)
class Assert(_Target):
    """Require that the record is there, in the state of `if_match` if that is given, until the commit.

    Raises in a store: `NotFoundError`, `StaleVersionError`.
    """

    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(_Target):
    """Create a record.

    Raises in a store: `UniqueViolationError` where the id or another unique value is taken.

    Attributes:
        values: validated Python values by field.
    """

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(_Target):
    """Change some fields of a record.

    Raises in a store: `NotFoundError`, `StaleVersionError`; `RequirementNotMetError` where `require` doesn't hold.

    Attributes:
        changes: validated Python values by field.
        merges: RFC 7396 patches for fields that hold documents, as JSON values.
        increment: what to add to numeric fields.
        require: must hold before the change.
        if_match: the ETag that the record must have.
    """

    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    merges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    increment: Mapping[str, int | float | Decimal] = field(default_factory=dict[str, int | float | Decimal])
    require: Filter | None = None
    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsert(_Target):
    """Create the record, or replace the values of one that is there.

    With increments a record that is there keeps its values, and they are added to those of either.

    Raises in a store: `StaleVersionError` where the condition doesn't hold.

    Attributes:
        values: validated Python values by field.
        only: `absent` creates and replaces nothing; `present` replaces and creates nothing.
        if_match: the ETag that the record must have; implies `present`.
        increment: what to add to numeric fields, of a new record to the values that it begins with.
    """

    values: Mapping[str, Any]
    increment: Mapping[str, int | float | Decimal] = field(default_factory=dict[str, int | float | Decimal])
    only: Literal["absent", "present"] | None = None
    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(_Target):
    """Remove the record.

    Raises in a store: `NotFoundError`, `StaleVersionError`.
    """

    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelete(_Target):
    """Bring back a record that a soft delete has hidden; leave a live one as it is.

    Raises in a store: `NotFoundError`, `StaleVersionError`.
    """

    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """The outcome of a service's own call.

    Attributes:
        body: its answer, as JSON.
        emit: events and commands for the outbox.
    """

    body: bytes
    emit: tuple[Emission, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Operations and events that happen together, once per key.

    Attributes:
        caller: the service that asks; each has its own keys, and its events carry its name.
        key: the idempotency key.
        fingerprint: of the request; another one under the same key is another request.
        operations: in the order in which they are done.
        appends: to streams, done before the operations; both are one transaction.
        call: a service's own call, instead of operations.
        emit: events and commands for the outbox.
        cancel: ids of earlier events of the same caller, not to be published if their `not_before` has not come.
        isolation: of the database transaction.
        minimal: whether the answer names the records only (`Prefer: return=minimal`), so that the key keeps no more.
        dry_run: do all of it, return the outcome, and take it back (`Prefer: tx=rollback`); no key is recorded.
    """

    caller: str
    key: str
    fingerprint: bytes
    operations: tuple[Operation, ...] = ()
    appends: tuple[StreamAppend, ...] = ()
    call: CallWork | None = None
    emit: tuple[Emission, ...] = ()
    cancel: tuple[UUID, ...] = ()
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed"
    minimal: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one operation.

    Attributes:
        record: after the operation; None after a delete or an assert.
        created: whether the record is new.
    """

    record: Document | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a write.

    Attributes:
        results: one per operation, in the same order.
        replayed: whether the write was done before under this key; the results are those of then.
        reread: whether the outcome was too large to be kept: the records are those of now, None for one gone since.
        answer: of a service's own call, as JSON.
        versions: one per append, in the same order: the version of its last event.
    """

    results: tuple[Result, ...]
    replayed: bool = False
    reread: bool = False
    answer: bytes = b""
    versions: tuple[int, ...] = ()


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target after the merge patch, https://www.rfc-editor.org/rfc/rfc7396#section-2."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(cast("Mapping[str, Any]", target)) if isinstance(target, Mapping) else {}
    for name, value in cast("Mapping[str, Any]", patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
