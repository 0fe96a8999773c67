"""Opening resources: the order, the waiting, the roll-back, and the report of what is missing."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from hybridkit.errors import DeclarationError, NotConnectedError, SettingsError, UnavailableError
from hybridkit.lifespan import Dependency, ServiceResources


class Journal(list[str]):
    """Writes down what is opened and closed, and can make it fail."""

    def resource(
        self, name: str, *errors: BaseException, gate: asyncio.Event | None = None
    ) -> Callable[[], AbstractAsyncContextManager[str]]:
        """A factory whose first tries fail with these errors, one after the other."""
        left = list(errors)

        @asynccontextmanager
        async def managed() -> AsyncGenerator[str]:
            self.append(f"try {name}")
            if left:
                raise left.pop(0)
            if gate is not None:
                await gate.wait()
            try:
                yield name
            finally:
                self.append(f"close {name}")

        return managed

    def broken(self, name: str, error: Exception) -> Callable[[], AbstractAsyncContextManager[str]]:
        """A factory that always fails."""

        def managed() -> AbstractAsyncContextManager[str]:
            return self.resource(name, error)()

        return managed

    def closings(self) -> list[str]:
        return [line.removeprefix("close ") for line in self if line.startswith("close ")]


@pytest.fixture
def journal() -> Journal:
    return Journal()


DOWN = NotConnectedError("nobody listens")


async def test_what_is_opened_first_is_closed_last(journal: Journal) -> None:
    """A consumer is gone before the connection that it uses."""
    async with ServiceResources() as resources:
        for name in ("redis", "rabbitmq", "consumers"):
            assert await resources.open(name, journal.resource(name)) == name
    assert journal.closings() == ["consumers", "rabbitmq", "redis"]


async def test_what_is_opened_can_be_asked_for_by_type(journal: Journal) -> None:
    """Values that need no closing too."""
    async with ServiceResources() as resources:
        await resources.open("name", journal.resource("value"), provides=str)
        resources.provide(int, 42)
        assert resources.providers == {str: "value", int: 42}
        assert repr(resources) == "ServiceResources(open=[name], provides=['str', 'int'])"


async def test_a_type_has_one_provider(journal: Journal) -> None:
    """The second one is not even opened."""
    async with ServiceResources() as resources:
        resources.provide(str, "first")
        with pytest.raises(DeclarationError, match="str"):
            resources.provide(str, "second")
        with pytest.raises(DeclarationError, match="str"):
            await resources.open("second", journal.resource("second"), provides=str)
    assert journal == []


async def test_a_name_or_type_twice_in_one_go_is_refused(journal: Journal) -> None:
    """Neither of the two is opened."""
    one = Dependency(name="one", factory=journal.resource("one"), provides=str)
    two = Dependency(name="two", factory=journal.resource("two"), provides=str)
    async with ServiceResources() as resources:
        for pair in ((one, one), (one, two)):
            with pytest.raises(DeclarationError, match="once"):
                await resources.open_together(*pair)


async def test_a_dependency_that_is_not_there_yet_is_awaited(journal: Journal) -> None:
    """An error of ours, of the system and a timeout all mean "not yet"."""
    async with ServiceResources() as resources:
        factory = journal.resource("redis", DOWN, OSError("refused"), TimeoutError())
        assert await resources.open("redis", factory) == "redis"
    assert journal == ["try redis"] * 4 + ["close redis"]


async def test_it_counts_as_open_when_its_probe_agrees(journal: Journal) -> None:
    """One that opens and doesn't work is closed and tried again."""
    verdicts = [DOWN, None]

    async def probe(value: str) -> None:
        assert value == "redis"
        if error := verdicts.pop(0):
            raise error

    async with ServiceResources() as resources:
        await resources.open("redis", journal.resource("redis"), probe=probe)
    assert journal == ["try redis", "close redis"] * 2


async def test_what_waiting_can_not_cure_is_raised_at_once(journal: Journal) -> None:
    """What was open until then is closed."""
    async with ServiceResources() as resources:
        await resources.open("redis", journal.resource("redis"))
        with pytest.raises(SettingsError, match="no URL"):
            await resources.open("rabbitmq", journal.broken("rabbitmq", SettingsError("no URL")))
    assert journal == ["try redis", "try rabbitmq", "close redis"]


