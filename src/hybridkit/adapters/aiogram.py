"""The Telegram kind of process: an Aiogram dispatcher with injection by type, which loses no update.

```python
dispatcher = Dispatcher()

@dispatcher.message(CommandStart())
async def start(message: Message, postgres: Postgres) -> None: ...

def main() -> None:
    run_bot(dispatcher, BotSettings)                        # until SIGTERM; exit code 0
```

Aiogram's own polling confirms an update before its handler has run, and cancels running handlers when it stops. Here an
update is confirmed after its handler, so Telegram delivers it again after a crash or a stop, and the idempotency guard
makes it run once. Updates of one chat are handled in order, those of different chats concurrently. Temporary failures
are retried (`TemporaryError` and the other retryable errors of hybridkit, Telegram's "retry later", 5xx and lost
connections). When an update is given up, the user gets an answer with the request id, unless an error handler of the
application has handled the error. Consumers of events can run in the same process.
"""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from hybridkit._injection import InjectionPlan, plan_injection
from hybridkit.adapters._running import (
    Lifespan,
    StopSignals,
    open_application,
    open_resources,
    provided,
    run_process,
    start_consumers,
)
from hybridkit.adapters.localization import Localization, Translator, translator
from hybridkit.context import RequestContext, current
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError, MissingExtraError, UnavailableError
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import get_logger
from hybridkit.settings import BotSettings

try:
    from aiogram import Bot, Dispatcher
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import TelegramAPIServer
    from aiogram.exceptions import AiogramError, TelegramUnauthorizedError
    from aiogram.types import TelegramObject

    from hybridkit.adapters._telegram._chat_turns import ChatTurns
    from hybridkit.adapters._telegram._failures import FAILURE_TEXTS, check_texts
    from hybridkit.adapters._telegram._files import StreamedFile, download_file, stream_file
    from hybridkit.adapters._telegram._fsm import ChatIsolation, ChatStorage, fsm_in_redis
    from hybridkit.adapters._telegram._handling import HANDLER_SECONDS, TemporaryErrors, UpdateRunner
    from hybridkit.adapters._telegram._polling import Polling
    from hybridkit.adapters._telegram._queued_updates import MAX_QUEUED_SECONDS, QueuedUpdates
    from hybridkit.adapters._telegram._reading import token_error
    from hybridkit.adapters._telegram._sender import BlockedHandler, BlockedHook, BotBlockedError, Sender
    from hybridkit.adapters._telegram._static_handlers import CONTEXT_NAMES, static_handlers
    from hybridkit.adapters._telegram._webhook import Webhook
except ImportError as error:
    if (error.name or "").partition(".")[0] != "aiogram":
        raise
    raise MissingExtraError(__name__, extra="aiogram") from None

__all__ = [
    "FAILURE_TEXTS",
    "BotBlockedError",
    "ChatIsolation",
    "ChatStorage",
    "Sender",
    "StreamedFile",
    "bot_lifespan",
    "download_file",
    "run_bot",
    "stream_file",
]

_log = get_logger("hybridkit.bot")


def run_bot(
    dispatcher: Dispatcher,
    settings_class: type[BotSettings],
    *,
    consumers: Sequence[RobustConsumer] = (),
    lifespan: Lifespan | None = None,
    failure_texts: Mapping[str, str] = FAILURE_TEXTS,
    handler_seconds: float = HANDLER_SECONDS,
    on_blocked: BlockedHandler | None = None,
    localization: Localization | None = None,
) -> None:
    """Handle updates until SIGTERM, then finish what runs and return. A second signal ends what runs.

    The settings say how updates arrive: by polling, by a webhook, or through a queue that replicas share.

    Args:
        dispatcher: the dispatcher. Its handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis`, `Context`, the
            settings, and what `lifespan` provides, by type.
        settings_class: the class of the settings, which are read once, now.
        consumers: consumers to run as well; their handlers may also ask for aiogram's `Bot`.
        lifespan: a context manager of the application, entered when the resources are open, and left when the handlers
            have ended. It may yield a mapping of types to values for handlers: `{Mailer: mailer}`.
        failure_texts: the answer to a user whose update is given up, by language (`ru`); `{request_id}` is filled in.
            English, or else the first, is for all other languages. An empty mapping turns the answers off.
        handler_seconds: the time limit of an update's handlers; they are cancelled then, and the update is given up.
        on_blocked: an async function that is called with the id of a chat for each message that was refused because the
            user has blocked the bot; its other parameters are injected by type.
        localization: the languages for users, of which each update gets one by its user's `language_code`, for `Texts`.
            By default there are hybridkit's own, English and Russian.

    Raises:
        SystemExit: the settings are unusable, or the start failed; with code 1.
    """

    async def work(settings: BotSettings, stop: StopSignals) -> None:
        running = _running_bot(
            dispatcher,
            settings,
            consumers=consumers,
            lifespan=lifespan,
            failure_texts=failure_texts,
            handler_seconds=handler_seconds,
            on_blocked=on_blocked,
            localization=localization,
        )
        async with running as (resources, source):
            resources.started()
            stop.started(resources)
            await source.until(stop.asked)

    run_process(settings_class, work)


