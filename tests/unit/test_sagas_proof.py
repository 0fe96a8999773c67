"""The proof passes a saga and participants that are right, and finds each of the mistakes that are planted."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.events import Command, Event
from hybridkit.ids import new_id
from hybridkit.messaging import RobustConsumer
from hybridkit.resources import Record, Resource
from hybridkit.sagas import Run, Saga
from hybridkit.testing import SagaBench, prove_participant, prove_saga
from tests.helpers.order_saga import Charge, OrderPlaced, Refund, ReleaseStock, ReserveStock, order_saga
from tests.helpers.order_services import PAYMENTS, RESERVATIONS, SHIPMENTS, order_services

ORDER_ID = new_id()


async def an_order(bench: SagaBench) -> None:
    """Place an order; the services answer."""
    await bench.tell(OrderPlaced(order_id=ORDER_ID, total=Decimal(50)))


async def books_balance(bench: SagaBench) -> None:
    """What was taken was shipped or given back."""
    shipped = bench.data.record(SHIPMENTS, ORDER_ID) is not None
    for resource, taken in ((RESERVATIONS, "reserved"), (PAYMENTS, "charged")):
        row = bench.data.record(resource, ORDER_ID)
        assert (row is not None and row.status == taken) <= shipped, (
            f"{resource.name}: {row}, shipped: {shipped}"
        )


async def test_the_whole_example_is_proved() -> None:
    """Every crash, loss, repetition, refusal and cancellation ends with books that balance, in seconds."""
    began = time.process_time()
    runs = await prove_saga(
        order_saga("saga_test.proved"),
        an_order,
        participants=order_services(),
        resources=[RESERVATIONS, PAYMENTS, SHIPMENTS],
        holds=books_balance,
    )
    assert runs > 50
    assert time.process_time() - began < 20


async def test_participants_with_a_row_per_order_are_proved() -> None:
    """In any order of do and undo, and with a crash anywhere, they leave what they should."""
    stock, payments, _ = order_services()
    do = ReserveStock(order_id=ORDER_ID)
    assert (
        await prove_participant(do, ReleaseStock(order_id=ORDER_ID), by=stock, resources=[RESERVATIONS]) > 50
    )
    await prove_participant(
        Charge(order_id=ORDER_ID, amount=Decimal(1)),
        Refund(order_id=ORDER_ID),
        by=payments,
        resources=[PAYMENTS],
    )


# ── planted mistakes ─────────────────────────────────────────────────────────────────────────────


class Asked(Event, type="saga_proof.asked"):
    """It begins."""

    thing_id: UUID


class Taken(Event, type="saga_proof.taken"):
    """The thing is taken."""

    thing_id: UUID


class Given(Event, type="saga_proof.given"):
    """The thing is given back."""

    thing_id: UUID


class Take(Command, queue="saga_proof.store"):
    """Take the thing."""

    thing_id: UUID


class Give(Command, queue="saga_proof.store"):
    """Give the thing back."""

    thing_id: UUID


class State(StrEnum):
    """What it waits for."""

    TAKEN = "taken"
    CALL = "call"


class Data(BaseModel):
    """What it remembers."""


class NewLevel(BaseModel):
    """A number of things."""

    level: int = 0


class Level(NewLevel, Record):
    """A stored number of things."""


LEVELS = Resource("levels", record=Level, create=NewLevel, update=NewLevel)
STORE = UUID(int=1)


@dataclass
class Bank:
    """Somebody else's API, with keys or without."""

    keys: set[str]
    balance: int = 0

    async def pay(self, key: str) -> None:
        """Take money once for a key."""
        if key not in self.keys:
            self.keys.add(key)
            self.balance += 1


def providers() -> Mapping[Any, object]:
    """Make a new bank."""
    return {Bank: Bank(set())}


def taking(*, undo: bool = True, timeout: timedelta | None = timedelta(hours=1)) -> Saga[Data]:
    """Declare a saga that takes a thing, and gives it back if it fails."""
    saga: Saga[Data] = Saga("saga_proof.taking", data=Data, states=State, key="thing_id", undone_by=(Given,))

    @saga.starts(Asked)
    async def asked(saga: Run[Data]) -> None:
        saga.data = Data()
        if undo:
            saga.send(Take(thing_id=saga.key), undo=Give(thing_id=saga.key), undone_by=Given)
        else:
            saga.send(Take(thing_id=saga.key))
        saga.wait(State.TAKEN, timeout=timeout)

    @saga.on(Taken, when=(State.TAKEN, State.CALL))
    async def taken(saga: Run[Data]) -> None:
        saga.done()

    return saga


def store(*, blind: bool = False) -> RobustConsumer:
    """Return the store: one row for each thing, or a counter that knows nobody."""
    consumer = RobustConsumer("saga_proof.store")

    @consumer.on(Take)
    async def take(command: Take, postgres: PostgresDataClient) -> None:
        async with postgres.transaction() as tx:
            if blind:
                tx.upsert(LEVELS, STORE, NewLevel(), increment={"level": 1})
            else:
                tx.upsert(LEVELS, command.thing_id, NewLevel(level=1))
            tx.emit(Taken(thing_id=command.thing_id))

    @consumer.on(Give)
    async def give(command: Give, postgres: PostgresDataClient) -> None:
        async with postgres.transaction() as tx:
            if blind:
                tx.upsert(LEVELS, STORE, NewLevel(), increment={"level": -1})
            else:
                tx.upsert(LEVELS, command.thing_id, NewLevel(level=0))
            tx.emit(Given(thing_id=command.thing_id))

    return consumer


