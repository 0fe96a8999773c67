"""Calls in threads: bounded, with the caller's context, waited for at the stop."""

import asyncio
import threading
from collections.abc import Generator

import pytest

from hybridkit.context import RequestContext, bind, current
from hybridkit.errors import DeadlinePassedError, OverloadedError
from hybridkit.jobs import _blocking, drain_blocking, run_blocking
from hybridkit.observability import metrics
from tests.helpers import until


class Gate:
    """A function that blocks until the test opens it."""

    def __init__(self) -> None:
        self.calls = 0
        self._open = threading.Event()

    def wait(self) -> str:
        self.calls += 1
        self._open.wait(60)
        return current().request_id

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Generator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def value(name: str) -> float:
    return float(next(iter(getattr(metrics, name).collect())).samples[0].value)


async def test_a_call_runs_in_a_thread_with_the_callers_context_and_arguments(gate: Gate) -> None:
    """The loop goes on meanwhile."""
    with bind(RequestContext(request_id="req-1")):
        waiting = asyncio.create_task(run_blocking(gate.wait))
    await until(lambda: gate.calls)
    assert await run_blocking(divmod, 7, 2) == (3, 1)
    assert await run_blocking(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    assert await run_blocking(threading.current_thread) is not threading.main_thread()
    gate.open()
    assert await waiting == "req-1"
    assert await drain_blocking(60)


async def test_an_error_of_the_function_is_raised_to_the_caller() -> None:
    """Also one that a future can't carry."""
    with pytest.raises(ZeroDivisionError):
        await run_blocking(divmod, 1, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run_blocking(next, iter(()))


async def test_no_more_calls_run_and_wait_than_allowed(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is refused with a typed error, and nothing is called."""
    monkeypatch.setattr(_blocking, "MAX_THREADS", 2)
    monkeypatch.setattr(_blocking, "MAX_WAITING", 1)
    refused = value("blocking_refused")
    calls = [asyncio.create_task(run_blocking(gate.wait)) for _ in range(3)]
    await until(lambda: gate.calls == 2 and value("blocking_queued") == 1)
    assert value("blocking_in_flight") == 2
    with pytest.raises(OverloadedError, match="all 2 threads are busy, and 1 calls wait") as caught:
        await run_blocking(gate.wait)
    assert caught.value.retry_after_seconds == 1.0
    assert value("blocking_refused") == refused + 1
    gate.open()
    await asyncio.gather(*calls)
    assert gate.calls == 3
    assert value("blocking_in_flight") == value("blocking_queued") == 0


async def test_a_call_whose_time_is_over_is_not_begun() -> None:
    """It gives its place back."""
    called: list[int] = []
    with bind(RequestContext().within(-1)), pytest.raises(DeadlinePassedError):
        await run_blocking(called.append, 1)
    assert called == []
    assert await run_blocking(int, "7") == 7


async def test_a_cancelled_call_goes_on_in_its_thread_and_is_drained(gate: Gate) -> None:
    """The caller is free at once; the place is taken until the function ends, and so is the drain."""
    call = asyncio.create_task(run_blocking(gate.wait))
    await until(lambda: gate.calls)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not await drain_blocking(0)
    draining = asyncio.create_task(drain_blocking(60))
    gate.open()
    assert await draining


async def test_the_error_of_a_call_that_nobody_waits_for_is_dropped() -> None:
    """As its result would be."""
    may_fail = threading.Event()

    def fail() -> None:
        may_fail.wait(60)
        raise ZeroDivisionError

    call = asyncio.create_task(run_blocking(fail))
    await until(lambda: value("blocking_in_flight"))
    call.cancel()
    await asyncio.wait({call})
    may_fail.set()
    assert await drain_blocking(60)
    assert call.cancelled()


async def test_a_caller_that_is_cancelled_while_it_waits_calls_nothing(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place goes to the next."""
    monkeypatch.setattr(_blocking, "MAX_THREADS", 1)
    first = asyncio.create_task(run_blocking(gate.wait))
    await until(lambda: gate.calls)
    waiting = asyncio.create_task(run_blocking(gate.wait))
    await until(lambda: value("blocking_queued") == 1)
    waiting.cancel()
    await asyncio.wait({waiting})
    gate.open()
    await first
    assert await run_blocking(int, "7") == 7
    assert gate.calls == 1


def test_a_thread_that_outlives_its_loop_disturbs_nobody(gate: Gate) -> None:
    """The process may end with it, and the next loop has all its places."""

    async def begin() -> None:
        task = asyncio.create_task(run_blocking(gate.wait))
        await until(lambda: gate.calls)
        task.cancel()
        await asyncio.wait({task})

    before = value("blocking_in_flight")
    asyncio.run(begin())
    threads = [each for each in threading.enumerate() if each.name == "hybridkit blocking call"]
    assert all(thread.daemon for thread in threads)
    gate.open()
    for thread in threads:
        thread.join(60)
    metrics.blocking_in_flight.set(before)
    assert asyncio.run(run_blocking(int, "7")) == 7


async def test_a_system_without_threads_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the place is free again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OverloadedError, match="no further thread"):
            await run_blocking(int, "7")
    assert await run_blocking(int, "7") == 7
    assert "running=0" in repr(_blocking._threads_of(asyncio.get_running_loop()))
