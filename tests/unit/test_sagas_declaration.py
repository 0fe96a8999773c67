"""Declarations that contradict themselves are refused at import, or when the saga starts."""

from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.errors import DeclarationError, MalformedPayloadError
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.sagas import NewSaga, Run, Saga


class Began(Event, type="saga_declaration.began"):
    """It begins."""

    thing_id: UUID


class Went(Event, type="saga_declaration.went"):
    """It goes on."""

    thing_id: UUID


class Keyless(Event, type="saga_declaration.keyless"):
    """It has no key."""

    other_id: UUID


class Work(Command, queue="saga_declaration.work"):
    """Work."""

    thing_id: UUID


class State(StrEnum):
    """What it waits for."""

    ONE = "one"
    TWO = "two"


class Other(StrEnum):
    """States of another saga."""

    ONE = "one"


class Data(BaseModel):
    """What it remembers."""

    number: int = 0


def saga(**options: Any) -> Saga[Data]:
    """Declare a saga without handlers."""
    given: dict[str, Any] = {"name": "test.thing", "data": Data, "states": State, "key": "thing_id"}
    return Saga(**given | options)


async def nothing(saga: Run[Data]) -> None:
    """Stay."""
    saga.stay()


class NoStates(StrEnum):
    """No states."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "Thing"}, "snake_case"),
        ({"name": "a" * 101}, "at most 100"),
        ({"deadline": timedelta(0)}, "deadline"),
        ({"deadline": timedelta(days=367)}, "366 days"),
        ({"keep": timedelta(minutes=1)}, "for an hour at least"),
        ({"version": 0}, "version is at least 1"),
        ({"states": NoStates}, "has no states"),
        ({"undone_by": (Keyless,)}, "no field 'thing_id'"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(options: dict[str, Any], words: str) -> None:
    """The error names what is wrong."""
    with pytest.raises(DeclarationError, match=words):
        saga(**options)


def test_a_message_needs_the_key_and_a_type() -> None:
    """Without them it can't find its saga, or is a base class."""
    thing = saga()
    with pytest.raises(DeclarationError, match="no field 'thing_id'"):
        thing.on(Keyless)(nothing)
    with pytest.raises(DeclarationError, match="base class"):
        thing.starts(Event)(nothing)


def test_a_message_has_one_handler_in_a_state() -> None:
    """Also where one of the two is for every state; a start is not among them."""
    thing = saga()
    thing.starts(Began)(nothing)
    thing.on(Began, when=State.ONE)(nothing)
    thing.on(Began, when=(State.TWO,))(nothing)
    with pytest.raises(DeclarationError, match="both handle Began in one state"):
        thing.on(Began)(nothing)
    with pytest.raises(DeclarationError, match="starts it in"):
        thing.starts(Began)(nothing)


def test_a_state_has_to_be_one_of_the_saga() -> None:
    """A state of another saga with the same value is another one."""
    with pytest.raises(DeclarationError, match="is no State"):
        saga().on(Went, when=Other.ONE)(nothing)


def test_timeouts_failures_and_ends_have_one_handler() -> None:
    """A second one is refused where it is declared."""
    thing = saga()
    thing.on_timeout(State.ONE)(nothing)
    thing.on_failed(Work)(nothing)
    thing.on_end(nothing)
    with pytest.raises(DeclarationError, match="its timeout already"):
        thing.on_timeout(State.TWO, State.ONE)(nothing)
    with pytest.raises(DeclarationError, match="its failure already"):
        thing.on_failed(Work)(nothing)
    with pytest.raises(DeclarationError, match="`on_end` already"):
        thing.on_end(nothing)


def test_a_handler_gets_what_it_asks_for() -> None:
    """It is async, and asks for the message that it handles and for no envelope."""
    thing = saga()

    def sync(saga: Run[Data]) -> None: ...

    async def other(event: Began, saga: Run[Data]) -> None: ...

    async def envelope(event: EventEnvelope[Went], saga: Run[Data]) -> None: ...

    async def untyped(saga) -> None: ...  # type: ignore[no-untyped-def]

    refused: list[tuple[Any, str]] = [
        (sync, "async def"),
        (other, "asks for"),
        (envelope, "the message itself"),
        (untyped, "no annotation"),
    ]
    for function, words in refused:
        with pytest.raises(DeclarationError, match=words):
            thing.on(Went)(function)
    with pytest.raises(DeclarationError, match="no message"):
        thing.on_end(other)


def test_a_saga_needs_a_start_and_a_handler_for_each_state() -> None:
    """Which is known when all handlers are registered: when its consumer is asked for."""
    thing = saga()
    with pytest.raises(DeclarationError, match="no start"):
        thing.check()
    thing.starts(Began)(nothing)
    thing.on(Went, when=State.ONE)(nothing)
    with pytest.raises(DeclarationError, match="no handler names 'two'"):
        _ = thing.consumer
    thing.on_timeout(State.TWO)(nothing)
    thing.check()


def test_the_consumer_asks_for_what_the_handlers_want() -> None:
    """So the process says at its start what nothing provides; optional parameters stay optional."""
    thing = saga()

    class Mailer:
        """Sends mail."""

    async def begin(saga: Run[Data], mailer: Mailer, client: PostgresDataClient | None = None) -> None: ...

    thing.starts(Began)(begin)
    thing.on(Went)(nothing)
    handler = next(iter(thing.consumer._handlers))
    assert "Mailer" in handler.missing({PostgresDataClient: object()})
    assert handler.missing({PostgresDataClient: object(), Mailer: object()}) == ""
    assert {message.__name__ for message in thing.consumer.handles} >= {
        "Began",
        "Went",
        "SagaTimer",
        "SagaOrder",
    }


def test_data_of_an_older_version_is_brought_to_the_new_one() -> None:
    """Step by step, and a version without an upcaster has only added what has a default."""
    thing = saga(version=4)

    @thing.upcast(from_version=1)
    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {"count": data["n"]}

    @thing.upcast(from_version=3)
    def typed(data: dict[str, Any]) -> dict[str, Any]:
        return {"number": int(data["count"])}

    row = NewSaga(saga="test.thing", key="1", definition=1, data={"n": "7"})
    assert thing.with_new_data(row).data == {"number": 7}
    row.data = {}
    with pytest.raises(MalformedPayloadError, match="from version 1 failed: KeyError"):
        thing.with_new_data(row)
    for version in (0, 1, 4):
        with pytest.raises(DeclarationError, match="has no use"):
            thing.upcast(from_version=version)(renamed)


def test_a_saga_tells_itself_in_a_line() -> None:
    """For logs and debuggers."""
    assert repr(saga()) == "Saga('test.thing', states=['one', 'two'], version=1)"
