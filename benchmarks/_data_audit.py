"""What the audit trail adds to a change: `PATCH` of a record by its key, with and without `audited=True`.

Both sides are one application on one PostgreSQL, with two tables of the same columns, and take turns in blocks. The
service's CPU is `time.process_time` of its process; the database's is that of the backends of its pool, as Linux counts
it in `/proc/<pid>/schedstat`. Both are medians over the blocks.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Final
from uuid import uuid4

import orjson
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import Numeric
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks._data_writes import VALUES, NewSale, Sale, Settings, post
from benchmarks._report import Result
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dev import LocalServers
from hybridkit.resources import Resource
from hybridkit.resources._resource import AnyResource
from hybridkit.settings import SecretUrl

BLOCKS: Final = 60
WARM_UP_BLOCKS: Final = 10
OPERATIONS: Final = 50
DATABASE_GOAL: Final = 1 / 1.4
SERVICE_GOAL: Final = 1 / 1.05


class Base(DeclarativeBase):
    """Of the tables."""


class SaleColumns(RecordColumns):
    """The columns of both tables."""

    customer: Mapped[str]
    status: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    quantity: Mapped[int]
    note: Mapped[str | None]


class PlainTable(SaleColumns, Base):
    """The table without a trigger."""

    __tablename__ = "plain_sales"


class AuditedTable(SaleColumns, Base):
    """The table with one."""

    __tablename__ = "audited_sales"


class SaleChanges(BaseModel):
    """The fields that a change may have."""

    status: str | None = None
    quantity: int | None = None


PLAIN: Final = Resource("plain_sales", record=Sale, create=NewSale, update=SaleChanges)
AUDITED: Final = Resource("audited_sales", record=Sale, create=NewSale, update=SaleChanges, audited=True)


def measure() -> Iterable[Result]:
    """Measure the CPU of the database and of the service, per change."""
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
    app = create_data_service(Settings, {PLAIN: PlainTable, AUDITED: AuditedTable})
    app.state.settings = Settings(database_url=SecretUrl(url))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await stack.enter_async_context(app.router.lifespan_context(app))
        paths = {each.name: await _created(app, each) for each in (PLAIN, AUDITED)}
        rows = await app.state.store._pool.fetch("SELECT pg_backend_pid()")  # noqa: SLF001 - one connection does it all
        backend = Path(f"/proc/{rows[0][0]}/schedstat")
        return await _compare(app, paths, backend)


async def _compare(app: FastAPI, paths: Mapping[str, str], backend: Path) -> list[Result]:
    database: dict[str, list[float]] = {name: [] for name in paths}
    service: dict[str, list[float]] = {name: [] for name in paths}
    numbers = itertools.count(1)
    for block in range(WARM_UP_BLOCKS + BLOCKS):
        for name, path in paths.items():
            changes = [
                post(
                    app,
                    path,
                    orjson.dumps({"quantity": next(numbers), "status": f"status {number}"}),
                    (b"idempotency-key", f'"{uuid4()}"'.encode()),
                    method="PATCH",
                )
                for number in range(OPERATIONS)
            ]
            used, worked = time.process_time(), _nanoseconds(backend)
            for change in changes:
                await change()
            used, worked = time.process_time() - used, _nanoseconds(backend) - worked
            if block >= WARM_UP_BLOCKS:
                service[name].append(used / OPERATIONS * 1e6)
                database[name].append(worked / OPERATIONS / 1e3)
    return [
        Result(
            name=f"audit: {where}, CPU of a PATCH",
            ours=statistics.median(figures[AUDITED.name]),
            peer=statistics.median(figures[PLAIN.name]),
            peer_name="not audited",
            unit="us",
            goal=goal,
        )
        for where, figures, goal in (
            ("database", database, DATABASE_GOAL),
            ("service", service, SERVICE_GOAL),
        )
    ]


async def _created(app: FastAPI, resource: AnyResource) -> str:
    record_id = str(uuid4())
    body = orjson.dumps({"id": record_id, **VALUES}, default=str)
    await post(app, resource.path, body, (b"idempotency-key", f'"{uuid4()}"'.encode()))()
    return f"{resource.path}/{record_id}"


def _nanoseconds(backend: Path) -> int:
    """Return the time that a process has spent on a CPU, https://docs.kernel.org/scheduler/sched-stats.html."""
    return int(backend.read_text().split()[0])
