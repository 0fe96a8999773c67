"""What idempotency and an event add to an insert: one create with both, beside a plain insert of the same row.

Like with like, twice. In the store: `write` of a create with its key and its event, beside the bare
`INSERT … RETURNING` on the same pool of the same driver. In the service: `POST /v1:transact` with the same, beside a
route of the same application that validates a body and runs that insert. Nothing but the server's side is measured:
requests are handed to the application as ASGI messages. Events stay in the outbox, as publishing is another matter.
A third peer is what one would write without us: a FastAPI route with an ORM session and a response model, which has
neither key nor event.

Both sides take turns operation by operation on uvloop, which our processes run on; the arguments of each are made
beforehand. CPU is `time.process_time` of an operation, and both it and the latency are medians: a best round would tell
more of its neighbours on the machine. PostgreSQL's own CPU is not in the CPU, but in the latency; it is set up for
tests, without waiting for its disk, which would take both sides the same time.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import orjson
import uvloop
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Numeric
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks._report import Result
from hybridkit.contract import Emission
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._json_printing import projection, quoted
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._operations import Create, Write
from hybridkit.dev import LocalServers
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings

WARM_UP: Final = 200
OPERATIONS: Final = 2_000
GOAL: Final = 1 / 1.5
MOMENT: Final = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
VALUES: Final = {
    "customer": "a customer",
    "status": "paid",
    "total": Decimal("10.50"),
    "quantity": 3,
    "note": None,
}

type Operation = Callable[[], Awaitable[None]]
type Prepare = Callable[[], Operation]
"""Makes the arguments of an operation, which are its caller's cost."""


class Base(DeclarativeBase):
    """Of the table."""


class SaleTable(RecordColumns, Base):
    """Where both sides insert."""

    __tablename__ = "sales"
    customer: Mapped[str]
    status: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int]
    note: Mapped[str | None]


class NewSale(BaseModel):
    """What a sale is made of."""

    customer: str
    status: str
    total: Decimal
    quantity: int
    note: str | None = None


class Sale(NewSale, Record):
    """What is answered."""


class SaleView(NewSale):
    """What the route without us answers."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    version: int


class Settings(ServiceSettings):
    """Of the service."""

    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


SALES: Final = Resource("sales", record=Sale, create=NewSale, update=NewSale)


def measure() -> Iterable[Result]:
    """In the store and in the service, CPU and latency."""
    with LocalServers() as servers:
        server = servers.start("postgres")
        if not server.is_real:
            sys.exit(f"a real PostgreSQL is needed, and there is only a stand-in: {server.source}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(server.url))


async def _measure(url: str) -> list[Result]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app = create_data_service(Settings, {SALES: SaleTable})
    app.state.settings = Settings(database_url=SecretUrl(url))
    app.add_api_route("/plain", _plain_route, methods=["POST"])
    usual = FastAPI()
    usual.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    usual.add_api_route("/orm", _orm_route, methods=["POST"], response_model=SaleView, status_code=201)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await stack.enter_async_context(app.router.lifespan_context(app))
        app.state.can_emit = True
        store = app.state.store
        database = app.state.database = store._pool  # noqa: SLF001 - the same pool for both
        return [
            *await _compare("store", lambda: _write(store), lambda: _insert(database)),
            *await _compare("service", lambda: _transact(app), lambda: _post_plain(app)),
            *await _compare(
                "service", lambda: _transact(app), lambda: _post_orm(usual), peer_name="ORM + response_model"
            ),
        ]


async def _compare(
    where: str, ours: Prepare, peer: Prepare, *, peer_name: str = "plain insert"
) -> list[Result]:
    sides = {"ours": ours, "peer": peer}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    latency: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + OPERATIONS):
        for name, prepare in sides.items():
            operation = prepare()
            began, used = time.perf_counter(), time.process_time()
            await operation()
            used, taken = time.process_time() - used, time.perf_counter() - began
            if number >= WARM_UP:
                cpu[name].append(used)
                latency[name].append(taken)
    return [
        Result(
            name=f"{where}: key, event, {what}",
            ours=statistics.median(figures["ours"]) * 1e6,
            peer=statistics.median(figures["peer"]) * 1e6,
            peer_name=peer_name,
            unit="us",
            goal=GOAL,
        )
        for what, figures in (("CPU", cpu), ("latency", latency))
    ]


# ── in the store ─────────────────────────────────────────────────────────────────────────────────


def _write(store: Any) -> Operation:
    record_id = uuid4()
    emission = Emission(
        event_type="sale.made",
        event_id=uuid4(),
        timestamp=MOMENT,
        key=str(record_id),
        request_id="the-request",
        data={"sale_id": str(record_id)},
    )
    write = Write(
        caller="api_service",
        key=str(uuid4()),
        fingerprint=b"x" * 32,
        operations=(Create(resource=SALES, id=record_id, values=VALUES),),
        emit=(emission,),
    )

    async def run() -> None:
        await store.write(write)

    return run


def _insert_statement() -> str:
    table = ResourceTable(SALES, SaleTable)
    shown = projection(table).record(lambda name: f"made.{quoted(name)}")
    return f"""
        WITH made AS (
            INSERT INTO sales (id, customer, status, total, quantity, note)
            VALUES ($1, $2, $3, $4, $5, $6) RETURNING *)
        SELECT CAST(row_to_json(r) AS text) FROM made, LATERAL {shown} r
    """  # noqa: S608 - our own names


INSERT: Final = _insert_statement()


def _insert(database: Any) -> Operation:
    arguments = (uuid4(), *VALUES.values())

    async def run() -> None:
        [row] = await database.fetch(INSERT, *arguments)
        orjson.loads(row[0])

    return run


# ── in the service ───────────────────────────────────────────────────────────────────────────────


async def _plain_route(request: Request) -> Response:
    sale = NewSale.model_validate_json(await request.body()).model_dump()
    [row] = await request.app.state.database.fetch(INSERT, uuid4(), *(sale[name] for name in VALUES))
    return Response(row[0], 201, media_type="application/json")


def _post_plain(app: FastAPI) -> Operation:
    return post(app, "/plain", orjson.dumps(VALUES, default=str))


async def _orm_route(request: Request, body: NewSale) -> SaleTable:
    async with request.app.state.sessions() as session:
        row = SaleTable(id=uuid4(), **body.model_dump())
        session.add(row)
        await session.commit()
        return row


def _post_orm(app: FastAPI) -> Operation:
    return post(app, "/orm", orjson.dumps(VALUES, default=str))


def _transact(app: FastAPI) -> Operation:
    record_id = str(uuid4())
    created = {"op": "create", "resource": "sales", "id": record_id, "data": VALUES}
    event = {
        "event_type": "sale.made",
        "event_id": str(uuid4()),
        "timestamp": "2026-01-15T10:30:00Z",
        "key": record_id,
        "request_id": "the-request",
        "data": {"sale_id": record_id},
    }
    body = orjson.dumps({"operations": [created], "emit": [event]}, default=str)
    return post(app, "/v1:transact", body, (b"idempotency-key", f'"{uuid4()}"'.encode()))


def post(
    app: FastAPI,
    path: str,
    body: bytes,
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    query: bytes = b"",
) -> Operation:
    """Make a request that is handed to the application as ASGI messages, and has to succeed."""
    answers: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    given = [
        (b"host", b"data"),
        (b"content-type", b"application/json"),
        (b"x-request-timeout", b"3"),
        *headers,
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": given,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def run() -> None:
        await app(scope, receive, send)
        if answers not in ([200], [201]):
            raise RuntimeError(f"{path} was answered with {answers}")

    return run
