"""The cache while Redis dies, freezes, restarts and forgets."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from hybridkit.coordination import Cache, Redis, connect_redis
from hybridkit.coordination._cache import _owed
from hybridkit.dev import Server
from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import metrics
from tests.helpers import until
from tests.helpers.caches import UNHURRIED_SECONDS, Profile, Source, counted, new_name

pytestmark = pytest.mark.real_server


@pytest.fixture
async def redis(own_redis_server: Server) -> AsyncGenerator[Redis]:
    """A client whose own time limits are far longer than those of a cache."""
    async with connect_redis(own_redis_server.url, timeout_seconds=2) as redis:
        await redis.ping()
        yield redis


@pytest.fixture
def cache(redis: Redis) -> Cache[Profile]:
    return Cache(new_name(), Profile, redis=redis, none_seconds=60)


@pytest.fixture
def patient(redis: Redis) -> Cache[Profile]:
    """A cache that a busy machine does not keep from its Redis; it waits for a dead one as long as its client does."""
    return Cache(
        new_name(),
        Profile,
        redis=redis,
        timeout_seconds=UNHURRIED_SECONDS,
        tags=lambda profile: [profile.team],
    )


@pytest.fixture
def source() -> Source:
    return Source()


async def test_a_killed_redis_is_read_past(
    cache: Cache[Profile], source: Source, own_redis_server: Server
) -> None:
    """Values are loaded, one load per key at a time, and from Redis again when it is back."""
    await until(lambda: _is_hit(cache, source))
    started, before = source.started, counted(cache).get("fallback", 0)
    await asyncio.to_thread(own_redis_server.kill)
    source.hold()
    reads = [asyncio.create_task(cache.get_or_load("ada", source.load)) for _ in range(100)]
    await until(lambda: counted(cache).get("fallback", 0) == before + 100)
    source.let_go()
    assert await asyncio.gather(*reads) == [Profile(name="Ada")] * 100
    assert source.started == started + 1
    await asyncio.to_thread(own_redis_server.restart)
    await until(lambda: _is_hit(cache, source))


async def _is_hit(cache: Cache[Profile], source: Source) -> bool:
    before = counted(cache).get("hit", 0)
    await cache.get_or_load("ada", source.load)
    return counted(cache).get("hit", 0) > before


async def test_a_frozen_redis_costs_a_read_tens_of_milliseconds(
    source: Source, own_redis_server: Server
) -> None:
    """The first callers wait that long, and those after them not at all for a while."""
    async with connect_redis(own_redis_server.url, timeout_seconds=300) as redis:
        cache = Cache(new_name(), Profile, redis=redis)
        await until(lambda: _is_hit(cache, source))
        before = counted(cache).get("fallback", 0)
        own_redis_server.freeze()
        try:
            async with asyncio.timeout(120):  # a fraction of what the client waits
                for number in range(1000):
                    await cache.get_or_load(number, source.load)
        finally:
            own_redis_server.resume()
        assert counted(cache)["fallback"] == before + 1000
        await until(lambda: _is_hit(cache, source))


async def test_a_restarted_redis_is_used_again(
    cache: Cache[Profile], source: Source, own_redis_server: Server
) -> None:
    """Also where it has forgotten the scripts."""
    await cache.get_or_load("ada", source.load)
    await asyncio.to_thread(own_redis_server.restart)
    await until(lambda: _is_hit(cache, source))


async def test_a_flush_during_a_load_leaves_no_value_behind(patient: Cache[Profile], redis: Redis) -> None:
    """The claim is gone, so the value is returned and not stored; the next read stores."""
    source = Source(held=True)
    read = asyncio.create_task(patient.get_or_load("ada", source.load))
    await until(lambda: source.started)
    await redis.flushall()
    source.let_go()
    assert await read == Profile(name="Ada")
    await until(lambda: "0 running" in repr(patient._loader))
    assert not await redis.exists(f"hk:cache:{patient.name}:ada")
    await patient.get_or_load("ada", source.load)
    await until(lambda: _is_hit(patient, source))
    assert source.started == 2


async def test_a_redis_that_dies_during_a_load_fails_nobody(
    own_redis_server: Server, patient: Cache[Profile]
) -> None:
    """Neither the load nor what comes after it: the tags of the value, its store, and its invalidation."""
    source = Source(held=True)
    read = asyncio.create_task(patient.get_or_load("ada", source.load))
    await until(lambda: source.started)
    await asyncio.to_thread(own_redis_server.kill)
    source.let_go()
    assert await read == Profile(name="Ada")
    assert not await patient.invalidate_tag("red")
    assert not await patient.invalidate("ada")


async def test_a_load_that_fails_without_redis_is_the_callers_error(
    cache: Cache[Profile], source: Source, own_redis_server: Server
) -> None:
    """There is no claim to give back."""
    await asyncio.to_thread(own_redis_server.kill)
    source.error = ValueError("broken")
    await _fail(cache, source)  # under a token, as Redis was asked
    assert await cache.invalidate("ada") is False
    await _fail(cache, source)  # without, as it owes an invalidation


async def _fail(cache: Cache[Profile], source: Source) -> None:
    with pytest.raises(ValueError, match="broken"):
        await cache.get_or_load("ada", source.load)


async def test_a_process_that_waits_for_another_one_goes_on_without_redis(
    own_redis_server: Server, patient: Cache[Profile]
) -> None:
    """It loads the value itself."""
    theirs, mine = Source(held=True), Source()
    async with connect_redis(own_redis_server.url, timeout_seconds=2) as other_redis:
        other = Cache(patient.name, Profile, redis=other_redis, timeout_seconds=UNHURRIED_SECONDS)
        first = asyncio.create_task(patient.get_or_load("ada", theirs.load))
        await until(lambda: theirs.started)
        second = asyncio.create_task(other.get_or_load("ada", mine.load))
        await until(lambda: counted(patient).get("wait") == 1)
        await asyncio.to_thread(own_redis_server.kill)
        assert await second == Profile(name="Ada")
        theirs.let_go()
        await first


async def test_callers_who_joined_a_load_with_tags_load_anew_where_redis_dies(
    own_redis_server: Server, patient: Cache[Profile]
) -> None:
    """Whether its tags are valid can't be asked any more."""
    source = Source(held=True)
    reads = [asyncio.create_task(patient.get_or_load("ada", source.load)) for _ in range(5)]
    await until(lambda: counted(patient).get("miss") == 5)
    await asyncio.to_thread(own_redis_server.kill)
    source.let_go()
    assert await asyncio.gather(*reads) == [Profile(name="Ada")] * 5