async def test_after_the_budget_one_report_names_all_that_is_missing(journal: Journal) -> None:
    """It says what is open, and why the others are not."""
    async with ServiceResources(start_budget_seconds=0.3) as resources:
        await resources.open("redis", journal.resource("redis"))
        with pytest.raises(UnavailableError) as caught:
            await resources.open_together(
                Dependency(name="rabbitmq", factory=journal.broken("rabbitmq", DOWN)),
                Dependency(name="db_mongo", factory=journal.resource("db_mongo", gate=asyncio.Event())),
                Dependency(name="db_postgres", factory=journal.resource("db_postgres")),
            )
    assert str(caught.value).split("\n  - ") == [
        "the start was given up: not everything came up within 0.3 s",
        "redis: open",
        "db_postgres: open",
        "rabbitmq: NotConnectedError: nobody listens",
        "db_mongo: it did not open within 0.3 s",
    ]
    assert journal.closings() == ["db_postgres", "redis"]


async def test_the_reason_says_more_than_that_the_time_was_over(journal: Journal) -> None:
    """The first try fails with a reason, and the second one hangs."""
    factory = journal.resource("rabbitmq", DOWN, gate=asyncio.Event())
    async with ServiceResources(start_budget_seconds=0.5) as resources:
        with pytest.raises(UnavailableError, match="rabbitmq: NotConnectedError: nobody listens"):
            await resources.open("rabbitmq", factory)


async def test_independent_ones_open_at_the_same_time(journal: Journal) -> None:
    """Each of the two waits for the other one here."""
    gates = [asyncio.Event(), asyncio.Event()]

    @asynccontextmanager
    async def meet(mine: asyncio.Event, other: asyncio.Event) -> AsyncGenerator[str]:
        mine.set()
        await other.wait()
        yield "met"

    async with ServiceResources() as resources:
        values = await resources.open_together(
            Dependency(name="one", factory=lambda: meet(gates[0], gates[1])),
            Dependency(name="two", factory=lambda: meet(gates[1], gates[0])),
        )
    assert values == ("met", "met")


async def test_a_process_may_have_nothing_to_open() -> None:
    """The answer is an empty tuple."""
    async with ServiceResources() as resources:
        assert await resources.open_together() == ()


async def test_a_mistake_in_one_ends_the_waiting_for_the_others(journal: Journal) -> None:
    """The rest of the start budget is not spent."""
    since = time.monotonic()
    async with ServiceResources() as resources:
        with pytest.raises(SettingsError):
            await resources.open_together(
                Dependency(name="redis", factory=journal.resource("redis")),
                Dependency(name="rabbitmq", factory=journal.broken("rabbitmq", DOWN)),
                Dependency(name="db", factory=journal.broken("db", SettingsError("no URL"))),
            )
    assert time.monotonic() - since < 5
    assert journal.closings() == ["redis"]


async def test_a_cancelled_start_leaves_nothing_open(journal: Journal) -> None:
    """What is being opened is left too."""
    opening = asyncio.Event()

    async def start() -> None:
        async with ServiceResources() as resources:
            await resources.open("redis", journal.resource("redis"))
            opening.set()
            await resources.open("rabbitmq", journal.resource("rabbitmq", gate=asyncio.Event()))

    task = asyncio.create_task(start())
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal.closings() == ["redis"]


async def test_readiness_asks_what_is_open(journal: Journal) -> None:
    """Before `started` it is red in any case, and what has no probe is not asked."""
    verdicts: list[Exception | None] = [None, None, DOWN]

    async def probe(value: str) -> None:
        if error := verdicts.pop(0):
            raise error

    async with ServiceResources() as resources:
        await resources.open("redis", journal.resource("redis"), probe=probe)
        await resources.open("cache", journal.resource("cache"))
        assert (await resources.health.readiness()).status == "starting"
        resources.started()
        readiness = await resources.health.readiness()
        assert (readiness.status, list(readiness.dependencies)) == ("ready", ["redis"])
        resources.health._fresh_until = 0.0
        assert (await resources.health.readiness()).status == "not_ready"


async def test_a_resource_that_has_ended_by_itself_is_not_ready(journal: Journal) -> None:
    """Its probe, which would succeed, is not asked any more."""

    async def probe(value: str) -> None:
        pass

    async with ServiceResources() as resources:
        await resources.open("redis", journal.resource("redis"), probe=probe)
        resources.started()
        resources._opened[0].task.cancel()
        await asyncio.wait({resources._opened[0].task})
        readiness = await resources.health.readiness()
        assert readiness.dependencies["redis"].detail == "UnavailableError: redis has ended by itself"


async def test_a_resource_is_entered_and_left_in_the_same_task() -> None:
    """Task groups and cancel scopes inside it depend on that."""
    tasks: list[object] = []

    @asynccontextmanager
    async def managed() -> AsyncGenerator[None]:
        async with asyncio.TaskGroup():
            tasks.append(asyncio.current_task())
            yield
            tasks.append(asyncio.current_task())

    async with ServiceResources() as resources:
        await resources.open_together(Dependency(name="group", factory=managed))
    assert tasks[0] is tasks[1] is not asyncio.current_task()
