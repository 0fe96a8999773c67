"""The application of the proof of sagas: `python -m tests.proofs._saga_app data | participants | workers`.

An order reserves stock, charges, and is shipped, or is undone. Each participant writes its own row, by which it
answers, and a movement for each command that it gets: two commands for one effect would be two movements.
"""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.adapters.fastapi import run_api
from hybridkit.clients import PostgresDataClient
from hybridkit.coordination import connect_redis
from hybridkit.dataservice import RecordColumns, create_data_service, saga_tables
from hybridkit.errors import UnavailableError, UniqueViolationError
from hybridkit.events import Command, Event
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.resources import Record, Resource
from hybridkit.retry import Retry
from hybridkit.sagas import Run, Saga, _sweep
from hybridkit.settings import PostgresSettings
from tests.proofs._crashing import LEASE_SECONDS, MAX_TAKEOVERS, CountingGuard, Steps

NAME: Final = "saga_proof.place_order"
SERVICE: Final = "saga_proof"
SWEEP_SECONDS: Final = 1.0
OVERDUE: Final = timedelta(seconds=2)
SILENCE: Final = timedelta(seconds=2)
RETRY: Final = Retry.exponential(first_seconds=0.2, cap_seconds=2, attempts=50).pause_on(UnavailableError)


class Kind(StrEnum):
    """The course of an order."""

    SHIPPED = "shipped"
    """Everything goes well."""

    REFUSED = "refused"
    """The payment is refused."""

    SILENT = "silent"
    """The payment is never answered, so the saga's timer ends the wait."""

    CANCELLED = "cancelled"
    """The customer cancels at some time; the order is shipped or undone."""


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


class OrderPlaced(Event, type="saga_proof.placed", key="order_id"):
    """The start."""

    order_id: UUID
    kind: Kind


class OrderCancelled(Event, type="saga_proof.cancelled", key="order_id"):
    """The customer's change of mind."""

    order_id: UUID


class OrderFinished(Event, type="saga_proof.finished", key="order_id"):
    """The end, as the saga tells it."""

    order_id: UUID
    status: str


class Reserved(Event, type="saga_proof.reserved", key="order_id"):
    """An answer of the stock."""

    order_id: UUID


class Released(Event, type="saga_proof.released", key="order_id"):
    """An answer of the stock."""

    order_id: UUID


class Charged(Event, type="saga_proof.charged", key="order_id"):
    """An answer of the payments."""

    order_id: UUID


class ChargeRefused(Event, type="saga_proof.charge_refused", key="order_id"):
    """An answer of the payments."""

    order_id: UUID


class Refunded(Event, type="saga_proof.refunded", key="order_id"):
    """An answer of the payments."""

    order_id: UUID


class Shipped(Event, type="saga_proof.shipped", key="order_id"):
    """An answer of the shipping."""

    order_id: UUID


class Reserve(Command, queue="saga_proof.participants", type="command.saga_proof_reserve"):
    """A command of the saga."""

    order_id: UUID


class Release(Command, queue="saga_proof.participants", type="command.saga_proof_release"):
    """A command of the saga."""

    order_id: UUID


class Charge(Command, queue="saga_proof.participants", type="command.saga_proof_charge"):
    """A command of the saga."""

    order_id: UUID
    kind: Kind


class Refund(Command, queue="saga_proof.participants", type="command.saga_proof_refund"):
    """A command of the saga."""

    order_id: UUID


class Ship(Command, queue="saga_proof.participants", type="command.saga_proof_ship"):
    """A command of the saga."""

    order_id: UUID


# ── the saga ─────────────────────────────────────────────────────────────────────────────────────


class Waiting(StrEnum):
    """What it waits for."""

    STOCK = "stock"
    PAYMENT = "payment"
    SHIPMENT = "shipment"


class OrderData(BaseModel):
    """What it remembers."""

    kind: Kind


