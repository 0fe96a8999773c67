"""The object that a saga's handler works with: what it remembers, and what it decides to do next."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, get_type_hints

from pydantic import BaseModel, TypeAdapter

from hybridkit.errors import MisuseError
from hybridkit.events import Command, Event, Message
from hybridkit.sagas._records import NewSaga, SagaStatus

if TYPE_CHECKING:
    from enum import StrEnum

    from hybridkit.clients import DataTransaction

MAX_TIMEOUT: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Wait:
    """The move into a state, or into the same one again."""

    state: str
    timeout: timedelta | None


@dataclass(frozen=True, slots=True)
class Fail:
    """The move to undoing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    """The decision to go on waiting as before."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end as it was meant to be."""


type Move = Wait | Fail | Stay | Done


@dataclass(frozen=True, slots=True)
class Sending:
    """A message that a handler sends, with what undoes it."""

    message: Message
    undo: Command | None = None
    undone_by: str | None = None


@dataclass(slots=True)
class Outcome:
    """All that a handler has decided.

    Attributes:
        move: where the saga goes; None until the handler says so.
        sendings: commands and events, in their order.
        keeps: whether the undo list of before is emptied.
    """

    move: Move | None = None
    sendings: list[Sending] = field(default_factory=list[Sending])
    keeps: bool = False


class StepRunner(Protocol):
    """Does what needs input and output in a handler; the engine has one for each run."""

    @property
    def tx(self) -> "DataTransaction":
        """The transaction that will move the saga."""
        ...

    def key_for(self, name: str) -> str:
        """Return the idempotency key of a step."""
        ...

    async def once(
        self,
        name: str,
        call: Callable[[], Awaitable[object]],
        undo: Sending | None,
        adapter: TypeAdapter[Any],
    ) -> Any:
        """Return the noted result of a step, or call and note it."""
        ...


