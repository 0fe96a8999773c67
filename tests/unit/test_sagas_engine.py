"""What happens around a handler: steps that run once, conflicts, errors, and what is written with the move."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import RequestContext
from hybridkit.errors import MisuseError, UnavailableError, UniqueViolationError
from hybridkit.events import Command, Event
from hybridkit.ids import new_id
from hybridkit.resources import Record, Resource
from hybridkit.sagas import SAGAS, Run, Saga
from hybridkit.sagas._records import SagaChanges
from hybridkit.testing import SagaBench


class Began(Event, type="saga_engine.began"):
    """It begins."""

    thing_id: UUID


class Went(Event, type="saga_engine.went"):
    """It goes on."""

    thing_id: UUID


class Undone(Event, type="saga_engine.undone"):
    """It is undone."""

    thing_id: UUID


class Undo(Command, queue="saga_engine.work"):
    """Undo."""

    thing_id: UUID


class State(StrEnum):
    """What it waits for."""

    ONE = "one"
    TWO = "two"


class Data(BaseModel):
    """What it remembers."""

    paid: Decimal = Decimal(0)


class NewNote(BaseModel):
    """A note."""

    text: str


class Note(NewNote, Record):
    """A stored note."""


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)


@dataclass
class Calls:
    """Counts calls of somebody else's API."""

    keys: list[str] = field(default_factory=list[str])
    failures: int = 0
    during: Callable[[], Awaitable[None]] | None = None

    async def pay(self, key: str) -> Decimal:
        """Take money."""
        self.keys.append(key)
        if self.during is not None:
            await self.during()
        return Decimal("9.90")

    def fail_once(self) -> None:
        """Fail for a passing reason, once."""
        if not self.failures:
            self.failures += 1
            raise ConnectionError("gone for a moment")


type Handler = Callable[[Run[Data], Calls], Awaitable[None]]


def saga_of(begin: Handler, go: Handler | None = None, **options: Any) -> Saga[Data]:
    """Declare a saga of two handlers."""
    saga: Saga[Data] = Saga(
        "saga_engine.thing", data=Data, states=State, key="thing_id", undone_by=(Undone,), **options
    )

    @saga.starts(Began)
    async def begun(saga: Run[Data], calls: Calls) -> None:
        await begin(saga, calls)

    @saga.on(Went)
    async def went(event: Went, saga: Run[Data], calls: Calls, context: RequestContext) -> None:
        assert context.claim is not None
        assert event is saga.event
        await (go or end)(saga, calls)

    return saga


async def end(saga: Run[Data], _: Calls) -> None:
    """End."""
    saga.done()


async def wait(saga: Run[Data], _: Calls) -> None:
    """Wait."""
    saga.data = Data()
    saga.wait(State.ONE, timeout=None)


def bench_of(saga: Saga[Data], calls: Calls | None = None) -> SagaBench:
    """Return a bench whose handlers get the calls."""
    return SagaBench(saga, resources=[NOTES], providers={Calls: calls or Calls()})


async def test_a_step_runs_once_although_its_handler_runs_again() -> None:
    """The note of the first run is read back as the type that the function returns."""
    calls, seen = Calls(), list[Decimal]()

    async def go(saga: Run[Data], calls: Calls) -> None:
        assert saga.state == "one"
        seen.append(await saga.once("pay", calls.pay, saga.key_for("pay")))
        calls.fail_once()
        saga.data.paid = seen[-1]
        saga.done()

    async with bench_of(saga_of(wait, go), calls) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        assert bench.saga(key).notes
        await bench.skip(minutes=5)
        row = bench.saga(key)
        assert (row.status, row.data, row.notes) == ("done", {"paid": "9.90"}, {})
        assert seen == [Decimal("9.90")] * 2
        assert len(calls.keys) == 1


async def test_the_undo_of_a_step_is_on_the_row_before_its_call() -> None:
    """In case the call was made and its answer is lost; once, however often the handler runs."""
    calls, seen = Calls(), list[Any]()

    async def begin(saga: Run[Data], calls: Calls) -> None:
        saga.data = Data()
        await saga.once("pay", calls.pay, "key", undo=Undo(thing_id=saga.key), undone_by=Undone)
        calls.fail_once()
        saga.wait(State.ONE, timeout=timedelta(hours=1))

    async with bench_of(saga_of(begin), calls) as bench:
        key = new_id()

        async def during() -> None:
            seen.extend(bench.saga(key).undo)

        calls.during = during
        await bench.tell(Began(thing_id=key))
        await bench.skip(minutes=5)
        assert [undo.state for undo in seen] == ["open"]
        assert [undo.n for undo in bench.saga(key).undo] == [1]
        await bench.skip(hours=1)
        await bench.answer(Undo, lambda command: Undone(thing_id=command.thing_id))
        assert bench.saga(key).status == "undone"


async def test_a_key_for_another_api_is_the_same_on_every_run() -> None:
    """And another one for another name."""
    keys: list[str] = []

    async def go(saga: Run[Data], calls: Calls) -> None:
        keys.extend([saga.key_for("a"), saga.key_for("b")])
        calls.fail_once()
        saga.stay()

    async with bench_of(saga_of(wait, go)) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        await bench.skip(minutes=5)
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


async def test_writes_of_the_handler_become_true_with_the_move() -> None:
    """All of them or none: one that is refused is the handler's permanent failure, which the row tells."""

    async def go(saga: Run[Data], _: Calls) -> None:
        saga.tx.create(NOTES, NewNote(text="moved"), id=saga.key)
        saga.stay()

    async with bench_of(saga_of(wait, go)) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        assert (await bench.client.get(NOTES, key)).text == "moved"
        again = Went(thing_id=key)
        with pytest.raises(UniqueViolationError):
            await bench.tell(again)
        row = bench.saga(key)
        assert row.steps == 2
        assert row.error is not None
        assert row.error.startswith(f"saga_engine.went {again.event_id}: UniqueViolationError")


