"""Updates through queues: a receiver stores each update in RabbitMQ, and the replicas of the bot share the work.

The receiver is the webhook of any replica, or the polling of one of them. It confirms an update to Telegram when the
broker has confirmed it, so handlers don't hold up the receiver, and a replica that dies loses nothing: its unfinished
updates go to the next consumer of their queue.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, Self

from aiogram import Bot
from aiogram.exceptions import AiogramError, TelegramUnauthorizedError

from hybridkit.adapters._running import probe_consumer
from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._polling import POLL_SECONDS
from hybridkit.adapters._telegram._reading import (
    ask_for_updates,
    chat_of,
    id_of,
    read_update,
    token_error,
)
from hybridkit.adapters._telegram._running_updates import RunningUpdates, skip
from hybridkit.adapters._telegram._update_queues import TelegramUpdate, queue_of, update_consumers
from hybridkit.adapters._telegram._webhook_server import WebhookServer
from hybridkit.codec import now
from hybridkit.context import RequestContext
from hybridkit.coordination import Lock, Redis
from hybridkit.errors import (
    HybridkitError,
    LockLostError,
    LockTimeoutError,
    PayloadError,
    PayloadTooLargeError,
    UnavailableError,
)
from hybridkit.events import encode_message
from hybridkit.ids import derived_id
from hybridkit.messaging import BrokerConnection, RobustPublisher
from hybridkit.observability import get_logger
from hybridkit.retry import UNLIMITED, Retry, asked_seconds
from hybridkit.settings import BotSettings

TURN_SECONDS: Final = 1.0
"""How long an update occupies a handler's place while another replica has its chat."""

AGAIN_SECONDS: Final = 2.0
"""The pause before such an update asks again; it occupies no place meanwhile."""

MAX_QUEUED_SECONDS: Final = 900.0
"""The longest time limit of handlers; with retries it is less than a message may be in hand."""

POLLER_LEASE_SECONDS: Final = 15.0
"""How long nobody polls when the replica that does has died."""

POLLER_PAUSE_SECONDS: Final = 1.0
"""The interval at which the others ask whether to poll."""

RESPONSE_SECONDS: Final = 1.0

_BACKOFF: Final = Retry.exponential(first_seconds=0.5, cap_seconds=10.0, attempts=UNLIMITED)

_log = get_logger("hybridkit.bot")


class UpdateStore:
    """Stores updates in the queues of their chats.

    Args:
        publisher: waits for the broker's confirms.
        bot: the bot that has received the updates.
        service_name: the name of the bot's service.
    """

    def __init__(self, publisher: RobustPublisher, bot: Bot, service_name: str) -> None:
        self._publisher = publisher
        self._bot = bot
        self._service_name = service_name

    def __repr__(self) -> str:
        return f"UpdateStore({self._service_name!r})"

    async def put(self, raws: Sequence[object]) -> None:
        """Store updates, those of a queue one after another; an update that can't be stored is skipped.

        Raises:
            HybridkitError: the broker has not confirmed an update; of its queue, none that follows was stored.
        """
        by_queue: defaultdict[str, list[tuple[str, int, Any]]] = defaultdict(list)
        for raw in raws:
            update_id = id_of(raw)
            if update_id is None:
                skip(raw)
                continue
            update = read_update(raw, self._bot)
            chat = None if update is None else chat_of(update)
            # Without a chat there is no order, and any queue will do.
            key = f"update {update_id}" if chat is None else str(chat)
            by_queue[queue_of(self._service_name, key)].append((key, update_id, raw))
        stored = [self._put_in_order(queue, updates) for queue, updates in by_queue.items()]
        for error in await asyncio.gather(*stored, return_exceptions=True):
            if error is not None:
                raise error

    async def _put_in_order(self, queue: str, updates: Sequence[tuple[str, int, Any]]) -> None:
        for chat, update_id, raw in updates:
            event_id = derived_id(f"telegram:{self._bot.id}:{update_id}", "received")
            try:
                event = TelegramUpdate(chat=chat, update=raw)
                event.identify_as(event_id, now())
                body = encode_message(event, service=self._service_name, context=RequestContext())
                await self._publisher.publish_encoded(
                    body, event_type=TelegramUpdate.message_type, event_id=event_id, queue=queue
                )
            except (
                PayloadError,
                PayloadTooLargeError,
            ):  # it would be refused each time, and block all others
                skip(raw)


