"""Rate limits on a real Redis, also while it is away."""

import asyncio
import json
import sys
import textwrap
import time
from collections.abc import AsyncGenerator
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridkit.coordination import LimitDecision, Rate, RateLimiter, Redis, connect_redis, use_redis
from hybridkit.coordination._rate_limiter import DECIDE
from hybridkit.dev import Server
from hybridkit.errors import DeclarationError, MisuseError
from hybridkit.observability._metrics import metrics
from hybridkit.testing import FaultProxy
from tests.helpers import until
from tests.helpers.buckets import Buckets

pytestmark = pytest.mark.real_server


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=5.0) as redis:
        yield redis


def counted(limiter: str, outcome: str) -> float:
    return cast("float", metrics.rate_limit_decisions.labels(limiter, outcome)._value.get())


# ── the decision ─────────────────────────────────────────────────────────────────────────────────


async def test_a_decision_says_how_much_is_left_and_when_more_is(redis_client: Redis) -> None:
    """The burst is let through at once, the next one after an interval."""
    limiter = RateLimiter("uploads", Rate.parse("60/hour", burst=2), redis=redis_client)
    first = await limiter.check("anna")
    assert first[:5] == (True, "uploads", Rate(60, "hour", 2), 1, 0.0)
    assert (first.reset_seconds, first.is_local) == (60.0, False)
    assert (await limiter.check("anna")).remaining == 0
    refused = await limiter.check("anna")
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert 50 < refused.retry_after_seconds <= 60
    assert 110 < refused.reset_seconds <= 120
    assert (await limiter.check("boris")).remaining == 1


async def test_a_cost_takes_more_at_once(redis_client: Redis) -> None:
    """A refused one takes nothing: a smaller one still fits."""
    limiter = RateLimiter("uploads", Rate.parse("60/hour", burst=5), redis=redis_client)
    assert (await limiter.check("anna", cost=3)).remaining == 2
    refused = await limiter.check("anna", cost=3)
    assert (refused.allowed, refused.remaining) == (False, 2)
    assert (await limiter.check("anna", cost=2)).allowed


async def test_a_request_that_one_limit_refuses_takes_nothing_of_the_others(redis_client: Redis) -> None:
    """Whoever is over the own limit doesn't use up everybody's."""
    limits = {"user": Rate.parse("60/hour", burst=1), "endpoint": Rate.parse("60/hour", burst=3)}
    limiter = RateLimiter("uploads", limits, redis=redis_client)
    assert (await limiter.check("anna", "/photos")).policy == "uploads.user"
    for _ in range(5):
        refused = await limiter.check("anna", "/photos")
        assert (refused.allowed, refused.policy) == (False, "uploads.user")
    assert (await limiter.check("boris", "/photos")).allowed
    assert (await limiter.check("clara", "/photos")).allowed
    refused = await limiter.check("dora", "/photos")
    assert (refused.allowed, refused.policy) == (False, "uploads.endpoint")
    # Refused by the endpoint's limit, dora has lost nothing of her own.
    assert (await limiter.check("dora", "/videos")).allowed


async def test_keys_expire_when_they_are_full_again(redis_client: Redis) -> None:
    """A key costs memory as long as it says something; the limits of one request are on one node of a cluster."""
    limits = {"user": Rate.parse("60/hour"), "endpoint": Rate.parse("6/second")}
    await RateLimiter("uploads", limits, redis=redis_client).check(7, "/photos")
    await RateLimiter("mails", Rate.parse("1/day"), redis=redis_client).check("anna")
    user, endpoint = "hk:limit:{uploads}:user:7", "hk:limit:{uploads}:endpoint:/photos"
    lives = {key: await redis_client.pttl(key) for key in await redis_client.keys()}
    assert lives.keys() <= {user, endpoint, "hk:limit:mails:all:anna"}
    assert 50_000 < lives[user] <= 60_000
    assert lives.get(endpoint, 1) <= 167


async def test_any_key_is_counted_by_itself(redis_client: Redis) -> None:
    """Long ones, other alphabets and halves of characters too: they may come from outside."""
    limiter = RateLimiter("uploads", Rate.parse("1/day"), redis=redis_client)
    keys: list[str | int | UUID] = [
        "",
        "a" * 100_000,
        "a" * 99_999,
        "анна",
        "\ud800",
        "{anna}",
        UUID(int=1),
        1,
        "two words\r\n",
    ]
    for key in keys:
        assert (await limiter.check(key)).allowed, key
    for key in keys:
        assert not (await limiter.check(key)).allowed, key
    assert all(len(key) < 250 for key in await redis_client.keys())


