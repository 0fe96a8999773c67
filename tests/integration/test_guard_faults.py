"""The guard while Redis, the network or a holder breaks."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import pytest

from hybridkit.coordination import Redis, connect_redis
from hybridkit.dev import Server
from hybridkit.errors import ClaimLostError, UnavailableError
from hybridkit.idempotency import (
    Acquired,
    Begin,
    Completed,
    Finish,
    IdempotencyGuard,
    Outcome,
    RedisDown,
)
from hybridkit.testing import FaultProxy
from tests.helpers import until

pytestmark = pytest.mark.real_server

KEY = "orders:order:42"
RECORD = f"hk:claim:{KEY}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=2.0) as redis:
        yield redis


@pytest.fixture
async def proxy(redis_url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(redis_url)
    async with FaultProxy(str(parts.hostname), parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def far_redis(redis_url: str, proxy: FaultProxy) -> AsyncGenerator[Redis]:
    """The same Redis, behind the proxy."""
    async with connect_redis(proxy.url_for(redis_url), timeout_seconds=0.2) as redis:
        await redis.ping()
        yield redis


async def until_back(guard: IdempotencyGuard) -> None:
    """Wait for the connection that is made in the background."""
    node = guard._records._redis._node
    await until(lambda: node is not None and node._open is not None)


def acquired(answer: Begin) -> Acquired:
    assert isinstance(answer, Acquired), answer
    return answer


async def test_a_lost_reply_does_not_lock_the_owner_out(
    far_redis: Redis, proxy: FaultProxy, redis: Redis
) -> None:
    """Redis has written the claim, and the answer never comes: the holder that goes on is still its owner."""
    guard = IdempotencyGuard(far_redis)
    # Before the first one Redis doesn't know the script: the lost reply would only say so.
    await guard.begin("orders:order:0", None)
    proxy.cut("to_client", at_byte=0)
    mine = acquired(await guard.begin(KEY, None))
    assert not mine.guarded
    assert await redis.hget(RECORD, "token") == mine.token
    proxy.let_pass()
    await until_back(guard)
    assert await guard.renew(mine)
    assert await guard.finish(mine, Outcome.COMPLETED, "done") is Finish.OK
    assert await guard.begin(KEY, None) == Completed(b'"done"')


async def test_a_cancelled_question_is_undone_when_its_answer_comes(
    far_redis: Redis, proxy: FaultProxy, redis: Redis
) -> None:
    """A claim whose caller is gone is released at once, and not after its lease."""
    guard = IdempotencyGuard(far_redis)
    await warm(guard)
    proxy.delay(0.1)
    asking = asyncio.create_task(guard.begin(KEY, None))
    while not await redis.exists(RECORD):
        pass
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not acquired(await guard.begin(KEY, None, wait_seconds=5)).taken_over


@pytest.mark.parametrize("fault", ["freeze", "swallow"])
async def test_a_silent_redis_costs_one_timeout_and_then_nothing(
    far_redis: Redis, proxy: FaultProxy, fault: str
) -> None:
    """Once Redis counts as away, further calls run unguarded without asking; its first answer ends that."""
    guard = IdempotencyGuard(far_redis)
    assert acquired(await guard.begin(KEY, None)).guarded
    getattr(proxy, fault)()
    since = time.monotonic()
    for number in range(200):  # a timeout for each would be 80 s
        assert not acquired(await guard.begin(f"orders:order:{number}", None)).guarded
    assert 0.4 <= time.monotonic() - since < 20
    proxy.let_pass()
    await until_back(guard)
    assert acquired(await guard.begin("orders:order:back", None)).guarded


async def test_work_without_redis_is_recorded_when_redis_is_back(far_redis: Redis, proxy: FaultProxy) -> None:
    """Unguarded work writes its own record at its end."""
    guard = IdempotencyGuard(far_redis)
    proxy.cut("to_server", at_byte=0)
    unguarded = acquired(await guard.begin(KEY, None))
    proxy.let_pass()
    await until_back(guard)
    assert await guard.finish(unguarded, Outcome.COMPLETED, "done") is Finish.RECREATED
    assert await guard.begin(KEY, None) == Completed(b'"done"')


async def test_a_frozen_holder_is_taken_over_and_stops_when_it_wakes(redis_url: str, redis: Redis) -> None:
    """The holder is a process under SIGSTOP: another one takes over and finishes, and the zombie changes nothing."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, redis_url, KEY, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert await holder.stdout.readline() == b"working\n"
        os.kill(holder.pid, signal.SIGSTOP)
        guard = IdempotencyGuard(redis)
        successor = acquired(await guard.begin(KEY, None, wait_seconds=20))
        assert (successor.taken_over, successor.fence) == (True, 2)
        assert await guard.finish(successor, Outcome.COMPLETED, "successor") is Finish.OK
        os.kill(holder.pid, signal.SIGCONT)
        assert await holder.stdout.readline() == b"ClaimLostError\n"
        assert await guard.begin(KEY, None) == Completed(b'"successor"')
    finally:
        if holder.returncode is None:
            holder.kill()
        await holder.wait()