class QueuedUpdates:
    """Receives updates into the queues, and handles those of the queues that the broker gives this replica.

    Args:
        bot: the bot.
        updates: runs the handlers.
        settings: say whether a webhook or polling receives, and the service's name.
        redis: knows which replica polls.
        publisher: stores the updates.
        connection: brings them back.
    """

    def __init__(
        self,
        bot: Bot,
        updates: UpdateRunner,
        settings: BotSettings,
        *,
        redis: Redis,
        publisher: RobustPublisher,
        connection: BrokerConnection,
    ) -> None:
        self._bot = bot
        self._running = RunningUpdates(updates, bot)
        self._publisher = publisher
        self._connection = connection
        self._stack = AsyncExitStack()
        store = UpdateStore(publisher, bot, settings.service_name)
        self._receiver: _WebhookReceiver | _PollingReceiver
        if settings.webhook_url is None:
            self._receiver = _PollingReceiver(bot, store, updates.types, redis)
        else:
            self._receiver = _WebhookReceiver(bot, store, updates.types, settings)
        self._consumers = update_consumers(settings.service_name, self._handle)

    def __repr__(self) -> str:
        return f"QueuedUpdates({self._receiver!r})"

    async def __aenter__(self) -> Self:
        """Declare the queues, consume, and then receive; raises as `RobustConsumer.start` and `WebhookServer` do."""
        self._stack.push_async_callback(self._drain_consumers, 0.0)
        try:
            # Each replica prefers other queues, so that the broker spreads them.
            starts = [
                consumer.start(
                    self._connection, publisher=self._publisher, priority=1 + secrets.randbelow(1_000_000)
                )
                for consumer in self._consumers
            ]
            for error in await asyncio.gather(*starts, return_exceptions=True):
                if error is not None:
                    raise error  # noqa: TRY301  # what has started has to be stopped
            await self._stack.enter_async_context(self._receiver)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.stopping.set()
        await self._stack.aclose()

    async def until(self, stopped: asyncio.Event) -> None:
        """Wait until an event is set.

        Raises:
            AccessDeniedError: Telegram does not accept the token any more.
        """
        await self._receiver.until(stopped)

    async def probe(self) -> None:
        """Check that updates are received and handled.

        Raises:
            HybridkitError: one of them is not so; the message says which.
        """
        self._receiver.check()
        for consumer in self._consumers:
            await probe_consumer(consumer)

    async def stop_accepting(self, _: float) -> None:
        """Stop receiving. What waits for a retry is handled by another replica, or after the next start."""
        self._running.stopping.set()
        await self._receiver.stop_accepting()

    async def drain(self, seconds: float) -> None:
        """Wait for the handlers, and cancel those that take too long; the rest stays in the queues."""
        await asyncio.gather(self._drain_consumers(seconds), self._receiver.drain(RESPONSE_SECONDS))

    async def _drain_consumers(self, seconds: float) -> None:
        await asyncio.gather(*(consumer.drain(budget_seconds=seconds) for consumer in self._consumers))

    async def _handle(self, event: TelegramUpdate) -> None:
        update = read_update(event.update, self._bot)
        if update is None:
            skip(event.update)
        elif not await self._running.handle(update, turn_seconds=TURN_SECONDS):
            raise UnavailableError(
                "the chat is not free yet, or the bot stops", retry_after_seconds=AGAIN_SECONDS
            )


