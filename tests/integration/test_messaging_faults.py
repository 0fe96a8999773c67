"""A broker that dies or freezes for real: what is confirmed is there, what is unknown is repeated, effects are once."""

import asyncio
from uuid import UUID

import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.coordination import connect_redis
from hybridkit.dev import Server
from hybridkit.errors import HybridkitError, OutcomeUnknownError
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

EVENTS = 300


class Counted(Event, type="faults.counted"):
    number: int


def counting(effects: list[UUID], enough: asyncio.Event) -> RobustConsumer:
    """Writes down each event's id; `enough` is set when as many different ones were seen as there are events."""
    consumer = RobustConsumer("faults.counting", concurrency=8)

    @consumer.on(Counted)
    async def count(event: Counted) -> None:
        effects.append(event.event_id)
        if len(set(effects)) == EVENTS:
            enough.set()

    return consumer


async def publish_until_confirmed(publisher: RobustPublisher, event: Counted) -> None:
    """What a caller does: the same event again, until there is a receipt."""
    while True:
        try:
            await publisher.publish(event)
        except HybridkitError as error:
            if not error.retryable:
                raise
        else:
            return


async def test_a_broker_that_dies_loses_nothing_and_repeats_nothing(
    own_rabbitmq_server: Server, redis_url: str
) -> None:
    """`kill -9` in the middle of publishing and consuming, then a restart with the same data."""
    server, effects, enough = own_rabbitmq_server, list[UUID](), asyncio.Event()
    events = [Counted(number=number) for number in range(EVENTS)]
    consumer = counting(effects, enough)
    async with (
        RobustPublisher(server.url, service="tests") as publisher,
        BrokerConnection(server.url, name="tests") as connection,
        # Redis is not what is tested: on a busy machine it gets more time than the guard would go on without it.
        connect_redis(redis_url, timeout_seconds=10) as redis,
        consumer.running(connection, publisher=publisher, guard=IdempotencyGuard(redis)),
    ):
        publishing = [
            asyncio.create_task(publish_until_confirmed(publisher, event)) for event in events[:150]
        ]
        await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(server.kill)
        publishing += [
            asyncio.create_task(publish_until_confirmed(publisher, event)) for event in events[150:]
        ]
        await asyncio.to_thread(server.restart)
        async with asyncio.timeout(60):
            await asyncio.gather(*publishing)
            await enough.wait()
        assert publisher.is_ready
        assert consumer.is_ready
    assert sorted(effects) == sorted(event.event_id for event in events)


async def test_a_frozen_broker_is_unknown_at_the_callers_deadline(own_rabbitmq_server: Server) -> None:
    """Not after the half minute in which a heartbeat would notice; and afterwards all goes on."""
    server, enough = own_rabbitmq_server, asyncio.Event()
    async with (
        RobustPublisher(server.url, service="tests") as publisher,
        BrokerConnection(server.url, name="tests") as connection,
        counting([], enough).running(connection, publisher=publisher),
    ):
        server.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with bind(RequestContext().within(0.5)), pytest.raises(OutcomeUnknownError):
            await publisher.publish(Counted(number=1))
        assert loop.time() - began < 15
        server.resume()
        assert (await publisher.publish(Counted(number=2))).routed
