"""The life of a process of any kind around its work.

```
settings → logs → traces → Redis, RabbitMQ, data services → work … SIGTERM → stop in order → exit 0
```

A process has one kind. The first SIGTERM or Ctrl-C asks it to stop, the second one to hurry.
"""

import asyncio
import gc
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NewType, Self, cast, get_origin

from hybridkit.clients import ClientPolicy, MongoDataClient, PostgresDataClient
from hybridkit.codec import format_timestamp
from hybridkit.coordination import (
    Redis,
    check_noeviction,
    connect_redis,
    probe_redis,
    replication_problems,
    use_redis,
)
from hybridkit.errors import (
    DeclarationError,
    HybridkitError,
    MisuseError,
    NotConnectedError,
    UnavailableError,
)
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.jobs import drain_blocking
from hybridkit.lifespan import Dependency, Health, HealthServer, ServiceResources, StopAction
from hybridkit.lifespan._stacks import render_stacks
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import (
    Watchdog,
    configure_error_reports,
    configure_logging,
    configure_tracing,
    flush_logs,
    get_logger,
    metrics,
    render_metrics,
    report_error,
)
from hybridkit.settings import DataClientSettings, RabbitSettings, RedisSettings, SecretUrl, ServiceSettings

if TYPE_CHECKING:
    from hybridkit.adapters._process_events import ProcessEvents

type Kind = Literal["fastapi", "aiogram", "worker"]

type Lifespan = Callable[[ServiceResources], AbstractAsyncContextManager[Mapping[Any, object] | None]]
"""An application's own context manager; it may yield values for its handlers, by type."""


class Management(Enum):
    """The management port of a process: its own, or one that the workers of an application share."""

    OWN = auto()
    SHARED = auto()


SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
UNREADY_SECONDS: Final = 5.0
"""How long a load balancer may take to notice that a process in production is not ready any more."""
FAILED: Final = 1

YOUNG_OBJECTS: Final = 10_000
"""How many more objects than before start a garbage collection; about 1 MB of them.

A few updates or messages that run together have more than Python's own 700.
"""

_SERVERS: Final = frozenset({"uvicorn", "gunicorn"})
_owns_process: Final = ContextVar("hybridkit_owns_process", default=False)
"""Whether `run_process` runs this, so that what a process has once (faulthandler's timer) may be taken."""

_log = get_logger("hybridkit.process")


# ── one kind per process ─────────────────────────────────────────────────────────────────────────

_running: Final[list[Kind]] = []


@contextmanager
def one_kind(kind: Kind) -> Generator[None]:
    """Claim the process for a kind inside the block.

    An API, a bot and a worker each own the event loop, the signals and the way of stopping. Two of them in one process
    would take these from each other, and one that blocks or crashes would affect the other.

    Raises:
        MisuseError: the process is of another kind already.
    """
    other = next((running for running in _running if running != kind), None)
    if other is not None:
        raise MisuseError(
            f"this process runs a service of type {other}, so it can't run one of type {kind} too: give each its own"
            " process; they reach each other through events or HTTP"
        )
    _running.append(kind)
    try:
        yield
    finally:
        _running.remove(kind)


