"""Order per key on a real RabbitMQ: nothing overtakes, whatever fails, waits, or dies.

This file is also a program: the replica of a service that a test kills.
"""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from hybridkit.coordination import Redis, connect_redis
from hybridkit.errors import UnavailableError
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, DeadLetters, Order, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming import _delivery as delivery_module
from hybridkit.messaging._consuming import _subscription as subscription_module
from hybridkit.retry import Retry
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

ROOT = Path(__file__).parents[2]
QUEUE = "tests.balances"


class Moved(Event, type="order.moved", key="account"):
    account: int
    number: int


# ── the proof ────────────────────────────────────────────────────────────────────────────────────

EVENTS, KEYS = 4_000, 100
KILL_AT = EVENTS // 3
GIVEN_UP_EVERY = 199

# The effect, once per event id, as a data service has it: a replica that dies between an effect and the guard's record
# of it has its successor do it again. Answers how many effects there are.
_EFFECT = """
if redis.call('SADD', 'seen', ARGV[1]) == 1 then
    redis.call('RPUSH', 'account:' .. ARGV[2], ARGV[3])
    redis.call('SET', 'worker', ARGV[4])
    return redis.call('INCR', 'effects')
end
return 0
"""


async def replica(rabbitmq_url: str, redis_url: str) -> None:
    """One process of the service: fails at random before and after its effect, and sometimes for good."""
    consumer = RobustConsumer(QUEUE, concurrency=32, order=Order.SKIP)
    retry = Retry.exponential(first_seconds=0.01, cap_seconds=0.1, attempts=1000).never(ValueError)

    @consumer.on(Moved, retry=retry)
    async def move(event: Moved, redis: Redis) -> None:
        if event.number % GIVEN_UP_EVERY == 0:
            raise ValueError("not this one")
        if random.random() < 0.05:
            raise OSError("before the effect")
        given = (str(event.event_id), str(event.account), str(event.number), str(os.getpid()))
        await redis.eval(_EFFECT, 0, *given)
        if random.random() < 0.02:
            raise OSError("after the effect")

    async with (
        connect_redis(redis_url, timeout_seconds=10) as redis,
        RobustPublisher(rabbitmq_url, service="replica") as publisher,
        BrokerConnection(rabbitmq_url, name="replica") as connection,
        consumer.running(
            connection,
            publisher=publisher,
            providers={Redis: redis},
            guard=IdempotencyGuard(redis, lease_seconds=3),
        ),
    ):
        await asyncio.Event().wait()


@asynccontextmanager
async def replicas(*urls: str) -> AsyncGenerator[dict[int, asyncio.subprocess.Process]]:
    """Two processes, by their ids."""
    running: dict[int, asyncio.subprocess.Process] = {}
    try:
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, *urls), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
            )
            running[process.pid] = process
        yield running
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def effects(redis: Redis) -> int:
    return int(await redis.get("effects") or 0)


@pytest.mark.usefixtures("unmeasured_test")
async def test_nothing_overtakes_when_a_replica_is_killed(
    publisher: RobustPublisher, rabbitmq_url: str, redis_url: str
) -> None:
    """4,000 events of 100 keys, random failures, two processes, one of them killed in the middle."""
    events = [Moved(account=n % KEYS, number=n) for n in range(EVENTS)]
    given_up = {n for n in range(EVENTS) if n % GIVEN_UP_EVERY == 0}
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        async with replicas(rabbitmq_url, redis_url) as running:
            await publish(publisher, *events)
            await until(lambda: _at_least(redis, KILL_AT), seconds=200)
            killed = int(await redis.get("worker") or 0)
            running[killed].send_signal(signal.SIGKILL)
            await until(lambda: _at_least(redis, EVENTS - len(given_up)), seconds=200)
            assert int(await redis.get("worker") or 0) != killed
            await until(lambda: _settled(rabbitmq_url), seconds=200)
        for account in range(KEYS):
            numbers = [
                int(n) for n in await cast("Awaitable[Any]", redis.lrange(f"account:{account}", 0, -1))
            ]
            assert numbers == [n for n in range(account, EVENTS, KEYS) if n not in given_up]
    letters = await DeadLetters(rabbitmq_url, f"{QUEUE}.dlq").summary()
    assert letters.messages >= len(given_up)
    assert [group.reason for group in letters.groups] == ["permanent"]


