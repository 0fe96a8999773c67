"""One update of a chat at a time over the replicas of a bot, on a real Redis."""

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.fsm.storage.base import StorageKey
from aiogram.types import Update

from hybridkit.adapters._telegram import _chat_turns
from hybridkit.adapters._telegram._chat_turns import ChatTurns
from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters.aiogram import ChatIsolation, _started
from hybridkit.coordination import Redis, connect_redis
from hybridkit.dev import Server
from hybridkit.errors import LockLostError, UnavailableError
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.observability import metrics
from tests.helpers import until
from tests.helpers.bots import QUICK

pytestmark = pytest.mark.real_server

BOT = 4242
CHAT = 7
KEY = f"hk:bot:{BOT}:chat:{CHAT}"


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield redis


@pytest.fixture
async def replicas(redis_url: str) -> AsyncGenerator[list[ChatTurns]]:
    """Two replicas, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect_redis(redis_url, timeout_seconds=10)) for _ in "ab"
        ]
        yield [ChatTurns(client) for client in clients]


def text(update_id: int, *, chat: int = CHAT) -> Update:
    """Make an update with a message whose text is the update's id."""
    user = {"id": chat, "is_bot": False, "first_name": "Ada"}
    message = {
        "message_id": update_id,
        "date": 1,
        "chat": {"id": chat, "type": "private"},
        "from": user,
        "text": f"{update_id}",
    }
    return Update.model_validate({"update_id": update_id, "message": message})


class Replica:
    """One process of a bot, as far as it handles updates.

    Attributes:
        seen: what the handlers of all replicas have begun.
    """

    def __init__(self, redis: Redis, seen: list[int], *, lease_seconds: float = 10.0) -> None:
        self.dispatcher = Dispatcher()
        self.bot = Bot(f"{BOT}:token")
        self.seen = seen
        self.redis = redis
        guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
        turns = ChatTurns(redis, lease_seconds=lease_seconds)
        self.runner = UpdateRunner(self.dispatcher, self.bot, guard, turns, failure_texts={}, retry=QUICK)

    async def handle(self, update: Update) -> bool:
        return await self.runner.run(update, asyncio.Event())


@pytest.fixture
async def bots(redis_url: str) -> AsyncGenerator[list[Replica]]:
    """Two replicas of a bot, that tell one list what they do."""
    seen: list[int] = []
    async with AsyncExitStack() as stack:
        made: list[Replica] = []
        for _ in "ab":
            redis = await stack.enter_async_context(connect_redis(redis_url, timeout_seconds=10))
            made.append(Replica(redis, seen))
            await stack.enter_async_context(_started(made[-1].dispatcher, made[-1].bot, redis, {}))
        yield made


async def waiting(redis: Any) -> int:
    """Return how many wait for the chat."""
    return sum(name.startswith("w:") for name in await redis.hkeys(KEY))


# ── two replicas of a bot ────────────────────────────────────────────────────────────────────────


async def test_two_replicas_handle_the_updates_of_a_chat_in_order(bots: list[Replica], redis: Any) -> None:
    """Twenty that come to both in turn, the newest first, run one at a time, the oldest first."""
    release = asyncio.Event()
    running: list[int] = []

    async def handler(message: Any) -> None:
        number = int(message.text)
        assert not running
        running.append(number)
        bots[0].seen.append(number)
        if number == 0:
            await release.wait()
        await asyncio.sleep(0)
        running.remove(number)

    for each in bots:
        each.dispatcher.message.register(handler)
    handling = [asyncio.create_task(bots[0].handle(text(0)))]
    await until(lambda: running)
    handling += [asyncio.create_task(bots[number % 2].handle(text(number))) for number in range(20, 0, -1)]

    async def all_wait() -> bool:
        return await waiting(redis) == 20

    await until(all_wait)
    before = metrics.bot_chat_wait._sum.get()
    release.set()
    assert all(await asyncio.gather(*handling))
    assert bots[0].seen == list(range(21))
    assert metrics.bot_chat_wait._sum.get() > before
    assert await waiting(redis) == 0


