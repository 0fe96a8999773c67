"""What the parts of the Redis toolkit cost their caller, beside the plain commands of redis-py that do the same work.

Both sides ask one Redis on this machine and take turns on one event loop (uvloop, which our processes run on). What
counts is `time.process_time` of this process per operation, the median of many rounds. redis-py is as it comes, with
its pool; ours has the client of `connect_redis`.

Each part is a function that opens what both sides need and yields its comparisons; `PARTS` has them all.
"""

import argparse
import asyncio
import itertools
import secrets
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import uvloop
from pydantic import BaseModel, TypeAdapter
from redis.asyncio import Redis

from benchmarks._report import Result, show
from hybridkit.coordination import Cache, Lock, Rate, RateLimiter, connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._rate_limiter import CHECK
from hybridkit.dev import LocalServers
from hybridkit.ids import new_id

ROUNDS: Final = 15
IN_FLIGHT: Final = 100
TURNS: Final = 10
"""The operations that each of those in flight does in a round."""
GOAL: Final = 3.0

type Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One operation of ours and what does the same on redis-py.

    Attributes:
        name: what is measured.
        ours: our operation.
        peer: the peer's.
        peer_name: the peer's commands.
        in_flight: how many run at the same time.
        goal: the ratio to reach at least.
    """

    name: str
    ours: Operation
    peer: Operation
    peer_name: str
    in_flight: int = IN_FLIGHT
    goal: float = GOAL


# ── the parts ────────────────────────────────────────────────────────────────────────────────────


def plain_redis(url: str) -> Redis:
    """Return redis-py's client as it comes."""
    return Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]  # untyped kwargs


@asynccontextmanager
async def commands(url: str) -> AsyncGenerator[Sequence[Comparison]]:
    """Compare one plain command over the shared connection: the floor of all other parts."""
    async with connect_redis(url) as redis, plain_redis(url) as plain:
        multiplexer = multiplexer_of(redis)
        await plain.set("benchmark", b"value")

        async def ours() -> object:
            return await multiplexer.execute("GET", "benchmark")

        async def peer() -> object:
            return await plain.get("benchmark")

        yield [Comparison(name="GET, 100 in flight", ours=ours, peer=peer, peer_name="redis-py GET")]


@asynccontextmanager
async def limits(url: str) -> AsyncGenerator[Sequence[Comparison]]:
    """Compare a check with running a script like ours by its digest, which an own limiter would do at the least."""
    async with connect_redis(url) as redis, plain_redis(url) as plain:
        limiter = RateLimiter("benchmark", Rate.parse("10000/s", burst=100_000), redis=redis)
        script: Any = plain.register_script(CHECK.text)
        await script(keys=["benchmark:limit"], args=[1, 100, 10_000_000])

        async def ours() -> object:
            return await limiter.check("anna")

        async def peer() -> object:
            return await plain.evalsha(script.sha, 1, "benchmark:limit", 1, 100, 10_000_000)

        yield [
            Comparison(name="rate limit, 100 in flight", ours=ours, peer=peer, peer_name="redis-py EVALSHA")
        ]


@asynccontextmanager
async def locks(url: str) -> AsyncGenerator[Sequence[Comparison]]:
    """Compare acquiring and releasing a free lock with `SET NX PX` and a script that compares and deletes."""
    compare_and_delete = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"
    numbers = itertools.count()
    async with connect_redis(url) as redis, plain_redis(url) as plain:
        script: Any = plain.register_script(compare_and_delete)
        await script(keys=["benchmark:lock"], args=["token"])

        async def ours() -> object:
            async with Lock(f"benchmark:lock:{next(numbers) % 1_000}", redis=redis, wait_seconds=0) as held:
                return held.fence

        async def peer() -> object:
            key, token = f"benchmark:lock:{next(numbers) % 1_000}:plain", secrets.token_hex(12)
            await plain.set(key, token, nx=True, px=30_000)
            return await plain.evalsha(script.sha, 1, key, token)

        name = "lock and release, 100 in flight"
        yield [Comparison(name=name, ours=ours, peer=peer, peer_name="redis-py SET NX PX, EVALSHA")]