async def asking(bench: SagaBench) -> None:
    """Ask for a thing."""
    await bench.tell(Asked(thing_id=STORE))


async def nothing_is_left(bench: SagaBench) -> None:
    """A thing is out only if its saga is done."""
    row, saga = bench.data.record(LEVELS, STORE), bench.sagas()
    level = 0 if row is None else row.level
    done = sum(each.status == "done" for each in saga)
    assert level == done, f"{level} things are out, and {done} sagas are done"


async def test_a_command_without_its_undo_is_found() -> None:
    """The cancelled saga has left the thing outside."""
    with pytest.raises(
        AssertionError, match=r"a cancellation before message 2.*1 things are out, and 0 sagas"
    ):
        await prove_saga(
            taking(undo=False), asking, participants=[store()], resources=[LEVELS], holds=nothing_is_left
        )


async def test_a_wait_without_an_end_is_found() -> None:
    """Its reply is lost, and nobody ever looks."""
    with pytest.raises(AssertionError, match=r"message 2 to the saga is lost.*never leaves 'taken'"):
        await prove_saga(taking(timeout=None), asking, participants=[store()], resources=[LEVELS])


async def test_a_counter_that_knows_nobody_is_found() -> None:
    """A command that is sent again counts twice; the saga's proof and the participant's both say so."""
    with pytest.raises(AssertionError, match="each command sent again: 2 things are out"):
        await prove_saga(
            taking(), asking, participants=[store(blind=True)], resources=[LEVELS], holds=nothing_is_left
        )
    with pytest.raises(AssertionError, match=r"do then do leaves .*\\?\"level\\?\":2"):
        await prove_participant(
            Take(thing_id=STORE), Give(thing_id=STORE), by=store(blind=True), resources=[LEVELS]
        )


async def test_an_undo_that_a_late_command_overtakes_is_found() -> None:
    """The participant takes what was given back before: its row has to say that."""
    with pytest.raises(AssertionError, match="undo then do leaves"):
        await prove_participant(Take(thing_id=STORE), Give(thing_id=STORE), by=store(), resources=[LEVELS])


def paying(*, once: bool, undo_first: bool = True) -> Saga[Data]:
    """Declare a saga that pays by a call of its own."""
    saga: Saga[Data] = Saga("saga_proof.paying", data=Data, states=State, key="thing_id")

    @saga.starts(Asked)
    async def asked(saga: Run[Data]) -> None:
        saga.data = Data()
        saga.wait(State.CALL, timeout=timedelta(hours=1))

    @saga.on(Taken, when=(State.TAKEN, State.CALL))
    async def pay(saga: Run[Data], bank: Bank) -> None:
        give = Give(thing_id=saga.key)
        if not once:
            await bank.pay(str(new_id()))
            saga.send(Give(thing_id=saga.key))
        elif undo_first:
            await saga.once("pay", bank.pay, saga.key_for("pay"), undo=give)
        else:
            await saga.once("pay", bank.pay, saga.key_for("pay"))
            saga.send(Take(thing_id=saga.key), undo=give)
        saga.done()

    return saga


def giving() -> RobustConsumer:
    """Return a consumer that gives the money back, once for each thing."""
    consumer = RobustConsumer("saga_proof.store")
    given: set[tuple[int, UUID]] = set()

    @consumer.on(Give)
    async def give(command: Give, bank: Bank) -> None:
        if (id(bank), command.thing_id) not in given and bank.balance:
            given.add((id(bank), command.thing_id))
            bank.balance -= 1

    return consumer


async def paying_for(bench: SagaBench) -> None:
    """Ask, and let the thing be taken."""
    await bench.tell(Asked(thing_id=STORE))
    await bench.tell(Taken(thing_id=STORE))


async def paid_once(bench: SagaBench) -> None:
    """The bank has been paid once by a saga that is done, and not at all otherwise."""
    balance, done = bench.provided(Bank).balance, sum(row.status == "done" for row in bench.sagas())
    assert balance == done, f"paid {balance} times for {done} sagas that are done"


async def test_a_step_with_its_undo_before_is_proved() -> None:
    """Neither a crash nor a cancellation that overtakes the rerun leaves money behind."""
    saga = paying(once=True)
    await prove_saga(saga, paying_for, participants=[giving()], providers=providers, holds=paid_once)


async def test_an_effect_outside_of_a_step_is_found() -> None:
    """The rerun after a crash pays a second time."""
    with pytest.raises(AssertionError, match=r"a crash before request \d+: paid 2 times for 1 sagas"):
        await prove_saga(paying(once=False), paying_for, providers=providers, holds=paid_once)


async def test_an_undo_after_its_step_is_found() -> None:
    """A crash between the two, and a cancellation before the rerun: the money is gone."""
    with pytest.raises(AssertionError, match="comes before the rerun: paid 1 times for 0 sagas"):
        await prove_saga(
            paying(once=True, undo_first=False),
            paying_for,
            participants=[giving()],
            providers=providers,
            holds=paid_once,
        )


async def test_a_scenario_that_fails_by_itself_is_told_first() -> None:
    """Nothing is disturbed before the scenario has gone well once."""

    async def wrong(bench: SagaBench) -> None:
        await bench.answer(Take, lambda command: Taken(thing_id=command.thing_id))

    with pytest.raises(AssertionError, match="nothing goes wrong: no Take waits for an answer"):
        await prove_saga(taking(), wrong)
