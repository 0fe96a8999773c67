"""The dead-letter toolkit on a real RabbitMQ: looking changes nothing, sending back loses nothing."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from hybridkit.coordination import connect_redis
from hybridkit.errors import (
    BlockedError,
    InProgressError,
    MisuseError,
    NotConnectedError,
    NotFoundError,
    TopologyError,
)
from hybridkit.events import Command, Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import (
    BrokerConnection,
    DeadLetter,
    DeadLetterFilter,
    DeadLetters,
    RobustConsumer,
    RobustPublisher,
)
from hybridkit.messaging._dead_letters import _reader as reader_module
from hybridkit.messaging._publishing._writer import Writer
from hybridkit.retry import Retry

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]

NO_LIMIT = 1_000_000_000


class Paid(Event, type="letters.paid"):
    number: int = 0


class Shipped(Event, type="letters.shipped"):
    number: int = 0


class Packed(Command, queue="letters_later", type="letters.packed"):
    number: int


class Work:
    """A consumer, what its handlers have done, and the error with which they fail meanwhile."""

    def __init__(self, url: str, publisher: RobustPublisher) -> None:
        self.publisher = publisher
        self.numbers: list[int] = []
        self.error: Exception | None = None
        self.consumer = RobustConsumer("letters.work")
        self.consumer.on(Paid, retry=Retry.immediate(attempts=2))(self._pay)
        self.consumer.on(Shipped, retry=Retry.immediate(attempts=1))(self._ship)
        self._url = url
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def running(self, guard: IdempotencyGuard | None = None) -> AsyncGenerator[None]:
        async with (
            BrokerConnection(self._url, name="tests") as connection,
            self.consumer.running(connection, publisher=self.publisher, guard=guard),
        ):
            yield

    async def done(self, count: int) -> list[int]:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self.numbers) >= count)
        return self.numbers

    async def _pay(self, event: Paid) -> None:
        await self._add(event.number)

    async def _ship(self, event: Shipped) -> None:
        await self._add(event.number)

    async def _add(self, number: int) -> None:
        if self.error is not None:
            raise self.error
        async with self._changed:
            self.numbers.append(number)
            self._changed.notify_all()


@pytest.fixture
async def work(rabbitmq_url: str) -> AsyncGenerator[Work]:
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        yield Work(rabbitmq_url, publisher)


@pytest.fixture
async def guard(redis_url: str) -> AsyncGenerator[IdempotencyGuard]:
    """A patient one, as it would go on without a Redis that a busy machine keeps from answering."""
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield IdempotencyGuard(redis, timeout_seconds=30)


@pytest.fixture
def letters(rabbitmq_url: str) -> DeadLetters:
    return DeadLetters(rabbitmq_url, "letters.work.dlq")


@pytest.fixture
async def queues(broker: Any) -> None:
    """The consumer's two queues, without the consumer."""
    async with broker.channel() as channel:
        for name in ("letters.work", "letters.work.dlq"):
            await channel.declare_queue(
                name, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
            )


async def fill(broker: Any, *bodies: object, queue: str = "letters.work.dlq", **options: Any) -> None:
    async with broker.channel() as channel:
        for body in bodies:
            message = aio_pika.Message(str(body).encode(), delivery_mode=2, **options)
            await channel.default_exchange.publish(message, routing_key=queue)


async def until_there_are(count: int, queue: str, broker: Any) -> None:
    async with asyncio.timeout(60):
        while (await broker.state(queue))[0] < count:  # noqa: ASYNC110 - it happens at the broker
            await asyncio.sleep(0.01)


async def bodies(broker: Any, queue: str) -> list[str]:
    """Take all that is in it."""
    count, _ = await broker.state(queue)
    async with broker.channel() as channel, asyncio.timeout(60):
        await channel.set_qos(count + 1)
        async with (await channel.get_queue(queue)).iterator(no_ack=True) as messages:
            return [(await anext(messages)).body.decode() for _ in range(count)]


def numbers(letters: list[DeadLetter]) -> list[int]:
    return [int(letter.body) for letter in letters]


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


