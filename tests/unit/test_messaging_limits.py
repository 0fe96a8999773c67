"""Many runs, one timer: each ends in time, by itself, and as `asyncio.timeout` would end it."""

import asyncio
from contextlib import suppress

import pytest

from hybridkit.messaging._consuming._run_timeouts import RunTimeouts
from tests.helpers import until


async def test_a_run_that_takes_too_long_ends() -> None:
    """It ends with `TimeoutError`, and its task is not cancelled any more."""
    timeouts = RunTimeouts(seconds=0.01)
    timeout = timeouts.one()
    with pytest.raises(TimeoutError), timeout:
        await asyncio.sleep(60)
    assert timeout.expired
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0
    assert repr(timeouts) == "RunTimeouts(seconds=0.01, 0 runs)"


async def test_each_has_its_own_deadline() -> None:
    """The timer goes on to the next one that still runs."""
    timeouts, loop = RunTimeouts(seconds=0.3), asyncio.get_running_loop()

    async def run(after: float, seconds: float) -> float | None:
        await asyncio.sleep(after)
        began = loop.time()
        try:
            with timeouts.one():
                await asyncio.sleep(seconds)
        except TimeoutError:
            return loop.time() - began
        return None

    first, second, third, fourth = await asyncio.gather(run(0, 60), run(0, 0), run(0.03, 60), run(0.06, 0))
    assert second is fourth is None
    assert first is not None
    assert third is not None
    assert first >= 0.3
    assert third >= 0.3


async def test_a_run_that_ends_in_time_leaves_nothing_behind() -> None:
    """The timer stops when the last run has ended."""
    timeouts = RunTimeouts(seconds=0.2)
    with timeouts.one() as timeout:
        await asyncio.sleep(0)
    await until(lambda: timeouts._timer is None)
    assert not timeout.expired


async def test_what_the_run_raises_is_its_own() -> None:
    """An error within the time passes unchanged."""
    with pytest.raises(LookupError), RunTimeouts(seconds=60).one():
        raise LookupError


async def test_a_cancellation_is_no_timeout() -> None:
    """Also where both come at the same time: who cancelled it waits for the end."""
    timeouts, begun = RunTimeouts(seconds=60), asyncio.Event()

    async def run() -> None:
        with timeouts.one() as timeout:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                timeout.expire()

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_run_may_finish_in_spite_of_the_limit() -> None:
    """It has caught the cancellation and come to its end: that is no failure."""
    with RunTimeouts(seconds=0.01).one() as timeout, suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    assert timeout.expired
