"""Jobs on a real Redis whose clock the tests set: every slot once, whatever replicas, clocks and Redis do."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from hybridkit.context import RequestContext, current
from hybridkit.coordination import Redis, connect_redis
from hybridkit.errors import DeclarationError, RejectedError, UnavailableError
from hybridkit.jobs import JobRunner, Jobs, Slot, _execution, _records, _runner
from hybridkit.jobs._records import JobRecord
from hybridkit.observability import configure_error_reports, metrics
from hybridkit.retry import Retry
from hybridkit.settings import SecretUrl, ServiceSettings
from hybridkit.testing import FaultProxy
from tests.helpers import until
from tests.helpers.job_clock import set_time, shift_clock_of_jobs
from tests.helpers.sentry import SentryReceiver

pytestmark = pytest.mark.real_server

START = datetime(2030, 1, 1, 10, 0, 10, tzinfo=UTC)
TEN, ELEVEN, TWELVE, ONE = (datetime(2030, 1, 1, hour, tzinfo=UTC) for hour in (10, 11, 12, 13))
AT_ONCE = Retry.immediate(attempts=3)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(_execution, "_AWAY_SECONDS", 0.02)
    shift_clock_of_jobs(monkeypatch)


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=10.0) as redis:
        await set_time(redis, START)
        yield redis


def record_of(redis: Redis, name: str = "tick") -> JobRecord:
    return JobRecord(redis, service="worker", job=name)


async def until_seen(redis: Redis, name: str = "tick") -> None:
    """Wait until a replica has looked at the job: slots count from then on."""
    await until(lambda: _has_cursor(redis, name))


async def _has_cursor(redis: Redis, name: str) -> bool:
    return (await record_of(redis, name).look()).cursor is not None


async def until_ended(redis: Redis, slot: datetime, name: str = "tick") -> _records.LastRun:
    await until(lambda: _is_ended(redis, slot, name))
    last = (await record_of(redis, name).look()).last
    assert last is not None
    return last


async def _is_ended(redis: Redis, slot: datetime, name: str) -> bool:
    last = (await record_of(redis, name).look()).last
    return last is not None and last.slot == slot


async def until_settled(redis: Redis, slot: datetime, name: str = "tick") -> None:
    await until(lambda: _is_settled(redis, slot, name))


async def _is_settled(redis: Redis, slot: datetime, name: str) -> bool:
    state = await record_of(redis, name).look()
    return state.cursor == slot and state.slot is None


def noting(jobs: Jobs, **options: Any) -> list[datetime]:
    """Register a job that runs every hour and notes its slots."""
    ran: list[datetime] = []

    @jobs.every(hours=1, **options)
    async def tick(slot: Slot) -> None:
        ran.append(slot.scheduled_at)

    return ran


def counted(name: str, **labels: str) -> float:
    samples = [sample for family in getattr(metrics, name).collect() for sample in family.samples]
    return float(
        sum(
            sample.value
            for sample in samples
            if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
        )
    )


# ── slots ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_job_runs_from_its_next_slot_on(redis: Redis) -> None:
    """What was due before a job was seen for the first time is nobody's."""
    jobs = Jobs()
    ran = noting(jobs)
    async with jobs.running(redis, service="worker") as runner:
        await until_seen(redis)
        assert ran == []
        await set_time(redis, ELEVEN)
        last = await until_ended(redis, ELEVEN)
        assert last.outcome == "done"
        assert ran == [ELEVEN]
        await until(lambda: _says(runner, "last 2030-01-01T11:00:00"))
        assert repr(record_of(redis)) == "JobRecord('hk:job:worker:tick')"
        assert "next 2030-01-01T12:00:00" in await runner.probe("tick")


async def _says(runner: JobRunner, text: str) -> bool:
    return text in await runner.probe("tick")