HOLDER = textwrap.dedent("""
    import asyncio, sys
    from hybridkit.coordination import connect_redis
    from hybridkit.errors import ClaimLostError
    from hybridkit.idempotency import IdempotencyGuard

    async def main(url, key):
        async with connect_redis(url, timeout_seconds=2.0) as redis:
            guard = IdempotencyGuard(redis, lease_seconds=1.5)
            try:
                async with guard.claim(key, None) as claim:
                    print("working", flush=True)
                    await asyncio.sleep(60)
                    claim.set_result("zombie")
            except ClaimLostError as error:
                print(type(error).__name__, flush=True)

    asyncio.run(main(*sys.argv[1:]))
""")


async def test_a_killed_redis_that_comes_back_still_knows_its_claims(own_redis_server: Server) -> None:
    """The claim that was begun before the kill is finished after the restart."""
    async with connect_redis(own_redis_server.url) as redis:
        guard = IdempotencyGuard(redis)
        async with guard.claim(KEY, None) as claim:
            await asyncio.to_thread(own_redis_server.kill)
            assert acquired(await guard.begin("orders:order:43", None)).guarded is False
            await asyncio.to_thread(own_redis_server.restart)
            await until_back(guard)
            claim.set_result("done")
        assert await guard.begin(KEY, None) == Completed(b'"done"')


async def test_work_whose_redis_is_killed_ends_all_the_same(own_redis_server: Server) -> None:
    """In every mode: the effect is done, and doing it again would not undo it."""
    async with connect_redis(own_redis_server.url) as redis:
        guards = {mode: IdempotencyGuard(redis, when_down=mode) for mode in RedisDown}
        held = {mode: acquired(await guard.begin(f"a:{mode}:1", None)) for mode, guard in guards.items()}
        await asyncio.to_thread(own_redis_server.kill)
        for mode, guard in guards.items():
            assert await guard.finish(held[mode], Outcome.COMPLETED) is Finish.UNRECORDED


async def test_external_work_stops_before_its_lease_when_redis_is_gone(own_redis_server: Server) -> None:
    """Its effects can not be undone, so it may not run beside a successor."""
    async with connect_redis(own_redis_server.url) as redis:
        guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL, lease_seconds=1.0)

        async def work() -> None:
            async with guard.claim(KEY, None):
                await asyncio.to_thread(own_redis_server.kill)
                await asyncio.Event().wait()

        with pytest.raises(ClaimLostError, match="Redis does not answer"):
            await work()


