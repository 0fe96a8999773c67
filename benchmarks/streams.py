"""What streams of events cost: an append, a rebuild of 10,000 events, one hot stream.

In the store: an append with its expected version, its key and its event for the outbox, beside a bare `INSERT` of the
same row on the same pool. In the service: a decision, which is a read of an account with ten events and an append,
beside a route of FastAPI that does the same by the library `eventsourcing` on the same PostgreSQL, without key and
outbox. There the domain's code runs in the service; with us the client has it, which is measured by the rebuild.
Requests are handed to the applications as ASGI messages. CPU is `time.process_time` of an operation, medians of rounds
in which both sides take turns; PostgreSQL's own CPU is only in the latency.

A rebuild folds the events of one stream in the client; its goals are budgets, which stand as the peer.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import orjson
import uvloop
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from benchmarks._data_writes import post
from benchmarks._report import Result, show
from hybridkit.clients import AsgiTransport, ClientPolicy, PostgresDataClient
from hybridkit.contract import StreamEvent
from hybridkit.dataservice import StreamColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dataservice._store._operations import Write
from hybridkit.dataservice._store._streams import StreamAppend, StreamRead
from hybridkit.dev import LocalServers
from hybridkit.errors import StaleVersionError
from hybridkit.events import Event
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.streams import Stream

WARM_UP: Final = 100
OPERATIONS: Final = 1_000
EVENTS: Final = 10_000
MOMENT: Final = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)

type Operation = Callable[[], Awaitable[object]]
type Prepare = Callable[[], Operation]


class Deposited(Event, type="account.deposited", key="account_id"):
    """Our event."""

    account_id: UUID
    amount: Decimal


class Account(BaseModel):
    """Our state."""

    balance: Decimal = Decimal(0)


def _declared(*, snapshot_every: int | None, publish: bool, name: str) -> Stream[Account]:
    stream = Stream(name, state=Account, key="account_id", snapshot_every=snapshot_every, publish=publish)

    @stream.apply(Deposited)
    def deposited(account: Account, event: Deposited) -> Account:
        return Account.model_construct(balance=account.balance + event.amount)

    return stream


ACCOUNTS: Final = _declared(snapshot_every=200, publish=True, name="accounts")
QUIET: Final = _declared(snapshot_every=None, publish=False, name="quiet_accounts")


class Base(DeclarativeBase):
    """Of our tables."""


class AccountEvents(StreamColumns, Base):
    """Of the published streams."""

    __tablename__ = "account_events"


class QuietEvents(StreamColumns, Base):
    """Of the others, and where the bare insert goes."""

    __tablename__ = "quiet_events"


class Settings(ServiceSettings):
    """Of our service."""

    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Silent:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        """Take it."""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Silent"]:
        """Open nothing."""
        yield cls()


class PeerAccount(Aggregate):
    """The account of the peer."""

    def __init__(self) -> None:
        self.balance = Decimal(0)

    @event("Deposited")
    def deposit(self, amount: Decimal) -> None:
        """Deposit."""
        self.balance += amount


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    chosen = parser.parse_args()
    with LocalServers() as servers:
        server = servers.start("postgres")
        if not server.is_real:
            sys.exit(f"a real PostgreSQL is needed, and there is only a stand-in: {server.source}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for result in runner.run(_measure(server.url)):
                show(result, as_json=chosen.json)


async def _measure(url: str) -> list[Result]:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(
        Settings, {}, streams={ACCOUNTS: AccountEvents, QUIET: QuietEvents}, publisher=Silent.open
    )
    app.state.settings = Settings(database_url=SecretUrl(url))
    peer, application = _peer(url)
    policy = ClientPolicy(read_timeout_seconds=60.0, write_timeout_seconds=60.0)
    try:
        async with PostgresDataClient(
            "http://data", service="api_service", transport=AsgiTransport(app), policy=policy
        ) as client:
            await client.load(ACCOUNTS, uuid4())  # starts the application
            store = app.state.store
            rounds = [
                *await _compare(
                    "store: append, key, event",
                    (lambda: _append(store, ACCOUNTS)),
                    (lambda: _insert(store)),
                    "bare insert",
                    (1 / 2.3, 1 / 2.4),
                ),
                *await _compare(
                    "store: append, key",
                    (lambda: _append(store, QUIET)),
                    (lambda: _insert(store)),
                    "bare insert",
                    (1 / 1.7, 1 / 1.7),
                ),
            ]
            ours = [uuid4() for _ in range(20)]
            for account in ours:
                await client.append(ACCOUNTS, account, *(_deposit(account) for _ in range(10)))
            theirs = [_opened(application) for _ in range(20)]
            rounds += await _compare(
                "service: decision",
                _decisions(app, ours),
                _peer_decisions(peer, theirs),
                "eventsourcing behind FastAPI",
                (1.0, 1.0),
            )
            return [*rounds, *await _rebuild(client, store), *await _hot(client)]
    finally:
        application.close()


async def _compare(
    name: str, ours: Prepare, peer: Prepare, peer_name: str, goals: tuple[float, float]
) -> list[Result]:
    sides = {"ours": ours, "peer": peer}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    latency: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(WARM_UP + OPERATIONS):
        for side, prepare in sides.items():
            operation = prepare()
            began, used = time.perf_counter(), time.process_time()
            await operation()
            used, taken = time.process_time() - used, time.perf_counter() - began
            if number >= WARM_UP:
                cpu[side].append(used)
                latency[side].append(taken)
    return [
        Result(
            name=f"{name}, {what}",
            ours=statistics.median(figures["ours"]) * 1e6,
            peer=statistics.median(figures["peer"]) * 1e6,
            peer_name=peer_name,
            unit="us",
            goal=goal,
        )
        for what, figures, goal in zip(("CPU", "latency"), (cpu, latency), goals, strict=True)
    ]


# ── in the store ─────────────────────────────────────────────────────────────────────────────────


def _append(store: Any, stream: Stream[Account]) -> Operation:
    account = str(uuid4())
    sent = StreamEvent(
        event_type="account.deposited",
        event_id=uuid4(),
        timestamp=MOMENT,
        data={"account_id": account, "amount": "1.00"},
    )
    append = StreamAppend(stream=stream, id=account, expected=0, events=(sent,), request_id="the-request")
    write = Write(caller="api_service", key=str(uuid4()), fingerprint=b"x" * 32, appends=(append,))
    return lambda: store.write(write)


_INSERT: Final = """
    INSERT INTO quiet_events
        (stream_id, version, event_id, event_type, event_version, data, occurred_at, caller, request_id)
    VALUES ($1, 1, $2, 'account.deposited', 1, CAST($3 AS text)::jsonb, $4, 'api_service', 'the-request')
