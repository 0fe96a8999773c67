"""The publisher on a real RabbitMQ: every call ends with its answer, or with an error that says what is known."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    AccessDeniedError,
    DeadlinePassedError,
    MisuseError,
    NackedError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    TopologyError,
    UnroutableError,
)
from hybridkit.events import Command, Event, decode_envelope
from hybridkit.events.cloudevents import decode_cloudevent
from hybridkit.ids import new_id
from hybridkit.messaging import BrokerConnection, Receipt, RobustConsumer, RobustPublisher
from hybridkit.messaging._amqp import _channel as channel_module
from hybridkit.messaging._amqp import _connection as connection_module
from hybridkit.messaging._publishing import _writer as writer_module
from hybridkit.testing import FaultProxy
from tests.helpers import error_of, plain_channel, until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


class Published(Event, type="publisher.published"):
    number: int = 0
    text: str = ""


class Unwanted(Event, type="publisher.unwanted"):
    number: int = 0


class Task(Command, queue="publisher_tasks", type="publisher.task"):
    number: int


async def bind_queue(url: str, name: str = "seen", *, arguments: dict[str, Any] | None = None) -> None:
    """Bind a queue to `publisher.published`."""
    async with plain_channel(url) as channel:
        queue = await channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind("hk.events", Published.message_type)


async def read(url: str, count: int, name: str = "seen") -> list[AbstractIncomingMessage]:
    """Take that many messages out of the queue, waiting for them."""
    async with plain_channel(url) as channel:
        queue = await channel.get_queue(name)
        found: list[AbstractIncomingMessage] = []
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                found.append(message)
                if len(found) == count:
                    break
        return found


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[tuple[FaultProxy, RobustPublisher]]:
    """Open a publisher behind a proxy."""
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        RobustPublisher(proxy.url_for(url), service="tests") as publisher,
    ):
        yield proxy, publisher


# ── the broker's answers ─────────────────────────────────────────────────────────────────────────


async def test_a_receipt_means_stored_in_a_queue(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """A published event is in the queue with its envelope, its headers and persistent, when the receipt is there."""
    await bind_queue(rabbitmq_url)
    event = Published(number=1)
    with bind(RequestContext(request_id="req-1", user_id="ann")):
        receipt = await publisher.publish(event)
    assert receipt == Receipt(event_id=event.event_id, routed=True)
    (message,) = await read(rabbitmq_url, 1)
    envelope = decode_envelope(message.body)
    assert (envelope.data, envelope.event_id) == (event, event.event_id)
    assert (envelope.service, envelope.request_id, envelope.user_id) == ("tests", "req-1", "ann")
    assert message.headers == {
        "hk_event_id": str(event.event_id),
        "x-request-id": "req-1",
        "x-user-id": "ann",
    }
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert (message.type, message.app_id) == (event.message_type, "tests")
    assert message.content_type == "application/json"


async def test_cloudevents_are_published_for_readers_of_them(rabbitmq_url: str) -> None:
    """With `cloudevents=True` the attributes are headers, and the body is the data alone."""
    event = Published(number=7)
    async with RobustPublisher(rabbitmq_url, service="tests", cloudevents=True) as publisher:
        await bind_queue(rabbitmq_url)
        with bind(RequestContext(request_id="req-1")):
            await publisher.publish(event)
    (message,) = await read(rabbitmq_url, 1)
    assert message.headers["cloudEvents_type"] == event.message_type
    assert message.headers["cloudEvents_requestid"] == "req-1"
    assert message.headers["hk_event_id"] == message.headers["cloudEvents_id"] == str(event.event_id)
    assert decode_cloudevent(message.body, message.headers).data == event


def test_another_event_loop_does_as_well(rabbitmq_url: str) -> None:
    """Publishing works on uvloop, whose transports are no subclasses of asyncio's."""

    async def there_and_back() -> None:
        consumer, seen = RobustConsumer("loops"), asyncio.Event()

        @consumer.on(Published)
        async def see(event: Published) -> None:
            seen.set()

        async with (
            RobustPublisher(rabbitmq_url, service="tests") as publisher,
            BrokerConnection(rabbitmq_url, name="tests") as connection,
            consumer.running(connection, publisher=publisher),
            asyncio.timeout(60),
        ):
            await publisher.publish(Published())
            await seen.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(there_and_back())


async def test_the_next_broker_is_taken_where_one_is_gone(rabbitmq_url: str) -> None:
    """Where nothing listens on the first address of a URL, the second one is used."""
    several = rabbitmq_url.replace("@", "@127.0.0.1:1,")
    async with RobustPublisher(several, service="tests") as publisher:
        assert not (await publisher.publish(Published(), allow_unrouted=True)).routed


