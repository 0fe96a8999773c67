"""The demo's scenario: a registration whose event reaches every service once, whatever is repeated.

Nothing is mocked: registrations arrive over HTTP, events over RabbitMQ, and Telegram updates over the Bot API's own
protocol. The demo checks the outcome from outside: in the data services, and in the messages sent to Telegram.
"""

from functools import partial
from typing import Final
from uuid import UUID, uuid4

import httpx

from examples.contracts.analytics import USER_STATS, UserStats
from examples.contracts.users import USERS, NewUser, User, UserCreated
from examples.demo.report import Report, chapter, say
from examples.demo.stack import OBSERVER, SERVICES
from hybridkit import EventEnvelope
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.messaging import RobustPublisher
from hybridkit.testing import CollectedEvents, Stack, TelegramUser

WAIT_SECONDS: Final = 60.0


async def play(stack: Stack, report: Report) -> None:
    """Play the scenario on a running stack.

    Raises:
        TimeoutError: something did not happen in time; the message names it.
    """
    world = World(
        stack,
        postgres=await stack.postgres_client(OBSERVER),
        mongo=await stack.mongo_client(OBSERVER),
        publisher=await stack.publisher(),
        events=await stack.collect(UserCreated),
    )
    user = await _register(world, report)
    await _say_start(world, user, report)
    await _repeat_registration(world, user, report)
    await _repeat_update(world, user, report)
    await _repeat_event(world, user, report)
    _tell_story(world, report)


