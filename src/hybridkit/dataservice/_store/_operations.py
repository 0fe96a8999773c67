"""What routes ask of a store, and what it answers: no HTTP in it, and no database.

Every write is a `Write`: one operation for a `POST`, `PUT`, `PATCH` or `DELETE` on a record, many for `:transact`. A
store carries it out once per idempotency key, as a whole or not at all.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from hybridkit.contract import Emission
from hybridkit.resources import Filter
from hybridkit.resources._resource import AnyResource

type Document = Mapping[str, Any]
"""A record by field, `etag` included, ready for `codec.encode_json`."""

type Operation = Assert | Create | Update | Upsert | Delete | Undelete

type CallWork = Callable[[Any], Awaitable[CallAnswer]]
"""A service's own call at work: it is given the database as its driver has it, inside of the write's transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What every operation has.

    Attributes:
        resource: the collection.
        id: of the resource's id type.
        label: where the operation stands in the request, for messages: `operations/3`; empty for a single one.
    """

    resource: AnyResource
    id: Any
    label: str = ""

    def says(self, message: str) -> str:
        """That message, preceded by the operation it is about."""
        return f"{self.label}: {message}" if self.label else message


@dataclass(frozen=True, slots=True, kw_only=True)
class Assert(_Target):
    """The record is there, in the state of `if_match` (if given), and stays so until the commit.

    Raises in a store: `NotFoundError`, `StaleVersionError`.
    """

    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(_Target):
    """A new record.

    Raises in a store: `UniqueViolationError` where the id or another unique value is taken.

    Attributes:
        values: validated Python values by field.
    """

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(_Target):
    """Change some fields of a record.

    Raises in a store: `NotFoundError`, `StaleVersionError` (also where `require` doesn't hold).

    Attributes:
        changes: validated Python values by field.
        merges: RFC 7396 patches for fields that hold documents, as JSON values.
        increment: what to add to numeric fields.
        require: must hold before the change.
        if_match: the ETag that the record must have.
    """

    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    merges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    increment: Mapping[str, int | float] = field(default_factory=dict[str, int | float])
    require: Filter | None = None
    if_match: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsert(_Target):
    """Create the record, or replace the values of one that is there.

    Raises in a store: `StaleVersionError` where the condition doesn't hold.

    Attributes:
        values: validated Python values by field.
        only: `absent` creates and replaces nothing; `present` replaces and creates nothing.
        if_match: the ETag that the record must have; implies `present`.
    """

    values: Mapping[str, Any]
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
    """Bring back a record that a soft delete has hidden. One that is there stays as it is.

    Raises in a store: `NotFoundError`, `StaleVersionError`.
    """

    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """What a service's own call came to.

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
        caller: the service that asks; keys are its own, and its events carry its name.
        key: the idempotency key.
        fingerprint: of what was asked; another one under the same key is another request.
        operations: in their order.
        call: a service's own call, instead of operations.
        emit: events and commands for the outbox.
        isolation: of the database transaction.
        dry_run: do all of it, answer what came of it, and take it back (`Prefer: tx=rollback`); no key is recorded.
    """

    caller: str
    key: str
    fingerprint: bytes
    operations: tuple[Operation, ...] = ()
    call: CallWork | None = None
    emit: tuple[Emission, ...] = ()
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed"
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What one operation did.

    Attributes:
        record: as it is now; None after a delete or an assert.
        created: the record was not there before.
    """

    record: Document | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write did.

    Attributes:
        results: one per operation, in the same order.
        replayed: it was done before under this key; these are the results of then.
        reread: the answer was large, so its key keeps ids only: the records are those of now, None for one gone since.
        answer: what a service's own call answered.
    """

    results: tuple[Result, ...]
    replayed: bool = False
    reread: bool = False
    answer: bytes = b""


def merge_patch(target: Any, patch: Any) -> Any:
    """The target after that patch, https://www.rfc-editor.org/rfc/rfc7396#section-2."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(cast("Mapping[str, Any]", target)) if isinstance(target, Mapping) else {}
    for name, value in cast("Mapping[str, Any]", patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
