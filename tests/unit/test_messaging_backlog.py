"""Deliveries wait in order, run side by side up to a limit, and share nothing."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, cast

import pytest

from hybridkit.messaging._consuming import _backlog as backlog_module
from hybridkit.messaging._consuming._backlog import FifoBacklog, Workers
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog

pytestmark = pytest.mark.usefixtures("logs")

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Numbered:
    """As much of a delivery as waits for its turn."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_ours = True

    def age_seconds(self) -> float:
        return 10.0 - self.number


def delivery(number: int) -> Delivery:
    return cast("Delivery", Numbered(number))


def number_of(delivery: Delivery) -> int:
    return cast("Numbered", delivery).number


@pytest.fixture
def backlog() -> FifoBacklog:
    return FifoBacklog(prefetch=3)


@asynccontextmanager
async def workers(
    backlog: FifoBacklog, process: Callable[[Delivery], Coroutine[Any, Any, None]], *, concurrency: int = 1
) -> AsyncGenerator[Workers]:
    running = Workers(backlog, process, concurrency=concurrency, name="tests")
    running.start()
    try:
        yield running
    finally:
        await running.stop()
        await running.cancel(seconds=5)


async def test_the_oldest_is_next(backlog: FifoBacklog) -> None:
    """A `get` that waited takes the first delivery, and the next `get` the second."""
    first = asyncio.create_task(backlog.get())
    await asyncio.sleep(0)
    for number in range(3):
        backlog.put(delivery(number))
    assert [number_of(await first), number_of(await backlog.get())] == [0, 1]
    assert len(backlog) == 1


def test_the_wait_is_that_of_the_oldest(backlog: FifoBacklog) -> None:
    """It is the first of those that wait, also where keys keep an order, and none is no wait."""
    keyed = KeyedBacklog()
    for each in (backlog, keyed):
        assert each.longest_wait_seconds() == 0.0
        for number in (1, 2):
            each.put(delivery(number))
        assert each.longest_wait_seconds() == 9.0


async def test_what_comes_again_does_not_pile_up(backlog: FifoBacklog) -> None:
    """Each channel that closes leaves as many behind as it may deliver, and the next delivers them again."""
    lost = [delivery(number) for number in range(3)]
    for one in lost:
        backlog.put(one)
        cast("Numbered", one).is_ours = False
    backlog.put(delivery(3))
    assert len(backlog) == 1
    assert number_of(await backlog.get()) == 3


async def test_a_get_that_is_cancelled_takes_nothing(backlog: FifoBacklog) -> None:
    """The delivery that would have been taken stays in the backlog."""
    getting = asyncio.create_task(backlog.get())
    await asyncio.sleep(0)
    backlog.put(delivery(1))
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert len(backlog) == 1


async def test_no_more_run_than_allowed(backlog: FifoBacklog) -> None:
    """The third of two waits in the backlog until a place is free."""
    begun, go_on, done = list[int](), asyncio.Event(), asyncio.Event()

    async def process(delivery: Delivery) -> None:
        begun.append(number_of(delivery))
        await go_on.wait()
        if number_of(delivery) == 4:
            done.set()

    async with workers(backlog, process, concurrency=2) as running:
        for number in range(5):
            backlog.put(delivery(number))
        for _ in range(10):  # turns of the loop, in which a third one would begin as well
            await asyncio.sleep(0)
        assert begun == [0, 1]
        assert (len(running), len(backlog)) == (2, 3)
        go_on.set()
        await done.wait()
    assert begun == [0, 1, 2, 3, 4]
    assert len(running) == 0


async def test_a_message_sees_no_variables_of_another(backlog: FifoBacklog) -> None:
    """Each starts with what was set where the consumer was started."""
    seen, done = list[str](), asyncio.Event()

    async def process(delivery: Delivery) -> None:
        seen.append(tenant.get())
        tenant.set(f"of {number_of(delivery)}")
        if number_of(delivery) == 1:
            await asyncio.sleep(0)
        seen.append(tenant.get())
        if number_of(delivery) == 2:
            done.set()

    tenant.set("the process's")
    async with workers(backlog, process):
        tenant.set("somebody else's")
        for number in range(3):
            backlog.put(delivery(number))
        await done.wait()
    assert seen == ["the process's", "of 0", "the process's", "of 1", "the process's", "of 2"]


async def test_a_handler_that_never_waits_holds_nobody_up(
    backlog: FifoBacklog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a slice of time the event loop has its turn, however much there is to do."""
    monkeypatch.setattr(backlog_module, "SLICE_SECONDS", 0.0)
    turns: list[str] = []

    async def process(delivery: Delivery) -> None:
        turns.append(f"message {number_of(delivery)}")

    async with workers(backlog, process) as running:
        for number in range(2):
            backlog.put(delivery(number))
        for _ in range(3):
            await asyncio.sleep(0)
            turns.append("others")
        assert len(running) == 0
    assert turns[:3] == ["message 0", "others", "message 1"]


async def test_what_runs_ends_after_a_stop(backlog: FifoBacklog) -> None:
    """And nothing new begins."""
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), list[int]()

    async def process(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        ended.append(number_of(delivery))

    async with workers(backlog, process) as running:
        for number in range(2):
            backlog.put(delivery(number))
        await begun.wait()
        await running.stop()
        assert not await running.wait(seconds=0)
        go_on.set()
        assert await running.wait(seconds=5)
        assert await running.wait(seconds=5)
    assert ended == [0]
    assert len(backlog) == 1


async def test_what_takes_too_long_can_be_cancelled(backlog: FifoBacklog) -> None:
    """A `cancel` ends the tasks that run, and says that they have ended."""
    begun = asyncio.Event()

    async def process(_: Delivery) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with workers(backlog, process) as running:
        backlog.put(delivery(1))
        await begun.wait()
        assert await running.cancel(seconds=5)
    assert len(running) == 0


@pytest.mark.parametrize("waits", [True, False])
async def test_a_failed_worker_is_told_and_replaced(
    backlog: FifoBacklog, logs: list[MutableMapping[str, Any]], waits: bool
) -> None:
    """An error that escapes is logged, whether or not its task has waited, and the next delivery runs."""
    done = asyncio.Event()

    async def process(delivery: Delivery) -> None:
        if waits:
            await asyncio.sleep(0)
        if number_of(delivery) == 1:
            raise LookupError("a bug")
        done.set()

    async with workers(backlog, process):
        backlog.put(delivery(1))
        backlog.put(delivery(2))
        await done.wait()
    assert [repr(line["exc_info"]) for line in logs] == ["LookupError('a bug')"]


async def test_a_worker_that_is_cancelled_before_it_waits_is_replaced(
    backlog: FifoBacklog, logs: list[MutableMapping[str, Any]]
) -> None:
    """Its end is no error, so nothing is logged, and the next delivery runs."""
    done = asyncio.Event()

    async def process(delivery: Delivery) -> None:
        if number_of(delivery) == 1:
            raise asyncio.CancelledError
        done.set()

    async with workers(backlog, process):
        backlog.put(delivery(1))
        backlog.put(delivery(2))
        await done.wait()
    assert not logs


def test_reprs_count() -> None:
    """The reprs say how many deliveries wait, and how many run."""
    backlog = FifoBacklog(prefetch=3)
    backlog.put(delivery(1))
    assert repr(backlog) == "FifoBacklog(1 deliveries)"

    async def process(_: Delivery) -> None: ...

    assert repr(Workers(backlog, process, concurrency=2, name="tests")) == "Workers('tests', 0 of 2 running)"
