"""Both brokers declare, refuse, find and delete exchanges, queues and bindings alike (aio-pika)."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionClosed,
)
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from tests.helpers.amqp import declare

Version = tuple[int, ...]
QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


async def ignore(_: Any) -> None:
    """A consumer that leaves everything unacknowledged."""


async def exists(connection: AbstractConnection, queue: str) -> bool:
    channel = await connection.channel()
    try:
        await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def until_gone(connection: AbstractConnection, queue: str) -> None:
    async with asyncio.timeout(60):
        while await exists(connection, queue):  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.01)


# ── queues ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_queue_without_a_name_gets_one(channel: AbstractChannel) -> None:
    """The empty name then stands for that queue."""
    queue = await channel.declare_queue(exclusive=True)
    assert queue.name.startswith("amq.gen-")
    await channel.default_exchange.publish(Message(b""), queue.name)
    amqp = await channel.get_underlay_channel()
    assert (await amqp.queue_purge("")).message_count == 1


async def test_a_declaration_tells_what_is_in_the_queue(channel: AbstractChannel) -> None:
    """The answer has the numbers of ready messages and of consumers."""
    queue = await declare(channel)
    for _ in range(3):
        await channel.default_exchange.publish(Message(b""), "queue")
    again = await channel.declare_queue("queue", passive=True)
    assert again.declaration_result.message_count == 3
    await queue.purge()
    await queue.consume(ignore)
    again = await channel.declare_queue("queue", passive=True)
    assert (again.declaration_result.message_count, again.declaration_result.consumer_count) == (0, 1)


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({}, {"x-message-ttl": 5}, "inequivalent arg 'x-message-ttl' for queue 'queue' in vhost"),
        ({"x-message-ttl": 5}, {}, "inequivalent arg 'x-message-ttl'.*received none but current is"),
        ({"x-max-length": 5}, {"x-max-length": 6}, "'x-max-length'.*: received '6' but current is '5'"),
        ({}, QUORUM, "inequivalent arg 'x-queue-type' for queue 'queue'"),
    ],
)
async def test_a_queue_is_declared_again_only_as_it_is(
    channel: AbstractChannel, first: dict[str, Any], second: dict[str, Any], text: str
) -> None:
    """The 406 names the first argument that differs."""
    await channel.declare_queue("queue", durable=True, arguments=first)
    await channel.declare_queue("queue", durable=True, arguments=first)
    with pytest.raises(ChannelPreconditionFailed, match=text):
        await channel.declare_queue("queue", durable=True, arguments=second)


async def test_properties_are_compared_too(channel: AbstractChannel) -> None:
    """Another auto-delete is a 406."""
    await declare(channel)
    with pytest.raises(
        ChannelPreconditionFailed, match=r"'auto_delete'.*received 'true' but current is 'false'"
    ):
        await channel.declare_queue("queue", durable=True, auto_delete=True)


async def test_arguments_that_mean_nothing_are_not_compared(channel: AbstractChannel) -> None:
    """Unknown arguments may differ."""
    await declare(channel)
    await declare(channel, x_mine="here")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"x-message-ttl": -1},
            r"invalid arg 'x-message-ttl' for queue 'queue' in vhost '.*': {value_negative,-1}",
        ),
        ({"x-expires": 0}, "{value_zero,0}"),
        ({"x-max-length": "many"}, "invalid arg 'x-max-length'.*"),
        ({"x-overflow": "explode"}, "invalid arg 'x-overflow'.*invalid_overflow"),
        ({"x-queue-type": "heap"}, "invalid arg 'x-queue-type'"),
        ({"x-dead-letter-routing-key": "key"}, "routing_key_but_no_dlx_defined"),
        ({"x-delivery-limit": 2}, "invalid arg 'x-delivery-limit'.*of queue type rabbit_classic_queue"),
        ({"x-max-priority": 2, **QUORUM}, "invalid arg 'x-max-priority'.*of queue type rabbit_quorum_queue"),
    ],
)
async def test_impossible_arguments_are_refused(
    channel: AbstractChannel, arguments: dict[str, Any], text: str
) -> None:
    """The answer is 406, and no queue is created."""
    with pytest.raises(ChannelPreconditionFailed, match=text):
        await channel.declare_queue("queue", durable=True, arguments=arguments)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"durable": False}, "invalid property 'non-durable' for queue"),
        ({"durable": True, "exclusive": True}, "invalid property 'exclusive-owner'"),
        ({"durable": True, "auto_delete": True}, "invalid property 'auto-delete'"),
    ],
)
async def test_a_quorum_queue_is_there_to_stay(
    channel: AbstractChannel, options: dict[str, bool], text: str
) -> None:
    """It has to be durable, and neither exclusive nor auto-delete."""
    with pytest.raises(ChannelPreconditionFailed, match=text):
        await channel.declare_queue("queue", arguments=QUORUM, **options)


async def test_an_exclusive_queue_is_locked_to_others(amqp_url: str, connection: AbstractConnection) -> None:
    """Every use is a 405, and the queue ends with its connection."""
    async with await aio_pika.connect(amqp_url) as owner:
        mine = await owner.channel()
        await mine.declare_queue("mine", exclusive=True)
        attempts: list[Callable[[AbstractChannel], Awaitable[Any]]] = [
            lambda channel: channel.declare_queue("mine", exclusive=True),
            lambda channel: channel.declare_queue("mine", passive=True),
            lambda channel: channel.queue_delete("mine"),
        ]
        for attempt in attempts:
            channel = await connection.channel()
            with pytest.raises(ChannelLockedResource, match="cannot obtain exclusive access to locked queue"):
                await attempt(channel)
    await until_gone(connection, "mine")


async def test_an_auto_delete_queue_goes_with_its_last_consumer(connection: AbstractConnection) -> None:
    """It is not deleted before it has had one."""
    channel = await connection.channel()
    queue = await channel.declare_queue("queue", auto_delete=True)
    tags = [await queue.consume(ignore) for _ in range(2)]
    await queue.cancel(tags[0])
    assert await exists(connection, "queue")
    await queue.cancel(tags[1])
    await until_gone(connection, "queue")


async def test_a_queue_expires_when_nobody_uses_it(connection: AbstractConnection) -> None:
    """`x-expires` runs from the last use, which a passive declaration is."""
    channel = await connection.channel()
    await declare(channel, x_expires=1)
    await until_gone(connection, "queue")


async def test_deleting_and_purging_tell_how_many_messages_went(channel: AbstractChannel) -> None:
    """A purge does not count unacknowledged messages."""
    queue = await declare(channel)
    for _ in range(5):
        await channel.default_exchange.publish(Message(b""), "queue")
    await queue.get()
    assert (await queue.purge()).message_count == 4
    await channel.default_exchange.publish(Message(b""), "queue")
    assert (await queue.delete(if_unused=False, if_empty=False)).message_count == 1


async def test_conditions_of_a_deletion(connection: AbstractConnection) -> None:
    """Unmet ones are a 406, and deleting a missing queue is no error."""
    channel = await connection.channel()
    queue = await declare(channel)
    await channel.default_exchange.publish(Message(b""), "queue")
    with pytest.raises(ChannelPreconditionFailed, match=r"queue 'queue' in vhost '.*' not empty"):
        await queue.delete(if_empty=True)
    channel = await connection.channel()
    queue = await channel.get_queue("queue")
    await queue.consume(ignore)
    with pytest.raises(ChannelPreconditionFailed, match=r"queue 'queue' in vhost '.*' in use"):
        await queue.delete(if_unused=True)
    channel = await connection.channel()
    assert (await channel.queue_delete("nowhere")).message_count == 0


async def test_a_quorum_queue_is_deleted_without_conditions(channel: AbstractChannel) -> None:
    """With conditions a 540 ends the connection."""
    queue = await declare(channel, **QUORUM)
    with pytest.raises(ConnectionClosed, match="not supported by quorum queues"):
        await queue.delete(if_empty=True)


# ── exchanges ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "topic"}, "inequivalent arg 'type'.*: received 'topic' but current is 'direct'"),
        ({"durable": True}, "inequivalent arg 'durable'.*: received 'true' but current is 'false'"),
        ({"auto_delete": True}, "inequivalent arg 'auto_delete'"),
        ({"internal": True}, "inequivalent arg 'internal'"),
        (
            {"arguments": {"alternate-exchange": "a"}},
            "'alternate-exchange'.*received the value 'a' of type 'longstr'",
        ),
    ],
)
async def test_an_exchange_is_declared_again_only_as_it_is(
    channel: AbstractChannel, options: dict[str, Any], text: str
) -> None:
    """The 406 names the first property that differs."""
    plain: dict[str, Any] = {"type": "direct"}
    await channel.declare_exchange("exchange", **plain)
    await channel.declare_exchange("exchange", **plain, arguments={"x-mine": 1})
    with pytest.raises(ChannelPreconditionFailed, match=text):
        await channel.declare_exchange("exchange", **{**plain, **options})


async def test_an_unknown_type_of_exchange_is_refused(
    channel: AbstractChannel, broker_version: Version
) -> None:
    """RabbitMQ 4 answers 406; 3.10 answers 503, which ends the connection."""
    expected = ChannelPreconditionFailed if broker_version >= (4,) else ConnectionClosed
    with pytest.raises(expected, match="unknown exchange type 'funny'"):
        await channel.declare_exchange("exchange", type="funny")


async def test_nobody_publishes_to_an_internal_exchange(channel: AbstractChannel) -> None:
    """The answer is 403."""
    await channel.declare_exchange("exchange", internal=True)
    amqp = await channel.get_underlay_channel()
    with pytest.raises(ChannelAccessRefused, match="cannot publish to internal exchange 'exchange'"):
        await amqp.basic_publish(b"", exchange="exchange")


async def test_deleting_an_exchange(connection: AbstractConnection) -> None:
    """With `if_unused` bindings are a 406, and deleting a missing exchange is no error."""
    channel = await connection.channel()
    exchange = await channel.declare_exchange("exchange")
    await (await declare(channel)).bind(exchange, "key")
    with pytest.raises(ChannelPreconditionFailed, match=r"exchange 'exchange' in vhost '.*' in use"):
        await exchange.delete(if_unused=True)
    channel = await connection.channel()
    await channel.exchange_delete("exchange")
    await channel.exchange_delete("exchange")


async def test_an_auto_delete_exchange_goes_with_its_last_binding(channel: AbstractChannel) -> None:
    """It goes as well when the binding is deleted with its queue."""
    exchange = await channel.declare_exchange("exchange", auto_delete=True)
    queue = await declare(channel)
    await queue.bind(exchange, "key")
    await queue.delete()
    with pytest.raises(ChannelNotFoundEntity, match="no exchange 'exchange' in vhost"):
        await channel.get_exchange("exchange")


# ── what is not there, and what is not theirs ────────────────────────────────────────────────────

Attempt = tuple[Callable[[Any], Awaitable[Any]], str]
NOT_THERE: dict[str, Attempt] = {
    "declare queue": (
        lambda amqp: amqp.queue_declare("nowhere", passive=True),
        "no queue 'nowhere' in vhost",
    ),
    "declare exchange": (
        lambda amqp: amqp.exchange_declare("nowhere", passive=True),
        "no exchange 'nowhere'",
    ),
    "purge": (lambda amqp: amqp.queue_purge("nowhere"), "no queue 'nowhere' in vhost"),
    "get": (lambda amqp: amqp.basic_get("nowhere"), "no queue 'nowhere' in vhost"),
    "consume": (lambda amqp: amqp.basic_consume("nowhere", ignore), "no queue 'nowhere' in vhost"),
    "bind queue": (
        lambda amqp: amqp.queue_bind("nowhere", "amq.topic", "key"),
        "no queue 'nowhere' in vhost",
    ),
    "bind exchange": (
        lambda amqp: amqp.exchange_bind("nowhere", "amq.topic"),
        "no exchange 'nowhere' in vhost",
    ),
    "publish": (lambda amqp: amqp.basic_publish(b"", exchange="nowhere"), "no exchange 'nowhere' in vhost"),
    "bind no name": (lambda amqp: amqp.queue_bind("", "amq.topic", "key"), "no previously declared queue"),
}
NOT_THEIRS: dict[str, Attempt] = {
    "declare queue": (lambda amqp: amqp.queue_declare("amq.mine"), "contains reserved prefix 'amq.*'"),
    "declare exchange": (lambda amqp: amqp.exchange_declare("amq.mine"), "contains reserved prefix 'amq.*'"),
    "delete exchange": (
        lambda amqp: amqp.exchange_delete("amq.topic"),
        "deletion of system exchange 'amq.topic'",
    ),
    "declare default": (
        lambda amqp: amqp.exchange_declare(""),
        "operation not permitted on the default exchange",
    ),
    "delete default": (
        lambda amqp: amqp.exchange_delete(""),
        "operation not permitted on the default exchange",
    ),
}


@pytest.mark.parametrize("attempt", NOT_THERE)
async def test_what_is_not_there_is_404(channel: AbstractChannel, attempt: str) -> None:
    """The reason names it, and the channel ends."""
    call, text = NOT_THERE[attempt]
    with pytest.raises(ChannelClosed, match=text):
        await call(await channel.get_underlay_channel())


@pytest.mark.parametrize("attempt", NOT_THEIRS)
async def test_the_brokers_own_things_are_403(channel: AbstractChannel, attempt: str) -> None:
    """These are names with `amq.` and the default exchange."""
    call, text = NOT_THEIRS[attempt]
    with pytest.raises(ChannelAccessRefused, match=re.escape(text)):
        await call(await channel.get_underlay_channel())


async def test_taking_a_binding_away_that_is_not_there_is_no_error(channel: AbstractChannel) -> None:
    """Exchange and queue need not exist either."""
    amqp = await channel.get_underlay_channel()
    await declare(channel)
    await amqp.queue_unbind("queue", "amq.topic", "key")
    await amqp.queue_unbind("queue", "nowhere", "key")
    await amqp.queue_unbind("nowhere", "amq.topic", "key")
    await amqp.exchange_unbind("nowhere", "amq.topic", "key")


async def test_a_channel_ends_and_its_connection_goes_on(connection: AbstractConnection) -> None:
    """The same channel number can be opened again."""
    for _ in range(3):
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.declare_queue("nowhere", passive=True)
    await declare(await connection.channel())
