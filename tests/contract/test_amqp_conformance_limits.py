"""Both brokers expire, drop, give up and dead-letter messages alike (aio-pika)."""

import asyncio
import time
from typing import Any

import pytest
from aio_pika import ExchangeType, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError

from hybridkit.messaging._topology import _declared as topology
from tests.helpers.amqp import declare, depth, get, put

Version = tuple[int, ...]
KINDS = ["classic", "quorum"]
DEAD = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}


async def until_depth(channel: AbstractChannel, count: int, name: str = "queue") -> None:
    async with asyncio.timeout(60):
        while await depth(channel, name) != count:  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.01)


def deaths(message: AbstractIncomingMessage) -> list[tuple[Any, ...]]:
    """Queue, reason and count of each, the latest first."""
    entries: Any = message.headers["x-death"]
    return [(entry["queue"], entry["reason"], entry["count"]) for entry in entries]


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_expire_after_the_queues_time(channel: AbstractChannel, kind: str) -> None:
    """They are gone without a consumer or a get."""
    await declare(channel, x_queue_type=kind, x_message_ttl=50)
    await put(channel, "1", "2")
    await until_depth(channel, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_expires_after_its_own_time(channel: AbstractChannel, kind: str) -> None:
    """The shorter one of the message's and the queue's time decides."""
    await declare(channel, x_queue_type=kind, x_message_ttl=60_000)
    await put(channel, "1", expiration=0.05)
    await until_depth(channel, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_first_in_the_queue_expires(channel: AbstractChannel, kind: str) -> None:
    """An expired message behind one that is not waits."""
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, "long", expiration=60)
    await put(channel, "short", expiration=0)
    await put(channel, "none")
    assert await depth(channel) == 3
    assert (await get(queue)).body == b"long"
    assert (await get(queue)).body == b"none"


@pytest.mark.parametrize(("given", "text"), [("soon", "no_integer"), ("-1", "value_negative,-1")])
async def test_a_time_that_is_none_is_refused(channel: AbstractChannel, given: str, text: str) -> None:
    """The answer is 406."""
    amqp: Any = await channel.get_underlay_channel()
    message = Message(b"").properties
    message.expiration = given
    with pytest.raises(ChannelPreconditionFailed, match=f"invalid expiration '{given}': .*{text}"):
        await amqp.basic_publish(b"", routing_key="queue", properties=message)


# ── room ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [{"x_max_length": 2}, {"x_max_length_bytes": 2800}])
async def test_a_full_queue_drops_its_oldest(
    channel: AbstractChannel, kind: str, limit: dict[str, int]
) -> None:
    """Unacknowledged messages don't count; a quorum queue counts some bytes more than the bodies."""
    queue = await declare(channel, x_queue_type=kind, **limit)
    await put(channel, "0" * 1000)
    await get(queue)
    await put(channel, *(number * 1000 for number in "1234"))
    await until_depth(channel, 2)
    assert [(await get(queue)).body[:1] for _ in range(2)] == [b"3", b"4"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_queue_can_refuse_instead(channel: AbstractChannel, kind: str) -> None:
    """It uses `basic.nack`; a quorum queue of RabbitMQ accepts a few more messages."""
    queue = await declare(channel, x_queue_type=kind, x_max_length=2, x_overflow="reject-publish")
    with pytest.raises(DeliveryError):
        await put(channel, *"123456789")
    taken = await depth(channel)
    assert 2 <= taken <= 4
    assert [(await get(queue)).body for _ in range(2)] == [b"1", b"2"]


# ── dead letters ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_letter_tells_why(channel: AbstractChannel, kind: str, broker_version: Version) -> None:
    """`x-death` and the first death are there; 4.x adds the last one, and keeps `redelivered`."""
    dead = await declare(channel, "dead")
    queue = await declare(channel, x_queue_type=kind, **DEAD)
    await put(channel, "body", expiration=60, headers={"mine": 1})
    await (await get(queue)).reject()
    letter = await get(dead)
    assert (letter.body, letter.exchange, letter.routing_key, letter.expiration) == (
        b"body",
        "",
        "dead",
        None,
    )
    assert letter.headers["mine"] == 1
    entries: Any = letter.headers["x-death"]
    (death,) = entries
    assert abs(death.pop("time").timestamp() - time.time()) < 30
    assert death == {
        "count": 1,
        "reason": "rejected",
        "queue": "queue",
        "exchange": "",
        "routing-keys": ["queue"],
        "original-expiration": "60000",
    }
    which = ["first", "last"] if broker_version >= (4,) else []
    for name in which:
        found = [letter.headers[f"x-{name}-death-{part}"] for part in ("queue", "reason", "exchange")]
        assert found == ["queue", "rejected", ""]
    assert letter.redelivered == (broker_version >= (4,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reason", "arguments"),
    [("expired", {"x_message_ttl": 1}), ("maxlen", {"x_max_length": 0})],
)
async def test_what_the_queue_gives_up_is_a_dead_letter_too(
    channel: AbstractChannel, kind: str, reason: str, arguments: dict[str, int]
) -> None:
    """It is not marked as redelivered."""
    dead = await declare(channel, "dead")
    await declare(channel, x_queue_type=kind, **DEAD, **arguments)
    await put(channel, "1")
    letter = await get(dead)
    assert deaths(letter) == [("queue", reason, 1)]
    assert not letter.redelivered


@pytest.mark.parametrize("kind", KINDS)
async def test_deaths_are_counted_per_queue_and_reason(channel: AbstractChannel, kind: str) -> None:
    """The latest death comes first, and the first one keeps its headers."""
    back = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "queue"}
    queue = await declare(
        channel, x_queue_type=kind, x_dead_letter_exchange="", x_dead_letter_routing_key="wait"
    )
    await declare(channel, "wait", x_queue_type=kind, x_message_ttl=1, **back)
    await put(channel, "1")
    for _ in range(3):
        await (await get(queue)).reject()
    letter = await get(queue)
    assert deaths(letter) == [("wait", "expired", 3), ("queue", "rejected", 3)]
    assert letter.headers["x-first-death-reason"] == "rejected"


async def test_a_letter_that_nobody_rejects_does_not_go_in_circles(channel: AbstractChannel) -> None:
    """It is dropped before it comes back to a queue in which it has died."""
    await declare(channel, x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key="queue")
    await put(channel, "1")
    await until_depth(channel, 0)


async def test_deaths_that_a_publisher_writes_do_not_count(
    channel: AbstractChannel, broker_version: Version
) -> None:
    """On 3.10 the queue believes them, so a copied header can lose messages."""
    dead = await declare(channel, "dead")
    queue = await declare(channel, **DEAD)
    await put(channel, "1")
    await (await get(queue)).reject()
    letter = await get(dead)
    await put(channel, "2", headers=dict(letter.headers))
    await (await get(queue)).reject()
    assert deaths(await get(dead)) == [("queue", "rejected", 1 if broker_version >= (4,) else 2)]


async def test_a_dead_letter_keeps_its_key_where_none_is_given(channel: AbstractChannel) -> None:
    """It goes to the dead-letter exchange with its old routing key."""
    exchange = await channel.declare_exchange("exchange")
    dead = await declare(channel, "dead")
    await dead.bind(exchange, "queue")
    queue = await declare(channel, x_dead_letter_exchange="exchange")
    await put(channel, "1")
    await (await get(queue)).reject()
    assert (await get(dead)).exchange == "exchange"


async def test_a_dead_letter_exchange_that_is_not_there_takes_nothing(channel: AbstractChannel) -> None:
    """The message is lost without an error."""
    queue = await declare(channel, x_dead_letter_exchange="nowhere")
    await put(channel, "1")
    await (await get(queue)).reject()
    await until_depth(channel, 0)


# ── quorum queues ────────────────────────────────────────────────────────────────────────────────


async def die(connection: AbstractConnection) -> None:
    """Take a message and lose the channel."""
    channel = await connection.channel()
    await get(await channel.get_queue("queue"))
    await channel.close()


async def test_a_message_that_fails_too_often_is_a_dead_letter(connection: AbstractConnection) -> None:
    """A quorum queue counts each end of a channel with the message."""
    channel = await connection.channel()
    dead = await declare(channel, "dead")
    await declare(channel, x_queue_type="quorum", x_delivery_limit=2, **DEAD)
    await put(channel, "1")
    for _ in range(3):
        await die(connection)
    assert deaths(await get(dead)) == [("queue", "delivery_limit", 1)]


async def test_twenty_failures_are_the_limit_where_none_is_given(
    connection: AbstractConnection, broker_version: Version
) -> None:
    """This is so on 4.x; 3.10 has no limit."""
    if broker_version < (4,):
        pytest.skip("RabbitMQ 3.10 has no limit by itself")
    channel = await connection.channel()
    dead = await declare(channel, "dead")
    await declare(channel, x_queue_type="quorum", **DEAD)
    await put(channel, "1")
    for _ in range(20):
        await die(connection)
    assert await depth(channel, "dead") == 0
    await die(connection)
    assert deaths(await get(dead)) == [("queue", "delivery_limit", 1)]


async def test_what_counts_as_a_failure(channel: AbstractChannel, broker_version: Version) -> None:
    """On 4.3 a reject counts and a nack does not; on 3.10 both do."""
    queue = await declare(channel, x_queue_type="quorum")
    await put(channel, "1")
    first = await get(queue)
    await first.nack(requeue=True)
    second = await get(queue)
    await second.reject(requeue=True)
    third = await get(queue)
    found = [dict(message.headers) for message in (first, second, third)]
    if broker_version >= (4, 3):
        assert found == [{}, {"x-acquired-count": 1}, {"x-acquired-count": 2, "x-delivery-count": 1}]
    else:
        assert found == [{"x-delivery-count": n} for n in range(3)]


async def test_dead_letters_at_least_once(channel: AbstractChannel) -> None:
    """They arrive like those of the other strategy."""
    dead = await declare(channel, "dead", x_queue_type="quorum")
    queue = await declare(
        channel,
        x_queue_type="quorum",
        x_overflow="reject-publish",
        x_dead_letter_strategy="at-least-once",
        **DEAD,
    )
    await put(channel, *"123")
    for _ in range(3):
        await (await get(queue)).reject()
    assert [(await get(dead)).body for _ in range(3)] == [b"1", b"2", b"3"]


async def test_dead_letters_at_least_once_wait_for_their_queue(channel: AbstractChannel) -> None:
    """More than 32 block those behind them, so a target needs an alternate exchange."""
    exchange = await channel.declare_exchange("exchange", ExchangeType.TOPIC)
    dead = await declare(channel, "dead")
    await dead.bind(exchange, "known")
    wait = await declare(
        channel,
        x_queue_type="quorum",
        x_overflow="reject-publish",
        x_message_ttl=1,
        x_dead_letter_strategy="at-least-once",
        x_dead_letter_exchange="exchange",
    )
    for key in ("known", "unknown"):
        await wait.bind("amq.topic", key)
    source = await channel.get_exchange("amq.topic")
    await source.publish(Message(b"first"), "known")
    assert (await get(dead)).body == b"first"
    for _ in range(40):
        await source.publish(Message(b""), "unknown")
    await source.publish(Message(b"behind"), "known")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(get(dead), 1)


async def test_the_delay_levels_of_hybridkit(channel: AbstractChannel) -> None:
    """A message comes after the sum of its levels, in whole seconds."""
    amqp = await channel.get_underlay_channel()
    await topology.declare(topology.shared_topology() + topology.consumer_topology("work", ["event"]), amqp)
    queue = await channel.get_queue("work")
    exchange, key = topology.delay_route(3, "work")
    started = time.monotonic()
    await (await channel.get_exchange(exchange)).publish(Message(b"late"), key)
    assert (await get(queue)).body == b"late"
    assert 2.9 < time.monotonic() - started < 30