place_order = Saga(
    NAME, data=OrderData, states=Waiting, key="order_id", undone_by=(Released, Refunded), retry=RETRY
)


@place_order.starts(OrderPlaced)
async def placed(event: OrderPlaced, saga: Run[OrderData]) -> None:
    """Reserve the stock."""
    saga.data = OrderData(kind=event.kind)
    key = event.order_id
    saga.send(Reserve(order_id=key), undo=Release(order_id=key), undone_by=Released)
    saga.wait(Waiting.STOCK, timeout=timedelta(hours=1))


@place_order.on(Reserved, when=Waiting.STOCK)
async def reserved(event: Reserved, saga: Run[OrderData]) -> None:
    """Charge the customer."""
    key, kind = event.order_id, saga.data.kind
    saga.send(Charge(order_id=key, kind=kind), undo=Refund(order_id=key), undone_by=Refunded)
    saga.wait(Waiting.PAYMENT, timeout=SILENCE if kind is Kind.SILENT else timedelta(hours=1))


@place_order.on(Charged, when=Waiting.PAYMENT)
async def charged(event: Charged, saga: Run[OrderData]) -> None:
    """Ship."""
    saga.send(Ship(order_id=event.order_id))
    saga.wait(Waiting.SHIPMENT, timeout=timedelta(hours=1))


@place_order.on(Shipped, when=Waiting.SHIPMENT)
async def shipped(saga: Run[OrderData]) -> None:
    """End."""
    saga.done()


@place_order.on(ChargeRefused, when=Waiting.PAYMENT)
@place_order.on(OrderCancelled, when=(Waiting.STOCK, Waiting.PAYMENT))
async def refused(saga: Run[OrderData]) -> None:
    """Undo."""
    saga.fail(type(saga.event).__name__)


@place_order.on_end
async def ended(saga: Run[OrderData]) -> None:
    """Tell the end."""
    saga.emit(OrderFinished(order_id=saga.key, status=saga.status))


# ── the participants ─────────────────────────────────────────────────────────────────────────────


class NewAnswer(BaseModel):
    """What a participant has done for an order; one row for each order and participant."""

    name: str


class Answer(NewAnswer, Record[str]):
    """The row, whose id is the name of the participant and that of the order."""


class NewMovement(BaseModel):
    """A command that has arrived."""

    order_id: UUID
    command: str


class Movement(NewMovement, Record):
    """The row of a command, whose id derives from its claim."""


ANSWERS = Resource("answers", record=Answer, create=NewAnswer, update=NewAnswer)
MOVEMENTS = Resource(
    "movements", record=Movement, create=NewMovement, update=NewMovement, filterable=("order_id",)
)


class Base(DeclarativeBase):
    """The tables of the data service."""


class AnswerTable(RecordColumns, Base):
    """The table `answers`."""

    __tablename__ = "answers"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class MovementTable(RecordColumns, Base):
    """The table `movements`."""

    __tablename__ = "movements"

    order_id: Mapped[UUID]
    command: Mapped[str]


participants = RobustConsumer("saga_proof.participants", concurrency=16)


async def note(postgres: PostgresDataClient, order_id: UUID, command: str) -> None:
    """Write the movement of a command."""
    await postgres.create(MOVEMENTS, NewMovement(order_id=order_id, command=command))


async def answer(postgres: PostgresDataClient, key: str, name: str, done: Event, undone: Event) -> None:
    """Do it once for an order, and answer by what the row says."""
    try:
        async with postgres.transaction() as tx:
            tx.create(ANSWERS, NewAnswer(name=name), id=key)
            tx.emit(done)
    except UniqueViolationError:
        row = await postgres.get(ANSWERS, key)
        async with postgres.transaction(step="again") as tx:
            tx.emit(done if row.name == name else undone)


async def take_back(postgres: PostgresDataClient, key: str, name: str, undone: Event) -> None:
    """Take it back, also before it was done."""
    async with postgres.transaction() as tx:
        tx.upsert(ANSWERS, key, NewAnswer(name=name))
        tx.emit(undone)


