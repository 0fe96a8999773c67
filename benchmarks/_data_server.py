"""What a read costs the data service: CPU per request, beside FastAPI with the ORM and a response model.

```
python -m benchmarks._data_server ours|peer      a server, with DATABASE_URL, HOST and PORT in the environment
```

Both run on uvicorn with uvloop and httptools in a process of their own, on the same table of the same PostgreSQL, and
answer the same records; sixteen connections of another process ask them in turns. What counts is `time.process_time` of
the server's process per request, the best of the rounds. Ours runs as it is deployed, with its context, log line
(written to nowhere), metrics and ETag; the peer has no log and nothing around it.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from threading import Thread
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Numeric, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks._report import Result
from hybridkit.adapters.fastapi import run_api
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dev import LocalServers, Server
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, ServiceSettings

ROWS: Final = 1_000
PAGE: Final = 100
CONNECTIONS: Final = 16
ROUNDS: Final = 5
READS: Final = {"by key": 3_000, "list of 100": 800}
GOALS: Final = {"by key": 5.0, "list of 100": 10.0}
START_SECONDS: Final = 30


class Base(DeclarativeBase):
    """Of both sides' table."""


class OrderTable(RecordColumns, Base):
    """The table; for the peer its ORM class."""

    __tablename__ = "orders"
    customer: Mapped[str]
    status: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int]
    is_paid: Mapped[bool]
    note: Mapped[str | None]


class NewOrder(BaseModel):
    """What an order is made of."""

    customer: str
    status: str
    total: Decimal
    quantity: int
    is_paid: bool
    note: str | None = None


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────


class Order(NewOrder, Record):
    """What we answer."""


class Settings(ServiceSettings):
    """Of our data service; it emits nothing, so it needs no broker."""

    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


ORDERS: Final = Resource(
    "orders", record=Order, create=NewOrder, update=NewOrder, filterable=("status",), sortable=("created_at",)
)


def _serve_ours() -> None:
    run_api(create_data_service(Settings, {ORDERS: OrderTable}))


# ── the peer, as it is usually written ───────────────────────────────────────────────────────────


class OrderOut(NewOrder):
    """What the peer answers: the same members."""

    model_config = ConfigDict(from_attributes=True)
    id: UUID
    version: int
    created_at: datetime
    updated_at: datetime
    incarnation: int


class OrderPage(BaseModel):
    """A page of them."""

    items: list[OrderOut]
    next_page_token: str | None


def _serve_peer() -> None:
    engine: AsyncEngine = create_async_engine(_async_url(os.environ["DATABASE_URL"]), pool_size=10)
    new_session = async_sessionmaker(engine, expire_on_commit=False)

    async def open_session() -> AsyncGenerator[AsyncSession]:
        async with new_session() as opened:
            yield opened

    app = FastAPI()

    @app.get("/v1/orders/{order_id}", response_model=OrderOut)
    async def read(order_id: UUID, session: Annotated[AsyncSession, Depends(open_session)]) -> OrderTable:
        found = await session.get(OrderTable, order_id)
        if found is None:
            raise HTTPException(404)
        return found

    @app.get("/v1/orders", response_model=OrderPage)
    async def find(session: Annotated[AsyncSession, Depends(open_session)], page_size: int = 50) -> Any:
        rows = await session.scalars(select(OrderTable).order_by(OrderTable.id).limit(page_size + 1))
        page = rows.all()
        more = len(page) > page_size
        return {
            "items": page[:page_size],
            "next_page_token": str(page[page_size - 1].id) if more else None,
        }

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    uvicorn.run(
        app,
        host=os.environ["HOST"],
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


def _async_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


# ── a server in a process of its own ─────────────────────────────────────────────────────────────


class _Side:
    """A running server.

    Attributes:
        port: where it listens.
    """

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.port = port
        self._process = process

    def cpu_seconds(self) -> float:
        """Return what the process has used so far; a thread answers, so that no request is in the way."""
        assert self._process.stdin
        assert self._process.stderr
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stderr.readline().removeprefix("cpu "))


@contextmanager
def _running(side: str, database_url: str) -> Generator[_Side]:
    port = _free_port()
    own = {"DATABASE_URL": database_url, "HOST": "127.0.0.1", "PORT": str(port), "LOG_FORMAT": "json"}
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "benchmarks._data_server", side],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | own,
    )
    try:
        _wait_for(port, process)
        yield _Side(process, port)
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)


def _wait_for(port: int, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            asyncio.run(_ask_all(port, ["/health"]))
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                raise RuntimeError(f"the server did not start: {process.communicate()[1]}") from None
            time.sleep(0.1)
        else:
            return


def _answer_with_cpu() -> None:
    for _ in sys.stdin:
        print(f"cpu {time.process_time()}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# ── the load ─────────────────────────────────────────────────────────────────────────────────────


async def _ask_all(port: int, paths: list[str]) -> None:
    """Ask for all of them over a few connections; each has one request under way."""
    left = iter(paths)

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in left:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: data\r\nx-request-timeout: 3\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not head.startswith("http/1.1 200"):
                raise RuntimeError(f"{path} was answered with {head}")
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(min(CONNECTIONS, len(paths)))))


def _microseconds(side: _Side, paths: list[str]) -> float:
    started = side.cpu_seconds()
    asyncio.run(_ask_all(side.port, paths))
    return (side.cpu_seconds() - started) / len(paths) * 1e6


async def _fill(database_url: str) -> list[UUID]:
    ids = [uuid4() for _ in range(ROWS)]
    rows = [
        {
            "id": record_id,
            "customer": f"customer {n} of the benchmark",
            "status": "paid" if n % 2 else "new",
            "total": Decimal(n) / 100,
            "quantity": n,
            "is_paid": bool(n % 2),
            "note": None if n % 3 else "left at the neighbour's door",
            "created_at": datetime(2026, 1, 15, 10, 30, n % 60, 123_000, tzinfo=UTC),
        }
        for n, record_id in enumerate(ids)
    ]
    engine = create_async_engine(_async_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(OrderTable), rows)
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql("ANALYZE")
    await engine.dispose()
    return ids


def measure() -> Iterable[Result]:
    """Both sides in turns, for each kind of read."""
    with LocalServers() as servers:
        url = _real(servers.start("postgres")).url
        ids = asyncio.run(_fill(url))
        paths = {
            "by key": [f"/v1/orders/{ids[n % ROWS]}" for n in range(READS["by key"])],
            "list of 100": [f"/v1/orders?page_size={PAGE}"] * READS["list of 100"],
        }
        with _running("ours", url) as ours, _running("peer", url) as peer:
            for name, asked in paths.items():
                best = {"ours": float("inf"), "peer": float("inf")}
                for _ in range(ROUNDS + 1):  # the first one warms up
                    for key, side in (("ours", ours), ("peer", peer)):
                        best[key] = min(best[key], _microseconds(side, asked))
                yield Result(
                    name=f"server, {name}",
                    ours=best["ours"],
                    peer=best["peer"],
                    peer_name="ORM + response_model",
                    unit="us",
                    goal=GOALS[name],
                )


def _real(server: Server) -> Server:
    if not server.is_real:
        sys.exit(f"a real {server.kind} server is needed, and there is only a stand-in: {server.source}")
    return server


def main() -> None:
    """Read the command line of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "peer"))
    chosen = parser.parse_args()
    Thread(target=_answer_with_cpu, daemon=True).start()
    if chosen.side == "ours":
        _serve_ours()
    else:
        _serve_peer()


if __name__ == "__main__":
    main()
