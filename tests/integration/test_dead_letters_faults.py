"""Dead letters of a real RabbitMQ while processes, connections and queues go away: nothing is lost."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from hybridkit.errors import (
    BlockedError,
    NotConnectedError,
)
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import (
    DeadLetters,
)
from hybridkit.messaging._dead_letters import _reader as reader_module
from hybridkit.messaging._publishing._writer import Writer
from tests.helpers import until
from tests.helpers.dead_letters import Paid, Shipped, Work, fill, numbers, until_there_are

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


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

    async def is_unread() -> bool:
        return not (await broker.state(letters.queue))[1]

    await until(is_unread)
    sent, left = (await broker.state("letters.work"))[0], (await letters.summary()).messages
    assert sent >= count // 8
    assert left > 0
    assert sent + left >= count

    work.error = None
    async with work.running(guard):
        assert (await letters.redrive()).redriven == left
        assert sorted(await work.done(count)) == list(range(count))

        async def is_idle() -> bool:
            return not ((await broker.state("letters.work"))[0] or work.consumer.in_flight)

        await until(is_idle)
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
    async def are_there() -> bool:
        return (await letters.summary()).messages >= count

    await until(are_there)


async def move(broker: Any, source: str, target: str, count: int) -> None:
    """As the shovel plugin does it."""
    async with broker.channel() as channel:
        queue = await channel.get_queue(source)
        for _ in range(count):
            message = await queue.get()
            moved = aio_pika.Message(message.body, headers=message.headers, type=message.type)
            await channel.default_exchange.publish(moved, routing_key=target)
            await message.ack()