async def test_limiters_of_one_name_share_their_counts(redis_client: Redis) -> None:
    """That is what makes it one limit over all replicas."""
    limiters = [RateLimiter("uploads", Rate.parse("10/day"), redis=redis_client) for _ in range(4)]
    decisions = await asyncio.gather(*(limiters[n % 4].check("anna") for n in range(100)))
    assert sum(decision.allowed for decision in decisions) == 10


async def test_a_rate_may_change_between_two_releases(redis_client: Redis) -> None:
    """What an old release has counted is not held against anybody for longer than the new rate allows."""
    old = RateLimiter("uploads", Rate.parse("1/day;burst=100"), redis=redis_client)
    await old.check("anna", cost=100)
    new = RateLimiter("uploads", Rate.parse("60/hour;burst=2"), redis=redis_client)
    assert (await new.check("anna")).retry_after_seconds <= 60


async def test_decisions_are_counted(redis_client: Redis) -> None:
    """By what came of them; the limiter is the label, and never a key."""
    limiter = RateLimiter("counted", Rate.parse("1/day"), redis=redis_client)
    before = counted("counted", "allowed"), counted("counted", "denied")
    for _ in range(3):
        await limiter.check("anna")
    assert (counted("counted", "allowed"), counted("counted", "denied")) == (before[0] + 1, before[1] + 2)
    assert repr(limiter) == "RateLimiter(counted=1/day, local=False)"


async def test_a_limiter_may_be_declared_before_there_is_a_redis(redis_client: Redis) -> None:
    """It uses that of the process."""
    limiter = RateLimiter("declared", Rate.parse("1/day"))
    with pytest.raises(MisuseError, match="has no Redis"):
        await limiter.check("anna")
    with use_redis(redis_client):
        assert not (await limiter.check("anna")).is_local


async def test_misuse_is_named(redis_client: Redis) -> None:
    """The wrong number of keys, and a cost that could never be had."""
    limits = {"user": Rate.parse("5/s"), "endpoint": Rate.parse("3/s")}
    limiter = RateLimiter("uploads", limits, redis=redis_client)
    with pytest.raises(MisuseError, match=r"uploads\.user, uploads\.endpoint"):
        await limiter.check("anna")
    for cost in (0, 4, -1):
        with pytest.raises(MisuseError, match="smallest burst, 3"):
            await limiter.check("anna", "/photos", cost=cost)
    with pytest.raises(DeclarationError, match="snake_case"):
        RateLimiter("Uploads!", Rate.parse("1/s"), redis=redis_client)
    with pytest.raises(DeclarationError, match="at least one limit"):
        RateLimiter("uploads", {}, redis=redis_client)
    with pytest.raises(DeclarationError, match="one replica"):
        RateLimiter("uploads", Rate.parse("1/s"), redis=redis_client, replicas=0)


# ── the algorithm ────────────────────────────────────────────────────────────────────────────────

RATES = st.builds(
    Rate,
    st.sampled_from([1, 7, 100, 3000]),
    st.sampled_from(["second", "minute", "hour"]),
    st.sampled_from([1, 2, 3, 20, 100]),
)
REQUESTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 300_000), st.integers(0, 100_000_000)),
        st.sampled_from("ab"),
        st.sampled_from("xy"),
        st.integers(1, 3),
    ),
    max_size=30,
)
START = 1_800_000_000_000_000
"""A time in microseconds, years from now."""


def test_the_script_decides_as_buckets_do(redis_url: str) -> None:
    """Whatever the limits and the requests are, Redis's numbers are those of the model, at times that the test says."""
    # By the real clock a key would expire while the test's stands still.
    assert "math.ceil(missing / 1000)" in DECIDE
    script = "local now = tonumber(table.remove(ARGV))" + DECIDE.replace(
        "math.ceil(missing / 1000)", "86400000"
    )
    with redis_py.Redis.from_url(redis_url) as client:
        sha: Any = client.script_load(script)

        @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
        @given(rates=st.tuples(RATES, RATES), requests=REQUESTS)
        def agrees(rates: tuple[Rate, Rate], requests: list[tuple[int, str, str, int]]) -> None:
            client.flushdb()
            buckets, now = Buckets(rates), START
            limits = [
                number
                for rate in rates
                for number in (rate.interval_microseconds, rate.interval_microseconds * rate.burst)
            ]
            highest = min(rate.burst for rate in rates)
            for pause, user, endpoint, cost in requests:
                now += pause
                taken = min(cost, highest)
                keys = [f"user:{user}", f"endpoint:{endpoint}"]
                found: Any = client.evalsha(sha, 2, *keys, taken, *limits, now)
                assert found == buckets.check(keys, taken, now)

        agrees()


