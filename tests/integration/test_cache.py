"""The cache on a Redis server: one load per key, and nothing older than its last invalidation."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.coordination import Cache, Redis, connect_redis, use_redis
from hybridkit.coordination._cache._loads import Load
from hybridkit.errors import DeadlinePassedError, DeclarationError, MisuseError, UnavailableError
from hybridkit.events import Event
from hybridkit.messaging import RobustConsumer
from tests.helpers import until
from tests.helpers.caches import (
    UNHURRIED_SECONDS,
    Profile,
    Source,
    counted,
    end_claim,
    make_stale,
    new_name,
)

pytestmark = pytest.mark.real_server

type MakeCache = Callable[..., Cache[Profile]]


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=UNHURRIED_SECONDS) as redis:
        yield redis


@pytest.fixture
async def other_redis(redis_url: str) -> AsyncGenerator[Redis]:
    """The client of another process."""
    async with connect_redis(redis_url, timeout_seconds=UNHURRIED_SECONDS) as redis:
        yield redis


@pytest.fixture
def name() -> str:
    return new_name()


@pytest.fixture
def make_cache(redis: Redis, name: str) -> MakeCache:
    def make(on: Redis | None = None, **options: Any) -> Cache[Profile]:
        options = {"load_seconds": 60, "timeout_seconds": UNHURRIED_SECONDS, **options}
        return Cache(name, Profile, redis=on or redis, **options)

    return make


@pytest.fixture
def cache(make_cache: MakeCache) -> Cache[Profile]:
    return make_cache()


@pytest.fixture
def other(make_cache: MakeCache, other_redis: Redis) -> Cache[Profile]:
    """The same cache in another process."""
    return make_cache(other_redis)


@pytest.fixture
def source() -> Source:
    return Source()


# ── hits and misses ──────────────────────────────────────────────────────────────────────────────


async def test_a_value_is_loaded_once_and_then_comes_from_redis(
    cache: Cache[Profile], other: Cache[Profile], source: Source
) -> None:
    """Also for another process; each caller has an object of its own."""
    first = await cache.get_or_load("ada", source.load)
    second = await cache.get_or_load("ada", source.load)
    third = await other.get_or_load("ada", source.load)
    assert first == second == third == Profile(name="Ada")
    assert len({id(value) for value in (first, second, third)}) == 3
    assert await cache.get_or_load("ada", source.load) == first
    assert source.started == 1
    assert counted(cache)["hit"] >= 1


async def test_values_of_different_keys_are_loaded_separately(cache: Cache[Profile]) -> None:
    """Each has its own loader, and the loads run beside each other."""
    sources = [Source(held=True) for _ in range(10)]
    for number, source in enumerate(sources):
        source.value = Profile(name=str(number))
    reads = [asyncio.create_task(cache.get_or_load(n, source.load)) for n, source in enumerate(sources)]
    await until(lambda: all(source.started for source in sources))
    for source in sources:
        source.let_go()
    assert [value and value.name for value in await asyncio.gather(*reads)] == [str(n) for n in range(10)]


@pytest.mark.parametrize(
    "id", [UUID(int=7), 7, "a b", "größe", "", "x" * 500, "{tag}", "#", "a:b", "\ud800"], ids=repr
)
async def test_any_text_can_be_an_id(
    cache: Cache[Profile], source: Source, id: UUID | str | int, redis: Redis
) -> None:
    """What has no place in a key is replaced by its hash; the value is found again, and dropped."""
    await cache.get_or_load(id, source.load)
    await cache.get_or_load(id, source.load)
    assert source.started == 1
    [key] = await redis.keys()
    assert len(key) < 300
    assert await cache.invalidate(id)
    assert await redis.keys() == []


async def test_other_types_than_models_are_cached(redis: Redis, name: str) -> None:
    """Anything that pydantic writes and reads."""
    spans: Cache[list[timedelta]] = Cache(
        name, list[timedelta], redis=redis, timeout_seconds=UNHURRIED_SECONDS
    )
    loads = 0

    async def load() -> list[timedelta]:
        nonlocal loads
        loads += 1
        return [timedelta(seconds=1), timedelta(days=3)]

    assert await spans.get_or_load("a", load) == await spans.get_or_load("a", load)
    assert loads == 1


async def test_lifetimes_are_spread_and_bounded(make_cache: MakeCache, source: Source, redis: Redis) -> None:
    """Values that are stored together end apart, none later than declared."""
    cache = make_cache(ttl_seconds=1000, stale_seconds=100)
    await asyncio.gather(*(cache.get_or_load(number, source.load) for number in range(50)))
    await until(lambda: _all_stored(redis, 50))
    lifetimes = [await redis.pttl(key) for key in await redis.keys()]
    assert len(set(lifetimes)) > 40
    assert max(lifetimes) <= 1_100_000
    assert min(lifetimes) > 900_000


async def _all_stored(redis: Redis, count: int) -> bool:
    keys = await redis.keys()
    return sum([int(await redis.hexists(key, "value")) for key in keys]) == count


# ── one load ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_thousand_concurrent_misses_load_once(cache: Cache[Profile]) -> None:
    """All callers wait for the one loader, and get equal values of their own."""
    source = Source(held=True)
    reads = [asyncio.create_task(cache.get_or_load("ada", source.load)) for _ in range(1000)]
    await until(lambda: counted(cache).get("miss") == 1000)
    source.let_go()
    values = await asyncio.gather(*reads)
    assert values == [Profile(name="Ada")] * 1000
    assert len({id(value) for value in values}) == 1000
    assert source.started == 1


async def test_concurrent_misses_of_two_clients_load_once(
    cache: Cache[Profile], other: Cache[Profile]
) -> None:
    """The second client waits for the first one's value."""
    source = Source(held=True)
    reads = [
        asyncio.create_task(which.get_or_load("ada", source.load))
        for _ in range(500)
        for which in (cache, other)
    ]
    await until(lambda: counted(cache).get("miss") == 1000)
    source.let_go()
    assert await asyncio.gather(*reads) == [Profile(name="Ada")] * 1000
    assert source.started == 1
    assert counted(cache)["wait"] == 1


