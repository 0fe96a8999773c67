"""What several files test: a data service on PostgreSQL in this process, a broker as others see it, dead letters."""

import asyncio
import itertools
import os
import socket
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aio_pika
import httpx
import orjson
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import CheckConstraint, ForeignKey, MetaData, Numeric, Text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.codec import Timestamp
from hybridkit.coordination import connect_redis
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, DeadLetters, RobustPublisher
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.testing import FaultProxy
from tests.helpers import until
from tests.helpers.dead_letters import NO_LIMIT, Work

# ── a data service; its broker only takes notes ──────────────────────────────────────────────────


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class NewOwner(BaseModel):
    id: str
    title: str


class Owner(Record[str]):
    title: str


class OwnerChanges(BaseModel):
    title: str | None = None


class NewItem(BaseModel):
    name: str
    price: Decimal | None = None
    quantity: int = 0
    rank: int | None = None
    due_at: Timestamp | None = None
    details: dict[str, Any] | None = None
    owner_id: str | None = None


class Item(NewItem, Record):
    is_active: bool = True


class ItemChanges(BaseModel):
    name: str | None = None
    price: Decimal | None = None
    quantity: int | None = None
    rank: int | None = None
    details: dict[str, Any] | None = None
    is_active: bool | None = None


OWNERS = Resource("owners", record=Owner, create=NewOwner, update=OwnerChanges, filterable=("title",))
ITEMS = Resource(
    "items",
    record=Item,
    create=NewItem,
    update=ItemChanges,
    filterable=(
        "name",
        "price",
        "quantity",
        "rank",
        "due_at",
        "is_active",
        "created_at",
        "details.size",
        "details.color",
    ),
    sortable=("name", "price", "rank", "due_at", "created_at", "details.size"),
)


class Base(DeclarativeBase):
    pass


class OwnerTable(RecordColumns, Base):
    __tablename__ = "owners"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    title: Mapped[str]


class ItemTable(RecordColumns, Base):
    __tablename__ = "items"
    __table_args__ = (CheckConstraint("quantity >= 0"),)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int]
    rank: Mapped[int | None]
    due_at: Mapped[Any] = mapped_column(TIMESTAMP(timezone=True), nullable=True)
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    owner_id: Mapped[str | None] = mapped_column(ForeignKey("owners.id"))
    is_active: Mapped[bool]


class NotingPublisher:
    """Confirms what it is given, or raises what it was told to for an event type."""

    def __init__(self) -> None:
        self.published: list[tuple[UUID, str | None, dict[str, Any]]] = []
        self.failures: dict[str, Exception] = {}

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> None:
        if event_type in self.failures:
            raise self.failures[event_type]
        self.published.append((event_id, queue, orjson.loads(body)))

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["NotingPublisher"]:
        yield self


