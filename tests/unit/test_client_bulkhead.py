"""The bulkhead: permits, and a queue before them."""

import asyncio
import contextlib

import pytest

from hybridkit.clients._pipeline._bulkhead import Bulkhead
from hybridkit.errors import DeadlinePassedError, UnavailableError
from tests.helpers import until


class Holder:
    """A call that holds a permit until it is told to let go."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.entered = asyncio.Event()
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._hold(bulkhead))

    async def _hold(self, bulkhead: Bulkhead) -> None:
        async with bulkhead.permit(timeout_seconds=5):
            self.entered.set()
            await self.done.wait()

    async def let_go(self) -> None:
        self.done.set()
        await self.task


async def test_a_call_waits_for_a_permit() -> None:
    """The second call enters only when the first has given its permit back."""
    bulkhead = Bulkhead("users", permits=1, queue=1)
    first = Holder(bulkhead)
    await first.entered.wait()
    second = Holder(bulkhead)
    await until(lambda: "waiting=1" in repr(bulkhead))
    assert not second.entered.is_set()
    await first.let_go()
    await second.entered.wait()
    await second.let_go()


async def test_a_full_queue_refuses_at_once() -> None:
    """A call beyond permits and queue is refused without waiting, by an error with both numbers."""
    bulkhead = Bulkhead("users", permits=1, queue=1)
    first = Holder(bulkhead)
    await first.entered.wait()
    second = Holder(bulkhead)
    await until(lambda: "waiting=1" in repr(bulkhead))
    assert repr(bulkhead) == "Bulkhead('users', permits=1, waiting=1 of 1)"
    with pytest.raises(UnavailableError, match="1 calls are under way and 1 wait"):
        async with bulkhead.permit(timeout_seconds=5):
            pass
    await first.let_go()
    await second.let_go()


async def test_patience_ends() -> None:
    """A call that gives up leaves the queue, so that another one may wait."""
    bulkhead = Bulkhead("users", permits=1, queue=1)
    holder = Holder(bulkhead)
    await holder.entered.wait()
    for _ in range(3):
        with pytest.raises(DeadlinePassedError, match="nothing was sent"):
            async with bulkhead.permit(timeout_seconds=0.001):
                pass
    await holder.let_go()


async def test_a_cancelled_wait_leaks_no_permit() -> None:
    """A call that is cancelled in the queue, or as it gets its permit, leaves the permit to the next."""
    bulkhead = Bulkhead("users", permits=1, queue=2)
    holder = Holder(bulkhead)
    await holder.entered.wait()
    waiting, next_one = Holder(bulkhead), Holder(bulkhead)
    await until(lambda: "waiting=2" in repr(bulkhead))
    holder.done.set()
    waiting.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting.task
    await next_one.entered.wait()
    await next_one.let_go()
    async with bulkhead.permit(timeout_seconds=0.001):
        pass
    await holder.task


async def test_an_error_inside_gives_the_permit_back() -> None:
    """The only permit is free again after a block that raised."""
    bulkhead = Bulkhead("users", permits=1, queue=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"):
            async with bulkhead.permit(timeout_seconds=1):
                raise ValueError("inside")
