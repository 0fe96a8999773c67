"""The Telegram kind of process: an Aiogram dispatcher whose handlers get what they ask for, and lose no update.

```python
dispatcher = Dispatcher()

@dispatcher.message(CommandStart())
async def start(message: Message, postgres: Postgres) -> None: ...

def main() -> None:
    run_bot(dispatcher, BotSettings)                        # until SIGTERM; exit code 0
```

Aiogram's own polling confirms an update before its handler has run, and cancels running handlers when it stops. Here
an update is confirmed when its handler is through, so a crash or a stop makes Telegram deliver it again; the
idempotency guard sees to it that it still runs once. Consumers of events can run beside.
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Self, cast

from hybridkit.adapters._running import StopSignals, open_resources, provided, run_process, start_consumers
from hybridkit.adapters._updates import UpdateLog
from hybridkit.context import RequestContext, bind, current
from hybridkit.errors import AccessDeniedError, MissingExtraError, UnavailableError
from hybridkit.idempotency import (
    Acquired,
    Completed,
    IdempotencyGuard,
    InProgress,
    Outcome,
    RedisDown,
    claim_key,
)
from hybridkit.injection import InjectionPlan, plan_injection
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustConsumer
from hybridkit.observability import get_logger, metrics
from hybridkit.retry import Retry
from hybridkit.settings import BotSettings

try:
    from aiogram import Bot, Dispatcher
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import TelegramAPIServer
    from aiogram.dispatcher.event.bases import UNHANDLED
    from aiogram.exceptions import AiogramError, TelegramRetryAfter, TelegramUnauthorizedError
    from aiogram.methods import GetUpdates, TelegramMethod
    from aiogram.types import TelegramObject, Update
except ImportError:
    raise MissingExtraError(__name__, extra="aiogram") from None

__all__ = ["bot_lifespan", "run_bot"]

POLL_SECONDS: Final = 25
"""How long Telegram may hold a call back while there is nothing new."""

BUSY_POLL_SECONDS: Final = 0.5
"""How often to ask while handlers run: their updates are not confirmed, so Telegram answers at once."""

CLAIM_WAIT_SECONDS: Final = 5.0
CANCEL_SECONDS: Final = 1.0
_BACKOFF: Final = Retry.exponential(first_seconds=0.5, cap_seconds=10.0)

_log = get_logger("hybridkit.bot")


def run_bot(
    dispatcher: Dispatcher, settings_class: type[BotSettings], *, consumers: Sequence[RobustConsumer] = ()
) -> None:
    """Ask Telegram for updates until SIGTERM, then finish what runs and return. A second signal gives up what runs.

    Args:
        dispatcher: its handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis` and `Context` by type.
        settings_class: read once, now.
        consumers: run beside; their handlers may also ask for aiogram's `Bot`.

    Raises:
        SystemExit: with code 1, when the settings are unusable or the start failed.
    """

    async def work(settings: BotSettings, stop: StopSignals) -> None:
        async with _running_bot(dispatcher, settings, consumers) as (resources, polling):
            resources.started()
            stop.started(resources)
            await polling.until(stop.asked)

    run_process(settings_class, work)


@asynccontextmanager
async def bot_lifespan(
    dispatcher: Dispatcher, settings: BotSettings, *, consumers: Sequence[RobustConsumer] = ()
) -> AsyncGenerator[ServiceResources]:
    """What `run_bot` runs, for those who have a `main` of their own: inside the block the bot answers.

    Call `resources.started()` to turn readiness green.
    """
    async with _running_bot(dispatcher, settings, consumers) as (resources, _):
        yield resources


@asynccontextmanager
async def _running_bot(
    dispatcher: Dispatcher, settings: BotSettings, consumers: Sequence[RobustConsumer]
) -> AsyncGenerator[tuple[ServiceResources, "_Polling"]]:
    # A message to a person can't be taken back: without Redis, better wait than send it twice.
    async with open_resources("aiogram", settings, when_down=RedisDown.EXTERNAL) as resources:
        bot = await resources.open("telegram", lambda: _connected_bot(settings), provides=Bot)
        await resources.open("dispatcher", lambda: _started(dispatcher, bot, resources.providers))
        await start_consumers(resources, consumers, providers=resources.providers)
        updates = _Updates(dispatcher, bot, provided(resources, IdempotencyGuard))
        polling = await resources.open("updates", lambda: _Polling(bot, updates), probe=_Polling.probe)
        resources.on_stop_accepting("updates", polling.stop_asking)
        resources.on_drain("updates", polling.drain)
        yield resources, polling


@asynccontextmanager
async def _connected_bot(settings: BotSettings) -> AsyncGenerator[Bot]:
    api = TelegramAPIServer.from_base(settings.telegram_api_url.get_secret_value())
    async with Bot(settings.bot_token.get_secret_value(), session=AiohttpSession(api=api)).context() as bot:
        try:
            me = await bot.me()
            await bot.delete_webhook()  # with one, Telegram refuses to be polled
        except TelegramUnauthorizedError:
            raise _bad_token() from None
        except AiogramError as error:
            raise UnavailableError(f"Telegram does not answer: {type(error).__name__}") from error
        _log.info("signed in to Telegram", username=me.username)
        yield bot


@asynccontextmanager
async def _started(dispatcher: Dispatcher, bot: Bot, providers: Mapping[Any, object]) -> AsyncGenerator[None]:
    """Handlers get what they ask for; those of `dispatcher.startup` and `dispatcher.shutdown` run as ever."""
    data = {"dispatcher": dispatcher, "bots": (bot,), **dispatcher.workflow_data}
    with _Injection(providers).into(dispatcher):
        await dispatcher.emit_startup(bot=bot, **data)
        try:
            yield
        finally:
            await dispatcher.emit_shutdown(bot=bot, **data)


def _bad_token() -> AccessDeniedError:
    return AccessDeniedError("Telegram does not know BOT_TOKEN: set the one that @BotFather gave")


# ── getting updates ──────────────────────────────────────────────────────────────────────────────


class _Polling:
    """Asks for updates, starts their handlers, and confirms those that are through."""

    def __init__(self, bot: Bot, updates: "_Updates") -> None:
        self._bot = bot
        self._updates = updates
        self._seen = UpdateLog()
        self._running: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None]
        self._trouble = ""

    async def __aenter__(self) -> Self:
        self._asking = asyncio.create_task(self._ask_for_ever(), name="hybridkit updates")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_asking(0.0)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CANCEL_SECONDS)

    async def until(self, stopped: asyncio.Event) -> None:
        """Wait for that event.

        Raises:
            AccessDeniedError: Telegram doesn't accept the token any more.
        """
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({waiting, self._asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stopped.is_set():
            await self._asking

    async def probe(self) -> None:
        """For readiness: Telegram has answered the last time it was asked."""
        if self._trouble or self._asking.done():
            raise UnavailableError(f"Telegram gives no updates: {self._trouble or 'nobody asks any more'}")

    async def stop_asking(self, _: float) -> None:
        """Take nothing new; what was delivered and not begun comes again at the next start."""
        self._asking.cancel()
        await asyncio.wait({self._asking})

    async def drain(self, seconds: float) -> None:
        """Wait for the handlers, break off those that take too long, and confirm the others."""
        if self._running:
            await asyncio.wait(self._running, timeout=max(seconds - 2 * CANCEL_SECONDS, 0.0))
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CANCEL_SECONDS)
        if self._seen.offset is not None:
            with suppress(AiogramError):  # then they come again, and the guard knows them
                await self._get_updates(timeout_seconds=0)

    async def _ask_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                updates = await self._get_updates(timeout_seconds=POLL_SECONDS if self._seen.is_idle else 0)
            except TelegramUnauthorizedError:
                raise _bad_token() from None
            except AiogramError as error:
                failures += 1
                self._trouble = type(error).__name__
                pause_seconds = _pause_after(error, failures)
                _log.warning("no updates", error=self._trouble, again_in_seconds=round(pause_seconds, 1))
                await asyncio.sleep(pause_seconds)
                continue
            failures, self._trouble = 0, ""
            for update in updates:
                self._begin(update)
            if self._running:
                await asyncio.wait(self._running, timeout=BUSY_POLL_SECONDS)

    async def _get_updates(self, *, timeout_seconds: int) -> list[Update]:
        offset = self._seen.offset
        ask = GetUpdates(offset=offset, timeout=timeout_seconds, allowed_updates=self._updates.types)
        # Beyond Telegram's own time: the network's. Aiogram knows whole seconds only.
        updates = await self._bot(ask, request_timeout=timeout_seconds + 15)
        self._seen.confirmed(offset)
        return updates

    def _begin(self, update: Update) -> None:
        if not self._seen.begin(update.update_id):
            return
        task = asyncio.create_task(self._updates.run(update), name=f"hybridkit update {update.update_id}")
        self._running.add(task)

        def end(ended: asyncio.Task[None]) -> None:
            self._running.discard(ended)
            finish = self._seen.abandon if ended.cancelled() else self._seen.finish
            finish(update.update_id)

        task.add_done_callback(end)


def _pause_after(error: AiogramError, failures: int) -> float:
    if isinstance(error, TelegramRetryAfter):
        return float(error.retry_after)
    return _BACKOFF.bound_seconds(failures) * random.uniform(0.5, 1.0)  # noqa: S311 # nosec B311  # spreads, no secret


# ── handling one update ──────────────────────────────────────────────────────────────────────────


class _Updates:
    """Runs the handlers of an update, once, in a context of its own."""

    def __init__(self, dispatcher: Dispatcher, bot: Bot, guard: IdempotencyGuard) -> None:
        self.types = dispatcher.resolve_used_update_types()
        self._dispatcher = dispatcher
        self._bot = bot
        self._guard = guard

    async def run(self, update: Update) -> None:
        """Never raises but for cancellation: an update whose handler fails is logged and done with."""
        started = time.perf_counter()
        with bind(RequestContext()):
            outcome = await self._once(update)
            seconds = time.perf_counter() - started
            kind = _type_of(update)
            metrics.bot_update_duration.labels(kind, outcome).observe(seconds)
            _log.info(
                f"update {kind} {outcome}",
                **{"telegram.update_id": update.update_id, "duration_ms": round(seconds * 1000, 1)},
            )

    async def _once(self, update: Update) -> str:
        acquired = await self._claim(update.update_id)
        if acquired is None:
            return "duplicate"
        outcome = Outcome.RELEASED
        try:
            async with self._guard.hold(acquired):
                handled = await self._feed(update)
            outcome = Outcome.COMPLETED
        except Exception as error:  # noqa: BLE001  # what a handler raises is told here, and stops nothing else
            _log.exception("an update's handler failed", exc_info=error)
            outcome = Outcome.FAILED
            return "error"
        else:
            return "done" if handled else "unhandled"
        finally:
            await self._guard.finish(acquired, outcome)

    async def _claim(self, update_id: int) -> Acquired | None:
        """The right to run it; None when it has run. Waits while Redis is down, or another process has it."""
        key = claim_key("telegram", str(self._bot.id), update_id)
        while True:
            try:
                answer = await self._guard.begin(key, update_id, wait_seconds=CLAIM_WAIT_SECONDS)
            except UnavailableError as error:
                _log.warning("an update waits for Redis", reason=str(error))
                await asyncio.sleep(_BACKOFF.first_seconds)
                continue
            match answer:
                case Acquired():
                    return answer
                case InProgress():
                    continue
                case Completed():
                    return None
                case refused:
                    _log.warning("an update is not run again", reason=type(refused).__name__)
                    return None

    async def _feed(self, update: Update) -> bool:
        result = await self._dispatcher.feed_update(self._bot, update)
        if isinstance(result, TelegramMethod):  # the short form: `return message.answer(…)`
            await self._bot(cast("TelegramMethod[Any]", result))
        return result is not UNHANDLED


def _type_of(update: Update) -> str:
    try:
        return update.event_type
    except LookupError:  # newer than this Aiogram
        return "unknown"


class _Injection:
    """Gives handlers what they ask for by type, on top of what Aiogram gives them by name."""

    def __init__(self, providers: Mapping[Any, object]) -> None:
        self._providers = providers
        self._plans: dict[Any, InjectionPlan] = {}

    @contextmanager
    def into(self, dispatcher: Dispatcher) -> Generator[None]:
        """Be part of that dispatcher inside the block.

        Raises:
            DeclarationError: an annotation of a handler can't be resolved.
        """
        for router in dispatcher.chain_tail:
            for observer in router.observers.values():
                for handler in observer.handlers:
                    self._plan(handler.callback)
        observers = [observer for name, observer in dispatcher.observers.items() if name != "update"]
        for observer in observers:
            observer.middleware.register(self)
        try:
            yield
        finally:
            for observer in observers:
                observer.middleware.unregister(self)

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        plan = self._plan(data["handler"].callback)
        values = {**self._providers, RequestContext: current()}
        return await handler(event, data | plan.arguments(values))

    def _plan(self, callback: Callable[..., Any]) -> InjectionPlan:
        if callback not in self._plans:
            parameters = list(inspect.signature(callback).parameters.values())
            # The first is the event; Aiogram finds others by their name, whether they have an annotation or not.
            by_name = {it.name for it in parameters if it.annotation is it.empty or it.kind in _VARIADIC}
            plan = plan_injection(callback, skip={parameters[0].name, *by_name} if parameters else ())
            known = (*self._providers, RequestContext)
            wanted = tuple(want for want in plan.wanted if want.type in known)
            self._plans[callback] = InjectionPlan(plan.owner, wanted)
        return self._plans[callback]


_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
