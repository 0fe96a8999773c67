"""Typed handlers: checked where they are declared, called with what their annotations ask for."""

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hybridkit._injection import InjectionPlan, plan_injection
from hybridkit.context import RequestContext, current
from hybridkit.errors import DeclarationError
from hybridkit.events import Command, Event, EventEnvelope, Message
from hybridkit.retry import Retry

type _Source = Callable[[EventEnvelope[Any], Mapping[Any, object]], object]
"""Returns the value of a parameter, from the message or from what the process provides."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A function for one type of event or command, and its retry policy.

    Attributes:
        message: the event or command class.
        function: the function itself.
        retry: the policy for its failures.
        plan: the parameters that it wants.
        sources: of its parameters, by name; looked up once, because a message costs less than a look into a plan.
        optional: the parameters that keep their default where nothing provides the type.
    """

    message: type[Message]
    function: Callable[..., Awaitable[object]]
    retry: Retry
    plan: InjectionPlan
    sources: tuple[tuple[str, _Source], ...]
    optional: tuple[tuple[str, Any], ...]

    @classmethod
    def of(
        cls, message: type[Message], function: Callable[..., Awaitable[object]], retry: Retry
    ) -> "Handler":
        """Make a handler of a function, by its annotations.

        Raises:
            DeclarationError: the function wants a value that it can't get.
        """
        plan = plan_injection(function)
        _check_plan(plan, message)
        own = _sources_of(message)
        sources = {
            want.name: own.get(want.type) or _provided(want.type)
            for want in plan.wanted
            if want.type in own or not want.optional
        }
        optional = tuple((want.name, want.type) for want in plan.wanted if want.name not in sources)
        return cls(message, function, retry, plan, tuple(sources.items()), optional)

    def missing(self, providers: Mapping[Any, object]) -> str:
        """Return the parameters that nothing provides, for an error; empty where all are provided."""
        return ", ".join(map(str, self.plan.missing({*providers, *_sources_of(self.message)})))

    async def run(self, envelope: EventEnvelope[Any], providers: Mapping[Any, object]) -> object:
        """Call the function for this message."""
        arguments = {name: source(envelope, providers) for name, source in self.sources}
        for name, wanted in self.optional:
            if wanted in providers:
                arguments[name] = providers[wanted]
        return await self.function(**arguments)


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
        """Return the types to bind the queue for: those of events, as commands are sent to the queue itself."""
        return [handler.message.message_type for handler in self if issubclass(handler.message, Event)]

    def find(self, message: Message) -> Handler | None:
        """Return the handler for exactly this message's class, if there is one."""
        handler = self._by_type.get(message.message_type)
        return handler if handler is not None and handler.message is type(message) else None

    def add(self, message: type[Message], function: Callable[..., Awaitable[object]], retry: Retry) -> None:
        """Register a handler.

        Raises:
            DeclarationError: the queue can't get this message, or has a handler for it; or the function is none for it.
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
        self._by_type[message.message_type] = Handler.of(message, function, retry)

    def _check_message(self, message: type[Message]) -> None:
        if issubclass(message, Command) and message.queue and message.queue != self._queue:
            raise DeclarationError(
                f"{message.__name__} goes to the queue {message.queue!r}, which {self._queue!r} does not consume"
            )
        if not message.message_type or (issubclass(message, Command) and not message.queue):
            raise DeclarationError(f"{message.__name__} is a base class: it has no type on the wire")


def _sources_of(message: type[Message]) -> dict[Any, _Source]:
    """Return the sources that a message itself is for a handler's parameters, by their annotation."""
    own: dict[Any, _Source] = {message: _data, RequestContext: _context}
    # All the ways in which a handler can ask for the envelope.
    envelopes = EventEnvelope, EventEnvelope[Any], EventEnvelope[message]  # type: ignore[valid-type] # known at run time
    return own | dict.fromkeys(envelopes, _envelope)


def _data(envelope: EventEnvelope[Any], _: object) -> object:
    return envelope.data


def _envelope(envelope: EventEnvelope[Any], _: object) -> object:
    return envelope


def _context(*_: object) -> object:
    return current()


def _provided(wanted: Any) -> _Source:
    def provided(_: object, providers: Mapping[Any, object]) -> object:
        return providers[wanted]

    return provided


def _check_plan(plan: InjectionPlan, message: type[Message]) -> None:
    """Refuse a handler that asks for another message than it gets."""
    for want in plan.wanted:
        wanted = want.type
        if not isinstance(wanted, type) or wanted in _sources_of(message):
            continue
        if issubclass(wanted, Message | EventEnvelope):
            raise DeclarationError(f"{plan.owner} is called with {message.__name__}; it asks for {want}")