@asynccontextmanager
async def bot_lifespan(
    dispatcher: Dispatcher,
    settings: BotSettings,
    *,
    consumers: Sequence[RobustConsumer] = (),
    lifespan: Lifespan | None = None,
    failure_texts: Mapping[str, str] = FAILURE_TEXTS,
    handler_seconds: float = HANDLER_SECONDS,
    on_blocked: BlockedHandler | None = None,
    localization: Localization | None = None,
) -> AsyncGenerator[ServiceResources]:
    """Run the bot inside the block, as `run_bot` does, for an application with its own `main`.

    Call `resources.started()` to turn readiness green.
    """
    running = _running_bot(
        dispatcher,
        settings,
        consumers=consumers,
        lifespan=lifespan,
        failure_texts=failure_texts,
        handler_seconds=handler_seconds,
        on_blocked=on_blocked,
        localization=localization,
    )
    async with running as (resources, _):
        yield resources


type _Source = Polling | Webhook | QueuedUpdates


@asynccontextmanager
async def _running_bot(
    dispatcher: Dispatcher,
    settings: BotSettings,
    *,
    consumers: Sequence[RobustConsumer],
    lifespan: Lifespan | None,
    failure_texts: Mapping[str, str],
    handler_seconds: float,
    on_blocked: BlockedHandler | None,
    localization: Localization | None,
) -> AsyncGenerator[tuple[ServiceResources, _Source]]:
    check_texts(failure_texts)
    if handler_seconds <= 0:
        raise DeclarationError(f"handler_seconds must be positive, not {handler_seconds}")
    if settings.updates == "queue" and handler_seconds > MAX_QUEUED_SECONDS:
        raise DeclarationError(
            f"handler_seconds is at most {MAX_QUEUED_SECONDS:g} with UPDATES=queue, not {handler_seconds}:"
            f" the broker wants every message back after half an hour"
        )
    # A message to a user can't be taken back: without Redis, waiting is better than sending it twice.
    async with open_resources("aiogram", settings, when_down=RedisDown.EXTERNAL) as resources:
        bot = await resources.open("telegram", lambda: _connected_bot(settings), provides=Bot)
        redis = provided(resources, Redis)
        blocked = None if on_blocked is None else BlockedHook(on_blocked, resources.providers)
        bot.session.middleware(Sender(redis, on_blocked=blocked))
        await open_application(resources, lifespan)
        if blocked is not None:
            blocked.check()
        await resources.open("dispatcher", lambda: _started(dispatcher, bot, redis, resources.providers))
        await start_consumers(resources, consumers, providers=resources.providers)
        updates = UpdateRunner(
            dispatcher,
            bot,
            provided(resources, IdempotencyGuard),
            ChatTurns(redis),
            failure_texts=failure_texts,
            handler_seconds=handler_seconds,
            localization=localization,
        )
        source: _Source = await resources.open(
            "updates",
            lambda: _source(bot, updates, settings, resources),
            probe=lambda opened: opened.probe(),
        )
        resources.on_stop_accepting("updates", source.stop_accepting)
        resources.on_drain("updates", source.drain)
        yield resources, source


def _source(bot: Bot, updates: UpdateRunner, settings: BotSettings, resources: ServiceResources) -> _Source:
    match settings.updates:
        case "polling":
            return Polling(bot, updates, provided(resources, Redis))
        case "webhook":
            return Webhook(bot, updates, settings)
        case "queue":
            return QueuedUpdates(
                bot,
                updates,
                settings,
                redis=provided(resources, Redis),
                publisher=provided(resources, RobustPublisher),
                connection=provided(resources, BrokerConnection),
            )