async def test_replicas_run_each_slot_once(redis: Redis, redis_url: str) -> None:
    """Three replicas see every slot at the same time, and one of them runs it."""
    jobs = Jobs()
    ran = noting(jobs)
    async with (
        connect_redis(redis_url, timeout_seconds=10) as second,
        connect_redis(redis_url, timeout_seconds=10) as third,
        jobs.running(redis, service="worker"),
        jobs.running(second, service="worker"),
        jobs.running(third, service="worker"),
    ):
        await until_seen(redis)
        slots = [TEN + timedelta(hours=each) for each in range(1, 21)]
        for slot in slots:
            await set_time(redis, slot)
            await until_ended(redis, slot)
    assert ran == slots


@pytest.mark.parametrize(
    ("missed", "expected"), [("once", [ONE]), ("all", [ELEVEN, TWELVE, ONE]), ("skip", [])]
)
async def test_missed_slots_are_made_up_for_as_declared(
    redis: Redis, missed: str, expected: list[datetime]
) -> None:
    """While no replica was there, three slots have passed, the last of them half an hour ago."""
    jobs = Jobs()
    ran = noting(jobs, missed=missed)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
    before = counted("job_slots_skipped", job="tick")
    await set_time(redis, ONE + timedelta(minutes=30))
    async with jobs.running(redis, service="worker"):
        await until_settled(redis, ONE)
    assert ran == expected
    assert counted("job_slots_skipped", job="tick") - before == 3 - len(expected)


async def test_a_slot_that_is_a_little_late_is_not_missed(redis: Redis) -> None:
    """A restart of some seconds costs no run, also where missed slots are skipped."""
    jobs = Jobs()
    ran = noting(jobs, missed="skip")
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
    await set_time(redis, TWELVE + timedelta(seconds=20))
    async with jobs.running(redis, service="worker"):
        await until_settled(redis, TWELVE)
    assert ran == [TWELVE]


async def test_no_more_than_a_hundred_missed_slots_are_run(redis: Redis) -> None:
    """A worker that was away for a year doesn't run for days."""
    jobs = Jobs()
    ran = noting(jobs, missed="all")
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
    await set_time(redis, START + timedelta(days=365))
    async with jobs.running(redis, service="worker"):
        await until_settled(redis, TEN + timedelta(days=365))
    assert ran == [TEN + timedelta(days=365, hours=each - 99) for each in range(100)]


async def test_a_clock_that_is_set_runs_no_slot_twice(redis: Redis) -> None:
    """Neither when it goes back over a slot, nor when it comes to the slot once more."""
    jobs = Jobs()
    ran = noting(jobs)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        for moment, settled in ((ELEVEN, ELEVEN), (START, ELEVEN), (ELEVEN, ELEVEN), (TWELVE, TWELVE)):
            await set_time(redis, moment)
            await until_settled(redis, settled)
        await set_time(redis, START)
        await set_time(redis, ONE)
        await until_settled(redis, ONE)
    assert ran == [ELEVEN, TWELVE, ONE]


async def test_a_clock_that_was_wrong_by_days_stops_nothing(redis: Redis) -> None:
    """After a day the slots of the wrong future are forgotten, and the job goes on."""
    jobs = Jobs()
    ran = noting(jobs)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        future = TEN + timedelta(days=400)
        await set_time(redis, future)
        await until_settled(redis, future)
        await set_time(redis, START)
        await until(lambda: _cursor_is_before(redis, ELEVEN))
        await set_time(redis, ELEVEN)
        await until_settled(redis, ELEVEN)
    assert ran == [future, ELEVEN]


async def _cursor_is_before(redis: Redis, moment: datetime) -> bool:
    cursor = (await record_of(redis).look()).cursor
    return cursor is not None and cursor < moment


async def test_jitter_delays_a_slot_by_the_same_time_on_each_replica(redis: Redis) -> None:
    """The slot is begun after its delay, and not at its moment."""
    jobs = Jobs()
    ran = noting(jobs, jitter_seconds=1800.0)
    start = jobs["tick"].start_of(ELEVEN)
    assert ELEVEN < start < ELEVEN + timedelta(minutes=30)
    async with jobs.running(redis, service="worker") as runner:
        await until_seen(redis)
        await set_time(redis, start - timedelta(seconds=60))
        # The next slot's own look at the job comes after the one in which this slot could have been begun.
        await until(lambda: _has_looked_since(runner, redis, start - timedelta(seconds=60)))
        assert ran == []
        await set_time(redis, start)
        await until_settled(redis, ELEVEN)
    assert ran == [ELEVEN]


