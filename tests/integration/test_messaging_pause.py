"""A consumer whose handlers need something that is down: it stops, tells why, and goes on when that is back."""

import asyncio
from typing import Any

import pytest

from hybridkit.adapters._running import start_consumers
from hybridkit.coordination import connect_redis
from hybridkit.errors import UnavailableError
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import BrokerConnection, Order, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming import _delivery as delivery_module
from hybridkit.messaging._consuming import _pause_gate as pause_gate_module
from hybridkit.observability import metrics
from hybridkit.retry import Retry
from hybridkit.testing import FaultProxy
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

QUEUE = "tests.paused"
DOWN = "UnavailableError: db_postgres_service does not answer"


class Wanted(Event, type="pause.wanted", key="number"):
    number: int = 0


class Dependency:
    """Something that handlers need, and what they did with it."""

    def __init__(self, *, crowd: int = 1) -> None:
        self.is_up = False
        self._crowd = asyncio.Barrier(crowd)
        self.asked = 0
        self.done: list[int] = []

    async def use(self, number: int) -> None:
        self.asked += 1
        if self.asked <= self._crowd.parties:
            await self._crowd.wait()
        if not self.is_up:
            raise UnavailableError("db_postgres_service does not answer")
        self.done.append(number)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pause_gate_module, "PROBES", Retry(first_seconds=0.05, cap_seconds=0.2, attempts=10**6)
    )


@pytest.fixture
def dependency() -> Dependency:
    return Dependency()


def consumer_of(dependency: Dependency, **options: Any) -> RobustConsumer:
    """A consumer that gives up after the first failure, and pauses where the dependency is down."""
    consumer = RobustConsumer(QUEUE, **options)

    @consumer.on(Wanted, retry=Retry.immediate(attempts=1).pause_on(UnavailableError))
    async def handle(event: Wanted) -> None:
        await dependency.use(event.number)

    return consumer


def copies() -> float:
    """How many messages went to a delay level."""
    return sum(
        sample.value
        for metric in metrics.events_retried.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["consumer"] == QUEUE
    )


def gauge() -> float:
    return float(metrics.consumer_paused.labels(QUEUE)._value.get())


@pytest.mark.parametrize("order", [None, Order.SKIP], ids=["unordered", "ordered"])
async def test_nothing_fails_while_a_dependency_is_down(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    dependency: Dependency,
    broker: Any,
    order: Order | None,
) -> None:
    """Of 200 messages a few are tried; none makes a copy, none counts a failure, and all run once when it is back."""
    consumer = consumer_of(dependency, concurrency=4, order=order)
    before = copies()
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Wanted(number=n) for n in range(200))
        await until(lambda: consumer.paused is not None)
        assert consumer.paused
        assert consumer.paused.reason == DOWN
        assert (consumer.is_ready, gauge()) == (False, 1)
        asked = dependency.asked
        await until(lambda: dependency.asked >= asked + 3)  # probes, one at a time
        in_hand = 12 if order is None else 120
        assert dependency.asked <= 12
        assert consumer.in_flight <= in_hand
        assert (await broker.state(QUEUE))[0] >= 200 - in_hand
        dependency.is_up = True
        await until(lambda: len(dependency.done) == 200)
        await until(lambda: consumer.in_flight == 0)
        assert (consumer.is_ready, gauge()) == (True, 0)
    assert sorted(dependency.done) == list(range(200))
    assert copies() == before
    assert await broker.state(f"{QUEUE}.dlq") == (0, 0)


async def test_readiness_names_the_pause(
    publisher: RobustPublisher, connection: BrokerConnection, dependency: Dependency
) -> None:
    """`/ready` is red with the reason, and green again when the dependency is back."""
    consumer = consumer_of(dependency)
    resources = ServiceResources()
    resources._providers.update(
        {BrokerConnection: connection, RobustPublisher: publisher, IdempotencyGuard: None}
    )
    await start_consumers(resources, [consumer], providers={})
    try:
        await publisher.publish(Wanted())
        await until(lambda: consumer.paused is not None)
        state = (await resources.health.readiness()).dependencies[QUEUE]
        assert not state.up
        assert state.detail
        assert state.detail.startswith("UnavailableError: paused since 20")
        assert state.detail.endswith(f" by {DOWN}")
    finally:
        await consumer.drain(budget_seconds=5)


