"""What ends an attempt, and how the ends that Redis did not confirm are settled later."""

import asyncio
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from hybridkit.coordination._redis._commands import Script
from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import (
    ClaimLostError,
    InProgressError,
    KeyReusedError,
    MisuseError,
    RejectedError,
    UnavailableError,
)
from hybridkit.idempotency import Acquired, Completed, IdempotencyGuard, InProgress, Outcome
from hybridkit.idempotency._answers import Exhausted, Failed, Mismatch
from hybridkit.idempotency._attempt import Attempt, error_for
from hybridkit.idempotency._records import Records
from hybridkit.idempotency._unsettled import MAX_UNSETTLED, Unsettled

KEY = "orders:order:42"


@pytest.fixture
def guard(fake_redis: FakeAsyncRedis) -> IdempotencyGuard:
    return IdempotencyGuard(fake_redis)


@pytest.fixture
def attempt(guard: IdempotencyGuard) -> Attempt:
    return Attempt(guard)


async def take_over(redis: FakeAsyncRedis) -> None:
    """Have another holder begin the same work."""
    await redis.flushall()
    assert isinstance(await IdempotencyGuard(redis).begin(KEY, None), Acquired)


# ── an attempt ───────────────────────────────────────────────────────────────────────────────────


async def test_an_attempt_asks_once(attempt: Attempt) -> None:
    """A second question is refused as misuse, whatever its key."""
    assert await attempt.begin(KEY, None) is None
    with pytest.raises(MisuseError, match="once"):
        await attempt.begin("orders:order:43", None)


async def test_what_was_finished_is_given_to_the_next_attempt(
    guard: IdempotencyGuard, attempt: Attempt
) -> None:
    """With its result."""
    await attempt.begin(KEY, None)
    await attempt.finish(Outcome.COMPLETED, "done")
    assert await Attempt(guard).begin(KEY, None) == Completed(b'"done"')


async def test_an_attempt_ends_once(fake_redis: FakeAsyncRedis, attempt: Attempt) -> None:
    """Neither a second end nor giving back is told, so that it doesn't matter who has the key by then."""
    await attempt.begin(KEY, None)
    await attempt.finish(Outcome.COMPLETED)
    await take_over(fake_redis)
    await attempt.finish(Outcome.COMPLETED)
    await attempt.give_back()
    assert isinstance(await IdempotencyGuard(fake_redis).begin(KEY, None), InProgress)


async def test_what_was_given_back_is_the_next_attempts_to_do(
    guard: IdempotencyGuard, attempt: Attempt
) -> None:
    """A holder that gives back lets the next one in at once, which is refused before."""
    await attempt.begin(KEY, None)
    with pytest.raises(InProgressError):
        await Attempt(guard).begin(KEY, None, wait_seconds=0)
    await attempt.give_back()
    assert await Attempt(guard).begin(KEY, None, wait_seconds=0) is None


async def test_an_attempt_that_never_asked_has_nothing_to_end(
    fake_redis: FakeAsyncRedis, attempt: Attempt
) -> None:
    """Without a question, finishing writes nothing to Redis."""
    await attempt.finish(Outcome.COMPLETED)
    assert await fake_redis.keys() == []


async def test_only_a_lease_that_is_held_can_be_lost(fake_redis: FakeAsyncRedis, attempt: Attempt) -> None:
    """Renewing says that it is lost only after another holder has taken over work that was begun."""
    assert await attempt.renew()
    await attempt.begin(KEY, None)
    assert await attempt.renew()
    await take_over(fake_redis)
    assert not await attempt.renew()