async def test_a_load_that_is_cancelled_while_it_is_stored_has_given_its_value(
    patient: Cache[Profile], own_redis_server: Server
) -> None:
    """The process stops while Redis is frozen."""
    source = Source(held=True)
    read = asyncio.create_task(patient.get_or_load("ada", source.load))
    await until(lambda: source.started)
    own_redis_server.freeze()
    source.let_go()
    assert await read == Profile(name="Ada")
    await patient._loader.loads._tasks.cancel()
    own_redis_server.resume()
    await patient.get_or_load("ada", source.load)


async def test_a_full_redis_still_gives_what_it_has(
    patient: Cache[Profile], redis: Redis, source: Source
) -> None:
    """A miss is loaded past it, as it takes no claim."""
    cache = Cache(patient.name, Profile, redis=redis, timeout_seconds=UNHURRIED_SECONDS)
    await until(lambda: _is_hit(cache, source))
    await redis.config_set("maxmemory", "1")
    assert await _is_hit(cache, source)
    assert await cache.get_or_load("bea", source.load) == Profile(name="Ada")
    assert counted(cache)["fallback"] == 1
    await redis.config_set("maxmemory", "0")
    await cache.get_or_load("bea", source.load)
    assert counted(cache)["fallback"] == 1


# ── invalidations that Redis does not confirm ────────────────────────────────────────────────────