async def _has_looked_since(runner: JobRunner, redis: Redis, moment: datetime) -> bool:
    state = await record_of(redis).look()
    return state.now > moment and "next 2030-01-01T12:" in await runner.probe("tick")


# ── overlap ──────────────────────────────────────────────────────────────────────────────────────


class Held:
    """A job that runs until the test lets it go."""

    def __init__(self, jobs: Jobs, **options: Any) -> None:
        self.began: list[Slot] = []
        self.ended: list[Slot] = []
        self.may_end = asyncio.Event()
        jobs.every(hours=1, name="tick", **options)(self.work)

    async def work(self, slot: Slot) -> None:
        self.began.append(slot)
        await self.may_end.wait()
        self.ended.append(slot)

    async def until_begun(self, times: int = 1) -> None:
        await until(lambda: len(self.began) >= times)


@pytest.mark.parametrize(
    ("missed", "expected"), [("once", [ELEVEN, ONE]), ("all", [ELEVEN, TWELVE, ONE]), ("skip", [ELEVEN])]
)
async def test_a_slot_does_not_begin_while_the_one_before_runs(
    redis: Redis, missed: str, expected: list[datetime]
) -> None:
    """Two slots that come meanwhile are counted, and made up for as missed ones."""
    jobs = Jobs()
    held = Held(jobs, missed=missed)
    overlapped = counted("job_slots_overlapped", job="tick")
    async with jobs.running(redis, service="worker"), jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        for slot in (TWELVE, ONE):
            await _keep_leased(redis)
            await set_time(redis, slot + timedelta(seconds=1))
        assert len(held.began) == 1
        held.may_end.set()
        await until_settled(redis, ONE)
    assert [slot.scheduled_at for slot in held.ended] == expected
    assert counted("job_slots_overlapped", job="tick") - overlapped >= 2


async def _keep_leased(redis: Redis) -> None:
    """Put the end of the lease so far away that a jump of the clock doesn't end it."""
    await cast("Any", redis).hset("hk:job:worker:tick", "lease_end", str(10**14))


# ── replicas that end ────────────────────────────────────────────────────────────────────────────


async def test_a_drain_waits_for_the_run(redis: Redis) -> None:
    """A run that ends within the budget is done, and nothing else is begun."""
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(redis, service="worker") as runner:
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        draining = asyncio.create_task(runner.drain(budget_seconds=60))
        await until(lambda: runner._loop is not None and runner._loop.done())
        held.may_end.set()
        assert await draining
    assert (await until_ended(redis, ELEVEN)).outcome == "done"


async def test_a_run_that_outlasts_the_drain_is_run_again_by_another_replica(redis: Redis) -> None:
    """It is given back at once, with a greater fence for the next holder, and the same key for what it writes."""
    jobs, keys = Jobs(), list[str]()
    may_end = asyncio.Event()
    slots: list[Slot] = []

    @jobs.every(hours=1)
    async def tick(slot: Slot, context: RequestContext) -> None:
        assert context.claim is not None
        assert context == current()
        slots.append(slot)
        keys.append(context.claim.key)
        await may_end.wait()

    async with jobs.running(redis, service="worker") as first:
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await until(lambda: slots)
        assert not await first.drain(budget_seconds=0.0)
    async with jobs.running(redis, service="worker"):
        await until(lambda: len(slots) == 2)
        may_end.set()
        await until_settled(redis, ELEVEN)
    assert [slot.scheduled_at for slot in slots] == [ELEVEN, ELEVEN]
    assert [slot.taken_over for slot in slots] == [False, True]
    assert slots[0].fence < slots[1].fence
    assert len(set(keys)) == 1
    assert keys[0].startswith("job:worker:")