# ── its resources ────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_resources(
    kind: Kind,
    settings: ServiceSettings,
    *,
    when_down: RedisDown = RedisDown.DURABLE,
    management: Management | None = Management.OWN,
) -> AsyncGenerator[ServiceResources]:
    """Open everything that the settings name, and provide it by type inside the block.

    A data service whose URL is set is waited for, and is part of readiness. One whose URL is left at the default has a
    client nevertheless, but not in production.

    Args:
        kind: the kind of process.
        settings: their base classes say what is needed: `RedisSettings`, `RabbitSettings`, `DataClientSettings`.
        when_down: what the idempotency guard does while Redis is down.
        management: whether to listen on the management port, which is open for as long as anything is.
    """
    with one_kind(kind):
        resources = ServiceResources(
            start_budget_seconds=settings.start_budget_seconds,
            shutdown_seconds=settings.shutdown_seconds,
            unready_seconds=UNREADY_SECONDS if settings.environment == "production" else 0.0,
        )
        async with resources, _observed(settings, resources):
            metrics.build_info.labels(
                settings.service_name, settings.service_version, settings.service_commit
            ).set(1)
            watchdog = await resources.open("watchdog", lambda: _watchdog(settings))
            resources.health.watch(watchdog.is_alive)
            resources.on_flush("logs", _flush_logs)
            resources.on_drain("blocking_calls", drain_blocking)
            for type_ in type(settings).__mro__:
                if issubclass(type_, ServiceSettings):
                    resources.provide(type_, settings)
            if management is not None:
                is_shared = management is Management.SHARED
                await resources.open(
                    "management", lambda: _management_server(settings, resources.health, is_shared=is_shared)
                )
            if dependencies := list(_dependencies(kind, settings)):
                await resources.open_together(*dependencies)
            if isinstance(settings, RabbitSettings) and settings.process_events:
                await resources.open("process_events", lambda: _process_events(settings, resources))
            redis = resources.providers.get(Redis)
            if isinstance(redis, Redis):
                resources.provide(IdempotencyGuard, IdempotencyGuard(redis, when_down=when_down))
                await resources.open("redis_declarations", lambda: _for_declarations(redis, settings))
            yield resources


@asynccontextmanager
async def _observed(settings: ServiceSettings, resources: ServiceResources) -> AsyncGenerator[None]:
    """Send the spans and the unexpected errors of the block; an error that leaves it ends the process."""
    tracing, reports = configure_tracing(settings), configure_error_reports(settings)
    resources.on_flush("traces", lambda seconds: tracing.aclose(timeout_seconds=seconds))
    resources.on_flush("error reports", lambda seconds: reports.aclose(timeout_seconds=seconds))
    try:
        yield
    except Exception as error:
        report_error(error)
        raise


@asynccontextmanager
async def _for_declarations(redis: Redis, settings: ServiceSettings) -> AsyncGenerator[None]:
    """Let what was declared at import use the Redis of this process; nothing waits for that of the caches."""
    cache_url = settings.redis_cache_url if isinstance(settings, RedisSettings) else None
    async with AsyncExitStack() as stack:
        cache = None
        if cache_url is not None:
            cache = await stack.enter_async_context(connect_redis(cache_url.get_secret_value()))
        stack.enter_context(use_redis(redis, cache=cache))
        yield


def _management_server(settings: ServiceSettings, health: Health, *, is_shared: bool) -> HealthServer:
    return HealthServer(
        health,
        port=settings.management_port,
        host=settings.management_host,
        metrics=render_metrics,
        stacks=render_stacks if settings.environment == "development" else None,
        is_shared=is_shared,
    )


async def _flush_logs(seconds: float) -> None:
    if not flush_logs(0):
        await asyncio.to_thread(flush_logs, seconds)


def _process_events(settings: ServiceSettings, resources: ServiceResources) -> "ProcessEvents":
    # Imported here, as the import puts the events into the registry.
    from hybridkit.adapters._process_events import ProcessEvents  # noqa: PLC0415

    return ProcessEvents(provided(resources, RobustPublisher), settings, resources.health)


def _watchdog(settings: ServiceSettings) -> Watchdog:
    return Watchdog(
        stall_seconds=settings.loop_stall_seconds,
        dead_seconds=settings.loop_dead_seconds,
        watches_c_calls=_owns_process.get() or _is_run_by_server(),
    )


def _is_run_by_server() -> bool:
    """Return whether the command of uvicorn or Gunicorn runs the process, which then has no other use for the timer."""
    module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", "")
    return Path(sys.argv[0]).name in _SERVERS or module.partition(".")[0] in _SERVERS


