"""A time limit that holds even for work which ignores its cancellation."""

import asyncio

import pytest

from hybridkit.clients._pipeline._deadline import Deadlines


async def test_work_in_time_has_its_result_and_its_error() -> None:
    """The task around the work changes neither what it returns nor what it raises."""

    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise ValueError("broken")

    deadlines = Deadlines()
    assert await deadlines.run(fine(), timeout_seconds=1) == 7
    with pytest.raises(ValueError, match="broken"):
        await deadlines.run(broken(), timeout_seconds=1)
    await deadlines.aclose()


async def test_work_that_ignores_its_cancellation_holds_nobody() -> None:
    """The caller goes on at its deadline; the work is forgotten once it has ended, its error with it."""
    let_go = asyncio.Event()
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            raise ValueError("an error that nobody waits for")
        finally:
            ended.set()

    deadlines = Deadlines()
    with pytest.raises(TimeoutError):
        await deadlines.run(stubborn(), timeout_seconds=0.01)
    assert repr(deadlines) == "Deadlines(1 left behind)"
    let_go.set()
    await ended.wait()
    await deadlines.aclose()
    assert repr(deadlines) == "Deadlines(0 left behind)"


async def test_the_callers_cancellation_reaches_the_work() -> None:
    """The work is cancelled although it runs in a task of its own."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    deadlines = Deadlines()
    task = asyncio.create_task(deadlines.run(work(), timeout_seconds=60))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await cancelled.wait()
    await deadlines.aclose()


async def test_prompt_work_needs_no_task() -> None:
    """Work that ends at once when it is cancelled runs in the caller's task, for as long as it may."""

    async def where() -> asyncio.Task[None] | None:
        return asyncio.current_task()

    deadlines = Deadlines(in_place=True)
    assert await deadlines.run(where(), timeout_seconds=1) is asyncio.current_task()
    with pytest.raises(TimeoutError):
        await deadlines.run(asyncio.Event().wait(), timeout_seconds=0.01)


@pytest.mark.parametrize("in_place", [True, False])
async def test_without_time_nothing_begins(in_place: bool) -> None:
    """With no time left the work is closed unstarted, in a task or not."""

    async def work() -> None:
        raise AssertionError

    with pytest.raises(TimeoutError):
        await Deadlines(in_place=in_place).run(work(), timeout_seconds=0)