"""


def _insert(store: Any) -> Operation:
    account = str(uuid4())
    arguments = (account, uuid4(), orjson.dumps({"account_id": account, "amount": "1.00"}).decode(), MOMENT)
    return lambda: store._pool.fetch(_INSERT, *arguments)  # noqa: SLF001 - the same pool for both


# ── in the service ───────────────────────────────────────────────────────────────────────────────


def _deposit(account: UUID) -> Deposited:
    return Deposited(account_id=account, amount=Decimal("1.00"))


def _decisions(app: FastAPI, accounts: list[UUID]) -> Prepare:
    """Read an account and append to it, as a client's `decide` does."""
    versions = dict.fromkeys(accounts, 10)
    order = iter(range(sys.maxsize))

    def prepare() -> Operation:
        account = accounts[next(order) % len(accounts)]
        path = f"/v1/accounts/{account}"
        sent = {
            "event_type": "account.deposited",
            "event_id": str(uuid4()),
            "timestamp": "2026-01-15T10:30:00Z",
            "data": {"account_id": str(account), "amount": "1.00"},
        }
        # As the client does, a snapshot after every 200 events; what it holds makes no difference here.
        due = (versions[account] + 1) % 200 == 0
        snapshot = {"state_version": 1, "state": '{"balance":"1.00"}', "digest": "x" * 32} if due else None
        body = {"expected_version": versions[account], "events": [sent], "snapshot": snapshot}
        versions[account] += 1
        read = post(app, path, b"", method="GET", query=b"state_version=1")
        write = post(app, f"{path}:append", orjson.dumps(body), (b"idempotency-key", f'"{uuid4()}"'.encode()))

        async def run() -> None:
            await read()
            await write()

        return run

    return prepare


