"""The commands that a saga's own queue gets besides its events: timers, and orders from the command line."""

from functools import cache
from typing import Literal
from uuid import UUID

from pydantic import create_model

from hybridkit.events import Command, Event

type Action = Literal["retry", "cancel", "skip"]
"""The orders of a person: send again, fail and undo, leave this undo out."""


class SagaTimer(Command):
    """The end of a wait.

    Attributes:
        saga_id: the row.
        entry: the number of the wait; a timer of an earlier wait is stale.
    """

    saga_id: UUID
    entry: int


class SagaOrder(Command):
    """An order of a person for one saga.

    Attributes:
        saga_id: the row.
        do: what to do.
        by: the person.
        note: the reason, which the history keeps.
    """

    saga_id: UUID
    do: Action
    by: str
    note: str = ""


class CommandFailed(Event, type="command.failed"):
    """The news that a command of the saga has become a dead letter; its consumer sends it to the saga's queue alone.

    Attributes:
        saga_id: the row.
        command_type: the type of the command.
        command_id: its id.
        reason: the reason of the dead letter.
        error_type: the class of the error.
    """

    saga_id: UUID
    command_type: str
    command_id: UUID
    reason: str
    error_type: str = ""


@cache
def timer_class(saga: str) -> type[SagaTimer]:
    """Return the class of the timers of a saga, which go to its queue."""
    options = {"queue": saga, "type": f"saga.{saga}.timer"}
    return create_model("SagaTimer", __base__=SagaTimer, __module__=__name__, __cls_kwargs__=options)


@cache
def order_class(saga: str) -> type[SagaOrder]:
    """Return the class of the orders for a saga, which go to its queue."""
    options = {"queue": saga, "type": f"saga.{saga}.order"}
    return create_model("SagaOrder", __base__=SagaOrder, __module__=__name__, __cls_kwargs__=options)
