"""Keeping a lease: the block runs on while it is renewed, and is stopped when it is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from hybridkit.coordination._lease import LeaseKeeper
from hybridkit.errors import ClaimLostError, UnavailableError

LEASE_SECONDS = 0.03


class Redis:
    """Answers renewals from a list; the last answer stays. Its clock moves by a third of a lease per renewal."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.now = 1000.0
        self.renewals = 0
        self.renewed = asyncio.Condition()

    async def renew(self) -> bool:
        self.renewals += 1
        self.now += LEASE_SECONDS / 3
        async with self.renewed:
            self.renewed.notify_all()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until_renewals(self, count: int) -> None:
        async with self.renewed:
            await self.renewed.wait_for(lambda: self.renewals >= count)

    def keeper(self, *, may_outlive: bool = False, since: float | None = None) -> LeaseKeeper:
        return LeaseKeeper(
            self.renew,
            since=since,
            lease_seconds=LEASE_SECONDS,
            may_outlive=may_outlive,
            error_of_loss=ClaimLostError,
            clock=lambda: self.now,
        )


DOWN = UnavailableError("down")


async def test_the_block_outlives_many_leases_while_it_is_renewed() -> None:
    """A lease of 30 ms and seven renewals end with the block."""
    redis = Redis(True)
    async with redis.keeper() as keeper:
        await redis.until_renewals(7)
    assert repr(keeper) == "LeaseKeeper(lease_seconds=0.03, lost=None)"


async def test_a_short_block_renews_nothing_and_starts_no_task() -> None:
    """Its timer ends with it."""
    redis = Redis(True)
    async with redis.keeper() as keeper:
        pass
    assert keeper._timer.cancelled()
    assert (keeper._renewing, redis.renewals) == (None, 0)


async def test_nothing_is_renewed_after_the_block() -> None:
    """The task that renews ends with it."""
    redis = Redis(True)
    async with redis.keeper() as keeper:
        await redis.until_renewals(2)
    assert keeper._renewing is not None
    await asyncio.wait({keeper._renewing})
    assert keeper._renewing.cancelled()


async def run(keeper: LeaseKeeper, work: Callable[[], Awaitable[object]]) -> None:
    async with keeper:
        await work()


async def test_losing_the_lease_cancels_the_block() -> None:
    """It may clean up, and the task isn't left in a cancelled state."""
    cleaned_up = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    with pytest.raises(ClaimLostError, match="another holder"):
        await run(Redis(True, False).keeper(), work)
    assert cleaned_up.is_set()
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr] # a test runs in a task


async def test_the_error_of_a_block_that_fails_while_it_is_stopped_is_kept() -> None:
    """It says more than that the claim was lost."""

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError

    with pytest.raises(LookupError):
        await run(Redis(False).keeper(), work)


async def test_a_block_that_ignores_its_cancellation_has_lost_the_claim_all_the_same() -> None:
    """Its result must not be recorded."""

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    with pytest.raises(ClaimLostError):
        await run(Redis(False).keeper(), work)


async def test_a_loss_at_the_last_moment_does_not_cancel_what_comes_after_the_block() -> None:
    """The cancellation is taken back on the way out."""
    keeper = Redis(True).keeper()

    async def work() -> None:
        keeper._lost = "just now"
        keeper._body.cancel()

    with pytest.raises(ClaimLostError):
        await run(keeper, work)
    await asyncio.sleep(0)


async def test_a_cancellation_from_outside_stays_one() -> None:
    """It isn't turned into the loss of a claim."""
    redis = Redis(True)

    async def work() -> None:
        async with redis.keeper():
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await redis.until_renewals(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("ends", ["waiting", "at once"])
async def test_a_cancellation_from_outside_wins_over_a_loss_at_the_same_time(ends: str) -> None:
    """The process is being stopped, whoever holds the key."""
    redis = Redis(True)

    async def work() -> None:
        async with redis.keeper() as keeper:
            keeper._lost = "just now"
            keeper._body.cancel()
            keeper._body.cancel()
            if ends == "waiting":
                await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_a_swallowed_cancellation_from_outside_is_not_turned_into_an_error() -> None:
    """Who swallows a cancellation answers for it: the keeper neither repeats it nor calls it a loss."""
    redis = Redis(True)

    async def work() -> str:
        async with redis.keeper() as keeper:
            keeper._lost = "just now"
            keeper._body.cancel()
            keeper._body.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return "ended"

    assert await asyncio.create_task(work()) == "ended"


async def test_without_news_from_redis_the_block_ends_before_its_lease() -> None:
    """Another holder may begin when it is over."""
    redis = Redis(True, DOWN)
    with pytest.raises(ClaimLostError, match="Redis does not answer"):
        async with redis.keeper():
            await asyncio.Event().wait()


async def test_a_renewal_in_time_makes_up_for_failed_ones() -> None:
    """Every other question fails here."""
    redis = Redis(DOWN, True, DOWN, True, DOWN, True)
    async with redis.keeper():
        await redis.until_renewals(7)


async def test_harmless_work_goes_on_without_redis() -> None:
    """Writes through a data service are safe in two holders' hands."""
    redis = Redis(DOWN)
    async with redis.keeper(may_outlive=True):
        await redis.until_renewals(9)


# ── a block that begins late ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("may_outlive", [False, True], ids=["must end in time", "may outlive"])
async def test_a_block_whose_lease_another_holder_has_by_now_does_not_begin(*, may_outlive: bool) -> None:
    """Its process was frozen between the answer and the start: the lease counts from before the question was sent."""
    redis = Redis(False)
    with pytest.raises(ClaimLostError, match="another holder"):
        async with redis.keeper(may_outlive=may_outlive, since=redis.now - LEASE_SECONDS):
            pytest.fail("it begins")


async def test_a_block_that_begins_late_renews_first() -> None:
    """The process was frozen between the answer and the block."""
    redis = Redis(True)
    async with redis.keeper(since=redis.now - LEASE_SECONDS):
        assert redis.renewals == 1


async def test_a_block_that_begins_in_time_asks_nobody() -> None:
    """A short piece of work costs no renewal."""
    redis = Redis(False)
    async with redis.keeper(since=redis.now - LEASE_SECONDS / 2):
        assert redis.renewals == 0


@pytest.mark.parametrize("may_outlive", [False, True], ids=["must end in time", "may outlive"])
async def test_a_block_that_begins_late_while_redis_is_down(*, may_outlive: bool) -> None:
    """Two holders at once do no harm to what a data service writes; all else must not begin."""
    redis = Redis(DOWN)
    begun = False
    with suppress(ClaimLostError):
        async with redis.keeper(may_outlive=may_outlive, since=redis.now - LEASE_SECONDS):
            begun = True
    assert begun is may_outlive