async def test_an_invalidation_without_redis_is_made_up_for(
    cache: Cache[Profile], source: Source, own_redis_server: Server, redis: Redis
) -> None:
    """This process doesn't read the old value meanwhile, and nobody does once Redis is back and was told."""
    await cache.get_or_load("ada", source.load)
    await until(lambda: _is_hit(cache, source))
    own_redis_server.freeze()
    new = source.change()
    assert not await cache.invalidate("ada")
    own_redis_server.resume()
    assert await cache.get_or_load("ada", source.load) == new
    await until(lambda: "0 owed" in repr(cache._stored.owed))
    async with connect_redis(own_redis_server.url) as other_redis:
        other = Cache(cache.name, Profile, redis=other_redis, timeout_seconds=UNHURRIED_SECONDS)
        assert await other.get_or_load("ada", source.load) == new


async def test_an_invalidation_of_a_tag_without_redis_is_made_up_for(
    source: Source, own_redis_server: Server, redis: Redis
) -> None:
    """As that of a value."""
    cache = Cache(new_name(), Profile, redis=redis, tags=lambda profile: [profile.team])
    await cache.get_or_load("ada", source.load)
    await until(lambda: _is_hit(cache, source))
    own_redis_server.freeze()
    new = source.change()
    assert not await cache.invalidate_tag("red")
    own_redis_server.resume()
    assert await cache.get_or_load("ada", source.load) == new
    await until(lambda: "0 owed" in repr(cache._stored.owed))
    assert await cache.get_or_load("ada", source.load) == new


async def test_an_invalidation_whose_caller_is_cancelled_is_made_up_for(
    cache: Cache[Profile], source: Source, own_redis_server: Server
) -> None:
    """A client that goes away takes no invalidation with it."""
    await cache.get_or_load("ada", source.load)
    await until(lambda: _is_hit(cache, source))
    own_redis_server.freeze()
    new = source.change()
    invalidating = asyncio.create_task(cache.invalidate("ada"))
    await asyncio.sleep(0)
    invalidating.cancel()
    await asyncio.wait({invalidating})
    own_redis_server.resume()
    await until(lambda: "0 owed" in repr(cache._stored.owed))
    await until(lambda: _is_hit(cache, source))
    assert await cache.get_or_load("ada", source.load) == new


async def test_invalidations_are_owed_up_to_a_number(
    cache: Cache[Profile],
    own_redis_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    logs: list[Any],
) -> None:
    """The oldest is given up for another, and the log says so."""
    monkeypatch.setattr(_owed, "MAX_OWED", 2)
    await asyncio.to_thread(own_redis_server.kill)
    for number in range(3):
        assert not await cache.invalidate(number)
    assert [line["key"] for line in logs if line["event"] == "an invalidation is given up"] == [
        f"hk:cache:{cache.name}:0"
    ]
    await asyncio.to_thread(own_redis_server.restart)
    await until(lambda: "0 owed" in repr(cache._stored.owed))


class ProfileChanged(Event, type="profile.changed", version=1, key="profile_id"):
    """The event of the tests."""

    profile_id: str


