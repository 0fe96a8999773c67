"""A source whose loads the test controls, and what a cache has counted."""

import asyncio
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from hybridkit.coordination import Cache, Redis

UNHURRIED_SECONDS = 30.0
"""A cache that waits this long for Redis loads past it only where Redis is down, not where the machine is busy."""


class Profile(BaseModel):
    """What the tests cache."""

    name: str
    version: int = 1
    team: str = "red"


class Source:
    """Where values come from: `load` returns the present one, each time it is let go."""

    def __init__(self, *, held: bool = False) -> None:
        self.value: Profile | None = Profile(name="Ada")
        self.started = 0
        self.finished = 0
        self.error: Exception | None = None
        self._gate = asyncio.Event()
        if not held:
            self._gate.set()

    async def load(self) -> Profile | None:
        self.started += 1
        value = self.value  # read now: a load that is held has read before what happens meanwhile
        await self._gate.wait()
        self.finished += 1
        if self.error is not None:
            raise self.error
        return value

    def let_go(self) -> None:
        self._gate.set()

    def hold(self) -> None:
        self._gate = asyncio.Event()

    def change(self) -> Profile:
        """Change the value, as a write to a data service does."""
        self.value = Profile(name="Ada", version=1 if self.value is None else self.value.version + 1)
        return self.value


def counted(cache: Cache[Profile]) -> dict[str, int]:
    """Return what the cache has counted so far; of its own counters only, as looking at all of them takes long."""
    counters: dict[str, Any] = {name: inc.__self__ for name, inc in vars(cache)["_count"].items()}
    return {name: int(counter._value.get()) for name, counter in counters.items() if counter._value.get()}


def new_name() -> str:
    """Return a name that no other test uses: counters outlive a test."""
    return f"profiles_{uuid4().hex[:8]}"


async def make_stale(redis: Redis, cache: Cache[Profile], id: str) -> None:
    """End the time for which a value is fresh."""
    assert await redis.hset(f"hk:cache:{cache.name}:{id}", "fresh", "0") == 0


async def end_claim(redis: Redis, cache: Cache[Profile], id: str) -> None:
    """End the time for which a loader may have its claim without renewing it."""
    assert await redis.hset(f"hk:cache:{cache.name}:{id}", "until", "0") == 0
