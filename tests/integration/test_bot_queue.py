"""Updates through queues on a real RabbitMQ and Redis: replicas share them, each once and in order per chat."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiogram import Dispatcher
from aiogram.types import Message
from pydantic import SecretStr

from hybridkit.adapters._telegram import _queued_updates, _update_queues
from hybridkit.adapters._telegram._chat_turns import ChatTurns
from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._queued_updates import QueuedUpdates, UpdateStore
from hybridkit.adapters._telegram._update_queues import queue_of, update_topology
from hybridkit.adapters.aiogram import _connected_bot, _started, bot_lifespan
from hybridkit.coordination import connect_redis
from hybridkit.dev import free_port
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    HybridkitError,
    NotConnectedError,
    UnavailableError,
)
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher, plan_topology
from hybridkit.settings import BotSettings, SecretUrl
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.helpers import plain_channel, until
from tests.helpers.bot_updates import UPDATES, noting_dispatcher
from tests.helpers.bots import QUICK

pytestmark = pytest.mark.real_server


@dataclass
class World:
    """A fake Telegram with a real broker and Redis, and what the handlers of all replicas have seen."""

    telegram: FakeTelegram
    redis_url: str
    rabbitmq_url: str
    seen: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    by_replica: dict[int, int] = field(default_factory=dict[int, int])
    waiting: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def settings(self, **more: Any) -> BotSettings:
        return BotSettings(
            service_name="shop_bot",
            updates="queue",
            bot_token=SecretStr(self.telegram.token),
            telegram_api_url=SecretUrl(self.telegram.url),
            redis_url=SecretUrl(self.redis_url),
            rabbitmq_url=SecretUrl(self.rabbitmq_url),
            management_port=0,
            **more,
        )

    def dispatcher(self, number: int) -> Dispatcher:
        """A text is noted with its chat; "wait" waits until the release."""
        made = Dispatcher()

        @made.message()
        async def note(message: Message) -> None:
            if message.text == "wait":
                self.waiting += 1
                await self.release.wait()
            self.seen.append((message.chat.id, f"{message.text}"))
            self.by_replica[number] = self.by_replica.get(number, 0) + 1

        return made

    @asynccontextmanager
    async def replica(
        self, number: int = 0, *, dispatcher: Dispatcher | None = None, **more: Any
    ) -> AsyncGenerator[QueuedUpdates]:
        """One replica, with connections of its own."""
        settings, dispatcher = self.settings(**more), dispatcher or self.dispatcher(number)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            redis = await enter(connect_redis(self.redis_url, timeout_seconds=10))
            publisher = await enter(RobustPublisher(self.rabbitmq_url, service="shop_bot"))
            connection = await enter(BrokerConnection(self.rabbitmq_url, name=f"replica {number}"))
            bot = await enter(_connected_bot(settings))
            await enter(_started(dispatcher, bot, redis, {}))
            guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
            runner = UpdateRunner(dispatcher, bot, guard, ChatTurns(redis), failure_texts={}, retry=QUICK)
            yield await enter(
                QueuedUpdates(bot, runner, settings, redis=redis, publisher=publisher, connection=connection)
            )

    def webhook(self) -> dict[str, Any]:
        port = free_port()
        return {"port": port, "webhook_url": f"http://127.0.0.1:{port}"}

    def send(self, text: str, *, chat: int = 7) -> int:
        return self.telegram.push_text(text, from_user=TelegramUser(id=chat))


@pytest.fixture(autouse=True)
def few_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have four queues instead of sixteen, which take a second to declare."""
    monkeypatch.setattr(_update_queues, "QUEUES", 4)


@pytest.fixture
async def world(redis_url: str, rabbitmq_url: str) -> AsyncGenerator[World]:
    async with FakeTelegram() as telegram:
        yield World(telegram, redis_url, rabbitmq_url)


@pytest.mark.parametrize("by", ["polling", "webhook"])
async def test_an_update_is_confirmed_when_it_is_stored_and_handled_from_its_queue(
    world: World, by: str
) -> None:
    """A handler that waits holds up neither Telegram nor other chats, and its chat's next update waits behind it."""
    async with world.replica(**(world.webhook() if by == "webhook" else {})) as updates:
        first = world.send("wait")
        second = world.send("second")
        other = world.send("other", chat=8)
        await world.telegram.wait_until_confirmed(max(first, second, other))
        await world.telegram.wait_until_confirmed(first)
        await until(lambda: world.seen == [(8, "other")])
        await updates.probe()
        world.release.set()
        await until(lambda: len(world.seen) == 3)
    assert world.seen == [(8, "other"), (7, "wait"), (7, "second")]


