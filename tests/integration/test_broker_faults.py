"""The faults of the development broker, as an unmodified aio-pika client meets them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed, ConnectionClosed, DeliveryError
from aiormq.exceptions import ConnectionInternalError, ConnectionNotImplemented
from pamqp import commands, frame

from hybridkit.dev import DevelopmentBroker, QueueState
from hybridkit.errors import MisuseError, ServerStartError
from tests.helpers import until
from tests.helpers.amqp import Inbox


@pytest.fixture
async def broker() -> AsyncGenerator[DevelopmentBroker]:
    async with DevelopmentBroker() as broker:
        yield broker


@pytest.fixture
async def connection(broker: DevelopmentBroker) -> AsyncGenerator[AbstractConnection]:
    async with await aio_pika.connect(broker.url) as connection:
        yield connection


@pytest.fixture
async def channel(connection: AbstractConnection) -> AbstractChannel:
    channel = await connection.channel()
    await channel.declare_queue("queue", durable=True)
    return channel


async def put(channel: AbstractChannel, body: str = "") -> None:
    await channel.default_exchange.publish(Message(body.encode()), "queue")


def putting(channel: AbstractChannel, body: str = "") -> asyncio.Task[None]:
    return asyncio.create_task(put(channel, body))


async def listen(channel: AbstractChannel, inbox: Inbox) -> str:
    """Consume the queue into the inbox, and return the consumer's tag."""
    return str(await (await channel.get_queue("queue")).consume(inbox.take))


# ── publishers ───────────────────────────────────────────────────────────────────────────────────


