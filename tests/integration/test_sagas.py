"""Sagas on PostgreSQL, RabbitMQ and Redis: to every end, in a storm, against their timeouts, beside a poisoned one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped

from hybridkit.clients import AsgiTransport, MongoDataClient, PostgresDataClient
from hybridkit.coordination import connect_redis
from hybridkit.dataservice import RecordColumns, create_data_service, saga_collections, saga_tables
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.errors import RejectedError
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.ids import new_id
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import metrics
from hybridkit.sagas import SAGAS, NewSaga, Run, Saga, SagaRecord
from hybridkit.sagas._messages import timer_class
from hybridkit.sagas._sweep import Sweep
from hybridkit.settings import MongoSettings, PostgresSettings, SecretUrl
from tests.helpers import until
from tests.helpers.order_saga import (
    Charged,
    OrderCancelled,
    OrderPlaced,
    ReleaseStock,
    ReserveStock,
    Shipped,
    StockReleased,
    StockReserved,
    order_saga,
)
from tests.helpers.order_services import PAYMENTS, RESERVATIONS, SHIPMENTS, order_services

if TYPE_CHECKING:
    from hybridkit.resources import Resource

pytestmark = pytest.mark.real_server


class Base(DeclarativeBase):
    """The base of the tables of the services that the saga asks."""


class ReservationTable(RecordColumns, Base):
    """The reservations."""

    __tablename__ = "reservations"
    status: Mapped[str]


class PaymentTable(RecordColumns, Base):
    """The payments."""

    __tablename__ = "payments"
    status: Mapped[str]


class ShipmentTable(RecordColumns, Base):
    """The shipments."""

    __tablename__ = "shipments"
    status: Mapped[str]


class Stack:
    """A data service with its relay, and consumers that run on real servers."""

    def __init__(self, client: PostgresDataClient | MongoDataClient, publisher: RobustPublisher) -> None:
        self.client = client
        self.publisher = publisher

    async def begin(self, *events: Event) -> None:
        """Emit events as a service does that has written what they tell of."""
        for event in events:
            async with self.client.transaction() as tx:
                tx.emit(event)

    async def row(self, saga: Saga[Any], key: object) -> SagaRecord | None:
        return await self.client.get_or_none(SAGAS, saga.id_of(key))

    async def reaches(self, saga: Saga[Any], key: object, *labels: str) -> SagaRecord:
        """Wait until a saga is in one of these states, or has such a status, and return its row."""
        found: list[SagaRecord] = []

        async def is_there() -> bool:
            row = await self.row(saga, key)
            if row is not None and {row.state or "", row.status.value} & set(labels):
                found.append(row)
            return bool(found)

        await until(is_there)
        return found[0]


@asynccontextmanager
async def running(
    database: str, broker: str, redis_url: str, consumers: Sequence[RobustConsumer]
) -> AsyncGenerator[Stack]:
    """Run a data service on PostgreSQL, and these consumers."""
    async with migrating_connection(database) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    tables: dict[Resource[Any, Any, Any], type[RecordColumns]] = {
        RESERVATIONS: ReservationTable,
        PAYMENTS: PaymentTable,
        SHIPMENTS: ShipmentTable,
    }
    app = create_data_service(PostgresSettings, {**tables, **saga_tables()})
    app.state.settings = PostgresSettings(
        service_name="db_postgres_service", database_url=SecretUrl(database), rabbitmq_url=SecretUrl(broker)
    )
    client = PostgresDataClient("http://data", service="worker_service", transport=AsgiTransport(app))
    async with app.router.lifespan_context(app), consuming(client, broker, redis_url, consumers) as stack:
        yield stack


@asynccontextmanager
async def consuming(
    client: PostgresDataClient | MongoDataClient,
    broker: str,
    redis_url: str,
    consumers: Sequence[RobustConsumer],
) -> AsyncGenerator[Stack]:
    """Run consumers with a data client, each on a connection of its own."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect_redis(redis_url))
        publisher = await stack.enter_async_context(RobustPublisher(broker, service="worker_service"))
        await stack.enter_async_context(client)
        for consumer in consumers:
            deliveries = BrokerConnection(broker, name=consumer.name)
            await stack.enter_async_context(deliveries)
            await stack.enter_async_context(
                consumer.running(
                    deliveries,
                    publisher=publisher,
                    providers={type(client): client},
                    guard=IdempotencyGuard(redis),
                )
            )
        yield Stack(client, publisher)


