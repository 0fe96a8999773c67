"""The clients of redis-py that users get: each call has a deadline as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast, override

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit.coordination._redis._multiplexer import Multiplexer


async def within[T](seconds: float, call: Awaitable[T]) -> T:
    """Await a call for so long at most.

    Raises:
        RedisTimeoutError: the time is over; the command may have been carried out.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise RedisTimeoutError(f"Redis has not answered within {seconds:g} s") from error


class SharedClient(Redis):
    """A client of redis-py with the shared connection beside its pool.

    Attributes:
        multiplexer: the shared connection.
        call_seconds: the time for one command or pipeline, whatever happens.
        closing: what else is closed with the client.
    """

    multiplexer: Multiplexer
    call_seconds: float
    closing: Callable[[], Awaitable[None]] | None = None

    @override
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        untyped = cast("Any", super())
        return await within(self.call_seconds, untyped.execute_command(*args, **options))

    @override
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _BoundedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.call_seconds = self.call_seconds
        return pipeline

    @override
    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.multiplexer.close()
        if self.closing is not None:
            await self.closing()
        await super().aclose(close_connection_pool)


class _BoundedPipeline(Pipeline):
    call_seconds: float

    @override
    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        untyped = cast("Any", super())
        return await within(self.call_seconds, untyped.immediate_execute_command(*args, **options))

    @override
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        return await within(self.call_seconds, super().execute(raise_on_error))
