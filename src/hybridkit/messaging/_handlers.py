"""Typed handlers: checked where they are declared, called with what their annotations ask for."""

import inspect
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from hybridkit.context import RequestContext, current
from hybridkit.envelope import EventEnvelope
from hybridkit.errors import DeclarationError
from hybridkit.events import Command, Event, Message
from hybridkit.injection import InjectionPlan, plan_injection
from hybridkit.retry import Retry

__all__ = ["Handler", "Handlers"]


@dataclass(frozen=True, slots=True)
class Handler:
    """What to do with one type of event or command, and what when that fails."""

    message: type[Message]
    function: Callable[..., Awaitable[object]]
    retry: Retry
    plan: InjectionPlan

    def missing(self, providers: Mapping[Any, object]) -> str:
        """The parameters that nothing provides, for an error; empty when all is there."""
        return ", ".join(map(str, self.plan.missing({*providers, *_types_of(self.message)})))

    async def run(self, envelope: EventEnvelope[Any], providers: Mapping[Any, object]) -> None:
        """Call the function for this message."""
        values: dict[Any, object] = dict.fromkeys(_envelopes_of(self.message), envelope)
        values |= {self.message: envelope.data, RequestContext: current()}
        await self.function(**self.plan.arguments(ChainMap(values, cast("dict[Any, object]", providers))))


class Handlers:
    """The handlers of one queue, one for each type."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._by_type: dict[str, Handler] = {}

    def __repr__(self) -> str:
        return f"Handlers({sorted(self._by_type)})"

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_type.values())

    def __len__(self) -> int:
        return len(self._by_type)

    def event_types(self) -> list[str]:
        """The types to bind: those of events; commands are sent to the queue itself."""
        return [handler.message.message_type for handler in self if issubclass(handler.message, Event)]

    def find(self, message: Message) -> Handler | None:
        """The handler for exactly that class."""
        handler = self._by_type.get(message.message_type)
        return handler if handler is not None and handler.message is type(message) else None

    def add(self, message: type[Message], function: Callable[..., Awaitable[object]], retry: Retry) -> None:
        """Register a handler.

        Raises:
            DeclarationError: naming what contradicts what.
        """
        self._check_message(message)
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.iscoroutinefunction(function):
            raise DeclarationError(f"the handler {name} must be `async def`")
        if (other := self._by_type.get(message.message_type)) is not None:
            raise DeclarationError(
                f"{self._queue} handles {message.message_type!r} in {other.plan.owner} already;"
                f" a second handler ({name}) belongs into a second consumer"
            )
        plan = plan_injection(function)
        _check_plan(plan, message)
        self._by_type[message.message_type] = Handler(message, function, retry, plan)

    def _check_message(self, message: type[Message]) -> None:
        if issubclass(message, Command) and message.queue and message.queue != self._queue:
            raise DeclarationError(
                f"{message.__name__} goes to the queue {message.queue!r}, which {self._queue!r} does not consume"
            )
        if not message.message_type or (issubclass(message, Command) and not message.queue):
            raise DeclarationError(f"{message.__name__} is a base class: it has no type on the wire")


def _envelopes_of(message: type[Message]) -> tuple[Any, ...]:
    """The ways in which a handler can ask for the envelope."""
    return EventEnvelope, EventEnvelope[Any], EventEnvelope[message]  # type: ignore[valid-type] # known at run time only


def _types_of(message: type[Message]) -> tuple[Any, ...]:
    return message, RequestContext, *_envelopes_of(message)


def _check_plan(plan: InjectionPlan, message: type[Message]) -> None:
    """Refuse a handler that asks for another message than it gets."""
    for want in plan.wanted:
        wanted = want.type
        if not isinstance(wanted, type) or wanted in _types_of(message):
            continue
        if issubclass(wanted, Message | EventEnvelope):
            raise DeclarationError(f"{plan.owner} is called with {message.__name__}; it asks for {want}")
