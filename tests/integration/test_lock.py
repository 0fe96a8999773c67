"""Locks on a real Redis, while holders and servers break."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from hybridkit.context import bind, current
from hybridkit.coordination import HeldLock, Lock, Redis, connect_redis, use_redis
from hybridkit.coordination import _lock as lock_module
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._lock import ACQUIRE, RELEASE, RENEW
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.dev import Server
from hybridkit.errors import (
    DeclarationError,
    LockLostError,
    LockTimeoutError,
    MisuseError,
    UnavailableError,
)
from hybridkit.observability._metrics import metrics
from hybridkit.testing import FaultProxy
from tests.helpers import until

pytestmark = pytest.mark.real_server

KEY = "report:daily:2026-11-30"
RECORD = f"hk:lock:{KEY}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=5.0) as redis:
        yield redis


@pytest.fixture
async def proxy(redis_url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(redis_url)
    async with FaultProxy(str(parts.hostname), parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def far_redis(redis_url: str, proxy: FaultProxy) -> AsyncGenerator[Redis]:
    """The same Redis, behind the proxy; it knows the scripts."""
    async with connect_redis(proxy.url_for(redis_url), timeout_seconds=0.2) as redis:
        await until(lambda: know_scripts(redis))
        yield redis


async def know_scripts(redis: Redis) -> bool:
    """Let Redis know the scripts: the reply that gets lost would only say that it doesn't.

    A busy machine may take longer to connect than a command waits.
    """
    keys, multiplexer = ["hk:lock:warm"], multiplexer_of(redis)
    try:
        await multiplexer.run(ACQUIRE, keys, "token", 1000, 1000)
        await multiplexer.run(RENEW, keys, "token", 1000, 1000, 1)
        await multiplexer.run(RELEASE, keys, "token", 1000)
    except UnavailableError:
        return False
    return True


async def is_held(redis: Redis) -> bool:
    return bool(await cast("Any", redis).hexists(RECORD, "lease_end"))


async def until_free(redis: Redis) -> None:
    await until(lambda: _is_free(redis))


async def _is_free(redis: Redis) -> bool:
    return not await is_held(redis)


def counted(outcome: str) -> float:
    return cast("float", metrics.lock_outcomes.labels("report", outcome)._value.get())


async def hold(lock: Lock, work: Callable[[HeldLock], Awaitable[object]]) -> None:
    async with lock as held:
        await work(held)


# ── one holder at a time ─────────────────────────────────────────────────────────────────────────


async def test_two_hundred_attempts_have_one_holder_at_a_time_and_growing_fences(redis: Redis) -> None:
    """Every one gets its turn; each fence is greater than all before it."""
    holders, fences = 0, list[int]()

    async def work(held: HeldLock) -> None:
        nonlocal holders
        holders += 1
        assert holders == 1
        for _ in range(3):
            await asyncio.sleep(0)
        fences.append(held.fence)
        holders -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(hold(Lock(KEY, redis=redis, wait_seconds=120), work))
    assert len(fences) == 200
    assert fences == sorted(set(fences))


async def test_a_lock_object_serves_several_tasks(redis: Redis) -> None:
    """It may be made once, and used wherever it is needed."""
    lock, log = Lock(KEY, redis=redis, wait_seconds=60), list[str]()

    async def work(_: HeldLock) -> None:
        log.append("begin")
        await asyncio.sleep(0)
        log.append("end")

    await asyncio.gather(*(hold(lock, work) for _ in range(10)))
    assert log == ["begin", "end"] * 10


async def test_a_lock_may_be_declared_before_there_is_a_redis(redis: Redis) -> None:
    """It uses that of the process."""
    lock = Lock(KEY)
    with pytest.raises(MisuseError, match="has no Redis"):
        await hold(lock, _never)
    with use_redis(redis):
        async with lock as held:
            assert (held.key, await is_held(redis)) == (KEY, True)
        block = AsyncExitStack()
        await block.enter_async_context(lock)
    await block.aclose()  # a process that stops takes its Redis back before the last block ends
    assert not await is_held(redis)


async def test_who_does_not_wait_is_refused_at_once(redis: Redis) -> None:
    """The error says when to come back; it is counted."""
    before = counted("timed_out")
    async with Lock(KEY, redis=redis):
        with pytest.raises(LockTimeoutError, match=KEY) as refused:
            await asyncio.create_task(hold(Lock(KEY, redis=redis, wait_seconds=0), _never))
        assert refused.value.retry_after_seconds == 1.0
    assert counted("timed_out") == before + 1
    async with Lock(KEY, redis=redis, wait_seconds=0):
        pass


async def test_waiting_is_bounded(redis: Redis) -> None:
    """Whoever has waited long enough is told so."""
    async with Lock(KEY, redis=redis):
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(hold(Lock(KEY, redis=redis, wait_seconds=0.1), _never))


async def test_nobody_waits_beyond_the_deadline(redis: Redis) -> None:
    """The caller of this work would be gone when the lock is free."""

    async def wait() -> None:
        with bind(current().within(0.1)):
            await hold(Lock(KEY, redis=redis, wait_seconds=3600), _never)

    async with Lock(KEY, redis=redis):
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(wait())


async def test_an_error_in_the_block_releases_the_lock(redis: Redis) -> None:
    """It comes out as it is."""

    async def fail(_: HeldLock) -> None:
        raise LookupError("no such report")

    with pytest.raises(LookupError):
        await hold(Lock(KEY, redis=redis), fail)
    assert not await is_held(redis)


async def test_the_record_outlives_the_lease_and_ends(redis: Redis) -> None:
    """It keeps the fence for an hour, or for a longer lease."""
    async with Lock(KEY, redis=redis, lease_seconds=1):
        assert 3_599_000 < await redis.pttl(RECORD) <= 3_600_000
    assert 3_599_000 < await redis.pttl(RECORD) <= 3_600_000
    async with Lock("a:b:c", redis=redis, lease_seconds=7200):
        assert 7_199_000 < await redis.pttl("hk:lock:a:b:c") <= 7_200_000


async def test_a_block_may_be_longer_than_its_lease(redis: Redis) -> None:
    """It is renewed: nobody else gets in."""

    async def work(_: HeldLock) -> None:
        record: Any = redis
        first = await record.hget(RECORD, "lease_end")

        async def renewed_four_times() -> bool:
            return int(await record.hget(RECORD, "lease_end")) > int(first) + 4 * 300 / 3

        await until(renewed_four_times)
        assert await is_held(redis)

    await hold(Lock(KEY, redis=redis, lease_seconds=0.3), work)
    assert not await is_held(redis)


# ── misuse ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_task_that_holds_the_lock_may_not_wait_for_itself(redis: Redis) -> None:
    """Any object of the same key is refused at once; other keys and other tasks are not."""
    async with Lock(KEY, redis=redis) as held:
        with pytest.raises(MisuseError, match="would wait for itself"):
            await hold(Lock(KEY, redis=redis), _never)
        async with Lock("report:daily:2026-12-01", redis=redis) as other:
            assert other.fence > held.fence
    async with Lock(KEY, redis=redis):  # nothing of it is left
        pass


async def test_a_block_is_left_by_the_task_that_entered_it(redis: Redis) -> None:
    """A loss would cancel the wrong one. The lease of a task that has ended is not renewed."""
    lock = Lock(KEY, redis=redis, lease_seconds=0.3)
    await asyncio.create_task(lock.__aenter__())
    with pytest.raises(MisuseError, match="another task"):
        await lock.__aexit__(None, None, None)
    async with Lock(KEY, redis=redis, wait_seconds=60):
        pass


@pytest.mark.parametrize("key", ["report", "a:b", "a:b:", "a b:c:d", "a:b:\n", f"a:b:{'c' * 301}"])
async def test_a_key_of_another_form_is_refused(redis: Redis, key: str) -> None:
    """The error shows one that is right."""
    with pytest.raises(MisuseError, match="like report:daily"):
        Lock(key, redis=redis)


async def test_times_out_of_range_are_refused(redis: Redis) -> None:
    """A lease is positive, and nobody waits for a negative time."""
    with pytest.raises(DeclarationError):
        Lock(KEY, redis=redis, lease_seconds=0)
    with pytest.raises(DeclarationError):
        Lock(KEY, redis=redis, wait_seconds=-1)
    assert repr(Lock(KEY, redis=redis)) == f"Lock({KEY!r}, lease_seconds=30.0, wait_seconds=10.0)"


# ── holders that die, or wake up too late ────────────────────────────────────────────────────────

HOLDER = textwrap.dedent("""
    import asyncio, sys
    from hybridkit.coordination import Lock, connect_redis
    from hybridkit.errors import LockLostError

    async def main(url, key, lease_seconds):
        async with connect_redis(url, timeout_seconds=2.0) as redis:
            try:
                async with Lock(key, redis=redis, lease_seconds=float(lease_seconds)) as held:
                    print(held.fence, flush=True)
                    await asyncio.sleep(60)
            except LockLostError as error:
                print(type(error).__name__, flush=True)

    asyncio.run(main(*sys.argv[1:]))
