"""The handlers of a saga: checked where they are declared, and found by message and state."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, get_origin

from hybridkit._injection import InjectionPlan, Wanted, plan_injection
from hybridkit.context import RequestContext
from hybridkit.errors import DeclarationError
from hybridkit.events import EventEnvelope, Message
from hybridkit.sagas._run import Run


class Missing(StrEnum):
    """The answer to an event that nothing waits for."""

    WAIT = "wait"
    """It may have overtaken another one: it waits, a quarter of an hour in all, and then it is a dead letter."""

    IGNORE = "ignore"
    """It was not caused by this saga: it is acknowledged and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaHandler:
    """A function for one message in some states.

    Attributes:
        message: the class of the message; None for `on_end`.
        function: the function itself.
        plan: the parameters that it wants.
        when: the states; None for all.
        missing: what becomes of the message where there is no such saga.
        otherwise: what becomes of it in other states; None decides by the states that the saga has been in.
        is_start: whether the message begins a saga.
    """

    message: type[Message] | None
    function: Callable[..., Awaitable[object]]
    plan: InjectionPlan
    when: frozenset[str] | None = None
    missing: Missing = Missing.WAIT
    otherwise: Missing | None = None
    is_start: bool = False

    def fits(self, state: str | None) -> bool:
        """Return whether it is for this state."""
        return not self.is_start and (self.when is None or state in self.when)

    def provided(self) -> Iterator[Wanted]:
        """Yield the parameters that the process provides."""
        return (want for want in self.plan.wanted if not is_own(want.type))


@dataclass(slots=True)
class SagaHandlers:
    """All handlers of one saga.

    Attributes:
        by_message: those for events and commands, by class.
        timeouts: those for the end of a wait, by state.
        failures: those for commands that have become dead letters, by the command's type.
        end: the one for the last transaction, if any.
    """

    by_message: dict[type[Message], list[SagaHandler]] = field(
        default_factory=dict[type[Message], list[SagaHandler]]
    )
    timeouts: dict[str, SagaHandler] = field(default_factory=dict[str, SagaHandler])
    failures: dict[str, SagaHandler] = field(default_factory=dict[str, SagaHandler])
    end: SagaHandler | None = None

    def __iter__(self) -> Iterator[SagaHandler]:
        for handlers in self.by_message.values():
            yield from handlers
        yield from self.timeouts.values()
        yield from self.failures.values()
        if self.end is not None:
            yield self.end

    def start_of(self, message: type[Message]) -> SagaHandler | None:
        """Return the handler that begins a saga with this message."""
        return next((each for each in self.by_message.get(message, ()) if each.is_start), None)

    def find(self, message: type[Message], state: str | None) -> SagaHandler | None:
        """Return the handler for a message in a state."""
        return next((each for each in self.by_message.get(message, ()) if each.fits(state)), None)

    def waiting(self, message: type[Message]) -> list[SagaHandler]:
        """Return the handlers of a message besides the one that begins a saga with it."""
        return [each for each in self.by_message.get(message, ()) if not each.is_start]


def is_run(annotation: Any) -> bool:
    """Return whether the type is `Run`, of any data."""
    return annotation is Run or get_origin(annotation) is Run


def is_own(annotation: Any) -> bool:
    """Return whether the saga itself gives the value of that type: its run, the message, the context."""
    if is_run(annotation):
        return True
    return isinstance(annotation, type) and issubclass(annotation, Message | EventEnvelope | RequestContext)


def plan_handler(
    function: Callable[..., Awaitable[object]], message: type[Message] | None, *, where: str
) -> InjectionPlan:
    """Read what a handler wants.

    Raises:
        DeclarationError: it is no `async def`, wants another message than it gets, or has a parameter without a type.
    """
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(
            f"{where}: the handler {getattr(function, '__qualname__', function)} is `async def`"
        )
    plan = plan_injection(function)
    for want in plan.wanted:
        wanted = want.type
        if not isinstance(wanted, type):
            continue
        if issubclass(wanted, Message) and wanted is not message:
            given = "no message" if message is None else message.__name__
            raise DeclarationError(f"{where}: {plan.owner} is called with {given}, and asks for {want}")
        if issubclass(wanted, EventEnvelope):
            raise DeclarationError(
                f"{where}: {plan.owner} asks for {want}; a saga's handler gets the message itself"
            )
    return plan