async def test_two_processes_load_once(redis_url: str, redis: Redis) -> None:
    """Five hundred callers in each, let go at the same moment; the load waits until all of them have asked."""
    program = textwrap.dedent(f"""
        import asyncio
        from hybridkit.coordination import Cache, connect_redis
        from hybridkit.coordination._connection import multiplexer_of

        async def main():
            async with connect_redis({redis_url!r}, timeout_seconds=30) as redis:
                cache = Cache("numbers", int, redis=redis, timeout_seconds=30, load_seconds=60)

                async def load():
                    await redis.incr("loads")
                    await redis.blpop("go", timeout=20)
                    return 42

                await redis.incr("ready")
                await redis.blpop("start", timeout=20)
                reads = [asyncio.create_task(cache.get_or_load("one", load)) for _ in range(500)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await multiplexer_of(redis).execute("INCRBY", "asked", 500)
                values = await asyncio.gather(*reads)
                print(len(values), set(values))

        asyncio.run(main())
    """)
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    await until(lambda: _reads(redis, "ready", "2"))
    await redis.rpush("start", "1", "1")
    await until(lambda: _reads(redis, "asked", "1000"))
    await redis.rpush("go", "1")
    for process in processes:
        out, _ = await process.communicate()
        assert out.decode().strip() == "500 {42}"
    assert await redis.get("loads") == "1"


async def _reads(redis: Redis, key: str, wanted: str) -> bool:
    return bool(await redis.get(key) == wanted)


async def test_a_failed_load_is_everybodys_error_and_the_next_read_loads_again(
    cache: Cache[Profile], other: Cache[Profile]
) -> None:
    """Nothing is stored; a client that waited for the other's load tries itself."""
    source, theirs = Source(held=True), Source()
    source.error = ValueError("broken")
    reads = [asyncio.create_task(cache.get_or_load("ada", source.load)) for _ in range(50)]
    await until(lambda: counted(cache).get("miss") == 50)
    waiting = asyncio.create_task(other.get_or_load("ada", theirs.load))
    await until(lambda: counted(cache).get("wait") == 1)
    source.let_go()
    errors = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(error) for error in errors} == {ValueError}
    assert await waiting == Profile(name="Ada")
    assert (source.started, theirs.started) == (1, 1)


