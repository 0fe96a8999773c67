"""The sending of messages within Telegram's limits, in order per chat, over all replicas of a bot.

```python
bot.session.middleware(Sender(redis))       # `run_bot` does this for its own bot
```

Telegram accepts about 30 messages a second of one bot, one a second for one chat with short bursts, and 20 a minute for
one group. A bot that goes on regardless is answered with 429 and a time, `retry_after`, and with longer ones if it
doesn't wait for that.

https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
"""

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from aiogram import Bot
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.exceptions import TelegramForbiddenError, TelegramNetworkError, TelegramRetryAfter
from aiogram.methods import Response, TelegramMethod

from hybridkit._injection import plan_injection
from hybridkit.adapters._telegram._files import own_cause
from hybridkit.adapters._telegram._holds import Holds
from hybridkit.context import RequestContext, current
from hybridkit.coordination import Rate, RateLimiter, Redis
from hybridkit.errors import OverloadedError
from hybridkit.observability import get_logger, metrics

if TYPE_CHECKING:
    from aiogram.client.session.middlewares.base import NextRequestMiddlewareType

# A stretch of time sees the burst and the rate at most: 27 in a second, and 20 in a minute. The rest of what Telegram
# allows is for messages that a network delivers closer to each other than they were sent.
LIMITS: Final = {
    "bot": Rate(25, "second", burst=2),
    "chat": Rate(1, "second", burst=3),
    "group": Rate(17, "minute", burst=3),
}

MAX_WAITING: Final = 10_000
"""How many messages may wait in one process."""

MAX_WAITING_OF_CHAT: Final = 200
"""How many messages may wait for one chat: at one a second, the last one waits for three minutes."""

MAX_HOLD_SECONDS: Final = 60.0
"""The longest `retry_after` that is waited for here; a longer one is raised, as Aiogram does."""

MAX_ATTEMPTS: Final = 5
"""How often a message is sent at most, if Telegram answers each time with 429."""

BLOCKED_HANDLER_SECONDS: Final = 10.0

_MESSAGES: Final = ("send", "editMessage", "copyMessage", "forwardMessage")
_NO_MESSAGES: Final = frozenset({"sendChatAction"})
_BLOCKED: Final = ("blocked by the user", "user is deactivated", "bot was kicked", "bot is not a member")

type BlockedHandler = Callable[..., Awaitable[None]]
"""A function that is called with the id of a chat that has blocked the bot."""

_log = get_logger("hybridkit.bot")


class BotBlockedError(TelegramForbiddenError):
    """The user has blocked the bot or is gone, or the group has thrown it out: nothing can be sent there.

    Attributes:
        chat_id: the id of the chat; in a private chat that of the user.
    """

    def __init__(self, method: TelegramMethod[Any], message: str, *, chat_id: int) -> None:
        super().__init__(method=method, message=message)
        self.chat_id = chat_id


