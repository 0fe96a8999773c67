"""Stopping: the phases in their order, each within its time, whatever hangs or fails."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from structlog.testing import capture_logs

from hybridkit.errors import UnavailableError
from hybridkit.lifespan import ServiceResources, StopAction


class Journal(list[str]):
    """Writes down what happens while stopping."""

    def action(self, name: str) -> StopAction:
        async def act(seconds: float) -> None:
            assert seconds >= 0
            self.append(name)

        return act

    def resource(self, name: str) -> Callable[[], AbstractAsyncContextManager[str]]:
        @asynccontextmanager
        async def managed() -> AsyncGenerator[str]:
            yield name
            self.append(f"close {name}")

        return managed


@pytest.fixture
def journal() -> Journal:
    return Journal()


async def prepare(resources: ServiceResources, journal: Journal) -> None:
    await resources.open("redis", journal.resource("redis"))
    await resources.open("rabbitmq", journal.resource("rabbitmq"))
    resources.on_flush("telemetry", journal.action("flush"))
    resources.on_drain("handlers", journal.action("drain"))
    resources.on_stop_accepting("polling", journal.action("stop accepting"))
    resources.started()


async def hang(seconds: float) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def hanging(end: asyncio.Event | None = None) -> AsyncGenerator[str]:
    try:
        yield "hanging"
        await asyncio.Event().wait()
    finally:
        if end:
            await end.wait()


PHASES = ["stop accepting", "drain", "close rabbitmq", "close redis", "flush"]


async def test_the_phases_follow_each_other(journal: Journal) -> None:
    """Accepting ends before draining, closing comes in reverse, flushing last."""
    async with ServiceResources() as resources:
        await prepare(resources, journal)
    assert journal == PHASES
    assert resources.errors == ()


async def test_readiness_is_red_before_anything_stops(journal: Journal) -> None:
    """The first action sees it red already."""
    statuses: list[str] = []

    async with ServiceResources() as resources:
        await prepare(resources, journal)

        async def look(seconds: float) -> None:
            statuses.append((await resources.health.readiness()).status)

        resources.on_stop_accepting("look", look)
        statuses.append((await resources.health.readiness()).status)
    assert statuses == ["ready", "draining"]


async def test_a_load_balancer_gets_its_time(journal: Journal) -> None:
    """Work goes on for `unready_seconds` after readiness has turned red."""
    since = time.monotonic()
    async with ServiceResources(unready_seconds=0.2) as resources:
        await prepare(resources, journal)
    assert 0.2 <= time.monotonic() - since < 5
    assert journal == PHASES


async def test_the_wait_takes_no_more_than_its_part_of_the_shutdown(journal: Journal) -> None:
    """A wait longer than the whole shutdown is cut."""
    since = time.monotonic()
    async with ServiceResources(unready_seconds=60, shutdown_seconds=0.5):
        pass
    assert time.monotonic() - since < 5


async def test_a_process_that_failed_is_not_kept_for_the_load_balancer(journal: Journal) -> None:
    """An error inside the block skips the wait, and nothing else."""

    async def fail() -> None:
        async with ServiceResources(unready_seconds=5) as resources:
            await prepare(resources, journal)
            raise LookupError

    since = time.monotonic()
    with pytest.raises(LookupError):
        await fail()
    assert time.monotonic() - since < 4
    assert journal == PHASES


async def test_who_serves_by_itself_announces_first_and_stops_later(journal: Journal) -> None:
    """Announcing and stopping twice do nothing more."""
    async with ServiceResources() as resources:
        await prepare(resources, journal)
        await resources.announce()
        assert (await resources.health.readiness()).status == "draining"
        assert journal == []
        await resources.announce()
        await resources.stop()
        await resources.stop()
    assert journal == PHASES


async def test_a_second_signal_ends_the_wait_and_skips_to_closing(journal: Journal) -> None:
    """Telemetry is flushed all the same."""
    async with ServiceResources(unready_seconds=9) as resources:
        await prepare(resources, journal)
        asyncio.get_running_loop().call_soon(resources.hurry)
        since = time.monotonic()
        await resources.stop()
    assert time.monotonic() - since < 5
    assert journal == ["close rabbitmq", "close redis", "flush"]


async def test_a_second_signal_cancels_what_still_runs(journal: Journal) -> None:
    """A drain that hangs is given up, and the phases after it come."""
    async with ServiceResources(shutdown_seconds=60) as resources:
        await prepare(resources, journal)

        async def insist(seconds: float) -> None:
            resources.hurry()
            await hang(seconds)

        resources.on_drain("endless", insist)
        since = time.monotonic()
        await resources.stop()
    assert time.monotonic() - since < 10
    assert journal == PHASES


async def test_an_endless_drain_takes_no_more_than_its_time(journal: Journal) -> None:
    """It is reported, and the phases after it come."""
    since = time.monotonic()
    async with ServiceResources(shutdown_seconds=0.5) as resources:
        await prepare(resources, journal)
        resources.on_drain("endless", hang)
    assert time.monotonic() - since < 5
    assert journal == PHASES
    assert [str(error) for error in resources.errors] == ["drain of endless did not end in time"]


async def test_an_endless_closing_takes_no_time_from_the_others(journal: Journal) -> None:
    """Those that come after it are closed all the same."""
    async with ServiceResources(shutdown_seconds=1.0) as resources:
        await prepare(resources, journal)
        await resources.open("hanging", hanging)
    assert journal == PHASES
    assert [str(error) for error in resources.errors] == ["closing hanging did not end in time"]


async def test_what_can_not_even_be_cancelled_is_left_behind(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process can end without it."""
    monkeypatch.setattr("hybridkit.lifespan._resources.CANCEL_GRACE_SECONDS", 0.05)
    end = asyncio.Event()
    async with ServiceResources(shutdown_seconds=0.5) as resources:
        await prepare(resources, journal)
        await resources.open("stubborn", lambda: hanging(end))
        left_behind = resources._opened[-1].task
    assert journal == PHASES
    assert len(resources.errors) == 1
    end.set()
    await asyncio.wait({left_behind})


async def test_errors_are_collected_and_stop_nothing(journal: Journal) -> None:
    """Each is logged under the name of its step."""

    async def fail(seconds: float) -> None:
        raise LookupError("drain")

    @asynccontextmanager
    async def failing() -> AsyncGenerator[None]:
        yield
        raise UnavailableError("close")

    with capture_logs() as lines:
        async with ServiceResources() as resources:
            await prepare(resources, journal)
            await resources.open("failing", failing)
            resources.on_drain("failing", fail)
    assert [line["what"] for line in lines if line["log_level"] == "error"] == [
        "drain of failing",
        "closing failing",
    ]
    assert journal == PHASES
    assert [str(error) for error in resources.errors] == ["drain", "close"]


async def test_a_cancellation_in_mid_stop_skips_to_closing(journal: Journal) -> None:
    """It goes on to the caller once everything is closed."""
    draining = asyncio.Event()

    async def drain(seconds: float) -> None:
        draining.set()
        await asyncio.Event().wait()

    async def run() -> None:
        async with ServiceResources() as resources:
            await prepare(resources, journal)
            resources.on_drain("endless", drain)

    task = asyncio.create_task(run())
    await draining.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == PHASES


async def test_a_cancelled_process_stops_in_order(journal: Journal) -> None:
    """Ctrl-C under `asyncio.run` comes as a cancellation."""
    working = asyncio.Event()

    async def run() -> None:
        async with ServiceResources() as resources:
            await prepare(resources, journal)
            working.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == PHASES
