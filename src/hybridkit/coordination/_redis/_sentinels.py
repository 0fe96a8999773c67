"""The sentinels: they are asked for the master with each new connection, once a second, and tell of a fail-over.

```
a replica is about to be promoted ─► hold: connections are dropped, and none is made before there is a new master
+switch-master, or an answer       ─► the master is another one: connections are dropped and made anew
```

The hold is what loses nothing: an old master that is healthy goes on to confirm writes until it is told, up to a second
after the promotion, and none of them outlives its change into a replica.

https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#pubsub-messages
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError

from hybridkit.observability import get_logger

_log = get_logger("hybridkit.coordination")

ASK_EVERY_SECONDS: Final = 1.0
"""The pause between two questions to a sentinel: its messages may be lost."""

ASK_HELD_EVERY_SECONDS: Final = 0.1
"""The same pause during a fail-over, which ends with an answer."""

HOLD_SECONDS: Final = 3.0
"""The longest hold: a promotion that takes longer has failed, or its end was not heard of."""

_CHANNELS: Final = ("+switch-master", "+failover-state-send-slaveof-noone", "-failover-abort-slave-timeout")


class _Master(NamedTuple):
    epoch: int
    address: tuple[str, int]


class Sentinels:
    """The look-up of a master, and watchers that run from the first look-up to `close`.

    A sentinel that has not heard of a fail-over still names the old master, so an answer counts by its configuration
    epoch: an older one than is known is believed only when every sentinel has been asked and none has a newer.

    Args:
        make_clients: make a client of redis-py for one sentinel each.
        master: the name under which the sentinels know the master.
        timeout_seconds: the time for one question to a sentinel, connecting included.
    """

    def __init__(
        self, make_clients: Sequence[Callable[[], Redis]], *, master: str, timeout_seconds: float
    ) -> None:
        self.master = master
        self._make_clients = make_clients
        self._timeout_seconds = timeout_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: list[Redis] = []
        self._known: _Master | None = None
        self._held_until = 0.0
        self._released = asyncio.Event()
        self._listeners: list[Callable[[str], object]] = []
        self._asking: asyncio.Task[_Master] | None = None
        self._watching: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"Sentinels({self.master!r}, known={self._known})"

    def on_change(self, listener: Callable[[str], object]) -> None:
        """Call a function with the reason whenever connections to the present master have to be dropped."""
        self._listeners.append(listener)

    async def address(self) -> tuple[str, int]:
        """Return the host and the port of the master, asked anew; several callers at once share one question.

        Raises:
            MasterNotFoundError: no sentinel answers, or none knows the master.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._asking, self._held_until, self._released = loop, None, 0.0, asyncio.Event()
            self._clients = [make() for make in self._make_clients]
            self._watching = [
                loop.create_task(self._watch(client), name=f"hybridkit sentinel of {self.master}")
                for client in self._clients
            ]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._held_until):
                await self._released.wait()
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask_all(), name=f"hybridkit master {self.master}")
        return (await asyncio.shield(self._asking)).address

    async def close(self) -> None:
        """End the watchers, and close the connections to the sentinels."""
        loop, self._loop = self._loop, None
        if loop is not asyncio.get_running_loop():
            return
        tasks = [*self._watching, *([self._asking] if self._asking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for client in self._clients:
            await client.aclose()

    async def _ask_all(self) -> _Master:
        questions = [asyncio.create_task(self._ask(client)) for client in self._clients]
        best: _Master | None = None
        reason = ""
        try:
            for question in asyncio.as_completed(questions):
                try:
                    answer = await question
                except (RedisError, OSError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    continue
                best = max(best or answer, answer, key=lambda each: each.epoch)
                if self._is_news(best):
                    break
        finally:
            for question in questions:
                question.cancel()
        if best is None:
            raise MasterNotFoundError(f"no sentinel names the master {self.master!r}: {reason}")
        self._learn(best)
        return best

    async def _ask(self, client: Redis) -> _Master:
        pipeline: Any = client.pipeline(transaction=False)
        # During a fail-over the first one names the new master sooner; only the second one has the epoch.
        pipeline.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.master)
        pipeline.execute_command("SENTINEL MASTER", self.master)
        async with asyncio.timeout(self._timeout_seconds):
            address, state = await pipeline.execute()
        return _Master(int(state["config-epoch"]), (str(address[0]), int(address[1])))

    def _is_news(self, answer: _Master) -> bool:
        return self._known is None or answer.epoch >= self._known.epoch

    def _learn(self, master: _Master) -> None:
        before, self._known = self._known, master
        if before is None or before.address == master.address:
            return
        host, port = master.address
        _log.warning("the sentinels name another master", service=self.master, host=host, port=port)
        self._release()
        self._tell("the sentinels name another master")

    def _hold(self) -> None:
        self._released.clear()
        self._held_until = asyncio.get_running_loop().time() + HOLD_SECONDS
        _log.warning("a replica becomes the master: writes wait", service=self.master)
        self._tell("a replica becomes the master")

    def _release(self) -> None:
        self._held_until = 0.0
        self._released.set()

    def _tell(self, reason: str) -> None:
        for listener in self._listeners:
            listener(reason)

    async def _watch(self, client: Redis) -> None:
        while True:
            try:
                await self._follow(client)
            except (RedisError, OSError) as error:
                _log.debug("a sentinel does not answer", service=self.master, reason=str(error))
            await asyncio.sleep(ASK_EVERY_SECONDS)

    async def _follow(self, client: Redis) -> None:
        """Listen to one sentinel, and ask it once a second, until it fails."""
        untyped: Any = client
        async with untyped.pubsub(ignore_subscribe_messages=True) as messages:
            async with asyncio.timeout(self._timeout_seconds):
                await messages.subscribe(*_CHANNELS)
            while True:
                answer = await self._ask(client)
                if self._is_news(answer):
                    self._learn(answer)
                is_held = asyncio.get_running_loop().time() < self._held_until
                message = await messages.get_message(
                    timeout=ASK_HELD_EVERY_SECONDS if is_held else ASK_EVERY_SECONDS
                )
                if message:
                    self._hear(message["channel"], message["data"].split(" "))

    def _hear(self, channel: str, words: Sequence[str]) -> None:
        match channel, words:
            case "+switch-master", [self.master, _, _, host, port] if self._known:
                # It belongs to a later epoch than the one that is known.
                self._learn(_Master(self._known.epoch + 1, (host, int(port))))
            case "+failover-state-send-slaveof-noone", ["slave", _, _, _, "@", self.master, *_]:
                self._hold()
            case "-failover-abort-slave-timeout", ["master", self.master, *_]:
                self._release()
            case _:
                pass


class _OfSentinels(AbstractConnection):
    """A connection that asks the sentinels for its address whenever it connects, also again after an error."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]  # untyped in redis-py
        self._sentinels = sentinels

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.address()
        await super()._connect()  # type: ignore[safe-super, no-untyped-call]


def by_sentinels(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Make a subclass of a connection that takes `sentinels=` and finds its address by them."""
    return type("SentinelConnection", (_OfSentinels, connection_class), {})
