"""Runs of a handler: retried here or later, paused, given up, and cancelled at the end of their time."""

import asyncio

import pytest

from hybridkit.errors import (
    DeadlineExceededError,
    RequirementNotMetError,
    StaleVersionError,
    UnavailableError,
)
from hybridkit.messaging._consuming import _delivery as delivery_module
from hybridkit.messaging._consuming._pause_gate import Paused, PauseGate
from hybridkit.retry import Retry
from tests.helpers.consuming import (
    QUEUE,
    FakeGuard,
    Happened,
    Steps,
    delivery,
    envelope,
    failing,
    processor,
    succeed,
)

pytestmark = pytest.mark.usefixtures("logs", "instant_retries")


async def test_a_short_retry_waits_here(steps: Steps) -> None:
    """A delay of less than a second makes no copy: the handler runs again in its place."""
    handler = failing(OSError("once"), OSError("twice"))
    await processor(steps, handler, retry=Retry.immediate(attempts=3)).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]


async def test_a_longer_retry_is_a_copy_that_is_confirmed_first(steps: Steps) -> None:
    """The copy goes through the delay levels, with what was counted and without the headers of old deaths."""
    retry = Retry.exponential(first_seconds=4, attempts=3)
    headers = {"x-request-id": "req-1", "x-death": [{"count": 1}], "tenant": "acme"}
    await processor(steps, failing(OSError()), retry=retry).process(delivery(steps, envelope(), headers))
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    copy = steps.copies[0]
    assert copy.routing_key.endswith(f"1.0.0.{QUEUE}")
    assert (copy.message_type, copy.service) == ("processor.happened", "tests")
    first_failed_at = copy.headers["hk_first_failed_at"]
    assert copy.headers == {
        "x-request-id": "req-1",
        "tenant": "acme",
        "hk_queue": QUEUE,
        "hk_attempt": 1,
        "hk_first_failed_at": first_failed_at,
        "hk_failed_at": first_failed_at,
    }


async def test_attempts_are_counted_over_all_copies(steps: Steps) -> None:
    """The third failure of three allowed is the last; the first one's time stays."""
    retry = Retry.exponential(first_seconds=4, attempts=3)
    headers = {"hk_attempt": 2, "hk_first_failed_at": "2026-01-01T00:00:00Z"}
    await processor(steps, failing(OSError("gone")), retry=retry).process(
        delivery(steps, envelope(), headers)
    )
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    dead = steps.copies[0]
    assert dead.routing_key == QUEUE
    assert dead.headers["hk_reason"] == "exhausted"
    assert dead.headers["hk_attempt"] == 3
    assert dead.headers["hk_first_failed_at"] == "2026-01-01T00:00:00Z"
    assert dead.headers["hk_error_type"] == "builtins.OSError"
    assert dead.headers["hk_error"] == "gone"
    assert "in handle" in dead.headers["hk_stack"]


async def test_short_retries_count_for_the_copy(steps: Steps) -> None:
    """A failure here, and the next one goes to the broker with both."""
    retry = Retry.exponential(first_seconds=0.001, cap_seconds=2, attempts=20)
    headers = {"hk_attempt": 9}
    await processor(steps, failing(*[OSError()] * 3), retry=retry).process(
        delivery(steps, envelope(), headers)
    )
    assert steps.copies[0].headers["hk_attempt"] == 11


async def test_an_endless_error_text_is_cut(steps: Steps) -> None:
    """Text and stack of an exception fit into the headers of a dead letter."""
    await processor(steps, failing(OSError("x" * 100_000))).process(delivery(steps, envelope()))
    assert len(steps.copies[0].headers["hk_error"]) == 1000
    assert len(steps.copies[0].headers["hk_stack"]) == 8000


async def test_a_permanent_error_is_dead_at_once(steps: Steps) -> None:
    """An error that the policy names makes no retry, whatever attempts are left."""
    retry = Retry.exponential(attempts=9).never(ValueError)
    await processor(steps, failing(ValueError()), retry=retry).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == "permanent"


async def test_a_stale_version_that_nobody_caught_runs_the_handler_again(steps: Steps) -> None:
    """It is no permanent error: the next run reads the record again, and only the last one's is a dead letter."""
    retry = Retry.immediate(attempts=3)
    stale = StaleVersionError("the record changed since it was read")
    await processor(steps, failing(stale, stale), retry=retry).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]
    await processor(steps, failing(stale, stale, stale), retry=retry).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7", "copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == "exhausted"
    assert steps.copies[0].headers["hk_attempt"] == 3


async def test_an_unmet_requirement_is_a_dead_letter_at_once(steps: Steps) -> None:
    """Nothing is left in stock, however often the handler looks."""
    unmet = RequirementNotMetError("the requirement does not hold")
    await processor(steps, failing(unmet), retry=Retry.immediate(attempts=3)).process(
        delivery(steps, envelope())
    )
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == "permanent"