async def test_a_full_redis_is_as_good_as_none(own_redis_server: Server) -> None:
    """With noeviction it refuses to write; it answers quickly, so the breaker has nothing to do with it."""
    async with connect_redis(own_redis_server.url) as redis:
        await redis.config_set("maxmemory", 1)
        guard = IdempotencyGuard(redis)
        assert not acquired(await guard.begin(KEY, None)).guarded
        with pytest.raises(UnavailableError, match=r"OOM|maxmemory"):
            await IdempotencyGuard(redis, when_down=RedisDown.STRICT).begin(KEY, None)
        await redis.config_set("maxmemory", 0)
        assert acquired(await guard.begin(KEY, None)).guarded


# ── answers that come late, or never ─────────────────────────────────────────────────────────────


@pytest.fixture
def refusing(far_redis: Redis) -> IdempotencyGuard:
    return IdempotencyGuard(far_redis, when_down=RedisDown.EXTERNAL)


async def warm(guard: IdempotencyGuard) -> None:
    """Let Redis know the scripts, or the answer that gets lost would only say that it doesn't."""
    for number, outcome in enumerate(Outcome):
        await guard.finish(acquired(await guard.begin(f"orders:warm:{number}", None)), outcome)
    assert await guard.renew(acquired(await guard.begin("orders:warm:9", None)))


async def until_state(redis: Redis, state: str) -> None:
    async with asyncio.timeout(60):
        while await redis.hget(RECORD, "state") != state:  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.01)


async def test_a_claim_whose_answer_was_lost_is_given_back(
    refusing: IdempotencyGuard, proxy: FaultProxy, redis: Redis
) -> None:
    """Redis gave the key to a caller who was refused: nobody holds it, and it is free long before its lease ends."""
    await warm(refusing)
    proxy.cut("to_client", at_byte=0)
    with pytest.raises(UnavailableError):
        await refusing.begin(KEY, {"amount": 1})
    assert await redis.hget(RECORD, "state") == "P"
    proxy.let_pass()
    await until_state(redis, "R")
    assert not acquired(await refusing.begin(KEY, {"amount": 2})).taken_over


async def test_an_outcome_whose_answer_was_lost_is_told_again(
    refusing: IdempotencyGuard, proxy: FaultProxy, redis: Redis
) -> None:
    """It is recorded in the background as soon as Redis answers."""
    await warm(refusing)
    mine = acquired(await refusing.begin(KEY, None))
    proxy.cut("to_server", at_byte=0)
    assert await refusing.finish(mine, Outcome.COMPLETED, "done") is Finish.UNRECORDED
    assert await redis.hget(RECORD, "state") == "P"
    proxy.let_pass()
    await until_state(redis, "C")
    assert await refusing.begin(KEY, None) == Completed(b'"done"')


@pytest.mark.parametrize("mode", [RedisDown.DURABLE, RedisDown.EXTERNAL])
async def test_a_release_whose_answer_was_lost_is_told_again(
    far_redis: Redis, proxy: FaultProxy, redis: Redis, mode: RedisDown
) -> None:
    """The key is free as soon as Redis answers, and not after its lease."""
    guard = IdempotencyGuard(far_redis, when_down=mode)
    await warm(guard)
    mine = acquired(await guard.begin(KEY, None))
    proxy.cut("to_server", at_byte=0)
    assert await guard.finish(mine, Outcome.RELEASED) is Finish.UNRECORDED
    proxy.let_pass()
    await until_state(redis, "R")


async def test_a_renewal_whose_answer_was_lost_leaves_the_holder_the_holder(
    refusing: IdempotencyGuard, proxy: FaultProxy
) -> None:
    """It can renew and finish afterwards."""
    await warm(refusing)
    mine = acquired(await refusing.begin(KEY, None))
    proxy.cut("to_client", at_byte=0)
    with pytest.raises(UnavailableError):
        await refusing.renew(mine)
    proxy.let_pass()
    await until_back(refusing)
    assert await refusing.renew(mine)
    assert await refusing.finish(mine, Outcome.COMPLETED) is Finish.OK