def _dependencies(kind: Kind, settings: ServiceSettings) -> Generator[Dependency[Any]]:
    service = settings.service_name
    if isinstance(settings, RedisSettings):
        redis_url = settings.redis_url.get_secret_value()
        yield Dependency(
            name="redis", factory=lambda: _checked_redis(redis_url), provides=Redis, probe=probe_redis
        )
    if isinstance(settings, RabbitSettings):
        rabbitmq_url = settings.rabbitmq_url.get_secret_value()
        yield Dependency(
            name="rabbitmq",
            factory=lambda: RobustPublisher(rabbitmq_url, service=service),
            provides=RobustPublisher,
            probe=_probe_connection,
        )
        if kind != "fastapi":
            yield Dependency(
                name="rabbitmq_consumers",
                factory=lambda: BrokerConnection(rabbitmq_url, name=service),
                provides=BrokerConnection,
                probe=_probe_connection,
            )
    if isinstance(settings, DataClientSettings):
        # People wait for an API and a bot; a worker's messages can wait.
        policy = ClientPolicy.worker() if kind == "worker" else ClientPolicy.interactive()
        for client, url, name in (
            (PostgresDataClient, "postgres_service_url", settings.postgres_service_name),
            (MongoDataClient, "mongo_service_url", settings.mongo_service_name),
        ):
            address: SecretUrl | None = getattr(settings, url)
            if address is None:
                _log.info("a data service is left out", reason=f"{url.upper()} is not set")
                continue
            yield Dependency(
                name="db_postgres_service" if client is PostgresDataClient else "db_mongo_service",
                factory=partial(
                    client,
                    address.get_secret_value(),
                    service=service,
                    policy=policy,
                    authorization=authorization_for(settings, callee=name),
                ),
                provides=client,
                probe=_probe_client if url in settings.model_fields_set else None,
            )


def authorization_for(settings: DataClientSettings, *, callee: str) -> Callable[[], str] | None:
    """Return the source of `Authorization` for calls of a data service; None without a service token key."""
    if settings.service_token_key is None:
        return None
    from hybridkit.security import ServiceTokenIssuer  # noqa: PLC0415 - an extra of its own

    key = settings.service_token_key.get_secret_value()
    return ServiceTokenIssuer(settings.service_name, key=key, audience=callee).header


