"""A queue and its messages, as the tests of both brokers use them through aio-pika."""

import asyncio
from typing import Any

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from tests.helpers import until


async def declare(channel: AbstractChannel, name: str = "queue", /, **arguments: Any) -> AbstractQueue:
    """Declare a durable queue; the arguments are named with `_` in place of `-`."""
    named = {key.replace("_", "-"): value for key, value in arguments.items()}
    return await channel.declare_queue(name, durable=True, arguments=named)


async def put(channel: AbstractChannel, *bodies: str, queue: str = "queue", **options: Any) -> None:
    """Publish messages to a queue."""
    for body in bodies:
        await channel.default_exchange.publish(Message(body.encode(), **options), queue)


async def get(queue: AbstractQueue, **options: Any) -> AbstractIncomingMessage:
    """Wait for the next message of a queue."""
    async with asyncio.timeout(60):
        while (message := await queue.get(fail=False, **options)) is None:  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.01)
        return message


async def bodies(queue: AbstractQueue, count: int) -> list[str]:
    """Return the bodies of the next messages, which stay unacknowledged."""
    return [(await get(queue)).body.decode() for _ in range(count)]


async def depth(channel: AbstractChannel, name: str = "queue") -> int:
    """Return the number of ready messages."""
    count = (await channel.declare_queue(name, passive=True)).declaration_result.message_count
    assert count is not None
    return count


class Inbox:
    """A consumer that settles nothing."""

    def __init__(self) -> None:
        self.messages: list[AbstractIncomingMessage] = []

    async def take(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.messages]

    async def receives(self, count: int) -> list[AbstractIncomingMessage]:
        await until(lambda: len(self.messages) >= count)
        return self.messages