async def test_a_failed_load_can_be_repeated_at_once(cache: Cache[Profile], source: Source) -> None:
    """The claim of the first one is given back."""
    source.error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        await cache.get_or_load("ada", source.load)
    source.error = None
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    assert source.started == 2


async def test_the_claim_of_a_dead_loader_is_taken_over(
    cache: Cache[Profile], other: Cache[Profile], redis: Redis
) -> None:
    """A claim that nobody renews ends; the loader that comes back after that stores nothing."""
    dead, alive = Source(held=True), Source()
    lost = asyncio.create_task(cache.get_or_load("ada", dead.load))
    await until(lambda: dead.started)
    waiting = asyncio.create_task(other.get_or_load("ada", alive.load))
    await until(lambda: counted(cache).get("wait") == 1)
    assert alive.started == 0
    alive.change()
    await end_claim(redis, cache, "ada")
    assert await waiting == Profile(name="Ada", version=2)
    dead.let_go()
    assert await lost == Profile(name="Ada", version=1)
    assert await other.get_or_load("ada", alive.load) == Profile(name="Ada", version=2)
    assert counted(cache)["takeover"] == 1


async def test_a_claim_is_renewed_while_its_load_runs(
    cache: Cache[Profile], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes, nobody takes over from a living loader."""
    monkeypatch.setattr("hybridkit.coordination._cache._loader.CLAIM_SECONDS", 0.03)
    source = Source(held=True)
    read = asyncio.create_task(cache.get_or_load("ada", source.load))
    await until(lambda: source.started)
    await end_claim(redis, cache, "ada")
    await until(lambda: _is_claimed(redis, cache))
    source.let_go()
    await read


async def _is_claimed(redis: Redis, cache: Cache[Profile]) -> bool:
    return await redis.hget(f"hk:cache:{cache.name}:ada", "until") != "0"


async def test_a_waiting_process_gives_up_a_load_without_an_end(
    cache: Cache[Profile], make_cache: MakeCache, other_redis: Redis
) -> None:
    """It loads the value itself after the time that a load may take, and stores nothing."""
    hanging, source = Source(held=True), Source()
    other = make_cache(other_redis, load_seconds=0.001)
    stuck = asyncio.create_task(cache.get_or_load("ada", hanging.load))
    await until(lambda: hanging.started)
    assert await other.get_or_load("ada", source.load) == Profile(name="Ada")
    assert not await other_redis.hexists(f"hk:cache:{cache.name}:ada", "value")
    hanging.let_go()
    await stuck


# ── callers ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_caller_leaves_the_load_to_the_others(cache: Cache[Profile]) -> None:
    """Also the caller that began it."""
    source = Source(held=True)
    first = asyncio.create_task(cache.get_or_load("ada", source.load))
    await until(lambda: source.started)
    second = asyncio.create_task(cache.get_or_load("ada", source.load))
    await until(lambda: counted(cache).get("miss") == 2)
    first.cancel()
    await asyncio.wait({first})
    source.let_go()
    assert await second == Profile(name="Ada")
    assert source.started == 1


async def test_a_caller_waits_no_longer_than_its_deadline(cache: Cache[Profile]) -> None:
    """The load goes on for the others."""
    source = Source(held=True)
    with bind(current().within(0.01)), pytest.raises(DeadlinePassedError):
        await cache.get_or_load("ada", source.load)
    source.let_go()
    with bind(current().within(60)):
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    assert source.started == 1


async def test_a_load_has_its_own_time(make_cache: MakeCache, source: Source) -> None:
    """One that takes longer is cancelled, and its callers get the reason."""
    cache, hanging = make_cache(load_seconds=0.01), Source(held=True)
    with pytest.raises(DeadlinePassedError, match="a load took longer than"):
        await cache.get_or_load("ada", hanging.load)
    assert hanging.finished == 0
    assert await make_cache().get_or_load("ada", source.load) == Profile(name="Ada")


async def test_a_timeout_of_the_loader_itself_is_its_error(cache: Cache[Profile], source: Source) -> None:
    """It is not taken for the time of the load."""
    source.error = TimeoutError("the loader's")
    with pytest.raises(TimeoutError, match="the loader's"):
        await cache.get_or_load("ada", source.load)


async def test_a_load_belongs_to_the_request_but_not_to_its_deadline_and_claim(
    cache: Cache[Profile], source: Source
) -> None:
    """Others may wait for it, who have another deadline and another claim."""
    seen: list[RequestContext] = []

    async def load() -> Profile | None:
        seen.append(current())
        return await source.load()

    context = RequestContext(request_id="req-1", user_id="ada", claim=Claim("a:b:c")).within(30)
    with bind(context):
        await cache.get_or_load("ada", load)
    [inner] = seen
    assert (inner.request_id, inner.user_id, inner.claim) == ("req-1", "ada", None)
    assert inner.deadline is not None
    assert context.deadline is not None
    assert inner.deadline > context.deadline


async def test_callers_of_a_load_that_is_cancelled_get_an_error(cache: Cache[Profile]) -> None:
    """The process stops; nobody takes that for a cancellation of himself."""
    source = Source(held=True)
    read = asyncio.create_task(cache.get_or_load("ada", source.load))
    await until(lambda: source.started)
    await cache._loader.loads._tasks.cancel()
    with pytest.raises(UnavailableError, match="the process stops"):
        await read


# ── stale values ─────────────────────────────────────────────────────────────────────────────────


async def test_a_stale_value_is_returned_while_one_loader_refreshes_it(
    cache: Cache[Profile], other: Cache[Profile], redis: Redis
) -> None:
    """Callers of both processes get it without waiting; later ones get the new value."""
    source = Source()
    await cache.get_or_load("ada", source.load)
    new = source.change()
    source.hold()
    await make_stale(redis, cache, "ada")
    for _ in range(20):
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada", version=1)
        assert await other.get_or_load("ada", source.load) == Profile(name="Ada", version=1)
    source.let_go()
    await until(lambda: source.finished == 2)
    assert await cache.get_or_load("ada", source.load) == new
    assert source.started == 2
    assert counted(cache)["stale"] == 40


async def test_a_stale_value_outlives_a_failed_refresh(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """It is returned until its lifetime ends, and the refresh is not tried again with each read."""
    await cache.get_or_load("ada", source.load)
    source.error = ValueError("broken")
    await make_stale(redis, cache, "ada")
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    await until(lambda: source.finished == 2)
    for _ in range(20):
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    assert source.started == 2
    await end_claim(redis, cache, "ada")  # the pause is over
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    await until(lambda: source.finished == 3)


async def test_an_unchanged_value_only_gets_a_new_lifetime(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """A refresh that returns what it was given sends no value to Redis."""
    given: list[Profile] = []

    async def refresh(old: Profile) -> Profile | None:
        given.append(old)
        return old

    await cache.get_or_load("ada", source.load, refresh=refresh)
    key = f"hk:cache:{cache.name}:ada"
    as_written = '{"name": "Ada", "version": 1}'  # not how the cache writes it
    await redis.hset(key, "value", as_written)
    await make_stale(redis, cache, "ada")
    await cache.get_or_load("ada", source.load, refresh=refresh)
    await until(lambda: _is_fresh(redis, key))
    assert await redis.hget(key, "value") == as_written
    assert given == [Profile(name="Ada")]
    assert source.started == 1


async def _is_fresh(redis: Redis, key: str) -> bool:
    return await redis.hget(key, "fresh") != "0"


async def test_an_unchanged_value_that_ended_meanwhile_is_not_kept(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """Only its lifetime was to be written, and there is no value to which it belongs."""
    gate = asyncio.Event()

    async def refresh(old: Profile) -> Profile | None:
        await gate.wait()
        return old

    await cache.get_or_load("ada", source.load)
    await make_stale(redis, cache, "ada")
    await cache.get_or_load("ada", source.load, refresh=refresh)
    await redis.hdel(f"hk:cache:{cache.name}:ada", "value")
    gate.set()
    await until(lambda: "0 running" in repr(cache._loader))
    await cache.get_or_load("ada", source.load)
    assert source.started == 2


async def test_a_refresh_gives_another_value(cache: Cache[Profile], source: Source, redis: Redis) -> None:
    """It is stored like a loaded one."""

    async def refresh(old: Profile) -> Profile | None:
        return old.model_copy(update={"version": old.version + 1})

    await cache.get_or_load("ada", source.load, refresh=refresh)
    await make_stale(redis, cache, "ada")
    await cache.get_or_load("ada", source.load, refresh=refresh)
    await until(lambda: _is_fresh(redis, f"hk:cache:{cache.name}:ada"))
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada", version=2)


# ── none ─────────────────────────────────────────────────────────────────────────────────────────


async def test_none_is_not_kept_by_default(cache: Cache[Profile], source: Source) -> None:
    """A record that is created next is found."""
    source.value = None
    assert await cache.get_or_load("ada", source.load) is None
    source.change()
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")


async def test_none_can_be_kept(make_cache: MakeCache, source: Source) -> None:
    """It is a value as any other then, with its own lifetime."""
    cache = make_cache(none_seconds=60)
    source.value = None
    assert await cache.get_or_load("ada", source.load) is None
    assert await cache.get_or_load("ada", source.load) is None
    assert source.started == 1
    source.change()
    await cache.invalidate("ada")
    assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")


async def test_a_refresh_that_finds_none_ends_the_stale_value(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """A record that was removed is not returned for the rest of its lifetime."""
    await cache.get_or_load("ada", source.load)
    source.value = None
    await make_stale(redis, cache, "ada")
    await cache.get_or_load("ada", source.load)
    await until(lambda: _is_gone(redis, cache))
    assert await cache.get_or_load("ada", source.load) is None


async def _is_gone(redis: Redis, cache: Cache[Profile]) -> bool:
    return not await redis.exists(f"hk:cache:{cache.name}:ada")


# ── what can't be stored or read ─────────────────────────────────────────────────────────────────


async def test_a_value_that_is_too_large_is_returned_and_not_stored(
    make_cache: MakeCache, source: Source, redis: Redis
) -> None:
    """And counted: it costs a load each time."""
    cache = make_cache(max_bytes=100)
    source.value = Profile(name="a" * 200)
    for _ in range(2):
        assert await cache.get_or_load("ada", source.load) == source.value
        await until(lambda: _is_gone(redis, cache))
    assert source.started == 2
    assert counted(cache)["oversized"] == 2


async def test_a_value_of_an_older_class_counts_as_a_miss(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """It is loaded anew, and the new one is stored, also where the old one is stale."""
    key = f"hk:cache:{cache.name}:ada"
    for lifetime in ("fresh", "stale"):
        await cache.get_or_load("ada", source.load)
        await redis.hset(key, "value", '{"nick": "Ada"}')
        if lifetime == "stale":
            await make_stale(redis, cache, "ada")
        before = source.started
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
        assert source.started == before + 1


async def test_two_versions_of_a_class_do_not_go_in_circles(
    cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """Where each read finds the other version's value, it is loaded past Redis."""
    await cache.get_or_load("ada", source.load)
    examine = cache._stored.examine

    async def other_version_stores(key: str, reply: Any) -> Any:
        found = await examine(key, reply)
        await _store_unreadable(redis, cache)
        return found

    await _store_unreadable(redis, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache._stored, "examine", other_version_stores)
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
    assert counted(cache)["fallback"] == 1


async def _store_unreadable(redis: Redis, cache: Cache[Profile]) -> None:
    await redis.hset(
        f"hk:cache:{cache.name}:ada", mapping={"value": '{"nick": "Ada"}', "fresh": "9999999999999"}
    )


class Odd(BaseModel):
    """A model whose JSON it does not read itself."""

    ratio: float


async def test_a_value_that_its_own_json_can_not_give_back_is_not_stored(
    redis: Redis, name: str, logs: list[Any]
) -> None:
    """The caller gets it nevertheless, and the log says so once."""
    cache = Cache(name, Odd, redis=redis, timeout_seconds=UNHURRIED_SECONDS)

    async def load() -> Odd:
        return Odd(ratio=float("nan"))

    for _ in range(2):
        assert str((await cache.get_or_load("a", load)).ratio) == "nan"
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "a value can't be cached: its JSON can't be read as its type"
    ]