async def test_dead_letters_are_counted_by_type_reason_and_error(
    work: Work,
    letters: DeadLetters,
    broker: Any,
) -> None:
    """Whoever made them dead: our consumer, the broker when a plain client rejects, or a stranger's hand."""
    work.error = OSError("no bank")
    shipped = Shipped()
    async with work.running():
        await work.publisher.publish_many([Paid(number=1), Paid(number=2), shipped])
        await fill(broker, "no json", queue="letters.work")
        await until_there_are(4, "letters.work.dlq", broker)
    await work.publisher.publish(Paid(number=3))
    async with broker.channel() as channel:
        queue = await channel.get_queue("letters.work")
        async with queue.iterator() as messages:
            await (await anext(messages)).reject(requeue=False)
    await until_there_are(5, "letters.work.dlq", broker)
    await fill(broker, "a stranger's", type="strange")

    summary = await letters.summary()
    assert (summary.messages, summary.looked_at) == (6, 6)
    assert {(each.event_type, each.reason, each.error_type, each.count) for each in summary.groups} == {
        ("letters.paid", "exhausted", "builtins.OSError", 2),
        ("letters.shipped", "exhausted", "builtins.OSError", 1),
        (None, "malformed", "hybridkit.errors.MalformedPayloadError", 1),
        ("letters.paid", "rejected", None, 1),
        ("strange", None, None, 1),
    }
    assert summary.groups[0].count == 2
    by_type = {(each.event_type, each.reason): each for each in summary.groups}
    group = by_type["letters.shipped", "exhausted"]
    assert (group.event_id, group.error) == (str(shipped.event_id), "no bank")
    assert group.first_failed_at
    assert group.last_failed_at
    assert by_type["letters.paid", "rejected"].last_failed_at
    assert by_type["strange", None].last_failed_at is None


async def test_a_dead_letter_says_what_is_known_of_it(
    work: Work,
    letters: DeadLetters,
    broker: Any,
) -> None:
    """A consumer's dead letter has its place, its event, its error and its attempts."""
    work.error = OSError("no bank")
    event = Paid(number=7)
    async with work.running():
        await work.publisher.publish(event)
        await until_there_are(1, "letters.work.dlq", broker)
    [letter] = await letters.peek()
    assert (letter.queue, letter.position, letter.target) == ("letters.work.dlq", 1, "letters.work")
    assert (letter.event_type, letter.event_id) == ("letters.paid", str(event.event_id))
    assert (letter.reason, letter.error_type, letter.error) == ("exhausted", "builtins.OSError", "no bank")
    assert (letter.attempts, letter.generation) == (2, 0)
    assert "raise self.error" in str(letter.stack)
    assert b'"number":7' in letter.body


@pytest.mark.usefixtures("queues")
async def test_looking_neither_loses_nor_reorders(letters: DeadLetters, broker: Any) -> None:
    """More often than the 20 deliveries after which a quorum queue drops (trap 15), and never so many at a time."""
    await fill(broker, *range(12))
    for limit in [10, 3, 7, 1, 12, *[5] * 20]:
        assert numbers(await letters.peek(limit=limit)) == list(range(min(limit, 12)))
    assert (await letters.summary()).messages == 12
    assert await bodies(broker, "letters.work.dlq") == [str(number) for number in range(12)]


async def test_a_queue_that_counts_looks_is_not_looked_at(letters: DeadLetters, broker: Any) -> None:
    """RabbitMQ 4 gives it a limit of 20, after which a message is gone without a trace."""
    async with broker.channel() as channel:
        await channel.declare_queue("letters.work.dlq", durable=True, arguments={"x-queue-type": "quorum"})
    with pytest.raises(TopologyError, match="x-delivery-limit is not set"):
        await letters.summary()


async def test_a_classic_queue_counts_nothing(letters: DeadLetters, broker: Any) -> None:
    """A classic queue has no delivery limit, so it is read without one."""
    async with broker.channel() as channel:
        await channel.declare_queue("letters.work.dlq", durable=True, arguments={"x-queue-type": "classic"})
    await fill(broker, *range(3))
    for _ in range(2):
        assert numbers(await letters.peek(limit=2)) == [0, 1]
    last = DeadLetterFilter(predicate=lambda letter: letter.body == b"2")
    assert numbers(await letters.peek(last)) == [2]


