"""The two brokers that the conformance tests run on: the development broker, and RabbitMQ."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection

from hybridkit.dev import DevelopmentBroker
from hybridkit.testing._isolation import unique_name


@pytest.fixture(scope="session")
def development_broker() -> Iterator[DevelopmentBroker]:
    """In a thread of its own, so that blocking clients can use it; it knows one user, as RabbitMQ does."""
    started: Future[tuple[DevelopmentBroker, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        async with DevelopmentBroker(users={"guest": "guest"}) as broker:
            stop = asyncio.Event()
            started.set_result((broker, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    broker, loop, stop = started.result(10)
    yield broker
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


@pytest.fixture(params=["development", pytest.param("rabbitmq", marks=pytest.mark.real_server)])
def amqp_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty virtual host: once on the development broker, once on RabbitMQ."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("rabbitmq_url"))
    broker: DevelopmentBroker = request.getfixturevalue("development_broker")
    return broker.url_for(unique_name())


@pytest.fixture
async def connection(amqp_url: str) -> AsyncGenerator[AbstractConnection]:
    """An unmodified aio-pika connection, one that doesn't heal."""
    async with await aio_pika.connect(amqp_url) as connection:
        yield connection


@pytest.fixture
async def channel(connection: AbstractConnection) -> AbstractChannel:
    """A channel with confirms, on which a returned message raises."""
    return await connection.channel(on_return_raises=True)


@pytest.fixture
def broker_version(connection: AbstractConnection) -> tuple[int, ...]:
    """What the broker says it is; the development broker follows RabbitMQ 4.3."""
    assert connection.transport is not None
    properties = connection.transport.connection.server_properties
    return tuple(int(part) for part in str(properties["version"]).split("."))