async def test_other_chats_do_not_wait(bots: list[Replica]) -> None:
    """While one chat's handler runs in a replica, the other replica handles another chat."""
    release = asyncio.Event()

    async def handler(message: Any) -> None:
        bots[0].seen.append(int(message.text))
        if message.chat.id == CHAT:
            await release.wait()

    for each in bots:
        each.dispatcher.message.register(handler)
    slow = asyncio.create_task(bots[0].handle(text(1)))
    await until(lambda: bots[0].seen)
    assert await bots[1].handle(text(2, chat=8))
    assert bots[0].seen == [1, 2]
    release.set()
    assert await slow


async def test_the_chat_waits_for_a_retry_too(bots: list[Replica]) -> None:
    """An update that meets something temporary keeps its chat until it is through, also against the other replica."""
    failing, retried = asyncio.Event(), asyncio.Event()

    async def first(message: Any) -> None:
        bots[0].seen.append(int(message.text))
        if not failing.is_set():
            failing.set()
            raise UnavailableError("later")
        retried.set()

    async def second(message: Any) -> None:
        assert retried.is_set()
        bots[0].seen.append(int(message.text))

    bots[0].dispatcher.message.register(first)
    bots[1].dispatcher.message.register(second)
    handling = asyncio.create_task(bots[0].handle(text(1)))
    await failing.wait()
    assert await bots[1].handle(text(2))
    assert await handling
    assert bots[0].seen == [1, 1, 2]


async def test_an_update_that_both_replicas_have_runs_once(bots: list[Replica]) -> None:
    """The second one finds in its turn that it is done."""

    async def handler(message: Any) -> None:
        bots[0].seen.append(int(message.text))

    for each in bots:
        each.dispatcher.message.register(handler)
    assert all(await asyncio.gather(*(each.handle(text(1)) for each in bots for _ in range(5))))
    assert bots[0].seen == [1]


async def test_a_replica_that_loses_its_chat_handles_the_update_again(redis: Any, redis_url: str) -> None:
    """Its handler is cancelled, and runs anew when the other replica is through."""
    seen: list[int] = []
    async with connect_redis(redis_url, timeout_seconds=10) as own:
        replica = Replica(own, seen, lease_seconds=1.0)

        async def handler(message: Any) -> None:
            seen.append(int(message.text))
            if len(seen) == 1:
                await asyncio.Event().wait()

        replica.dispatcher.message.register(handler)
        handling = asyncio.create_task(replica.handle(text(1)))
        await until(lambda: seen)
        # As if it had been frozen for a lease: another one holds the chat, and ends at once.
        await redis.hset(KEY, "token", "another")
        await redis.hset(KEY, "lease_end", 1)
        assert await handling
    assert seen == [1, 1]


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


async def test_who_waits_without_an_id_comes_by_arrival(replicas: list[ChatTurns], redis: Any) -> None:
    """Ten that don't know their update's id run in the order in which they came."""
    order: list[int] = []

    async def work(number: int) -> None:
        async with replicas[number % 2].hold(BOT, CHAT):
            order.append(number)

    async with replicas[0].hold(BOT, CHAT):
        tasks: list[asyncio.Task[None]] = []
        for number in range(10):
            tasks.append(asyncio.create_task(work(number), context=Context()))

            async def waits(count: int = number + 1) -> bool:
                return await waiting(redis) == count

            await until(waits)
    await asyncio.gather(*tasks)
    assert order == list(range(10))


async def test_a_turn_inside_of_the_same_chats_turn_is_had_already(redis: Redis) -> None:
    """Aiogram's isolation does not wait for the adapter's; another chat's is taken."""
    turns, isolation = ChatTurns(redis), ChatIsolation(redis)
    binary: Any = redis
    async with turns.hold(BOT, CHAT) as is_held:
        assert is_held
        async with isolation.lock(StorageKey(BOT, CHAT, 99)):
            assert await binary.exists(KEY)
        async with isolation.lock(StorageKey(BOT, 8, 99)):
            assert await binary.hexists(f"hk:bot:{BOT}:chat:8", "lease_end")
    await isolation.close()


