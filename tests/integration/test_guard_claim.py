"""`claim` and its decorator on a Redis server: the block runs once, and what it leaves behind."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.context import RequestContext, bind, current
from hybridkit.coordination import Redis, connect_redis
from hybridkit.errors import (
    ClaimLostError,
    InProgressError,
    KeyReusedError,
    MalformedPayloadError,
    MisuseError,
    RejectedError,
)
from hybridkit.idempotency import Acquired, Completed, Finish, IdempotencyGuard, InProgress, Outcome
from hybridkit.idempotency._records import Records

KEY = "orders:order:42"


class Receipt(BaseModel):
    id: UUID
    at: datetime


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=2.0) as redis:
        yield redis


@pytest.fixture
def guard(redis: Redis) -> IdempotencyGuard:
    return IdempotencyGuard(redis)


@pytest.fixture
def hasty(redis: Redis) -> IdempotencyGuard:
    return IdempotencyGuard(redis, lease_seconds=0.001, max_takeovers=0)


async def acquired_by(guard: IdempotencyGuard) -> Acquired:
    answer = await guard.begin(KEY, None, wait_seconds=5)
    assert isinstance(answer, Acquired)
    return answer


async def test_the_first_call_runs_and_the_second_gets_its_result(guard: IdempotencyGuard) -> None:
    """The block asks `done`, and runs its work only once."""
    results: list[Any] = []
    for number in range(2):
        async with guard.claim(KEY, None) as claim:
            if claim.done:
                results.append(claim.result)
            else:
                claim.set_result({"run": number})
    assert results == [{"run": 0}]


async def test_a_block_without_a_result_is_done_with_null(guard: IdempotencyGuard) -> None:
    """The work counts as completed, with null as its result."""
    async with guard.claim(KEY, None) as claim:
        assert repr(claim) == "Claimed('orders:order:42', done=False)"
        assert claim.result is None
    assert await guard.begin(KEY, None) == Completed(b"null")


@pytest.mark.parametrize("done", [False, True])
async def test_the_block_runs_under_the_claim_of_that_key(guard: IdempotencyGuard, *, done: bool) -> None:
    """Also the block of a repeated call: what it writes in spite of `done` gets the same derived keys."""
    if done:
        await guard.finish(await acquired_by(guard), Outcome.COMPLETED)
    with bind(RequestContext(request_id="r-1", user_id="u-1")):
        async with guard.claim(KEY, None) as claim:
            assert claim.done is done
            context = current()
            assert context.claim is not None
            assert context.claim.key == KEY
            assert (context.request_id, context.user_id) == ("r-1", "u-1")
        assert current().claim is None


async def test_an_error_releases_the_key(guard: IdempotencyGuard) -> None:
    """The next caller runs at once, and no crash is counted."""
    with pytest.raises(LookupError):
        async with guard.claim(KEY, None):
            raise LookupError
    again = await acquired_by(guard)
    assert (again.fence, again.taken_over) == (2, False)


async def test_a_cancellation_releases_the_key(guard: IdempotencyGuard) -> None:
    """A cancelled block leaves no lease that the next caller has to wait for."""
    inside = asyncio.Event()

    async def work() -> None:
        async with guard.claim(KEY, None):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (await acquired_by(guard)).taken_over


async def test_a_second_caller_is_told_when_to_come_back(guard: IdempotencyGuard) -> None:
    """Soon: the lease is only for holders that died."""
    async with guard.claim(KEY, None):
        with pytest.raises(InProgressError, match="another holder") as caught:
            async with guard.claim(KEY, None, wait_seconds=0):
                pytest.fail("it ran twice")
    assert caught.value.retry_after_seconds == 1


async def test_a_second_caller_that_waits_gets_the_result(guard: IdempotencyGuard) -> None:
    """It waits while the first one works, and does not run."""

    async def second() -> Any:
        async with guard.claim(KEY, None, wait_seconds=10) as claim:
            return claim.done and claim.result

    async with guard.claim(KEY, None) as claim:
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        claim.set_result("first")
    assert await waiting == "first"


async def test_another_payload_is_refused(guard: IdempotencyGuard) -> None:
    """A key that stands for other data raises before the block."""
    async with guard.claim(KEY, {"amount": 1}):
        pass
    with pytest.raises(KeyReusedError, match="needs a new key"):
        async with guard.claim(KEY, {"amount": 2}):
            pytest.fail("it ran")


async def test_what_was_given_up_is_refused(guard: IdempotencyGuard) -> None:
    """Work that failed for good raises before the block."""
    await guard.finish(await acquired_by(guard), Outcome.FAILED)
    with pytest.raises(RejectedError, match="given up"):
        async with guard.claim(KEY, None):
            pytest.fail("it ran")


async def test_what_kills_its_holders_is_refused(hasty: IdempotencyGuard) -> None:
    """Work on which too many holders have died raises before the block."""
    await acquired_by(hasty)
    with pytest.raises(RejectedError, match="died"):
        async with hasty.claim(KEY, None, wait_seconds=5):
            pytest.fail("it ran")


async def test_a_block_that_never_looks_whether_it_was_done_is_found_out(guard: IdempotencyGuard) -> None:
    """It would do finished work again, so it raises at its end."""
    async with guard.claim(KEY, None):
        pass
    with pytest.raises(MisuseError, match=r"claim\.done"):
        async with guard.claim(KEY, None):
            pass


async def test_the_result_of_finished_work_can_not_be_replaced(guard: IdempotencyGuard) -> None:
    """A `set_result` in a block whose work is done raises, and the first result stays."""
    async with guard.claim(KEY, None) as claim:
        claim.set_result("first")
    with pytest.raises(MisuseError, match="keeps its result"):
        async with guard.claim(KEY, None) as claim:
            claim.set_result("second")
    assert await guard.begin(KEY, None) == Completed(b'"first"')


async def test_a_result_without_a_json_form_fails_in_the_block(guard: IdempotencyGuard) -> None:
    """The error is raised where the result is set, and the key is free again."""
    with pytest.raises(MalformedPayloadError):
        async with guard.claim(KEY, None) as claim:
            claim.set_result(object())
    assert isinstance(await guard.begin(KEY, None), Acquired)


async def test_a_taken_over_claim_cancels_its_block(redis: Redis) -> None:
    """The renewal finds another holder, and the block ends with that error while the other one works."""
    guard = IdempotencyGuard(redis, lease_seconds=0.3)

    async def work() -> None:
        async with guard.claim(KEY, None):
            await redis.hset(f"hk:claim:{KEY}", "token", "another")
            await asyncio.Event().wait()

    with pytest.raises(ClaimLostError, match="another holder"):
        await work()
    assert isinstance(await guard.begin(KEY, None), InProgress)


async def test_a_claim_lost_at_the_very_end_is_no_success(guard: IdempotencyGuard, redis: Redis) -> None:
    """The record of the end finds another holder, so the block raises."""
    with pytest.raises(ClaimLostError, match="before it ended"):
        async with guard.claim(KEY, None):
            await redis.hset(f"hk:claim:{KEY}", "token", "another")


async def test_a_lost_claim_of_an_inner_block_releases_the_outer_one(guard: IdempotencyGuard) -> None:
    """An error of that class from within is an error like any other."""
    with pytest.raises(ClaimLostError):
        async with guard.claim(KEY, None):
            raise ClaimLostError("of something else")
    assert (await acquired_by(guard)).fence == 2


async def test_work_without_redis_that_another_one_does_too_is_no_error(
    guard: IdempotencyGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write through data services, where the derived keys make one of the two."""
    await acquired_by(guard)
    with monkeypatch.context() as away:
        away.setattr(Records, "are_away", True)
        claim = guard.claim(KEY, None)
        await claim.__aenter__()
    await claim.__aexit__(None, None, None)
    assert isinstance(await guard.begin(KEY, None), InProgress)