""")


class Holder:
    """A process that holds the lock."""

    def __init__(self, process: asyncio.subprocess.Process, fence: int) -> None:
        self.process = process
        self.fence = fence

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()


@pytest.fixture
async def holder(redis_url: str) -> AsyncGenerator[Holder]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, redis_url, KEY, "1.0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield Holder(process, int(await process.stdout.readline()))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_holder_is_taken_over_after_its_lease(redis: Redis, holder: Holder) -> None:
    """The process gets SIGKILL: it gives nothing back."""
    before, record = counted("taken_over"), cast("Any", redis)
    holder.send(signal.SIGKILL)
    await holder.process.wait()
    lease_end = int(await record.hget(RECORD, "lease_end"))
    async with Lock(KEY, redis=redis, wait_seconds=60) as held:
        assert held.fence > holder.fence
        assert held.fence >= lease_end * 1000  # it is Redis's clock at this moment, in microseconds
    assert counted("taken_over") == before + 1


async def test_a_frozen_holder_finds_its_lock_lost_and_changes_nothing(redis: Redis, holder: Holder) -> None:
    """Under SIGSTOP it is taken over; awake again it stops, and its successor's record stays as it is."""
    holder.send(signal.SIGSTOP)
    record: Any = redis
    async with Lock(KEY, redis=redis, wait_seconds=60) as held:
        assert held.fence > holder.fence
        before = await record.hgetall(RECORD)
        holder.send(signal.SIGCONT)
        assert await holder.line() == b"LockLostError\n"
        await holder.process.wait()
        assert await record.hgetall(RECORD) == before