class World:
    """The demo's connections to the stack, and the person that it plays.

    Attributes:
        person: the body of the registration.
        headers: the idempotency key and request id of the registration.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        postgres: PostgresDataClient,
        mongo: MongoDataClient,
        publisher: RobustPublisher,
        events: CollectedEvents,
    ) -> None:
        unique = uuid4().hex[:12]
        self.stack, self.postgres, self.mongo, self.publisher = stack, postgres, mongo, publisher
        self.person = NewUser(
            email=f"Ada.{unique}@Example.org", name="Ада", language="ru", telegram_id=int(unique, 16)
        )
        self.request_id = f"demo-{unique}"
        self.headers = {"idempotency-key": f'"register-{unique}"', "x-request-id": self.request_id}
        self.api = stack.http("api_service")
        self._events = events

    @property
    def heard(self) -> list[EventEnvelope[UserCreated]]:
        """The `user.created` events about this person that RabbitMQ has delivered to the demo."""
        email = self.person.email.casefold()
        return self._events.of(UserCreated, where=lambda event: event.email == email)

    async def register(self, **changes: str) -> httpx.Response:
        """POST the registration, with changes of its fields."""
        body = self.person.model_dump(mode="json") | changes
        return await self.api.post("/users", json=body, headers=self.headers)

    def told(self) -> list[str]:
        """Return the texts that the bot has sent to this person."""
        sent = self.stack.telegram.messages
        return [message.text for message in sent if message.chat_id == self.person.telegram_id]

    def told_at_least(self, count: int) -> list[str] | None:
        """Return the texts once there are so many."""
        told = self.told()
        return told if len(told) >= count else None

    def write_to_bot(self, text: str) -> int:
        """Write to the bot as this person, and return the id of the update."""
        sender = TelegramUser(
            id=self.person.telegram_id or 0, first_name="Ada", username=None, language_code="ru-RU"
        )
        return self.stack.telegram.push_text(text, from_user=sender)

    async def skipped(self, service: str, metric: str) -> float:
        """Return a counter of duplicates from a service's metrics."""
        async with httpx.AsyncClient() as client:
            lines = (await client.get(f"{self.stack.management_url(service)}/metrics")).text.splitlines()
        counted = [line for line in lines if line.startswith(metric) and 'outcome="duplicate"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


# ── the steps ────────────────────────────────────────────────────────────────────────────────────


async def _register(world: World, report: Report) -> User:
    with chapter("A registration: one HTTP request, one database transaction, and what follows") as watch:
        answer = await world.register()
        report.check("POST /users is answered with 201", answer.status_code == 201, f"{watch}")
        answer.raise_for_status()
        user = User.model_validate_json(answer.content)
        stored = await world.postgres.get(USERS, user.id)
        report.check("the user is a row in PostgreSQL", stored == user, f"id {user.id}")
        envelope = (
            await world.stack.until(
                lambda: world.heard, "user.created on RabbitMQ", timeout_seconds=WAIT_SECONDS
            )
        )[0]
        same_request = envelope.request_id == world.request_id
        report.check("the relay has published user.created", same_request, f"{watch} after the request")
        stats = await world.stack.until(
            lambda: world.mongo.get_or_none(USER_STATS, user.id),
            "the analytics in MongoDB",
            timeout_seconds=WAIT_SECONDS,
        )
        report.check(
            "the worker has put analytics into MongoDB", stats.registered, f"{watch} after the request"
        )
        told = await world.stack.until(
            world.told, "the welcome message on Telegram", timeout_seconds=WAIT_SECONDS
        )
        report.check(
            "the bot has welcomed the user",
            told[0].startswith("Добро пожаловать, Ада"),
            f"{watch}: {told[0]}",
        )
    return user


async def _say_start(world: World, user: User, report: Report) -> None:
    with chapter("A conversation with the bot") as watch:
        world.write_to_bot("/start")
        told = await world.stack.until(
            lambda: world.told_at_least(2), "the answer to /start", timeout_seconds=WAIT_SECONDS
        )
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
        update_id = world.write_to_bot("/start")
        before = await world.stack.until(
            lambda: world.told_at_least(3), "the answer to another /start", timeout_seconds=WAIT_SECONDS
        )
        world.stack.telegram.redeliver(update_id)
        metric = "hybridkit_bot_update_duration_seconds_count"
        skipped = await world.stack.until(
            lambda: world.skipped("bot_service", metric),
            "the update to come again",
            timeout_seconds=WAIT_SECONDS,
        )
        after = world.told()
        report.check(
            "it is recognised, and answered once",
            len(after) == len(before),
            f"{watch}, skipped {skipped:.0f}",
        )
        report.check("the answer is for the one who asked", user.name in after[-1])


async def _repeat_event(world: World, user: User, report: Report) -> None:
    with chapter("The same event again: the same bytes, published a second time") as watch:
        envelope = world.heard[0]
        told_before, stats_before = world.told(), await world.mongo.get(USER_STATS, user.id)
        await world.publisher.publish_encoded(
            envelope.encode(), event_type=envelope.event_type, event_id=envelope.event_id
        )
        metric = "hybridkit_events_consumed_total"
        for service in ("worker_service", "bot_service"):
            skipped = partial(world.skipped, service, metric)
            await world.stack.until(
                skipped, f"the event to come to {service} again", timeout_seconds=WAIT_SECONDS
            )
        report.check("worker and bot recognise it", True, f"{watch}")
        stats: UserStats = await world.mongo.get(USER_STATS, user.id)
        report.check(
            "the analytics were not touched again", stats == stats_before, f"version {stats.version}"
        )
        report.check("nobody is welcomed twice", world.told() == told_before)
        events: set[UUID] = {each.event_id for each in world.heard}
        report.check("all of this was one event", len(events) == 1, f"event_id {envelope.event_id}")


def _tell_story(world: World, report: Report) -> None:
    with chapter(f"One request id in all logs: {world.request_id}"):
        lines = world.stack.logs(world.request_id)
        report.story = [f"{line.timestamp[11:23]}  {line.service:<20} {line.message}" for line in lines]
        for line in report.story:
            say(f"  {line}")
        seen = {line.service for line in lines}
        missing = sorted(set(SERVICES) - seen)
        report.check(
            "all five services tell of it", not missing, f"missing: {', '.join(missing)}" if missing else ""
        )
