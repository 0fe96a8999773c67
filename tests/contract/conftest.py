"""The two brokers that the conformance tests run on: the development broker, and RabbitMQ."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection

from hybridkit.dev import DevelopmentBroker, Server
from hybridkit.testing._isolation import unique_name
from tests.helpers.faulty_service import MakeTransport


@contextmanager
def broker_in_thread() -> Generator[tuple[DevelopmentBroker, asyncio.AbstractEventLoop]]:
    """A development broker and its event loop, in a thread of its own, so that blocking clients can use it."""
    started: Future[tuple[DevelopmentBroker, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        # One user, as RabbitMQ has.
        async with DevelopmentBroker(users={"guest": "guest"}) as broker:
            stop = asyncio.Event()
            started.set_result((broker, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    broker, loop, stop = started.result(10)
    try:
        yield broker, loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture(scope="session")
def development_broker() -> Iterator[DevelopmentBroker]:
    """One for all tests; each has a virtual host of its own."""
    with broker_in_thread() as (broker, _):
        yield broker


@dataclass(frozen=True)
class Alarm:
    """A broker with nothing in it that can be told that its memory is full, and that it isn't."""

    url: str
    raise_it: Callable[[], object]
    end_it: Callable[[], object]


@pytest.fixture(params=["development", pytest.param("rabbitmq", marks=pytest.mark.real_server)])
def memory_alarm(request: pytest.FixtureRequest) -> Iterator[Alarm]:
    """A broker of the test's own: the development broker, and RabbitMQ."""
    if request.param == "rabbitmq":
        server: Server = request.getfixturevalue("own_rabbitmq_server")
        watermark = partial(server.ctl, "set_vm_memory_high_watermark")
        yield Alarm(server.url, partial(watermark, "0"), partial(watermark, "0.6"))
        return
    with broker_in_thread() as (broker, loop):
        faults = broker.faults
        yield Alarm(
            broker.url,
            lambda: loop.call_soon_threadsafe(faults.block),
            lambda: loop.call_soon_threadsafe(faults.unblock),
        )


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


@pytest.fixture(params=["httpx", "http1"])
def transport(request: pytest.FixtureRequest) -> MakeTransport:
    """Make the transport of a client: httpx's, or None for our own over HTTP/1.1."""
    return httpx.AsyncHTTPTransport if request.param == "httpx" else lambda: None