async def test_a_zombie_neither_renews_nor_releases(redis: Redis) -> None:
    """Neither before the successor has released it, nor after."""
    record: Any = redis
    multiplexer = multiplexer_of(redis)
    async with Lock(KEY, redis=redis):
        before = await record.hgetall(RECORD)
        assert await multiplexer.run(RENEW, [RECORD], "zombie", 1000, 1000, 7) == 0
        assert await multiplexer.run(RELEASE, [RECORD], "zombie", 1000) == 0
        assert await record.hgetall(RECORD) == before
    fence = await record.hget(RECORD, "fence")
    assert await multiplexer.run(RENEW, [RECORD], "zombie", 1000, 1000, 7) == 0
    assert await multiplexer.run(RELEASE, [RECORD], "zombie", 1000) == 0
    assert (await is_held(redis), await record.hget(RECORD, "fence")) == (False, fence)


async def test_every_script_answers_a_second_run_as_the_first(redis: Redis) -> None:
    """A reply that was lost changes nothing for the owner; a question that comes after its release takes nothing."""
    multiplexer = multiplexer_of(redis)
    first = await multiplexer.run(ACQUIRE, [RECORD], "mine", 30_000, 60_000)
    assert first[0] == 1
    assert await multiplexer.run(ACQUIRE, [RECORD], "mine", 30_000, 60_000) == first
    assert (await multiplexer.run(ACQUIRE, [RECORD], "other", 30_000, 60_000))[0] == 0
    for _ in range(2):
        assert await multiplexer.run(RENEW, [RECORD], "mine", 30_000, 60_000, first[1]) == 1
    for _ in range(2):
        assert await multiplexer.run(RELEASE, [RECORD], "mine", 60_000) == 1
    assert await multiplexer.run(ACQUIRE, [RECORD], "mine", 30_000, 60_000) == [0, 0]
    assert await multiplexer.run(RENEW, [RECORD], "mine", 30_000, 60_000, first[1]) == 0
    # A release that overtakes its question on another connection.
    await multiplexer.run(RELEASE, ["hk:lock:a:b:d"], "early", 60_000)
    assert await multiplexer.run(ACQUIRE, ["hk:lock:a:b:d"], "early", 30_000, 60_000) == [0, 0]
    assert (await multiplexer.run(ACQUIRE, ["hk:lock:a:b:d"], "other", 30_000, 60_000))[0] == 1


