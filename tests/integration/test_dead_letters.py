"""The dead-letter toolkit on a real RabbitMQ: looking changes nothing, sending back loses nothing."""

import asyncio
from typing import Any

import pytest

from hybridkit.errors import (
    InProgressError,
    MisuseError,
    NotFoundError,
    TopologyError,
)
from hybridkit.events import Command
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import (
    DeadLetterFilter,
    DeadLetters,
)
from hybridkit.messaging._dead_letters import _reader as reader_module
from tests.helpers.dead_letters import Paid, Shipped, Work, fill, numbers, until_there_are

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


class Packed(Command, queue="letters_later", type="letters.packed"):
    number: int


async def bodies(broker: Any, queue: str) -> list[str]:
    """Take all that is in it."""
    count, _ = await broker.state(queue)
    async with broker.channel() as channel, asyncio.timeout(60):
        await channel.set_qos(count + 1)
        async with (await channel.get_queue(queue)).iterator(no_ack=True) as messages:
            return [(await anext(messages)).body.decode() for _ in range(count)]


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