class User(BaseModel):
    """The value in the cache."""

    id: UUID
    email: str
    display_name: str
    is_active: bool
    version: int


@asynccontextmanager
async def cache(url: str) -> AsyncGenerator[Sequence[Comparison]]:
    """Compare a hit, of one key in a hundred, with a GET whose reply pydantic reads."""
    users = [
        User(id=new_id(), email="user@example.com", display_name="A user", is_active=True, version=number)
        for number in range(IN_FLIGHT)
    ]
    async with connect_redis(url) as redis, plain_redis(url) as plain:
        # A benchmark measures the loaded loop, on which replies may take longer than the default wait.
        ours = Cache("benchmark", User, redis=redis, timeout_seconds=5)
        tagged = Cache("benchmark_tags", User, redis=redis, timeout_seconds=5, tags=lambda _: ["all"])
        adapter = TypeAdapter(User)
        turns = itertools.cycle(users)

        async def load() -> User:
            raise AssertionError("not a hit")

        async def stored(user: User) -> User:
            return user

        for user in users:
            await ours.get_or_load(user.id, partial(stored, user))
            await tagged.get_or_load(user.id, partial(stored, user))
            await plain.set(f"benchmark:{user.id}", user.model_dump_json())

        async def hit() -> User:
            return await ours.get_or_load(next(turns).id, load)

        async def tagged_hit() -> User:
            return await tagged.get_or_load(next(turns).id, load)

        async def peer() -> User:
            body = await plain.get(f"benchmark:{next(turns).id}")
            assert isinstance(body, bytes)
            return adapter.validate_json(body)

        yield [
            Comparison(
                name="cache hit, 100 in flight", ours=hit, peer=peer, peer_name="redis-py GET and pydantic"
            ),
            Comparison(
                name="cache hit, one at a time",
                ours=hit,
                peer=peer,
                peer_name="redis-py GET and pydantic",
                in_flight=1,
                goal=1.0,
            ),
            Comparison(
                name="cache hit with a tag, 100 in flight",
                ours=tagged_hit,
                peer=peer,
                peer_name="redis-py GET and pydantic",
                goal=1.0,
            ),
        ]


PARTS: Final[Mapping[str, Callable[[str], AbstractAsyncContextManager[Sequence[Comparison]]]]] = {
    "commands": commands,
    "limits": limits,
    "locks": locks,
    "cache": cache,
}


# ── the measurement ──────────────────────────────────────────────────────────────────────────────


async def _microseconds(operation: Operation, in_flight: int) -> float:
    """Return the CPU time of this process per operation."""
    turns = TURNS if in_flight > 1 else TURNS * IN_FLIGHT // 4

    async def caller() -> None:
        for _ in range(turns):
            await operation()

    start = time.process_time()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.process_time() - start) / (turns * in_flight) * 1e6


async def compare(comparison: Comparison) -> Result:
    """Measure both sides, turn by turn."""
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(ROUNDS + 1):  # the first one opens connections
        ours.append(await _microseconds(comparison.ours, comparison.in_flight))
        peer.append(await _microseconds(comparison.peer, comparison.in_flight))
    return Result(
        name=comparison.name,
        ours=statistics.median(ours[1:]),
        peer=statistics.median(peer[1:]),
        peer_name=comparison.peer_name,
        unit="us",
        goal=comparison.goal,
    )


async def _measure(url: str, only: str | None, *, as_json: bool) -> None:
    for name, part in PARTS.items():
        if only in (None, name):
            async with part(url) as comparisons:
                for comparison in comparisons:
                    show(await compare(comparison), as_json=as_json)


def main() -> None:
    """Read the command line, start a Redis, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    arguments = parser.parse_args()
    with LocalServers() as servers, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url = servers.start("redis", private=True).url
        runner.run(_measure(url, arguments.only, as_json=arguments.json))


if __name__ == "__main__":
    main()