async def test_losing_the_lock_cancels_the_block(redis: Redis) -> None:
    """The error is typed, and counted; the successor's lock is not touched."""
    before = counted("lost")
    entered, cleaned_up = asyncio.Event(), asyncio.Event()

    async def work(_: HeldLock) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    running = asyncio.create_task(hold(Lock(KEY, redis=redis, lease_seconds=0.3), work))
    await entered.wait()
    record: Any = redis
    await record.hset(RECORD, "token", "other")
    with pytest.raises(LockLostError, match="another holder"):
        await running
    assert cleaned_up.is_set()
    assert (await is_held(redis), await record.hget(RECORD, "token")) == (True, "other")
    assert counted("lost") == before + 1


async def test_a_block_that_ends_after_another_has_taken_over_is_told(redis: Redis) -> None:
    """It ended well as far as it knows, but was not alone; an error of its own says more."""

    async def lose(_: HeldLock) -> None:
        await redis.delete(RECORD)
        await multiplexer_of(redis).run(ACQUIRE, [RECORD], "other", 30_000, 60_000)

    async def lose_and_fail(held: HeldLock) -> None:
        await lose(held)
        raise LookupError

    with pytest.raises(LockLostError, match="before the block ended"):
        await hold(Lock(KEY, redis=redis), lose)
    await redis.delete(RECORD)
    with pytest.raises(LookupError):
        await hold(Lock(KEY, redis=redis), lose_and_fail)


# ── Redis that breaks ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["killed", "frozen", "full"])
async def test_without_redis_nobody_acquires(own_redis_server: Server, fault: str) -> None:
    """A lock can't be guessed. When Redis is back, so are its locks."""
    before = counted("unavailable")
    async with connect_redis(own_redis_server.url, timeout_seconds=0.2) as redis:
        await until(lambda: _can_acquire(redis))
        await break_(own_redis_server, redis, fault)
        with pytest.raises(UnavailableError):
            await hold(Lock(KEY, redis=redis), _never)
        assert counted("unavailable") == before + 1
        await heal(own_redis_server, redis, fault)
        await until(lambda: _can_acquire(redis))


async def _can_acquire(redis: Redis) -> bool:
    try:
        async with Lock(KEY, redis=redis, wait_seconds=0):
            return True
    except (UnavailableError, LockTimeoutError):
        return False


async def break_(server: Server, redis: Redis, fault: str) -> None:
    match fault:
        case "killed":
            await asyncio.to_thread(server.kill)
        case "frozen":
            server.freeze()
        case _:
            await cast("Any", redis).config_set("maxmemory", 1)


async def heal(server: Server, redis: Redis, fault: str) -> None:
    match fault:
        case "killed":
            await asyncio.to_thread(server.restart)
        case "frozen":
            server.resume()
        case _:
            await cast("Any", redis).config_set("maxmemory", 0)


