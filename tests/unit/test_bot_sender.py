"""The sender keeps Telegram's limits and the order of each chat, in virtual time."""

import asyncio
import itertools
from collections import defaultdict
from typing import Any, cast

import pytest
from aiogram import Bot
from aiogram.exceptions import TelegramForbiddenError, TelegramRetryAfter
from aiogram.methods import (
    EditMessageText,
    GetMe,
    Response,
    SendChatAction,
    SendMediaGroup,
    SendMessage,
    TelegramMethod,
)
from aiogram.types import InputMediaPhoto
from fakeredis import FakeAsyncRedis

from hybridkit.adapters._telegram._holds import Holds
from hybridkit.adapters._telegram._sender import (
    LIMITS,
    MAX_ATTEMPTS,
    MAX_WAITING_OF_CHAT,
    BlockedHook,
    BotBlockedError,
    Sender,
)
from hybridkit.context import RequestContext
from hybridkit.coordination import LimitDecision, RateLimiter
from hybridkit.coordination._local_limiter import LocalLimiter
from hybridkit.errors import DeclarationError, OverloadedError
from hybridkit.testing._telegram._limits import Limits
from tests.helpers.virtual_time import run_in_virtual_time


class SharedLimiter(RateLimiter):
    """Decides as Redis does for all processes, by the clock of the loop."""

    def __init__(self) -> None:
        super().__init__("telegram", LIMITS)
        self._shared = LocalLimiter(list(LIMITS.values()), replicas=1, clock=now)

    async def check(self, *keys: Any, cost: int = 1) -> LimitDecision:
        concerned = [index for index, key in enumerate(keys) if key is not None]
        names = [f"{index}:{keys[index]}" for index in concerned]
        allowed, index, left, wait, reset = self._shared.check(names, cost, concerned)
        policy, rate = list(self.policies.items())[concerned[index]]
        return LimitDecision(allowed == 1, policy, rate, left, wait / 1e6, reset / 1e6, False)


class SharedHolds(Holds):
    """Keeps the holds of all processes, as Redis does."""

    async def put(self, bot_id: int, chat: str, seconds: float) -> None:
        self._until[chat] = now() + seconds

    def _multiplexer(self) -> Any:
        return self

    async def execute(self, *_: object) -> int:
        return -2


def now() -> float:
    return asyncio.get_running_loop().time()


class Telegram:
    """Takes messages, after the time of a network, and notes which were too many."""

    def __init__(self) -> None:
        self.bot = Bot("4242:token")
        self.limits = Limits(enforces=False, clock=now)
        self.limiter = SharedLimiter()
        self.holds = SharedHolds(None)
        self.sent: dict[Any, list[str]] = defaultdict(list)
        self.refuse: Any = lambda _: None

    def sender(self, **options: Any) -> Sender:
        """Return the sender of one more process."""
        made = Sender(cast("Any", None), **options)
        made._limiter, made._holds = self.limiter, self.holds
        return made

    async def take(self, bot: Bot, method: TelegramMethod[Any]) -> Response[Any]:
        chat = str(getattr(method, "chat_id", None) or "")
        self.limits.check(method.__api_method__, {"chat_id": chat})
        await asyncio.sleep(0.05)
        self.refuse(method)
        self.sent[getattr(method, "chat_id", None)].append(getattr(method, "text", ""))
        return Response(ok=True, result=True)

    async def call(self, sender: Sender, method: TelegramMethod[Any]) -> None:
        await sender(cast("Any", self.take), self.bot, method)

    async def send(self, sender: Sender, chat: int | str, text: str = "hello") -> None:
        await self.call(sender, SendMessage(chat_id=chat, text=text))


def test_two_processes_send_500_messages_to_50_chats_within_the_limits() -> None:
    """Not one is over a limit of Telegram's, each chat's are in order, and it takes as long as the limits want."""

    async def main() -> None:
        telegram = Telegram()
        senders = [telegram.sender(), telegram.sender()]
        started = now()
        async with asyncio.TaskGroup() as group:
            for number in range(500):
                chat = number % 50
                group.create_task(telegram.send(senders[chat % 2], chat + 1, f"{number // 50}"))
        assert telegram.limits.violations == []
        assert dict(telegram.sent) == {chat: [f"{number}" for number in range(10)] for chat in range(1, 51)}
        assert 500 / 27 < now() - started < 500 / 25 + 2

    run_in_virtual_time(main())


