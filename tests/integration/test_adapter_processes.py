"""Worker and bot on real RabbitMQ and Redis: what they provide, and what a SIGTERM leaves behind."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiogram import Bot, Dispatcher
from aiogram.filters import CommandStart
from aiogram.types import Message
from pydantic import SecretStr

from hybridkit import Event
from hybridkit.adapters.aiogram import bot_lifespan
from hybridkit.adapters.dependencies import Context, Mongo, Postgres, Publisher, Redis
from hybridkit.adapters.worker import worker_lifespan
from hybridkit.dev import Service, Supervisor, free_port
from hybridkit.errors import DeclarationError
from hybridkit.jobs import Jobs, Slot
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustConsumer, RobustPublisher
from hybridkit.settings import BotSettings, SecretUrl, WorkerSettings
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.helpers import until


class Asked(Event, type="test.asked"):
    number: int
    seconds: float = 0.0


WORKER = """
import asyncio
from hybridkit import Event
from hybridkit.adapters.worker import run_worker
from hybridkit.messaging import RobustConsumer
from hybridkit.settings import WorkerSettings

class Asked(Event, type="test.asked"):
    number: int
    seconds: float = 0.0

consumer = RobustConsumer("worker.asked")

@consumer.on(Asked)
async def answer(event: Asked) -> None:
    print("begun", event.number, flush=True)
    await asyncio.sleep(event.seconds)
    print("done", event.number, flush=True)

run_worker(WorkerSettings, consumers=[consumer])
print("main returned", flush=True)
"""


class Worker:
    """The program above, as often as it is started; all runs write into one log."""

    def __init__(self, supervisor: Supervisor, redis_url: str, rabbitmq_url: str) -> None:
        self.supervisor = supervisor
        self.environment = {
            "SERVICE_NAME": "worker",
            "REDIS_URL": redis_url,
            "RABBITMQ_URL": rabbitmq_url,
            "SHUTDOWN_SECONDS": "20",
        }
        self.runs: list[str] = []

    async def start(self) -> str:
        port = free_port()
        name = f"run_{len(self.runs)}"
        self.runs.append(name)
        service = Service(
            name=name,
            argv=[sys.executable, "-c", WORKER],
            environment=self.environment | {"MANAGEMENT_PORT": str(port)},
            ready_url=f"http://127.0.0.1:{port}/ready",
        )
        await self.supervisor.start(service, timeout_seconds=60)
        return name

    async def ended(self, name: str) -> int:
        async with asyncio.timeout(60):
            return await self.supervisor.wait(name)

    def log(self) -> str:
        return "\n".join(self.supervisor.log_tail(name, lines=10_000) for name in self.runs)

    async def until_logged(self, text: str, *, times: int = 1) -> None:
        await until(lambda: self.log().count(text) >= times)


async def test_sigterm_finishes_what_runs_and_nothing_runs_twice(
    redis_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The running handler ends and acknowledges, so the next worker gets only the next event."""
    async with Supervisor(tmp_path) as supervisor, RobustPublisher(rabbitmq_url, service="test") as publisher:
        worker = Worker(supervisor, redis_url, rabbitmq_url)
        run = await worker.start()
        await publisher.publish(Asked(number=1, seconds=1.0))
        await worker.until_logged("begun 1")
        supervisor.send_signal(run, signal.SIGTERM)
        assert await worker.ended(run) == 0
        assert "done 1" in worker.log()
        assert worker.log().endswith("main returned")
        await worker.start()
        await publisher.publish(Asked(number=2))
        await worker.until_logged("done 2")
        assert worker.log().count("begun 1") == 1