async def test_dropped_confirms(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """The messages are stored, and the confirm of a later publish does not include them."""
    broker.faults.drop_confirms(1)
    silent = putting(channel)
    await until(lambda: broker.queues()["queue"].ready == 1)
    broker.faults.freeze()
    # They are read at once, which is when confirms are put together.
    others = [putting(channel) for _ in range(5)]
    await asyncio.sleep(0)
    amqp: Any = await channel.get_underlay_channel()
    await until(amqp.write_queue.empty)
    broker.faults.thaw()
    await asyncio.wait_for(asyncio.gather(*others), 60)
    assert not silent.done()
    silent.cancel()


async def test_delayed_confirms(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """Each confirm is late until the fault is cleared."""
    broker.faults.delay_confirms(0.2)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await put(channel)
    assert loop.time() - started >= 0.2
    broker.faults.delay_confirms(60)
    late = putting(channel)
    await until(lambda: broker.queues()["queue"].ready == 2)
    broker.faults.clear()
    await put(channel)
    assert not late.done()
    late.cancel()


async def test_nacked_publishes(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """They reach no queue, and the next publish does."""
    broker.faults.nack_publishes(1)
    with pytest.raises(DeliveryError):
        await put(channel)
    assert broker.queues()["queue"].ready == 0
    await put(channel)
    assert broker.queues()["queue"].ready == 1


async def test_a_blocked_publisher(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """It is told when it publishes, its message waits unread, and consumers go on."""
    connection: Any = await channel.get_underlay_channel()
    ready = connection.connection.ready
    broker.faults.block("no memory left")
    waiting = putting(channel)
    unblocked = asyncio.create_task(ready())
    await until(connection.connection.write_queue.empty)
    async with await aio_pika.connect(broker.url) as other:
        await (await other.channel()).get_queue("queue")
    assert broker.queues()["queue"].ready == 0
    assert not waiting.done()
    broker.faults.unblock()
    await asyncio.wait_for(asyncio.gather(waiting, unblocked), 60)
    assert broker.queues()["queue"].ready == 1


# ── consumers ────────────────────────────────────────────────────────────────────────────────────


async def test_duplicated_deliveries(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """The message comes under two tags, and both can be settled."""
    inbox = Inbox()
    await listen(channel, inbox)
    broker.faults.duplicate_deliveries(1)
    await put(channel, "1")
    await put(channel, "2")
    first, twin, _ = await inbox.receives(3)
    assert inbox.bodies == ["1", "1", "2"]
    await twin.nack()
    await first.ack()
    await until(lambda: broker.queues()["queue"] == QueueState(ready=0, unacknowledged=1, consumers=1))


async def test_reordered_deliveries(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """The messages are held back until there are enough, and come in reverse order."""
    inbox = Inbox()
    await listen(channel, inbox)
    broker.faults.reorder_deliveries(3)
    for body in "1234":
        await put(channel, body)
    messages = await inbox.receives(4)
    assert inbox.bodies == ["3", "2", "1", "4"]
    assert [message.delivery_tag for message in messages] == [1, 2, 3, 4]


async def test_what_is_held_back_comes_when_the_faults_are_cleared(
    broker: DevelopmentBroker, channel: AbstractChannel
) -> None:
    """It goes to its consumer, or back to the queue when the consumer has ended."""
    inbox = Inbox()
    tag = await listen(channel, inbox)
    broker.faults.reorder_deliveries(10)
    await put(channel, "1")
    assert inbox.messages == []
    broker.faults.clear()
    await inbox.receives(1)
    broker.faults.reorder_deliveries(10)
    await put(channel, "2")
    await (await channel.get_queue("queue")).cancel(tag)
    broker.faults.clear()
    assert broker.queues()["queue"].ready == 1


async def test_cancelled_consumers(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """The queue and the unsettled messages of the consumers stay."""
    amqp: Any = await channel.get_underlay_channel()
    inbox = Inbox()
    tag = await listen(channel, inbox)
    await put(channel)
    await inbox.receives(1)
    assert broker.faults.cancel_consumers("queue") == 1
    await until(lambda: tag not in amqp.consumers)
    assert broker.queues()["queue"] == QueueState(ready=0, unacknowledged=1, consumers=0)
    assert broker.faults.cancel_consumers("nowhere") == 0


# ── channels and connections ─────────────────────────────────────────────────────────────────────


async def test_closed_channels(
    broker: DevelopmentBroker, connection: AbstractConnection, channel: AbstractChannel
) -> None:
    """They are closed with any code, for one queue or for all."""
    consuming = await connection.channel()
    await listen(consuming, Inbox())
    assert broker.faults.close_channels(406, "timed out", queue="queue") == 1
    with pytest.raises(ChannelPreconditionFailed, match="PRECONDITION_FAILED - timed out"):
        await (await consuming.get_underlay_channel()).closing
    await put(channel)
    assert broker.faults.close_channels() == 1


async def test_closed_connections(broker: DevelopmentBroker, connection: AbstractConnection) -> None:
    """The clients get the code and the text."""
    assert connection.transport is not None
    closing: asyncio.Future[Any] = connection.transport.connection.closing
    assert broker.faults.close_connections(320, "by hand") == 1
    with pytest.raises(ConnectionClosed, match="CONNECTION_FORCED - by hand"):
        await closing


@pytest.mark.parametrize("at_byte", [0, 1, 5, 8, 30, 200])
async def test_a_cut_connection(broker: DevelopmentBroker, at_byte: int) -> None:
    """Exactly that many bytes arrive before the connection ends."""
    broker.faults.cut("to_client", at_byte=at_byte)
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(b"AMQP\x00\x00\x09\x01")
    assert len(await reader.read()) == at_byte
    writer.close()
    broker.faults.clear()
    async with await aio_pika.connect(broker.url):
        pass


async def test_a_cut_on_the_way_in(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """A publish that is cut in the middle is not stored."""
    broker.faults.cut("to_server", at_byte=20)
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await put(channel, "x" * 100)
    assert broker.queues()["queue"].ready == 0


async def test_a_frozen_broker(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """Nothing answers, nothing is closed, and nothing is lost."""
    broker.faults.freeze()
    waiting = putting(channel)
    joining = asyncio.create_task(aio_pika.connect(broker.url))
    done, _ = await asyncio.wait({waiting, joining}, timeout=0.2)
    assert not done
    assert broker.queues()["queue"].ready == 0
    broker.faults.thaw()
    await asyncio.wait_for(waiting, 60)
    await (await asyncio.wait_for(joining, 60)).close()


async def test_a_fault_of_its_own_costs_one_connection(
    broker: DevelopmentBroker, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal error closes it with 541, and other connections go on."""
    async with await aio_pika.connect(broker.url) as other:
        theirs = await other.channel()
        amqp: Any = await channel.get_underlay_channel()

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(broker.virtual_host("/"), "route", fail)
        with pytest.raises(ConnectionInternalError, match="INTERNAL_ERROR"):
            await amqp.basic_publish(b"", routing_key="queue")
        monkeypatch.undo()
        await put(theirs)


# ── the broker itself ────────────────────────────────────────────────────────────────────────────


async def test_what_it_holds_can_be_looked_at(broker: DevelopmentBroker, channel: AbstractChannel) -> None:
    """Queues are listed by virtual host, and connections by name."""
    await put(channel)
    assert broker.queues() == {"queue": QueueState(ready=1, unacknowledged=0, consumers=0)}
    assert broker.queues("another") == {}
    async with await aio_pika.connect(broker.url, client_properties={"connection_name": "mine"}):
        assert "mine" in broker.connections
    assert "connections=1" in repr(broker)
    assert "ready=1" in repr(broker.virtual_host("/").queues["queue"])


async def test_only_its_users_may_connect() -> None:
    """The URL has the first of the users."""
    async with DevelopmentBroker(users={"me": "pass/word"}) as broker:
        assert broker.url == f"amqp://me:pass%2Fword@127.0.0.1:{broker.port}/"
        async with await aio_pika.connect(broker.url):
            pass
        with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
            await aio_pika.connect(broker.url.replace("me:", "you:"))


async def test_a_port_that_is_taken_is_named(broker: DevelopmentBroker) -> None:
    """A broker that was not entered has no URL."""
    with pytest.raises(ServerStartError, match=f"can't listen on port {broker.port}"):
        async with DevelopmentBroker(port=broker.port):
            pass
    with pytest.raises(MisuseError, match="enter it"):
        _ = DevelopmentBroker().url


NOT_THERE: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "transactions": lambda amqp: amqp.tx_select(),
    "streams": lambda amqp: amqp.queue_declare("q", durable=True, arguments={"x-queue-type": "stream"}),
    "priorities": lambda amqp: amqp.queue_declare("q", durable=True, arguments={"x-max-priority": 5}),
}


@pytest.mark.parametrize("feature", NOT_THERE)
async def test_what_it_does_not_have_is_not_implemented(connection: AbstractConnection, feature: str) -> None:
    """Priorities, streams and transactions are refused with 540."""
    channel = await connection.channel(publisher_confirms=False)
    with pytest.raises(ConnectionNotImplemented, match=f"the development broker has no {feature}"):
        await NOT_THERE[feature](await channel.get_underlay_channel())


async def test_leaving_ends_the_connections() -> None:
    """The clients notice at once."""
    async with DevelopmentBroker() as broker:
        connection = await aio_pika.connect(broker.url)
        assert connection.transport is not None
        closing: asyncio.Future[Any] = connection.transport.connection.closing
    await asyncio.wait({closing}, timeout=10)
    assert closing.done()
    assert broker.connections == []


async def test_a_client_that_does_not_read_gets_no_more(
    broker: DevelopmentBroker, channel: AbstractChannel
) -> None:
    """Its messages stay in the queue until it reads, also without acknowledgements."""
    for _ in range(300):
        await put(channel, "x" * 100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    greeting = [
        frame.marshal(commands.Connection.StartOk(mechanism="PLAIN", response="\0me\0me", locale="en_US"), 0),
        frame.marshal(commands.Connection.TuneOk(0, 131072, 0), 0),
        frame.marshal(commands.Connection.Open("/"), 0),
        frame.marshal(commands.Channel.Open(), 1),
        frame.marshal(commands.Basic.Consume(queue="queue", no_ack=True), 1),
    ]
    writer.write(b"AMQP\x00\x00\x09\x01" + b"".join(greeting))
    await until(lambda: broker.queues()["queue"].consumers == 1)
    assert broker.queues()["queue"].ready > 100
    async with asyncio.timeout(60):
        while broker.queues()["queue"].ready:
            await reader.read(1_000_000)
    writer.close()