def test_a_group_gets_twenty_messages_a_minute_and_others_do_not_wait_for_it() -> None:
    """Sixty take three minutes; a private chat's message goes at once meanwhile."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        started = now()
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(telegram.send(sender, -100, f"{number}"))
            await asyncio.sleep(30)
            before = now()
            await telegram.send(sender, 7)
            assert now() - before < 0.2
        assert telegram.limits.violations == []
        assert telegram.sent[-100] == [f"{number}" for number in range(60)]
        assert 160 < now() - started < 220

    run_in_virtual_time(main())


def test_a_quiet_chat_gets_a_few_messages_at_once() -> None:
    """An answer in three parts isn't delayed; the next one has to wait for its second."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        started = now()
        for _ in range(3):
            await telegram.send(sender, 7)
        assert now() - started < 0.5
        await telegram.send(sender, 7)
        assert now() - started >= 1

    run_in_virtual_time(main())


def test_retry_after_is_waited_for_and_holds_up_that_chat_alone() -> None:
    """The refused message is sent again in its place, not before its time, and the chat's next one after it."""

    async def main() -> None:
        telegram = Telegram()
        sender, other_process = telegram.sender(), telegram.sender()
        refusals = [20]

        def refuse(method: TelegramMethod[Any]) -> None:
            if refusals and getattr(method, "chat_id", None) == 7:
                telegram.limits.hold("7", refusals[0])
                raise TelegramRetryAfter(method, "Too Many Requests", retry_after=refusals.pop())

        telegram.refuse = refuse
        started = now()
        first = asyncio.create_task(telegram.send(sender, 7, "first"))
        second = asyncio.create_task(telegram.send(sender, 7, "second"))
        await asyncio.sleep(1)
        third = asyncio.create_task(telegram.send(other_process, 7, "third"))
        await telegram.send(sender, 8, "other")
        assert now() - started < 2
        await asyncio.gather(first, second, third)
        assert telegram.sent[8] == ["other"]
        assert sorted(telegram.sent[7]) == ["first", "second", "third"]
        assert telegram.sent[7].index("first") < telegram.sent[7].index("second")
        assert now() - started >= 20
        assert telegram.limits.violations == []

    run_in_virtual_time(main())


def test_a_message_that_is_refused_too_often_fails() -> None:
    """Aiogram's own error is raised after some attempts, each of which has waited."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        attempts: list[float] = []

        def refuse(method: TelegramMethod[Any]) -> None:
            attempts.append(now())
            raise TelegramRetryAfter(method, "Too Many Requests", retry_after=10)

        telegram.refuse = refuse
        with pytest.raises(TelegramRetryAfter):
            await telegram.send(sender, 7)
        assert len(attempts) == MAX_ATTEMPTS
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(attempts))

    run_in_virtual_time(main())


def test_a_long_retry_after_is_raised_at_once_also_for_the_chats_next_messages() -> None:
    """Who sends knows then how long it takes, and nothing waits for an hour; nothing is sent too early."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()

        def refuse(method: TelegramMethod[Any]) -> None:
            raise TelegramRetryAfter(method, "Too Many Requests", retry_after=3600)

        telegram.refuse = refuse
        started = now()
        for _ in range(2):
            with pytest.raises(TelegramRetryAfter) as caught:
                await telegram.send(sender, 7)
            assert 3599 <= caught.value.retry_after <= 3600
        assert now() - started < 1
        assert len(telegram.limits._sent["7"]) == 1
        telegram.refuse = lambda _: None
        await asyncio.sleep(3600)
        await telegram.send(sender, 7)

    run_in_virtual_time(main())


def test_with_many_chats_on_hold_all_wait() -> None:
    """Telegram means the bot then, and a message to one more chat would only make it worse."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        refused: set[Any] = set()

        def refuse(method: TelegramMethod[Any]) -> None:
            chat = getattr(method, "chat_id", None)
            if chat in {1, 2, 3} and chat not in refused:
                refused.add(chat)
                raise TelegramRetryAfter(method, "Too Many Requests", retry_after=30)

        telegram.refuse = refuse
        started = now()
        waiting = [asyncio.create_task(telegram.send(sender, chat)) for chat in (1, 2, 3)]
        await asyncio.sleep(1)
        await telegram.send(sender, 9)
        assert now() - started >= 30
        await asyncio.gather(*waiting)

    run_in_virtual_time(main())


def test_the_queue_of_a_chat_has_an_end() -> None:
    """Beyond it an error that passes is raised, and nothing is sent; what waits is sent nevertheless."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        waiting = [
            asyncio.create_task(telegram.send(sender, 7, f"{number}"))
            for number in range(MAX_WAITING_OF_CHAT)
        ]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="200 messages wait for this chat"):
            await telegram.send(sender, 7, "too much")
        assert repr(sender) == "Sender(200 waiting in 1 chats)"
        await asyncio.gather(*waiting)
        assert len(telegram.sent[7]) == MAX_WAITING_OF_CHAT
        assert repr(sender) == "Sender(0 waiting in 0 chats)"

    run_in_virtual_time(main())