async def test_replicas_share_the_queues_and_the_next_takes_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three replicas each handles a part, one polls, and when one ends the others have all of it, in order."""
    monkeypatch.setattr(_update_queues, "QUEUES", 16)  # with four, one may get none
    async with world.replica(0) as first:
        async with world.replica(1), world.replica(2):
            for number in range(10):
                for chat in range(1, 41):
                    world.send(f"{number}", chat=chat)
            await until(lambda: len(world.seen) == 400)
        for chat in range(1, 41):
            world.send("last", chat=chat)
        await until(lambda: len(world.seen) == 440)
        await first.probe()
    assert len(set(world.by_replica)) == 3
    texts = [*map(str, range(10)), "last"]
    assert all([text for chat, text in world.seen if chat == each] == texts for each in range(1, 41))


async def test_what_a_stop_leaves_is_handled_by_the_next_replica(world: World) -> None:
    """The running update is finished, and one that waits behind it stays in its queue; both are handled once."""
    async with world.replica() as updates:
        sent = [world.send("wait"), world.send("second")]
        await world.telegram.wait_until_confirmed(max(sent))
        await until(lambda: sum(each.in_flight for each in updates._consumers) == 2)
        await updates.stop_accepting(1)
        draining = asyncio.create_task(updates.drain(60))
        world.release.set()
        await draining
    async with world.replica():
        await until(lambda: len(world.seen) >= 2)
        world.send("third")
        await until(lambda: len(world.seen) >= 3)
    assert world.seen == [(7, "wait"), (7, "second"), (7, "third")]


async def test_an_update_that_comes_twice_is_handled_once(world: World) -> None:
    """Telegram repeats an update whose confirmation was lost, and the guard knows it."""
    async with world.replica():
        sent = world.send("once")
        await until(lambda: len(world.seen) == 1)
        world.telegram.redeliver(sent)
        last = world.send("last")
        await world.telegram.wait_until_confirmed(last)
        await until(lambda: len(world.seen) == 2)
    assert world.seen == [(7, "once"), (7, "last")]


async def test_a_chat_that_another_replica_has_occupies_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its update waits for its turn in its queue's backlog, and is handled when the chat is free."""
    monkeypatch.setattr(_queued_updates, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(_queued_updates, "AGAIN_SECONDS", 0.05)
    async with (
        connect_redis(world.redis_url, timeout_seconds=10) as redis,
        world.replica() as updates,
    ):
        async with ChatTurns(redis).hold(world.telegram.bot_id, 7):
            world.send("hello")

            def is_put_off() -> bool:
                keyed = [each._run._keyed for each in updates._consumers if each._run is not None]
                return any(queue.retrying for backlog in keyed if backlog for queue in backlog._keys.values())

            await until(is_put_off)
            assert not world.seen
        await until(lambda: world.seen == [(7, "hello")])


async def test_an_update_that_the_library_can_not_parse_is_skipped(world: World) -> None:
    """It blocks no other update, and neither does one without an id."""
    async with world.replica():
        world.telegram.push_update({"later_kind": {"x": 1}})
        world.telegram.push_update({"message": {"date": "x"}})
        world.send("after")
        await until(lambda: world.seen == [(7, "after")])


async def test_what_can_not_be_stored_is_skipped(
    world: World, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """Half of a character, which Telegram's JSON may contain, has no place in a message, and blocks no other update."""
    async with (
        RobustPublisher(world.rabbitmq_url, service="shop_bot") as publisher,
        _connected_bot(world.settings()) as bot,
    ):
        await UpdateStore(publisher, bot, "shop_bot").put(
            [{"update_id": 1, "message": {"text": "\ud83d"}}, {"update_id": None}, "x"]
        )
    assert sum("is skipped" in line["event"] for line in logs) == 3


async def test_without_its_queue_an_update_is_not_confirmed(world: World) -> None:
    """The receiver reports it, and Telegram has to send it again."""
    async with (
        RobustPublisher(world.rabbitmq_url, service="shop_bot") as publisher,
        _connected_bot(world.settings()) as bot,
    ):
        with pytest.raises(HybridkitError, match="no queue"):
            await UpdateStore(publisher, bot, "shop_bot").put([{"update_id": 1, "poll": {}}])


@pytest.mark.parametrize("by", ["polling", "webhook"])
async def test_an_update_is_kept_by_telegram_until_its_queue_is_back(world: World, by: str) -> None:
    """While the queue of its chat is missing, the receiver tries again; then the update is handled."""
    queue = queue_of("shop_bot", "7")
    async with world.replica(**(world.webhook() if by == "webhook" else {})) as updates:
        async with plain_channel(world.rabbitmq_url) as channel:
            await channel.queue_delete(queue)
            sent = world.send("hello")
            await world.telegram.wait_until_confirmed(sent, timeout_seconds=60)
        await until(lambda: world.seen == [(7, "hello")])

        async def is_ready() -> bool:
            with suppress(HybridkitError):
                await updates.probe()
                return True
            return False

        await until(is_ready)


async def test_a_poller_that_telegram_refuses_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is red while Telegram answers with errors, and the process ends when the token is unknown."""
    async with world.replica() as updates:
        world.telegram.fail("getUpdates", status=500, times=1_000_000)

        async def is_red() -> bool:
            try:
                await updates.probe()
            except UnavailableError as error:
                return "TelegramServerError" in str(error)
            return False

        world.send("x")
        await until(is_red)
        world.telegram._faults.clear()
        world.telegram.fail("getUpdates", status=401)
        with pytest.raises(AccessDeniedError):
            await updates.until(asyncio.Event())
        with pytest.raises(UnavailableError, match="nobody asks"):
            await updates.probe()


async def test_the_poller_that_loses_its_lease_is_followed_by_another(world: World) -> None:
    """One replica polls at a time; the next begins when the first has stopped."""
    async with world.replica(0) as first, world.replica(1) as second:
        world.send("one")
        await until(lambda: len(world.seen) == 1)
        polls = world.telegram.calls.count("getUpdates")
        await first.stop_accepting(1)
        await first.drain(10)
        world.send("two")
        await until(lambda: len(world.seen) == 2)
        assert world.telegram.calls.count("getUpdates") > polls
        stopped = asyncio.Event()
        stopped.set()
        await second.until(stopped)
    assert world.seen == [(7, "one"), (7, "two")]


async def test_the_topology_is_planned_and_verified_as_that_of_any_consumer(world: World) -> None:
    """Before the first start the queues are missing, and after it nothing is."""
    topology = update_topology("shop_bot")
    before = await plan_topology(topology, world.rabbitmq_url)
    async with world.replica():
        after = await plan_topology(topology, world.rabbitmq_url)
    assert not before.is_clean
    assert after.is_clean
    names = {queue.name for queue in topology.queues}
    assert sum(name.startswith("shop_bot.updates.q") for name in names) == 2 * 4, "and their dead letters"


@pytest.mark.parametrize("mode", ["polling", "webhook", "queue", "queue by webhook"])
async def test_the_process_runs_with_the_settings_alone(world: World, mode: str) -> None:
    """`bot_lifespan` takes the mode from the settings, is ready in it, and finishes what runs at the stop."""
    more = world.webhook() if "webhook" in mode else {}
    settings = world.settings(**more).model_copy(update={"updates": mode.partition(" ")[0]})
    async with bot_lifespan(world.dispatcher(0), settings) as resources:
        resources.started()
        world.send("hello")
        await until(lambda: world.seen == [(7, "hello")])
        assert (await resources.health.readiness()).is_ready
        assert bool(world.telegram.webhook_url) == bool(more)
        world.send("wait")
        await until(lambda: world.waiting)
        world.release.set()
    assert world.seen == [(7, "hello"), (7, "wait")]
    assert not resources.errors


async def test_a_time_limit_beyond_the_patience_of_the_broker_is_refused(world: World) -> None:
    """An update may be in hand for half an hour with its retries."""
    with pytest.raises(DeclarationError, match="at most 900"):
        async with bot_lifespan(world.dispatcher(0), world.settings(), handler_seconds=901):
            pass


async def test_a_bot_that_may_not_consume_does_not_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of one queue ends the start, and Telegram is not asked for anything."""
    start, failures = RobustConsumer.start, [NotConnectedError("no")]

    async def failing(self: RobustConsumer, *given: Any, **named: Any) -> None:
        if failures:
            raise failures.pop()
        await start(self, *given, **named)

    monkeypatch.setattr(RobustConsumer, "start", failing)
    with pytest.raises(NotConnectedError):
        async with world.replica():
            pass
    assert "getUpdates" not in world.telegram.calls


async def test_a_start_that_fails_leaves_nothing_behind(world: World) -> None:
    """When Telegram refuses the webhook, the consumers are stopped, and the next start works."""
    world.telegram.fail("setWebhook", status=500)
    with pytest.raises(UnavailableError):
        async with world.replica(**world.webhook()):
            pass
    async with world.replica(**world.webhook()) as updates:
        world.send("hello")
        await until(lambda: world.seen == [(7, "hello")])
        assert "_WebhookReceiver(" in repr(updates)
        stopped = asyncio.Event()
        stopped.set()
        await updates.until(stopped)


async def test_each_type_of_update_reaches_its_handler_through_its_queue(world: World) -> None:
    """All types that Telegram has are asked for, stored and handled."""
    seen: list[str] = []
    async with world.replica(dispatcher=noting_dispatcher(seen)):
        await world.telegram.wait_for_calls("getUpdates")
        for name, (content, _) in UPDATES.items():
            world.telegram.push_update({name: content})
        await until(lambda: len(seen) == len(UPDATES))
    assert set(seen) == set(UPDATES)
