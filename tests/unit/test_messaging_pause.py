"""The gate: what waits while a dependency is down, and how it is found to be back."""

import asyncio
import math
from collections.abc import MutableMapping
from typing import Any

import pytest

from hybridkit.errors import UnavailableError
from hybridkit.messaging._consuming import _pause_gate as pause_gate_module
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.observability import metrics
from hybridkit.retry import Retry

pytestmark = pytest.mark.usefixtures("logs")


class Timers:
    """What the gate wants to be called for, and after how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        self._next: asyncio.TimerHandle | None = None

        def arm(gate: PauseGate, seconds: float) -> asyncio.TimerHandle:
            self.seconds.append(seconds)
            self._next = asyncio.get_running_loop().call_later(3600, gate._probe)
            return self._next

        monkeypatch.setattr(PauseGate, "_arm_timer", arm)

    def run_out(self) -> None:
        assert self._next is not None
        assert not self._next.cancelled()
        self._next._run()


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    pauses = Retry.pauses
    monkeypatch.setattr(Retry, "pauses", lambda policy: pauses(policy, jitter=lambda: 1.0))
    return Timers(monkeypatch)


@pytest.fixture
async def gate(timers: Timers) -> PauseGate:
    return PauseGate("tests.gate")


def waiting(gate: PauseGate, *, seconds: float = 60.0) -> "asyncio.Task[bool]":
    return asyncio.create_task(gate.turn(seconds=seconds))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def paused_metric() -> float:
    return float(metrics.consumer_paused.labels("tests.gate")._value.get())


async def test_an_open_gate_lets_everybody_through(gate: PauseGate) -> None:
    """It is open at the beginning, and a caller without any time passes."""
    assert gate.is_open
    assert await gate.turn(seconds=0)


async def test_a_shut_gate_says_why_and_since_when(
    gate: PauseGate, logs: list[MutableMapping[str, Any]]
) -> None:
    """The first error is the reason, a second one changes nothing, and pause and end are logged once."""
    gate.shut(UnavailableError("db_postgres_service does not answer"))
    assert gate.paused
    assert gate.paused.reason == "UnavailableError: db_postgres_service does not answer"
    assert gate.paused.since.tzinfo is not None
    assert paused_metric() == 1
    gate.shut(UnavailableError("another one"))
    assert "db_postgres_service" in repr(gate)
    gate.open()
    gate.open()
    assert paused_metric() == 0
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("consumer paused", "warning"),
        ("consumer resumed", "info"),
    ]


async def test_the_words_of_other_libraries_are_not_shown(gate: PauseGate) -> None:
    """Their messages may contain an address with a password, so the reason is the class alone."""
    gate.shut(ConnectionError("amqp://user:password@host"))
    assert gate.paused
    assert gate.paused.reason == "ConnectionError"


async def test_one_of_those_who_wait_is_the_probe(gate: PauseGate, timers: Timers) -> None:
    """After the interval the first one goes on alone, and the others when the gate opens."""
    gate.shut(OSError())
    first, second = waiting(gate), waiting(gate)
    await settle()
    timers.run_out()
    assert await first
    assert not gate.is_open
    assert not second.done()
    gate.open()
    assert await second


async def test_the_probes_come_at_growing_intervals(gate: PauseGate, timers: Timers) -> None:
    """Each failed probe doubles the interval, from one second up to a minute."""
    gate.shut(OSError())
    for _ in range(8):
        turn = waiting(gate)
        await settle()
        timers.run_out()
        assert await turn
        with gate.probing():
            gate.shut(OSError())
    assert timers.seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_gate_that_soon_shuts_again_goes_on_with_its_intervals(
    gate: PauseGate, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a gate that was open for a minute begins with the shortest one again."""
    for _ in range(3):
        gate.shut(OSError())
        gate.open()
    monkeypatch.setattr(pause_gate_module, "STEADY_SECONDS", 0.0)
    gate.shut(OSError())
    assert timers.seconds == [1, 2, 4, 1]