async def test_an_order_goes_to_each_of_its_ends(
    postgres_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """One is shipped; three are undone, by a refusal, a dead letter and a cancellation; the books balance."""
    place_order = order_saga("saga_test.ends")
    consumers = [place_order.consumer, *order_services()]
    async with running(postgres_url, rabbitmq_url, redis_url, consumers) as stack:
        good, refused, failed, cancelled = (new_id() for _ in range(4))
        await stack.begin(
            OrderPlaced(order_id=good, total=Decimal(50)),
            OrderPlaced(order_id=refused, total=Decimal(13)),
            OrderPlaced(order_id=failed, total=Decimal(14)),
            OrderPlaced(order_id=cancelled, total=Decimal(5000)),
        )
        await stack.reaches(place_order, cancelled, "approval")
        await stack.begin(OrderCancelled(order_id=cancelled))
        done = await stack.reaches(place_order, good, "done")
        undone = [await stack.reaches(place_order, key, "undone") for key in (refused, failed, cancelled)]
        assert [entry.to_state for entry in done.history] == ["stock", "payment", "shipment", "done"]
        assert [row.reason for row in undone] == [
            "ChargeRefused",
            "failed command: command.charge (permanent)",
            "OrderCancelled",
        ]
        assert (await stack.client.get(SHIPMENTS, good)).status == "shipped"
        for key in (refused, failed, cancelled):
            assert (await stack.client.get(RESERVATIONS, key)).status == "released"
            assert (await stack.client.get(PAYMENTS, key)).status == "refunded"


async def test_a_command_that_is_given_up_fails_its_saga_at_once(
    postgres_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """Its consumer tells the saga before it makes a dead letter of it; nobody waits for the timeout."""
    place_order = order_saga("saga_test.dead_command")
    stock = RobustConsumer("saga_test.stock")

    @stock.on(ReserveStock)
    async def reserve(command: ReserveStock) -> None:
        raise RejectedError("there is no such article")

    @stock.on(ReleaseStock)
    async def release(command: ReleaseStock) -> None:
        raise RejectedError("there is no such article either")

    async with running(postgres_url, rabbitmq_url, redis_url, [place_order.consumer, stock]) as stack:
        order_id = new_id()
        await stack.begin(OrderPlaced(order_id=order_id, total=Decimal(50)))
        await stack.reaches(place_order, order_id, "undoing")

        async def needs_a_person() -> bool:
            row = await stack.row(place_order, order_id)
            return row is not None and row.error is not None

        await until(needs_a_person)
        row = await stack.reaches(place_order, order_id, "undoing")
        assert row.reason == "failed command: command.reserve_stock (permanent)"
        assert row.error == "undo 1 (command.release_stock) failed: permanent"
        assert [entry.event_type for entry in row.history[1:]] == ["command.failed"] * 2


async def test_a_lost_timer_is_sent_again(postgres_url: str, rabbitmq_url: str, redis_url: str) -> None:
    """The sweep finds the row whose time has passed, and its saga is undone although its timer never came."""
    place_order = order_saga("saga_test.lost_timer")
    async with running(postgres_url, rabbitmq_url, redis_url, [place_order.consumer]) as stack:
        order_id = new_id()
        await stack.begin(OrderPlaced(order_id=order_id, total=Decimal(50)))
        row = await stack.reaches(place_order, order_id, "stock")
        assert row.wake_at is not None
        sweep = Sweep(place_order, stack.client, stack.publisher)
        assert await sweep.look() == 0
        late = NewSaga.model_validate(row.model_dump(include=set(NewSaga.model_fields)))
        late.wake_at = row.wake_at - timedelta(minutes=17)
        await stack.client.replace(SAGAS, row, late)
        assert await sweep.look() == 1
        undoing = await stack.reaches(place_order, order_id, "undoing")
        assert undoing.reason == "timeout: stock"
        await sweep.measure()
        assert metrics.live_sagas.labels(place_order.name, "undoing")._value.get() == 1


class Ticked(Event, type="saga_test.ticked", key="meter_id"):
    """A meter has ticked."""

    meter_id: UUID
    number: int


class Meter(StrEnum):
    """What a meter waits for."""

    TICKS = "ticks"


class Ticks(BaseModel):
    """The ticks of a meter."""

    count: int = 0


def meter_saga(name: str) -> Saga[Ticks]:
    """Declare a saga that counts its events; the one with a negative number is more than it can take."""
    meter = Saga(name, data=Ticks, states=Meter, key="meter_id", concurrency=8)

    @meter.starts(Ticked)
    async def first(saga: Run[Ticks]) -> None:
        saga.data = Ticks(count=1)
        saga.wait(Meter.TICKS, timeout=timedelta(days=1))

    @meter.on(Ticked, when=Meter.TICKS)
    async def further(event: Ticked, saga: Run[Ticks]) -> None:
        if event.number < 0:
            raise ValueError("a meter does not tick backwards")
        saga.data.count += 1
        saga.stay()

    return meter


async def test_a_storm_of_events_for_one_saga_is_applied_whole(
    postgres_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """64 events at once on four replicas: each counts once, with few conflicts, and none is a dead letter."""
    name = "saga_test.storm"
    replicas = [meter_saga(name) for _ in range(4)]
    before = metrics.saga_conflicts.labels(name)._value.get()
    consumers = [replica.consumer for replica in replicas]
    async with running(postgres_url, rabbitmq_url, redis_url, consumers) as stack:
        meter_id = new_id()
        await stack.publisher.publish_many([Ticked(meter_id=meter_id, number=number) for number in range(64)])

        async def all_counted() -> bool:
            row = await stack.row(replicas[0], meter_id)
            return row is not None and row.data["count"] == 64

        await until(all_counted)
        row = await stack.row(replicas[0], meter_id)
        assert row is not None
        assert (row.steps, len(row.history)) == (64, 50)
        assert metrics.saga_conflicts.labels(name)._value.get() - before <= 2 * 64


async def test_a_reply_against_its_timeout_has_one_winner(
    postgres_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """Both arrive at once for each of 30 sagas on two replicas; one moves it, and the other is late or stale."""
    replicas = [order_saga("saga_test.race") for _ in range(2)]
    place_order = replicas[0]
    consumers = [replica.consumer for replica in replicas]
    async with running(postgres_url, rabbitmq_url, redis_url, consumers) as stack:
        keys = [new_id() for _ in range(30)]
        await stack.publisher.publish_many([OrderPlaced(order_id=key, total=Decimal(50)) for key in keys])
        for key in keys:
            await stack.reaches(place_order, key, "stock")
        timer = timer_class(place_order.name)
        await asyncio.gather(
            *(stack.publisher.publish(StockReserved(order_id=key)) for key in keys),
            *(stack.publisher.send(timer(saga_id=place_order.id_of(key), entry=1)) for key in keys),
        )
        rows = [await stack.reaches(place_order, key, "payment", "undoing") for key in keys]
        for row in rows:
            assert [entry.to_state for entry in row.history] in (["stock", "payment"], ["stock", "undoing"])


async def test_a_poisoned_saga_holds_up_no_other(
    postgres_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """Its error names the event and the cause, in its row and in the dead letter; another saga goes on meanwhile."""
    meter = meter_saga("saga_test.poisoned")
    meter.retry = meter.retry.never(ValueError)
    async with running(postgres_url, rabbitmq_url, redis_url, [meter.consumer]) as stack:
        bad, good = new_id(), new_id()
        await stack.publisher.publish_many([Ticked(meter_id=key, number=0) for key in (bad, good)])
        for key in (bad, good):
            await stack.reaches(meter, key, "ticks")
        poison = Ticked(meter_id=bad, number=-1)
        await stack.publisher.publish_many([poison, Ticked(meter_id=good, number=1)])

        async def is_told() -> bool:
            row = await stack.row(meter, bad)
            return row is not None and row.error is not None

        await until(is_told)
        row = await stack.row(meter, bad)
        assert row is not None
        assert row.error == (
            f"saga_test.ticked {poison.event_id}: ValueError: a meter does not tick backwards"
        )

        async def has_counted() -> bool:
            row = await stack.row(meter, good)
            return row is not None and row.data["count"] == 2

        await until(has_counted)


async def test_a_mongodb_without_transactions_is_enough(
    mongo_url: str, rabbitmq_url: str, redis_url: str
) -> None:
    """A move is one document with its events: one saga is done, one is undone, and a race has one winner."""
    place_order = order_saga("saga_test.on_mongodb", client=MongoDataClient)
    app = create_data_service(
        MongoSettings,
        saga_collections(),
        publisher=lambda: RobustPublisher(rabbitmq_url, service="db_mongo_service"),
    )
    app.state.settings = MongoSettings(service_name="db_mongo_service", database_url=SecretUrl(mongo_url))
    client = MongoDataClient("http://data", service="worker_service", transport=AsgiTransport(app))
    consumers = [place_order.consumer]
    async with (
        app.router.lifespan_context(app),
        consuming(client, rabbitmq_url, redis_url, consumers) as stack,
    ):
        publish, good, bad = stack.publisher.publish, new_id(), new_id()
        for key in (good, bad):
            await publish(OrderPlaced(order_id=key, total=Decimal(50)))
            await stack.reaches(place_order, key, "stock")
        await asyncio.gather(
            publish(OrderCancelled(order_id=bad)),
            stack.publisher.send(timer_class(place_order.name)(saga_id=place_order.id_of(bad), entry=1)),
            publish(StockReserved(order_id=good)),
        )
        await stack.reaches(place_order, bad, "undoing")
        await publish(StockReleased(order_id=bad))
        await stack.reaches(place_order, good, "payment")
        await publish(Charged(order_id=good))
        await stack.reaches(place_order, good, "shipment")
        await publish(Shipped(order_id=good))
        done = await stack.reaches(place_order, good, "done")
        assert [entry.to_state for entry in done.history] == ["stock", "payment", "shipment", "done"]
        undone = await stack.reaches(place_order, bad, "undone")
        assert [entry.to_state for entry in undone.history] == ["stock", "undoing", "undone"]
