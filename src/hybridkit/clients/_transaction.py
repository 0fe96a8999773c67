"""A transaction: several writes and the events they cause, in one request, all of it or nothing.

The block collects; nothing is sent before it ends. Ids are made by the client, so that one record can refer to another.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients._answers import gone_since, result_from
from hybridkit.clients._records import RecordId, given_id, minted_id, target_of
from hybridkit.clients._streams._appends import StreamId, plan_append
from hybridkit.clients._transaction_identity import TransactionIdentity
from hybridkit.codec import now
from hybridkit.context import bind, current
from hybridkit.contract import (
    MAX_OPERATIONS,
    AppendOperation,
    AssertOperation,
    CreateOperation,
    DeleteOperation,
    Emission,
    Operation,
    ReplaceOperation,
    Transaction,
    TransactionResult,
    UpdateOperation,
    UpsertOperation,
)
from hybridkit.contract._fields import changed_fields, fields_of, parse_id
from hybridkit.errors import FieldProblem, InvalidRequestError, MisuseError, ResponseError, StepReusedError
from hybridkit.events import Event, Message, ReplyTo
from hybridkit.observability import trace_headers
from hybridkit.resources import Filter, Query, Record, Resource
from hybridkit.resources._resource import AnyResource, IdT
from hybridkit.streams import Loaded, Stream

MAX_DELAY_SECONDS: Final = 366 * 86400.0

type Isolation = Literal["read_committed", "repeatable_read", "serializable"]

RecordT_co = TypeVar("RecordT_co", bound=Record[Any], covariant=True)


class Handle(Generic[RecordT_co]):  # noqa: UP046 - inferred variance is not enough for `id` in pyright
    """A record that a transaction will write: it has the id at once, and the record after the commit.

    Made by `DataTransaction`.
    """

    def __init__(self, resource: Resource[RecordT_co, Any, Any], id: object) -> None:
        self._resource = resource
        self._id = id
        self._state: Literal["pending", "committed", "failed", "gone", "unseen"] = "pending"
        self._record: RecordT_co | None = None

    def __repr__(self) -> str:
        return f"Handle({self._resource.name!r}, {self._id!s}, {self._state})"

    @property
    def id(self: "Handle[Record[IdT]]") -> IdT:
        """The record's id, known before anything is sent."""
        return cast("IdT", self._id)

    @property
    def result(self) -> RecordT_co:
        """The record as the transaction wrote it.

        Raises:
            MisuseError: the transaction hasn't ended, wasn't committed, or was minimal.
            NotFoundError: an earlier call with the same key wrote the record, and it has been removed since.
        """
        if self._record is not None:
            return self._record
        if self._state == "gone":
            raise gone_since(self._resource)
        if self._state == "failed":
            raise MisuseError(
                f"{self._resource.name} {self._id}: the transaction failed, so there is no result"
            )
        if self._state == "unseen":
            raise MisuseError(
                f"{self._resource.name} {self._id}: a minimal transaction has no results; read it"
            )
        raise MisuseError(
            f"{self._resource.name} {self._id}: ask for the result after the transaction's `async with` block;"
            " inside it only the id is known"
        )

    def _settle(self, result: object) -> None:
        # A repeated transaction whose answer was too large to keep answers with the records of now.
        self._record = None if result is None else result_from(self._resource, result)
        self._state = "gone" if result is None else "committed"

    def _settle_without(self) -> None:
        self._state = "unseen"

    def _give_up(self) -> None:
        if self._state == "pending":
            self._state = "failed"


