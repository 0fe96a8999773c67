"""Traps 1, 2, 4, 5, 9, 10: what plain aio-pika does when publishing goes wrong, and beside it what the publisher does.

A test named `plain` shows that the trap is there: it fails when the library no longer has it. Where a version has none,
it is skipped and says since when.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import aio_pika
import orjson
import pytest
from aio_pika.exceptions import PublishError

from hybridkit.context import RequestContext, bind
from hybridkit.dev import Server
from hybridkit.errors import BlockedError, OutcomeUnknownError, UnroutableError
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.messaging import Receipt, RobustPublisher
from tests.helpers import error_of, until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

AIORMQ = tuple(map(int, version("aiormq").split(".")[:3]))


class Wanted(Event, type="traps.wanted"):
    number: int = 0
    text: str = ""


class Unwanted(Event, type="traps.unwanted"):
    number: int = 0


async def want(broker: Any) -> None:
    """Bind a queue to `traps.wanted`."""
    async with broker.channel() as channel:
        queue = await channel.declare_queue("wanted", durable=True)
        await queue.bind("hk.events", Wanted.message_type)


async def hangs(work: Awaitable[object], *, seconds: float = 1.0) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return True
    return False


# ── 1: a publish that times out keeps the channel's lock ─────────────────────────────────────────


@pytest.mark.skipif(AIORMQ >= (7, 1, 1), reason="aiormq 7.1.1 lets go of the lock")
async def test_1_plain_after_a_timeout_the_channel_hangs(broker: Any) -> None:
    """After a publish of aio-pika has timed out, every later call on the channel hangs, and it says that it is open."""
    async with broker.proxied() as (proxy, url), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        proxy.freeze()
        large = aio_pika.Message(b"-" * 16 * 1024 * 1024)
        publishing = asyncio.create_task(channel.default_exchange.publish(large, "nobody", timeout=0.2))
        await asyncio.wait({publishing}, timeout=0.5)
        proxy.let_pass()
        with pytest.raises(TimeoutError):
            await publishing
        assert await hangs(channel.default_exchange.publish(aio_pika.Message(b""), "nobody"))
        assert not channel.is_closed


async def test_1_ours_after_a_timeout_the_next_is_published(broker: Any) -> None:
    """A publish that expires within its write leaves the publisher usable."""
    async with (
        broker.proxied() as (proxy, url),
        RobustPublisher(url, service="tests") as publisher,
    ):
        await want(broker)
        proxy.freeze()
        with bind(RequestContext().within(2)), pytest.raises(OutcomeUnknownError):
            await publisher.publish(Wanted(text="-" * 15 * 1024 * 1024))
        proxy.let_pass()
        assert (await publisher.publish(Wanted(number=1))).routed


# ── 2: a cancelled publish shifts the broker's answers ───────────────────────────────────────────


@pytest.mark.skipif(AIORMQ >= (7, 1, 3), reason="aiormq 7.1.3 counts only what it has written")
async def test_2_plain_after_a_cancelled_publish_answers_are_shifted(broker: Any) -> None:
    """After a cancelled publish aiormq counts one message too many, and the next one waits in vain."""

    def publish_on_each(channels: list[Any]) -> list[asyncio.Task[Any]]:
        message = aio_pika.Message(b"")
        return [asyncio.create_task(each.default_exchange.publish(message, "wanted")) for each in channels]

    hanging: set[asyncio.Task[Any]] = set()
    async with await aio_pika.connect(broker.url) as connection:
        await (await connection.channel()).declare_queue("wanted")
        for turns in range(1, 12):
            channels = [await connection.channel() for _ in range(30)]
            cancelled = publish_on_each(channels)
            for _ in range(turns):
                await asyncio.sleep(0)
            for publishing in cancelled:
                publishing.cancel()
            await asyncio.wait(cancelled)
            _, hanging = await asyncio.wait(publish_on_each(channels), timeout=1)
            if hanging:
                break
    assert hanging


async def test_2_plain_a_publish_cancelled_as_its_answer_comes_stops_the_channel(broker: Any) -> None:
    """A publish of aio-pika that is cancelled as its confirm comes stops the channel's reader for 10 s."""
    async with broker.channel() as channel:
        await channel.declare_queue("wanted")
        cancelled = asyncio.create_task(channel.default_exchange.publish(aio_pika.Message(b""), "nobody"))
        channel.return_callbacks.add(lambda *_: cancelled.cancel())
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await hangs(channel.default_exchange.publish(aio_pika.Message(b""), "wanted"))
        assert not channel.is_closed


async def test_2_ours_after_a_cancelled_publish_each_gets_its_own_answer(broker: Any) -> None:
    """Publishes cancelled at any step shift no delivery tags: each later one gets its own outcome."""
    async with RobustPublisher(broker.url, service="tests") as publisher:
        await want(broker)
        for turns in range(12):
            cancelled = asyncio.create_task(publisher.publish(Wanted(number=-1)))
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled.cancel()
            with suppress(asyncio.CancelledError):
                await cancelled
        events = [Wanted(number=n) if n % 2 else Unwanted(number=n) for n in range(100)]
        answers = await publisher.publish_many(events)
    assert [isinstance(answer, Receipt) for answer in answers] == [bool(n % 2) for n in range(100)]


