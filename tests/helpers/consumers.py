"""Consumers on a real RabbitMQ, what their handlers did, and a network that can fail."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from aio_pika.abc import AbstractIncomingMessage

from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, RobustConsumer
from hybridkit.testing import FaultProxy
from tests.helpers import plain_channel


class Consumed(Event, type="consumer.consumed"):
    number: int = 0


class Ledger:
    """What handlers did, and the words with which a test waits for it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._changed = asyncio.Condition()

    async def add(self, entry: Any) -> None:
        async with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    async def reaches(self, count: int) -> list[Any]:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self.entries) >= count)
        return self.entries


def consumer_of(ledger: Ledger, name: str = "tests.consumer", **options: Any) -> RobustConsumer:
    """A consumer that writes down the numbers of its events."""
    consumer = RobustConsumer(name, **options)

    @consumer.on(Consumed)
    async def note(event: Consumed) -> None:
        await ledger.add(event.number)

    return consumer


async def read(url: str, name: str) -> AbstractIncomingMessage:
    """The next message of the queue; waits for it."""
    async with plain_channel(url) as channel, asyncio.timeout(60):
        queue = await channel.get_queue(name)
        async with queue.iterator(no_ack=True) as messages:
            return await anext(messages)


async def waiting_in(url: str, name: str) -> int:
    """How many messages are ready in the queue."""
    async with plain_channel(url) as channel:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[tuple[FaultProxy, BrokerConnection]]:
    """A connection for consumers whose network can fail."""
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        BrokerConnection(proxy.url_for(url), name="tests") as connection,
    ):
        yield proxy, connection