class DataTransaction:
    """Collects operations and events in its `async with` block, and sends them at its end as one request.

    ```python
    async with postgres.transaction() as tx:
        user = tx.create(USERS, body)
        tx.emit(UserCreated(user_id=user.id, email=body.email))
    return user.result
    ```

    They are done in this order, all or nothing; an error says that nothing was done, or that the outcome is unknown.
    A block that raises sends nothing. Made by the `transaction` of a client.
    """

    def __init__(
        self,
        commit: "Commit",
        *,
        isolation: Isolation,
        step: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self._commit = commit
        self._step = step
        self._dry_run = dry_run
        self._isolation: Isolation = isolation
        self._state: Literal["new", "open", "ended"] = "new"
        self._operations: list[Operation] = []
        self._handles: list[Handle[Record[Any]] | None] = []
        self._emit: list[Emission] = []
        self._cancelled: list[UUID] = []
        self._context = current()
        self._identity = TransactionIdentity(None, None)

    def __repr__(self) -> str:
        counts = f"{len(self._operations)} operations, {len(self._emit)} messages"
        return f"DataTransaction({counts}, {self._state})"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise MisuseError("a transaction is entered once; begin another with client.transaction()")
        self._state = "open"
        self._context = current()
        # A dry run leaves nothing behind, so nothing of it has to be the same in a rerun.
        self._identity = TransactionIdentity(None if self._dry_run else self._context.claim, self._step)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "ended"
        committed = False
        try:
            if kind is None and (self._operations or self._emit or self._cancelled):
                await self._send()
                committed = True
        finally:
            self._identity.end(committed=committed)
            for handle in self._handles:
                if handle is not None:
                    handle._give_up()  # noqa: SLF001 - a transaction and its handles are one thing

    def create[RecordT: Record[Any], CreateT: BaseModel](
        self, resource: Resource[RecordT, CreateT, Any], data: CreateT, *, id: RecordId | None = None
    ) -> Handle[RecordT]:
        """Create a record.

        Args:
            resource: the kind of record.
            data: its fields.
            id: needed for natural keys; a UUID is made by the client, in a claim the same one on every run.
        """
        new_id = given_id(resource, data, id)
        if new_id is None:
            new_id = minted_id(resource, self._identity.new_id(resource.name, self._operations))
        operation = CreateOperation(resource=resource.name, id=str(new_id), data=fields_of(data))
        return self._add(operation, Handle(resource, new_id))

    def update[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        changes: UpdateT | None = None,
        *,
        increment: Mapping[str, int | float | Decimal] | None = None,
        require: Filter | None = None,
    ) -> Handle[RecordT]:
        """Change a record; one that was read has to be in the state in which it was read.

        Args:
            resource: the kind of record.
            record_or_id: the record, or its id for any state.
            changes: the fields to set; those that aren't set in it stay as they are.
            increment: numbers to add to fields, negative ones to subtract; to a `Decimal` of the record also a
                `Decimal`. A field has to be a number of the record,
                and one that the resource's update model has, as for any other change.
            require: a condition that has to hold before the change, or the transaction fails with
                `RequirementNotMetError`.

        Raises:
            InvalidRequestError: the declaration rules an increment out; the error names the field, and nothing is sent.
        """
        target = target_of(resource, record_or_id)
        data = {} if changes is None else changed_fields(changes)
        _check_increments(resource, increment or {}, data)
        operation = UpdateOperation(
            resource=resource.name,
            id=str(target.id),
            data=data,
            increment=dict(increment or {}),
            require=None if require is None else Query(where=require).to_json()["where"],
            if_match=target.etag,
        )
        return self._add(operation, Handle(resource, target.id))

    def upsert[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        id: RecordId,
        data: CreateT,
        *,
        increment: Mapping[str, int | float | Decimal] | None = None,
    ) -> Handle[RecordT]:
        """Create the record with that id, or replace its fields where it is there already.

        Args:
            resource: the kind of record.
            id: the id.
            data: all fields; with `increment`, only those that a new record begins with.
            increment: numbers to add, as for `update`: to what a new record begins with, or to a record that is there,
                whose other fields then stay as they are. A counter needs nothing else.

        Raises:
            InvalidRequestError: the declaration rules an increment out; the error names the field, and nothing is sent.
        """
        parsed = parse_id(resource, id)
        _check_increments(resource, increment or {}, {})
        operation = UpsertOperation(
            resource=resource.name, id=str(parsed), data=fields_of(data), increment=dict(increment or {})
        )
        return self._add(operation, Handle(resource, parsed))

    def replace[RecordT: Record[Any], CreateT: BaseModel](
        self,
        resource: Resource[RecordT, CreateT, Any],
        record_or_id: RecordT | RecordId,
        data: CreateT,
    ) -> Handle[RecordT]:
        """Replace all fields of a record that is there; a record that was read, in the state in which it was read.

        Args:
            resource: the kind of record.
            record_or_id: a record, whose ETag has to be the one of now; or an id, which only has to be there. Otherwise
                the transaction fails with `StaleVersionError`, whose `operation` is the place of this one.
            data: all fields.
        """
        target = target_of(resource, record_or_id)
        operation = ReplaceOperation(
            resource=resource.name, id=str(target.id), data=fields_of(data), if_match=target.etag
        )
        return self._add(operation, Handle(resource, target.id))

    def delete[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], record_or_id: RecordT | RecordId
    ) -> None:
        """Remove a record; one that was read has to be in the state in which it was read."""
        target = target_of(resource, record_or_id)
        self._add(DeleteOperation(resource=resource.name, id=str(target.id), if_match=target.etag), None)

    def require[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], record_or_id: RecordT | RecordId
    ) -> None:
        """Require until the commit that a record is there; a record that was read, in the state in which it was read.

        Args:
            resource: the kind of record.
            record_or_id: a record, whose ETag has to be the one of now; or an id, which only has to be there.
        """
        target = target_of(resource, record_or_id)
        self._add(AssertOperation(resource=resource.name, id=str(target.id), if_match=target.etag), None)

    def append[StateT: BaseModel](
        self, stream: Stream[StateT], loaded_or_id: Loaded[StateT] | StreamId, *events: Event
    ) -> Loaded[StateT] | None:
        """Append events to a stream, together with the other operations.

        Args:
            stream: the kind of stream, kept by the same data service on PostgreSQL.
            loaded_or_id: a stream that was loaded has to have the version in which it was read; an id alone means any
                version.
            events: 1 to 100 events, with at most 64 KiB each.

        Returns:
            The stream as the commit leaves it; None for an id, as its version isn't known.

        Raises:
            DeclarationError: the stream has no function for an event's class.
            InvalidRequestError: an event belongs to another stream, or there are too many.
        """
        planned = plan_append(stream, loaded_or_id, events)
        operation = AppendOperation(
            resource=stream.name,
            id=planned.id,
            expected_version=planned.body.expected_version,
            events=planned.body.events,
            snapshot=planned.body.snapshot,
        )
        self._add(operation, None)
        return planned.after

    def emit(
        self,
        message: Message,
        *,
        not_before: datetime | None = None,
        delay_seconds: float | None = None,
        reply_to: ReplyTo | None = None,
    ) -> None:
        """Publish an event or command once the transaction is committed, and only then.

        Args:
            message: the event or command. One that is delayed is not in order with the others of its key.
            not_before: the earliest time at which it may be published; a naive time is UTC.
            delay_seconds: the same as seconds from now, up to 366 days.
            reply_to: of a command, the saga that is told if it becomes a dead letter; `Run.send` gives it.

        Raises:
            MisuseError: both times are given, the delay is out of range, or the transaction is not open.
        """
        self._check_room(self._emit)
        if delay_seconds is not None:
            if not_before is not None or not 0 <= delay_seconds <= MAX_DELAY_SECONDS:
                raise MisuseError(
                    f"emit takes not_before, which may be any time, or delay_seconds of 0 to {MAX_DELAY_SECONDS:.0f},"
                    f" not {delay_seconds}"
                )
            not_before = now() + timedelta(seconds=delay_seconds)
        emission = Emission.of(
            message,
            request_id=self._context.request_id,
            user_id=self._context.user_id,
            not_before=not_before,
            trace=trace_headers(),
            identity=self._identity.note(message, len(self._emit)),
            causation_id=self._context.causation_id,
            reply_to=reply_to,
        )
        self._emit.append(emission)

    def cancel(self, event_id: UUID) -> None:
        """Have a message that was emitted with a delay not be published, if its time has not come.

        It is of no use to publish a message late that nobody needs any more; but one whose time is near may still go
        out, so its consumer has to be able to tell. The id is known from the `emit` on, before anything is sent:
        `message.event_id`. An id that names no waiting message of this service is passed over.

        Args:
            event_id: the message's id.

        Raises:
            MisuseError: the transaction is not open.
            InvalidRequestError: the transaction cancels 100 already.
        """
        self._check_room(self._cancelled)
        self._cancelled.append(event_id)

    def _add[HandleT: Handle[Any] | None](self, operation: Operation, handle: HandleT) -> HandleT:
        self._check_room(self._operations)
        self._operations.append(operation)
        self._handles.append(handle)
        return handle

    def _check_room(self, collected: Sequence[object]) -> None:
        if self._state != "open":
            raise MisuseError(f"this transaction is {self._state}; add to it inside its `async with` block")
        if len(collected) == MAX_OPERATIONS:
            raise InvalidRequestError(
                f"a transaction has at most {MAX_OPERATIONS} operations and as many messages"
            )

    async def _send(self) -> None:
        # Outside of any context each `current()` would be another request.
        with (
            bind(self._context),
            self._identity.begin(self._operations, self._emit, self._cancelled) as write,
        ):
            emit = self._identity.identified(self._emit, write)
            transaction = Transaction(
                operations=tuple(self._operations),
                emit=emit,
                cancel=tuple(self._cancelled),
                isolation=self._isolation,
            )
            answer = await self._commit(transaction, write.key)
        if answer is None:
            for handle in self._handles:
                if handle is not None:
                    handle._settle_without()  # noqa: SLF001 - see __aexit__
            return
        if len(answer.results) != len(self._handles):
            if self._identity.is_derived:
                raise StepReusedError(
                    f"this transaction of {len(self._handles)} operations is recorded as one of"
                    f" {len(answer.results)}: another one of this claim; name each: transaction(step=...)"
                )
            raise ResponseError(
                f"{len(self._handles)} operations have {len(answer.results)} results", response_status=200
            )
        for handle, result in zip(self._handles, answer.results, strict=True):
            if handle is not None:
                handle._settle(result)  # noqa: SLF001 - see __aexit__


