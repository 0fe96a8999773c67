"""Our side of the messaging benchmarks, through the public API."""

import asyncio
import logging
import os
import resource
from pathlib import Path

import structlog

from benchmarks._payload import CONSUMER, SERVICE, Stopwatch, UserCreated, make_bodies, make_event
from benchmarks._side import CONCURRENCY, Sample, Tally, fill, in_flight, one_by_one, run, timed
from hybridkit.context import RequestContext, bind
from hybridkit.coordination import connect_redis
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher

FLAT_WINDOW = 5_000


async def publish_in_flight(url: str, count: int) -> Sample:
    """500 tasks, each publishes one after the other."""
    with bind(RequestContext()):
        async with RobustPublisher(url, service=SERVICE) as publisher:
            events = [make_event() for _ in range(count)]
            return await timed(lambda part: in_flight(publisher.publish, part), events)


async def publish_one_by_one(url: str, count: int) -> Sample:
    """One task."""
    with bind(RequestContext()):
        async with RobustPublisher(url, service=SERVICE) as publisher:
            events = [make_event() for _ in range(count)]
            return await timed(lambda part: one_by_one(publisher.publish, part), events)


async def publish_many(url: str, count: int) -> Sample:
    """One call for all."""
    with bind(RequestContext()):
        async with RobustPublisher(url, service=SERVICE) as publisher:
            events = [make_event() for _ in range(count)]
            return await timed(publisher.publish_many, events)


async def consume(url: str, count: int, *, guard: IdempotencyGuard | None = None) -> Sample:
    """Consume with a typed handler, and an acknowledgement for each event."""
    consumer, tally = RobustConsumer(CONSUMER, concurrency=CONCURRENCY), Tally(count)

    @consumer.on(UserCreated)
    async def handle(_: UserCreated) -> None:
        tally.add()

    async with (
        RobustPublisher(url, service=SERVICE) as publisher,
        BrokerConnection(url, name=SERVICE) as connection,
    ):
        async with consumer.running(connection, publisher=publisher):
            """Its queue is there now."""
        await fill(url, CONSUMER, make_bodies(count))
        async with consumer.running(connection, publisher=publisher, guard=guard):
            return await tally.sample()


async def consume_guarded(url: str, count: int) -> Sample:
    """Consume the same way, and each event once."""
    async with connect_redis(os.environ["BENCHMARK_REDIS_URL"], timeout_seconds=5) as redis:
        return await consume(url, count, guard=IdempotencyGuard(redis))


async def flat(url: str, count: int) -> Sample:
    """Publish and consume at the same time; the cost early and late, and the memory early and late.

    Early is from 1,000 to 10,000 messages, late the last 10,000.
    """
    consumer, handled, room = RobustConsumer(CONSUMER), 0, asyncio.Semaphore(FLAT_WINDOW)
    finished = asyncio.Event()
    sample: dict[str, float] = {}
    stopwatch = Stopwatch()

    @consumer.on(UserCreated)
    async def handle(_: UserCreated) -> None:
        nonlocal handled, stopwatch
        handled += 1
        room.release()
        if handled == 1_000:
            sample["memory_early"] = resident_mib()
            stopwatch = Stopwatch()
        elif handled == 10_000:
            sample["cpu_early"] = stopwatch.read(9_000)["cpu"]
        elif handled == count - 10_000:
            stopwatch = Stopwatch()
        elif handled == count:
            sample["cpu_late"] = stopwatch.read(10_000)["cpu"]
            sample["memory_late"] = resident_mib()
            finished.set()

    async with (
        RobustPublisher(url, service=SERVICE) as publisher,
        BrokerConnection(url, name=SERVICE) as connection,
        consumer.running(connection, publisher=publisher),
    ):

        async def publish(_: int) -> None:
            await room.acquire()
            await publisher.publish(make_event())

        await in_flight(publish, range(count))
        await finished.wait()
    return sample


def resident_mib() -> float:
    """Return the memory of this process now; its peak where the system doesn't tell (macOS)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    run(
        {
            "publish_in_flight": publish_in_flight,
            "publish_one_by_one": publish_one_by_one,
            "publish_many": publish_many,
            "consume": consume,
            "consume_guarded": consume_guarded,
            "flat": flat,
        }
    )
