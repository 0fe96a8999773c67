"""The proof of streams: `python -m tests.proofs.streams --events 1000000`.

A data service on a real PostgreSQL keeps accounts as streams. Writers append, and a trigger holds some of their
transactions at the commit, so that many commit long after others that began later. Readers follow the log from its
beginning; each has to get every event once, and those of each account in their order. A reader that follows `position`
instead has to miss some, or the proof has shown nothing.

Then many decide on one account at once, a worker is stopped before and after each of its requests, and the numbers of
transactions begin anew as after a restore into another cluster.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from sqlalchemy.orm import DeclarativeBase

from hybridkit.clients import ClientPolicy, PostgresDataClient, Request, Response
from hybridkit.clients._transports._asgi import AsgiTransport
from hybridkit.clients._transports._base import StreamedResponse
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.dataservice import StreamColumns, create_data_service
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dev import LocalServers
from hybridkit.errors import StaleVersionError, TemporaryError
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from tests.helpers.accounts import ACCOUNTS, Account, Deposited, NotEnoughError, Withdrawn
from tests.helpers.horizons import until_readable

PATIENT = ClientPolicy(write_timeout_seconds=60.0, read_timeout_seconds=60.0)
PAGE = 1000
REPLICAS = 4


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl
    database_pool_size: int = 60


class Base(DeclarativeBase):
    pass


class AccountEvents(StreamColumns, Base):
    __tablename__ = "account_events"


class Silent:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        assert body

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Silent"]:
        yield cls()


async def make_tables(url: str) -> None:
    """Make the table of the streams."""
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


def application(url: str) -> FastAPI:
    """Return the data service."""
    app = create_data_service(Settings, {}, streams={ACCOUNTS: AccountEvents}, publisher=Silent.open)
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    return app


@asynccontextmanager
async def serving(url: str) -> AsyncGenerator[PostgresDataClient]:
    """Run the data service in this process, and return a client of it."""
    async with (
        PostgresDataClient(
            "http://data.test",
            service="api_service",
            transport=AsgiTransport(application(url)),
            policy=PATIENT,
        ) as client,
    ):
        await client.log(ACCOUNTS, page_size=1)
        yield client


def deposit(account: UUID) -> Deposited:
    """Return a deposit of 1."""
    return Deposited(account_id=account, amount=Decimal(1))


# ── late commits ─────────────────────────────────────────────────────────────────────────────────

_HOLD = """
    CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < {share} THEN PERFORM pg_sleep(random() * {seconds}); END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON account_events DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.version % 2 = 0) EXECUTE FUNCTION hold();
