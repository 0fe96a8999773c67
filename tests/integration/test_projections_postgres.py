"""Projections on PostgreSQL: crashes, two runners at once, and a version that is filled under writes."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.clients import AsgiTransport, PostgresDataClient
from hybridkit.clients._projections._follower import Follower, Pauses
from hybridkit.clients._projections._runner import ProjectionRunner, log_reader
from hybridkit.dataservice import RecordColumns, StreamColumns, create_data_service, projection_tables
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.streams import PROJECTIONS, Changes, Projection
from tests.helpers import until
from tests.helpers.accounts import ACCOUNTS, Deposited, Withdrawn

pytestmark = pytest.mark.real_server

PAUSES = Pauses(shortest=0.001, longest=0.01, standby=0.02, away=0.01)
IDS = [UUID(int=number) for number in range(1, 121)]
"""More accounts than changes fit into one transaction."""


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Publisher:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        assert body

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Publisher"]:
        yield cls()


class NewBalance(BaseModel):
    balance: Decimal = Decimal(0)
    movements: int = 0


class Balance(NewBalance, Record):
    pass


BALANCES = Resource("balances", record=Balance, create=NewBalance, update=NewBalance)
BALANCES_V2 = Resource("balances_v2", record=Balance, create=NewBalance, update=NewBalance)


class Base(DeclarativeBase):
    pass


class AccountEvents(StreamColumns, Base):
    __tablename__ = "account_events"


class BalanceTable(RecordColumns, Base):
    __tablename__ = "balances"
    balance: Mapped[Decimal] = mapped_column(Numeric)
    movements: Mapped[int]


class BalanceTableV2(RecordColumns, Base):
    __tablename__ = "balances_v2"
    balance: Mapped[Decimal] = mapped_column(Numeric)
    movements: Mapped[int]


def projection(version: int, into: Resource[Balance, NewBalance, NewBalance]) -> Projection:
    made = Projection("balances", source=ACCOUNTS, version=version)

    @made.on(Deposited, Withdrawn)
    def _(event: Any, to: Changes) -> None:
        sign = 1 if isinstance(event, Deposited) else -1
        to.increment(into, event.account_id, balance=sign * event.amount, movements=1)

    return made


@pytest.fixture
async def client(postgres_url: str) -> AsyncGenerator[PostgresDataClient]:
    async with opened(postgres_url) as client:
        yield client


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[PostgresDataClient]:
    """Open a client of a data service of its own on the database."""
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    tables: dict[Resource[Any, Any, Any], type[RecordColumns]] = {
        BALANCES: BalanceTable,
        BALANCES_V2: BalanceTableV2,
    }
    app = create_data_service(
        Settings,
        {**tables, **projection_tables()},
        streams={ACCOUNTS: AccountEvents},
        publisher=Publisher.open,
    )
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    client = PostgresDataClient("http://data", service="worker_service", transport=AsgiTransport(app))
    async with app.router.lifespan_context(app), client:
        yield client


class Books:
    """Writes random movements, and knows what the balances are then."""

    def __init__(self, client: PostgresDataClient, *, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.balances: dict[UUID, Decimal] = {}
        self.movements: Counter[UUID] = Counter()

    async def write(self, appends: int) -> None:
        for _ in range(appends):
            account = self.random.choice(IDS)
            amounts = [
                Decimal(self.random.randint(1, 10_000)) / 100 for _ in range(self.random.randint(1, 5))
            ]
            kinds = [self.random.choice((Deposited, Withdrawn)) for _ in amounts]
            events = [
                kind(account_id=account, amount=amount) for kind, amount in zip(kinds, amounts, strict=True)
            ]
            await self.client.append(ACCOUNTS, account, *events)
            signed = (
                amount if kind is Deposited else -amount for kind, amount in zip(kinds, amounts, strict=True)
            )
            self.balances[account] = self.balances.get(account, Decimal(0)) + sum(signed)
            self.movements[account] += len(events)

    async def balanced(self, resource: Resource[Balance, NewBalance, NewBalance]) -> bool:
        """Return whether the records are what the events say; True for the end, as no record can go back."""
        found = [record async for record in self.client.find(resource)]
        movements = {record.id: record.movements for record in found}
        assert all(count <= self.movements[account] for account, count in movements.items())
        if movements != dict(self.movements):
            return False
        assert {record.id: record.balance for record in found} == self.balances
        return True


async def crash(follower: Follower, random_: random.Random) -> None:
    """Follow for a random time, and end in the middle of whatever it does."""
    task = asyncio.create_task(follower.run())
    for _ in range(random_.randint(1, 60)):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


async def test_each_event_counts_once_whatever_ends_the_projector(client: PostgresDataClient) -> None:
    """A projector that is ended at random moments, under writes, comes to the fold of the log."""
    books = Books(client, seed=11)
    moments = random.Random(12)
    made = projection(1, BALANCES)
    writing = asyncio.create_task(books.write(50))
    while not writing.done():
        await crash(Follower(made, client, log_reader(client, made), pauses=PAUSES), moments)
    await writing
    async with ProjectionRunner([made], client, pauses=PAUSES):
        await until(lambda: books.balanced(BALANCES))
    assert (await client.get(PROJECTIONS, "balances.1")).events == sum(books.movements.values())


async def test_two_projectors_at_once_count_nothing_twice(client: PostgresDataClient) -> None:
    """Of two projectors one waits; when the other stands still it takes over, and the other counts nothing twice."""
    books = Books(client, seed=21)
    made = projection(1, BALANCES)
    first, second = (ProjectionRunner([made], client, pauses=PAUSES) for _ in range(2))
    async with first, second:
        await books.write(25)
        await until(lambda: books.balanced(BALANCES))
        frozen = first.followers["balances.1"]
        frozen.stop()  # it reads and commits nothing while the other goes on
        await books.write(25)
        await until(lambda: books.balanced(BALANCES))
        woken = Follower(made, client, log_reader(client, made), pauses=PAUSES)
        woken._row = frozen._row
        woken._ahead = None
        await woken.look()
        await books.write(8)
        await woken.look()
        await until(lambda: books.balanced(BALANCES))


async def test_a_version_is_filled_while_the_other_is_read(client: PostgresDataClient) -> None:
    """Version 2 equals version 1 once both have caught up, with writes and reads going on meanwhile."""
    books = Books(client, seed=31)
    async with ProjectionRunner([projection(1, BALANCES)], client, pauses=PAUSES):
        await books.write(25)
        async with ProjectionRunner([projection(2, BALANCES_V2)], client, pauses=PAUSES):
            await books.write(25)
            await until(lambda: books.balanced(BALANCES))
            await until(lambda: books.balanced(BALANCES_V2))
    assert await shown(client, BALANCES) == await shown(client, BALANCES_V2)


async def shown(
    client: PostgresDataClient, resource: Resource[Balance, NewBalance, NewBalance]
) -> Mapping[UUID, Sequence[object]]:
    return {record.id: (record.balance, record.movements) async for record in client.find(resource)}