@pytest.mark.parametrize("fault", ["killed", "frozen", "full"])
async def test_a_block_that_cannot_be_renewed_is_stopped_before_its_lease_ends(
    own_redis_server: Server, fault: str
) -> None:
    """Another holder may begin then."""
    async with connect_redis(own_redis_server.url, timeout_seconds=0.1) as redis:
        await until(lambda: _can_acquire(redis))

        async def work(_: HeldLock) -> None:
            await break_(own_redis_server, redis, fault)
            await asyncio.Event().wait()

        with pytest.raises(LockLostError, match="could not be renewed in time"):
            await hold(Lock(KEY, redis=redis, lease_seconds=1.0), work)
        await heal(own_redis_server, redis, fault)


@pytest.mark.parametrize("fault", ["killed", "frozen", "full"])
async def test_a_block_ends_well_without_redis_and_is_released_when_it_is_back(
    own_redis_server: Server, fault: str
) -> None:
    """Its work is done. The lock is given back as soon as Redis answers, and not after its lease."""
    async with connect_redis(own_redis_server.url, timeout_seconds=0.2) as redis:
        await until(lambda: _can_acquire(redis))
        async with Lock(KEY, redis=redis, lease_seconds=3600):
            await break_(own_redis_server, redis, fault)
        await heal(own_redis_server, redis, fault)
        await until(lambda: _can_acquire(redis))


async def test_what_a_full_redis_did_not_acquire_is_not_given_back(own_redis_server: Server) -> None:
    """Its refusal is an answer: nothing is tried for the time of a lease."""
    async with connect_redis(own_redis_server.url, timeout_seconds=0.2) as redis:
        await until(lambda: know_scripts(redis))
        await break_(own_redis_server, redis, "full")
        with pytest.raises(UnavailableError, match="OOM"):
            await hold(Lock(KEY, redis=redis, lease_seconds=3600), _never)
        await until(lambda: not len(lock_module._returning))
        assert not await redis.exists(RECORD)


async def test_a_restarted_redis_keeps_its_locks(own_redis_server: Server) -> None:
    """It saves them when it stops; the holder goes on."""
    async with connect_redis(own_redis_server.url, timeout_seconds=1.0) as redis:
        async with Lock(KEY, redis=redis):
            await asyncio.to_thread(own_redis_server.restart)
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(hold(Lock(KEY, redis=redis, wait_seconds=0), _never))
        assert not await is_held(redis)


async def test_a_flushed_redis_knows_its_holder_again_and_fences_go_on_growing(redis: Redis) -> None:
    """The next renewal writes the lock again; a fence is never given twice."""
    record: Any = redis
    async with Lock(KEY, redis=redis, lease_seconds=0.3) as held:
        await record.flushdb()
        await until(lambda: is_held(redis))
        assert int(await record.hget(RECORD, "fence")) == held.fence
    await record.flushdb()
    async with Lock(KEY, redis=redis) as later:
        assert later.fence > held.fence


async def test_a_lost_reply_locks_nobody_out(far_redis: Redis, proxy: FaultProxy, redis: Redis) -> None:
    """Redis has given the lock to a caller who was told that it doesn't answer: it is given back."""
    proxy.cut("to_client", at_byte=0)
    with pytest.raises(UnavailableError):
        await hold(Lock(KEY, redis=far_redis, lease_seconds=3600), _never)
    assert await is_held(redis)
    proxy.let_pass()
    async with Lock(KEY, redis=redis, wait_seconds=60):
        pass


async def test_a_lost_reply_of_a_release_is_no_matter(
    far_redis: Redis, proxy: FaultProxy, redis: Redis
) -> None:
    """The lock is free, and the block has ended well."""
    async with Lock(KEY, redis=far_redis, lease_seconds=3600):
        proxy.cut("to_client", at_byte=0)
    await until_free(redis)
    proxy.let_pass()