# ── invalidations ────────────────────────────────────────────────────────────────────────────────


async def test_an_invalidation_drops_the_value_for_all_processes(
    cache: Cache[Profile], other: Cache[Profile], source: Source
) -> None:
    """The next read of either loads."""
    await cache.get_or_load("ada", source.load)
    new = source.change()
    assert await other.invalidate("ada")
    assert await cache.get_or_load("ada", source.load) == new
    assert await other.get_or_load("ada", source.load) == new


@pytest.mark.parametrize("by", ["same", "other"])
@pytest.mark.parametrize("is_stale", [False, True], ids=["missing", "stale"])
async def test_a_load_from_before_an_invalidation_stores_nothing(
    cache: Cache[Profile], other: Cache[Profile], redis: Redis, by: str, *, is_stale: bool
) -> None:
    """Whichever process invalidates, and whether there was a value before: the later read loads, and is right."""
    old, new = Source(), Source()
    if is_stale:
        await cache.get_or_load("ada", old.load)
        await make_stale(redis, cache, "ada")
    old.hold()
    started = old.started
    reading = asyncio.create_task(cache.get_or_load("ada", old.load))
    await until(lambda: old.started > started)
    wanted = new.change()
    await (cache if by == "same" else other).invalidate("ada")
    assert await cache.get_or_load("ada", new.load) == wanted
    old.let_go()
    assert await reading == Profile(name="Ada", version=1)
    await until(lambda: "0 running" in repr(cache._loader))
    for each in (cache, other):
        assert await each.get_or_load("ada", new.load) == wanted
    assert new.started == 1