async def test_after_the_end_no_lease_is_asked_for(
    guard: IdempotencyGuard, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A background task may go on for long behind an answer, and Redis may be away by then."""

    async def away(_: Acquired) -> bool:
        raise UnavailableError("away")

    await attempt.begin(KEY, None)
    await attempt.finish(Outcome.RELEASED)
    monkeypatch.setattr(guard, "renew", away)
    assert await attempt.renew()


async def test_a_renewal_that_the_end_overtakes_loses_nothing(
    guard: IdempotencyGuard, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of "lost" to a question from before the end is not taken for a loss."""

    async def overtaken(_: Acquired) -> bool:
        await attempt.finish(Outcome.COMPLETED)
        return False

    monkeypatch.setattr(guard, "renew", overtaken)
    await attempt.begin(KEY, None)
    assert await attempt.renew()


async def test_completing_what_another_holder_has_is_an_error(
    fake_redis: FakeAsyncRedis, attempt: Attempt
) -> None:
    """Work that is done after another holder has taken it over ends in an error."""
    await attempt.begin(KEY, None)
    await take_over(fake_redis)
    with pytest.raises(ClaimLostError, match="another holder"):
        await attempt.finish(Outcome.COMPLETED)


async def test_giving_back_what_another_holder_has_is_no_error(
    fake_redis: FakeAsyncRedis, attempt: Attempt
) -> None:
    """A release that comes too late is silent, and leaves the key to its new holder."""
    await attempt.begin(KEY, None)
    await take_over(fake_redis)
    await attempt.give_back()
    assert isinstance(await IdempotencyGuard(fake_redis).begin(KEY, None), InProgress)


async def test_unguarded_work_may_end_after_another_holder(
    fake_redis: FakeAsyncRedis, guard: IdempotencyGuard, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that ran without Redis never had the key, so its end is no error when somebody has it."""
    unguarded = Acquired(key=KEY, token="t", fence=0, taken_over=False, guarded=False, fingerprint="f")

    async def without_redis(*_: Any, **__: Any) -> Acquired:
        return unguarded

    await take_over(fake_redis)
    monkeypatch.setattr(guard, "begin", without_redis)
    await attempt.begin(KEY, None)
    await attempt.finish(Outcome.COMPLETED)
    assert not await guard.renew(unguarded)


async def test_its_repr_tells_how_far_it_is(attempt: Attempt) -> None:
    """The repr says whether it has the work and whether it has ended it, and no key."""
    assert repr(attempt) == "Attempt(acquired=False, finished=False)"
    await attempt.begin(KEY, None)
    await attempt.give_back()
    assert repr(attempt) == "Attempt(acquired=True, finished=True)"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (InProgress(200), InProgressError),
        (Failed(None), RejectedError),
        (Mismatch(), KeyReusedError),
        (Exhausted(), RejectedError),
    ],
    ids=str,
)
def test_every_refusal_has_its_error(
    answer: InProgress | Failed | Mismatch | Exhausted, error: type[Exception]
) -> None:
    """Each refusal becomes the kind of error that its caller can tell from the others."""
    assert type(error_for(answer)) is error


# ── what is settled later ────────────────────────────────────────────────────────────────────────


class Told(Records):
    """Keeps what it is told; it is away for the first `failures` times, and may be told more meanwhile."""

    def __init__(self, *, failures: int = 0) -> None:
        super().__init__(FakeAsyncRedis(), key_prefix="")
        self.failures = failures
        self.told: list[tuple[str, tuple[Part, ...]]] = []
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self, script: Script, key: str, *arguments: Part, even_if_away: bool = False) -> Any:
        self.asked.set()
        await self.may_answer.wait()
        if self.failures:
            self.failures -= 1
            raise UnavailableError("away")
        self.told.append((key, arguments))
        return b"OK"


@pytest.fixture(autouse=True)
def _no_cooldown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridkit.idempotency._unsettled.COOLDOWN_SECONDS", 0)


async def settle(unsettled: Unsettled) -> None:
    assert unsettled._telling is not None
    await unsettled._telling


async def test_an_end_is_told_until_redis_takes_it() -> None:
    """Ends are told again while Redis is away, then each once, and nothing is left."""
    records = Told(failures=2)
    unsettled = Unsettled(records)
    unsettled.add("a", "t", "C")
    unsettled.add("b", "t", "R")
    assert repr(unsettled) == "Unsettled(2)"
    await settle(unsettled)
    assert records.told == [("a", ("t", "C")), ("b", ("t", "R"))]
    assert repr(unsettled) == "Unsettled(0)"


async def test_an_end_that_changes_while_it_is_told_is_told_again() -> None:
    """What replaced an end during the question about it isn't dropped with the old one."""
    records = Told()
    records.may_answer.clear()
    unsettled = Unsettled(records)
    unsettled.add("a", "t", "R")
    await records.asked.wait()
    unsettled.add("a", "t", "C")
    records.may_answer.set()
    await settle(unsettled)
    assert records.told == [("a", ("t", "R")), ("a", ("t", "C"))]


async def test_of_too_many_ends_the_oldest_is_dropped() -> None:
    """One end over the limit costs the oldest one, and no other."""
    records = Told()
    unsettled = Unsettled(records)
    for number in range(MAX_UNSETTLED + 1):
        unsettled.add(str(number), "t")
    await settle(unsettled)
    assert [key for key, _ in records.told] == [str(number) for number in range(1, MAX_UNSETTLED + 1)]
