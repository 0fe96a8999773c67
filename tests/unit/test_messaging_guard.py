"""Runs under the guard: what is claimed, what runs again, and what is recorded in which order."""

import pytest

from hybridkit.context import Claim, RequestContext
from hybridkit.errors import (
    UnavailableError,
)
from hybridkit.idempotency import (
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
)
from hybridkit.idempotency._keys import fingerprint
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


async def test_the_outcome_is_recorded_before_the_acknowledgement(steps: Steps) -> None:
    """The guard's key has the queue, the service, the event and the generation; its payload is the event's data."""
    guard = FakeGuard(steps)
    event = Happened(number=3)
    await processor(steps, succeed, guard=guard).process(
        delivery(steps, envelope(event), {"hk_generation": 2})
    )
    assert steps.log == ["finish COMPLETED", "ack 7"]
    assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:2"]
    assert [fingerprint(payload) for payload in guard.payloads] == [
        fingerprint(["processor.happened", 1, {"number": 3}])
    ]


async def test_a_redriven_event_derives_what_it_derived_before(steps: Steps) -> None:
    """The guard's key has the generation, so that it runs; the claim has not, so that it writes the same."""
    claims: list[Claim | None] = []

    async def handle(event: Happened, context: RequestContext) -> None:
        claims.append(context.claim)

    body = envelope()
    guard = FakeGuard(steps)
    for generation in (0, 1):
        await processor(steps, handle, guard=guard).process(
            delivery(steps, body, {"hk_generation": generation})
        )
    assert guard.keys[0] != guard.keys[1]
    assert claims[0] == claims[1]


@pytest.mark.parametrize("fails", [False, True], ids=["done", "fails again"])
async def test_a_dead_letter_that_was_moved_back_is_a_redriven_one(steps: Steps, *, fails: bool) -> None:
    """By a shovel, with all its headers: it runs, with all its attempts ahead, and can be moved again."""
    headers = {
        "hk_reason": "exhausted",
        "hk_attempt": 3,
        "hk_error": "x",
        "hk_queue": QUEUE,
        "tenant": "acme",
    }
    event = Happened(number=3)
    for generation in (1, 2):
        guard = FakeGuard(steps)
        handler = failing(*[OSError()] * 9) if fails else succeed
        moved = delivery(steps, envelope(event), headers | {"hk_generation": generation - 1})
        await processor(steps, handler, retry=Retry.exponential(attempts=2), guard=guard).process(moved)
        assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:{generation}"]
        if fails:
            copy = steps.copies.pop().headers
            assert (copy["hk_generation"], copy["hk_attempt"], copy["tenant"]) == (generation, 1, "acme")
            assert not copy.keys() & {"hk_reason", "hk_error"}


@pytest.mark.parametrize("last", [2**31 - 2, 2**31 - 1])
def test_a_generation_has_an_end_and_does_not_begin_anew(steps: Steps, last: int) -> None:
    """At the largest number that the header has, it stays there, and does not overflow to 0."""
    moved = delivery(steps, envelope(), {"hk_reason": "exhausted", "hk_generation": last})
    assert moved.generation == 2**31 - 1


async def test_a_dead_letter_of_another_consumer_is_the_event_itself(steps: Steps) -> None:
    """Moved here, or published to all: its attempts and generations there are none of this consumer's."""
    event = Happened(number=3)
    headers = {
        "hk_reason": "exhausted",
        "hk_attempt": 3,
        "hk_queue": "tests.other",
        "hk_generation": 2,
        "tenant": "acme",
    }
    guard = FakeGuard(steps)
    moved = delivery(steps, envelope(event), headers)
    await processor(steps, failing(OSError()), retry=Retry.exponential(attempts=2), guard=guard).process(
        moved
    )
    assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:0"]
    copy = steps.copies.pop().headers
    assert (copy["hk_attempt"], copy["tenant"], copy["hk_queue"]) == (1, "acme", QUEUE)
    assert not copy.keys() & {"hk_reason", "hk_generation"}


@pytest.mark.parametrize("answer", [Completed(None), Failed(None)], ids=["completed", "failed"])
async def test_what_was_finished_before_is_acknowledged(steps: Steps, answer: Begin) -> None:
    """An event that the guard has as completed or failed runs no handler."""

    async def handle(event: Happened) -> None:
        pytest.fail("it runs again")

    await processor(steps, handle, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Mismatch(), "mismatch"), (Exhausted(), "takeovers")],
    ids=["mismatch", "exhausted"],
)
async def test_what_must_not_run_is_dead(steps: Steps, answer: Begin, reason: str) -> None:
    """An event id with other data, or one on which too many processes have died, is a dead letter with that reason."""
    await processor(steps, succeed, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == reason


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (InProgress(20_000), "hk.delay.L4"),
        (InProgress(10), "hk.delay.L0"),
        (InProgress(10**9), "hk.delay.L5"),
    ],
    ids=["running", "nearly done", "endless"],
)
async def test_waiting_counts_no_attempt(steps: Steps, answer: Begin, level: str) -> None:
    """A message whose claim another process holds comes back as a copy after the lease's time, at most a minute."""
    await processor(steps, succeed, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == [f"copy to {level}", "ack 7"]
    assert "hk_attempt" not in steps.copies[0].headers


async def test_a_guard_that_refuses_pauses_the_consumer(steps: Steps) -> None:
    """Redis is down, and nothing may run without it; the message waits here."""
    guard = FakeGuard(steps, UnavailableError("redis is down"))
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish COMPLETED", "ack 7"]


async def test_the_claim_is_released_before_a_pause(steps: Steps) -> None:
    """A handler that asks for a pause leaves the claim to the probe."""
    retry = Retry.immediate(attempts=1).pause_on(OSError)
    guard = FakeGuard(steps)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "finish COMPLETED", "ack 7"]


async def test_the_claim_is_released_before_a_retry(steps: Steps) -> None:
    """The copy for later can be claimed by any process."""
    guard = FakeGuard(steps)
    retry = Retry.exponential(first_seconds=4)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "copy to hk.delay.L2", "ack 7"]


async def test_a_short_retry_begins_again(steps: Steps) -> None:
    """A run that follows numbers its steps from the start."""
    guard = FakeGuard(steps)
    retry = Retry.immediate(attempts=2)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "finish COMPLETED", "ack 7"]


async def test_a_dead_letter_is_confirmed_before_the_guard_knows(steps: Steps) -> None:
    """The other way round, a crash in between would lose the event: the guard says failed, and nobody has it."""
    guard = FakeGuard(steps)
    await processor(steps, failing(OSError()), guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "finish FAILED", "ack 7"]


async def test_a_dead_letter_that_nobody_took_has_not_failed(steps: Steps) -> None:
    """Where the channel closed before the copy was confirmed, the claim is released, as the message comes again."""

    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    await processor(steps, handle, guard=FakeGuard(steps)).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED"]


async def test_a_lost_claim_waits_for_the_other_holder(steps: Steps) -> None:
    """A run whose lease was taken over acknowledges nothing: a copy comes back, and counts no attempt."""
    guard = FakeGuard(steps)
    guard.lost = True
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    assert "hk_attempt" not in steps.copies[0].headers


async def test_an_outcome_that_redis_did_not_take_is_no_reason_to_run_again(steps: Steps) -> None:
    """The effect is done, so the message is acknowledged; a repetition may run once more."""
    guard = FakeGuard(steps, finish=Finish.UNRECORDED)
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish COMPLETED", "ack 7"]
