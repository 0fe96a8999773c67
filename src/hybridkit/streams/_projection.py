"""Projections: records that are made of a stream's events, by handlers without input or output."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.errors import DeclarationError
from hybridkit.events import Event
from hybridkit.streams._changes import Change, Changes
from hybridkit.streams._stream import AnyStream

MAX_NAME_LENGTH: Final = 48

type Handler[EventT: Event] = Callable[[EventT, Changes], None]
"""A function that turns an event into changes of records."""


class Projection:
    """Records that follow the events of a stream: `Projection("balances", source=ACCOUNTS)`.

    ```python
    balances = Projection("balances", source=ACCOUNTS)

    @balances.on(Deposited)
    def deposited(event: Deposited, to: Changes) -> None:
        to.increment(BALANCES, event.account_id, balance=event.amount)

    run_worker(WorkerSettings, projections=[balances])
    ```

    A worker reads the events in their order, and makes the changes of each together with the projection's position, so
    that each counts once. Handlers do nothing else: no input or output, no clock. Events without a handler are passed
    over. Other handlers, or another shape of the records, are another `version`, which fills a resource of its own
    beside the one that is read.

    Args:
        name: the projection's name, in snake case; at most 48 characters.
        source: the stream whose events it reads.
        version: the version of its handlers and records, from 1.

    Raises:
        DeclarationError: the name is not in snake case, or the version is below 1.
    """

    def __init__(self, name: str, *, source: AnyStream, version: int = 1) -> None:
        if not NAME_SYNTAX.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
            raise DeclarationError(
                f"projection {name!r}: a name is snake_case with at most {MAX_NAME_LENGTH} characters"
            )
        if version < 1:
            raise DeclarationError(f"projection {name!r}: a version is 1 or more, not {version}")
        self._name = name
        self._source = source
        self._version = version
        self._handlers: dict[str, tuple[type[Event], Handler[Any]]] = {}

    def __repr__(self) -> str:
        return f"Projection({self._name!r}, source={self._source!r}, version={self._version})"

    @property
    def name(self) -> str:
        """The projection's name, which its versions share."""
        return self._name

    @property
    def source(self) -> AnyStream:
        """The stream whose events it reads."""
        return self._source

    @property
    def version(self) -> int:
        """The version of its handlers and records."""
        return self._version

    @property
    def id(self) -> str:
        """The id of its position: name and version, as in `balances.2`."""
        return f"{self._name}.{self._version}"

    @property
    def events(self) -> Sequence[type[Event]]:
        """The events that it has handlers for."""
        return [event for event, _ in self._handlers.values()]

    def on[EventT: Event](self, *events: type[EventT]) -> Callable[[Handler[EventT]], Handler[EventT]]:
        """Register, as a decorator, the handler of some events: a function of the event and the changes it makes.

        Raises:
            DeclarationError: a class is no event with a type, an event has a handler already, or the function is
                `async` or doesn't take two arguments.
        """
        if not events:
            raise DeclarationError(f"projection {self._name}: on(...) names the events of the handler")
        for event in events:
            if not event.message_type:
                raise DeclarationError(f"projection {self._name}: {event.__name__} is no event with a type")
            if event.message_type in self._handlers:
                raise DeclarationError(
                    f"projection {self._name}: {event.message_type} has a handler already; an event has one, which"
                    " makes all its changes"
                )

        def register(handler: Handler[EventT]) -> Handler[EventT]:
            self._check_handler(handler)
            self._handlers |= {event.message_type: (event, handler) for event in events}
            return handler

        return register

    def changes_of(self, event: Event) -> Sequence[Change]:
        """Return the changes that an event makes; none where it has no handler.

        Raises:
            Exception: whatever the handler raises.
        """
        found = self._handlers.get(event.message_type)
        if found is None:
            return ()
        to = Changes()
        found[1](event, to)
        return to.made

    def _check_handler(self, handler: Callable[..., Any]) -> None:
        where = f"projection {self._name}: {getattr(handler, '__qualname__', handler)!s}"
        if inspect.iscoroutinefunction(handler):
            raise DeclarationError(
                f"{where} is async; a handler only says what changes, so it has nothing to wait for"
            )
        try:
            inspect.signature(handler).bind(None, None)
        except TypeError:
            raise DeclarationError(
                f"{where} takes two arguments: the event, and the changes it makes"
            ) from None