async def test_a_drain_in_a_pause_ends_at_once(
    publisher: RobustPublisher, connection: BrokerConnection, dependency: Dependency, broker: Any
) -> None:
    """What is in hand goes back to the queue."""
    consumer = consumer_of(dependency, concurrency=2)
    await consumer.start(connection, publisher=publisher)
    await publisher.publish_many(Wanted(number=n) for n in range(10))
    await until(lambda: consumer.paused is not None)
    async with asyncio.timeout(60):
        assert await consumer.drain(budget_seconds=60)
    assert (await broker.state(QUEUE))[0] == 10
    assert gauge() == 0


async def test_what_is_in_hand_for_too_long_goes_round_and_one_message_is_tried(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    dependency: Dependency,
    broker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the broker's own timeout; then the queue has a consumer with one message only."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 5.5)
    consumer = consumer_of(dependency, concurrency=2, timeout_seconds=5)
    before = copies()
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Wanted(number=n) for n in range(20))
        await until(lambda: copies() >= before + 6)
        await until(lambda: consumer.in_flight <= 1)
        asked = dependency.asked
        await until(lambda: dependency.asked >= asked + 3)
        assert consumer.in_flight <= 2  # the one to try with, and one that is on its way round
        dependency.is_up = True
        await until(lambda: len(dependency.done) == 20)
    assert sorted(dependency.done) == list(range(20))
    assert await broker.state(f"{QUEUE}.dlq") == (0, 0)


async def test_a_pause_survives_the_connection(
    publisher: RobustPublisher, dependency: Dependency, broker: Any
) -> None:
    """The new channel takes no more than one message to try with."""
    consumer = consumer_of(dependency, concurrency=2)
    async with (
        broker.proxied() as (proxy, url),
        BrokerConnection(url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        await publisher.publish_many(Wanted(number=n) for n in range(20))
        await until(lambda: consumer.paused is not None)
        paused = consumer.paused
        proxy.reset()
        asked = dependency.asked
        await until(lambda: dependency.asked >= asked + 3)
        assert consumer.paused is paused
        dependency.is_up = True
        await until(lambda: len(set(dependency.done)) == 20)


async def test_a_guard_without_redis_pauses_the_consumer(
    publisher: RobustPublisher, connection: BrokerConnection, dependency: Dependency, redis_url: str
) -> None:
    """Nothing may run that Redis doesn't know of; nothing fails either."""
    dependency.is_up = True
    consumer = consumer_of(dependency)
    host, port = redis_url.rpartition("@")[2].removeprefix("redis://").split("/")[0].split(":")
    async with (
        FaultProxy(host, int(port)) as proxy,
        connect_redis(proxy.url_for(redis_url)) as redis,
    ):
        guard = IdempotencyGuard(redis, when_down=RedisDown.STRICT)
        async with consumer.running(connection, publisher=publisher, guard=guard):
            proxy.freeze()
            await publisher.publish_many(Wanted(number=n) for n in range(5))
            await until(lambda: consumer.paused is not None)
            assert consumer.paused
            assert "the idempotency guard can't reach Redis" in consumer.paused.reason
            assert dependency.done == []
            proxy.let_pass()
            await until(lambda: len(dependency.done) == 5)
    assert sorted(dependency.done) == list(range(5))


@pytest.mark.parametrize("order", [None, Order.SKIP], ids=["unordered", "ordered"])
async def test_a_connection_that_is_lost_in_a_pause_makes_it_no_longer(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    monkeypatch: pytest.MonkeyPatch,
    order: Order | None,
) -> None:
    """Those who waited can't be probes any more. If each of them cost an interval, this would take days."""
    days = 36 * 3600.0
    monkeypatch.setattr(
        pause_gate_module, "PROBES", Retry(first_seconds=0.05, cap_seconds=days, attempts=10**6)
    )
    dependency = Dependency(crowd=24)  # a message that came alone would keep the others from coming
    consumer = consumer_of(dependency, concurrency=24, order=order)
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Wanted(number=number) for number in range(60))
        await until(lambda: consumer.paused is not None)
        assert consumer.in_flight >= 24
        open_connection = await connection.opened()
        open_connection.abort()
        await open_connection.lost()
        await until(lambda: connection.is_ready)
        dependency.is_up = True
        await until(lambda: sorted(dependency.done) == list(range(60)))
        await until(lambda: consumer.is_ready)