async def test_a_task_that_outlives_its_turn_waits_for_another_one(replicas: list[ChatTurns]) -> None:
    """What a handler has left running does not count as the holder any more."""
    go = asyncio.Event()
    order: list[str] = []

    async def left_behind() -> None:
        await go.wait()
        async with replicas[0].hold(BOT, CHAT):
            order.append("left behind")

    async with replicas[0].hold(BOT, CHAT):
        task = asyncio.create_task(left_behind())
    async with replicas[1].hold(BOT, CHAT):
        go.set()
        await until(go.is_set)
        order.append("holder")
    await task
    assert order == ["holder", "left behind"]


async def test_a_stop_ends_the_waiting(replicas: list[ChatTurns], redis: Any) -> None:
    """Who waits leaves without the turn, and without its place."""
    stopping = asyncio.Event()

    async def wait() -> bool:
        async with replicas[1].hold(BOT, CHAT, update_id=2, stopping=stopping) as is_held:
            return is_held

    async with replicas[0].hold(BOT, CHAT, update_id=1):
        task = asyncio.create_task(wait(), context=Context())  # not a part of the work that holds the turn

        async def waits() -> bool:
            return await waiting(redis) == 1

        await until(waits)
        stopping.set()
        assert await task is False

        async def left() -> bool:
            return await waiting(redis) == 0

        await until(left)


async def test_a_cancelled_one_leaves_the_turn(replicas: list[ChatTurns], redis: Any) -> None:
    """Cancelled while it waits or while it holds, it keeps nobody else waiting."""
    holding = asyncio.Event()

    async def hold(replica: ChatTurns) -> None:
        async with replica.hold(BOT, CHAT):
            holding.set()
            await asyncio.Event().wait()

    async def has_place() -> bool:
        return await waiting(redis) == 1

    holder = asyncio.create_task(hold(replicas[0]))
    await holding.wait()
    waiter = asyncio.create_task(hold(replicas[1]))
    await until(has_place)
    for task in (waiter, holder):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    async with asyncio.timeout(_chat_turns.PLACE_SECONDS), replicas[1].hold(BOT, CHAT):
        pass


async def test_a_dead_waiter_is_waited_for_only_so_long(replicas: list[ChatTurns], redis: Any) -> None:
    """Its place, though first, ends with the time that is stored with it."""
    seconds = (await redis.time())[0]
    await redis.hset(KEY, mapping={"w:dead": f"{seconds * 1000 - 1}:1:1", "w:dead too": "1:1:"})
    async with replicas[0].hold(BOT, CHAT, update_id=2):
        assert await waiting(redis) == 0
    await redis.hset(KEY, "w:alive", f"{(seconds + 600) * 1000}:1:1")
    stopping = asyncio.Event()

    async def try_it() -> bool:
        async with replicas[0].hold(BOT, CHAT, update_id=2, stopping=stopping) as is_held:
            return is_held

    task = asyncio.create_task(try_it())

    async def waits() -> bool:
        return await waiting(redis) == 2

    await until(waits)
    async with replicas[1].hold(BOT, CHAT):  # without an id it does not have to wait for a known one
        pass
    stopping.set()
    assert await task is False


async def test_a_question_that_comes_twice_is_one_turn(redis: Any) -> None:
    """Taken again by the same token it is the same turn; after its end it is nobody's."""
    turns = ChatTurns(redis)
    multiplexer: Any = turns._redis
    arguments = ("token", 1, 10_000, 3000, 70_000)
    assert await multiplexer.run(_chat_turns._TAKE, [KEY], *arguments) == 1
    assert await multiplexer.run(_chat_turns._TAKE, [KEY], *arguments) == 1
    for _ in range(2):
        assert await multiplexer.run(_chat_turns._LEAVE, [KEY], "token") == 1
    assert await multiplexer.run(_chat_turns._TAKE, [KEY], *arguments) == 0
    assert 0 < await redis.pttl(KEY) <= 70_000
    async with turns.hold(BOT, CHAT):
        pass


