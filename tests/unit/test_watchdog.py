"""The watchdog: a loop that is really blocked is noticed, with the line, by a thread or by faulthandler."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from hybridkit.lifespan import Health
from hybridkit.observability import Watchdog, metrics
from hybridkit.observability._watchdog import BEATS
from tests.helpers import until

STALL_SECONDS = 0.05
BLOCKED = "the event loop is blocked"
OVER = "the event loop turns again"
DEAD = "the event loop does not turn any more"


def block_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Block the event loop until another thread has made the condition true."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "the watchdog has noticed nothing"


def stalls() -> float:
    return float(metrics.event_loop_stalls._value.get())


def told(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


async def test_a_blocked_loop_is_told_with_the_line_that_blocks_it() -> None:
    """Once per stall, and again when it is over."""
    before = stalls()
    with capture_logs() as logs:
        async with Watchdog(stall_seconds=STALL_SECONDS):
            block_until(lambda: told(logs, BLOCKED))
            await until(lambda: told(logs, OVER))
            counted = stalls() - before
    blocked = next(line for line in told(logs, BLOCKED) if "block_until" in line["stack"])
    assert blocked["log_level"] == "warning"
    assert blocked["blocked_seconds"] >= STALL_SECONDS
    assert f"{__file__}:" in blocked["line"]
    assert "test_a_blocked_loop_is_told_with_the_line_that_blocks_it" in blocked["stack"]
    assert counted == len(told(logs, OVER))


async def test_the_line_is_the_application_s_where_a_library_blocks() -> None:
    """A blocking call mostly sits deep in the standard library or an installed package."""
    signalled = threading.Event()
    lines: list[Any] = []
    with capture_logs() as logs:
        async with Watchdog(stall_seconds=STALL_SECONDS) as watchdog:
            while not lines:
                await until(lambda: watchdog.seconds_since_turn < STALL_SECONDS)
                signalled.wait(4 * STALL_SECONDS)  # blocks the loop
                lines = [line for line in told(logs, BLOCKED) if "in wait" in line["stack"]]
    assert "signalled.wait(4 * STALL_SECONDS)  # blocks the loop" in lines[0]["line"]
    assert "threading.py" in lines[0]["stack"]


async def test_a_loop_that_is_blocked_for_too_long_is_not_alive() -> None:
    """Whoever asks while it is blocked gets no answer; whoever is answered before the next beat gets 503."""
    health = Health()
    assert health.liveness() == (200, {"status": "alive"})
    with capture_logs() as logs:
        async with Watchdog(stall_seconds=STALL_SECONDS, dead_seconds=4 * STALL_SECONDS) as watchdog:
            health.watch(watchdog.is_alive)
            block_until(lambda: told(logs, DEAD))
            dead = health.liveness()
            await until(watchdog.is_alive)
            alive_again = health.liveness()
    assert (dead, alive_again[0]) == ((503, {"status": "stalled"}), 200)
    assert told(logs, DEAD)[0]["log_level"] == "error"


async def test_a_loop_that_turns_is_left_in_peace() -> None:
    """Each beat is a sample of the lag."""
    buckets = metrics.event_loop_lag._buckets
    before, stalled = sum(bucket.get() for bucket in buckets), stalls()
    with capture_logs() as logs:
        async with Watchdog(stall_seconds=BEATS * 0.01, dead_seconds=60) as watchdog:
            watchdog._stall_seconds = 60  # its beats are quick, but nothing here takes that long
            await until(lambda: sum(bucket.get() for bucket in buckets) > before)
            assert watchdog.is_alive()
    assert logs == []
    assert stalls() == stalled


async def test_a_watchdog_can_watch_again_and_leaves_no_thread() -> None:
    """As an application that is started again."""
    watchdog = Watchdog(stall_seconds=STALL_SECONDS)
    for _ in range(2):
        with capture_logs() as logs:
            async with watchdog:
                thread = watchdog._thread
                block_until(lambda: told(logs, BLOCKED))
        assert thread is not None
        assert not thread.is_alive()


C_CALL = """
import asyncio, json, re, sys
from hybridkit.observability import Watchdog, configure_logging
from hybridkit.settings import ServiceSettings

def explode():
    re.match(r"(a+)+$", "a" * 24 + "b")

async def main():
    async with Watchdog(stall_seconds=0.05, watches_c_calls=True):
        await asyncio.sleep(0)
        explode()
        await asyncio.sleep(0.05)

configure_logging(ServiceSettings(service_name="users_api", environment="test"))
asyncio.run(main())
"""


@pytest.mark.usefixtures("measured_processes")
def test_a_call_into_c_that_stops_every_thread_is_told_on_standard_error() -> None:
    """By faulthandler, as no Python can run then; the log line comes when it is over, and says so."""
    done = subprocess.run(
        [sys.executable, "-c", C_CALL], check=True, capture_output=True, text=True, timeout=60
    )
    assert "Timeout (0:00:00" in done.stderr
    assert "in explode" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "the event loop turns again" in [line["message"] for line in lines]


DIED = """
import asyncio, sys, time
from hybridkit.observability import Watchdog

async def main():
    await Watchdog(stall_seconds=0.05, watches_c_calls=True).__aenter__()
    raise SystemExit(3)

asyncio.run(main())
"""


def test_a_watchdog_that_is_never_left_does_not_hold_up_the_end_of_the_process() -> None:
    """Its thread is a daemon's."""
    done = subprocess.run(
        [sys.executable, "-c", DIED], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_is_positive(limit: float) -> None:
    """A watchdog without one would spin."""
    with pytest.raises(ValueError, match="stall_seconds must be positive"):
        Watchdog(stall_seconds=limit)


async def test_a_time_in_which_no_thread_ran_is_told_as_such() -> None:
    """The stack that is seen after it may be another one."""
    watchdog = Watchdog(stall_seconds=60)
    assert repr(watchdog) == "Watchdog(stall_seconds=60, dead_seconds=30.0)"
    await watchdog.__aexit__()  # one that was never entered has nothing to end
    with capture_logs() as logs:
        watchdog._watched = threading.get_ident()
        watchdog._tell_stall(1.5, is_alone=False)
        watchdog._watched = -1  # a thread that has ended
        watchdog._tell_stall(1.5, is_alone=False)
    [blocked] = logs
    assert "no thread ran" in blocked["after"]