@asynccontextmanager
async def _connected_bot(settings: BotSettings) -> AsyncGenerator[Bot]:
    api = TelegramAPIServer.from_base(settings.telegram_api_url.get_secret_value())
    async with Bot(settings.bot_token.get_secret_value(), session=AiohttpSession(api=api)).context() as bot:
        try:
            me = await bot.me()
            if settings.webhook_url is None or settings.updates == "polling":
                await bot.delete_webhook()  # with a webhook, Telegram refuses polling
        except TelegramUnauthorizedError:
            raise token_error() from None
        except AiogramError as error:
            raise UnavailableError(f"Telegram does not answer: {type(error).__name__}") from error
        _log.info("signed in to Telegram", username=me.username)
        yield bot


@asynccontextmanager
async def _started(
    dispatcher: Dispatcher, bot: Bot, redis: Redis, providers: Mapping[Any, object]
) -> AsyncGenerator[None]:
    """Run the dispatcher's startup and shutdown handlers around the block, with injection and error handling."""
    data = {"dispatcher": dispatcher, "bots": (bot,), **dispatcher.workflow_data}
    injection = _Injection(providers)
    with fsm_in_redis(dispatcher, redis), injection.into(dispatcher), TemporaryErrors().around(dispatcher):
        await dispatcher.emit_startup(bot=bot, **data)
        try:
            injection.check(dispatcher)  # after the startup handlers, which may have added data
            yield
        finally:
            await dispatcher.emit_shutdown(bot=bot, **data)


class _Injection:
    """Passes arguments to handlers by type, in addition to those that Aiogram passes by name."""

    def __init__(self, providers: Mapping[Any, object]) -> None:
        self._providers = providers
        self._plans: dict[Any, InjectionPlan] = {}
        self._by_name: dict[Any, InjectionPlan] = {}

    def check(self, dispatcher: Dispatcher) -> None:
        """Find parameters without a provider, as far as that is certain before the first update.

        Raises:
            DeclarationError: the type of a handler's parameter is not provided, and its name is not one that Aiogram,
                the dispatcher's data or a filter provides.
        """
        for name, observer, handler in static_handlers(dispatcher):
            given = {*dispatcher.workflow_data, *CONTEXT_NAMES}
            self._check_given(handler.callback, given, f"{name} of {observer}")

    def _check_given(self, callback: Callable[..., Any], given: Container[str], where: str) -> None:
        missing = [want for want in self._by_name[callback].wanted if want.name not in given]
        if missing:
            types = sorted(getattr(each, "__qualname__", str(each)) for each in self._providers)
            raise DeclarationError(
                f"nothing provides {', '.join(map(str, missing))} for the handler {self._by_name[callback].owner}"
                f" ({where}); by type there are {', '.join(types)}"
            )

    @contextmanager
    def into(self, dispatcher: Dispatcher) -> Generator[None]:
        """Register with a dispatcher inside the block.

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
        callback = data["handler"].callback
        values = {**self._providers, RequestContext: current(), Translator: translator()}
        given = data | self._plan(callback).arguments(values)
        try:
            return await handler(event, given)
        except TypeError as error:
            if "required" in str(error):  # Python's message for a missing argument
                self._check_given(callback, given, "neither does a filter or middleware")
            raise

    def _plan(self, callback: Callable[..., Any]) -> InjectionPlan:
        if callback not in self._plans:
            parameters = list(inspect.signature(callback).parameters.values())
            # The first is the event; Aiogram passes others by name, with or without an annotation.
            by_name = {it.name for it in parameters if it.annotation is it.empty or it.kind in _VARIADIC}
            plan = plan_injection(callback, skip={parameters[0].name, *by_name} if parameters else ())
            known = (*self._providers, RequestContext, Translator)
            wanted = tuple(want for want in plan.wanted if want.type in known)
            others = tuple(want for want in plan.wanted if want.type not in known and not want.optional)
            self._by_name[callback] = InjectionPlan(plan.owner, others)
            self._plans[callback] = InjectionPlan(plan.owner, wanted)
        return self._plans[callback]


_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
