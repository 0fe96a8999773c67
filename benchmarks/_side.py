"""One side of a comparison, in a process of its own: `python -m benchmarks._ours SCENARIO URL COUNT`.

A side prints one JSON object with its CPU and wall time per message in microseconds. What comes before the clock starts
(imports, connecting, a warm-up, filling the queue) doesn't count.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel

from benchmarks._payload import Stopwatch

IN_FLIGHT: Final = 500
CONCURRENCY: Final = 16
PREFETCH: Final = 48

type Sample = Mapping[str, float]
type Scenario = Callable[[str, int], Awaitable[Sample]]


def run(scenarios: Mapping[str, Scenario]) -> None:
    """Read the command line of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=sorted(scenarios))
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    chosen = parser.parse_args()

    async def measure() -> Sample:
        return await scenarios[chosen.scenario](chosen.url, chosen.count)

    print(json.dumps(asyncio.run(measure())), flush=True)


async def timed[T](publish: Callable[[Sequence[T]], Awaitable[object]], items: Sequence[T]) -> Sample:
    """Measure the cost of publishing all but the first fifth, which warms up."""
    warm = len(items) // 5
    await publish(items[:warm])
    stopwatch = Stopwatch()
    await publish(items[warm:])
    return stopwatch.read(len(items) - warm)


async def in_flight[T](publish: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Publish with 500 tasks, each waiting for its broker's answer before it takes the next."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await publish(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())


async def one_by_one[T](publish: Callable[[T], Awaitable[object]], items: Iterable[T]) -> None:
    """Publish, wait for the answer, publish the next."""
    for item in items:
        await publish(item)


class Tally:
    """Counts handled messages; its clock runs from the end of the first fifth to the last."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._warm = count // 5
        self._seen = 0
        self._stopwatch: Stopwatch | None = None
        self._sample = asyncio.get_running_loop().create_future()

    def add(self) -> None:
        """One more was handled."""
        self._seen += 1
        if self._seen == self._warm:
            self._stopwatch = Stopwatch()
        elif self._seen == self._count and self._stopwatch:
            self._sample.set_result(self._stopwatch.read(self._count - self._warm))

    async def sample(self) -> Sample:
        """Wait for the last one."""
        result: Sample = await self._sample
        return result


@asynccontextmanager
async def channel_of(url: str, **options: Any) -> AsyncGenerator[AbstractChannel]:
    """Open a plain channel, for setting up and cleaning up."""
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel(**options)


async def fill(url: str, queue: str, bodies: Iterable[bytes]) -> None:
    """Put messages straight into a queue, confirmed."""
    async with channel_of(url) as channel:
        exchange = channel.default_exchange

        async def publish(body: bytes) -> None:
            message = aio_pika.Message(
                body, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await exchange.publish(message, queue)

        await in_flight(publish, bodies)
