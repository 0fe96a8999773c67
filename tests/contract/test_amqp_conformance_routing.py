"""Both brokers route messages alike (aio-pika)."""

from typing import Any

import pytest
from aio_pika import ExchangeType, Message
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import PublishError

from tests.helpers.amqp import declare, depth, get, put

KINDS = ["classic", "quorum"]


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*", "", False),
        ("", "", True),
        ("#", "", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#.c", "a.b.c", True),
        ("a.#.c", "a.c", True),
        ("a.#.*", "a", False),
        ("*.*", "a.", True),
        ("a.#.b.#.c", "a.x.b.y.z.c", True),
    ],
)
async def test_topics(channel: AbstractChannel, pattern: str, key: str, matches: bool) -> None:
    """`*` is one word, and `#` any number of words."""
    exchange = await channel.declare_exchange("exchange", ExchangeType.TOPIC)
    queue = await declare(channel)
    await queue.bind(exchange, pattern)
    await exchange.publish(Message(b""), key, mandatory=False)
    assert await depth(channel) == matches


async def test_direct_and_fanout(channel: AbstractChannel) -> None:
    """A queue gets a message once, however many bindings match."""
    queue = await declare(channel)
    for kind in (ExchangeType.DIRECT, ExchangeType.FANOUT):
        exchange = await channel.declare_exchange(f"exchange.{kind.value}", kind)
        await queue.bind(exchange, "one")
        await queue.bind(exchange, "two")
    await (await channel.get_exchange("exchange.direct")).publish(Message(b"1"), "two")
    await (await channel.get_exchange("exchange.direct")).publish(Message(b"-"), "three", mandatory=False)
    await (await channel.get_exchange("exchange.fanout")).publish(Message(b"2"), "three")
    assert await depth(channel) == 2


@pytest.mark.parametrize(
    ("arguments", "headers", "matches"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}, True),
        ({"a": "1", "b": "2"}, {"a": "1"}, False),
        ({"x-match": "any", "a": "1", "b": "2"}, {"a": "1"}, True),
        ({"x-match": "any", "a": "1"}, {"a": "2"}, False),
        ({"x-match": "all", "a": 7}, {"a": 7}, True),
        ({"x-match": "all", "x-mine": "1"}, {}, True),
        ({"x-match": "any"}, {"a": "1"}, False),
    ],
)
async def test_headers(
    channel: AbstractChannel, arguments: dict[str, Any], headers: dict[str, Any], matches: bool
) -> None:
    """All or any have to match, and names with `x-` are left out."""
    exchange = await channel.declare_exchange("exchange", ExchangeType.HEADERS)
    queue = await declare(channel)
    await queue.bind(exchange, "", arguments=arguments)
    await exchange.publish(Message(b"", headers=headers), "", mandatory=False)
    assert await depth(channel) == matches


async def test_exchanges_can_be_bound_to_exchanges(channel: AbstractChannel) -> None:
    """Cycles are allowed, and a queue that is reached twice gets one message."""
    first = await channel.declare_exchange("first", ExchangeType.TOPIC)
    second = await channel.declare_exchange("second", ExchangeType.FANOUT)
    queue = await declare(channel)
    await second.bind(first, "a.*")
    await first.bind(second, "")
    await queue.bind(first, "#")
    await queue.bind(second, "")
    await first.publish(Message(b""), "a.b")
    assert await depth(channel) == 1
    await second.unbind(first, "a.*")
    await queue.unbind(first, "#")
    with pytest.raises(PublishError):
        await first.publish(Message(b""), "a.b")


async def test_an_alternate_exchange_takes_what_nobody_wants(channel: AbstractChannel) -> None:
    """A mandatory publish is not returned then."""
    other = await channel.declare_exchange("other", ExchangeType.FANOUT)
    exchange = await channel.declare_exchange("exchange", arguments={"alternate-exchange": "other"})
    with pytest.raises(PublishError):
        await exchange.publish(Message(b""), "key")
    await (await declare(channel)).bind(other)
    await exchange.publish(Message(b""), "key")
    assert await depth(channel) == 1


async def test_cc_and_bcc_are_routing_keys_too(channel: AbstractChannel) -> None:
    """BCC is removed from the headers."""
    queues = [await declare(channel, name) for name in ("one", "two", "three")]
    await put(channel, "", queue="one", headers={"CC": ["two", "one"], "BCC": ["three"]})
    assert [list((await get(queue)).headers) for queue in queues] == [["CC"]] * 3
