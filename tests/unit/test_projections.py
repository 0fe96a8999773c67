"""Projections that follow a log: each event counts once, a failing one stops its own projection."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.adapters.worker import _start_projections
from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._follower import Follower, Pauses
from hybridkit.clients._projections._runner import ProjectionRunner
from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.events import Event
from hybridkit.lifespan import ServiceResources
from hybridkit.resources import Record, Resource
from hybridkit.streams import PROJECTIONS, Changes, LogPage, Projection, RecordedEvent, Stream
from hybridkit.streams._positions import retried, skipped
from hybridkit.testing import FakeDataService
from hybridkit.testing import catch_up as catch_up_in_test
from tests.helpers import until

PAUSES = Pauses(shortest=0.0, longest=0.0, standby=0.0, away=0.0)
ACCOUNT = UUID(int=1)


class Deposited(Event, type="projection_test.deposited", version=2, key="account_id"):
    account_id: UUID
    amount: int


class Withdrawn(Event, type="projection_test.withdrawn", key="account_id"):
    account_id: UUID
    amount: int


class Account(BaseModel):
    pass


class NewBalance(BaseModel):
    balance: int = 0


class Balance(NewBalance, Record):
    pass


ACCOUNTS = Stream("accounts", state=Account, key="account_id")
ACCOUNTS.apply(Deposited)(lambda account, event: account)
BALANCES = Resource("balances", record=Balance, create=NewBalance, update=NewBalance)
BALANCES_V2 = Resource("balances_v2", record=Balance, create=NewBalance, update=NewBalance)


class Log:
    """A log of events in memory, whose pages have two events."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent] = []
        self.reads: list[str | None] = []
        self.error: Exception | None = None

    def add(self, *amounts: int, kind: str = "deposited", version: int = 2, account: UUID = ACCOUNT) -> None:
        for amount in amounts:
            number = len(self.events) + 1
            self.events.append(
                RecordedEvent(
                    stream_id=str(account),
                    version=number,
                    position=f"p{number:04}",
                    event_id=UUID(int=number),
                    event_type=f"projection_test.{kind}",
                    event_version=version,
                    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
                    recorded_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
                    caller="api_service",
                    request_id="r1",
                    data={"account_id": str(account), "amount": amount},
                )
            )

    async def read(self, after: str | None) -> LogPage:
        self.reads.append(after)
        if self.error is not None:
            raise self.error
        left = [event for event in self.events if after is None or (event.position or "") > after]
        page = left[:2]
        return LogPage(tuple(page), page[-1].position if page else after, len(left) > len(page))


def projection(version: int = 1, into: Any = BALANCES) -> Projection:
    made = Projection("balances", source=ACCOUNTS, version=version)

    @made.on(Deposited)
    def _(event: Deposited, to: Changes) -> None:
        if event.amount == 13:
            raise ValueError("unlucky")
        to.increment(into, event.account_id, balance=event.amount)

    return made


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([BALANCES, BALANCES_V2, PROJECTIONS], streams=[ACCOUNTS])


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncGenerator[PostgresDataClient]:
    async with fake.postgres_client(service="worker_service") as opened:
        yield opened


@pytest.fixture
def log() -> Log:
    return Log()


async def catch_up(follower: Follower, *, looks: int = 50) -> None:
    for _ in range(looks):
        await follower.look()
        if follower.is_caught_up:
            return
    raise AssertionError(follower.probe())


def follow(client: PostgresDataClient, log: Log, made: Projection | None = None) -> Follower:
    return Follower(made or projection(), client, log.read, pauses=PAUSES)


async def test_events_are_counted_once_each_in_few_commits(
    client: PostgresDataClient, log: Log, fake: FakeDataService
) -> None:
    """All events are in the record, with the position, and the changes of a page are one commit."""
    log.add(1, 2, 3, 4, 5)
    log.add(99, kind="withdrawn", version=1)  # without a handler
    await catch_up(follow(client, log))
    row = await client.get(PROJECTIONS, "balances.1")
    assert (await client.get(BALANCES, ACCOUNT)).balance == 15
    assert (row.position, row.events, row.resources, row.status) == ("p0006", 6, ["balances"], "running")
    assert row.recorded_at == log.events[-1].recorded_at
    assert fake.requests.count("POST /v1:transact") == 3


async def test_another_run_goes_on_where_the_last_has_ended(client: PostgresDataClient, log: Log) -> None:
    """A projection that starts again reads the log behind its position."""
    log.add(1, 2)
    await catch_up(follow(client, log))
    log.add(3)
    await catch_up(follow(client, log))
    assert (await client.get(BALANCES, ACCOUNT)).balance == 6
    assert log.reads[-2:] == ["p0002", "p0003"]