@pytest.mark.parametrize(
    ("asked", "waited"), [(0.1, 1), (30, 30), (10_000, 900), (None, 1), (math.nan, 1), (-5, 1)]
)
async def test_the_time_that_a_dependency_asks_for_is_given_once(
    gate: PauseGate, timers: Timers, asked: float | None, waited: float
) -> None:
    """It delays the first probe, up to 15 minutes, and a value that makes no sense does not."""
    gate.shut(UnavailableError("busy", retry_after_seconds=asked))
    with gate.probing():
        pass
    assert timers.seconds == [waited, 2]


async def test_a_probe_that_opens_the_gate_is_the_last(gate: PauseGate, timers: Timers) -> None:
    """No timer is set for another one."""
    gate.shut(OSError())
    with gate.probing():
        gate.open()
    assert timers.seconds == [1]


async def test_where_nobody_waits_one_is_wanted(gate: PauseGate, timers: Timers) -> None:
    """The next caller is the probe, and the subscription is told that it needs a message."""
    changes: list[bool] = []
    gate.changed = lambda: changes.append(gate.wants_one)
    gate.shut(OSError())
    timers.run_out()
    assert changes == [False, True]
    assert await gate.turn(seconds=1)
    assert not gate.wants_one
    assert not gate.is_open


async def test_nobody_waits_longer_than_he_can(gate: PauseGate) -> None:
    """A caller whose time is up is told not to go on, and is forgotten."""
    gate.shut(OSError())
    assert not await gate.turn(seconds=0)
    assert not await gate.turn(seconds=0.001)
    assert "waiting=0" in repr(gate)


async def test_a_probe_that_is_cancelled_gives_its_turn_to_the_next(gate: PauseGate, timers: Timers) -> None:
    """Of those that only wait, a cancelled one is passed over."""
    gate.shut(OSError())
    first, second, third = waiting(gate), waiting(gate), waiting(gate)
    await settle()
    second.cancel()  # only waits
    await settle()
    timers.run_out()
    first.cancel()  # was to be the probe
    assert await third
    for task in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_whoever_is_cancelled_while_the_gate_opens_needs_no_successor(gate: PauseGate) -> None:
    """All go on then, so no probe is wanted."""
    gate.shut(OSError())
    task = waiting(gate)
    await settle()
    gate.open()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gate.wants_one


async def test_a_stop_sends_everybody_away(gate: PauseGate) -> None:
    """Callers are told not to go on, now and later, and an error pauses nothing any more."""
    gate.shut(OSError())
    turn = waiting(gate)
    await settle()
    gate.stop()
    assert not await turn
    assert not await gate.turn(seconds=60)
    gate.shut(OSError())
    assert gate.paused is None
    assert paused_metric() == 0


async def test_who_has_nothing_to_go_on_with_is_no_probe(gate: PauseGate, timers: Timers) -> None:
    """His channel has closed while he waited: the next one who can is the probe, at the same time."""
    gate.shut(OSError())
    stale = [asyncio.create_task(gate.turn(seconds=60, is_wanted=lambda: False)) for _ in range(5)]
    fresh = waiting(gate)
    await settle()
    timers.run_out()
    assert await fresh
    assert await asyncio.gather(*stale) == [False] * 5
    assert timers.seconds == [1]


async def test_who_has_nothing_to_go_on_with_leaves_at_once(gate: PauseGate) -> None:
    """He may hold a handler's place, without which the probe can't be delivered."""
    is_open = True
    gate.shut(OSError())
    stale = asyncio.create_task(gate.turn(seconds=60, is_wanted=lambda: is_open))
    fresh = waiting(gate)
    await settle()
    gate.sift()
    assert not stale.done()
    is_open = False
    gate.sift()
    assert not await stale
    assert not fresh.done()
    gate.stop()
    await fresh


async def test_a_turn_that_is_passed_on_costs_no_interval(gate: PauseGate, timers: Timers) -> None:
    """The next caller is the probe at once, or one is wanted; behind an open gate neither."""
    gate.shut(OSError())
    first, second = waiting(gate), waiting(gate)
    await settle()
    timers.run_out()
    assert await first
    gate.pass_on()
    assert await second
    gate.pass_on()
    assert gate.wants_one
    assert timers.seconds == [1]
    gate.open()
    gate.pass_on()
    assert not gate.wants_one