def _peer(url: str) -> tuple[FastAPI, Application[UUID]]:
    parts = urlsplit(url)
    application: Application[UUID] = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.path.strip("/"),
            "POSTGRES_HOST": parts.hostname or "",
            "POSTGRES_PORT": str(parts.port),
            "POSTGRES_USER": parts.username or "postgres",
            "POSTGRES_PASSWORD": parts.password or "none",
            "POSTGRES_POOL_SIZE": "10",
        }
    )
    app = FastAPI()

    @app.post("/accounts/{account_id}/deposits", status_code=201)
    def deposit(account_id: UUID, body: PeerDeposit) -> dict[str, int]:
        account: PeerAccount = application.repository.get(account_id)
        account.deposit(body.amount)
        application.save(account)
        return {"version": account.version}

    return app, application


class PeerDeposit(BaseModel):
    """What the peer's route takes."""

    amount: Decimal


def _opened(application: Application[UUID]) -> UUID:
    account = PeerAccount()
    for _ in range(9):
        account.deposit(Decimal("1.00"))
    application.save(account)
    return account.id


def _peer_decisions(app: FastAPI, accounts: list[UUID]) -> Prepare:
    order = iter(range(sys.maxsize))

    def prepare() -> Operation:
        account = accounts[next(order) % len(accounts)]
        return post(app, f"/accounts/{account}/deposits", b'{"amount":"1.00"}')

    return prepare


# ── rebuild, and one hot stream ──────────────────────────────────────────────────────────────────


async def _rebuild(client: PostgresDataClient, store: Any) -> list[Result]:
    account, cached = uuid4(), uuid4()
    for _ in range(EVENTS // 100):
        await client.append(QUIET, account, *(_deposit(account) for _ in range(100)))
        loaded = await client.load(ACCOUNTS, cached)
        await client.append(ACCOUNTS, loaded, *(_deposit(cached) for _ in range(100)))
    whole: list[float] = []
    wall: list[float] = []
    service: list[float] = []
    quick: list[float] = []
    for _ in range(5):
        began, used = time.perf_counter(), time.process_time()
        await client.load(QUIET, account)
        whole.append(time.process_time() - used)
        wall.append(time.perf_counter() - began)
        used = time.process_time()
        for page in range(EVENTS // 1000):
            await store.streams.read(QUIET, str(account), StreamRead(after=page * 1000))
        service.append(time.process_time() - used)
        began = time.perf_counter()
        await client.load(ACCOUNTS, cached)
        quick.append(time.perf_counter() - began)
    of_service = statistics.median(service)
    of_client = statistics.median(whole) - of_service
    return [
        _budget("rebuild of 10,000 events, wall", statistics.median(wall) * 1e3, 400.0, "ms"),
        _budget("rebuild, client CPU per event", of_client / EVENTS * 1e6, 20.0, "us"),
        _budget("rebuild, service CPU per event", of_service / EVENTS * 1e6, 8.0, "us"),
        _budget("rebuild from a snapshot, wall", statistics.median(quick) * 1e3, 10.0, "ms"),
    ]


async def _hot(client: PostgresDataClient) -> list[Result]:
    """Let sixteen decide on one stream, client and service in this process."""
    account, decisions = uuid4(), 25

    async def decide() -> None:
        for _ in range(decisions):
            while True:
                try:
                    await client.decide(ACCOUNTS, account, lambda _: [_deposit(account)])
                    break
                except StaleVersionError:
                    continue

    began = time.perf_counter()
    await asyncio.gather(*(decide() for _ in range(16)))
    per_decision = (time.perf_counter() - began) / (16 * decisions)
    return [_budget("one hot stream, 16 deciders, time per decision", per_decision * 1e3, 1e3 / 150, "ms")]


def _budget(name: str, ours: float, budget: float, unit: str) -> Result:
    return Result(name=name, ours=ours, peer=budget, peer_name="budget", unit=unit, goal=1.0)


if __name__ == "__main__":
    main()
