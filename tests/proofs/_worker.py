"""A replica of the ledger's consumers: `python -m tests.proofs._worker NAME URL FOLDER REDIS_URL`.

Three queues: events that may fail and be retried or dead-lettered, the same events for somebody whose queue gets
deleted, and commands with delays. Each handler's effect is a line in the book, with the idempotency key that a data
client would send.
"""

import asyncio
import random
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from hybridkit.codec import now
from hybridkit.context import current
from hybridkit.coordination import connect_redis
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.ids import derived_key
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import metrics
from hybridkit.retry import Retry
from tests.proofs._books import ORDERS, TASKS, WATCHERS, Book
from tests.proofs._client import OrderPlaced, Sampler, ShipOrder, log_warnings, say, stopped_by_signal

RETRY = Retry.exponential(first_seconds=0.5, cap_seconds=4, attempts=30).never(PermissionError)
LONGEST_WORK_SECONDS = 0.03
REDIS_CONNECTIONS = 50


def consumers(book: Book) -> list[RobustConsumer]:
    """Return the three consumers with their handlers."""
    orders, watchers, tasks = RobustConsumer(ORDERS), RobustConsumer(WATCHERS), RobustConsumer(TASKS)

    @orders.on(OrderPlaced, retry=RETRY)
    async def place(event: OrderPlaced) -> None:
        await _work(event)
        _write(book, event, ORDERS)

    @watchers.on(OrderPlaced, retry=RETRY)
    async def watch(event: OrderPlaced) -> None:
        _write(book, event, WATCHERS)

    @tasks.on(ShipOrder, retry=RETRY)
    async def ship(command: ShipOrder) -> None:
        if (now() - command.timestamp).total_seconds() < command.delay_seconds:
            book.write("early", command.event_id, TASKS)
        await _work(command)
        _write(book, command, TASKS)

    return [orders, watchers, tasks]


async def _work(message: OrderPlaced | ShipOrder) -> None:
    await asyncio.sleep(random.uniform(0, LONGEST_WORK_SECONDS))
    if message.fate == "poison":
        raise PermissionError("nobody may do this")
    if message.fate == "flaky" and random.random() < 0.5:
        raise ConnectionError("not this time")


def _write(book: Book, message: OrderPlaced | ShipOrder, queue: str) -> None:
    """Record the effect of a handler, under a key that derives from the claim and the step, as a data client does."""
    claim = current().claim
    assert claim is not None
    book.write("effect", message.event_id, queue, derived_key(claim.key, claim.step("create effects")))


def duplicates() -> float:
    """Return the number of deliveries that were acknowledged because their work was done before."""
    return sum(
        sample.value
        for family in metrics.events_consumed.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == "duplicate"
    )


async def main(name: str, url: str, folder: Path, redis_url: str) -> None:
    """Consume until SIGTERM."""
    log_warnings(folder / f"{name}.log")
    stopped = stopped_by_signal()
    async with AsyncExitStack() as stack:
        book = stack.enter_context(Book(folder / f"{name}.book"))
        # Redis is not what is tested: on a busy machine it gets more time than the guard would go on without it.
        redis = await stack.enter_async_context(
            connect_redis(redis_url, timeout_seconds=10, max_connections=REDIS_CONNECTIONS)
        )
        guard = IdempotencyGuard(redis)
        publisher = await stack.enter_async_context(RobustPublisher(url, service=name))
        connection = await stack.enter_async_context(BrokerConnection(url, name=name))
        running = consumers(book)
        for consumer in running:
            await stack.enter_async_context(consumer.running(connection, publisher=publisher, guard=guard))
        sampler = Sampler(
            folder / f"{name}.samples",
            more=lambda: {
                "ready": all(consumer.is_ready for consumer in running),
                "in_flight": sum(consumer.in_flight for consumer in running),
                "duplicates": duplicates(),
            },
        )
        # All connections that the pool may have, so that those are no growth.
        await asyncio.gather(*(redis.ping() for _ in range(REDIS_CONNECTIONS)))  # pyright: ignore[reportUnknownMemberType] - untyped kwargs
        sampler.take("before")
        say("ready")
        await sampler.run_until(stopped)
        sampler.take("after")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
