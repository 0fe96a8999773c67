"""Fold what a message means into the next row of its saga, and the messages that go with it; pure, as decisions are.

Everything that is made here derives from the saga and the message, so a rerun makes the same.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, assert_never
from uuid import UUID

from hybridkit.errors import MisuseError, PayloadTooLargeError
from hybridkit.events import Command, Message
from hybridkit.ids import derived_id
from hybridkit.sagas._messages import timer_class
from hybridkit.sagas._records import (
    MAX_HISTORY,
    MAX_ROW_BYTES,
    MAX_UNDOS,
    HistoryEntry,
    NewSaga,
    SagaStatus,
    StoredMessage,
    Undo,
)
from hybridkit.sagas._run import Done, Fail, Move, Outcome, Sending, Stay, Wait

MAX_UNDO_ATTEMPTS: Final = 8
FIRST_UNDO_WAIT: Final = timedelta(minutes=5)
LONGEST_UNDO_WAIT: Final = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The message that moves a saga.

    Attributes:
        saga_id: the row.
        event_id: the message's id.
        event_type: its type.
        service: its sender.
        request_id: the request that caused it.
        user_id: the user of that request.
        traceparent: the trace of that request.
        at: the time of now.
        version: the version of the declaration.
        note: the person and the reason, for an order.
    """

    saga_id: UUID
    event_id: UUID
    event_type: str
    service: str = ""
    request_id: str = ""
    user_id: str | None = None
    traceparent: str | None = None
    at: datetime
    version: int = 1
    note: str = ""

    def id_of(self, part: str) -> UUID:
        """Return the id of something that this message makes in this saga."""
        return derived_id(f"saga:{self.saga_id}:{self.event_id}", part)


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message that goes out with the row.

    Attributes:
        message: the message, with its identity.
        not_before: when it is due; None for at once.
        reports_failure: whether the saga is told if it becomes a dead letter.
    """

    message: Message
    not_before: datetime | None = None
    reports_failure: bool = False


class Draft:
    """The next row of a saga, while it is made.

    Args:
        row: the row of before, or a new one.
        cause: the message.

    Attributes:
        row: the row as it will be.
        messages: what goes out with it.
        cancelled: the id of the timer that nobody waits for any more.
        has_ended: whether this draft ends the saga, so that `on_end` runs.
    """

    def __init__(self, row: NewSaga, cause: Cause) -> None:
        self.row = NewSaga.model_validate(row.model_dump(include=set(NewSaga.model_fields)))
        self.messages: list[OutgoingMessage] = []
        self.cancelled: UUID | None = None
        self._cause = cause
        self._from = _label(row)
        self._counts: Counter[str] = Counter()
        self.has_ended = False

    def __repr__(self) -> str:
        return f"Draft({self._from!r} -> {_label(self.row)!r}, {len(self.messages)} messages)"

    # ── what a handler has decided ───────────────────────────────────────────────────────────────

    def apply(self, outcome: Outcome, data: dict[str, Any]) -> None:
        """Apply what a handler has decided.

        Args:
            outcome: its move and its messages.
            data: the saga's memory after it.

        Raises:
            MisuseError: the undo list gets too long.
        """
        row = self.row
        row.data = data
        row.error = None
        if outcome.keeps:
            row.undo = []
        if isinstance(outcome.move, Wait):
            row.sent = []
        for sending in outcome.sendings:
            self._send(sending)
        if outcome.move is not None:
            self._move(outcome.move)

    def fail(self, reason: str) -> None:
        """Fail without a handler."""
        self._move(Fail(reason))

    def _send(self, sending: Sending) -> None:
        is_command = isinstance(sending.message, Command)
        event_id = self._put(sending.message, reports_failure=is_command)
        if is_command:
            stored = StoredMessage.of(sending.message)
            stored.event_id = event_id
            self.row.sent.append(stored)
        if sending.undo is not None:
            self.add_undo(sending.undo, sending.undone_by)

    def add_undo(self, command: Command, undone_by: str | None, *, step: str | None = None) -> None:
        """Put a command at the end of the undo list, for a step of `once` if it is one.

        Raises:
            MisuseError: the list gets too long.
        """
        if len(self.row.undo) == MAX_UNDOS:
            raise MisuseError(
                f"{self.row.saga}: the undo list has {MAX_UNDOS} entries; let children be sagas of their own"
            )
        number = max((undo.n for undo in self.row.undo), default=0) + 1
        self.row.undo.append(
            Undo(n=number, command=StoredMessage.of(command), undone_by=undone_by, step=step)
        )

    def _move(self, move: Move) -> None:
        match move:
            case Wait(state, timeout):
                self.row.state = state
                if state not in self.row.visited:
                    self.row.visited.append(state)
                self._wait(None if timeout is None else self._cause.at + timeout)
            case Stay():
                pass
            case Done():
                self._end(SagaStatus.DONE)
            case Fail(reason):
                self.row.status = SagaStatus.UNDOING
                self.row.reason = reason
                self.row.sent = []
                self._wait(None)
                self.undo_next()
            case _:
                assert_never(move)

    def _wait(self, until: datetime | None) -> None:
        """Begin a wait: the timer of the last one is of no use any more."""
        row = self.row
        row.entry += 1
        self._drop_timer()
        if row.status is SagaStatus.RUNNING and row.deadline_at is not None:
            until = row.deadline_at if until is None else min(until, row.deadline_at)
        if until is None:
            return
        timer = timer_class(row.saga)(saga_id=self._cause.saga_id, entry=row.entry)
        row.wake_at = until
        row.timer_id = self._put(timer, not_before=until)

    def _drop_timer(self) -> None:
        if self.row.timer_id is not None:
            self.cancelled = self.row.timer_id
        self.row.wake_at = self.row.timer_id = None

    def _end(self, status: SagaStatus) -> None:
        self._drop_timer()
        self.row.status = status
        self.row.sent = []
        self.row.ended_at = self._cause.at
        self.has_ended = True

    # ── the undo list ────────────────────────────────────────────────────────────────────────────

    def undo_next(self) -> None:
        """Send the last command that is not undone, and those before it as far as nothing has to be awaited."""
        if self.row.status is not SagaStatus.UNDOING:
            return
        while (undo := self.row.pending_undo()) is not None:
            if undo.state != "open":  # it is awaited, or a person is
                return
            self._send_undo(undo)
        skipped = any(undo.state == "skipped" for undo in self.row.undo)
        self._end(SagaStatus.GIVEN_UP if skipped else SagaStatus.UNDONE)

    def _send_undo(self, undo: Undo) -> None:
        undo.attempts += 1
        undo.command.event_id = self._put(undo.command.restored(), reports_failure=True)
        is_awaited = undo.undone_by is not None
        undo.state = "sent" if is_awaited else "done"
        if is_awaited:
            self._wait(self._cause.at + undo_wait(undo.attempts))

    def confirm(self, undo: Undo) -> None:
        """Take an entry of the undo list as done, and go on with the one before."""
        self._own(undo).state = "done"
        self.undo_next()

    def overdue(self, undo: Undo) -> None:
        """Send an entry again whose confirmation has not come, or leave it to a person after the eighth time."""
        own = self._own(undo)
        if own.attempts < MAX_UNDO_ATTEMPTS:
            self._send_undo(own)
        else:
            self.refuse(own, f"not confirmed after {own.attempts} attempts")

    def refuse(self, undo: Undo, reason: str) -> None:
        """Leave an entry to a person, who has it sent again or skips it."""
        own = self._own(undo)
        own.state = "refused"
        self.row.error = f"undo {own.n} ({own.command.type}) failed: {reason}"[:1000]
        if self.row.sent_undo() is None:
            self.row.entry += 1
            self._drop_timer()

    def skip(self, undo: Undo) -> None:
        """Leave an entry out, as a person has decided, and go on with the one before."""
        self._own(undo).state = "skipped"
        self._clear_error()
        self.undo_next()

    def resend(self) -> None:
        """Send the commands of this wait again, or what has to be undone, under new ids."""
        row = self.row
        row.error = None
        if row.status is SagaStatus.RUNNING:
            for stored in row.sent:
                stored.event_id = self._put(stored.restored(), reports_failure=True)
            return
        refused = [undo for undo in reversed(row.undo) if undo.state == "refused"]
        awaited = row.sent_undo()
        for undo in refused or ([] if awaited is None else [awaited]):
            undo.attempts = 0
            self._send_undo(undo)
        self.undo_next()

    def _clear_error(self) -> None:
        if not any(undo.state == "refused" for undo in self.row.undo):
            self.row.error = None

    def _own(self, undo: Undo) -> Undo:
        """Return the entry of this draft, which is a copy of the one that was decided about."""
        return next(each for each in self.row.undo if each.n == undo.n)

    # ── the end of it ────────────────────────────────────────────────────────────────────────────

    def _put(
        self, message: Message, *, not_before: datetime | None = None, reports_failure: bool = False
    ) -> UUID:
        # A copy, which has no identity yet: one object that two sagas send, or two handlers, is two messages.
        made, kind = message.model_copy(), message.message_type
        made.identify_as(self._cause.id_of(f"{kind}#{self._counts[kind]}"), self._cause.at)
        self._counts[kind] += 1
        self.messages.append(OutgoingMessage(made, not_before, reports_failure))
        return made.event_id

    def finish(self) -> NewSaga:
        """Write the move into the history, and return the row.

        Raises:
            PayloadTooLargeError: the row has more than 48 KiB.
        """
        row, cause = self.row, self._cause
        row.definition = cause.version
        row.steps += 1
        row.notes.pop(str(cause.event_id), None)
        entry = HistoryEntry(
            at=cause.at,
            event_type=cause.event_type,
            event_id=cause.event_id,
            request_id=cause.request_id,
            from_state=self._from,
            to_state=_label(row),
            service=cause.service,
            note=cause.note,
        )
        row.history = [*row.history, entry][-MAX_HISTORY:]
        return checked(row)


def checked(row: NewSaga) -> NewSaga:
    """Return the row, if it is not too large.

    Raises:
        PayloadTooLargeError: the row has more than 48 KiB.
    """
    size = len(row.model_dump_json())
    if size > MAX_ROW_BYTES:
        raise PayloadTooLargeError(
            f"the row of {row.saga} {row.key} would have {size} bytes, of {MAX_ROW_BYTES} at most:"
            " keep large data in records of their own, and their ids in the saga",
            size_bytes=size,
            limit_bytes=MAX_ROW_BYTES,
        )
    return row


def undo_wait(attempts: int) -> timedelta:
    """Return how long to wait for the confirmation of an undo: 5 minutes, doubling up to 6 hours."""
    return min(FIRST_UNDO_WAIT * (1 << (attempts - 1)), LONGEST_UNDO_WAIT)


def _label(row: NewSaga) -> str:
    """Return the state of a saga that runs, and the status of any other."""
    return (row.state or "") if row.status is SagaStatus.RUNNING else row.status.value