async def test_what_nobody_waits_for_is_published_all_the_same(rabbitmq_url: str) -> None:
    """Leaving the publisher waits for the confirms of `publish_nowait`."""
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        await bind_queue(rabbitmq_url)
        for number in range(3):
            publisher.publish_nowait(Published(number=number))
    messages = await read(rabbitmq_url, 3)
    assert [decode_envelope(message.body).data.number for message in messages] == [0, 1, 2]


async def test_without_a_context_body_and_header_share_a_request_id(
    publisher: RobustPublisher, rabbitmq_url: str
) -> None:
    """Without a bound context one new request id is in both the envelope and the header."""
    await bind_queue(rabbitmq_url)
    await publisher.publish(Published())
    (message,) = await read(rabbitmq_url, 1)
    assert message.headers["x-request-id"] == orjson.loads(message.body)["request_id"]


async def test_an_event_that_no_queue_wants_is_an_error(publisher: RobustPublisher) -> None:
    """An event without a queue raises `UnroutableError`; aio-pika returns normally by default (trap 4)."""
    with pytest.raises(UnroutableError, match=r"no queue wants publisher\.unwanted") as caught:
        await publisher.publish(Unwanted())
    assert (caught.value.exchange, caught.value.routing_key) == ("hk.events", "publisher.unwanted")


async def test_an_event_that_nobody_may_be_waiting_for_says_so(publisher: RobustPublisher) -> None:
    """With `allow_unrouted` an event without a queue has a receipt with `routed=False`."""
    assert not (await publisher.publish(Unwanted(), allow_unrouted=True)).routed