async def test_the_decorator_runs_the_function_once_and_reads_the_stored_result(
    guard: IdempotencyGuard,
) -> None:
    """The stored JSON is read as the type that the function is annotated with."""
    runs: list[int] = []

    @guard.idempotent(key=lambda number: f"orders:order:{number}", payload=lambda number: number)
    async def pay(number: int) -> Receipt:
        """Charge the card."""
        runs.append(number)
        return Receipt(id=UUID(int=number), at=datetime(2025, 1, 15, tzinfo=UTC))

    first, second, other = await pay(1), await pay(1), await pay(number=2)
    assert first == second != other
    assert isinstance(second, Receipt)
    assert runs == [1, 2]
    assert pay.__name__ == "pay"


async def test_the_decorator_without_an_annotation_answers_json(guard: IdempotencyGuard) -> None:
    """The first call returns the value itself, and later ones its JSON form."""

    @guard.idempotent(key=lambda: KEY, payload=lambda: None)
    async def count():  # type: ignore[no-untyped-def] # what the test is about
        return (1, 2)

    assert await count() == (1, 2)
    assert await count() == [1, 2]


async def test_the_decorator_can_not_repeat_a_result_that_was_too_large(guard: IdempotencyGuard) -> None:
    """The first call returns it, and later ones raise instead of returning null."""

    @guard.idempotent(key=lambda: KEY, payload=lambda: None)
    async def export() -> str:
        return "x" * 40_000

    assert len(await export()) == 40_000
    with pytest.raises(MisuseError, match="32768 bytes"):
        await export()


async def test_who_is_cancelled_while_asking_leaves_nothing_behind(
    guard: IdempotencyGuard, redis: Redis
) -> None:
    """A claim that is granted after the cancellation is released, and no takeover is counted."""
    asking = asyncio.create_task(guard.begin(KEY, None))
    await asyncio.sleep(0)  # it has asked, and has no answer yet
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    while await redis.hget(f"hk:claim:{KEY}", "state") != "R":
        pass
    assert not (await acquired_by(guard)).taken_over


async def test_who_is_cancelled_while_finishing_has_finished(guard: IdempotencyGuard) -> None:
    """The record is written although its caller no longer waits."""
    acquired = await acquired_by(guard)
    finishing = asyncio.create_task(guard.finish(acquired, Outcome.COMPLETED, "done"))
    await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    while isinstance(answer := await guard.begin(KEY, None), InProgress):
        pass
    assert answer == Completed(b'"done"')


async def test_the_lease_is_renewed_while_a_consumer_holds_it(redis: Redis) -> None:
    """After more than its length another caller still has to wait."""
    guard = IdempotencyGuard(redis, lease_seconds=1.0)
    acquired = await acquired_by(guard)
    async with guard.hold(acquired):
        claim = current().claim
        assert claim is not None
        assert claim.key == KEY
        assert isinstance(await guard.begin(KEY, None, wait_seconds=2.0), InProgress)
    assert await guard.finish(acquired, Outcome.COMPLETED) is Finish.OK