async def test_a_clock_that_went_back_locks_nobody_out(redis_client: Redis) -> None:
    """A new master may be an hour behind: a full bucket ago is the longest that counts."""
    limiter = RateLimiter("uploads", Rate.parse("60/hour;burst=2"), redis=redis_client)
    in_an_hour = (await redis_client.time())[0] * 1_000_000 + 3_600_000_000
    await redis_client.set("hk:limit:uploads:all:anna", in_an_hour)
    refused = await limiter.check("anna")
    assert (refused.allowed, refused.remaining, refused.retry_after_seconds) == (False, 0, 60.0)


HAMMER = textwrap.dedent("""
    import asyncio, json, sys, time
    from hybridkit.coordination import Rate, RateLimiter, connect_redis

    async def main(url, seconds):
        async with connect_redis(url, timeout_seconds=5.0) as redis:
            limiter = RateLimiter("hammered", Rate.parse("300/second", burst=30), redis=redis)
            allowed, asked = [], 0
            print("ready", flush=True)
            sys.stdin.readline()
            until = time.monotonic() + float(seconds)

            async def hammer():
                nonlocal asked
                while (since := time.monotonic()) < until:
                    asked += 1
                    decision = await limiter.check("anna")
                    assert not decision.is_local
                    if decision.allowed:
                        allowed.append((since, time.monotonic()))

            await asyncio.gather(*(hammer() for _ in range(20)))
            print(json.dumps([asked, allowed]), flush=True)

    asyncio.run(main(*sys.argv[1:]))
""")