@pytest.mark.usefixtures("no_jitter")
async def test_an_event_drops_the_value_in_all_processes(
    redis_url: str, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """One of two replicas handles it; both load anew."""
    source = Source()
    async with (
        connect_redis(redis_url, timeout_seconds=UNHURRIED_SECONDS) as mine,
        connect_redis(redis_url, timeout_seconds=UNHURRIED_SECONDS) as theirs,
    ):
        name = new_name()
        caches = [
            Cache(name, Profile, redis=each, timeout_seconds=UNHURRIED_SECONDS) for each in (mine, theirs)
        ]
        consumers = [RobustConsumer(f"tests.{name}") for _ in caches]
        for cache, consumer in zip(caches, consumers, strict=True):
            cache.invalidated_by(ProfileChanged, key="profile_id", consumer=consumer)
        async with (
            consumers[0].running(connection, publisher=publisher),
            consumers[1].running(connection, publisher=publisher),
        ):
            for cache in caches:
                await cache.get_or_load("ada", source.load)
            new = source.change()
            await publisher.publish(ProfileChanged(profile_id="ada"))
            await until(lambda: _all_return(caches, source, new))
        assert source.started == 2


async def _all_return(caches: list[Cache[Profile]], source: Source, wanted: Profile) -> bool:
    return all([await cache.get_or_load("ada", source.load) == wanted for cache in caches])


async def test_an_event_that_comes_without_redis_is_delivered_again(
    own_redis_server: Server,
    cache: Cache[Profile],
    source: Source,
    publisher: RobustPublisher,
    connection: BrokerConnection,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handler fails with a temporary error until Redis has confirmed."""
    monkeypatch.setattr("random.random", lambda: 0.05)  # retries come soon
    consumer = RobustConsumer(f"tests.{new_name()}")
    cache.invalidated_by(ProfileChanged, key=lambda event: event.profile_id, consumer=consumer)
    await cache.get_or_load("ada", source.load)
    await until(lambda: _is_hit(cache, source))
    new = source.change()
    own_redis_server.freeze()
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish(ProfileChanged(profile_id="ada"))
        await until(lambda: _retried(consumer) > 0)
        own_redis_server.resume()
        await until(lambda: "0 owed" in repr(cache._stored.owed))
        assert await cache.get_or_load("ada", source.load) == new


def _retried(consumer: RobustConsumer) -> float:
    return sum(
        sample.value
        for metric in metrics.events_retried.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["consumer"] == consumer.name
    )


# ── any order ────────────────────────────────────────────────────────────────────────────────────


class Clients:
    """Three clients of one cache, and a value that changes; what they do is chosen by chance.

    Attributes:
        least: the version that a reader has to get at least, if it begins now.
    """

    def __init__(self, clients: list[Redis], chance: random.Random) -> None:
        name = new_name()
        self.least = 1
        self.reads: list[asyncio.Task[None]] = []
        self._redis = clients[0]
        self._key = f"hk:cache:{name}:ada"
        self._chance = chance
        self._version = 1
        self._held: list[asyncio.Future[None]] = []
        self._caches = [
            Cache(name, Profile, redis=each, timeout_seconds=UNHURRIED_SECONDS, tags=lambda _: ["all"])
            for each in clients
        ]
        self.actions = {
            self.begin_to_read: 40,
            self.let_a_load_go: 25,
            self.invalidate: 8,
            self.invalidate_tag: 8,
            self.flush: 2,
            self.lapse: 6,
            self.cancel: 4,
        }

    async def begin_to_read(self) -> None:
        self.reads.append(asyncio.create_task(self._read(self._chance.choice(self._caches), self.least)))

    async def _read(self, cache: Cache[Profile], least: int) -> None:
        value = await cache.get_or_load("ada", self._load)
        assert value.version >= least

    async def _load(self) -> Profile:
        version = self._version
        self._held.append(asyncio.get_running_loop().create_future())
        await self._held[-1]
        return Profile(name="Ada", version=version)

    async def let_a_load_go(self) -> None:
        if self._held:
            held = self._held.pop(self._chance.randrange(len(self._held)))
            if not held.done():
                held.set_result(None)

    async def invalidate(self) -> None:
        self._version += 1
        await self._chance.choice(self._caches).invalidate("ada")
        self.least = self._version

    async def invalidate_tag(self) -> None:
        self._version += 1
        await self._chance.choice(self._caches).invalidate_tag("all")
        self.least = self._version

    async def flush(self) -> None:
        await self._redis.flushdb()

    async def lapse(self) -> None:
        if await self._redis.exists(self._key):
            await self._redis.hset(self._key, self._chance.choice(["fresh", "until"]), "0")

    async def cancel(self) -> None:
        if self.reads:
            self._chance.choice(self.reads).cancel()

    async def finish(self) -> list[BaseException]:
        reading = asyncio.gather(*self.reads, return_exceptions=True)
        while not reading.done():
            await self.let_a_load_go()
            await asyncio.sleep(0.001)
        return [error for error in await reading if isinstance(error, Exception)]


@pytest.mark.parametrize("seed", range(20))
async def test_no_order_of_events_returns_a_value_from_before_an_invalidation(
    redis_url: str, seed: int
) -> None:
    """Reads, loads, invalidations, flushes, lapses and cancellations of three clients, at random."""
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        clients = Clients(
            [
                await stack.enter_async_context(connect_redis(redis_url, timeout_seconds=UNHURRIED_SECONDS))
                for _ in range(3)
            ],
            chance,
        )
        for _ in range(150):
            [action] = chance.choices(list(clients.actions), weights=list(clients.actions.values()))
            await action()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        assert await clients.finish() == []
