"""Liveness and readiness: what the probes say, how long they may take, and how often they are asked."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.lifespan import Health, Probe


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Dependency:
    """A probe that answers what it is told to, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0

    async def probe(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error


def health_with(**probes: Probe) -> Health:
    health = Health(cache_seconds=0.0, timeout_seconds=0.05)
    for name, probe in probes.items():
        health.add(name, probe)
    health.started()
    return health


def hangs(*, ignores: asyncio.Event | None = None) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if ignores:
                await ignores.wait()

    return probe


async def test_it_is_ready_when_every_dependency_answers() -> None:
    """Each of them is listed as up."""
    readiness = await health_with(redis=Dependency().probe, rabbitmq=Dependency().probe).readiness()
    assert readiness.is_ready
    assert readiness.status_code == 200
    body = readiness.to_dict()
    assert body["status"] == "ready"
    assert {name: state["status"] for name, state in body["dependencies"].items()} == {
        "redis": "up",
        "rabbitmq": "up",
    }


async def test_it_is_ready_without_any_dependency() -> None:
    """Once it has started, nothing can keep it from work."""
    assert (await health_with().readiness()).to_dict() == {"status": "ready", "dependencies": {}}


async def test_one_dependency_that_is_down_makes_it_not_ready() -> None:
    """The others are still told, and the error says why."""
    down = Dependency(UnavailableError("nobody there"))
    readiness = await health_with(redis=Dependency().probe, rabbitmq=down.probe).readiness()
    assert (readiness.status, readiness.status_code) == ("not_ready", 503)
    assert readiness.dependencies["redis"].up
    assert readiness.to_dict()["dependencies"]["rabbitmq"]["detail"] == "UnavailableError: nobody there"


async def test_the_words_of_foreign_errors_stay_inside() -> None:
    """They may quote a URL with its password."""
    readiness = await health_with(db=Dependency(OSError("postgres://user:s3cret@db")).probe).readiness()
    assert readiness.dependencies["db"].detail == "OSError"


async def test_a_long_detail_is_cut() -> None:
    """It has at most 200 characters."""
    readiness = await health_with(db=Dependency(UnavailableError("x" * 10_000)).probe).readiness()
    assert len(str(readiness.dependencies["db"].detail)) == 200


async def test_until_the_start_is_complete_it_is_not_ready() -> None:
    """Its status says that it is starting."""
    health = Health()
    assert (await health.readiness()).status == "starting"
    health.started()
    assert (await health.readiness()).is_ready


async def test_from_the_stop_on_it_is_not_ready_whatever_the_probes_say() -> None:
    """No new work is sent to a process that ends."""
    health = health_with(redis=Dependency().probe)
    health.drain()
    readiness = await health.readiness()
    assert (readiness.status, readiness.status_code) == ("draining", 503)
    assert readiness.dependencies["redis"].up


async def test_a_probe_that_hangs_counts_as_down_after_its_time() -> None:
    """It delays neither the answer nor the other probes."""
    since = time.monotonic()
    readiness = await health_with(redis=hangs(), rabbitmq=hangs(), db=Dependency().probe).readiness()
    assert time.monotonic() - since < 10
    assert readiness.dependencies["redis"].detail == "no answer within 0.05 s"
    assert readiness.dependencies["db"].up


async def test_a_probe_that_can_not_even_be_cancelled_is_not_started_again() -> None:
    """It would leave one more task behind with each request."""
    end = asyncio.Event()
    health = health_with(redis=hangs(ignores=end))
    await health.readiness()
    assert (await health.readiness()).dependencies["redis"].detail == "an earlier probe still hangs"
    hanging = health._hanging["redis"]
    end.set()
    await asyncio.wait({hanging})
    assert (await health.readiness()).dependencies["redis"].detail == "no answer within 0.05 s"


async def test_a_probe_that_was_cancelled_by_itself_is_down() -> None:
    """Its cancellation doesn't reach the one who asks."""

    async def probe() -> None:
        raise asyncio.CancelledError

    assert (await health_with(redis=probe).readiness()).dependencies[
        "redis"
    ].detail == "the probe was cancelled"


async def test_an_answer_is_given_again_while_it_is_fresh() -> None:
    """Many requests do not load the dependencies."""
    clock, redis = Clock(), Dependency()
    health = Health(clock=clock)
    health.add("redis", redis.probe)
    for _ in range(5):
        await health.readiness()
    assert redis.asked == 1
    clock.now += 1.0
    await health.readiness()
    assert redis.asked == 2


async def test_many_askers_share_one_round() -> None:
    """The dependency is probed once for all that ask at the same time."""
    redis = Dependency()
    health = health_with(redis=redis.probe)
    await asyncio.gather(*(health.readiness() for _ in range(20)))
    assert redis.asked == 1


async def test_an_asker_that_goes_away_does_not_take_the_answer_from_the_others() -> None:
    """The round goes on without it."""
    health = health_with(redis=Dependency().probe)
    askers = [asyncio.create_task(health.readiness()) for _ in range(2)]
    await asyncio.sleep(0)
    askers[0].cancel()
    assert (await askers[1]).is_ready


async def test_a_new_probe_is_asked_at_once() -> None:
    """A fresh answer doesn't hold for it."""
    health = Health()
    health.started()
    assert (await health.readiness()).is_ready
    health.add("redis", Dependency(UnavailableError("down")).probe)
    assert not (await health.readiness()).is_ready


async def test_a_removed_dependency_does_not_count_any_more() -> None:
    """An unknown name is ignored."""
    health = health_with(redis=Dependency(UnavailableError("down")).probe)
    assert not (await health.readiness()).is_ready
    health.remove("redis")
    health.remove("unknown")
    assert (await health.readiness()).is_ready


async def test_a_dependency_removed_while_it_is_asked_does_not_come_back() -> None:
    """The result of its probe is dropped."""
    health = health_with()

    async def probe() -> None:
        health.remove("redis")

    health.add("redis", probe)
    assert (await health.readiness()).dependencies == {}


def test_a_name_is_taken_once() -> None:
    """A second probe would hide the first."""
    health = health_with(redis=Dependency().probe)
    with pytest.raises(DeclarationError, match="redis"):
        health.add("redis", Dependency().probe)


async def test_only_changes_are_logged(logs: list[MutableMapping[str, Any]]) -> None:
    """A dependency that stays down is logged once."""
    redis = Dependency()
    health = health_with(redis=redis.probe)
    for error in (None, UnavailableError("down"), UnavailableError("down"), None, None):
        redis.error = error
        await health.readiness()
    assert [line["event"] for line in logs] == ["dependency is down", "dependency is up again"]


def test_its_repr_tells_status_and_probes() -> None:
    """A debugger shows both without asking the probes."""
    assert repr(health_with(redis=Dependency().probe)) == "Health(ready, probes=['redis'])"


async def test_a_probe_can_remark_something_of_what_is_up() -> None:
    """That calls are held back, for example: nothing that another process could do better."""
    health = Health()

    async def probe() -> str:
        return "breaker: open"

    health.add("users", probe)
    health.started()
    readiness = await health.readiness()
    assert readiness.is_ready
    assert readiness.to_dict()["dependencies"]["users"]["detail"] == "breaker: open"