async def test_two_processes_never_get_more_than_the_rate_and_one_burst(redis_url: str) -> None:
    """In every stretch of time between any two requests: what lies wholly within it fits."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            HAMMER,
            redis_url,
            "1.0",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    reports = [json.loads(answer) for answer, _ in answers]
    allowed = sorted((tuple(each) for _, found in reports for each in found), key=lambda each: each[1])
    assert min(len(found) for _, found in reports) > 0
    assert sum(asked for asked, _ in reports) > len(allowed)
    for since in {asked for asked, _ in allowed}:
        inside = [answered for asked, answered in allowed if asked >= since]
        for count, answered in enumerate(inside, 1):
            assert count <= 30 + 300 * (answered - since) + 1


# ── without Redis ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def proxy(redis_url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(redis_url)
    async with FaultProxy(str(parts.hostname), parts.port or 6379) as proxy:
        yield proxy


@pytest.fixture
async def far_redis(redis_url: str, proxy: FaultProxy) -> AsyncGenerator[Redis]:
    """The same Redis, behind the proxy."""
    async with connect_redis(proxy.url_for(redis_url), timeout_seconds=0.1) as redis:
        yield redis


async def until_shared(limiter: RateLimiter, key: str = "anna") -> LimitDecision:
    """Ask until Redis decides, however long a busy machine takes to connect."""
    found: list[LimitDecision] = []

    async def decided_by_redis() -> bool:
        found.append(await limiter.check(key))
        return not found[-1].is_local

    await until(decided_by_redis)
    return found[-1]


@pytest.mark.parametrize("fault", ["freeze", "swallow", "cut"])
async def test_without_redis_each_replica_allows_its_share(
    far_redis: Redis, proxy: FaultProxy, fault: str
) -> None:
    """Two replicas have half of the burst each; that is no error, it is counted, and Redis decides when it is back."""
    limiter = RateLimiter("far", Rate.parse("100/day", burst=10), redis=far_redis, replicas=2)
    assert (await until_shared(limiter, "warm")).remaining < 10
    before = counted("far", "allowed_locally"), counted("far", "denied_locally")
    if fault == "cut":
        proxy.cut("to_client", at_byte=0)
    else:
        getattr(proxy, fault)()
    decisions = [await limiter.check("anna") for _ in range(7)]
    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 2
    assert all(decision.is_local for decision in decisions)
    assert decisions[0][:4] == (True, "far", Rate(100, "day", 10), 4)
    assert 1700 < decisions[-1].retry_after_seconds <= 1728
    after = counted("far", "allowed_locally"), counted("far", "denied_locally")
    assert after == (before[0] + 5, before[1] + 2)
    proxy.let_pass()
    assert (await until_shared(limiter)).limit == Rate(100, "day", 10)


async def test_a_redis_that_is_away_costs_no_waiting_but_once(far_redis: Redis, proxy: FaultProxy) -> None:
    """A timeout for each of 500 requests would be minutes."""
    limiter = RateLimiter("away", Rate.parse("10000/s"), redis=far_redis)
    await until_shared(limiter)
    proxy.freeze()
    since = time.monotonic()
    for _ in range(500):
        assert (await limiter.check("anna")).allowed
    assert time.monotonic() - since < 20


async def test_a_request_whose_answer_was_lost_counts_once_or_twice(
    far_redis: Redis, proxy: FaultProxy, redis_client: Redis
) -> None:
    """Redis has counted it, and counts it again when it is asked again: never less than once."""
    limiter = RateLimiter("lost", Rate.parse("100/day"), redis=far_redis)
    await until_shared(limiter, "warm")
    asking = asyncio.ensure_future(limiter.check("anna"))
    proxy.cut("to_client", at_byte=0)
    await until(lambda: redis_client.exists("hk:limit:lost:all:anna"))
    proxy.let_pass()
    await asking
    there = RateLimiter("lost", Rate.parse("100/day"), redis=redis_client)
    assert (await there.check("anna")).remaining in {97, 98}


@pytest.mark.parametrize("fault", ["killed", "frozen", "flushed", "full"])
async def test_a_server_that_breaks_and_heals(own_redis_server: Server, fault: str) -> None:
    """Every request has a decision meanwhile, and Redis decides again when it can."""
    async with connect_redis(own_redis_server.url, timeout_seconds=0.1) as redis:
        limiter = RateLimiter("broken", Rate.parse("100/day"), redis=redis)
        assert (await until_shared(limiter)).remaining < 100
        client: Any = redis
        match fault:
            case "killed":
                await asyncio.to_thread(own_redis_server.kill)
            case "frozen":
                own_redis_server.freeze()
            case "flushed":
                await client.flushall()
                await client.script_flush()
                assert (await limiter.check("anna")).remaining == 99  # forgotten, and no error
                return
            case _:
                await client.config_set("maxmemory", 1)
        decision = await limiter.check("anna")
        assert (decision.allowed, decision.is_local) == (True, True)
        match fault:
            case "killed":
                await asyncio.to_thread(own_redis_server.restart)
            case "frozen":
                own_redis_server.resume()
            case _:
                await client.config_set("maxmemory", 0)
        assert (await until_shared(limiter)).allowed


async def test_a_cancelled_request_leaves_the_connection_usable(redis_client: Redis) -> None:
    """Its answer is dropped, and the answers of others are their own."""
    limiter = RateLimiter("cancelled", Rate.parse("1000/day"), redis=redis_client)
    await limiter.check("anna")
    asking = [asyncio.create_task(limiter.check("anna")) for _ in range(100)]
    for _ in range(2):
        await asyncio.sleep(0)
    for task in asking[::2]:
        task.cancel()
    decisions = await asyncio.gather(*asking, return_exceptions=True)
    left = [decision.remaining for decision in decisions if isinstance(decision, LimitDecision)]
    assert len(left) == 50
    assert left == sorted(left, reverse=True)
    assert (await limiter.check("anna")).remaining == 1000 - 102


async def test_a_limit_may_be_left_out(redis_url: str) -> None:
    """A request that a limit doesn't concern takes nothing off it, in Redis as without it."""
    limits = {"all": Rate(100, "minute", burst=100), "group": Rate(1, "minute", burst=1)}
    async with connect_redis(redis_url) as redis, connect_redis("redis://127.0.0.1:1/0") as none:
        for client in (redis, none):
            limiter = RateLimiter("left_out", limits, redis=client)
            for _ in range(3):
                assert (await limiter.check("bot", None)).policy == "left_out.all"
            assert (await limiter.check("bot", "g")).allowed
            decision = await limiter.check("bot", "g")
            assert (decision.allowed, decision.policy) == (False, "left_out.group")
            assert not (await limiter.check(None, "g")).allowed
            assert (await limiter.check("bot", None)).remaining == 95
            with pytest.raises(MisuseError, match="one of its limits at least"):
                await limiter.check(None, None)