"""


@dataclass(frozen=True)
class Read:
    """What one reader has got.

    Attributes:
        skipped: the number of events that it did not get.
        twice: the number of events that it got more than once.
        disordered: the number of accounts whose events it got in another order.
    """

    skipped: int
    twice: int
    disordered: int

    @property
    def holds(self) -> bool:
        """Whether it got each event once and in order."""
        return not (self.skipped or self.twice or self.disordered)


@dataclass(frozen=True)
class LateCommits:
    """The outcome of readers beside writers whose commits are late.

    Attributes:
        events: the number of events.
        readers: what each reader of the log has got.
        naive: what a reader by position has got.
    """

    events: int
    readers: Sequence[Read]
    naive: Read

    @property
    def holds(self) -> bool:
        """Whether every reader of the log got all, and the reader by position did not."""
        return all(reader.holds for reader in self.readers) and self.naive.skipped > 0


async def prove_late_commits(
    url: str,
    *,
    events: int,
    writers: int,
    readers: int = 3,
    accounts_each: int = 2,
    share: float = 0.05,
    seconds: float = 0.1,
) -> LateCommits:
    """Append while readers follow the log.

    Args:
        url: a database with the tables.
        events: the number of events, at least.
        writers: the number of writers at a time.
        readers: the number of readers of the log.
        accounts_each: the number of accounts for each writer.
        share: of the transactions that are held at their commit.
        seconds: for how long they are held at most.
    """
    async with serving(url) as postgres:
        connection: Any = await connect(url, timeout_seconds=10, command_seconds=60)
        try:
            await connection.execute(_HOLD.format(share=share, seconds=seconds))
            accounts = [new_id() for _ in range(writers * accounts_each)]
            done = asyncio.Event()
            reading = [asyncio.create_task(_follow(postgres, done)) for _ in range(readers)]
            naive = asyncio.create_task(_follow_position(connection, done))
            await asyncio.gather(
                *(_write(postgres, accounts, events // writers, seed) for seed in range(writers))
            )
            await until_readable(url, "account_events")
            done.set()
            found = [await task for task in reading]
            by_position = await naive
            rows = await connection.fetch("SELECT stream_id, version FROM account_events")
        finally:
            await connection.close()
    everything = {(row["stream_id"], row["version"]) for row in rows}
    return LateCommits(
        len(everything), [_judge(got, everything) for got in found], _judge(by_position, everything)
    )


async def _write(postgres: PostgresDataClient, accounts: Sequence[UUID], events: int, seed: int) -> None:
    """Append to random accounts: to any version, to a loaded one, and in transactions of two."""
    chance = random.Random(seed)
    left = events
    while left > 0:
        account, other = chance.sample(accounts, 2)
        size = min(chance.choice((1, 1, 2, 10)), left)
        batch = [deposit(account) for _ in range(size)]
        try:
            await _append(postgres, chance.randrange(3), (account, other), batch)
            left -= size
        except (StaleVersionError, TemporaryError):
            # Nothing was done: another one came first, or all connections wait for a transaction that is held.
            await asyncio.sleep(0)


async def _append(
    postgres: PostgresDataClient, way: int, accounts: tuple[UUID, UUID], batch: Sequence[Event]
) -> None:
    account, other = accounts
    match way:
        case 0:
            await postgres.append(ACCOUNTS, account, *batch)
        case 1:
            async with postgres.transaction() as tx:
                tx.append(ACCOUNTS, account, *batch)
                tx.append(ACCOUNTS, other, deposit(other))
        case _:
            await postgres.append(ACCOUNTS, await postgres.load(ACCOUNTS, account), *batch)


type Got = list[tuple[str, int]]


async def _follow(postgres: PostgresDataClient, done: asyncio.Event) -> Got:
    got: Got = []
    position: str | None = None
    while True:
        was_done = done.is_set()
        page = await postgres.log(ACCOUNTS, after=position, page_size=PAGE)
        got += [(event.stream_id, event.version) for event in page.events]
        position = page.position
        if was_done and not page.has_more and not page.events:
            return got


async def _follow_position(connection: Any, done: asyncio.Event) -> Got:
    got: Got = []
    position = 0
    while True:
        was_done = done.is_set()
        rows = await connection.fetch(
            "SELECT stream_id, version, position FROM account_events WHERE position > $1 ORDER BY position LIMIT 1000",
            position,
        )
        got += [(row["stream_id"], row["version"]) for row in rows]
        position = rows[-1]["position"] if rows else position
        if was_done and not rows:
            return got
        await asyncio.sleep(0)


def _judge(got: Got, everything: set[tuple[str, int]]) -> Read:
    counts = Counter(got)
    seen: dict[str, int] = {}
    disordered: set[str] = set()
    for stream_id, version in got:
        if version != seen.get(stream_id, 0) + 1:
            disordered.add(stream_id)
        seen[stream_id] = version
    return Read(len(everything - counts.keys()), sum(count - 1 for count in counts.values()), len(disordered))


# ── many deciders ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Deciders:
    """The outcome of many deciders on one account.

    Attributes:
        withdrawn: the number of withdrawals that were made.
        refused: the number that were refused, as there was no money left.
        versions: whether the versions have no hole.
        lowest: the lowest balance at any version.
        seconds: how long it took.
    """

    withdrawn: int
    refused: int
    versions: bool
    lowest: Decimal
    seconds: float


async def prove_deciders(url: str, *, writers: int, decides: int, money: int) -> Deciders:
    """Let writers withdraw 1 each time from an account with so much money."""
    account = new_id()
    withdrawn = refused = 0

    def decide(state: Account) -> list[Event]:
        if state.balance < 1:
            raise NotEnoughError("not enough money")
        return [Withdrawn(account_id=account, amount=Decimal(1))]

    transport = AsgiTransport(application(url))
    async with AsyncExitStack() as stack:
        # Each as a process of its own: tasks of one client decide in their turns.
        clients = [
            await stack.enter_async_context(
                PostgresDataClient(
                    "http://data.test",
                    service="api_service",
                    transport=transport if number == 0 else Stopping(transport, -1),
                    policy=PATIENT,
                )
            )
            for number in range(REPLICAS)
        ]
        postgres = clients[0]
        await postgres.append(ACCOUNTS, account, Deposited(account_id=account, amount=Decimal(money)))

        async def withdraw(postgres: PostgresDataClient) -> None:
            nonlocal withdrawn, refused
            for _ in range(decides):
                try:
                    while True:
                        try:
                            await postgres.decide(ACCOUNTS, account, decide)
                            break
                        except (
                            StaleVersionError
                        ):  # ten times in a row; whoever wants it all the same asks again
                            continue
                    withdrawn += 1
                except NotEnoughError:
                    refused += 1

        started = time.perf_counter()
        await asyncio.gather(*(withdraw(clients[number % REPLICAS]) for number in range(writers)))
        seconds = time.perf_counter() - started
        found = [event async for event in postgres.events(ACCOUNTS, account)]
    lowest = balance = Decimal(0)
    for each in found:
        balance = ACCOUNTS.fold([each.event], state=Account(balance=balance)).balance
        lowest = min(lowest, balance)
    versions = [each.version for each in found] == list(range(1, len(found) + 1))
    return Deciders(withdrawn, refused, versions, lowest, seconds)


# ── crash points ─────────────────────────────────────────────────────────────────────────────────


class StoppedError(BaseException):
    """The end of a worker; not an `Exception`, as nothing may catch it."""


class Stopping:
    """A transport whose process ends before or after one of its requests.

    Args:
        transport: sends the requests.
        point: where it ends: 2n before request n, 2n + 1 after its response.

    Attributes:
        passed: the number of points that were passed.
    """

    def __init__(self, transport: AsgiTransport, point: int) -> None:
        self._transport = transport
        self._point = point
        self.passed = 0

    async def send(self, request: Request) -> Response:
        """Send a request, unless the process ends before."""
        self._pass()
        response = await self._transport.send(request)
        self._pass()
        return response

    def stream(self, request: Request) -> AbstractAsyncContextManager[StreamedResponse]:
        """Return the response in chunks; no call here needs it."""
        return self._transport.stream(request)

    async def aclose(self) -> None:
        """Leave the transport to its owner."""

    def _pass(self) -> None:
        if self.passed == self._point:
            raise StoppedError
        self.passed += 1


async def prove_crash_points(url: str) -> int:
    """Stop a worker at each point of an append, a decision and a transaction, run it again, and return the points."""
    app = application(url)
    transport = AsgiTransport(app)
    async with PostgresDataClient("http://data.test", service="api_service", transport=transport) as own:
        await own.log(ACCOUNTS, page_size=1)
        point = 0
        while True:
            account, other = new_id(), new_id()
            was_stopped = await _stopped(Stopping(transport, point), account, other)
            if was_stopped:
                assert not await _stopped(Stopping(transport, -1), account, other)
            one, two = await own.load(ACCOUNTS, account), await own.load(ACCOUNTS, other)
            assert (int(one.state.balance), one.version) == (0, 3), (point, one)
            assert (int(two.state.balance), two.version) == (10, 1), (point, two)
            if not was_stopped:
                return point
            point += 1


async def _stopped(transport: Stopping, account: UUID, other: UUID) -> bool:
    """Run the work in its claim, and return whether it was stopped."""
    async with PostgresDataClient("http://data.test", service="worker", transport=transport) as postgres:
        try:
            with bind(RequestContext(claim=Claim(f"worker:event:{account}"))):
                await _work(postgres, account, other)
        except StoppedError:
            return True
    return False


async def _work(postgres: PostgresDataClient, account: UUID, other: UUID) -> None:
    """Move money from one account to another, in three writes."""
    await postgres.append(ACCOUNTS, account, Deposited(account_id=account, amount=Decimal(20)))

    def half(state: Account) -> list[Event]:
        if state.balance < 20:
            raise NotEnoughError("not enough money")
        return [Withdrawn(account_id=account, amount=Decimal(10))]

    loaded = await postgres.decide(ACCOUNTS, account, half)
    async with postgres.transaction(step="move") as tx:
        tx.append(ACCOUNTS, loaded, Withdrawn(account_id=account, amount=Decimal(10)))
        tx.append(ACCOUNTS, other, Deposited(account_id=other, amount=Decimal(10)))


# ── restore ──────────────────────────────────────────────────────────────────────────────────────

AHEAD = 1_000_000_000
"""How far the numbers of restored transactions are ahead of those of the new cluster."""


async def prove_restore(url: str) -> Sequence[int]:
    """Bring a log into the state of a restored one while a reader is in its middle, and return what it gets."""
    account = new_id()
    async with serving(url) as postgres:
        await until_readable(url, "account_events")
        start = (await _end(postgres)) or None
        await postgres.append(ACCOUNTS, account, *(deposit(account) for _ in range(4)))
        await until_readable(url, "account_events")
        page = await postgres.log(ACCOUNTS, after=start, page_size=2)
    connection: Any = await connect(url, timeout_seconds=10, command_seconds=60)
    try:
        await connection.execute(f"UPDATE account_events SET xid = xid + {AHEAD}")
    finally:
        await connection.close()
    epoch, xid, position = map(int, (page.position or "").split("-"))
    after: str | None = f"{epoch}-{xid + AHEAD}-{position}"
    versions = [event.version for event in page.events]
    async with serving(url) as postgres:
        await postgres.append(ACCOUNTS, account, *(deposit(account) for _ in range(4)))
        await until_readable(url, "account_events")
        while True:
            page = await postgres.log(ACCOUNTS, after=after, page_size=3)
            versions += [event.version for event in page.events]
            after = page.position
            if not page.has_more:
                return versions


async def _end(postgres: PostgresDataClient) -> str | None:
    position: str | None = None
    while True:
        page = await postgres.log(ACCOUNTS, after=position)
        position = page.position
        if not page.has_more:
            return position


# ── the long form ────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    """Run all parts in full size, and return 0 where everything holds."""
    parser = argparse.ArgumentParser(
        prog="streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000, help="events beside the readers (100,000)")
    parser.add_argument("--hold", type=float, default=5.0, help="longest delay of a commit in seconds (5)")
    options = parser.parse_args()
    with LocalServers() as servers:
        server = servers.start("postgres", private=True)
        return 0 if asyncio.run(_all(server.url, options.events, options.hold)) else 1


async def _all(url: str, events: int, hold_seconds: float) -> bool:
    await make_tables(url)
    points = await prove_crash_points(url)
    _say(f"{points} crash points: each effect once")
    deciders = await prove_deciders(url, writers=16, decides=100, money=1200)
    _say(f"16 writers x 100 decisions: {deciders}")
    versions = await prove_restore(url)
    _say(f"after a restore: {versions}")
    late = await prove_late_commits(
        url, events=events, writers=50, accounts_each=40, share=0.002, seconds=hold_seconds
    )
    _say(f"late commits: {late}")
    holds = (
        late.holds
        and (deciders.withdrawn, deciders.refused, deciders.versions) == (1200, 400, True)
        and deciders.lowest >= 0
        and versions == list(range(1, 9))
    )
    _say("holds" if holds else "DOES NOT HOLD")
    return holds


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
