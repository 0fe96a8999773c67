"""A fail-over under writers: what is written, what is done to the servers, and what has to hold."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from hybridkit.coordination._connection import multiplexer_of
from hybridkit.errors import UnavailableError
from hybridkit.idempotency import Completed, IdempotencyGuard, RedisDown
from tests.helpers._waiting import until
from tests.helpers.redis_writers import Lateness, Writer, writing

TIMEOUT_SECONDS = 0.25
RECOVERY_SECONDS = 3.0
WARM_UP = 25
"""The writes that each writer has confirmed before the fault and after it."""


class Failover:
    """One fail-over, and the figures about it.

    Args:
        client: of `connect_redis`, with `TIMEOUT_SECONDS`.
        name: the beginning of its keys, and its name in the figures.
        tag: a hash tag in its keys, on a cluster.
    """

    def __init__(self, client: Any, *, name: str, tag: str = "") -> None:
        self.name = name
        self.recovery_seconds = 0.0
        self.writers: list[Writer] = []
        self.lost: dict[str, list[int]] = {}
        self.late_seconds = 0.0
        self._client = client
        self._tag = tag

    async def run(self, fault: Callable[[], object], *, until_announced: Callable[[], object] | None) -> None:
        """Write, do the harm, wait until the servers have a new master and the writers have found it.

        Args:
            fault: harms the servers; it blocks.
            until_announced: blocks until a new master is known to the servers; None where there can't be one.
        """
        client, shared = self._client, multiplexer_of(self._client)
        lateness = Lateness()
        watching = asyncio.create_task(lateness.watch())
        loop = asyncio.get_running_loop()
        async with writing(
            shared=lambda key, number: shared.execute("SET", self._key(key), number),
            client=lambda key, number: client.set(self._key(key), number),
            pipeline=lambda key, number: _in_pipeline(client, self._key(key), number),
        ) as writers:
            self.writers = list(writers.values())
            await until(lambda: all(len(writer.acknowledged) >= WARM_UP for writer in self.writers))
            await asyncio.to_thread(fault)
            if until_announced is None:
                await until(lambda: all(sum(writer.errors.values()) >= WARM_UP for writer in self.writers))
            else:
                await asyncio.to_thread(until_announced)
                since = loop.time()
                await until(lambda: all(writer.confirmed_at > since for writer in self.writers))
                self.recovery_seconds = loop.time() - since
                before = {writer.prefix: len(writer.acknowledged) for writer in self.writers}
                await until(
                    lambda: all(
                        len(writer.acknowledged) >= before[writer.prefix] + WARM_UP for writer in self.writers
                    )
                )
        watching.cancel()
        self.late_seconds = lateness.seconds

    async def count_lost(self) -> None:
        """Read every confirmed write again."""
        self.lost = {
            writer.prefix: await writer.lost(lambda key: self._client.get(self._key(key)))
            for writer in self.writers
        }

    async def check(self, *, recovers: bool = True) -> None:
        """Assert the promises: nothing confirmed is lost, no call is over its deadline, and work goes on."""
        margin = 0.25 + 3 * self.late_seconds
        for writer in self.writers:
            timeouts = 2 if writer.prefix == "shared" else 6
            assert writer.longest_call < timeouts * TIMEOUT_SECONDS + margin, self.told()
        if recovers:
            assert self.recovery_seconds < RECOVERY_SECONDS + margin, self.told()
            await self.count_lost()
            assert not any(self.lost.values()), self.told()
            await claim_once(self._client, f"fail:over:{re.sub(r'[^a-z]+', '_', self.name)}")

    def told(self) -> str:
        head = (
            f"{self.name}: recovered {self.recovery_seconds:.2f} s after the new master was known,"
            f" lost {sum(map(len, self.lost.values()))}, event loop late by {self.late_seconds:.2f} s at most"
        )
        return "\n  ".join([head, *(writer.told() for writer in self.writers)])

    def _key(self, key: str) -> str:
        return f"{self._tag}{self.name}:{key}"


async def _in_pipeline(client: Any, key: str, number: int) -> None:
    async with client.pipeline() as pipeline:
        pipeline.set(key, number)
        pipeline.expire(key, 3600)
        await pipeline.execute()


async def claim_once(client: Any, key: str) -> None:
    """Claim a key, finish, and find the outcome kept."""
    guard = IdempotencyGuard(client, when_down=RedisDown.EXTERNAL)

    async def has_claimed() -> bool:
        try:
            async with guard.claim(key, 1) as claim:
                claim.set_result("done")
        except UnavailableError:  # the slot of this key may belong to an owner that is being replaced
            return False
        return True

    await until(has_claimed)
    assert await guard.begin(key, 1) == Completed(b'"done"')