class _WebhookReceiver:
    """Stores what Telegram sends, and answers when the broker has confirmed it."""

    def __init__(self, bot: Bot, store: UpdateStore, types: Sequence[str], settings: BotSettings) -> None:
        self._store = store
        self._server = WebhookServer(bot, settings, types, self._accept)

    def __repr__(self) -> str:
        return f"_WebhookReceiver({self._server!r})"

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *given: object) -> None:
        await self._server.__aexit__(*given)

    async def until(self, stopped: asyncio.Event) -> None:
        await self._server.until(stopped)

    def check(self) -> None:
        self._server.check()

    async def stop_accepting(self) -> None:
        self._server.stop_accepting()

    async def drain(self, seconds: float) -> None:
        await self._server.drain(seconds)

    async def _accept(self, _: int, raw: object) -> bool:
        try:
            await self._store.put([raw])
        except HybridkitError as error:
            _log.warning("an update is not stored, and Telegram has to send it again", error=str(error))
            return False
        return True


class _PollingReceiver:
    """Polls for updates in one replica at a time, and confirms them when the broker has."""

    def __init__(self, bot: Bot, store: UpdateStore, types: Sequence[str], redis: Redis) -> None:
        self._bot = bot
        self._store = store
        self._types = types
        self._lock = Lock(
            f"telegram_poller:bot:{bot.id}",
            redis=redis,
            wait_seconds=0.0,
            lease_seconds=POLLER_LEASE_SECONDS,
        )
        self._problem = ""
        self._polling: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"_PollingReceiver(problem={self._problem!r})"

    async def __aenter__(self) -> Self:
        self._polling = asyncio.create_task(self._poll_in_turn(), name="hybridkit updates")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_accepting()

    async def until(self, stopped: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({waiting, self._polling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stopped.is_set():
            await self._polling

    def check(self) -> None:
        if self._polling.done():
            raise UnavailableError("Telegram gives no updates: nobody asks any more")
        if self._problem:
            raise UnavailableError(f"Telegram gives no updates: {self._problem}")

    async def stop_accepting(self) -> None:
        self._polling.cancel()
        await asyncio.wait({self._polling})

    async def drain(self, _: float) -> None:
        pass

    async def _poll_in_turn(self) -> None:
        while True:
            try:
                async with self._lock:
                    _log.info("this replica polls for updates")
                    await self._poll()
            except LockTimeoutError:
                self._problem = ""  # another replica polls
            except LockLostError as error:
                _log.warning("another replica polls for updates now", reason=str(error))
            except UnavailableError as error:
                self._problem = str(error)
            await asyncio.sleep(POLLER_PAUSE_SECONDS)

    async def _poll(self) -> None:
        pauses = _BACKOFF.pauses()
        offset: int | None = None
        try:
            while True:
                try:
                    raws = await ask_for_updates(
                        self._bot, offset=offset, timeout_seconds=POLL_SECONDS, types=self._types
                    )
                    # Asked without one from now on: after a week without updates, Telegram's ids may begin lower.
                    offset = None
                    await self._store.put(raws)
                except TelegramUnauthorizedError:
                    raise token_error() from None
                except Exception as error:  # noqa: BLE001  # an odd answer may raise anything, and the next may be good
                    self._problem = str(error) if isinstance(error, HybridkitError) else type(error).__name__
                    pause_seconds = max(asked_seconds(error), next(pauses))
                    _log.warning("no updates", error=self._problem, again_in_seconds=round(pause_seconds, 1))
                    await asyncio.sleep(pause_seconds)
                    continue
                pauses, self._problem = _BACKOFF.pauses(), ""
                known = [number for raw in raws if (number := id_of(raw)) is not None]
                offset = max(known) + 1 if known else None
                if raws and not known:
                    await asyncio.sleep(POLLER_PAUSE_SECONDS)  # Telegram would answer at once with the same
        finally:
            if offset is not None:  # what is stored need not come again
                with suppress(AiogramError, TimeoutError):
                    async with asyncio.timeout(RESPONSE_SECONDS):
                        await ask_for_updates(self._bot, offset=offset, timeout_seconds=0, types=self._types)