# ── 4: what no queue wants is published without an error ─────────────────────────────────────────


async def test_4_plain_a_lost_message_is_no_error(broker: Any) -> None:
    """aio-pika returns normally for a message that no queue took."""
    async with broker.channel() as channel:
        answer = await channel.default_exchange.publish(aio_pika.Message(b"lost"), "nobody")
    assert answer.body == b"lost"


async def test_4_ours_a_lost_message_is_an_error(broker: Any) -> None:
    """An event that no queue takes raises `UnroutableError`."""
    async with RobustPublisher(broker.url, service="tests") as publisher:
        with pytest.raises(UnroutableError):
            await publisher.publish(Unwanted())


# ── 5: two messages with one message id get each other's answer ──────────────────────────────────


async def test_5_plain_messages_of_one_id_swap_their_answers(broker: Any) -> None:
    """Two messages of aio-pika that share a `message_id` get each other's outcome."""
    async with broker.proxied() as (proxy, url), await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.declare_queue("wanted")
        messages = [aio_pika.Message(b"lost", message_id="1"), aio_pika.Message(b"stored", message_id="1")]
        proxy.freeze()
        publishing = asyncio.gather(
            *map(channel.default_exchange.publish, messages, ("nobody", "wanted")), return_exceptions=True
        )
        underlay: Any = await channel.get_underlay_channel()
        await until(lambda: len(underlay.confirmations) == 2)
        proxy.let_pass()
        lost, stored = await publishing
    assert not isinstance(lost, BaseException)
    assert isinstance(stored, PublishError)
    assert (await broker.read("wanted")).body == b"stored"


async def test_5_ours_messages_of_one_event_get_their_own_answers(broker: Any) -> None:
    """One event sent a hundred times at once to a queue and to a missing one has the right outcome each time."""
    async with RobustPublisher(broker.url, service="tests") as publisher:
        await want(broker)
        event_id, body = new_id(), orjson.dumps({})
        answers = await asyncio.gather(
            *(
                publisher.publish_encoded(body, event_type="traps.any", event_id=event_id, queue=queue)
                for queue in ("nobody", "wanted") * 50
            ),
            return_exceptions=True,
        )
    assert [type(answer) for answer in answers] == [UnroutableError, Receipt] * 50


# ── 9: a frozen broker cancels the caller ────────────────────────────────────────────────────────


async def test_9_plain_a_frozen_broker_cancels_the_caller(broker: Any) -> None:
    """A frozen broker ends a publish of aio-pika in a `CancelledError` after three heartbeats."""
    async with (
        broker.proxied() as (proxy, url),
        await aio_pika.connect(f"{url}?heartbeat=1") as connection,
    ):
        channel = await connection.channel()
        proxy.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        publishing = asyncio.create_task(channel.default_exchange.publish(aio_pika.Message(b""), "nobody"))
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert loop.time() - began > 3
        assert not publishing.cancelling()
        proxy.let_pass()


async def test_9_ours_a_frozen_broker_is_unknown_at_the_callers_deadline(broker: Any) -> None:
    """A frozen broker ends a publish at the deadline with `OutcomeUnknownError`, and the next one works after it."""
    async with (
        broker.proxied() as (proxy, url),
        RobustPublisher(url, service="tests") as publisher,
    ):
        await want(broker)
        proxy.freeze()
        with bind(RequestContext().within(0.2)):
            assert await error_of(publisher.publish(Wanted(number=1))) is OutcomeUnknownError
        proxy.let_pass()
        assert (await publisher.publish(Wanted(number=2))).routed


# ── 10: what timed out in a memory alarm lands later ─────────────────────────────────────────────


async def test_10_plain_and_ours_in_a_memory_alarm(own_rabbitmq_server: Server, broker: Any) -> None:
    """In a memory alarm aio-pika's timeout looks like "not sent"; ours is unknown, and later ones are blocked."""
    server = own_rabbitmq_server
    broker = broker.at(server.url)
    async with RobustPublisher(server.url, service="tests") as publisher, broker.channel() as channel:
        await want(broker)
        await channel.declare_queue("plain", durable=True)
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.000001")
        with pytest.raises(TimeoutError):
            await channel.default_exchange.publish(aio_pika.Message(b"timed out"), "plain", timeout=1)
        assert await hangs(channel.declare_queue("other"))

        with bind(RequestContext().within(1)):
            assert await error_of(publisher.publish(Wanted(number=1))) is OutcomeUnknownError
        assert not publisher.is_ready
        with bind(RequestContext().within(0.2)):
            assert await error_of(publisher.publish(Wanted(number=2))) is BlockedError

        waiting = asyncio.create_task(publisher.publish(Wanted(number=3)))
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.6")
        assert (await broker.read("plain")).body == b"timed out"
        assert (await waiting).routed
    numbers = [orjson.loads((await broker.read("wanted")).body)["data"]["number"] for _ in range(2)]
    assert numbers == [1, 3]
    assert (await broker.state("wanted"))[0] == 0
