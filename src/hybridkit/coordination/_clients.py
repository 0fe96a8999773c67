"""The clients of redis-py that users get: each call has a deadline as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast, override

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import Pipeline, PubSub
from redis.asyncio.cluster import ClusterPipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit.coordination._failover import is_write_to_lost_connection
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


class ClusterClient(SharedClient):
    """A client of a cluster with the commands of one of a server; each goes to the owner of its key's slot.

    Commands about several keys need keys with the same hash tag. What concerns the nodes (scanning all of them, reading
    over several slots) is asked of `redis_cluster`, redis-py's own client. Pipelines are no transactions unless asked
    for: redis-py's transactions on a cluster start a thread for each command.

    Attributes:
        redis_cluster: the client of redis-py that sends the commands, without the deadline over each call.
        free: lets as many calls pass as each node may have connections; redis-py would refuse the others.
    """

    redis_cluster: RedisCluster
    free: asyncio.Semaphore

    async def initialize_cluster(self) -> None:
        """Ask for the table of slots, unless redis-py has it."""
        await within(self.call_seconds, _reachable(self.redis_cluster.initialize()))

    @override
    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await within(self.call_seconds, self._when_free(*args, **options))

    async def _when_free(self, *args: Any, **options: Any) -> Any:
        async with self.free:
            return await _reachable(cast("Any", self.redis_cluster).execute_command(*args, **options))

    @override
    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> Pipeline:
        make: Any = _BoundedClusterPipeline
        pipeline = make(self.redis_cluster, transaction)
        pipeline.client, pipeline.is_transaction = self, transaction
        return cast("Pipeline", pipeline)  # the same commands

    @override
    def pubsub(self, **options: Any) -> PubSub:
        return cast("PubSub", cast("Any", self.redis_cluster).pubsub(**options))

    @override
    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.redis_cluster.aclose()
        await super().aclose(close_connection_pool)


class _BoundedClusterPipeline(ClusterPipeline):
    client: ClusterClient
    is_transaction: bool

    @override
    async def initialize(self) -> ClusterPipeline:
        if self.is_transaction:  # its commands look for their slots as they are added
            await self.client.initialize_cluster()
        return self

    @override
    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        async def when_free() -> list[Any]:
            async with self.client.free:
                return await _reachable(ClusterPipeline.execute(self, raise_on_error, allow_redirections))

        return await within(self.client.call_seconds, when_free())


async def _reachable[T](call: Awaitable[T]) -> T:
    """Await a call; a cluster that can't be reached is an error of a connection, as with one server."""
    try:
        return await call
    except RedisClusterException as error:
        if isinstance(error, SlotNotCoveredError) or "cannot be connected" in str(error):
            raise RedisConnectionError(str(error)) from error
        raise
    except TypeError as error:
        if not is_write_to_lost_connection(error):
            raise
        raise RedisConnectionError("the connection was lost before the command was written") from error