async def test_a_handler_that_loses_a_race_runs_again_on_what_is_true_then() -> None:
    """The row has moved while the handler ran, so it is read again, and nothing of the first try stays."""
    tries = 0

    async def go(saga: Run[Data], _: Calls) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await bench.client.update(SAGAS, PLACE.id_of(saga.key), SagaChanges(error="moved meanwhile"))
        saga.emit(Undone(thing_id=saga.key))
        saga.done()

    PLACE = saga_of(wait, go)  # noqa: N806 - one of the test's own
    async with bench_of(PLACE) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        assert tries == 2
        assert (bench.saga(key).status, bench.saga(key).error) == ("done", None)
        assert len(bench.emitted(Undone)) == 1


async def _twice(saga: Run[Data], _: Calls) -> None:
    saga.done()
    saga.fail("no")


async def _never(saga: Run[Data], _: Calls) -> None:
    saga.data = Data()


async def _without_data(saga: Run[Data], _: Calls) -> None:
    saga.wait(State.ONE, timeout=None)


async def _stays(saga: Run[Data], _: Calls) -> None:
    saga.stay()


async def _wrong_data(saga: Run[Any], _: Calls) -> None:
    saga.data = NewNote(text="")


async def _wrong_state(saga: Run[Data], _: Calls) -> None:
    saga.wait("one", timeout=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def _wrong_timeout(saga: Run[Data], _: Calls) -> None:
    saga.wait(State.ONE, timeout=timedelta(0))


async def _only_undone_by(saga: Run[Data], _: Calls) -> None:
    saga.send(Undo(thing_id=saga.key), undone_by=Undone)


async def _undeclared(saga: Run[Data], _: Calls) -> None:
    saga.send(Undo(thing_id=saga.key), undo=Undo(thing_id=saga.key), undone_by=Went)


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (_twice, "has called done before fail"),
        (_never, "has to call one of"),
        (_without_data, "sets `saga.data`"),
        (_stays, "a start can't stay"),
        (_wrong_data, "is a Data"),
        (_wrong_state, "waits in a State"),
        (_wrong_timeout, "more than 0"),
        (_only_undone_by, "comes with `undo`"),
        (_undeclared, r"declare it with `Saga\(\.\.\., undone_by=\(Went,\)\)`"),
    ],
)
async def test_a_handler_that_contradicts_itself_is_told_so(begin: Handler, words: str) -> None:
    """The mistake is the test's own error, and there is no saga."""
    async with bench_of(saga_of(begin)) as bench:
        key = new_id()
        with pytest.raises(MisuseError, match=words):
            await bench.tell(Began(thing_id=key))
        with pytest.raises(AssertionError, match="no saga"):
            bench.saga(key)


async def test_on_end_moves_nothing() -> None:
    """It may send and write, and a move is a mistake."""
    saga = saga_of(end_at_once)

    @saga.on_end
    async def ended(saga: Run[Data]) -> None:
        saga.done()

    async with bench_of(saga) as bench:
        with pytest.raises(MisuseError, match="can't move it"):
            await bench.tell(Began(thing_id=new_id()))


async def end_at_once(saga: Run[Data], _: Calls) -> None:
    """Begin and end."""
    saga.data = Data()
    saga.done()


async def test_past_the_point_of_no_return_nothing_is_undone() -> None:
    """`keep` empties the undo list, also of what the same handler has sent."""

    async def begin(saga: Run[Data], _: Calls) -> None:
        saga.data = Data()
        saga.send(Undo(thing_id=saga.key), undo=Undo(thing_id=saga.key))
        saga.keep()
        saga.fail("no")

    async with bench_of(saga_of(begin)) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        assert bench.saga(key).status == "undone"
        assert len(bench.commands) == 1


async def test_a_service_that_is_down_costs_no_attempt() -> None:
    """The consumer would pause; the message comes again when the service is back."""
    failures = 0

    async def go(saga: Run[Data], _: Calls) -> None:
        nonlocal failures
        if failures < 20:
            failures += 1
            raise UnavailableError("down")
        saga.done()

    async with bench_of(saga_of(wait, go)) as bench:
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        await bench.skip(minutes=1)
        assert bench.saga(key).status == "done"


async def test_a_saga_can_have_its_rows_in_mongodb() -> None:
    """Its move is one operation with its events, which needs no transactions there."""
    saga = saga_of(wait, client=MongoDataClient)
    async with bench_of(saga) as bench:
        assert isinstance(bench.client, MongoDataClient)
        await bench.tell(Began(thing_id=(key := new_id())))
        await bench.tell(Went(thing_id=key))
        assert bench.saga(key).status == "done"


async def test_a_handler_may_ask_for_what_the_process_provides() -> None:
    """As any consumer's handler; a parameter with a default keeps it."""
    saga: Saga[Data] = Saga("saga_engine.injected", data=Data, states=State, key="thing_id")
    seen: list[object] = []

    @saga.starts(Began)
    async def begun(saga: Run[Data], client: PostgresDataClient, calls: Calls | None = None) -> None:
        seen.extend([client, calls])
        saga.data = Data()
        saga.done()

    saga.on_timeout(State.ONE, State.TWO)(ended_run)
    async with SagaBench(saga) as bench:
        await bench.tell(Began(thing_id=new_id()))
        assert seen == [bench.client, None]


async def ended_run(saga: Run[Data]) -> None:
    """Stay."""
    saga.stay()