def _check_increments(
    resource: AnyResource, increment: Mapping[str, int | float | Decimal], changes: Mapping[str, Any]
) -> None:
    wrong = {name: _increment_problem(resource, name, amount, changes) for name, amount in increment.items()}
    found = [FieldProblem(f"/increment/{name}", *problem) for name, problem in wrong.items() if problem]
    if found:
        raise InvalidRequestError(f"{resource.name} can't be incremented like that", errors=found)


def _increment_problem(
    resource: AnyResource, name: str, amount: object, changes: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Return the problem of one increment as code and words, None if there is none."""
    kind = resource.number_of(name)
    if kind is None:
        if name not in resource.record.model_fields:
            return "extra_forbidden", f"{resource.record.__name__} has no such field"
        if name not in resource.update.model_fields:
            return "extra_forbidden", f"{resource.update.__name__} doesn't let it be changed"
        return "not_a_number", "it is no number"
    if isinstance(amount, bool) or not isinstance(amount, int | float | Decimal) or not _is_finite(amount):
        return "not_a_number", "what is added has to be a finite int, float or Decimal"
    if isinstance(amount, Decimal) and kind is not Decimal:
        return "decimal_type", f"it is {'an integer' if kind is int else 'a float'}, so no Decimal is added"
    if kind is int and amount != int(amount):
        return "int_from_float", "it is an integer, so integers are added"
    if name in changes:
        return "set_and_incremented", "a field is either set or incremented"
    return None


def _is_finite(amount: float | Decimal) -> bool:
    return amount.is_finite() if isinstance(amount, Decimal) else math.isfinite(amount)


type Commit = Callable[[Transaction, str], Awaitable[TransactionResult | None]]