async def test_of_two_runners_one_waits_and_takes_over(client: PostgresDataClient, log: Log) -> None:
    """A runner that is behind another counts nothing twice; when the other rests, it goes on from there."""
    log.add(1, 2)
    first, frozen = follow(client, log), follow(client, log)
    await frozen._look()  # it has read the row and counted the first page
    frozen_row = frozen._row
    log.add(4)
    await catch_up(first)
    assert frozen._row is frozen_row  # frozen: it knows nothing of what the first has done
    await frozen.look()
    assert frozen.probe() == "another replica runs it"
    log.add(8)
    await catch_up(frozen)
    await catch_up(first)
    assert (await client.get(BALANCES, ACCOUNT)).balance == 15


async def test_a_standby_waits_while_the_other_moves(client: PostgresDataClient, log: Log) -> None:
    """A runner in the second place stays there for as long as the row changes between its looks."""
    log.add(1)
    first, second = follow(client, log), follow(client, log)
    await second.look()
    log.add(2)
    await catch_up(first)
    log.add(4)
    await second.look()
    for _ in range(3):
        log.add(8)
        await catch_up(first)
        reads = len(log.reads)
        await second.look()
        assert len(log.reads) == reads
    assert second.probe() == "another replica runs it"


async def test_an_event_that_fails_stops_its_projection(client: PostgresDataClient, log: Log) -> None:
    """What came before counts, the row says which event fails and why, and nothing behind it counts."""
    log.add(1, 13, 4)
    follower = follow(client, log)
    await follower.look()
    await follower.look()
    row = await client.get(PROJECTIONS, "balances.1")
    assert (row.status, row.failed_position, row.position, row.events) == ("failed", "p0002", "p0001", 1)
    assert row.error == "ValueError: unlucky"
    assert row.failed_event == f"projection_test.deposited version 2 {UUID(int=2)}"
    assert (await client.get(BALANCES, ACCOUNT)).balance == 1
    with pytest.raises(UnavailableError, match="unlucky"):
        follower.probe()


async def test_a_skipped_event_is_kept_with_who_and_why(client: PostgresDataClient, log: Log) -> None:
    """A projection goes on behind an event that a person has skipped, and the row keeps person and reason."""
    log.add(1, 13, 4)
    follower = follow(client, log)
    await follower.look()
    row = await client.get(PROJECTIONS, "balances.1")
    await client.update(PROJECTIONS, row, skipped(row, "p0002", by="ann", note="a test deposit"))
    await catch_up(follower)
    row = await client.get(PROJECTIONS, "balances.1")
    assert (await client.get(BALANCES, ACCOUNT)).balance == 5
    assert (row.status, row.error, row.events) == ("running", None, 3)
    assert [(each.position, each.by, each.note) for each in row.skipped] == [
        ("p0002", "ann", "a test deposit")
    ]


async def test_a_retried_event_is_tried_again(client: PostgresDataClient, log: Log) -> None:
    """A projection that is to retry its event counts it once the handler can."""
    log.add(13)
    await follow(client, log).look()
    mended = Projection("balances", source=ACCOUNTS)
    mended.on(Deposited)(lambda event, to: to.increment(BALANCES, event.account_id, balance=event.amount))
    follower = follow(client, log, mended)
    await follower.look()
    assert not follower.is_caught_up
    row = await client.get(PROJECTIONS, "balances.1")
    await client.update(PROJECTIONS, row, retried(row))
    await catch_up(follower)
    assert (await client.get(BALANCES, ACCOUNT)).balance == 13


async def test_an_unknown_newer_version_stops_the_projection(client: PostgresDataClient, log: Log) -> None:
    """An event that this code can't read yet is named, never skipped."""
    log.add(1)
    log.add(2, version=3)
    await follow(client, log).look()
    row = await client.get(PROJECTIONS, "balances.1")
    assert row.failed_position == "p0002"
    assert (row.error or "").startswith("UnknownEventVersionError")


async def test_a_change_that_the_service_refuses_is_found_among_many(
    client: PostgresDataClient, log: Log
) -> None:
    """The event whose change is refused is the one that is named, and those before it count."""
    made = Projection("balances", source=ACCOUNTS)

    @made.on(Deposited)
    def _(event: Deposited, to: Changes) -> None:
        if event.amount == 3:
            to.delete(BALANCES, UUID(int=99))
        else:
            to.increment(BALANCES, event.account_id, balance=event.amount)

    log.add(1, 2, 3, 4)
    follower = follow(client, log, made)
    for _look in range(5):
        await follower.look()
    row = await client.get(PROJECTIONS, "balances.1")
    assert (row.failed_position, row.events) == ("p0003", 2)
    assert (row.error or "").startswith("NotFoundError")
    assert (await client.get(BALANCES, ACCOUNT)).balance == 3


async def test_a_test_catches_up_and_sees_what_fails(client: PostgresDataClient) -> None:
    """`catch_up` counts all that is there, and raises what a worker would show."""
    await client.append(ACCOUNTS, ACCOUNT, Deposited(account_id=ACCOUNT, amount=4))
    await catch_up_in_test(client, projection())
    assert (await client.get(BALANCES, ACCOUNT)).balance == 4
    await client.append(ACCOUNTS, ACCOUNT, Deposited(account_id=ACCOUNT, amount=13))
    with pytest.raises(UnavailableError, match="unlucky"):
        await catch_up_in_test(client, projection())