async def test_what_a_process_tries_to_give_back_is_bounded(
    far_redis: Redis, proxy: FaultProxy, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more, the lease has to run out."""
    monkeypatch.setattr(lock_module, "MAX_RETURNS", len(lock_module._returning))
    async with Lock(KEY, redis=far_redis):
        proxy.cut("to_server", at_byte=0)
    assert len(lock_module._returning) == 0
    proxy.let_pass()
    assert await is_held(redis)


async def test_giving_back_ends_with_the_lease(far_redis: Redis, proxy: FaultProxy) -> None:
    """Redis may be away for days; nothing is tried for longer than it helps."""
    proxy.freeze()
    with pytest.raises(UnavailableError):
        await hold(Lock(KEY, redis=far_redis, lease_seconds=0.5), _never)
    assert len(lock_module._returning) == 1
    await until(lambda: not len(lock_module._returning))


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────


async def test_a_cancellation_at_any_turn_leaves_no_lock_behind(redis: Redis) -> None:
    """Cancelled after one turn of the event loop, after two, and so on: the lock is free long before its lease ends."""
    lock = Lock(KEY, redis=redis, wait_seconds=0, lease_seconds=3600)
    await know_scripts(redis)
    ended: list[int] = []

    async def work(held: HeldLock) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    for turns in range(5000):
        running = asyncio.create_task(hold(lock, work))
        for _ in range(turns):
            await asyncio.sleep(0)
            if running.done():
                break
        running.cancel()
        await asyncio.wait({running})
        await until_free(redis)
        if not running.cancelled():
            ended.append(turns)
            if len(ended) == 3:
                break
    assert len(ended) == 3
    assert not lock_module._holdings


async def test_a_cancelled_waiter_leaves_nothing_behind(redis: Redis) -> None:
    """Neither while it asks nor while it pauses."""
    async with Lock(KEY, redis=redis):
        waiting = [
            asyncio.create_task(hold(Lock(KEY, redis=redis, wait_seconds=60), _never)) for _ in range(20)
        ]
        await redis.ping()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    await until_free(redis)
    async with Lock(KEY, redis=redis, wait_seconds=0):
        pass


@pytest.mark.parametrize("fault", ["freeze", "delay"])
async def test_a_cancellation_during_the_release_releases_all_the_same(
    far_redis: Redis, proxy: FaultProxy, redis: Redis, fault: str
) -> None:
    """What has no reply yet is asked again behind the caller's back."""
    leaving = asyncio.Event()

    async def work(_: HeldLock) -> None:
        if fault == "freeze":
            proxy.freeze()
        else:
            proxy.delay(0.05)
        leaving.set()

    running = asyncio.create_task(hold(Lock(KEY, redis=far_redis, lease_seconds=3600), work))
    await leaving.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    proxy.let_pass()
    await until_free(redis)


async def test_a_cancellation_from_outside_stays_one(redis: Redis) -> None:
    """It isn't taken for a loss."""
    entered = asyncio.Event()

    async def work(_: HeldLock) -> None:
        entered.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(hold(Lock(KEY, redis=redis), work))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until_free(redis)


async def test_a_lock_whose_reply_came_after_its_lease_begins_no_block(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was frozen between the question and the block, and another holder has the lock by now."""
    lock = Lock(KEY, redis=redis, lease_seconds=1.0)
    acquire = lock._acquire

    async def acquire_and_freeze(multiplexer: Multiplexer, token: str) -> tuple[float, int]:
        asked_at, fence = await acquire(multiplexer, token)
        await redis.delete(RECORD)
        await multiplexer.run(ACQUIRE, [RECORD], "other", 30_000, 60_000)
        return asked_at - 10.0, fence

    monkeypatch.setattr(lock, "_acquire", acquire_and_freeze)
    with pytest.raises(LockLostError, match="another holder"):
        await hold(lock, _never)
    assert await is_held(redis)


async def _never(_: HeldLock) -> None:
    pytest.fail("the block begins")