async def test_a_pause_counts_no_attempt(steps: Steps) -> None:
    """Nor does it make a copy: the message waits here, and is the probe that finds the dependency back."""
    gate = PauseGate(QUEUE)
    states: list[Paused | None] = []
    gate.changed = lambda: states.append(gate.paused)
    retry = Retry.immediate(attempts=1).pause_on(UnavailableError)
    handler = failing(UnavailableError("down"), UnavailableError("still down"))
    await processor(steps, handler, retry=retry, gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]
    assert [state and state.reason for state in states] == ["UnavailableError: down", None]


async def test_a_pause_that_takes_too_long_is_a_copy_that_counts_no_attempt(steps: Steps) -> None:
    """Before the broker would close the channel."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60))
    held = delivery(steps, envelope(), {"hk_attempt": 4})
    held.received_at -= delivery_module.MAX_UNACKED_SECONDS - 5.001
    await processor(steps, succeed, gate=gate, timeout_seconds=5).process(held)
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 4
    gate.stop()


async def test_a_pause_ends_with_the_consumer(steps: Steps) -> None:
    """What waits is left unacknowledged, and goes back to the queue with the channel."""
    gate = PauseGate(QUEUE)
    gate.shut(OSError())
    task = asyncio.create_task(processor(steps, succeed, gate=gate).process(delivery(steps, envelope())))
    gate.stop()
    await task
    assert steps.log == []


async def test_all_go_on_when_the_gate_is_opened(steps: Steps) -> None:
    """The first one that comes through opens it for the others."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60))
    same = processor(steps, succeed, gate=gate)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(same.process(delivery(steps, envelope())))
        await asyncio.sleep(0)
        gate.open()
    assert steps.log == ["ack 7"] * 3


@pytest.mark.parametrize("opened", [False, True], ids=["probe", "opened"])
async def test_what_comes_again_anyway_does_not_run_after_a_pause(steps: Steps, *, opened: bool) -> None:
    """Its channel has closed meanwhile."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60 if opened else None))
    task = asyncio.create_task(processor(steps, succeed, gate=gate).process(delivery(steps, envelope())))
    await asyncio.sleep(0)
    steps.is_open = False
    if opened:
        gate.open()
    await task
    assert steps.finished == set()
    gate.stop()


async def test_a_retry_that_the_end_of_the_consumer_meets_is_counted(steps: Steps) -> None:
    """The next process gets a copy that knows of the failure."""
    gate = PauseGate(QUEUE)

    async def handle(event: Happened) -> None:
        gate.stop()
        raise OSError

    await processor(steps, handle, retry=Retry.immediate(), gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 1


async def test_any_other_failure_shows_that_the_dependency_is_back(steps: Steps) -> None:
    """A probe that fails for a reason of its own opens the gate."""
    gate = PauseGate(QUEUE)
    gate.shut(OSError())
    await processor(steps, failing(ValueError()), gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert gate.is_open


async def test_a_handler_that_takes_too_long_has_failed(steps: Steps) -> None:
    """It is cancelled at its timeout, and the dead letter names that."""

    async def handle(event: Happened) -> None:
        await asyncio.sleep(60)

    await processor(steps, handle, timeout_seconds=0.01).process(delivery(steps, envelope()))
    assert steps.copies[0].headers["hk_error_type"].endswith(DeadlineExceededError.__name__)
    assert "longer than 0.01 s" in steps.copies[0].headers["hk_error"]


async def test_a_timeout_of_the_handlers_own_is_its_own(steps: Steps) -> None:
    """A `TimeoutError` that the handler raises is not taken for the timeout of its run."""
    await processor(steps, failing(TimeoutError("mine"))).process(delivery(steps, envelope()))
    assert steps.copies[0].headers["hk_error"] == "mine"


async def test_a_library_that_cancels_itself_is_a_failure(steps: Steps) -> None:
    """Nobody asked for it: aiormq does it when its connection drops."""
    await processor(steps, failing(asyncio.CancelledError("stray"))).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]


async def test_a_cancelled_handler_settles_nothing(steps: Steps) -> None:
    """The message stays unacknowledged, and the guard lets the next one begin at once."""
    running = asyncio.Event()

    async def handle(event: Happened) -> None:
        running.set()
        await asyncio.sleep(60)

    guard = FakeGuard(steps)
    task = asyncio.create_task(processor(steps, handle, guard=guard).process(delivery(steps, envelope())))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.log == ["finish RELEASED"]


async def test_a_message_that_waited_too_long_here_goes_round_again(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would close the channel in the middle of the handler."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
    await processor(steps, succeed, timeout_seconds=2).process(delivery(steps, envelope(), {"hk_attempt": 4}))
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 4


async def test_a_retry_with_no_time_left_here_goes_to_the_broker(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy waits instead of the handler, where a wait here would outlast the consumer timeout."""
    handled = asyncio.Event()

    async def handle(event: Happened) -> None:
        monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
        handled.set()
        raise OSError

    await processor(steps, handle, retry=Retry.immediate()).process(delivery(steps, envelope()))
    assert handled.is_set()
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