class Sender(BaseRequestMiddleware):
    """A middleware of a bot's session, which delays messages until Telegram's limits allow them.

    Messages of a chat are sent one after the other, in the order of their calls. After a 429 no message goes to that
    chat before its `retry_after` is over; then the refused one is sent again. All processes of a bot share the limits
    through Redis, and each keeps them for itself while Redis doesn't answer. Calls that send no message aren't delayed.

    Args:
        redis: the client of the limits; by default that of the process, see `use_redis`.
        on_blocked: is called for each message to a chat that has blocked the bot, before `BotBlockedError` is raised.
    """

    def __init__(self, redis: Redis | None = None, *, on_blocked: BlockedHandler | None = None) -> None:
        self._limiter = RateLimiter("telegram", LIMITS, redis=redis)
        self._on_blocked = on_blocked
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._holds = Holds(redis)
        self._bot_turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Sender({self._waiting.total()} waiting in {len(self._waiting)} chats)"

    async def __call__[T](
        self, make_request: "NextRequestMiddlewareType[T]", bot: Bot, method: TelegramMethod[T]
    ) -> Response[T]:
        """Send a method when the limits allow it.

        Raises:
            BotBlockedError: the chat has blocked the bot.
            PayloadTooLargeError: a `StreamedFile` is larger than it may be.
            OverloadedError: too many messages wait, for this chat or in all; nothing was sent.
            TelegramRetryAfter: Telegram wants the bot to wait for longer than a minute, or did too often.
        """
        chat = _chat_of(method)
        try:
            if not _is_message(method):
                return await make_request(bot, method)
            # A message of the inline mode is in a chat that the bot doesn't know.
            owner = chat or f"inline:{getattr(method, 'inline_message_id', '')}"
            async with self._turn(owner):
                return await self._send(make_request, bot, method, owner)
        except TelegramForbiddenError as error:
            if (
                not any(words in error.message for words in _BLOCKED)
                or not chat.removeprefix("-").isdecimal()
            ):
                raise
            await self._note_blocked(int(chat))
            raise BotBlockedError(method, error.message, chat_id=int(chat)) from error
        except TelegramNetworkError as error:
            if (cause := own_cause(error)) is not None:  # of a file that was sent
                raise cause from None
            raise

    async def _send[T](
        self,
        make_request: "NextRequestMiddlewareType[T]",
        bot: Bot,
        method: TelegramMethod[T],
        chat: str,
    ) -> Response[T]:
        number = 0
        while True:
            number += 1
            for _ in range(_count_of(method)):
                await self._wait_for_limits(bot, method, chat)
            try:
                return await make_request(bot, method)
            except TelegramRetryAfter as error:
                metrics.bot_messages_refused.inc()
                await self._holds.put(bot.id, chat, error.retry_after)
                _log.warning(
                    "Telegram wants the bot to wait", retry_after_seconds=error.retry_after, attempt=number
                )
                if number >= MAX_ATTEMPTS:
                    raise

    @asynccontextmanager
    async def _turn(self, chat: str) -> AsyncGenerator[None]:
        """Run the block when the chat's earlier messages are sent; locks of asyncio keep the order."""
        if self._waiting[chat] >= MAX_WAITING_OF_CHAT or self._waiting.total() >= MAX_WAITING:
            raise OverloadedError(
                f"{self._waiting[chat]} messages wait for this chat, and {self._waiting.total()} in all: send them"
                " more slowly",
                retry_after_seconds=1.0,
            )
        self._waiting[chat] += 1
        metrics.bot_messages_waiting.inc()
        started = _now()
        try:
            async with self._turns.setdefault(chat, asyncio.Lock()):
                yield
        finally:
            metrics.bot_message_duration.observe(_now() - started)
            metrics.bot_messages_waiting.dec()
            self._waiting[chat] -= 1
            if not self._waiting[chat]:
                del self._waiting[chat], self._turns[chat]

    async def _wait_for_limits(self, bot: Bot, method: TelegramMethod[Any], chat: str) -> None:
        is_group, is_inline = chat.startswith(("-", "@")), chat.startswith("inline:")
        keys = (
            None
            if getattr(method, "allow_paid_broadcast", None) is True
            else bot.id,  # 1000 a second, for a price
            None if is_group or is_inline else f"{bot.id}:{chat}",
            f"{bot.id}:{chat}" if is_group else None,
        )
        while any(key is not None for key in keys):
            await self._wait_while_held(bot, method, chat)
            # One asks at a time, so that messages of many chats go in the order in which their turn came.
            async with self._bot_turn:
                decision = await self._limiter.check(*keys)
                while not decision.allowed and decision.policy == "telegram.bot":
                    await asyncio.sleep(decision.retry_after_seconds)
                    decision = await self._limiter.check(*keys)
            if decision.allowed:
                return
            await asyncio.sleep(decision.retry_after_seconds)

    async def _wait_while_held(self, bot: Bot, method: TelegramMethod[Any], chat: str) -> None:
        """Wait until the time is over that Telegram has named for the chat, or for many chats."""
        while (seconds := await self._holds.left_seconds(bot.id, chat)) > 0:
            if seconds > MAX_HOLD_SECONDS:
                raise TelegramRetryAfter(method, "Too Many Requests", retry_after=math.ceil(seconds))
            await asyncio.sleep(seconds)

    async def _note_blocked(self, chat_id: int) -> None:
        metrics.bot_chats_blocked.inc()
        if self._on_blocked is None:
            return
        try:
            async with asyncio.timeout(BLOCKED_HANDLER_SECONDS):
                await self._on_blocked(chat_id)
        except Exception as error:  # noqa: BLE001 - of the application; the message has failed anyway
            _log.exception("on_blocked has failed", exc_info=error)


class BlockedHook:
    """An application's own function for chats that have blocked the bot, with arguments by type.

    Args:
        function: the function; its first parameter is the id of the chat.
        providers: the values by type, also those that are added later.

    Raises:
        DeclarationError: an annotation can't be resolved.
    """

    def __init__(self, function: BlockedHandler, providers: Mapping[Any, object]) -> None:
        self._function = function
        self._providers = providers
        self._plan = plan_injection(function, skip=set(list(inspect.signature(function).parameters)[:1]))

    def __repr__(self) -> str:
        return f"BlockedHook({self._plan.owner})"

    def check(self) -> None:
        """Refuse a function that asks for what nothing provides.

        Raises:
            DeclarationError: nothing provides the type of a parameter; all of them are named.
        """
        self._plan.arguments(self._values())

    async def __call__(self, chat_id: int) -> None:
        """Call the function."""
        await self._function(chat_id, **self._plan.arguments(self._values()))

    def _values(self) -> Mapping[Any, object]:
        return {**self._providers, RequestContext: current()}


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_message(method: TelegramMethod[Any]) -> bool:
    name = method.__api_method__
    return name.startswith(_MESSAGES) and name not in _NO_MESSAGES


def _chat_of(method: TelegramMethod[Any]) -> str:
    """Return the chat of a method as text; empty for a method without one."""
    chat_id: object = getattr(method, "chat_id", None)
    return "" if chat_id is None else str(chat_id)


def _count_of(method: TelegramMethod[Any]) -> int:
    """Return how many messages a method sends: an album has several."""
    for name in ("media", "message_ids"):
        items: object = getattr(method, name, None)
        if isinstance(items, list):
            return len(cast("list[object]", items)) or 1
    return 1