async def _at_least(redis: Redis, count: int) -> bool:
    return await effects(redis) >= count


async def _settled(url: str) -> bool:
    async with BrokerConnection(url, name="tests") as connection:
        open_connection = await connection.opened()
        channel = await open_connection.channel(confirms=False)
        return not (await channel.queue_declare(QUEUE, passive=True)).message_count


# ── one by one ───────────────────────────────────────────────────────────────────────────────────


class Ledger:
    """What handlers did, in order."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def of(self, account: int) -> list[int]:
        return [number for key, number in self.entries if key == account]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def publish(publisher: RobustPublisher, *events: Event) -> None:
    """In that order; queues of consumers that are just starting may not be there yet."""
    for event in events[:1]:
        while not (await publisher.publish(event, allow_unrouted=True)).routed:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.05)
    if rest := events[1:]:
        await publisher.publish_many(rest)


def consumer_of(
    handle: Callable[[Moved], Awaitable[None]], *, retry: Retry | None = None, **options: Any
) -> RobustConsumer:
    consumer = RobustConsumer(QUEUE, order=Order.SKIP, **options)

    @consumer.on(Moved, retry=retry)
    async def run(event: Moved) -> None:
        await handle(event)

    return consumer


async def test_keys_run_beside_each_other_and_the_events_of_one_in_turn(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """At most one event of each key runs at a time, and all keys do."""
    go_on, running, most = asyncio.Event(), Counter[int](), 0

    async def handle(event: Moved) -> None:
        nonlocal most
        running[event.account] += 1
        most = max(most, running.total())
        assert running[event.account] == 1
        await go_on.wait()
        ledger.entries.append((event.account, event.number))
        running[event.account] -= 1

    async with consumer_of(handle).running(connection, publisher=publisher):
        await publish(publisher, *(Moved(account=n % 3, number=n) for n in range(30)))
        await until(lambda: running.total() == 3)
        go_on.set()
        await until(lambda: len(ledger.entries) == 30)
    assert most == 3
    assert [ledger.of(account) for account in range(3)] == [
        list(range(account, 30, 3)) for account in range(3)
    ]


async def test_a_failing_event_holds_its_key_and_no_other(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, broker: Any
) -> None:
    """Also where one handler runs at a time: what waits for its next attempt takes no place. Then it is skipped."""

    async def handle(event: Moved) -> None:
        ledger.entries.append((event.account, event.number))
        if event.number == 0:
            raise OSError("always")

    retry = Retry.exponential(first_seconds=0.3, cap_seconds=0.3, attempts=4)
    consumer = consumer_of(handle, retry=retry, concurrency=1)
    async with consumer.running(connection, publisher=publisher):
        await publish(publisher, *(Moved(account=n % 2, number=n) for n in range(6)))
        await until(lambda: ledger.of(0)[-1:] == [4])
        assert ledger.of(0) == [0, 0, 0, 0, 2, 4]
        assert ledger.of(1) == [1, 3, 5]
        assert ledger.entries.index((1, 5)) < ledger.entries.index((0, 2))
    letter = await broker.read(f"{QUEUE}.dlq")
    assert (letter.headers["hk_reason"], letter.headers["hk_attempt"]) == ("exhausted", 4)


async def test_one_of_two_replicas_works_and_the_other_takes_over_from_a_drain(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """The first one finishes what runs before the second one gets anything: no event overtakes its predecessor."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def first(event: Moved) -> None:
        begun.set()
        await go_on.wait()
        ledger.entries.append((1, event.number))

    async def second(event: Moved) -> None:
        ledger.entries.append((2, event.number))

    one, two = consumer_of(first), consumer_of(second)
    await one.start(connection, publisher=publisher)
    async with two.running(connection, publisher=publisher):
        await publish(publisher, *(Moved(account=1, number=n) for n in range(5)))
        await begun.wait()
        assert two.is_ready
        drain = asyncio.create_task(one.drain(budget_seconds=30))
        await until(lambda: not one.is_ready)
        await publish(publisher, Moved(account=1, number=5))
        assert ledger.entries == []
        go_on.set()
        assert await drain
        await until(lambda: len(ledger.entries) == 6)
    assert ledger.entries == [(1, 0), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5)]


