"""The demo's scenario: a registration whose event reaches every service once, whatever is repeated.

Nothing is mocked: registrations arrive over HTTP, events over RabbitMQ, and Telegram updates over the Bot API's own
protocol. The demo checks the outcome from outside: in the data services, and in the messages sent to Telegram.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from uuid import UUID, uuid4

import httpx

from examples.contracts.analytics import USER_STATS, UserStats
from examples.contracts.users import USERS, NewUser, User, UserCreated
from examples.demo.report import Report, chapter, say
from examples.demo.stack import OBSERVER, SERVICES, TELEGRAM, Stack
from hybridkit import EventEnvelope
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.dev import Supervisor, merge_logs
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher

WAIT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05


async def play(stack: Stack, supervisor: Supervisor, report: Report) -> None:
    """Play the scenario on a running stack.

    Raises:
        TimeoutError: something did not happen in time; the message names it.
    """
    async with _opened(stack) as world:
        user = await _register(world, report)
        await _say_start(world, user, report)
        await _repeat_registration(world, user, report)
        await _repeat_update(world, user, report)
        await _repeat_event(world, user, report)
        _tell_story(world, supervisor, report)


class World:
    """The demo's connections to the stack, and the person that it plays.

    Attributes:
        person: the body of the registration.
        headers: the idempotency key and request id of the registration.
        heard: the `user.created` events about this person that RabbitMQ has delivered to the demo.
    """

    def __init__(self, stack: Stack) -> None:
        unique = uuid4().hex[:12]
        self.stack = stack
        self.person = NewUser(
            email=f"Ada.{unique}@Example.org", name="Ада", language="ru", telegram_id=int(unique, 16)
        )
        self.request_id = f"demo-{unique}"
        self.headers = {"idempotency-key": f'"register-{unique}"', "x-request-id": self.request_id}
        self.heard: list[EventEnvelope[UserCreated]] = []
        self.api = httpx.AsyncClient(base_url=stack.url("api_service"), timeout=30)
        self.telegram = httpx.AsyncClient(base_url=f"{stack.url(TELEGRAM)}/control", timeout=30)
        self.postgres = PostgresDataClient(
            stack.url("db_postgres_service"),
            service=OBSERVER,
            authorization=stack.authorization("db_postgres_service"),
        )
        self.mongo = MongoDataClient(
            stack.url("db_mongo_service"),
            service=OBSERVER,
            authorization=stack.authorization("db_mongo_service"),
        )
        self.publisher = RobustPublisher(stack.urls.rabbitmq, service="demo")

    async def register(self, **changes: str) -> httpx.Response:
        """POST the registration, with changes of its fields."""
        body = self.person.model_dump(mode="json") | changes
        return await self.api.post("/users", json=body, headers=self.headers)

    async def told(self) -> list[str]:
        """Return the texts that the bot has sent to this person."""
        state = (await self.telegram.get("/state")).json()["result"]
        return [sent["text"] for sent in state["messages"] if sent["chat_id"] == self.person.telegram_id]

    async def write_to_bot(self, text: str) -> int:
        """Write to the bot as this person, and return the id of the update."""
        sender = {"id": self.person.telegram_id, "first_name": "Ada", "language_code": "ru-RU"}
        answer = await self.telegram.post("/updates", json={"text": text, "from_user": sender})
        update_id: int = answer.json()["result"]["update_id"]
        return update_id

    async def skipped(self, service: str, metric: str) -> float:
        """Return a counter of duplicates from a service's metrics."""
        async with httpx.AsyncClient() as client:
            lines = (await client.get(f"{self.stack.management_url(service)}/metrics")).text.splitlines()
        counted = [line for line in lines if line.startswith(metric) and 'outcome="duplicate"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


@asynccontextmanager
async def _opened(stack: Stack) -> AsyncGenerator[World]:
    world = World(stack)
    tap = RobustConsumer(f"demo.tap_{world.request_id.replace('-', '_')}")

    @tap.on(UserCreated)
    async def hear(envelope: EventEnvelope[UserCreated]) -> None:  # pyright: ignore[reportUnusedFunction]
        if envelope.data.email == world.person.email.casefold():
            world.heard.append(envelope)

    async with AsyncExitStack() as opened:
        for client in (world.api, world.telegram, world.postgres, world.mongo, world.publisher):
            await opened.enter_async_context(client)
        connection = await opened.enter_async_context(BrokerConnection(stack.urls.rabbitmq, name="demo"))
        await opened.enter_async_context(tap.running(connection, publisher=world.publisher))
        yield world


# ── the steps ────────────────────────────────────────────────────────────────────────────────────


async def _register(world: World, report: Report) -> User:
    with chapter("A registration: one HTTP request, one database transaction, and what follows") as watch:
        answer = await world.register()
        report.check("POST /users is answered with 201", answer.status_code == 201, f"{watch}")
        answer.raise_for_status()
        user = User.model_validate_json(answer.content)
        stored = await world.postgres.get(USERS, user.id)
        report.check("the user is a row in PostgreSQL", stored == user, f"id {user.id}")
        envelope = (await _until(lambda: _value(world.heard), "user.created on RabbitMQ"))[0]
        same_request = envelope.request_id == world.request_id
        report.check("the relay has published user.created", same_request, f"{watch} after the request")
        stats = await _until(lambda: world.mongo.get_or_none(USER_STATS, user.id), "the analytics in MongoDB")
        report.check(
            "the worker has put analytics into MongoDB", stats.registered, f"{watch} after the request"
        )
        told = await _until(world.told, "the welcome message on Telegram")
        report.check(
            "the bot has welcomed the user",
            told[0].startswith("Добро пожаловать, Ада"),
            f"{watch}: {told[0]}",
        )
    return user


async def _say_start(world: World, user: User, report: Report) -> None:
    with chapter("A conversation with the bot") as watch:
        await world.write_to_bot("/start")
        told = await _until(lambda: _at_least(2, world.told), "the answer to /start")
        report.check("/start is answered, by name", f"{user.name}!" in told[1], f"{watch}: {told[1]}")


async def _repeat_registration(world: World, user: User, report: Report) -> None:
    with chapter("The same registration again, with the same Idempotency-Key") as watch:
        answer = await world.register()
        replayed = answer.headers.get("idempotency-replayed") == "true"
        same = User.model_validate_json(answer.content) == user
        report.check("the answer is the first one, replayed", replayed and same, f"{watch}")
        rows = [row async for row in world.postgres.find(USERS).where(USERS["email"] == user.email)]
        report.check("there is one row", len(rows) == 1)
        other = await world.register(name="Eve")
        report.check("the key with another body is refused", other.status_code == 422)


async def _repeat_update(world: World, user: User, report: Report) -> None:
    with chapter("The same Telegram update again") as watch:
        update_id = await world.write_to_bot("/start")
        before = await _until(lambda: _at_least(3, world.told), "the answer to another /start")
        await world.telegram.post("/redeliver", json={"update_id": update_id})
        metric = "hybridkit_bot_update_duration_seconds_count"
        skipped = await _until(lambda: world.skipped("bot_service", metric), "the update to come again")
        after = await world.told()
        report.check(
            "it is recognised, and answered once",
            len(after) == len(before),
            f"{watch}, skipped {skipped:.0f}",
        )
        report.check("the answer is for the one who asked", user.name in after[-1])


async def _repeat_event(world: World, user: User, report: Report) -> None:
    with chapter("The same event again: the same bytes, published a second time") as watch:
        envelope = world.heard[0]
        told_before, stats_before = await world.told(), await world.mongo.get(USER_STATS, user.id)
        await world.publisher.publish_encoded(
            envelope.encode(), event_type=envelope.event_type, event_id=envelope.event_id
        )
        metric = "hybridkit_events_consumed_total"
        for service in ("worker_service", "bot_service"):
            await _until(_skipped_in(world, service, metric), f"the event to come to {service} again")
        report.check("worker and bot recognise it", True, f"{watch}")
        stats: UserStats = await world.mongo.get(USER_STATS, user.id)
        report.check(
            "the analytics were not touched again", stats == stats_before, f"version {stats.version}"
        )
        report.check("nobody is welcomed twice", await world.told() == told_before)
        events: set[UUID] = {each.event_id for each in world.heard}
        report.check("all of this was one event", len(events) == 1, f"event_id {envelope.event_id}")


def _tell_story(world: World, supervisor: Supervisor, report: Report) -> None:
    with chapter(f"One request id in all logs: {world.request_id}"):
        lines = merge_logs(supervisor.logs, request_id=world.request_id)
        report.story = [f"{line.timestamp[11:23]}  {line.service:<20} {line.message}" for line in lines]
        for line in report.story:
            say(f"  {line}")
        seen = {line.service for line in lines}
        missing = sorted(set(SERVICES) - seen)
        report.check(
            "all five services tell of it", not missing, f"missing: {', '.join(missing)}" if missing else ""
        )


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────


async def _until[T](look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Poll until there is a result.

    Raises:
        TimeoutError: there was none in time; the message names what was awaited.
    """
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (found := await look()):  # noqa: ASYNC110  # what other processes do sets no event here
                await asyncio.sleep(POLL_SECONDS)
            return found
    except TimeoutError:
        raise TimeoutError(f"waited {WAIT_SECONDS:.0f} s in vain for {what}") from None


async def _value[T](value: T) -> T:
    return value


async def _at_least(count: int, look: Callable[[], Awaitable[list[str]]]) -> list[str] | None:
    found = await look()
    return found if len(found) >= count else None


def _skipped_in(world: World, service: str, metric: str) -> Callable[[], Awaitable[float]]:
    return lambda: world.skipped(service, metric)
