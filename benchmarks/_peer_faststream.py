"""The same work by FastStream: pydantic models in and out, persistent, mandatory, confirmed, acknowledged.

Its logger is off, as ours is at WARNING. Deduplication, which it hasn't got, is what one would write by hand: a key in
Redis set before the work, and marked after it.
"""

import os

from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks._payload import (
    EVENT_TYPE,
    EXCHANGE,
    PEER_QUEUE,
    SERVICE,
    PlainEnvelope,
    PlainEvent,
    make_bodies,
    make_plain_event,
    plain_headers,
    wrap_plain,
)
from benchmarks._side import PREFETCH, Sample, Tally, fill, in_flight, run, timed
from hybridkit.coordination import Redis, connect_redis
from hybridkit.ids import new_id

RETENTION_SECONDS = 86_400


async def publish_in_flight(url: str, count: int) -> Sample:
    """500 tasks, each publishes one after the other."""
    request_id, exchange = str(new_id()), RabbitExchange(EXCHANGE, declare=False)
    channel = Channel(publisher_confirms=True, on_return_raises=True)
    async with RabbitBroker(url, logger=None, app_id=SERVICE, default_channel=channel) as broker:

        async def publish(event: PlainEvent) -> None:
            await broker.publish(
                wrap_plain(event, request_id),
                exchange=exchange,
                routing_key=EVENT_TYPE,
                mandatory=True,
                persist=True,
                headers=dict(plain_headers(event, request_id)),
                message_id=str(new_id()),
                timestamp=event[1],
                message_type=EVENT_TYPE,
            )

        events = [make_plain_event() for _ in range(count)]
        return await timed(lambda part: in_flight(publish, part), events)


async def consume(url: str, count: int, *, redis: Redis | None = None) -> Sample:
    """Consume with a typed handler, and an acknowledgement for each event."""
    tally = Tally(count)
    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))
    queue = RabbitQueue(PEER_QUEUE, queue_type=QueueType.QUORUM, durable=True)

    @broker.subscriber(queue)
    async def handle(message: PlainEnvelope) -> None:
        key = f"bench:{PEER_QUEUE}:{message.event_id}"
        if redis and not await redis.set(key, "running", nx=True, ex=RETENTION_SECONDS):
            return
        tally.add()
        if redis:
            await redis.set(key, "done", ex=RETENTION_SECONDS)

    async with broker:
        await broker.declare_queue(queue)
        await fill(url, PEER_QUEUE, make_bodies(count))
        await broker.start()
        return await tally.sample()


async def consume_guarded(url: str, count: int) -> Sample:
    """Consume the same way, and each event once."""
    async with connect_redis(os.environ["BENCHMARK_REDIS_URL"], timeout_seconds=5) as redis:
        return await consume(url, count, redis=redis)


if __name__ == "__main__":
    run({"publish_in_flight": publish_in_flight, "consume": consume, "consume_guarded": consume_guarded})