@pytest.mark.usefixtures("queues")
async def test_only_one_reads_at_a_time(letters: DeadLetters, broker: Any) -> None:
    """Two would each hold messages that the other one looks for, and give them back in another order."""
    async with reader_module.open_reader(broker.url, letters.queue):
        with pytest.raises(InProgressError, match="one at a time"):
            await letters.peek()
    async with broker.channel() as channel:
        queue = await channel.get_queue(letters.queue)

        async def take(_: object) -> None:
            """Take it."""

        await queue.consume(take)
        with pytest.raises(InProgressError, match="has 1 consumers"):
            await letters.peek()


async def test_a_queue_that_is_not_there_is_named(letters: DeadLetters) -> None:
    """A reader does not declare the queue that it is asked for."""
    with pytest.raises(NotFoundError, match=r"no queue 'letters\.work\.dlq'"):
        await letters.summary()


@pytest.mark.usefixtures("queues")
async def test_a_reader_sees_as_far_as_its_window(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says how far that was; what it takes out makes room for more."""
    monkeypatch.setattr(reader_module, "WINDOW_MESSAGES", 4)
    await fill(broker, *range(8))
    summary = await letters.summary()
    assert (summary.messages, summary.looked_at) == (8, 4)
    stays = DeadLetterFilter(predicate=lambda letter: int(letter.body) not in {1, 4, 6})
    redriven = await letters.redrive(stays)
    assert (redriven.redriven, redriven.looked_at, redriven.left) == (4, 7, 4)
    assert numbers(await letters.peek()) == [1, 4, 6, 7]


# ── sending back ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("queues")
async def test_what_fits_the_filter_is_sent_back_and_the_rest_stays_in_order(
    letters: DeadLetters, broker: Any
) -> None:
    """The counts say what matched and what is left, and progress is told."""
    for number in range(10):
        await fill(broker, number, type="odd" if number % 2 else "even")
    told: list[tuple[int, int]] = []
    odd = DeadLetterFilter(event_type="odd")
    redriven = await letters.redrive(odd, on_progress=lambda *counts: told.append(counts))
    assert (redriven.messages, redriven.matched, redriven.redriven, redriven.left) == (10, 5, 5, 5)
    assert (redriven.failed, redriven.groups[0].count, redriven.dry_run) == ({}, 5, False)
    assert told[-1] == (5, 0)
    assert numbers(await letters.peek()) == [0, 2, 4, 6, 8]
    assert await bodies(broker, "letters.work") == ["1", "3", "5", "7", "9"]


@pytest.mark.usefixtures("queues")
async def test_what_was_sent_back_is_out_of_the_queue(letters: DeadLetters, broker: Any) -> None:
    """A channel that closes at once drops all acknowledgements but the first 32 [RabbitMQ 4.3]."""
    await fill(broker, *range(300))
    assert (await letters.redrive()).redriven == 300
    assert (await letters.summary()).messages == 0
    assert (await broker.state("letters.work"))[0] == 300


@pytest.mark.usefixtures("queues")
async def test_a_message_that_does_not_come_back_is_waited_for_only_so_long(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its acknowledgement may be lost, and it is sent twice."""
    monkeypatch.setattr(reader_module, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(reader_module, "SILENCE_SECONDS", 0.01)
    await fill(broker, 0)
    async with (
        reader_module.open_reader(broker.url, letters.queue) as reader,
        reader.window(most=reader.messages) as window,
    ):
        message = await window.next()
        assert message
        window.ack(message._replace(body=b"another"))
        await window.flush()
        await window.flush()
    await until_there_are(1, letters.queue, broker)


@pytest.mark.usefixtures("queues")
async def test_a_dry_run_changes_nothing(letters: DeadLetters, broker: Any) -> None:
    """It counts what would be sent, up to the limit, and both queues stay as they are."""
    await fill(broker, *range(6), type="even")
    redriven = await letters.redrive(dry_run=True, limit=4)
    assert (redriven.matched, redriven.redriven, redriven.left, redriven.dry_run) == (4, 0, 6, True)
    assert redriven.groups[0].count == 4
    assert await broker.state("letters.work") == (0, 0)
    assert numbers(await letters.peek()) == list(range(6))
    none = await letters.redrive(DeadLetterFilter(event_type="odd"), dry_run=True)
    assert (none.matched, none.looked_at) == (0, 6)


@pytest.mark.usefixtures("queues")
async def test_no_more_than_the_limit_is_sent_back(letters: DeadLetters, broker: Any) -> None:
    """The oldest are sent, and the others stay in their order."""
    await fill(broker, *range(6))
    assert (await letters.redrive(limit=2)).redriven == 2
    assert numbers(await letters.peek()) == [2, 3, 4, 5]


@pytest.mark.usefixtures("queues")
async def test_no_faster_than_the_rate(letters: DeadLetters, broker: Any) -> None:
    """Six messages at 20 per second take a quarter of a second, and a rate of 0 is refused."""
    await fill(broker, *range(6))
    began = asyncio.get_running_loop().time()
    assert (await letters.redrive(rate_per_second=20)).redriven == 6
    assert asyncio.get_running_loop().time() - began >= 5 / 20
    with pytest.raises(MisuseError, match="at least"):
        await letters.redrive(rate_per_second=0)


async def test_a_redriven_event_runs_although_the_guard_remembers_its_failure(
    work: Work,
    letters: DeadLetters,
    broker: Any,
    guard: IdempotencyGuard,
) -> None:
    """Once: the same event again is a duplicate, as before."""
    work.error = OSError("no bank")
    event = Paid(number=5)
    async with work.running(guard):
        await work.publisher.publish(event)
        await until_there_are(1, "letters.work.dlq", broker)
        work.error = None
        await work.publisher.publish(event)  # a duplicate of what has failed: nothing runs
        assert (await letters.redrive()).redriven == 1
        assert await work.done(1) == [5]
        await work.publisher.publish(Paid(number=6))
        assert await work.done(2) == [5, 6]


async def test_what_fails_again_comes_back_one_generation_on(
    work: Work,
    letters: DeadLetters,
    broker: Any,
) -> None:
    """With attempts that were counted anew; and the redrive that sent it doesn't meet it again."""
    work.error = OSError("no bank")
    async with work.running():
        await work.publisher.publish_many([Paid(number=number) for number in range(5)])
        await until_there_are(5, letters.queue, broker)
        work.error = OSError("still no bank")
        assert (await letters.redrive(rate_per_second=50)).redriven == 5
        await until_there_are(5, letters.queue, broker)
    again = await letters.peek()
    assert [(letter.generation, letter.attempts, letter.error) for letter in again] == [
        (1, 2, "still no bank")
    ] * 5


async def test_what_the_broker_gave_up_is_sent_back_without_its_notes(
    work: Work,
    letters: DeadLetters,
    broker: Any,
) -> None:
    """The copy runs, without the broker's `x-death` headers of the rejected message."""
    async with work.running():
        pass
    await work.publisher.publish(Paid(number=3))
    async with broker.channel() as channel:
        queue = await channel.get_queue("letters.work")
        async with queue.iterator() as messages:
            await (await anext(messages)).reject(requeue=False)
    await until_there_are(1, letters.queue, broker)
    [letter] = await letters.peek()
    assert (letter.reason, letter.target) == ("rejected", "letters.work")
    assert (await letters.redrive(DeadLetterFilter(reason="rejected"))).redriven == 1
    message = await broker.read("letters.work")
    assert message.headers["hk_generation"] == 1
    assert not [name for name in message.headers if name.startswith("x-") and "death" in name]


async def test_what_found_no_queue_can_be_sent_when_there_is_one(
    work: Work, rabbitmq_url: str, broker: Any
) -> None:
    """A delayed command whose queue is missing at the end of the delay waits in the parking queue."""
    await work.publisher.send(Packed(number=1), delay_seconds=1)
    await until_there_are(1, "hk.unrouted", broker)
    parked = DeadLetters(rabbitmq_url, "hk.unrouted")
    [letter] = await parked.peek()
    assert letter.target == "letters_later"
    failed = await parked.redrive()
    assert (failed.redriven, failed.left) == (0, 1)
    [why] = failed.failed
    assert "no queue wants letters.packed" in why
    async with broker.channel() as channel:
        await channel.declare_queue("letters_later", durable=True)
    assert (await parked.redrive()).redriven == 1
    assert b'"number":1' in (await broker.read("letters_later")).body


@pytest.mark.usefixtures("queues")
async def test_what_can_not_be_sent_stays_in_its_place(letters: DeadLetters, broker: Any) -> None:
    """Messages whose queue is gone are counted as failed, and the others are sent."""
    headers = {"hk_reason": "exhausted", "hk_queue": "letters.gone"}
    await fill(broker, 0)
    await fill(broker, 1, 2, headers=headers)
    await fill(broker, 3)
    redriven = await letters.redrive()
    assert (redriven.redriven, redriven.left, sum(redriven.failed.values())) == (2, 2, 2)
    assert numbers(await letters.peek()) == [1, 2]


@pytest.mark.usefixtures("queues")
async def test_what_is_held_is_bounded(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the bound a reader ends and another one goes on: in order, and what has failed fails once."""
    readers = 0

    class Counted(reader_module.Window):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            nonlocal readers
            readers += 1
            super().__init__(*arguments, **options)

    gone = {"hk_reason": "exhausted", "hk_queue": "letters.gone"}
    await fill(broker, "stays", type="other")
    await fill(broker, "fails", headers=gone)
    await fill(broker, *range(10))
    wanted = DeadLetterFilter(predicate=lambda letter: letter.event_type != "other")
    with monkeypatch.context() as patch:
        patch.setattr(reader_module, "BUDGET_BYTES", 0)
        patch.setattr(reader_module, "Window", Counted)
        redriven = await letters.redrive(wanted)
    assert (redriven.matched, redriven.redriven, sum(redriven.failed.values())) == (11, 10, 1)
    assert [letter.body for letter in await letters.peek()] == [b"stays", b"fails"]
    assert await bodies(broker, "letters.work") == [str(number) for number in range(10)]
    assert readers > 2


@pytest.mark.usefixtures("queues")
async def test_a_reader_ends_before_the_broker_takes_its_messages_for_abandoned(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The redrive goes on with a new window, and sends each message once."""
    monkeypatch.setattr(reader_module, "MAX_UNACKED_SECONDS", 0.1)
    await fill(broker, *range(6))
    assert (await letters.redrive(rate_per_second=20)).redriven == 6
    assert await bodies(broker, "letters.work") == [str(number) for number in range(6)]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────

KILLED = """
import asyncio, os, signal, sys
from hybridkit.messaging import DeadLetters

def progress(redriven, failed):
    if redriven >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(DeadLetters(sys.argv[1], "letters.work.dlq").redrive(on_progress=progress))
"""


async def kill_half_way(url: str, folder: Path, *, after: int) -> None:
    """Run a redrive in a process that SIGKILL ends when so many are sent, and up to a hundred more under way."""
    script = folder / "killed.py"
    script.write_text(KILLED)
    process = await asyncio.create_subprocess_exec(sys.executable, script, url, str(after))
    async with asyncio.timeout(60):
        assert await process.wait() == -9


@pytest.mark.usefixtures("unmeasured_test")
async def test_a_redrive_that_is_killed_loses_nothing(
    work: Work,
    letters: DeadLetters,
    broker: Any,
    guard: IdempotencyGuard,
    tmp_path: Path,
) -> None:
    """Each event is in one of the queues or in both, and has one effect in the end."""
    count = 240
    work.error = OSError("no bank")
    async with work.running(guard):
        await work.publisher.publish_many([Shipped(number=number) for number in range(count)])
        await until_there_are(count, letters.queue, broker)
    await kill_half_way(broker.url, tmp_path, after=count // 8)
    async with asyncio.timeout(60):
        while (await broker.state(letters.queue))[1]:  # noqa: ASYNC110 - it happens at the broker
            await asyncio.sleep(0.01)
    sent, left = (await broker.state("letters.work"))[0], (await letters.summary()).messages
    assert sent >= count // 8
    assert left > 0
    assert sent + left >= count

    work.error = None
    async with work.running(guard):
        assert (await letters.redrive()).redriven == left
        assert sorted(await work.done(count)) == list(range(count))
        async with asyncio.timeout(60):
            while (await broker.state("letters.work"))[0] or work.consumer.in_flight:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    assert sorted(work.numbers) == list(range(count))
    assert (await letters.summary()).messages == 0


@pytest.mark.usefixtures("queues")
async def test_without_a_broker_to_send_to_everything_stays(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that concerns all messages is raised, and the queue keeps its order."""
    await fill(broker, *range(5))

    async def refuse(*_: object) -> bool:
        raise BlockedError("a memory alarm")

    monkeypatch.setattr(Writer, "forward", refuse)
    with pytest.raises(BlockedError):
        await letters.redrive()
    assert numbers(await letters.peek()) == list(range(5))


@pytest.mark.usefixtures("queues")
async def test_a_queue_that_is_emptied_meanwhile_is_at_its_end(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what never comes back is not waited for."""
    monkeypatch.setattr(reader_module, "SETTLE_SECONDS", 0.1)
    await fill(broker, *range(3))
    async with reader_module.open_reader(broker.url, letters.queue) as reader:
        async with broker.channel() as channel:
            await (await channel.get_queue(letters.queue)).purge()
        async with reader.window(most=reader.messages) as window:
            assert await window.next() is None


@pytest.mark.usefixtures("queues")
async def test_a_broker_that_has_messages_and_delivers_none_is_not_waited_for(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because the reader keeps more than it says."""
    monkeypatch.setattr(reader_module, "WINDOW_MESSAGES", 1)
    monkeypatch.setattr(reader_module, "SILENCE_SECONDS", 0.01)
    await fill(broker, *range(3))
    async with (
        reader_module.open_reader(broker.url, letters.queue) as reader,
        reader.window(most=reader.messages) as window,
    ):
        assert await window.next()
        with pytest.raises(NotConnectedError, match="delivers none"):
            await window.next()


@pytest.mark.usefixtures("queues")
async def test_a_reader_whose_time_is_up_hands_out_nothing(
    letters: DeadLetters, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages may be delivered elsewhere, so the window is cut."""
    monkeypatch.setattr(reader_module, "MAX_UNACKED_SECONDS", 0.0)
    await fill(broker, 0)
    async with (
        reader_module.open_reader(broker.url, letters.queue) as reader,
        reader.window(most=reader.messages) as window,
    ):
        assert await window.next() is None
        assert window.was_cut


@pytest.mark.usefixtures("queues")
async def test_a_queue_that_is_deleted_meanwhile_is_an_error(letters: DeadLetters, broker: Any) -> None:
    """Both the window that is open and the next one say so."""
    await fill(broker, *range(3))
    async with reader_module.open_reader(broker.url, letters.queue) as reader:
        async with reader.window(most=4) as window:
            for _ in range(3):
                window.ack(await window.next() or pytest.fail("the end came too soon"))
            async with broker.channel() as channel:
                await channel.queue_delete(letters.queue)
            with pytest.raises(NotConnectedError, match="was the queue deleted"):
                await window.next()
            window.acknowledged = 4
        with pytest.raises(NotConnectedError, match="ChannelNotFoundEntity"):
            async with reader.window(most=1):
                pass


@pytest.mark.usefixtures("queues")
async def test_a_lost_connection_is_an_error(broker: Any) -> None:
    """The window is over, as the broker delivers its messages again."""
    await fill(broker, 0)
    async with (
        reader_module.open_reader(broker.url, "letters.work.dlq") as reader,
        broker.proxied() as (proxy, url),
    ):
        away = reader_module.QueueReader(url, reader.queue, reader._inspection, 2)
        async with away.window(most=2) as window:
            await window.next()
            proxy.reset()
            with pytest.raises(NotConnectedError, match="connection lost"):
                await window.next()
            assert window.is_over
            await window.flush()
            window.acknowledged = 1


async def test_dead_letters_that_were_moved_by_other_means_run_again(
    work: Work, letters: DeadLetters, guard: IdempotencyGuard, broker: Any
) -> None:
    """A shovel, or "Move messages" in RabbitMQ's interface, publishes them as they are, with all their headers."""
    work.error = OSError("a bug")
    async with work.running(guard):
        for again in range(2):
            for number in range(0 if again else 5):
                await work.publisher.publish(Paid(number=number))
            await in_all(letters, 5)
            work.error = OSError("still there") if again == 0 else None
            await move(broker, "letters.work.dlq", "letters.work", 5)
        assert sorted(await work.done(5)) == list(range(5))
    assert (await letters.summary()).messages == 0


async def in_all(letters: DeadLetters, count: int) -> None:
    async with asyncio.timeout(60):
        while (await letters.summary()).messages < count:  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.05)


async def move(broker: Any, source: str, target: str, count: int) -> None:
    """As the shovel plugin does it."""
    async with broker.channel() as channel:
        queue = await channel.get_queue(source)
        for _ in range(count):
            message = await queue.get()
            moved = aio_pika.Message(message.body, headers=message.headers, type=message.type)
            await channel.default_exchange.publish(moved, routing_key=target)
            await message.ack()