async def test_a_load_that_is_stored_just_before_an_invalidation_is_dropped(
    cache: Cache[Profile], other: Cache[Profile]
) -> None:
    """The other order of the same two commands."""
    source = Source(held=True)
    reading = asyncio.create_task(cache.get_or_load("ada", source.load))
    await until(lambda: source.started)
    source.let_go()
    await reading
    wanted = source.change()
    await other.invalidate("ada")
    assert await cache.get_or_load("ada", source.load) == wanted


async def test_a_waiting_process_does_not_take_a_value_from_before_an_invalidation(
    cache: Cache[Profile], other: Cache[Profile]
) -> None:
    """Its wait ends with a load of its own, and a later caller doesn't join the first load."""
    old, new = Source(held=True), Source()
    reading = asyncio.create_task(cache.get_or_load("ada", old.load))
    await until(lambda: old.started)
    waiting = asyncio.create_task(other.get_or_load("ada", new.load))
    await until(lambda: counted(cache).get("wait") == 1)
    wanted = new.change()
    await other.invalidate("ada")
    assert await waiting == wanted
    assert await cache.get_or_load("ada", new.load) == wanted
    old.let_go()
    await reading


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tagged(make_cache: MakeCache) -> Cache[Profile]:
    return make_cache(tags=lambda profile: [f"team:{profile.team}", "all"])