async def test_the_run_of_a_replica_that_froze_goes_to_another_and_is_cancelled(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its lease is over another replica runs the slot, and the first one finds that out and stops."""
    monkeypatch.setattr(_execution, "LEASE_SECONDS", 0.6)  # asks more often than Redis wants it
    jobs, lost = Jobs(), counted("job_runs", job="tick", outcome="lost")
    held = Held(jobs)
    async with connect_redis(redis_url, timeout_seconds=10) as second, jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        async with jobs.running(second, service="worker"):
            await cast("Any", redis).hset("hk:job:worker:tick", "lease_end", "1")
            await held.until_begun(2)
            await until(lambda: counted("job_runs", job="tick", outcome="lost") > lost)
            held.may_end.set()
            await until_settled(redis, ELEVEN)
    assert [slot.scheduled_at for slot in held.began] == [ELEVEN, ELEVEN]
    assert len(held.ended) == 1


async def test_a_run_that_kills_its_replicas_is_given_up(redis: Redis) -> None:
    """After five dead holders the slot is settled, and the next one comes."""
    jobs = Jobs()
    ran = noting(jobs)
    record = record_of(redis)
    await record.skip(None, to=TEN)
    await set_time(redis, ELEVEN)
    for holder in range(6):
        run = await record.begin(
            ELEVEN, is_manual=False, cursor=TEN if not holder else ELEVEN, token=str(holder)
        )
        assert isinstance(run, _records.HeldRun)
        assert run.taken_over == bool(holder)
        await cast("Any", redis).hset("hk:job:worker:tick", "lease_end", "1")
    async with jobs.running(redis, service="worker"):
        last = await until_ended(redis, ELEVEN)
        assert last.outcome == "given_up"
        await set_time(redis, TWELVE)
        await until_settled(redis, TWELVE)
    assert ran == [TWELVE]


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────


async def run_one(redis: Redis, jobs: Jobs) -> _records.LastRun:
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        return await until_ended(redis, ELEVEN)


async def test_temporary_errors_are_tried_again_as_declared(redis: Redis) -> None:
    """Each attempt has a claim of its own with the same key, and the run succeeds with the third."""
    jobs, attempts = Jobs(), list[object]()

    @jobs.every(hours=1, retry=AT_ONCE)
    async def tick() -> None:
        attempts.append(current().claim)
        if len(attempts) < 3:
            raise UnavailableError("a service is down")

    before = counted("job_retries", job="tick")
    assert (await run_one(redis, jobs)).outcome == "done"
    assert len({id(claim) for claim in attempts}) == 3
    assert len({cast("Any", claim).key for claim in attempts}) == 1
    assert counted("job_retries", job="tick") - before == 2


@pytest.mark.parametrize(
    ("error", "attempts"), [(RejectedError("no"), 1), (ValueError("no"), 3), (asyncio.CancelledError(), 3)]
)
async def test_a_job_that_fails_is_recorded_with_its_error(
    redis: Redis, error: BaseException, attempts: int
) -> None:
    """What can't be cured is not tried again; a job that cancels itself has failed."""
    jobs, tries = Jobs(), list[int]()

    @jobs.every(hours=1, retry=AT_ONCE)
    async def tick() -> None:
        tries.append(1)
        raise error

    last = await run_one(redis, jobs)
    assert (last.outcome, last.error) == ("failed", type(error).__name__)
    assert len(tries) == attempts


async def test_a_dependency_that_is_down_counts_as_no_attempt(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `pause_on`, the job is tried until it works or its time is over."""
    monkeypatch.setattr(_execution, "SHORTEST_PAUSE_SECONDS", 0.0)
    jobs, tries = Jobs(), list[int]()

    @jobs.every(hours=1, retry=Retry.immediate(attempts=1).pause_on(UnavailableError))
    async def tick() -> None:
        tries.append(1)
        if len(tries) < 5:
            raise UnavailableError("down")

    assert (await run_one(redis, jobs)).outcome == "done"
    assert len(tries) == 5


async def test_a_run_that_takes_too_long_is_cancelled_and_has_failed(redis: Redis) -> None:
    """The limit counts for the run with all its attempts."""
    jobs = Jobs()

    @jobs.every(hours=1, timeout_seconds=0.05, retry=AT_ONCE)
    async def tick(context: RequestContext) -> None:
        assert (context.remaining_seconds() or 1) < 0.06
        await asyncio.Event().wait()

    last = await run_one(redis, jobs)
    assert (last.outcome, last.error) == ("timed_out", "DeadlineExceededError")


async def test_jobs_get_what_is_provided_by_type(redis: Redis) -> None:
    """Arguments come from the providers, and a default is kept where nothing provides the type."""
    jobs, seen = Jobs(), list[object]()

    @jobs.every(hours=1)
    async def tick(number: int, text: str = "default") -> None:
        seen.extend([number, text])

    async with jobs.running(redis, service="worker", providers={int: 7}):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await until_ended(redis, ELEVEN)
    assert seen == [7, "default"]


async def test_missing_providers_are_named_before_anything_runs(redis: Redis) -> None:
    """All of them, with their jobs."""
    jobs = Jobs()

    @jobs.every(hours=1)
    async def tick(number: int) -> None: ...

    @jobs.every(hours=1)
    async def tock(text: str, slot: Slot) -> None: ...

    with pytest.raises(DeclarationError, match=r"number: int for the job tick; text: str for the job tock"):
        async with jobs.running(redis, service="worker"):
            pass


# ── runs that are asked for ──────────────────────────────────────────────────────────────────────


async def test_a_run_that_is_asked_for_comes_beside_the_schedule(redis: Redis) -> None:
    """It has its own slot, and takes none of the schedule's away."""
    jobs, slots = Jobs(), list[Slot]()

    @jobs.every(hours=1)
    async def tick(slot: Slot) -> None:
        slots.append(slot)

    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        asked = await record_of(redis).request()
        await until_ended(redis, asked)
        await set_time(redis, ELEVEN)
        await until_ended(redis, ELEVEN)
    assert [(slot.scheduled_at, slot.is_manual) for slot in slots] == [(asked, True), (ELEVEN, False)]


async def test_a_request_waits_for_the_run_before_and_two_are_one(redis: Redis) -> None:
    """Whoever asks while a request waits gets that one."""
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        asked = await record_of(redis).request()
        assert await record_of(redis).request() == asked
        held.may_end.set()
        await until_ended(redis, asked)
    assert [slot.scheduled_at for slot in held.ended] == [ELEVEN, asked]


async def test_a_request_that_nobody_took_is_withdrawn_or_forgotten(redis: Redis) -> None:
    """Nothing runs hours later because somebody gave up waiting."""
    record = record_of(redis)
    asked = await record.request()
    assert await record.withdraw(asked)
    assert not await record.withdraw(asked)
    await record.request()
    await set_time(redis, START + timedelta(hours=2))
    jobs = Jobs()
    ran = noting(jobs)
    async with jobs.running(redis, service="worker"):
        await until(lambda: _has_no_request(redis))
    assert ran == []


async def _has_no_request(redis: Redis) -> bool:
    return (await record_of(redis).look()).requested_at is None


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def proxy(redis_url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(redis_url)
    async with FaultProxy(str(parts.hostname), parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def far_redis(redis_url: str, proxy: FaultProxy) -> AsyncGenerator[Redis]:
    """The same Redis, behind the proxy."""
    async with connect_redis(proxy.url_for(redis_url), timeout_seconds=0.3) as redis:
        yield redis


async def test_no_slot_begins_while_redis_is_away_and_none_is_lost(
    redis: Redis, far_redis: Redis, proxy: FaultProxy
) -> None:
    """Nobody can know whose turn it is; when Redis is back, the slot is made up for."""
    jobs = Jobs()
    ran = noting(jobs)
    async with jobs.running(far_redis, service="worker") as runner:
        await until_seen(redis)
        proxy.swallow()
        await until(lambda: runner._is_away)
        await set_time(redis, ELEVEN)
        assert ran == []
        proxy.let_pass()
        await until_settled(redis, ELEVEN)
        await until(lambda: not runner._is_away)
    assert ran == [ELEVEN]


async def test_the_end_of_a_run_is_told_to_redis_when_it_is_back(
    redis: Redis, far_redis: Redis, proxy: FaultProxy
) -> None:
    """Until then no other replica begins the slot again."""
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(far_redis, service="worker") as runner:
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        proxy.swallow()
        await until(lambda: runner._is_away)
        held.may_end.set()
        await until(lambda: held.ended)
        proxy.let_pass()
        assert (await until_ended(redis, ELEVEN)).outcome == "done"
    assert len(held.began) == 1


async def test_a_run_that_cant_be_given_back_ends_with_its_lease(
    redis: Redis, far_redis: Redis, proxy: FaultProxy
) -> None:
    """A stop while Redis is away takes no longer; another replica runs the slot when the lease is over."""
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(far_redis, service="worker") as runner:
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        proxy.swallow()
        await until(lambda: runner._is_away)
        assert not await runner.drain(budget_seconds=0.0)
    await set_time(redis, ELEVEN + timedelta(seconds=40))
    held.may_end.set()
    async with jobs.running(redis, service="worker"):
        await until_settled(redis, ELEVEN)
    assert [slot.taken_over for slot in held.began] == [False, True]


async def test_a_lost_reply_begins_a_run_once(redis: Redis) -> None:
    """The same question, asked again with the same token, has the same answer."""
    record = record_of(redis)
    await record.skip(None, to=TEN)
    await set_time(redis, ELEVEN)
    first = await record.begin(ELEVEN, is_manual=False, cursor=TEN, token="me")
    again = await record.begin(ELEVEN, is_manual=False, cursor=TEN, token="me")
    assert isinstance(first, _records.HeldRun)
    assert isinstance(again, _records.HeldRun)
    assert first.fence == again.fence
    assert await record.begin(ELEVEN, is_manual=False, cursor=TEN, token="other") is None
    for _ in range(2):
        assert await record.finish(first, "done", "", cursor=ELEVEN)
    await record.give_back(first)
    assert not await record.renew(first)
    assert not (await record.look()).is_running


async def test_a_redis_that_has_lost_everything_does_not_run_the_slot_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder's next renewal brings the record back, and its end the cursor."""
    monkeypatch.setattr(_execution, "LEASE_SECONDS", 0.3)
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        await cast("Any", redis).delete("hk:job:worker:tick")
        await until(lambda: _is_running(redis))
        held.may_end.set()
        await until_settled(redis, ELEVEN)
    assert len(held.began) == 1


async def _is_running(redis: Redis) -> bool:
    return (await record_of(redis).look()).is_running


async def test_a_mistake_while_looking_stops_no_other_job(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and tried again."""
    jobs = Jobs()
    ran = noting(jobs)

    @jobs.every(hours=1)
    async def tock() -> None: ...

    look = cast("Callable[[Any], Awaitable[Any]]", _runner._Track.look)

    async def broken(track: Any) -> Any:
        if track.job.name == "tock":
            raise ZeroDivisionError
        return await look(track)

    monkeypatch.setattr(_runner._Track, "look", broken)
    async with jobs.running(redis, service="worker"):
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await until_settled(redis, ELEVEN)
    assert ran == [ELEVEN]


async def test_a_process_whose_jobs_dont_begin_any_more_is_not_ready(redis: Redis) -> None:
    """Whatever has ended the search for due jobs, `/ready` tells; a stop in order is no such thing."""
    jobs = Jobs()
    noting(jobs)
    async with jobs.running(redis, service="worker") as runner:
        await until_seen(redis)
        assert "not run yet" in await runner.probe("tick")
        assert runner._loop is not None
        runner._loop.cancel()
        await until(lambda: runner._loop is not None and runner._loop.done())
        with pytest.raises(UnavailableError, match="no job begins"):
            await runner.probe("tick")
        runner.stop()
        assert "not run yet" in await runner.probe("tick")
    assert repr(runner) == "JobRunner(['tick'], running=0)"


async def test_the_end_of_a_run_and_its_giving_back_are_told_as_long_as_it_takes(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end is told again until Redis has it; a run that can't be given back is left to its lease."""
    tries: list[str] = []
    finish = JobRecord.finish

    async def unlucky_finish(record: JobRecord, *arguments: Any, **options: Any) -> bool:
        tries.append("finish")
        if len(tries) < 3:
            raise UnavailableError("Redis is away")
        return await finish(record, *arguments, **options)

    async def no_giving_back(*_: object) -> None:
        tries.append("give_back")
        raise UnavailableError("Redis is away")

    monkeypatch.setattr(JobRecord, "finish", unlucky_finish)
    monkeypatch.setattr(JobRecord, "give_back", no_giving_back)
    jobs = Jobs()
    held = Held(jobs)
    async with jobs.running(redis, service="worker") as runner:
        await until_seen(redis)
        await set_time(redis, ELEVEN)
        await held.until_begun()
        await until(lambda: _says(runner, "running; next"))
        held.may_end.set()
        await until_ended(redis, ELEVEN)
        held.may_end.clear()
        await set_time(redis, TWELVE)
        await held.until_begun(2)
        assert not await runner.drain(budget_seconds=0.2)
    assert tries == ["finish", "finish", "finish", "give_back"]


async def test_slots_that_another_replica_has_skipped_are_not_counted_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two that see the same missed slots changes and counts nothing."""
    jobs = Jobs()
    ran = noting(jobs, missed="skip")
    record = record_of(redis)
    await record.skip(None, to=TEN)
    await set_time(redis, ELEVEN + timedelta(minutes=30))
    skip, seen = JobRecord.skip, list[bool]()

    async def slower(itself: JobRecord, cursor: datetime | None, *, to: datetime) -> bool:
        await skip(record, cursor, to=to + timedelta(minutes=1))  # the other one
        seen.append(await skip(itself, cursor, to=to))
        return seen[-1]

    monkeypatch.setattr(JobRecord, "skip", slower)
    before = counted("job_slots_skipped", job="tick")
    async with jobs.running(redis, service="worker"):
        await until(lambda: seen)
    assert seen == [False]
    assert ran == []
    assert counted("job_slots_skipped", job="tick") == before


async def test_jobs_that_were_never_started_are_drained(redis: Redis) -> None:
    """There is nothing to wait for."""
    runner = JobRunner([], redis, service="worker", providers={})
    assert await runner.drain(budget_seconds=1)


async def test_a_job_that_failed_is_one_report_without_its_secrets(redis: Redis) -> None:
    """Its attempts are not reported one by one; the report leads to the run's log lines by its request id."""
    jobs, contexts = Jobs(), list[str]()

    @jobs.every(hours=1, retry=AT_ONCE)
    async def tick(context: RequestContext) -> None:
        contexts.append(context.request_id)
        raise OSError("no answer to Authorization: Bearer c4n4ry-Zq8vXw2LmN5t")

    with SentryReceiver() as sentry:
        settings = ServiceSettings(
            service_name="worker", environment="test", sentry_dsn=SecretUrl(sentry.dsn)
        )
        reports = configure_error_reports(settings)
        try:
            async with jobs.running(redis, service="worker"):
                await until_seen(redis)
                await set_time(redis, ELEVEN)
                assert (await until_ended(redis, ELEVEN)).outcome == "failed"
        finally:
            await reports.aclose(timeout_seconds=60)
        [event] = sentry.received()
    assert len(contexts) == 3
    assert event["tags"]["request_id"] == contexts[-1]
    [error] = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("OSError", "no answer to Authorization: **********")
    assert b"c4n4ry" not in b"".join(sentry.everything)
