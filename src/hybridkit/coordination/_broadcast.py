"""Broadcasts: hints to every process that listens now, such as that a configuration has changed."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from pydantic import TypeAdapter
from redis.asyncio import Redis

from hybridkit._syntax import KEY_PART_SYNTAX
from hybridkit._tasks import is_set_within
from hybridkit.codec import check_size, validate_json
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.errors import DeclarationError, MalformedPayloadError
from hybridkit.observability import get_logger, metrics
from hybridkit.retry import Retry

MAX_MESSAGE_BYTES: Final = 64 * 1024
REPLY_SECONDS: Final = 1.0
"""The time for the reply to a subscription or a ping; a connection that takes longer is given up."""
START_SECONDS: Final = 1.0
"""The time for which the beginning of a subscription waits for Redis, before it goes on without."""

_AGAIN: Final = Retry.exponential(first_seconds=0.01, cap_seconds=1.0, attempts=sys.maxsize)

_log = get_logger("hybridkit.coordination")


class Subscription[T]:
    """The messages of one subscriber, to be iterated over with `async for`.

    Attributes:
        dropped: the messages that were thrown away, the oldest first, because the subscriber was too slow.
        interruptions: how often the connection was lost; messages of the time without one are lost too.
    """

    def __init__(self, name: str, adapter: TypeAdapter[T], *, max_queued: int) -> None:
        self.dropped = 0
        self.interruptions = 0
        self._name = name
        self._adapter = adapter
        self._max_queued = max_queued
        self._queue: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        return (
            f"Subscription({self._name!r}, queued={len(self._queue)}, dropped={self.dropped},"
            f" interruptions={self.interruptions})"
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next message; one that isn't of the type is skipped, with a line in the log."""
        while True:
            while not self._queue:
                if self._is_closed:
                    raise StopAsyncIteration
                self._changed.clear()
                await self._changed.wait()
            try:
                return validate_json(self._adapter, self._queue.popleft(), what=f"a message of {self._name}")
            except MalformedPayloadError as error:
                metrics.broadcast_messages.labels(self._name, "unreadable").inc()
                _log.warning("a message can't be read", broadcast=self._name, reason=str(error))

    def put(self, body: bytes) -> None:
        """Add a message, in the place of the oldest one where there are too many."""
        if len(self._queue) >= self._max_queued:
            self._queue.popleft()
            self.dropped += 1
            metrics.broadcast_messages.labels(self._name, "dropped").inc()
        self._queue.append(body)
        self._changed.set()

    def close(self) -> None:
        """End the iteration after the messages that are there."""
        self._is_closed = True
        self._changed.set()


