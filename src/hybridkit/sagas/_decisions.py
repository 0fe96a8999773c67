"""Decide what a message means for a saga, by its row alone: no clock, no input, no output."""

from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from hybridkit.events import Message
from hybridkit.sagas._handlers import Missing, SagaHandler, SagaHandlers
from hybridkit.sagas._messages import SagaOrder, SagaTimer
from hybridkit.sagas._records import NewSaga, SagaStatus, Undo

type Nothing = Literal["duplicate", "late", "stale_timer", "ignored"]


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing is done; the message is acknowledged, and counted under this word."""

    outcome: Nothing


@dataclass(frozen=True, slots=True)
class Hold:
    """The message waits for what has to come before it.

    Attributes:
        reason: `saga_missing`, `saga_early` or `saga_newer`.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """The message begins the saga."""

    handler: SagaHandler


@dataclass(frozen=True, slots=True)
class Handle:
    """A handler runs.

    Attributes:
        handler: the handler; None where the saga fails without one.
        reason: why it fails then.
    """

    handler: SagaHandler | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UndoConfirmed:
    """An entry of the undo list is done."""

    undo: Undo


@dataclass(frozen=True, slots=True)
class UndoOverdue:
    """An entry of the undo list was not confirmed in time."""

    undo: Undo


@dataclass(frozen=True, slots=True)
class UndoRefused:
    """An entry of the undo list has become a dead letter.

    Attributes:
        undo: the entry.
        reason: what the dead letter says.
    """

    undo: Undo
    reason: str


@dataclass(frozen=True, slots=True)
class Resend:
    """A person wants what is waited for to be sent again."""


@dataclass(frozen=True, slots=True)
class SkipUndo:
    """A person leaves an entry of the undo list out."""

    undo: Undo


type Action = Start | Handle | UndoConfirmed | UndoOverdue | UndoRefused | Resend | SkipUndo
type Decision = Skip | Hold | Action


class Failed(Protocol):
    """What is known of a command that has become a dead letter."""

    @property
    def command_type(self) -> str:
        """The type of the command."""
        ...

    @property
    def command_id(self) -> UUID:
        """The id of the command."""
        ...

    @property
    def reason(self) -> str:
        """The reason of its dead letter."""
        ...


def decide(
    handlers: SagaHandlers,
    row: NewSaga | None,
    message: Message,
    event_id: UUID,
    *,
    version: int = 1,
    failed: Failed | None = None,
) -> Decision:
    """Decide what a message means.

    Args:
        handlers: those of the saga.
        row: the saga; None where there is none.
        message: the event, command, timer or order.
        event_id: its id.
        version: the version of the declaration.
        failed: what the message says of a failed command, if it says that.
    """
    if row is None:
        return _without_row(handlers, message)
    if row.definition > version:
        return Hold("saga_newer")
    if row.has_seen(event_id):
        return Skip("duplicate")
    match message:
        case SagaTimer():
            return _timer(handlers, row, message)
        case SagaOrder():
            return decide_order(row, message)
        case _:
            pass
    if failed is not None:
        return _failure(handlers, row, failed)
    if row.status is SagaStatus.UNDOING:
        undo = row.sent_undo(message.message_type)
        if undo is not None:
            return UndoConfirmed(undo)
    if row.status is not SagaStatus.RUNNING:
        return Skip("late")
    return _event(handlers, row, message)


def _without_row(handlers: SagaHandlers, message: Message) -> Decision:
    start = handlers.start_of(type(message))
    if start is not None:
        return Start(start)
    if isinstance(message, SagaTimer | SagaOrder):
        return Skip("ignored")  # the row was removed since
    waiting = handlers.waiting(type(message))
    if waiting and all(each.missing is Missing.WAIT for each in waiting):
        return Hold("saga_missing")
    return Skip("ignored")


def _event(handlers: SagaHandlers, row: NewSaga, message: Message) -> Decision:
    kind = type(message)
    if row.state is None:  # `once` of the start has written the row, and the start has not moved it yet
        start = handlers.start_of(kind)
        return Hold("saga_early") if start is None else Start(start)
    handler = handlers.find(kind, row.state)
    if handler is not None:
        return Handle(handler)
    waiting = handlers.waiting(kind)
    for each in waiting:
        if each.otherwise is not None:
            return Hold("saga_early") if each.otherwise is Missing.WAIT else Skip("ignored")
    awaited = {state for each in waiting for state in each.when or ()}
    # A start comes first of all, so a second one is late.
    return Skip("late") if not awaited or awaited & set(row.visited) else Hold("saga_early")


def _timer(handlers: SagaHandlers, row: NewSaga, timer: SagaTimer) -> Decision:
    if timer.entry != row.entry or row.status.has_ended or row.wake_at is None:
        return Skip("stale_timer")
    if row.status is SagaStatus.UNDOING:
        undo = row.sent_undo()
        return Skip("stale_timer") if undo is None else UndoOverdue(undo)
    if row.deadline_at is not None and row.wake_at >= row.deadline_at:
        return Handle(None, "deadline")
    return Handle(handlers.timeouts.get(row.state or ""), f"timeout: {row.state}")


def _failure(handlers: SagaHandlers, row: NewSaga, failed: Failed) -> Decision:
    undo = next((each for each in row.undo if each.command.event_id == failed.command_id), None)
    if undo is not None:
        # Also of a saga that has ended: an undo without a confirmation counts as done once it is sent.
        return UndoRefused(undo, failed.reason)
    if row.status is not SagaStatus.RUNNING or row.state is None:
        return Skip("late")
    reason = f"failed command: {failed.command_type} ({failed.reason})"
    return Handle(handlers.failures.get(failed.command_type), reason)


def decide_order(row: NewSaga, order: SagaOrder) -> Decision:
    """Decide what a person's order means for a saga; `Skip` where it would do nothing."""
    undo = row.pending_undo()
    match order.do:
        case "cancel" if row.status is SagaStatus.RUNNING:
            return Handle(None, f"cancelled by {order.by}: {order.note}"[:500])
        case "skip" if row.status is not SagaStatus.RUNNING and undo is not None:
            return SkipUndo(undo)
        case "retry" if not row.status.has_ended or undo is not None:
            return Resend()
        case _:
            return Skip("late")