@asynccontextmanager
async def _checked_redis(url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(url) as redis:
        await check_noeviction(redis)
        for problem in await replication_problems(redis):
            _log.warning("Redis may lose writes that it has confirmed", problem=problem)
        yield redis


async def _probe_client(client: PostgresDataClient | MongoDataClient) -> str | None:
    return await client.probe()


async def _probe_connection(connection: RobustPublisher | BrokerConnection | RobustConsumer) -> None:
    if not connection.is_ready:
        raise NotConnectedError("RabbitMQ takes or delivers nothing at the moment")


async def probe_consumer(consumer: RobustConsumer) -> None:
    """Check that a consumer gets messages, and that they get on.

    Raises:
        UnavailableError: the consumer is paused or stalled.
        NotConnectedError: the broker delivers nothing to it.
    """
    if (paused := consumer.paused) is not None:
        since = format_timestamp(paused.since)
        raise UnavailableError(f"paused since {since} by {paused.reason}")
    if (stalled := consumer.stalled) is not None:
        raise UnavailableError(stalled)
    await _probe_connection(consumer)


async def open_application(resources: ServiceResources, lifespan: Lifespan | None) -> None:
    """Enter the application's own context manager, and provide what it yields; it is left after the work is drained.

    Raises:
        DeclarationError: it yields a key that is not a type, or a type that has a provider.
    """
    if lifespan is None:
        return
    provides = await resources.open("application", lambda: lifespan(resources))
    provide_yielded(resources, provides or {})


def provide_yielded(resources: ServiceResources, yielded: Mapping[Any, object]) -> None:
    """Provide what an application's lifespan has yielded.

    Raises:
        DeclarationError: it has a key that is not a type, or a type that has a provider.
    """
    # Handlers ask by type, so a key of another kind would never be found.
    if named := [key for key in yielded if not _is_type(key)]:
        raise DeclarationError(
            f"the lifespan yields {', '.join(map(repr, named))}; handlers ask by type, as in `{{Mailer: mailer}}`"
        )
    for type_, value in yielded.items():
        resources.provide(type_, value)


def _is_type(key: object) -> bool:
    return isinstance(key, type | NewType) or get_origin(key) is not None


async def start_consumers(
    resources: ServiceResources, consumers: Sequence[RobustConsumer], *, providers: Mapping[Any, object]
) -> None:
    """Start consumers, which run until the resources are stopped; each is part of readiness.

    Raises:
        DeclarationError: two consumers have the same name.
    """
    if not consumers:
        return
    for name, count in Counter(consumer.name for consumer in consumers).items():
        if count > 1:
            raise DeclarationError(
                f"{count} consumers are named {name!r}, and a consumer is a queue: register all handlers on one of them"
                f" (`concurrency=` says how many run at once), or give each its own name"
            )
    for consumer in consumers:
        resources.on_drain(consumer.name, _drain_of(consumer))
        await consumer.start(
            provided(resources, BrokerConnection),
            publisher=provided(resources, RobustPublisher),
            providers=providers,
            guard=provided(resources, IdempotencyGuard),
        )
        resources.health.add(consumer.name, partial(probe_consumer, consumer))


def _drain_of(consumer: RobustConsumer) -> StopAction:
    return lambda seconds: consumer.drain(budget_seconds=seconds)


def provided[T](resources: ServiceResources, type_: type[T]) -> T:
    """Return the open resource of a type."""
    return cast("T", resources.providers[type_])


# ── start and stop ───────────────────────────────────────────────────────────────────────────────


class StopSignals:
    """The handlers of SIGTERM and SIGINT for the running task. A signal during the start cancels the task.

    Attributes:
        asked: set by the first signal, which asks for a stop in order.
        hurried: set by the second signal, which asks for an end at once.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self._task = asyncio.current_task()
        self._resources: ServiceResources | None = None

    def __repr__(self) -> str:
        return f"StopSignals(asked={self.asked.is_set()}, started={self.has_started})"

    def __enter__(self) -> Self:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.receive, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    @property
    def has_started(self) -> bool:
        """Whether the phase of the start has ended."""
        return self._resources is not None

    def started(self, resources: ServiceResources) -> None:
        """End the phase of the start: from now on a signal stops these resources in order."""
        self._resources = resources
        if _owns_process.get():
            # Modules, models and routes stay as long as the process: a bot's are 250,000 objects. Looking through them
            # took half of its CPU time, as updates that run together live long enough for collections of everything.
            gc.freeze()  # https://docs.python.org/3/library/gc.html#gc.freeze
            gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])

    def receive(self, number: signal.Signals) -> None:
        """Act on a signal, also one that another process manager has its own way to send."""
        _log.info("signal received", signal=number.name)
        if self._resources is None:
            if self._task is not None:
                self._task.cancel()
        elif self.asked.is_set():
            self.hurried.set()
            self._resources.hurry()
        self.asked.set()


def run_process[SettingsT: ServiceSettings](
    settings_class: Callable[[], SettingsT],
    main: Callable[[SettingsT, StopSignals], Coroutine[Any, Any, None]],
) -> None:
    """Read the settings, configure the logs, and run `main` until it ends.

    Raises:
        SystemExit: the settings are unusable, or the start failed; with code 1 and a readable report.
    """
    try:
        settings = settings_class()
    except HybridkitError as error:
        sys.exit(str(error))
    configure_logging(settings)

    async def with_signals() -> None:
        _owns_process.set(True)  # ContextVar has no keyword for it
        with StopSignals() as stop:
            try:
                await main(settings, stop)
            except asyncio.CancelledError:
                if not stop.asked.is_set():
                    raise
                _log.info("stopped before the start was complete")

    thresholds = gc.get_threshold()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(with_signals())
    except HybridkitError as error:
        _log.critical("the process ends", reason=f"{type(error).__name__}: {error}")
        sys.exit(FAILED)
    finally:
        gc.set_threshold(*thresholds)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory when the extra `fast` is installed, or None."""
    try:
        import uvloop  # noqa: PLC0415  # optional, and not needed to import an adapter
    except ImportError:
        return None
    return uvloop.new_event_loop