async def test_a_second_version_fills_a_resource_of_its_own(client: PostgresDataClient, log: Log) -> None:
    """Another version counts from the beginning beside the first, and not into its records."""
    log.add(1, 2)
    await catch_up(follow(client, log))
    await catch_up(follow(client, log, projection(version=2, into=BALANCES_V2)))
    await follow(client, log, projection(version=3, into=BALANCES)).look()
    assert (await client.get(BALANCES_V2, ACCOUNT)).balance == 3
    assert (await client.get(BALANCES, ACCOUNT)).balance == 3
    row = await client.get(PROJECTIONS, "balances.3")
    assert "balances is filled by version 1 already" in (row.error or "")


async def test_an_absent_data_service_is_waited_for(client: PostgresDataClient, log: Log) -> None:
    """A failure that no event is to blame for is waited out with growing pauses, and shown by the probe."""
    follower = Follower(projection(), client, log.read, pauses=Pauses(away=0.5))
    log.error = UnavailableError("down")
    assert [await follower.look() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    with pytest.raises(UnavailableError, match="waits for its data service: down"):
        follower.probe()
    log.error = None
    log.add(1)
    await catch_up(follower)
    assert follower.probe() == "1 events"


async def test_the_pauses_grow_while_nothing_comes(client: PostgresDataClient, log: Log) -> None:
    """An idle projection looks less and less often, up to a bound, and often again after an event."""
    follower = Follower(projection(), client, log.read, pauses=Pauses(shortest=0.02, longest=0.1))
    assert [await follower.look() for _ in range(5)] == [0.02, 0.04, 0.08, 0.1, 0.1]
    log.add(1)
    assert [await follower.look() for _ in range(2)] == [0.0, 0.02]


async def test_a_service_without_positions_says_what_to_declare(log: Log) -> None:
    """A data service that lacks the resource of the positions is named with what to declare."""
    async with FakeDataService([BALANCES]).postgres_client(service="worker_service") as client:
        follower = follow(client, log)
        await follower.look()
        with pytest.raises(UnavailableError, match="projection_tables"):
            follower.probe()


async def test_the_position_of_another_stream_is_not_taken_over(client: PostgresDataClient, log: Log) -> None:
    """A projection whose row belongs to another stream doesn't go on with that position."""
    log.add(1)
    await catch_up(follow(client, log))
    moved = Projection("balances", source=Stream("loans", state=Account, key="account_id"))
    moved.on(Deposited)(lambda event, to: None)
    follower = follow(client, log, moved)
    await follower.look()
    with pytest.raises(UnavailableError, match="reads accounts, not loans"):
        follower.probe()


async def has_failed(runner: ProjectionRunner, projection_id: str) -> bool:
    try:
        await runner.probe(projection_id)
    except UnavailableError as error:
        return "NotFoundError" in str(error)
    return False


async def test_a_runner_follows_until_it_is_drained(client: PostgresDataClient, log: Log) -> None:
    """Projections of a process count what comes until they are drained, beside one that has failed."""
    failing = Projection("failing", source=ACCOUNTS)
    failing.on(Deposited)(lambda event, to: to.delete(BALANCES_V2, event.account_id))
    log.add(1, 2, 3)

    async with ProjectionRunner(
        [failing, projection()], client, read=lambda _: log.read, pauses=PAUSES
    ) as runner:
        log.add(4)
        await until(lambda: runner.followers["balances.1"].is_caught_up)
        assert await runner.probe("balances.1") == "4 events"
        await until(lambda: has_failed(runner, "failing.1"))
        assert await runner.drain(budget_seconds=5)
    log.add(5)
    assert (await client.get(BALANCES, ACCOUNT)).balance == 10


async def test_two_projections_of_one_name_are_refused(client: PostgresDataClient, log: Log) -> None:
    """Projections that would share a row, or do nothing, are refused at the start."""
    with pytest.raises(DeclarationError, match=r"2 projections are called balances\.1"):
        ProjectionRunner([projection(), projection()], client, read=lambda _: log.read)
    with pytest.raises(DeclarationError, match="without a handler"):
        ProjectionRunner([Projection("empty", source=ACCOUNTS)], client, read=lambda _: log.read)


async def test_a_worker_runs_projections_and_tells_how_they_are(client: PostgresDataClient) -> None:
    """A worker's projections are part of its readiness, and end with it; without a data service they can't run."""
    await client.append(ACCOUNTS, ACCOUNT, Deposited(account_id=ACCOUNT, amount=4))
    async with ServiceResources() as resources:
        with pytest.raises(DeclarationError, match="set POSTGRES_SERVICE_URL"):
            await _start_projections(resources, [projection()])
        resources.provide(PostgresDataClient, client)
        await _start_projections(resources, [projection()])

        async def has_counted() -> bool:
            found = await client.get_or_none(BALANCES, ACCOUNT)
            return found is not None and found.balance == 4

        await until(has_counted)
        resources.health.started()
        report = (await resources.health.readiness()).to_dict()
        assert "projection.balances.1" in str(report)