@participants.on(Reserve, retry=RETRY)
async def reserve(command: Reserve, postgres: PostgresDataClient) -> None:
    """Reserve."""
    key = command.order_id
    await note(postgres, key, "reserve")
    done, undone = Reserved(order_id=key), Released(order_id=key)
    await answer(postgres, f"stock {key}", "reserved", done, undone)


@participants.on(Release, retry=RETRY)
async def release(command: Release, postgres: PostgresDataClient) -> None:
    """Release."""
    key = command.order_id
    await note(postgres, key, "release")
    await take_back(postgres, f"stock {key}", "released", Released(order_id=key))


@participants.on(Charge, retry=RETRY)
async def charge(command: Charge, postgres: PostgresDataClient) -> None:
    """Charge, refuse, or say nothing."""
    key = command.order_id
    await note(postgres, key, "charge")
    match command.kind:
        case Kind.SILENT:
            return
        case Kind.REFUSED:
            done: Event = ChargeRefused(order_id=key)
        case _:
            done = Charged(order_id=key)
    await answer(postgres, f"payment {key}", "charged", done, ChargeRefused(order_id=key))


@participants.on(Refund, retry=RETRY)
async def refund(command: Refund, postgres: PostgresDataClient) -> None:
    """Refund."""
    key = command.order_id
    await note(postgres, key, "refund")
    await take_back(postgres, f"payment {key}", "refunded", Refunded(order_id=key))


@participants.on(Ship, retry=RETRY)
async def ship(command: Ship, postgres: PostgresDataClient) -> None:
    """Ship."""
    key = command.order_id
    await note(postgres, key, "ship")
    await answer(postgres, f"shipment {key}", "shipped", Shipped(order_id=key), Shipped(order_id=key))


# ── processes ────────────────────────────────────────────────────────────────────────────────────


class Settings(PostgresSettings):
    """The settings of the data service."""

    service_name: str = "db_postgres_service"


async def consume(consumer: RobustConsumer, steps: Steps | None = None) -> None:
    """Run a consumer until SIGTERM, or until a deadly step."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    if steps is not None:
        loop.set_task_factory(steps.task_factory)
    broker = os.environ["RABBITMQ_URL"]
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect_redis(os.environ["REDIS_URL"], timeout_seconds=5))
        guard = CountingGuard(
            redis, lease_seconds=LEASE_SECONDS, max_takeovers=MAX_TAKEOVERS, steps=steps or Steps(None)
        )
        publisher = await stack.enter_async_context(RobustPublisher(broker, service=SERVICE))
        connection = await stack.enter_async_context(BrokerConnection(broker, name=consumer.name))
        postgres = await stack.enter_async_context(
            PostgresDataClient(os.environ["POSTGRES_SERVICE_URL"], service=SERVICE)
        )
        providers = {PostgresDataClient: postgres}
        await stack.enter_async_context(
            consumer.running(connection, publisher=publisher, providers=providers, guard=guard)
        )
        ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)
        os.write(ledger, f"{consumer.name} {os.getpid()}\n".encode())
        os.close(ledger)
        await stopped.wait()


def fork_workers() -> None:
    """Fork a worker of the saga for each line of the input, as `tests.proofs._crashing` does, until it ends."""
    setattr(_sweep, "SWEEP_SECONDS", SWEEP_SECONDS)  # noqa: B010 - constants to type checkers
    setattr(_sweep, "OVERDUE", OVERDUE)  # noqa: B010
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(consume(place_order.consumer, Steps(None if line.strip() == "-" else int(line))))
            os._exit(0)


if __name__ == "__main__":
    match sys.argv[1]:
        case "data":
            run_api(
                create_data_service(
                    Settings, {ANSWERS: AnswerTable, MOVEMENTS: MovementTable, **saga_tables()}
                )
            )
        case "participants":
            asyncio.run(consume(participants))
        case _:
            fork_workers()
