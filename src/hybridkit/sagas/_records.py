"""The row of a saga: the state that it waits in, its data, and what has to be undone; a resource like any other."""

from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from hybridkit.codec import Timestamp
from hybridkit.events import Message, registry
from hybridkit.resources import Record, Resource

MAX_ROW_BYTES: Final = 48 * 1024
"""The largest row; above 64 KiB an idempotency key would keep no answer."""
MAX_HISTORY: Final = 50
MAX_UNDOS: Final = 50


class SagaStatus(StrEnum):
    """The phases of a saga. One whose `error` is set needs a person, in any of them."""

    RUNNING = "running"
    """It waits for what its state says."""

    UNDOING = "undoing"
    """It has failed, and its undo list is worked off from the end."""

    DONE = "done"
    """It has ended as it was meant to."""

    UNDONE = "undone"
    """It has failed, and everything is undone."""

    GIVEN_UP = "given_up"
    """It has failed, and a person has skipped a part of the undo list."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows any more."""
        return self not in {SagaStatus.RUNNING, SagaStatus.UNDOING}


class StoredMessage(BaseModel):
    """A command in the row, with what is needed to send it.

    Attributes:
        type: the command's type.
        version: the version of its data.
        data: its fields.
        event_id: the id with which it was sent last; None for one that wasn't sent.
    """

    type: str
    version: int = 1
    data: dict[str, Any] = Field(default_factory=dict)
    event_id: UUID | None = None

    @classmethod
    def of(cls, message: Message) -> "StoredMessage":
        """Return the stored form of a command."""
        return cls(
            type=message.message_type,
            version=message.message_version,
            data=message.model_dump(mode="json", by_alias=True),
        )

    def restored(self) -> Message:
        """Return the command as an object without an identity, brought to the newest version.

        Raises:
            UnknownEventTypeError: no class has this type any more; keep the class of a command that is still in rows.
            UnknownEventVersionError: no class has the version, and no upcaster leads to one.
        """
        message, steps = registry.resolve(self.type, self.version)
        data = dict(self.data)
        for step in steps:
            data = step(data)
        return message.model_validate(data)


class Undo(BaseModel):
    """One entry of the undo list.

    Attributes:
        n: its number, from 1.
        command: the command that undoes.
        undone_by: the type of the event that confirms it; None where nothing does, so that it is done once it is sent.
        state: `open` until the saga fails, then `sent`, then `done`; `refused` where its command has become a dead
            letter or was sent too often, until a person has it sent again or `skipped`.
        attempts: how often it was sent.
        step: event and name of the `once` that it undoes; None for that of a command.
    """

    n: int
    command: StoredMessage
    undone_by: str | None = None
    state: Literal["open", "sent", "done", "refused", "skipped"] = "open"
    attempts: int = 0
    step: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be done."""
        return self.state in {"open", "sent", "refused"}


class HistoryEntry(BaseModel):
    """One move of a saga.

    Attributes:
        at: the time.
        event_type: the type of the message that moved it.
        event_id: the id of that message.
        request_id: the request that caused the message.
        from_state: the state, or the status, before; empty at the start.
        to_state: the state, or the status, after.
        service: the sender of the message.
        note: the person and the reason, for an order from the command line.
    """

    at: Timestamp
    event_type: str
    event_id: UUID
    request_id: str = ""
    from_state: str = ""
    to_state: str = ""
    service: str = ""
    note: str = ""


class NewSaga(BaseModel):
    """The fields of a saga's row; the engine alone writes them.

    Attributes:
        saga: the name of its declaration.
        key: the value that its messages are correlated by, as text.
        definition: the version of the code that wrote last.
        started_definition: the version of the code that began it.
        status: the phase.
        state: the state that it is in, or was in when it failed; None before the first.
        error: the problem that a person has to look at; None without one.
        entry: the number of waits so far, by which a timer of an earlier one is known.
        wake_at: when its timer is due; None without a timer.
        timer_id: the message id of that timer.
        deadline_at: the end of the time for the whole.
        data: its memory, as the data model writes it.
        sent: the commands of the present wait.
        undo: the undo list.
        history: the last 50 moves.
        steps: the number of all moves.
        visited: the states it has been in.
        notes: the results of `once`, by event and name, until that event has moved the saga.
        reason: why it has failed; None while it hasn't.
        request_id: the request that began it.
        user_id: the user on whose behalf it began.
        traceparent: the trace in which it began.
        ended_at: when it ended.
    """

    saga: str
    key: str
    definition: int = 1
    started_definition: int = 1
    status: SagaStatus = SagaStatus.RUNNING
    state: str | None = None
    error: str | None = None
    entry: int = 0
    wake_at: Timestamp | None = None
    timer_id: UUID | None = None
    deadline_at: Timestamp | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    sent: list[StoredMessage] = Field(default_factory=list[StoredMessage])
    undo: list[Undo] = Field(default_factory=list[Undo])
    history: list[HistoryEntry] = Field(default_factory=list[HistoryEntry])
    steps: int = 0
    visited: list[str] = Field(default_factory=list[str])
    notes: dict[str, Any] = Field(default_factory=dict)
    reason: str | None = None
    request_id: str = ""
    user_id: str | None = None
    traceparent: str | None = None
    ended_at: Timestamp | None = None

    def has_seen(self, event_id: UUID) -> bool:
        """Return whether that message is among the last 50 that have moved it."""
        return any(entry.event_id == event_id for entry in self.history)

    def pending_undo(self) -> Undo | None:
        """Return the entry of the undo list whose turn it is: the last that is not done."""
        return next((undo for undo in reversed(self.undo) if undo.is_pending), None)

    def sent_undo(self, undone_by: str | None = None) -> Undo | None:
        """Return the last entry of the undo list that waits for a confirmation, or for this one."""
        return next(
            (
                undo
                for undo in reversed(self.undo)
                if undo.state == "sent" and undone_by in {None, undo.undone_by}
            ),
            None,
        )


class SagaRecord(NewSaga, Record):
    """A saga as it is stored."""


class SagaChanges(BaseModel):
    """The field that is changed by itself, when a handler has failed for the last time.

    Attributes:
        error: the problem that a person has to look at.
    """

    error: str | None = None


SAGAS: Final = Resource(
    "sagas",
    record=SagaRecord,
    create=NewSaga,
    update=SagaChanges,
    filterable=(
        "saga",
        "key",
        "status",
        "state",
        "error",
        "definition",
        "wake_at",
        "deadline_at",
        "user_id",
        "created_at",
        "updated_at",
        "ended_at",
    ),
    sortable=("created_at", "updated_at", "wake_at"),
)
"""The resource of all sagas of a data service; `hybridkit.dataservice.saga_tables()` has its table."""