async def test_a_tag_drops_the_values_that_have_it(tagged: Cache[Profile]) -> None:
    """And no others."""
    red, blue = Source(), Source()
    blue.value = Profile(name="Bea", team="blue")
    for _ in range(2):
        await tagged.get_or_load("ada", red.load)
        await tagged.get_or_load("bea", blue.load)
    assert (red.started, blue.started) == (1, 1)
    await tagged.invalidate_tag("team:red")
    await tagged.get_or_load("ada", red.load)
    await tagged.get_or_load("bea", blue.load)
    assert (red.started, blue.started) == (2, 1)
    await tagged.invalidate_tag("all")
    await tagged.get_or_load("ada", red.load)
    await tagged.get_or_load("bea", blue.load)
    assert (red.started, blue.started) == (3, 2)


async def test_a_load_from_before_an_invalidation_of_its_tag_is_not_used(
    tagged: Cache[Profile], make_cache: MakeCache, other_redis: Redis
) -> None:
    """The tag is known only when the value is; the epoch in which the load began is older than the tag's."""
    other = make_cache(other_redis, tags=lambda profile: [f"team:{profile.team}"])
    source = Source(held=True)
    reading = asyncio.create_task(tagged.get_or_load("ada", source.load))
    await until(lambda: source.started)
    wanted = source.change()
    await other.invalidate_tag("team:red")
    source.let_go()
    assert await reading == Profile(name="Ada", version=1)
    assert await other.get_or_load("ada", source.load) == wanted
    assert await tagged.get_or_load("ada", source.load) == wanted


