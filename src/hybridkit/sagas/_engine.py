"""Take a message to its saga: read the row, decide, run the handler, and write row, commands and events at once.

Of two messages at once one commits; the other reads the row again and decides anew. A message that comes again after a
crash finds its move in the row's history, or makes the same move under the same key.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, assert_never
from uuid import UUID
from weakref import WeakValueDictionary

from pydantic import TypeAdapter

from hybridkit.clients import DataTransaction
from hybridkit.codec import now
from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.errors import (
    HybridkitError,
    NotFoundError,
    NotYetError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.events import EventEnvelope, Message, ReplyTo
from hybridkit.idempotency import claim_key
from hybridkit.ids import derived_key
from hybridkit.observability import describe_span, get_logger, metrics, trace_headers
from hybridkit.retry import GiveUp
from hybridkit.sagas._commits import DataClient, RowTransaction, StoredRow
from hybridkit.sagas._decisions import (
    Action,
    Handle,
    Hold,
    Resend,
    Skip,
    SkipUndo,
    Start,
    UndoConfirmed,
    UndoOverdue,
    UndoRefused,
    decide,
)
from hybridkit.sagas._declaration import SagaDeclaration
from hybridkit.sagas._drafts import Cause, Draft, checked
from hybridkit.sagas._handlers import SagaHandler, is_run
from hybridkit.sagas._messages import CommandFailed, SagaOrder, SagaTimer
from hybridkit.sagas._records import SAGAS, NewSaga, SagaChanges
from hybridkit.sagas._run import Run, Sending

CONFLICT_PAUSE_SECONDS: Final = (0.005, 0.05)

_log = get_logger("hybridkit.sagas")


class SagaEngine:
    """Takes messages to the instances of one saga.

    Args:
        saga: the declaration.
    """

    def __init__(self, saga: SagaDeclaration[Any]) -> None:
        self._saga = saga
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"SagaEngine({self._saga.name!r})"

    async def deliver(
        self, envelope: EventEnvelope[Any], client: DataClient, values: Mapping[Any, object], *, attempt: int
    ) -> None:
        """See a message through to the commit of what it means, or to nothing.

        Args:
            envelope: the message.
            client: the data service with the rows.
            values: what handlers may ask for, by type.
            attempt: the number of this run, from 1.

        Raises:
            NotYetError: what has to come before this message is not there.
            HybridkitError: a handler or the data service has failed; after the last attempt the row has the error.
        """
        saga_id = self._id_of(envelope.data)
        lock = self._locks.setdefault(saga_id, asyncio.Lock())
        try:
            async with asyncio.timeout(self._saga.timeout_seconds), lock:
                await self._deliver(Delivery(self._saga, envelope, client, values, saga_id))
        except NotYetError:
            raise
        except Exception as error:
            if isinstance(self._saga.retry.decide(error, attempt=attempt, jitter=0.0), GiveUp):
                await self._note_error(client, saga_id, envelope, error)
            raise

    async def _deliver(self, delivery: "Delivery") -> None:
        stored = await delivery.read()
        while True:
            try:
                return await delivery.attempt(stored)
            except (StaleVersionError, UniqueViolationError):
                # The row has moved meanwhile, or the handler's own write was refused: the row says which.
                metrics.saga_conflicts.labels(self._saga.name).inc()
                await asyncio.sleep(random.uniform(*CONFLICT_PAUSE_SECONDS))  # noqa: S311 - spreads tries
                again = await delivery.read()
                if again.etag == delivery.stored.etag:
                    raise
                stored = again

    def _id_of(self, message: Message) -> UUID:
        if isinstance(message, SagaTimer | SagaOrder | CommandFailed):
            return message.saga_id
        return self._saga.id_of(self._saga.key_of(message))

    async def _note_error(
        self, client: DataClient, saga_id: UUID, envelope: EventEnvelope[Any], error: Exception
    ) -> None:
        """Write the error of a message that is given up to the row, so that it is seen where the saga is looked for."""
        text = f"{envelope.event_type} {envelope.event_id}: {type(error).__name__}: {error}"[:1000]
        try:
            with bind(replace(current(), claim=None)):
                await client.update(SAGAS, saga_id, SagaChanges(error=text))
        except NotFoundError:
            pass  # the start has failed, so there is no saga
        except HybridkitError as failure:
            _log.warning("the error of a saga is not in its row", saga=self._saga.name, error=str(failure))


class Delivery:
    """One message on its way to one saga; does what a handler's `Run` needs.

    Args:
        saga: the declaration.
        envelope: the message.
        client: the data service with the rows.
        values: what handlers may ask for, by type.
        saga_id: the row.

    Attributes:
        stored: the row as it was read or written last.
    """

    def __init__(
        self,
        saga: SagaDeclaration[Any],
        envelope: EventEnvelope[Any],
        client: DataClient,
        values: Mapping[Any, object],
        saga_id: UUID,
    ) -> None:
        claim = current().claim
        self._saga = saga
        self._envelope = envelope
        self._client = client
        self._values = values
        self._claim_key = (
            claim_key(saga.name, envelope.service, str(envelope.event_id)) if claim is None else claim.key
        )
        self._row_turn = asyncio.Lock()
        self._cause = self._cause_at(saga_id)
        self._draft: Draft | None = None
        self._transaction: RowTransaction | None = None
        self.stored = StoredRow(saga_id, None)

    def __repr__(self) -> str:
        return f"Delivery({self._saga.name!r}, {self._envelope.event_type!r})"

    def _cause_at(self, saga_id: UUID) -> Cause:
        context, message = current(), self._envelope.data
        return Cause(
            saga_id=saga_id,
            event_id=self._envelope.event_id,
            event_type=self._envelope.event_type,
            service=self._envelope.service,
            request_id=context.request_id,
            user_id=context.user_id,
            traceparent=trace_headers().get("traceparent"),
            at=now(),
            version=self._saga.version,
            note=f"{message.do} by {message.by}: {message.note}"[:500]
            if isinstance(message, SagaOrder)
            else "",
        )

    async def read(self) -> StoredRow:
        """Read the row; that of another saga, which only a wrong timer or order can name, is none of ours."""
        record = await self._client.get_or_none(SAGAS, self.stored.id)
        is_ours = record is not None and record.saga == self._saga.name
        return StoredRow(self.stored.id, record if is_ours else None)

    async def attempt(self, stored: StoredRow) -> None:
        """Decide what the message means for the row, and do it.

        Raises:
            StaleVersionError: the row has moved meanwhile.
            UniqueViolationError: another message has begun the saga meanwhile.
            NotYetError: the message has to wait.
        """
        self.stored = stored
        message = self._envelope.data
        decision = decide(
            self._saga.handlers,
            stored.record,
            message,
            self._envelope.event_id,
            version=self._saga.version,
            failed=message if isinstance(message, CommandFailed) else None,
        )
        match decision:
            case Skip(outcome):
                self._count(outcome)
                _log.info("saga not moved", saga=self._saga.name, saga_id=str(stored.id), outcome=outcome)
            case Hold(reason):
                self._count(reason.removeprefix("saga_"))
                raise NotYetError(
                    f"{self._saga.name} {stored.id} can't take {self._envelope.event_type} yet", reason=reason
                )
            case _:
                await self._act(decision)

    async def _act(self, decision: Action) -> None:
        """Do what was decided, under a claim that has taken no step, so that every try makes the same ids and keys."""
        self._cause = self._cause_at(self.stored.id)
        row = self._new_row() if self.stored.record is None else self._saga.with_new_data(self.stored.record)
        with bind(replace(current(), claim=Claim(self._claim_key))):
            self._transaction = transaction = RowTransaction(self._client, self._key("saga"), minimal=True)
            async with transaction.tx:
                draft = await self._fold(decision, row)
                if draft.has_ended:
                    await self._run_end(draft)
                transaction.send(
                    draft.messages,
                    reply_to=ReplyTo(queue=self._saga.name, saga_id=self.stored.id),
                    cancelled=draft.cancelled,
                )
                transaction.put(self.stored, draft.finish())
        self._moved(row, draft.row)

    async def _fold(self, decision: Action, row: NewSaga) -> Draft:
        """Return the next row: by a handler, or by what the undo list says."""
        match decision:
            case Start(handler):
                return await self._run(handler, row, is_start=True)
            case Handle(handler, _) if handler is not None:
                return await self._run(handler, row)
            case _:
                pass
        draft = Draft(row, self._cause)
        match decision:
            case Handle(_, reason):
                draft.fail(reason)
            case UndoConfirmed(undo):
                draft.confirm(undo)
            case UndoOverdue(undo):
                draft.overdue(undo)
            case UndoRefused(undo, reason):
                draft.refuse(undo, reason)
            case SkipUndo(undo):
                draft.skip(undo)
            case Resend():
                draft.resend()
            case _:
                assert_never(decision)
        return draft

    async def _run(self, handler: SagaHandler, row: NewSaga, *, is_start: bool = False) -> Draft:
        """Run a handler, and fold what it has decided."""
        run = self._run_of(row, is_start=is_start)
        await self._call(handler, run)
        outcome, data = run.take_outcome()
        # `once` may have written to the row meanwhile: what it has noted belongs to the next row.
        latest = row if self.stored.record is None else self._saga.with_new_data(self.stored.record)
        draft = Draft(latest, self._cause)
        draft.apply(outcome, data)
        return draft

    async def _run_end(self, draft: Draft) -> None:
        """Run `on_end` in the transaction that ends the saga."""
        if (handler := self._saga.handlers.end) is not None:
            run = self._run_of(draft.row, is_end=True)
            await self._call(handler, run)
            draft.apply(*run.take_outcome())

    def _run_of(self, row: NewSaga, *, is_start: bool = False, is_end: bool = False) -> Run[Any]:
        saga = self._saga
        return Run(
            row,
            data=saga.data,
            states=saga.states,
            key=saga.read_key(row.key),
            event=self._envelope.data,
            steps=self,
            undone_by=saga.undone_by,
            is_start=is_start,
            is_end=is_end,
        )

    async def _call(self, handler: SagaHandler, run: Run[Any]) -> None:
        own: dict[Any, object] = {type(run.event): run.event, RequestContext: current()}
        own |= {want.type: run for want in handler.plan.wanted if is_run(want.type)}
        await handler.function(**handler.plan.arguments({**self._values, **own}))

    def _new_row(self) -> NewSaga:
        saga, cause = self._saga, self._cause
        return NewSaga(
            saga=saga.name,
            key=saga.key_of(self._envelope.data),
            definition=saga.version,
            started_definition=saga.version,
            deadline_at=None if saga.deadline is None else cause.at + saga.deadline,
            request_id=cause.request_id,
            user_id=cause.user_id,
            traceparent=cause.traceparent,
        )

    def _moved(self, before: NewSaga, after: NewSaga) -> None:
        name, to = self._saga.name, after.history[-1].to_state
        self._count("advanced")
        describe_span(
            {
                "hybridkit.saga.name": name,
                "hybridkit.saga.key": after.key,
                "hybridkit.saga.from": after.history[-1].from_state,
                "hybridkit.saga.to": to,
            },
            linked=None if after.traceparent is None else {"traceparent": after.traceparent},
        )
        metrics.saga_transitions.labels(name, after.history[-1].from_state, to).inc()
        if after.ended_at is not None and not before.status.has_ended:
            metrics.saga_ended.labels(name, after.status.value).inc()
            began = after.ended_at if self.stored.record is None else self.stored.record.created_at
            metrics.saga_duration.labels(name, after.status.value).observe(
                (after.ended_at - began).total_seconds()
            )
        _log.info(
            "saga moved", saga=name, saga_key=after.key, from_state=after.history[-1].from_state, to_state=to
        )

    def _count(self, outcome: str) -> None:
        metrics.saga_events.labels(self._saga.name, self._envelope.event_type, outcome).inc()

    def _key(self, step: str) -> str:
        return derived_key(self._claim_key, step, short_lived=True)

    # ── what a handler's run needs ───────────────────────────────────────────────────────────────

    @property
    def tx(self) -> DataTransaction:
        """The transaction that will move the saga."""
        assert self._transaction is not None  # noqa: S101 # nosec B101 - handlers run inside one
        return self._transaction.tx

    def key_for(self, name: str) -> str:
        """Return the idempotency key of a step."""
        return derived_key(self._claim_key, f"saga step {name}")

    async def once(
        self,
        name: str,
        call: Callable[[], Awaitable[object]],
        undo: Sending | None,
        adapter: TypeAdapter[Any],
    ) -> Any:
        """Return the noted result of a step, or call and note it."""
        event_id = str(self._envelope.event_id)
        noted = self._latest().notes.get(event_id, {})
        if name in noted:
            return adapter.validate_python(noted[name])
        await self._note_undo(undo, name)
        result: Any = json.loads(adapter.dump_json(await call()))

        def with_note(draft: Draft) -> None:
            draft.row.notes.setdefault(event_id, {})[name] = result

        await self._write(with_note, f"saga note {name}")
        return adapter.validate_python(result)

    async def _note_undo(self, undo: Sending | None, name: str) -> None:
        """Put the undo of a step on the row, unless an earlier run has done it."""
        step = f"{self._envelope.event_id}:{name}"
        if undo is None or undo.undo is None or any(each.step == step for each in self._latest().undo):
            return
        command, undone_by = undo.undo, undo.undone_by
        await self._write(lambda draft: draft.add_undo(command, undone_by, step=step), f"saga undo {name}")

    def _latest(self) -> NewSaga:
        return self._new_row() if self.stored.record is None else self.stored.record

    async def _write(self, change: Callable[[Draft], None], step: str) -> None:
        """Write a note to the row, which doesn't move it; one after another, as each needs the state of the last."""
        async with self._row_turn:
            draft = Draft(self._latest(), self._cause)
            change(draft)
            transaction = RowTransaction(self._client, self._key(step), minimal=False)
            async with transaction.tx:
                transaction.put(self.stored, checked(draft.row))
            self.stored = StoredRow(self.stored.id, transaction.written)
