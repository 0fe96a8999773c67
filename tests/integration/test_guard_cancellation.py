"""A claim whose task is cancelled at any of its awaits, on a real Redis."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from hybridkit.coordination import Redis, connect_redis
from hybridkit.idempotency import IdempotencyGuard

pytestmark = pytest.mark.real_server


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=5) as redis:
        yield redis


class CancelledAt:
    """Cancels the task that awaits it when it is resumed for the nth time.

    Args:
        step: the number of the resumption, from 1.
    """

    def __init__(self, step: int) -> None:
        self.has_struck = False
        self._left = step

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        await _Stepped(work, self)

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.has_struck = True
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


class _Stepped:
    def __init__(self, work: Coroutine[Any, Any, None], at: CancelledAt) -> None:
        self._work = work
        self._at = at

    def __await__(self) -> Any:
        """Drive the coroutine, and count each time it goes on."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            self._at.step()
            try:
                waited = self._work.send(answer) if error is None else self._work.throw(error)
            except StopIteration:
                return
            answer = error = None
            try:
                answer = yield waited
            except BaseException as thrown:  # noqa: BLE001 - the coroutine gets it
                error = thrown


async def test_a_claim_cancelled_at_any_await_is_done_or_free(redis: Redis) -> None:
    """Either the work is recorded as done, or the next caller gets the key at once: nothing is left to a lease."""
    guard = IdempotencyGuard(redis, lease_seconds=600)
    step = 0
    while True:
        step += 1
        key = f"orders:order:{step}"
        effects: list[str] = []

        async def pay(key: str = key, effects: list[str] = effects) -> None:
            async with guard.claim(key, None, wait_seconds=5) as claim:
                if claim.done:
                    return
                await redis.ping()  # pyright: ignore[reportUnknownMemberType]  # untyped kwargs
                effects.append("paid")
                claim.set_result("paid")

        at = CancelledAt(step)
        task = asyncio.create_task(at.run(pay()))
        await asyncio.wait({task})
        await pay()
        assert len(effects) == 1 or task.cancelled(), (
            f"step {step}"
        )  # a block that was cancelled is run again
        assert effects
        async with guard.claim(key, None) as claim:
            assert claim.done
            assert claim.result == "paid"
        if not at.has_struck:
            break
    assert step > 3, "each of begin, work and finish has to wait"
