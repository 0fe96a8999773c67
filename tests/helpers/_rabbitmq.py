"""RabbitMQ as another client library uses it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel


@asynccontextmanager
async def plain_channel(url: str) -> AsyncGenerator[AbstractChannel]:
    """Open a channel of plain aio-pika on a connection that nothing else uses."""
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel()