async def test_what_waits_for_too_long_goes_back_in_order_and_goes_on_counting(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    broker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the broker's own timeout, with everything that is in hand."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 6.0)

    async def handle(event: Moved) -> None:
        ledger.entries.append((event.account, event.number))
        if event.number == 0:
            raise OSError("always")

    retry = Retry(first_seconds=0.6, cap_seconds=0.6, attempts=5)
    monkeypatch.setattr("random.random", lambda: 1.0)
    async with consumer_of(handle, retry=retry, timeout_seconds=5).running(connection, publisher=publisher):
        await publish(publisher, *(Moved(account=1, number=n) for n in range(5)))
        await until(lambda: len(ledger.of(1)) == 9)
    assert ledger.of(1) == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert (await broker.read(f"{QUEUE}.dlq")).headers["hk_attempt"] == 5


async def test_a_pause_that_takes_too_long_keeps_the_order(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages that have waited too long go back with their channel, and come again in their order."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 5.5)
    is_up, asked = False, 0

    async def handle(event: Moved) -> None:
        nonlocal asked
        asked += 1
        if not is_up:
            raise UnavailableError("down")
        ledger.entries.append((event.account, event.number))

    retry = Retry.immediate(attempts=1).pause_on(UnavailableError)
    consumer = consumer_of(handle, retry=retry, timeout_seconds=5)
    async with consumer.running(connection, publisher=publisher):
        await publish(publisher, *(Moved(account=n % 2, number=n) for n in range(10)))
        await until(lambda: consumer.paused is not None)
        run = consumer._run
        assert run
        open_channel = run._channel.current
        assert open_channel
        await until(lambda: not open_channel.is_open)
        is_up = True
        await until(lambda: len(ledger.entries) == 10)
    assert [ledger.of(0), ledger.of(1)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


async def test_another_holder_is_waited_for_in_place(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    redis_url: str,
) -> None:
    """Its successors wait too: the holder may still be doing what comes before them."""

    async def handle(event: Moved) -> None:
        ledger.entries.append((event.account, event.number))

    first, second = Moved(account=1, number=1), Moved(account=1, number=2)
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        guard = IdempotencyGuard(redis, lease_seconds=1.5)
        payload = ["order.moved", 1, first.model_dump()]
        await guard.begin(f"{QUEUE}:tests:{first.event_id}:0", payload)  # by a process that dies then
        async with consumer_of(handle).running(connection, publisher=publisher, guard=guard):
            await publish(publisher, first, second, Moved(account=2, number=3))
            await until(lambda: len(ledger.entries) == 3)
    assert ledger.entries == [(2, 3), (1, 1), (1, 2)]


async def test_a_mistake_of_our_own_changes_no_order(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Putting one message back would have its successors overtake it; so all of them go back."""
    monkeypatch.setattr(subscription_module, "UNEXPECTED_PAUSE_SECONDS", 0.01)

    async def handle(event: Moved) -> None:
        ledger.entries.append((event.account, event.number))

    consumer = consumer_of(handle)
    async with consumer.running(connection, publisher=publisher):
        assert consumer._run
        process, trips = consumer._run._processor.process, 0

        async def trip(delivery: Any) -> None:
            nonlocal trips
            trips += 1
            if trips < 3:
                raise LookupError("a bug")
            await process(delivery)

        monkeypatch.setattr(consumer._run._processor, "process", trip)
        await publish(publisher, *(Moved(account=1, number=n) for n in range(5)))
        await until(lambda: len(ledger.entries) == 5)
    assert ledger.of(1) == [0, 1, 2, 3, 4]


if __name__ == "__main__":
    asyncio.run(replica(*sys.argv[1:]))