class Service:
    """A running data service, its database and a client that makes a key for every write."""

    def __init__(self, app: FastAPI, url: str, publisher: NotingPublisher) -> None:
        self.app = app
        self.url = url
        self.publisher = publisher
        self.items = ITEMS
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
        self._keys = itertools.count()

    @property
    def store(self) -> Any:
        return self.app.state.store

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers=_named(headers))

    async def send(
        self, method: str, path: str, body: object = None, *, key: str | None = None, **headers: str
    ) -> httpx.Response:
        content = None if body is None else orjson.dumps(body)
        key = key or f"key {next(self._keys)}"
        return await self.http.request(
            method, path, content=content, headers={"idempotency-key": f'"{key}"', **_named(headers)}
        )

    async def insist(self, method: str, path: str, body: object = None, **options: Any) -> httpx.Response:
        """Send it until it is not put off, as a client does: a busy machine is no finding."""
        options.setdefault("key", f"key {next(self._keys)}")
        async with asyncio.timeout(60):
            while True:
                answer = await self.send(method, path, body, **options)
                if answer.status_code < 400 or not answer.json()["retryable"]:
                    return answer
                await asyncio.sleep(0.05)

    async def create(self, name: str, **fields: object) -> dict[str, Any]:
        answer = await self.send("POST", "/v1/items", {"name": name, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def transact(self, *operations: Mapping[str, Any], **more: Any) -> httpx.Response:
        options = {name: more.pop(name) for name in ("key", "x_service_name") if name in more}
        return await self.send("POST", "/v1:transact", {"operations": operations, **more}, **options)

    async def transact_insistently(self, *operations: Mapping[str, Any], **more: Any) -> httpx.Response:
        options = {name: more.pop(name) for name in ("key", "x_service_name") if name in more}
        return await self.insist("POST", "/v1:transact", {"operations": operations, **more}, **options)

    @asynccontextmanager
    async def holding(self, statement: str, *arguments: object) -> AsyncGenerator[Any]:
        """Another transaction, which holds what the statement locks until the end of the block."""
        connection = await connect(
            self.url, timeout_seconds=10, command_seconds=30, application_name="the test"
        )
        try:
            await connection.execute("BEGIN")
            await connection.execute(statement, *arguments)
            yield connection
        finally:
            await connection.close()

    async def until(self, statement: str, *arguments: object) -> None:
        """Wait for the statement to find something."""
        await until(lambda: self.sql(statement, *arguments))

    async def sql(self, statement: str, *arguments: object) -> list[Any]:
        connection = await connect(
            self.url, timeout_seconds=10, command_seconds=30, application_name="the test"
        )
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def running(url: str, *, broker: bool = True, **options: Any) -> AsyncGenerator[Service]:
    publisher = NotingPublisher()
    app = create_data_service(
        Settings,
        {ITEMS: ItemTable, OWNERS: OwnerTable},
        publisher=publisher.open if broker else None,
        **options,
    )
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    service = Service(app, url, publisher)
    async with app.router.lifespan_context(app), service.http:
        yield service


async def create_tables(url: str) -> None:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


@pytest.fixture
async def service(postgres_url: str) -> AsyncIterator[Service]:
    """One data service for `items` and `owners`."""
    await create_tables(postgres_url)
    async with running(postgres_url) as service:
        yield service


@pytest.fixture
async def replica(service: Service) -> AsyncIterator[Service]:
    """A second data service on the same database."""
    async with running(service.url) as replica:
        yield replica


@pytest.fixture
def run_service() -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Runs a data service on the database with that URL."""
    return running


@pytest.fixture
def make_tables() -> Callable[[str], Awaitable[None]]:
    """Creates the tables of the data service in the database with that URL."""
    return create_tables


@pytest.fixture
def service_tables() -> MetaData:
    """The tables as the service declares them."""
    return Base.metadata


# ── MongoDB ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["mongo_url", "mongo_transactions_url"])
def each_mongo_url(request: pytest.FixtureRequest) -> str:
    """A database of the test's own on a server without transactions, and on one with them."""
    return str(request.getfixturevalue(request.param))


# ── any application, on a socket ─────────────────────────────────────────────────────────────────


@contextmanager
def _serving(app: FastAPI) -> Generator[str]:
    """The application on a loopback port, in an event loop of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # asyncio sees to it only for sockets that it has made; each answer would come 40 ms late.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                assert thread.is_alive(), "the service did not start"
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def serve_app() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Serves an application inside a `with` block, which is given its URL."""
    return _serving


@pytest.fixture(scope="session")
def explore() -> Callable[[str], list[str]]:
    """Sends what an OpenAPI document allows, and what it doesn't; returns the answers that it doesn't tell of.

    `make schemathesis` sends more.
    """
    return _explore


def _explore(document_url: str) -> list[str]:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import HypothesisDeprecationWarning, Unsatisfiable

    often = settings(
        max_examples=int(os.environ.get("HYBRIDKIT_SCHEMATHESIS_EXAMPLES", "3")),
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        phases=[Phase.explicit, Phase.generate],
    )
    found: list[str] = []
    # Not the call that keeps the database busy for as long as it is told to.
    document = schemathesis.openapi.from_url(document_url).exclude(path_regex=":slow$")
    for result in document.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr] # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
        for mode in schemathesis.GenerationMode:
            try:
                with warnings.catch_warnings():
                    # Of what Schemathesis itself does.
                    warnings.simplefilter("ignore", HypothesisDeprecationWarning)
                    often(given(case=operation.as_strategy(generation_mode=mode))(_check_documented))()
            except Unsatisfiable:  # nothing about the operation can be wrong
                continue
            except (BaseExceptionGroup, Exception) as error:  # noqa: BLE001 - whatever it is, it is a finding
                found.append(f"{operation.label} ({mode.value}): {_told(error)}")
    return found


def _check_documented(case: Any) -> None:
    from schemathesis.specs.openapi import checks as openapi_checks

    response = case.call()
    # A typed 501 is the answer to what the database can't do, and a typed 504 to a caller who leaves no time.
    in_a_hurry = any(name.lower() == "x-request-timeout" for name in response.request.headers)
    too_late = (
        in_a_hurry
        and response.status_code == 504
        and response.json()["code"] in {"DEADLINE_PASSED", "DEADLINE_EXCEEDED"}
    )
    assert response.status_code < 500 or response.status_code == 501 or too_late, (
        f"{case.as_curl_command()}\n{response.text}"
    )
    checks = [openapi_checks.status_code_conformance, openapi_checks.response_headers_conformance]
    # OpenAPI can't say that `Prefer: return=minimal` leaves the body of a 201 out.
    if "return=minimal" not in "".join(response.headers.get("preference-applied", [])):
        checks += [openapi_checks.content_type_conformance, openapi_checks.response_schema_conformance]
    case.validate_response(response, checks=checks)


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(map(_told, error.exceptions))
    return f"{type(error).__name__}: {error}"


# ── a broker, as somebody else's client uses it ──────────────────────────────────────────────────


class Broker:
    """A virtual host of RabbitMQ and plain aio-pika: what is there without anything of hybridkit's."""

    def __init__(self, url: str) -> None:
        self.url = url

    def at(self, url: str) -> "Broker":
        return Broker(url)

    @asynccontextmanager
    async def channel(self, **options: Any) -> AsyncGenerator[aio_pika.abc.AbstractChannel]:
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel(**options)

    @asynccontextmanager
    async def proxied(self) -> AsyncGenerator[tuple[FaultProxy, str]]:
        """A network that can fail, and the URL that leads through it."""
        parts = urlsplit(self.url)
        async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
            yield proxy, proxy.url_for(self.url)

    async def version(self) -> tuple[int, ...]:
        async with await aio_pika.connect(self.url) as connection:
            assert connection.transport
            properties = connection.transport.connection.server_properties
        return tuple(map(int, str(properties["version"]).split(".")[:3]))

    async def read(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
        """Take the next message; waits for it."""
        async with self.channel() as channel, asyncio.timeout(60):
            await channel.set_qos(1)
            async with (await channel.get_queue(queue)).iterator() as messages:
                message = await anext(messages)
                await message.ack()
                return message

    async def state(self, queue: str) -> tuple[int, int]:
        """How many messages wait in it, and how many consumers it has."""
        async with self.channel() as channel:
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
            return found.message_count or 0, found.consumer_count or 0


@pytest.fixture
def broker(rabbitmq_url: str) -> Broker:
    """RabbitMQ, reached by plain aio-pika."""
    return Broker(rabbitmq_url)


@pytest.fixture
async def publisher(rabbitmq_url: str) -> AsyncGenerator[RobustPublisher]:
    """A publisher on RabbitMQ, in the virtual host of the test."""
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        yield publisher


@pytest.fixture
async def connection(rabbitmq_url: str) -> AsyncGenerator[BrokerConnection]:
    """A connection to RabbitMQ for consumers, in the virtual host of the test."""
    async with BrokerConnection(rabbitmq_url, name="tests") as connection:
        yield connection


# ── dead letters ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def work(rabbitmq_url: str) -> AsyncGenerator[Work]:
    async with RobustPublisher(rabbitmq_url, service="tests") as publisher:
        yield Work(rabbitmq_url, publisher)


@pytest.fixture
async def guard(redis_url: str) -> AsyncGenerator[IdempotencyGuard]:
    """A patient one, as it would go on without a Redis that a busy machine keeps from answering."""
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield IdempotencyGuard(redis)


@pytest.fixture
def letters(rabbitmq_url: str) -> DeadLetters:
    return DeadLetters(rabbitmq_url, "letters.work.dlq")


@pytest.fixture
async def queues(broker: Any) -> None:
    """The consumer's two queues, without the consumer."""
    async with broker.channel() as channel:
        for name in ("letters.work", "letters.work.dlq"):
            await channel.declare_queue(
                name, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
            )