async def test_a_caller_after_an_invalidation_of_a_tag_gets_no_load_from_before(
    tagged: Cache[Profile], make_cache: MakeCache, other_redis: Redis
) -> None:
    """The claim of the running load is still there; the caller that joined it notices, and loads anew."""
    other = make_cache(other_redis, tags=lambda profile: [f"team:{profile.team}"])
    source = Source(held=True)
    first = asyncio.create_task(tagged.get_or_load("ada", source.load))
    await until(lambda: source.started)
    wanted = source.change()
    await other.invalidate_tag("team:red")
    later = [asyncio.create_task(tagged.get_or_load("ada", source.load)) for _ in range(10)]
    await until(lambda: counted(tagged).get("miss") == 11)
    source.let_go()
    assert await asyncio.gather(*later) == [wanted] * 10
    assert await first == Profile(name="Ada", version=1)
    assert source.started == 2


async def test_a_stale_value_with_an_invalid_tag_is_not_returned(
    tagged: Cache[Profile], source: Source, redis: Redis
) -> None:
    """Stale is what was right for the last time when it was fresh."""
    await tagged.get_or_load("ada", source.load)
    await until(lambda: _is_stored(redis, tagged))
    wanted = source.change()
    await make_stale(redis, tagged, "ada")
    await tagged.invalidate_tag("team:red")
    assert await tagged.get_or_load("ada", source.load) == wanted


async def _is_stored(redis: Redis, cache: Cache[Profile]) -> bool:
    return await redis.hexists(f"hk:cache:{cache.name}:ada", "value")


async def test_a_value_whose_tag_was_evicted_counts_as_a_miss(
    tagged: Cache[Profile], source: Source, redis: Redis
) -> None:
    """The evicted record may have said that the value is invalid."""
    await tagged.get_or_load("ada", source.load)
    await until(lambda: _is_stored(redis, tagged))
    await redis.delete(f"hk:cache_tags:{tagged.name}:all")
    await tagged.get_or_load("ada", source.load)
    assert source.started == 2


async def test_epochs_grow_where_the_clock_goes_back(
    tagged: Cache[Profile], source: Source, redis: Redis
) -> None:
    """After a fail-over the new master's clock may be behind: an invalidation counts nevertheless."""
    ahead = 2_000_000_000_000_000
    await redis.set(f"hk:cache_tags:{tagged.name}:#clock", str(ahead))
    await tagged.get_or_load("ada", source.load)
    await until(lambda: _is_stored(redis, tagged))
    assert await redis.hget(f"hk:cache:{tagged.name}:ada", "epoch") == str(ahead + 1)
    wanted = source.change()
    await tagged.invalidate_tag("all")
    assert await tagged.get_or_load("ada", source.load) == wanted


async def test_a_value_with_tags_of_a_cache_that_has_none_any_more_counts_as_a_miss(
    tagged: Cache[Profile], cache: Cache[Profile], source: Source, redis: Redis
) -> None:
    """Another version of the program has stored it; nobody here knows whether it is valid."""
    await tagged.get_or_load("ada", source.load)
    await until(lambda: _is_stored(redis, tagged))
    await cache.get_or_load("ada", source.load)
    assert source.started == 2
    with pytest.raises(DeclarationError, match="declare it with tags="):
        await cache.invalidate_tag("all")