async def test_a_flushed_redis_gives_the_holder_its_turn_back(redis: Any) -> None:
    """The renewal writes the record again, since nobody else has it."""
    turns = ChatTurns(redis, lease_seconds=0.5)
    async with turns.hold(BOT, CHAT):
        await redis.flushdb()

        async def is_back() -> bool:
            return bool(await redis.hexists(KEY, "lease_end"))

        await until(is_back)


async def test_the_end_of_a_turn_may_be_cancelled_with_its_loop(redis: Redis) -> None:
    """Nobody waits for it, so neither its error nor its cancellation is anybody's; the reprs name the lease."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ended.cancel()
    _chat_turns._look_at(ended)
    assert "30" in repr(ChatIsolation(redis))


# ── what breaks ──────────────────────────────────────────────────────────────────────────────────

HOLDER = """
    import asyncio, sys
    from hybridkit.adapters._telegram._chat_turns import ChatTurns
    from hybridkit.coordination import connect_redis

    async def main():
        async with connect_redis(sys.argv[1], timeout_seconds=10) as redis:
            async with ChatTurns(redis, lease_seconds=float(sys.argv[2])).hold(4242, 7, update_id=1):
                print("held", flush=True)
                await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_a_killed_replicas_chat_is_taken_over_after_the_lease(
    redis_url: str, replicas: list[ChatTurns]
) -> None:
    """Not before, while the dead one's lease runs, and with a metric."""
    lease_seconds = 2.0
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(HOLDER),
        redis_url,
        str(lease_seconds),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "COVERAGE_PROCESS_START": ""},
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    holder.kill()
    await holder.wait()
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        binary: Any = redis
        seconds, micros = await binary.time()
        left = int(await binary.hget(KEY, "lease_end")) / 1000 - seconds - micros / 1e6
        before, since = metrics.bot_chat_takeovers._value.get(), time.monotonic()
        async with replicas[0].hold(BOT, CHAT, update_id=2):
            waited = time.monotonic() - since
    assert waited >= left - 0.01
    assert metrics.bot_chat_takeovers._value.get() == before + 1


async def test_whoever_lost_the_chat_is_stopped(redis: Any) -> None:
    """The renewal finds another holder, and the block leaves with the error."""
    turns = ChatTurns(redis, lease_seconds=0.5)

    async def lose() -> None:
        async with turns.hold(BOT, CHAT):
            await redis.hset(KEY, "token", "another")
            await asyncio.Event().wait()

    with pytest.raises(LockLostError, match="turn"):
        await lose()
    assert await redis.hget(KEY, "token") == "another"
    assert await redis.hexists(KEY, "lease_end")


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_nobody_has_a_turn(own_redis_server: Server, how: str) -> None:
    """Asking is an error in bounded time; a block loses its turn when Redis was silent for nearly a lease."""
    async with connect_redis(own_redis_server.url) as redis:
        turns = ChatTurns(redis, lease_seconds=1.0)

        async def lose() -> None:
            async with turns.hold(BOT, CHAT):
                getattr(own_redis_server, how)()
                await asyncio.Event().wait()

        async with asyncio.timeout(30):
            with pytest.raises(LockLostError):
                await lose()
            with pytest.raises(UnavailableError):
                async with turns.hold(BOT, 8):
                    pass
        if how == "freeze":
            own_redis_server.resume()


async def test_an_update_waits_for_redis(own_redis_server: Server) -> None:
    """It is handled when Redis is there again, and a stop gives it back."""
    async with connect_redis(own_redis_server.url) as redis:
        seen: list[int] = []
        replica = Replica(redis, seen)

        async def handler(message: Any) -> None:
            seen.append(int(message.text))

        replica.dispatcher.message.register(handler)
        own_redis_server.kill()
        stopping = asyncio.Event()
        stopped = asyncio.create_task(replica.runner.run(text(1), stopping))
        handling = asyncio.create_task(replica.handle(text(2)))
        with pytest.raises(UnavailableError):
            async with ChatTurns(redis).hold(BOT, 8):
                pass
        stopping.set()
        assert await stopped is False
        own_redis_server.restart()
        assert await handling
        assert seen == [2]
