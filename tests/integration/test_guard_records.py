"""BEGIN, FINISH and RENEW on a Redis server: who gets the work, and what is remembered of it."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from hybridkit.coordination import Redis, connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.idempotency import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    IdempotencyGuard,
    InProgress,
    Mismatch,
    Outcome,
)
from hybridkit.idempotency._scripts import BEGIN, FINISH, RENEW

KEY = "orders:order:42"
ORDER = {"number": 42}
RECORD = f"hk:claim:{KEY}"


@pytest.fixture(params=[True, False], ids=["text", "bytes"])
async def redis(redis_url: str, request: pytest.FixtureRequest) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, decode_responses=request.param, timeout_seconds=2.0) as redis:
        yield redis


@pytest.fixture
def guard(redis: Redis) -> IdempotencyGuard:
    return IdempotencyGuard(redis)


@pytest.fixture
def hasty(redis: Redis) -> IdempotencyGuard:
    """Its leases are over at once, unless they are renewed."""
    return IdempotencyGuard(redis, lease_seconds=0.001, max_takeovers=2)


async def acquire(guard: IdempotencyGuard, *, wait_seconds: float = 0.0) -> Acquired:
    answer = await guard.begin(KEY, ORDER, wait_seconds=wait_seconds)
    assert isinstance(answer, Acquired), answer
    return answer


async def begin_again(guard: IdempotencyGuard, payload: object = ORDER) -> Begin:
    return await guard.begin(KEY, payload)


async def test_the_first_gets_the_work(guard: IdempotencyGuard) -> None:
    """Its fence is 1, and it has taken over from no other holder."""
    acquired = await acquire(guard)
    assert (acquired.key, acquired.fence, acquired.taken_over, acquired.guarded) == (KEY, 1, False, True)


async def test_the_second_is_told_how_long_the_lease_lasts(guard: IdempotencyGuard) -> None:
    """It may come back then, if no result is there before."""
    await acquire(guard)
    answer = await begin_again(guard)
    assert isinstance(answer, InProgress)
    assert 20_000 < answer.retry_after_ms <= 30_000


async def test_the_record_is_kept_for_the_retention_and_not_for_the_lease(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """A claim that is never finished is known for a day."""
    await acquire(guard)
    assert 86_000 < await redis.ttl(RECORD) <= 86_400


async def test_finished_work_is_answered_with_its_result(guard: IdempotencyGuard) -> None:
    """The JSON comes back as it was given, in any script."""
    acquired = await acquire(guard)
    assert await guard.finish(acquired, Outcome.COMPLETED, {"paid": "ünïcode"}) is Finish.OK
    answer = await begin_again(guard)
    assert isinstance(answer, Completed)
    assert answer.result == {"paid": "ünïcode"}


async def test_work_given_up_is_answered_as_such(guard: IdempotencyGuard) -> None:
    """The error that it ended with is kept like a result."""
    acquired = await acquire(guard)
    assert await guard.finish(acquired, Outcome.FAILED, "no such card") is Finish.OK
    answer = await begin_again(guard)
    assert isinstance(answer, Failed)
    assert answer.result == "no such card"


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED])
async def test_a_large_result_is_not_kept_but_the_work_counts_as_done(
    guard: IdempotencyGuard, outcome: Outcome
) -> None:
    """The answer has no body, so that a caller can tell it from null."""
    assert await guard.finish(await acquire(guard), outcome, "x" * 32_767) is Finish.OK
    answer = await begin_again(guard)
    assert isinstance(answer, Completed | Failed)
    assert answer.body is None
    assert answer.result is None


async def test_released_work_is_free_at_once_and_no_crash_is_counted(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """The fence rises, and the number of takeovers stays 0."""
    assert await guard.finish(await acquire(guard), Outcome.RELEASED) is Finish.OK
    again = await acquire(guard)
    assert (again.fence, again.taken_over) == (2, False)
    assert int(await redis.hget(RECORD, "takeovers") or -1) == 0


async def test_another_payload_under_the_same_key_is_a_mismatch_in_every_state(
    guard: IdempotencyGuard,
) -> None:
    """While the work runs as well as after it."""
    acquired = await acquire(guard)
    assert await begin_again(guard, {"number": 43}) == Mismatch()
    await guard.finish(acquired, Outcome.COMPLETED)
    assert await begin_again(guard, {"number": 43}) == Mismatch()


async def test_the_order_of_members_makes_no_other_payload(guard: IdempotencyGuard) -> None:
    """Payloads are compared in their canonical form."""
    await guard.begin(KEY, {"a": 1, "b": 2})
    assert isinstance(await begin_again(guard, {"b": 2, "a": 1}), InProgress)


async def test_an_expired_lease_is_taken_over_and_the_fence_rises(hasty: IdempotencyGuard) -> None:
    """The takeover counts as one crash."""
    await acquire(hasty)
    second = await acquire(hasty, wait_seconds=5)
    assert (second.fence, second.taken_over, second.takeovers) == (2, True, 1)


async def test_too_many_crashes_exhaust_the_work(hasty: IdempotencyGuard) -> None:
    """After the last allowed takeover no caller gets it any more."""
    for _ in range(3):
        await acquire(hasty, wait_seconds=5)
    while isinstance(answer := await begin_again(hasty), InProgress):
        pass
    assert answer == Exhausted()


async def test_a_waiting_caller_gets_the_work_as_soon_as_it_is_released(guard: IdempotencyGuard) -> None:
    """It does not wait for the end of the lease."""
    first = await acquire(guard)
    waiting = asyncio.create_task(acquire(guard, wait_seconds=10))
    await asyncio.sleep(0)
    await guard.finish(first, Outcome.RELEASED)
    assert (await waiting).fence == 2


async def test_a_waiting_caller_gives_up_at_its_time(guard: IdempotencyGuard) -> None:
    """It is told that the work is in progress, and not before that time."""
    await acquire(guard)
    since = time.monotonic()
    assert isinstance(await guard.begin(KEY, ORDER, wait_seconds=0.1), InProgress)
    assert time.monotonic() - since >= 0.1


async def test_renewing_extends_the_lease(hasty: IdempotencyGuard, redis: Redis) -> None:
    """Another caller is told that the work is in progress after the first lease has ended."""
    patient = IdempotencyGuard(redis)
    acquired = await acquire(hasty)
    assert await patient.renew(acquired)
    assert isinstance(await begin_again(hasty), InProgress)


async def test_a_zombie_can_neither_renew_nor_finish(
    hasty: IdempotencyGuard, guard: IdempotencyGuard
) -> None:
    """A holder whose lease was taken over changes nothing, whatever outcome it has."""
    zombie = await acquire(hasty)
    successor = await acquire(guard, wait_seconds=5)
    assert not await guard.renew(zombie)
    for outcome in Outcome:
        assert await guard.finish(zombie, outcome, "zombie") is Finish.LOST
    assert await guard.finish(successor, Outcome.COMPLETED, "successor") is Finish.OK
    assert await begin_again(guard) == Completed(b'"successor"')


async def test_a_finish_after_the_lease_counts_if_nobody_has_taken_over(hasty: IdempotencyGuard) -> None:
    """The work is done, and no other holder has begun."""
    acquired = await acquire(hasty)
    assert await hasty.finish(acquired, Outcome.COMPLETED) is Finish.OK


@pytest.mark.parametrize("outcome", Outcome)
async def test_a_repeated_finish_changes_nothing(guard: IdempotencyGuard, outcome: Outcome) -> None:
    """The first result stays, and finished work is not renewed."""
    acquired = await acquire(guard)
    assert await guard.finish(acquired, outcome, 1) is Finish.OK
    assert await guard.finish(acquired, outcome, 2) is Finish.ALREADY
    assert not await guard.renew(acquired)


async def test_a_late_release_does_not_undo_a_completion(guard: IdempotencyGuard) -> None:
    """Its answer says that the work has ended already."""
    acquired = await acquire(guard)
    await guard.finish(acquired, Outcome.COMPLETED, "done")
    assert await guard.finish(acquired, Outcome.RELEASED) is Finish.ALREADY
    assert await begin_again(guard) == Completed(b'"done"')


async def test_after_redis_lost_the_record_a_completion_is_written_anew(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """With its payload, so that a reused key is still found."""
    acquired = await acquire(guard)
    await redis.delete(RECORD)
    assert await guard.finish(acquired, Outcome.COMPLETED, "done") is Finish.RECREATED
    assert await begin_again(guard) == Completed(b'"done"')
    assert await begin_again(guard, "other") == Mismatch()


async def test_after_redis_lost_the_record_there_is_nothing_to_release(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """The next caller begins with fence 1."""
    acquired = await acquire(guard)
    await redis.delete(RECORD)
    assert await guard.finish(acquired, Outcome.RELEASED) is Finish.GONE
    assert (await acquire(guard)).fence == 1


async def test_after_redis_lost_the_record_a_renewal_holds_the_work_again(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """Other callers have to wait, and the holder can finish."""
    acquired = await acquire(guard)
    await redis.delete(RECORD)
    assert await guard.renew(acquired)
    assert isinstance(await begin_again(guard), InProgress)
    assert await guard.finish(acquired, Outcome.COMPLETED) is Finish.OK


async def test_a_redis_that_has_forgotten_the_scripts_is_given_them_again(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """Each call survives a flush of the scripts, as after a restart."""
    await redis.script_flush()
    acquired = await acquire(guard)
    await redis.script_flush()
    assert await guard.renew(acquired)
    await redis.script_flush()
    assert await guard.finish(acquired, Outcome.COMPLETED) is Finish.OK


async def test_a_redis_that_refuses_the_script_is_as_good_as_none(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """Here a foreign value stands under the key; out of memory and read-only replicas answer in the same way."""
    await redis.set(RECORD, "not ours")
    assert not (await acquire(guard)).guarded
    assert not guard._records.are_away


async def test_every_script_may_run_twice(redis: Redis) -> None:
    """As when its reply was lost: the same token gets the same answer, and nothing is counted twice."""
    scripts = multiplexer_of(redis)
    begin = ("token", "print", 30_000, 60_000, 5)
    assert await scripts.run(BEGIN, [KEY], *begin) == await scripts.run(BEGIN, [KEY], *begin)
    renew = ("token", 30_000, 60_000, "print", 1)
    assert await scripts.run(RENEW, [KEY], *renew) == await scripts.run(RENEW, [KEY], *renew)
    assert int(await redis.hget(KEY, "fence") or 0) == 1
    finish = ("token", "C", 60_000, "print", 1, b"1")
    answers = [await scripts.run(FINISH, [KEY], *finish) for _ in range(2)]
    assert answers == [b"OK", b"ALREADY"]


async def test_who_took_over_is_told_so_again_when_the_reply_was_lost(redis: Redis) -> None:
    """The same token gets the same answer, and no second takeover is counted."""
    scripts = multiplexer_of(redis)
    await scripts.run(BEGIN, [KEY], "first", "print", 0, 60_000, 5)
    begin = ("second", "print", 30_000, 60_000, 5)
    answers = [await scripts.run(BEGIN, [KEY], *begin) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0] == [b"TAKEN_OVER", 2, 1]


async def test_scripts_are_named_for_debugging() -> None:
    """The repr has the name, and not the text."""
    assert repr(BEGIN) == "Script('BEGIN')"


@pytest.mark.real_server
async def test_of_200_at_once_exactly_one_gets_the_work(redis: Redis) -> None:
    """The other 199, over ten guards, are told that it is in progress."""
    guards = [IdempotencyGuard(redis) for _ in range(10)]
    answers = await asyncio.gather(*(guards[n % 10].begin(KEY, ORDER) for n in range(200)))
    assert [type(answer) for answer in answers].count(Acquired) == 1
    assert [type(answer) for answer in answers].count(InProgress) == 199


# ── questions that arrive after their end ────────────────────────────────────────────────────────


async def ask_late(guard: IdempotencyGuard, token: str) -> object:
    """A `BEGIN` of that token, as a network delivers it that held it back."""
    return await guard._records.ask(BEGIN, KEY, token, "f", 30_000, 60_000, 2)


@pytest.mark.parametrize("outcome", [Outcome.RELEASED, Outcome.FORGOTTEN])
async def test_a_key_that_was_given_back_is_not_taken_by_the_question_it_overtook(
    guard: IdempotencyGuard, redis: Redis, outcome: Outcome
) -> None:
    """Whether the question was there before or not: its token has no holder any more."""
    mine = Acquired(key=KEY, token="t", fence=0, taken_over=False, guarded=False, fingerprint="f")
    assert await guard.finish(mine, outcome) is Finish.GONE
    assert await ask_late(guard, "t") == [b"IN_PROGRESS", 0]
    assert await redis.ttl(RECORD) <= 60
    assert (await acquire(guard)).fence == 1


async def test_work_that_was_not_begun_binds_no_later_payload(guard: IdempotencyGuard, redis: Redis) -> None:
    """A forgotten claim leaves the key free for other data, and its record soon expires."""
    assert await guard.finish(await acquire(guard), Outcome.FORGOTTEN) is Finish.OK
    assert await redis.ttl(RECORD) <= 60
    assert isinstance(await begin_again(guard, {"number": 43}), Acquired)


async def test_work_that_an_earlier_holder_has_begun_is_not_forgotten(guard: IdempotencyGuard) -> None:
    """Its effects may be half done, so the payload stays bound."""
    await guard.finish(await acquire(guard), Outcome.RELEASED)
    await guard.finish(await acquire(guard), Outcome.FORGOTTEN)
    assert await begin_again(guard, {"number": 43}) == Mismatch()
