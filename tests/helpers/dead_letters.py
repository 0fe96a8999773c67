"""Dead letters on a real RabbitMQ: a consumer that fails when it is told to, and its two queues."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika

from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import (
    BrokerConnection,
    DeadLetter,
    RobustConsumer,
    RobustPublisher,
)
from hybridkit.retry import Retry
from tests.helpers import until

NO_LIMIT = 1_000_000_000


class Paid(Event, type="letters.paid"):
    number: int = 0


class Shipped(Event, type="letters.shipped"):
    number: int = 0


class Work:
    """A consumer, what its handlers have done, and the error with which they fail meanwhile."""

    def __init__(self, url: str, publisher: RobustPublisher) -> None:
        self.publisher = publisher
        self.numbers: list[int] = []
        self.error: Exception | None = None
        self.consumer = RobustConsumer("letters.work")
        self.consumer.on(Paid, retry=Retry.immediate(attempts=2))(self._pay)
        self.consumer.on(Shipped, retry=Retry.immediate(attempts=1))(self._ship)
        self._url = url
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def running(self, guard: IdempotencyGuard | None = None) -> AsyncGenerator[None]:
        async with (
            BrokerConnection(self._url, name="tests") as connection,
            self.consumer.running(connection, publisher=self.publisher, guard=guard),
        ):
            yield

    async def done(self, count: int) -> list[int]:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self.numbers) >= count)
        return self.numbers

    async def _pay(self, event: Paid) -> None:
        await self._add(event.number)

    async def _ship(self, event: Shipped) -> None:
        await self._add(event.number)

    async def _add(self, number: int) -> None:
        if self.error is not None:
            raise self.error
        async with self._changed:
            self.numbers.append(number)
            self._changed.notify_all()


async def fill(broker: Any, *bodies: object, queue: str = "letters.work.dlq", **options: Any) -> None:
    async with broker.channel() as channel:
        for body in bodies:
            message = aio_pika.Message(str(body).encode(), delivery_mode=2, **options)
            await channel.default_exchange.publish(message, routing_key=queue)


async def until_there_are(count: int, queue: str, broker: Any) -> None:
    async def are_there() -> bool:
        return int((await broker.state(queue))[0]) >= count

    await until(are_there)


def numbers(letters: list[DeadLetter]) -> list[int]:
    return [int(letter.body) for letter in letters]