async def test_a_message_that_the_broker_gives_back_is_not_published(
    publisher: RobustPublisher, rabbitmq_url: str
) -> None:
    """A full queue that rejects publishes raises `NackedError`."""
    await bind_queue(rabbitmq_url, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await publisher.publish(Published())
    with pytest.raises(NackedError, match=r"basic\.nack"):
        await publisher.publish(Published())


async def test_the_same_event_twice_is_two_messages_of_one_identity(
    publisher: RobustPublisher, rabbitmq_url: str
) -> None:
    """One event published twice is two messages with different `message_id`s and one event id (trap 5)."""
    await bind_queue(rabbitmq_url)
    event = Published()
    await asyncio.gather(publisher.publish(event), publisher.publish(event))
    first, second = await read(rabbitmq_url, 2)
    assert first.message_id != second.message_id
    assert first.headers["hk_event_id"] == second.headers["hk_event_id"] == str(event.event_id)


async def test_each_of_many_has_its_own_answer(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """`publish_many` returns a receipt or an error per event, in their order, over several batches."""
    await bind_queue(rabbitmq_url)
    events = [Published(number=n) if n % 3 else Unwanted(number=n) for n in range(600)]
    answers = await publisher.publish_many(events)
    for event, answer in zip(events, answers, strict=True):
        if isinstance(event, Published):
            assert answer == Receipt(event_id=event.event_id)
        else:
            assert isinstance(answer, UnroutableError)
    assert len(await read(rabbitmq_url, 400)) == 400


async def test_what_is_too_large_is_not_sent(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """An envelope over 16 MiB is refused before it is sent, whether as an event or as bytes."""
    with pytest.raises(PayloadTooLargeError, match="16777216 are allowed"):
        await publisher.publish(Published(text="x" * 16 * 1024 * 1024))
    with pytest.raises(PayloadTooLargeError):
        await publisher.publish_encoded(b" " * (16 * 1024 * 1024 + 1), event_type="a.b", event_id=new_id())


# ── commands, and envelopes that are bytes already ───────────────────────────────────────────────


async def test_a_command_goes_to_its_queue(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """A command without its queue is unroutable, and with it is delivered there."""
    with pytest.raises(UnroutableError, match="'publisher_tasks'"):
        await publisher.send(Task(number=1))
    async with plain_channel(rabbitmq_url) as channel:
        await channel.declare_queue("publisher_tasks", durable=True)
    await publisher.send(Task(number=2))
    (message,) = await read(rabbitmq_url, 1, "publisher_tasks")
    assert decode_envelope(message.body).data == Task(number=2)


async def test_a_delayed_command_arrives_later(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """A command with a delay of 3 s arrives after it, through the levels 1 and 0."""
    async with plain_channel(rabbitmq_url) as channel:
        queue = await channel.declare_queue("publisher_tasks", durable=True)
        await queue.bind("hk.delay.deliver", "*." * 17 + "publisher_tasks")
    began = asyncio.get_running_loop().time()
    await publisher.send(Task(number=1), delay_seconds=3)
    await read(rabbitmq_url, 1, "publisher_tasks")
    assert asyncio.get_running_loop().time() - began > 2.9


async def test_an_outbox_publishes_bytes(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """An encoded envelope of a type that isn't declared here is published as an event or as a command."""
    await bind_queue(rabbitmq_url)
    event_id = new_id()
    with bind(RequestContext(request_id="req-7")):
        receipt = await publisher.publish_encoded(
            b'{"a": 1}', event_type="publisher.published", event_id=event_id
        )
        await publisher.publish_encoded(
            b'{"a": 2}', event_type="some.command", event_id=event_id, queue="seen"
        )
        with pytest.raises(UnroutableError):
            await publisher.publish_encoded(b"{}", event_type="some.event", event_id=event_id)
        nobody = await publisher.publish_encoded(
            b"{}", event_type="some.event", event_id=event_id, allow_unrouted=True
        )
    assert (receipt.event_id, receipt.routed, nobody.routed) == (event_id, True, False)
    first, second = await read(rabbitmq_url, 2)
    assert (first.body, second.body) == (b'{"a": 1}', b'{"a": 2}')
    assert second.headers == {"hk_event_id": str(event_id), "x-request-id": "req-7"}
    assert (second.type, second.routing_key) == ("some.command", "seen")


# ── deadlines and cancellation ───────────────────────────────────────────────────────────────────


async def test_after_the_deadline_nothing_is_started(publisher: RobustPublisher) -> None:
    """A publish after the context's deadline sends nothing."""
    with bind(RequestContext().within(0)), pytest.raises(DeadlinePassedError):
        await publisher.publish(Unwanted())


async def test_a_broker_that_does_not_answer_leaves_the_outcome_unknown(rabbitmq_url: str) -> None:
    """A confirm that comes after the deadline leaves an `OutcomeUnknownError`, and the publisher keeps its channel."""
    await bind_queue_before_start(rabbitmq_url)
    async with proxied(rabbitmq_url) as (proxy, publisher):
        proxy.freeze()
        with bind(RequestContext().within(0.2)), pytest.raises(OutcomeUnknownError, match="publish it again"):
            await publisher.publish(Published(number=1))
        proxy.let_pass()
        await publisher.publish(Published(number=2))
        bodies = [decode_envelope(message.body).data for message in await read(rabbitmq_url, 2)]
    assert bodies == [Published(number=1), Published(number=2)]


async def bind_queue_before_start(url: str) -> None:
    async with RobustPublisher(url, service="tests"):
        await bind_queue(url)


async def test_a_silent_channel_is_replaced_then_its_connection(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traps 1 and 9: nothing hangs, and a broker that comes back is found again, whatever it was doing."""
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(writer_module, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(connection_module, "REPLY_SECONDS", 0.3)
    await bind_queue_before_start(rabbitmq_url)
    async with proxied(rabbitmq_url) as (proxy, publisher):
        proxy.swallow()
        with bind(RequestContext().within(0.2)):
            assert await error_of(publisher.publish(Published(number=1))) is OutcomeUnknownError
        await until(lambda: not publisher.is_ready)
        with bind(RequestContext().within(0.2)):
            assert await error_of(publisher.publish(Published(number=2))) is NotConnectedError
        proxy.let_pass()
        await publisher.publish(Published(number=3))
        bodies = [decode_envelope(message.body).data for message in await read(rabbitmq_url, 1)]
    assert bodies == [Published(number=3)]


async def test_a_publish_cancelled_before_it_began_is_not_sent(rabbitmq_url: str) -> None:
    """A publish that is cancelled while it waits for a connection is taken back."""
    await bind_queue_before_start(rabbitmq_url)
    async with proxied(rabbitmq_url) as (proxy, publisher):
        proxy.freeze()
        proxy.reset()
        await until(lambda: not publisher.is_ready)
        task = asyncio.create_task(publisher.publish(Published(number=1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.let_pass()
        await publisher.publish(Published(number=2))
        (message,) = await read(rabbitmq_url, 1)
    assert decode_envelope(message.body).data == Published(number=2)


# ── connections that end ─────────────────────────────────────────────────────────────────────────


async def test_a_connection_that_drops_leaves_what_was_sent_unknown_and_comes_back(rabbitmq_url: str) -> None:
    """A connection that drops fails the unconfirmed publish with `OutcomeUnknownError`, and the next one succeeds."""
    await bind_queue_before_start(rabbitmq_url)
    async with proxied(rabbitmq_url) as (proxy, publisher):
        proxy.freeze()
        task = asyncio.create_task(publisher.publish(Published(number=1)))
        await until(lambda: "unconfirmed=1" in repr(publisher._writer))
        proxy.reset()
        with pytest.raises(OutcomeUnknownError, match="before the broker answered"):
            await task
        assert not publisher.is_ready
        proxy.let_pass()
        await publisher.publish(Published(number=2))
        assert publisher.is_ready


async def test_an_exchange_that_was_deleted_is_declared_again(
    publisher: RobustPublisher, rabbitmq_url: str
) -> None:
    """A deleted event exchange fails one publish (404), and is declared again on the next channel."""
    async with plain_channel(rabbitmq_url) as channel:
        await channel.exchange_delete("hk.events")
    with pytest.raises(OutcomeUnknownError, match="404 NOT_FOUND"):
        await publisher.publish(Published())
    assert not (await publisher.publish(Published(), allow_unrouted=True)).routed


async def test_a_stopped_publisher_sends_nothing(rabbitmq_url: str) -> None:
    """A publisher that was left isn't ready, and refuses to publish."""
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        ready = publisher.is_ready
    assert (ready, publisher.is_ready) == (True, False)
    with pytest.raises(NotConnectedError, match="async with"):
        await publisher.publish(Unwanted())


async def test_leaving_waits_for_answers(rabbitmq_url: str) -> None:
    """Leaving the publisher waits for the confirm of a publish that nothing awaits any more."""
    await bind_queue_before_start(rabbitmq_url)
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        task = asyncio.create_task(publisher.publish(Published(number=1)))
        await asyncio.sleep(0)
    assert (await task).routed


async def test_leaving_is_bounded(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving ends in bounded time beside a frozen broker, and the unconfirmed publish has an unknown outcome."""
    for module, name in (
        (writer_module, "FLUSH_SECONDS"),
        (channel_module, "REPLY_SECONDS"),
        (connection_module, "CLOSE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.1)
    async with FaultProxy(urlsplit(rabbitmq_url).hostname or "", urlsplit(rabbitmq_url).port or 0) as proxy:
        async with asyncio.timeout(60):
            async with RobustPublisher(proxy.url_for(rabbitmq_url), service="tests") as publisher:
                proxy.freeze()
                task = asyncio.create_task(publisher.publish(Unwanted()))
                await until(lambda: "unconfirmed=1" in repr(publisher._writer))
        with pytest.raises(OutcomeUnknownError):
            await task


# ── starting ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_start_without_a_broker_ends_with_the_context(rabbitmq_url: str) -> None:
    """A start without a broker raises at the context's deadline, and says how long it tried."""
    async with FaultProxy("127.0.0.1", 1) as nobody:
        url = nobody.url_for(rabbitmq_url)
        with bind(RequestContext().within(0.5)), pytest.raises(NotConnectedError, match=r"in 0\.5 s"):
            await RobustPublisher(url, service="tests").__aenter__()


async def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    """A start that is cancelled while it connects to a silent host closes its connection."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        with suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        url = f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        task = asyncio.create_task(RobustPublisher(url, service="tests").__aenter__())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            await left.wait()


async def test_a_wrong_password_is_no_reason_to_wait(rabbitmq_url: str) -> None:
    """A refused password ends the start at once, with the user's name and without the password."""
    url = rabbitmq_url.replace("guest:guest", "guest:wrong")
    with pytest.raises(AccessDeniedError, match="refuses user 'guest'") as caught:
        await RobustPublisher(url, service="tests").__aenter__()
    assert "wrong" not in str(caught.value)


async def test_a_virtual_host_that_is_missing_is_named(rabbitmq_url: str) -> None:
    """A missing virtual host is named in the error of the start."""
    url = f"{rabbitmq_url}_missing"
    with bind(RequestContext().within(0.5)), pytest.raises(NotConnectedError, match="_missing' exist"):
        await RobustPublisher(url, service="tests").__aenter__()


async def test_an_exchange_of_another_kind_is_named(rabbitmq_url: str) -> None:
    """An exchange that exists with another type ends the start with its name."""
    async with plain_channel(rabbitmq_url) as channel:
        await channel.declare_exchange("hk.events", "fanout", durable=True)
    with pytest.raises(TopologyError, match=r"hk\.events"):
        await RobustPublisher(rabbitmq_url, service="tests").__aenter__()


# ── elsewhere ────────────────────────────────────────────────────────────────────────────────────


async def test_a_publisher_of_another_event_loop_is_refused_at_once(publisher: RobustPublisher) -> None:
    """A publish in another event loop raises a `MisuseError` at once."""

    async def elsewhere() -> None:
        event = Published(number=1)
        for publishing in (publisher.publish(event), publisher.send(Task(number=1))):
            with pytest.raises(MisuseError, match="another event loop"):
                await publishing
        with pytest.raises(MisuseError, match="another event loop"):
            publisher.publish_nowait(event)
        [answer] = await publisher.publish_many([event])
        assert isinstance(answer, MisuseError)

    async with asyncio.timeout(60):
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert publisher.is_ready
