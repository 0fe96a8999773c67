"""Declarations of streams: the events that they take, and the pure functions that compute a state from them."""

import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import BaseModel, ValidationError

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.errors import DeclarationError, InvalidRequestError
from hybridkit.events import Event

MAX_STREAM_ID_LENGTH: Final = 255
"""In characters: an id is part of a primary key, an ordering key and a URL."""
MAX_SNAPSHOT_EVERY: Final = 100_000
_NO_SEGMENTS: Final = frozenset({"", ".", ".."})

type Apply[StateT, EventT] = Callable[[StateT, EventT], StateT]
"""A pure function from a state and an event to the next state."""


@dataclass(frozen=True, slots=True)
class Loaded[StateT: BaseModel]:
    """One stream as it was read, or as an append has left it.

    Attributes:
        id: the stream's id, as text.
        state: the state after its last event; the state model's defaults where it has none.
        version: the number of its events, and so of the last one; 0 for a stream that has none.
        snapshot_version: the version of the snapshot that the state began with; 0 where all events were read.
    """

    id: str
    state: StateT
    version: int
    snapshot_version: int = 0


class Stream[StateT: BaseModel]:
    """A kind of stream: one stream of events for each id, such as each account.

    Args:
        name: plural snake_case, the path segment under `/v1/`; at most 63 characters.
        state: the model of the state, made without arguments for a stream that has no events.
        key: the field of every event whose value is the stream's id.
        snapshot_every: after how many events a snapshot of the state is stored, so that the next load reads fewer
            events; None for none. A snapshot is a cache: one that doesn't fit is ignored and stored anew.
        state_version: the version of the state model and its functions, from 1; raise it when either changes, and older
            snapshots are ignored.
        publish: whether each appended event is also published, in the order of its stream.

    Raises:
        DeclarationError: the name is not snake_case, the state needs arguments, or a number is out of range.

    Attributes:
        name: the name.
        state: the model of the state.
        key: the field of every event with the stream's id.
        snapshot_every: the number of events between two snapshots.
        state_version: the version of the state.
        publish: whether appended events are published.
    """

    def __init__(
        self,
        name: str,
        *,
        state: type[StateT],
        key: str,
        snapshot_every: int | None = None,
        state_version: int = 1,
        publish: bool = True,
    ) -> None:
        if not NAME_SYNTAX.fullmatch(name):
            raise DeclarationError(f"stream {name!r}: a name is snake_case with at most 63 characters")
        if snapshot_every is not None and not 1 <= snapshot_every <= MAX_SNAPSHOT_EVERY:
            raise DeclarationError(
                f"{name}: snapshot_every is a number of events, 1 to {MAX_SNAPSHOT_EVERY}, not {snapshot_every}"
            )
        if state_version < 1:
            raise DeclarationError(f"{name}: state_version counts from 1, so it can't be {state_version}")
        self.name = name
        self.state = state
        self.key = key
        self.snapshot_every = snapshot_every
        self.state_version = state_version
        self.publish = publish
        self._functions: dict[type[Event], Apply[Any, Any]] = {}
        self.initial()

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, state={self.state.__name__})"

    @property
    def path(self) -> str:
        """The path of all streams of the kind: `/v1/accounts`."""
        return f"/v1/{self.name}"

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The classes of events that the stream takes, in the order of their declaration."""
        return tuple(self._functions)

    def apply[EventT: Event](
        self, event: type[EventT]
    ) -> Callable[[Apply[StateT, EventT]], Apply[StateT, EventT]]:
        """Register, as a decorator, the function that computes the state after an event of that class.

        The function is called again whenever a stream is loaded, so it has to be pure: it takes the state and the
        event, returns the next state, and neither changes the state that it gets nor reads a clock, a setting or a
        service.

        Raises:
            DeclarationError: the class is no declared event or lacks the stream's key, it has a function already, or
                the function takes other arguments than a state and an event, or is no plain function.
        """
        self._check_event(event)

        def register(function: Apply[StateT, EventT]) -> Apply[StateT, EventT]:
            if event in self._functions:
                raise DeclarationError(f"{self.name}: {event.__name__} has a function already")
            _check_function(function, self.name, (self.state, event))
            self._functions[event] = function
            return function

        return register

    def initial(self) -> StateT:
        """Return the state of a stream without events.

        Raises:
            DeclarationError: a field of the state has no default.
        """
        try:
            return self.state()
        except ValidationError as error:
            fields = ", ".join(sorted({str(part["loc"][0]) for part in error.errors() if part["loc"]}))
            raise DeclarationError(
                f"{self.name}: a stream without events has the state {self.state.__name__}(),"
                f" so give {fields} a default"
            ) from None

    def fold(self, events: Iterable[Event], *, state: StateT | None = None) -> StateT:
        """Return the state after the events.

        Args:
            events: the events, in the order of the stream.
            state: the state before them; None for that of a stream without events.

        Raises:
            DeclarationError: an event's class has no function here, or its function returned no state.
        """
        folded = self.initial() if state is None else state
        for event in events:
            found = self._function(type(event))(folded, event)
            if not isinstance(found, self.state):
                raise DeclarationError(
                    f"{self.name}: the function of {type(event).__name__} returned {type(found).__name__},"
                    f" no {self.state.__name__}"
                )
            folded = found
        return folded

    def check_id(self, id: object) -> str:
        """Return a stream's id as text.

        Raises:
            InvalidRequestError: no stream can have the id: it is empty, `.` or `..`, has more than 255 characters, or
                one that neither a URL nor the database can hold.
        """
        text = str(id)
        is_storable = "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
        if text in _NO_SEGMENTS or len(text) > MAX_STREAM_ID_LENGTH or not is_storable:
            raise InvalidRequestError(
                f"{self.name}: {text[:100]!r} is no id of a stream, which has 1 to {MAX_STREAM_ID_LENGTH} characters"
            )
        return text

    def check_events(self, id: str, events: Iterable[Event]) -> None:
        """Refuse events that the stream with this id doesn't take.

        Raises:
            DeclarationError: an event's class has no function here.
            InvalidRequestError: an event belongs to another stream, as its key says.
        """
        for event in events:
            self._function(type(event))
            key = str(getattr(event, self.key))
            if key != id:
                raise InvalidRequestError(
                    f"{self.name} {id}: the {self.key} of {type(event).__name__} is {key[:100]!r}"
                )

    def _function(self, event: type[Event]) -> Apply[Any, Any]:
        function = self._functions.get(event)
        if function is None:
            raise DeclarationError(
                f"{self.name} has no function for {event.__name__} version {event.message_version}; declare one with"
                f" @{self.name.upper()}.apply({event.__name__})"
            )
        return function

    def _check_event(self, event: type[Event]) -> None:
        given = cast("object", event)
        if not (isinstance(given, type) and issubclass(given, Event) and given.message_type):
            raise DeclarationError(f"{self.name}: {event!r} is no declared event")
        if self.key not in event.model_fields:
            raise DeclarationError(
                f"{self.name}: {event.__name__} has no field {self.key!r}, by which the stream of an event is found"
            )
        if self.publish and event.event_key not in (None, self.key):
            raise DeclarationError(
                f"{self.name}: {event.__name__} is published in the order of {event.event_key!r}, but a stream's events"
                f" are in the order of {self.key!r}; declare it with key={self.key!r}, or the stream with publish=False"
            )


type AnyStream = Stream[Any]
"""A stream of any state."""


def _check_function(function: object, name: str, expected: tuple[type, type]) -> None:
    """Refuse a function that can't be pure by its form alone.

    Raises:
        DeclarationError: it is asynchronous or a generator, or takes other arguments than a state and an event.
    """
    called = getattr(function, "__name__", repr(function))
    if not callable(function):
        raise DeclarationError(f"{name}: {function!r} is no function")
    if (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):
        raise DeclarationError(
            f"{name}: {called} computes a state, so it is a plain function: it waits for nothing"
        )
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) != len(expected) or any(
        each.kind not in positional or each.default is not each.empty for each in parameters
    ):
        raise DeclarationError(
            f"{name}: {called} takes a state and an event, and nothing else: a state that depends on more than its"
            " events can't be computed again"
        )
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # of names that only a type checker knows
        return
    for parameter, wanted in zip(parameters, expected, strict=True):
        hint = hints.get(parameter.name, wanted)
        if inspect.isclass(hint) and not issubclass(wanted, cast("type", hint)):
            raise DeclarationError(f"{name}: {called} takes {hint.__name__} where it gets {wanted.__name__}")