class Broadcast[T]:
    """Messages of one type to every subscriber of this moment, in all processes; declared at import.

    These are hints, and no events: a message is lost to whoever is not connected when it is sent, or is too slow to
    take it, and it may come twice after a fault. So it says that something has changed, and who gets it looks at what
    is true now; who may not miss anything reads it from time to time too. Events that must not be lost are published
    to RabbitMQ.

    Args:
        name: the name in the channel and in metrics, unique among the services that share the Redis.
        type_: the type of the messages: a model, or anything else that pydantic reads and writes as JSON.
        redis: a client from `connect_redis`; by default that of the process, see `use_redis`.
        max_queued: the messages that wait for one subscriber; the oldest is dropped for another.
        ping_seconds: the time without a message after which Redis is asked whether the connection is still there; a
            loss that nobody reports is noticed a second after that.

    Raises:
        DeclarationError: the name has other characters than letters, digits, `_`, `.` and `-`, or a number is out of
            its range.
    """

    def __init__(
        self,
        name: str,
        type_: type[T],
        *,
        redis: Redis | None = None,
        max_queued: int = 1000,
        ping_seconds: float = 5.0,
    ) -> None:
        if not KEY_PART_SYNTAX.fullmatch(name):
            raise DeclarationError(
                f"a broadcast's name has up to 100 letters, digits, `_`, `.` and `-`, not {name[:120]!r}"
            )
        if max_queued < 1 or ping_seconds <= 0:
            raise DeclarationError(
                f"broadcast {name}: max_queued is at least 1 and ping_seconds above 0,"
                f" not {max_queued} and {ping_seconds}"
            )
        self.name = name
        self._redis = redis
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)
        self._max_queued = max_queued
        self._ping_seconds = ping_seconds
        self._listener: _Listener[T] | None = None

    def __repr__(self) -> str:
        return f"Broadcast({self.name!r})"

    async def publish(self, message: T) -> None:
        """Send a message to all subscribers of this moment.

        Raises:
            UnavailableError: Redis did not confirm; the message may have been sent.
            PayloadTooLargeError: the message has more than 64 KiB.
        """
        body = self._adapter.dump_json(message, by_alias=True, round_trip=True)
        check_size(body, limit_bytes=MAX_MESSAGE_BYTES)
        await multiplexer_of(self._client()).execute("PUBLISH", self._channel, body)
        metrics.broadcast_messages.labels(self.name, "published").inc()

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[Subscription[T]]:
        """Receive the messages that are sent inside the block.

        The subscribers of a process share one connection, which comes back by itself. The block begins when Redis has
        confirmed the subscription; where it does not within a second, it begins without, and messages come as soon as
        Redis does.
        """
        listener = self._listener
        if listener is None or not listener.is_running:
            listener = self._listener = _Listener(
                self.name, self._channel, self._client(), self._ping_seconds
            )
        subscription = Subscription(self.name, self._adapter, max_queued=self._max_queued)
        listener.add(subscription)
        try:
            await is_set_within(listener.is_subscribed, seconds=START_SECONDS)
            yield subscription
        finally:
            subscription.close()
            await listener.remove(subscription)

    @property
    def _channel(self) -> str:
        return f"hk:broadcast:{self.name}"

    def _client(self) -> Redis:
        return self._redis or redis_of_process(f"broadcast {self.name}")


class _Listener[T]:
    """The connection that all subscribers of a broadcast in one process share."""

    def __init__(self, name: str, channel: str, redis: Redis, ping_seconds: float) -> None:
        self.is_subscribed = asyncio.Event()
        self._name = name
        self._channel = channel
        self._redis: Any = redis
        self._ping_seconds = ping_seconds
        self._subscriptions: list[Subscription[T]] = []
        self._pauses = _AGAIN.pauses()
        self._task = asyncio.create_task(self._run(), name=f"hybridkit broadcast {name}")

    @property
    def is_running(self) -> bool:
        """Whether it belongs to the running event loop, and has not ended."""
        return not self._task.done() and self._task.get_loop() is asyncio.get_running_loop()

    def add(self, subscription: Subscription[T]) -> None:
        """Give messages to one more subscriber."""
        self._subscriptions.append(subscription)

    async def remove(self, subscription: Subscription[T]) -> None:
        """Give a subscriber nothing more, and end with the last one."""
        self._subscriptions.remove(subscription)
        if not self._subscriptions:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever the reason is, the next attempt may find it gone
                reason = f"{type(error).__name__}: {error}"
                if self.is_subscribed.is_set():
                    self.is_subscribed.clear()
                    _log.warning("a subscription is lost", broadcast=self._name, reason=reason)
                    for subscription in self._subscriptions:
                        subscription.interruptions += 1
            await asyncio.sleep(next(self._pauses))

    async def _listen(self) -> None:
        await self._redis.exists(self._channel)  # the first command tells redis-py the nodes of a cluster
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            is_asked = True
            while True:
                message = await pubsub.get_message(timeout=REPLY_SECONDS if is_asked else self._ping_seconds)
                if message is not None:
                    is_asked = False
                    self._take(message["type"], message["data"])
                elif is_asked:
                    raise TimeoutError("no reply to a ping")
                else:
                    await pubsub.ping()
                    is_asked = True

    def _take(self, kind: str, data: Any) -> None:
        if kind == "subscribe":
            if not self.is_subscribed.is_set():
                self.is_subscribed.set()
                self._pauses = _AGAIN.pauses()
            else:  # redis-py has made the connection anew by itself
                for subscription in self._subscriptions:
                    subscription.interruptions += 1
        elif kind == "message":
            body = data.encode() if isinstance(data, str) else data
            metrics.broadcast_messages.labels(self._name, "received").inc()
            for subscription in self._subscriptions:
                subscription.put(body)