def test_a_cancelled_message_gives_its_place_to_the_next() -> None:
    """The handler's time limit may end it while it waits."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        waiting = [asyncio.create_task(telegram.send(sender, 7, f"{number}")) for number in range(6)]
        await asyncio.sleep(0.5)
        waiting[3].cancel()
        await asyncio.wait(waiting)
        assert telegram.sent[7] == ["0", "1", "2", "4", "5"]
        assert repr(sender) == "Sender(0 waiting in 0 chats)"

    run_in_virtual_time(main())


def test_what_sends_no_message_is_not_delayed() -> None:
    """Only messages are counted by Telegram; an album is as many as it has parts."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        started = now()
        for _ in range(20):
            await telegram.call(sender, SendChatAction(chat_id=7, action="typing"))
            await telegram.call(sender, GetMe())
        assert now() - started < 2.1  # the network's time
        started = now()
        photos = [InputMediaPhoto(media=f"file-{number}") for number in range(5)]
        await telegram.call(sender, SendMediaGroup(chat_id=8, media=list(photos)))
        assert now() - started >= 2

    run_in_virtual_time(main())


def test_messages_without_a_chat_or_for_a_price_have_fewer_limits() -> None:
    """Edits in the inline mode are limited for the bot alone; a paid broadcast is not."""

    async def main() -> None:
        telegram = Telegram()
        sender = telegram.sender()
        started = now()
        for number in range(20):
            await telegram.call(sender, EditMessageText(inline_message_id=f"{number}", text="hello"))
        assert now() - started < 1.2
        started = now()
        paid = [SendMessage(chat_id=chat, text="paid", allow_paid_broadcast=True) for chat in range(1, 200)]
        await asyncio.gather(*(telegram.call(sender, each) for each in paid))
        assert now() - started < 0.5
        inline_and_paid = EditMessageText(inline_message_id="1", text="hello")
        object.__setattr__(inline_and_paid, "allow_paid_broadcast", True)
        await telegram.call(sender, inline_and_paid)

    run_in_virtual_time(main())


@pytest.mark.parametrize("chat", [7, -100])
def test_a_chat_that_has_blocked_the_bot_is_noted(chat: int) -> None:
    """The error is Aiogram's with the chat's id; the hook may fail, and may send a message to that chat itself."""

    async def main() -> None:
        telegram = Telegram()
        noted: list[int] = []

        async def on_blocked(chat_id: int) -> None:
            noted.append(chat_id)
            if len(noted) == 1:
                await telegram.send(sender, chat_id)

        def refuse(method: TelegramMethod[Any]) -> None:
            raise TelegramForbiddenError(method, "Forbidden: bot was blocked by the user")

        telegram.refuse = refuse
        sender = telegram.sender(on_blocked=on_blocked)
        with pytest.raises(BotBlockedError) as caught:
            await telegram.send(sender, chat)
        assert isinstance(caught.value, TelegramForbiddenError)
        assert (caught.value.chat_id, noted) == (chat, [chat, chat])
        with pytest.raises(BotBlockedError):
            await telegram.call(telegram.sender(), SendChatAction(chat_id=chat, action="typing"))

    run_in_virtual_time(main())


def test_another_refusal_is_not_a_block() -> None:
    """A bot may not write to whoever has never written to it, nor to a channel where it may not."""

    async def main() -> None:
        telegram = Telegram()
        problem = "Forbidden: bot can't initiate conversation with a user"

        def refuse(method: TelegramMethod[Any]) -> None:
            raise TelegramForbiddenError(method, problem)

        telegram.refuse = refuse
        with pytest.raises(TelegramForbiddenError) as caught:
            await telegram.send(telegram.sender(), 7)
        assert not isinstance(caught.value, BotBlockedError)
        problem = "Forbidden: bot was kicked from the channel chat"
        with pytest.raises(TelegramForbiddenError) as caught:
            await telegram.send(telegram.sender(), "@news")
        assert not isinstance(caught.value, BotBlockedError)

    run_in_virtual_time(main())


async def test_the_hook_for_blocks_gets_what_it_asks_for() -> None:
    """Its first argument is the chat, and the others come by type; what nobody provides is found at the start."""
    seen: list[Any] = []

    async def hook(chat_id: int, context: RequestContext, redis: FakeAsyncRedis) -> None:
        seen.append((chat_id, context.request_id, redis))

    redis = FakeAsyncRedis()
    made = BlockedHook(hook, {FakeAsyncRedis: redis})
    made.check()
    await made(7)
    assert (seen[0][0], seen[0][2]) == (7, redis)
    assert "hook" in repr(made)
    with pytest.raises(DeclarationError, match="redis: FakeRedis"):
        BlockedHook(hook, {}).check()
    await redis.aclose()
