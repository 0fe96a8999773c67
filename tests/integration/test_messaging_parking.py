"""A key that is parked: what comes after a dead letter follows it, in order, whoever consumes, until it is redriven."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aio_pika
import orjson
import pytest

from hybridkit.coordination import connect_redis
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, DeadLetters, Order, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming import _parked_keys as parked_keys_module
from hybridkit.messaging._consuming import _subscription as subscription_module
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

QUEUE = "tests.accounts"


class Booked(Event, type="parking.booked", key="account"):
    account: int
    number: int


class Service:
    """A consumer that can be started again, and what its handler is to refuse."""

    def __init__(self, connection: BrokerConnection, publisher: RobustPublisher, guard: Any) -> None:
        self.refused: set[int] = set()
        self.done: list[int] = []
        self.tried: list[int] = []
        self.consumer = RobustConsumer(QUEUE, order=Order.PARK)
        self._options: Any = {"publisher": publisher, "guard": guard}
        self._connection = connection
        self._publisher = publisher

        @self.consumer.on(Booked, retry=Retry.immediate(attempts=1))
        async def book(event: Booked) -> None:
            self.tried.append(event.number)
            if event.number in self.refused:
                raise ValueError("refused")
            self.done.append(event.number)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self.consumer.running(self._connection, **self._options):
            yield
            await until(lambda: self.consumer.in_flight == 0)

    def has_done(self, number: int) -> bool:
        return number in self.done

    async def mark(self, *entries: bytes) -> None:
        """Write these into the log of parked keys."""
        forward = self._publisher._writer.forward
        await asyncio.gather(
            *(forward(OutgoingMessage("", f"{QUEUE}.parked", entry, {})) for entry in entries)
        )

    async def publish(self, *numbers: int, account: int = 1) -> None:
        await self._publisher.publish_many(Booked(account=account, number=n) for n in numbers)


@pytest.fixture
async def service(rabbitmq_url: str, redis_url: str) -> AsyncGenerator[Service]:
    async with (
        connect_redis(redis_url, timeout_seconds=10) as redis,
        RobustPublisher(rabbitmq_url, service="tests") as publisher,
        BrokerConnection(rabbitmq_url, name="tests") as connection,
    ):
        yield Service(connection, publisher, IdempotencyGuard(redis))


@pytest.fixture
def letters(rabbitmq_url: str) -> DeadLetters:
    return DeadLetters(rabbitmq_url, f"{QUEUE}.dlq")


async def reasons(letters: DeadLetters, count: int) -> dict[str | None, int]:
    """Why they are dead, as soon as there are so many."""
    async with asyncio.timeout(60):
        while (summary := await letters.summary()).messages < count:  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.05)
    return {group.reason: group.count for group in summary.groups}


async def test_a_parked_key_stops_until_it_is_redriven(
    service: Service, letters: DeadLetters, broker: Any
) -> None:
    """Across a restart, and while other keys go on; what comes during the redrive keeps its place too."""
    service.refused = {1}
    async with service.running():
        await service.publish(1, 2, 3)
        await service.publish(10, account=2)
        assert await reasons(letters, 3) == {"exhausted": 1, "key_parked": 2}
        await until(lambda: service.done == [10])
    async with service.running():
        await service.publish(4)
        await service.publish(11, account=2)
        await reasons(letters, 4)
        await until(lambda: service.done == [10, 11])
        service.refused = set()
        await letters.redrive()
        await until(lambda: service.done == [10, 11, 1, 2, 3, 4])
        await service.publish(5)
        await until(lambda: service.done[-1] == 5)
    async with service.running():
        await service.publish(6)
        await until(lambda: service.done[-1] == 6)
        assert await broker.state(f"{QUEUE}.parked") == (0, 0)
    assert (await letters.summary()).messages == 0
    assert [number for number in service.tried if number < 10] == [1, 1, 2, 3, 4, 5, 6]


async def test_a_key_that_fails_again_is_parked_again(service: Service, letters: DeadLetters) -> None:
    """Its successors, redriven with it, go back behind it."""
    service.refused = {1}
    async with service.running():
        await service.publish(1, 2)
        await reasons(letters, 2)
        await letters.redrive()
        await reasons(letters, 2)
        await until(lambda: service.tried == [1, 1])
        await service.publish(3)
        await reasons(letters, 3)
        service.refused = set()
        await letters.redrive()
        await until(lambda: service.done == [1, 2])
        assert await reasons(letters, 1) == {"key_parked": 1}  # it was redriven less often than what failed
        await letters.redrive()
        await until(lambda: service.done == [1, 2, 3])


async def test_a_queue_of_marks_that_is_gone_is_declared_again(
    service: Service, letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting it frees all keys; parking another one brings it back."""
    monkeypatch.setattr(subscription_module, "UNEXPECTED_PAUSE_SECONDS", 0.01)
    service.refused = {1, 2}
    async with service.running():
        await service.publish(1)
        await reasons(letters, 1)
        async with broker.channel() as channel:
            await channel.queue_delete(f"{QUEUE}.parked")
        await service.publish(2, account=2)
        await reasons(letters, 2)
        await service.publish(3)
        await until(lambda: service.done == [3])
        await service.publish(4, account=2)
        await reasons(letters, 3)
    assert service.done == [3]


async def test_marks_that_can_not_be_read_are_asked_for_again(
    service: Service, letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else reads them; nothing runs before they are known. What nobody can read is removed."""
    monkeypatch.setattr(subscription_module, "UNEXPECTED_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(parked_keys_module, "READ_SECONDS", 0.3)
    async with service.running():
        pass
    async with broker.channel() as channel:
        queue = await channel.get_queue(f"{QUEUE}.parked")
        await channel.default_exchange.publish(aio_pika.Message(b"no json"), routing_key=queue.name)
        tag = await queue.consume(_nothing)
        async with service.running():
            await service.publish(1)
            assert service.consumer._run
            open_channel = service.consumer._run._channel.current
            assert open_channel
            await until(lambda: not open_channel.is_open)
            assert service.done == []
            await queue.cancel(tag)
            await channel.close()
            await until(lambda: service.done == [1])
    assert (await broker.state(f"{QUEUE}.parked"))[0] == 0


async def test_a_consumer_works_on_however_many_keys_are_parked(service: Service, broker: Any) -> None:
    """RabbitMQ leaves 2,000 messages with a reader that names no number; whoever takes over reads them all."""
    async with service.running():
        pass
    marks = ({"key": str(n % 2_500), "generation": 0, "last": str(n)} for n in range(2_600))
    await service.mark(*map(orjson.dumps, marks))
    for number in (1, 2):
        async with service.running():
            await service.publish(number, account=2_500)
            await service.publish(-number, account=7)
            await until(partial(service.has_done, number))
            assert service.consumer.is_ready
    assert service.done == [1, 2]
    assert (await broker.state(f"{QUEUE}.parked"))[0] < 10


async def _nothing(_: object) -> None: ...