async def test_what_a_second_signal_breaks_off_runs_again(
    redis_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The worker closes at once, and the next one runs the event."""
    async with Supervisor(tmp_path) as supervisor, RobustPublisher(rabbitmq_url, service="test") as publisher:
        worker = Worker(supervisor, redis_url, rabbitmq_url)
        run = await worker.start()
        await publisher.publish(Asked(number=1, seconds=600.0))
        await worker.until_logged("begun 1")
        supervisor.send_signal(run, signal.SIGTERM)
        await worker.until_logged("signal received")
        supervisor.send_signal(run, signal.SIGTERM)
        assert await worker.ended(run) == 0
        assert "done 1" not in worker.log()
        again = await worker.start()
        await worker.until_logged("begun 1", times=2)
        supervisor.send_signal(again, signal.SIGKILL)


async def test_a_workers_handlers_get_what_the_settings_name(redis_url: str, rabbitmq_url: str) -> None:
    """Each injection alias is provided."""
    consumer = RobustConsumer("worker.asked")
    seen: asyncio.Queue[list[str]] = asyncio.Queue()

    @consumer.on(Asked)
    async def answer(
        event: Asked,
        *,
        postgres: Postgres,
        mongo: Mongo,
        publisher: Publisher,
        redis: Redis,
        context: Context,
    ) -> None:
        things = (event, postgres, mongo, publisher, redis, context)
        await seen.put([type(thing).__name__ for thing in things])

    settings = WorkerSettings(
        service_name="worker", port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
    )
    async with worker_lifespan(settings, consumers=[consumer]) as resources:
        resources.started()
        readiness = await resources.health.readiness()
        await resources.providers[RobustPublisher].publish(Asked(number=1))  # type: ignore[attr-defined]
        assert await asyncio.wait_for(seen.get(), 30) == [
            "Asked",
            "PostgresDataClient",
            "MongoDataClient",
            "RobustPublisher",
            "SharedClient",
            "RequestContext",
        ]
    assert readiness.is_ready
    assert {"redis", "rabbitmq", "worker.asked"} < set(readiness.dependencies)


async def test_a_worker_may_be_started_again_with_other_settings(redis_url: str, rabbitmq_url: str) -> None:
    """Its consumer lives at module level, and keeps nothing of the settings of an earlier start."""
    consumer = RobustConsumer("worker.again")
    seen: asyncio.Queue[str] = asyncio.Queue()

    @consumer.on(Asked)
    async def answer(event: Asked, settings: WorkerSettings) -> None:
        seen.put_nowait(settings.service_name)

    for name in ("first_worker", "second_worker"):
        settings = WorkerSettings(
            service_name=name, port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
        )
        async with worker_lifespan(settings, consumers=[consumer]) as resources:
            resources.started()
            await resources.providers[RobustPublisher].publish(Asked(number=1))  # type: ignore[attr-defined]
            assert await asyncio.wait_for(seen.get(), 30) == name


async def test_a_bot_answers_and_consumes_beside(redis_url: str, rabbitmq_url: str) -> None:
    """A handler publishes an event, and a consumer in the same process answers by the bot."""
    dispatcher, consumer = Dispatcher(), RobustConsumer("bot.asked")

    @dispatcher.message(CommandStart())
    async def start(message: Message, publisher: Publisher) -> None:
        await publisher.publish(Asked(number=message.chat.id))
        await message.answer("asked")

    @consumer.on(Asked)
    async def answer(event: Asked, bot: Bot) -> None:
        await bot.send_message(event.number, "answered")

    async with FakeTelegram() as telegram:
        settings = BotSettings(
            service_name="bot",
            port=0,
            redis_url=SecretUrl(redis_url),
            rabbitmq_url=SecretUrl(rabbitmq_url),
            bot_token=SecretStr(telegram.token),
            telegram_api_url=SecretUrl(telegram.url),
        )
        async with bot_lifespan(dispatcher, settings, consumers=[consumer]) as resources:
            resources.started()
            update_id = telegram.push_text("/start", from_user=TelegramUser(id=7))
            messages = await telegram.wait_for_messages(2, timeout_seconds=30)
            readiness = await resources.health.readiness()
            await telegram.wait_until_confirmed(update_id)
    assert {message.text for message in messages} == {"asked", "answered"}
    assert readiness.is_ready
    assert {"updates", "bot.asked"} < set(readiness.dependencies)


class Mailer:
    """Something of the application's own."""

    def __init__(self) -> None:
        self.is_open = True


class OwnSettings(BotSettings):
    greeting: str = "hello"


async def test_handlers_get_what_the_application_opens_and_its_settings(
    redis_url: str, rabbitmq_url: str
) -> None:
    """The application's resource closes after the handlers, and before the resources it was built on."""
    dispatcher, consumer, seen = Dispatcher(), RobustConsumer("bot.asked"), list[object]()
    mailer = Mailer()

    @asynccontextmanager
    async def lifespan(resources: ServiceResources) -> AsyncGenerator[dict[type, object]]:
        assert RobustPublisher in resources.providers
        yield {Mailer: mailer}
        mailer.is_open = False

    @dispatcher.message(CommandStart())
    async def start(message: Message, mailer: Mailer, settings: OwnSettings) -> None:
        seen.extend([mailer, settings.greeting])
        await asyncio.sleep(0.1)
        await message.answer(f"{mailer.is_open}")

    @consumer.on(Asked)
    async def answer(event: Asked, mailer: Mailer, settings: BotSettings, bot: Bot) -> None:
        seen.extend([mailer, settings.service_name])
        await bot.send_message(event.number, "answered")

    async with FakeTelegram() as telegram:
        settings = OwnSettings(
            service_name="bot",
            port=0,
            redis_url=SecretUrl(redis_url),
            rabbitmq_url=SecretUrl(rabbitmq_url),
            bot_token=SecretStr(telegram.token),
            telegram_api_url=SecretUrl(telegram.url),
        )
        for run in (1, 2):  # what lives at module level can be started again
            mailer.is_open = True
            running = bot_lifespan(dispatcher, settings, consumers=[consumer], lifespan=lifespan)
            async with running as resources:
                resources.started()
                await resources.providers[RobustPublisher].publish(Asked(number=7))  # type: ignore[attr-defined]
                await telegram.wait_for_messages(2 * run - 1, timeout_seconds=30)
                telegram.push_text("/start", from_user=TelegramUser(id=7))
                while len(seen) < 4 * run:  # noqa: ASYNC110  # the handler is in the middle of it now
                    await asyncio.sleep(0.01)
            assert not mailer.is_open
    assert seen == [mailer, "bot", mailer, "hello"] * 2
    assert [message.text for message in telegram.messages] == ["answered", "True"] * 2


async def test_what_an_application_fails_to_open_ends_the_start(redis_url: str, rabbitmq_url: str) -> None:
    """The error of the application's own context manager is raised."""
    templates: dict[type, object] = {}

    @asynccontextmanager
    async def lifespan(_: ServiceResources) -> AsyncGenerator[dict[type, object]]:
        yield {Mailer: templates[Mailer]}

    settings = WorkerSettings(
        service_name="worker", port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
    )
    with pytest.raises(KeyError, match="Mailer"):
        async with worker_lifespan(settings, consumers=[], lifespan=lifespan):
            pass


async def test_a_handler_that_wants_what_nobody_has_ends_the_start(redis_url: str, rabbitmq_url: str) -> None:
    """The error names the parameter."""
    consumer = RobustConsumer("worker.asked")

    @consumer.on(Asked)
    async def answer(event: Asked, path: Path) -> None: ...

    settings = WorkerSettings(
        service_name="worker", port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
    )
    with pytest.raises(TypeError, match="path"):
        async with worker_lifespan(settings, consumers=[consumer]):
            pass


class OwnWorkerSettings(WorkerSettings):
    greeting: str = "hello"


async def test_a_workers_jobs_get_what_is_provided_and_can_be_started_again(
    redis_url: str, rabbitmq_url: str
) -> None:
    """A job gets the application's own by type, and is part of readiness; a second start runs the next slot."""
    jobs, consumer, mailer = Jobs(), RobustConsumer("worker.asked"), Mailer()
    seen: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
    slots: list[Slot] = []

    @jobs.every(seconds=1)
    async def tick(
        slot: Slot, mailer: Mailer, settings: OwnWorkerSettings, publisher: Publisher, context: Context
    ) -> None:
        slots.append(slot)
        await publisher.publish(Asked(number=len(slots)))
        await seen.put((mailer, settings.greeting, context.request_id))

    @consumer.on(Asked)
    async def answer(event: Asked, mailer: Mailer, settings: WorkerSettings, context: Context) -> None:
        await seen.put((mailer, settings.service_name, context.request_id))

    @asynccontextmanager
    async def lifespan(_: ServiceResources) -> AsyncGenerator[dict[type, object]]:
        yield {Mailer: mailer}

    settings = OwnWorkerSettings(
        service_name="worker", port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
    )
    for _ in range(2):
        running = worker_lifespan(settings, consumers=[consumer], jobs=jobs, lifespan=lifespan)
        async with running as resources, asyncio.timeout(60):
            resources.started()
            found: set[tuple[object, ...]] = set()
            while not any((mailer, "worker", each[2]) in found for each in found if each[1] == "hello"):
                found.add(await seen.get())  # the event of a run has the run's request id
            readiness = await resources.health.readiness()
            assert "next" in str(readiness.dependencies["job.tick"].detail)
        while not seen.empty():
            seen.get_nowait()
    assert len({slot.scheduled_at for slot in slots}) == len(slots)


async def test_a_job_that_wants_what_nobody_has_ends_the_start(redis_url: str, rabbitmq_url: str) -> None:
    """The error names the parameter and the job."""
    jobs = Jobs()

    @jobs.every(hours=1)
    async def tick(path: Path) -> None: ...

    settings = WorkerSettings(
        service_name="worker", port=0, redis_url=SecretUrl(redis_url), rabbitmq_url=SecretUrl(rabbitmq_url)
    )
    with pytest.raises(DeclarationError, match="path: Path for the job tick"):
        async with worker_lifespan(settings, jobs=jobs):
            pass