# ── the decorator ────────────────────────────────────────────────────────────────────────────────


async def test_a_decorated_function_is_the_loader(cache: Cache[Profile]) -> None:
    """Its id is one of its arguments, by name or by position."""
    calls: list[str] = []

    @cache.cached(key="name")
    async def load(greeting: str, name: str = "Ada") -> Profile:
        calls.append(greeting)
        return Profile(name=name)

    @cache.cached(key=lambda first, last: f"{first}:{last}")
    async def load_both(first: str, last: str) -> Profile | None:
        return Profile(name=f"{first} {last}")

    assert await load("hello", "Bea") == Profile(name="Bea")
    assert await load("hello again", name="Bea") == Profile(name="Bea")
    assert await load("and", name="Ada") == await load("once more")
    assert calls == ["hello", "and"]
    assert load.__name__ == "load"
    assert await load_both("Ada", last="Lovelace") == Profile(name="Ada Lovelace")
    with pytest.raises(DeclarationError, match="no parameter 'id'"):

        @cache.cached(key="id")
        async def load_other(name: str) -> Profile:
            return Profile(name=name)


async def test_values_without_a_tag_in_a_cache_with_tags(make_cache: MakeCache) -> None:
    """They are kept as in a cache without, and callers share their loads."""
    cache, source = make_cache(tags=lambda _: []), Source(held=True)
    reads = [asyncio.create_task(cache.get_or_load("ada", source.load)) for _ in range(10)]
    await until(lambda: counted(cache).get("miss") == 10)
    source.let_go()
    assert await asyncio.gather(*reads) == [Profile(name="Ada")] * 10
    await until(lambda: "0 running" in repr(cache._loader))
    await cache.get_or_load("ada", source.load)
    assert source.started == 1


# ── declarations ─────────────────────────────────────────────────────────────────────────────────


async def test_a_cache_that_is_declared_at_import_uses_the_redis_of_the_process(
    redis: Redis, other_redis: Redis, name: str, source: Source
) -> None:
    """Its own client, where the process has one for caches."""
    cache = Cache(name, Profile, timeout_seconds=UNHURRIED_SECONDS)
    with pytest.raises(MisuseError, match="REDIS_URL"):
        await cache.get_or_load("ada", source.load)
    with use_redis(redis, cache=other_redis):
        await cache.get_or_load("ada", source.load)
    with use_redis(redis):
        await cache.get_or_load("ada", source.load)
    assert source.started == 1


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a:b"},
        {"name": ""},
        {"ttl_seconds": 0},
        {"stale_seconds": -1},
        {"none_seconds": -1},
        {"load_seconds": 0},
        {"timeout_seconds": 0},
    ],
    ids=str,
)
def test_a_declaration_out_of_its_range_is_refused(options: dict[str, Any]) -> None:
    """Where it is declared, and not when it is used."""
    with pytest.raises(DeclarationError):
        Cache(options.pop("name", "users"), Profile, **options)


def test_an_event_without_the_field_is_refused() -> None:
    """Where the cache is declared, and not when the first event comes."""

    class Renamed(Event, type="cache_test.renamed"):
        profile_id: str

    with pytest.raises(DeclarationError, match="Renamed has no field 'user_id'"):
        Cache("users", Profile).invalidated_by(Renamed, key="user_id", consumer=RobustConsumer("tests.none"))


async def test_a_cache_shows_what_it_is() -> None:
    """In logs and debuggers, and so do its parts."""
    cache = Cache("users", Profile, tags=lambda _: [])
    stored, loader = cache._stored, cache._loader
    assert repr(cache) == "Cache('users', ttl_seconds=300, stale_seconds=60)"
    assert repr(stored) == "StoredValues('users')"
    assert repr(stored.entries) == "Entries('users', pending=0)"
    assert repr(stored.owed) == "OwedInvalidations('users', 0 owed)"
    assert repr(stored._tags) == "Tags('hk:cache_tags:users:')"
    assert repr(loader) == "Loader('users', Loads(0 running))"
    assert repr(Load("key", None)) == "Load('key', done=False)"