class Run[DataT: BaseModel]:
    """One run of a handler: the saga's memory, and the methods by which the handler says what follows.

    A handler calls exactly one of `wait`, `stay`, `done` and `fail`. Nothing is sent or written before it has returned;
    then the row, the operations of `tx`, the commands and the events become true at once.

    Attributes:
        data: what the saga remembers; the handler may change it, and the start sets it.
        key: the value by which its messages are correlated, in the type of the field.
        state: the state that it is in; None at the start.
        status: the phase.
        reason: why it has failed; None while it hasn't.
        event: the message that this run is for.
        started_version: the version of the code that began the saga.
    """

    def __init__(
        self,
        row: NewSaga,
        *,
        data: type[DataT],
        states: "type[StrEnum]",
        key: Any,
        event: Message,
        steps: StepRunner,
        undone_by: Sequence[type[Event]] = (),
        is_start: bool = False,
        is_end: bool = False,
    ) -> None:
        self._row = row
        self._data_type = data
        self._data: DataT | None = None if is_start else data.model_validate(row.data)
        self._states = states
        self._steps = steps
        self._undone_by = frozenset(undone_by)
        self._is_end = is_end
        self._outcome = Outcome()
        self.key = key
        self.event = event

    def __repr__(self) -> str:
        return f"Run({self._row.saga!r}, key={self._row.key!r}, state={self._row.state!r})"

    @property
    def data(self) -> DataT:
        """The memory of the saga.

        Raises:
            MisuseError: the handler of the start has not set it yet.
        """
        if self._data is None:
            raise MisuseError(f"{self._row.saga}: the start sets `saga.data` before it is read")
        return self._data

    @data.setter
    def data(self, value: DataT) -> None:
        if not isinstance(value, self._data_type):
            raise MisuseError(
                f"{self._row.saga}: `saga.data` is a {self._data_type.__name__}, not a {type(value).__name__}"
            )
        self._data = value

    @property
    def state(self) -> str | None:
        """The state that it is in; None at the start."""
        return self._row.state

    @property
    def status(self) -> SagaStatus:
        """The phase."""
        return self._row.status

    @property
    def reason(self) -> str | None:
        """The reason why it has failed; None while it hasn't."""
        return self._row.reason

    @property
    def started_version(self) -> int:
        """The version of the code that began the saga."""
        return self._row.started_definition

    @property
    def tx(self) -> "DataTransaction":
        """The transaction that moves the saga, for writes to resources of the same data service.

        They become true with the move, or not at all. If the data service refuses one, the handler has failed for good.
        """
        return self._steps.tx

    # ── where it goes ────────────────────────────────────────────────────────────────────────────

    def wait(self, state: "StrEnum", *, timeout: timedelta | None) -> None:
        """Go to a state, or wait in the same one anew.

        Args:
            state: one of the saga's states.
            timeout: how long to wait before the handler of `on_timeout` runs, or the saga fails; up to 366 days. None
                waits for ever, or to the deadline of the whole.

        Raises:
            MisuseError: the handler has said already what follows, or an argument is out of its range.
        """
        if not isinstance(state, self._states):
            raise MisuseError(f"{self._row.saga} waits in a {self._states.__name__}, not in {state!r}")
        if timeout is not None and not timedelta(0) < timeout <= MAX_TIMEOUT:
            raise MisuseError(
                f"{self._row.saga}: a timeout is more than 0 and at most 366 days, not {timeout}"
            )
        self._move(Wait(str(state.value), timeout))

    def stay(self) -> None:
        """Go on waiting as before, with the same timer."""
        if self._row.state is None:
            raise MisuseError(
                f"{self._row.saga}: a start can't stay, as there is no state yet; use `saga.wait(...)`"
            )
        self._move(Stay())

    def done(self) -> None:
        """End as it was meant to; nothing is undone."""
        self._move(Done())

    def fail(self, reason: str) -> None:
        """Fail: what is on the undo list is undone, the last first, and then the saga ends.

        Args:
            reason: a few words for people, which the row keeps.
        """
        self._move(Fail(reason[:500]))

    def _move(self, move: Move) -> None:
        if self._is_end:
            raise MisuseError(f"{self._row.saga} has ended; `on_end` can't move it")
        if self._outcome.move is not None:
            raise MisuseError(
                f"{self._row.saga}: a handler calls one of wait, stay, done and fail, and this one has called"
                f" {type(self._outcome.move).__name__.lower()} before {type(move).__name__.lower()}"
            )
        self._outcome.move = move

    # ── what it sends ────────────────────────────────────────────────────────────────────────────

    def send(
        self, command: Command, *, undo: Command | None = None, undone_by: type[Event] | None = None
    ) -> None:
        """Send a command with the move, and note the command that undoes it.

        Args:
            command: the work for another service. If it ends as a dead letter, the handler of `on_failed` runs, or the
                saga fails.
            undo: the command that undoes it, also if it was never done.
            undone_by: the event that confirms the undo, one of the saga's `undone_by`. Without one the undo counts as
                done once it is sent.

        Raises:
            MisuseError: `undone_by` comes without `undo`, or is not declared.
        """
        self._outcome.sendings.append(Sending(command, undo, self._confirmation(undo, undone_by)))

    def emit(self, event: Event) -> None:
        """Publish an event with the move."""
        self._outcome.sendings.append(Sending(event))

    def keep(self) -> None:
        """Pass the point of no return: what is on the undo list up to here is never undone."""
        self._outcome.keeps = True
        self._outcome.sendings = [Sending(each.message) for each in self._outcome.sendings]

    def key_for(self, name: str) -> str:
        """Return an idempotency key for a call of somebody else's API, the same on every rerun of this event.

        Args:
            name: tells the calls of one handler apart.
        """
        return self._steps.key_for(name)

    async def once[ResultT](
        self,
        name: str,
        function: Callable[..., Awaitable[ResultT]],
        *args: object,
        undo: Command | None = None,
        undone_by: type[Event] | None = None,
    ) -> ResultT:
        """Call a function and note its result, so that a rerun of this event takes the note and doesn't call again.

        A crash between the call and the note calls again, so give the other side `key_for(name)`.

        Args:
            name: tells the steps of one handler apart.
            function: an async function; its result has a JSON form, and is read back by its return annotation.
            args: its arguments.
            undo: the command that undoes the call. It is on the row before the call, as its answer may be lost.
            undone_by: as for `send`.

        Raises:
            MisuseError: `undone_by` comes without `undo`, or is not declared.
        """
        confirmation = self._confirmation(undo, undone_by)
        sending = None if undo is None else Sending(undo, undo, confirmation)
        result = await self._steps.once(name, lambda: function(*args), sending, _result_adapter(function))
        return cast("ResultT", result)

    def _confirmation(self, undo: Command | None, undone_by: type[Event] | None) -> str | None:
        if undone_by is None:
            return None
        if undo is None:
            raise MisuseError(f"{self._row.saga}: `undone_by` comes with `undo`")
        if undone_by not in self._undone_by:
            raise MisuseError(
                f"{self._row.saga} doesn't get {undone_by.__name__}: declare it with"
                f" `Saga(..., undone_by=({undone_by.__name__},))`"
            )
        return undone_by.message_type

    def take_outcome(self) -> tuple[Outcome, dict[str, Any]]:
        """Return what the handler has decided, and the data as JSON; for the engine.

        Raises:
            MisuseError: the handler has not said what follows, or has not set the data of a start.
        """
        if self._outcome.move is None and not self._is_end:
            raise MisuseError(
                f"{self._row.saga}: the handler of {self.event.message_type} has to call one of"
                " wait, stay, done and fail"
            )
        return self._outcome, self.data.model_dump(mode="json", by_alias=True)


def _result_adapter(function: Callable[..., object]) -> TypeAdapter[Any]:
    """Return the adapter of a function's result; one without an annotation gives plain JSON."""
    try:
        hints = get_type_hints(inspect.unwrap(getattr(function, "__func__", function)))
    except (NameError, TypeError):
        hints = {}
    return TypeAdapter(hints.get("return", Any))
