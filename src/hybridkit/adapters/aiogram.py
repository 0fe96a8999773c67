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
idempotency guard sees to it that it still runs once. The updates of a chat are handled in their order, those of others
beside. What fails for a moment is handled again (`TemporaryError` and the other retryable errors of hybridkit,
Telegram's "retry later", 5xx and lost connections); what is given up is answered with the request id, unless a handler
of errors of your own has dealt with it. Consumers of events can run beside.
"""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from hybridkit.adapters._running import (
    Lifespan,
    StopSignals,
    open_application,
    open_resources,
    provided,
    run_process,
    start_consumers,
)
from hybridkit.context import RequestContext, current
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError, MissingExtraError, UnavailableError
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.injection import InjectionPlan, plan_injection
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustConsumer
from hybridkit.observability import get_logger
from hybridkit.settings import BotSettings

try:
    from aiogram import Bot, Dispatcher
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import TelegramAPIServer
    from aiogram.exceptions import AiogramError, TelegramUnauthorizedError
    from aiogram.types import TelegramObject

    from hybridkit.adapters._telegram._failures import FAILURE_TEXTS, check_texts
    from hybridkit.adapters._telegram._handling import HANDLER_SECONDS, TemporaryErrors, UpdateRunner
    from hybridkit.adapters._telegram._polling import Polling, token_error
    from hybridkit.adapters._telegram._static_handlers import CONTEXT_NAMES, static_handlers
except ImportError as error:
    if (error.name or "").partition(".")[0] != "aiogram":
        raise
    raise MissingExtraError(__name__, extra="aiogram") from None

__all__ = ["FAILURE_TEXTS", "bot_lifespan", "run_bot"]

_log = get_logger("hybridkit.bot")


def run_bot(
    dispatcher: Dispatcher,
    settings_class: type[BotSettings],
    *,
    consumers: Sequence[RobustConsumer] = (),
    lifespan: Lifespan | None = None,
    failure_texts: Mapping[str, str] = FAILURE_TEXTS,
    handler_seconds: float = HANDLER_SECONDS,
) -> None:
    """Ask Telegram for updates until SIGTERM, then finish what runs and return. A second signal gives up what runs.

    Args:
        dispatcher: its handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis`, `Context`, the settings, and
            what `lifespan` provides, by type.
        settings_class: read once, now.
        consumers: run beside; their handlers may also ask for aiogram's `Bot`.
        lifespan: a context manager of the application's own, entered when the resources are open and left when the
            handlers have ended. It may yield a mapping of types to what handlers get for them: `{Mailer: mailer}`.
        failure_texts: what a person is told whose update is given up, by language (`ru`); `{request_id}` is filled in.
            English, or else the first, is for all other languages. An empty mapping says nothing.
        handler_seconds: how long the handlers of an update may take; then they are cancelled, and it is given up.

    Raises:
        SystemExit: with code 1, when the settings are unusable or the start failed.
    """

    async def work(settings: BotSettings, stop: StopSignals) -> None:
        running = _running_bot(
            dispatcher,
            settings,
            consumers=consumers,
            lifespan=lifespan,
            failure_texts=failure_texts,
            handler_seconds=handler_seconds,
        )
        async with running as (resources, polling):
            resources.started()
            stop.started(resources)
            await polling.until(stop.asked)

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
) -> AsyncGenerator[ServiceResources]:
    """What `run_bot` runs, for those who have a `main` of their own: inside the block the bot answers.

    Call `resources.started()` to turn readiness green.
    """
    running = _running_bot(
        dispatcher,
        settings,
        consumers=consumers,
        lifespan=lifespan,
        failure_texts=failure_texts,
        handler_seconds=handler_seconds,
    )
    async with running as (resources, _):
        yield resources


@asynccontextmanager
async def _running_bot(
    dispatcher: Dispatcher,
    settings: BotSettings,
    *,
    consumers: Sequence[RobustConsumer],
    lifespan: Lifespan | None,
    failure_texts: Mapping[str, str],
    handler_seconds: float,
) -> AsyncGenerator[tuple[ServiceResources, Polling]]:
    check_texts(failure_texts)
    if handler_seconds <= 0:
        raise DeclarationError(f"handler_seconds must be positive, not {handler_seconds}")
    # A message to a person can't be taken back: without Redis, better wait than send it twice.
    async with open_resources("aiogram", settings, when_down=RedisDown.EXTERNAL) as resources:
        bot = await resources.open("telegram", lambda: _connected_bot(settings), provides=Bot)
        await open_application(resources, lifespan)
        await resources.open("dispatcher", lambda: _started(dispatcher, bot, resources.providers))
        await start_consumers(resources, consumers, providers=resources.providers)
        updates = UpdateRunner(
            dispatcher,
            bot,
            provided(resources, IdempotencyGuard),
            failure_texts=failure_texts,
            handler_seconds=handler_seconds,
        )
        redis = provided(resources, Redis)
        polling = await resources.open("updates", lambda: Polling(bot, updates, redis), probe=Polling.probe)
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
            raise token_error() from None
        except AiogramError as error:
            raise UnavailableError(f"Telegram does not answer: {type(error).__name__}") from error
        _log.info("signed in to Telegram", username=me.username)
        yield bot


@asynccontextmanager
async def _started(dispatcher: Dispatcher, bot: Bot, providers: Mapping[Any, object]) -> AsyncGenerator[None]:
    """Handlers get what they ask for; those of `dispatcher.startup` and `dispatcher.shutdown` run as ever."""
    data = {"dispatcher": dispatcher, "bots": (bot,), **dispatcher.workflow_data}
    injection = _Injection(providers)
    with injection.into(dispatcher), TemporaryErrors().around(dispatcher):
        await dispatcher.emit_startup(bot=bot, **data)
        try:
            injection.check(dispatcher)  # what handles the startup may have put into the dispatcher's data
            yield
        finally:
            await dispatcher.emit_shutdown(bot=bot, **data)


class _Injection:
    """Gives handlers what they ask for by type, on top of what Aiogram gives them by name."""

    def __init__(self, providers: Mapping[Any, object]) -> None:
        self._providers = providers
        self._plans: dict[Any, InjectionPlan] = {}
        self._by_name: dict[Any, InjectionPlan] = {}

    def check(self, dispatcher: Dispatcher) -> None:
        """Find what nobody can provide, as far as that is certain before there is an update.

        Raises:
            DeclarationError: a handler's parameter is neither of a type that is provided, nor has the name of anything
                that Aiogram, the dispatcher's data or a filter gives.
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
        callback = data["handler"].callback
        values = {**self._providers, RequestContext: current()}
        given = data | self._plan(callback).arguments(values)
        try:
            return await handler(event, given)
        except TypeError as error:
            if "required" in str(error):  # Python's word, where the handler was called without a parameter
                self._check_given(callback, given, "neither does a filter or middleware")
            raise

    def _plan(self, callback: Callable[..., Any]) -> InjectionPlan:
        if callback not in self._plans:
            parameters = list(inspect.signature(callback).parameters.values())
            # The first is the event; Aiogram finds others by their name, whether they have an annotation or not.
            by_name = {it.name for it in parameters if it.annotation is it.empty or it.kind in _VARIADIC}
            plan = plan_injection(callback, skip={parameters[0].name, *by_name} if parameters else ())
            known = (*self._providers, RequestContext)
            wanted = tuple(want for want in plan.wanted if want.type in known)
            others = tuple(want for want in plan.wanted if want.type not in known and not want.optional)
            self._by_name[callback] = InjectionPlan(plan.owner, others)
            self._plans[callback] = InjectionPlan(plan.owner, wanted)
        return self._plans[callback]


_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
