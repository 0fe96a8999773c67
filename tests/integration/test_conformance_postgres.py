"""PostgreSQL's data service keeps the contract: the suite that users run, on a real server and over real sockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import ForeignKey, Numeric, Text, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.dataservice import (
    CallContext,
    RecordColumns,
    SoftDeleteColumns,
    StreamColumns,
    create_data_service,
)
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.testing import _isolation, plugin
from hybridkit.testing.conformance import (
    COUNTERS,
    LEDGERS,
    PLACES,
    SLOW,
    THINGS,
    Capability,
    DataServiceConformance,
    ServiceUnderTest,
    Slow,
)

pytestmark = pytest.mark.real_server

LACKS: dict[Capability, str] = {
    "pipelines": "PostgreSQL runs no MongoDB pipelines",
}


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Base(DeclarativeBase):
    pass


class PlaceTable(RecordColumns, SoftDeleteColumns, Base):
    __tablename__ = "conformance_places"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    title: Mapped[str]


class LedgerTable(RecordColumns, Base):
    __tablename__ = "conformance_ledgers"
    balance: Mapped[int]


class CounterEvents(StreamColumns, Base):
    __tablename__ = "conformance_counter_events"


class ThingTable(RecordColumns, Base):
    __tablename__ = "conformance_things"
    tag: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    code: Mapped[str | None] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(Text)
    price: Mapped[Decimal | None] = mapped_column(Numeric)
    quantity: Mapped[int]
    weight: Mapped[float | None]
    rank: Mapped[int | None]
    due_at: Mapped[Any] = mapped_column(TIMESTAMP(timezone=True), nullable=True)
    owner_id: Mapped[UUID | None]
    place_id: Mapped[str | None] = mapped_column(ForeignKey("conformance_places.id"))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    marks: Mapped[list[Any] | None] = mapped_column(JSONB)
    parcel: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    is_active: Mapped[bool]


class Publisher:
    """Takes what the relay publishes."""

    async def publish_encoded(self, body: bytes, **_: Any) -> None:
        assert body

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator["Publisher"]:
        yield cls()


async def slow(body: Slow, work: CallContext[AsyncConnection]) -> Slow:
    await work.database.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": body.seconds})
    return body


async def _create_tables(url: str) -> None:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


@pytest.fixture(scope="module")
def base_url(
    request: pytest.FixtureRequest, serve_app: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[str]:
    """One service for all tests: each looks at its own records only."""
    server = plugin._find(request, "postgres")
    with (
        _isolation.postgres_template(server, lambda url: asyncio.run(_create_tables(url))) as template,
        _isolation.postgres_database(server, template=template) as url,
    ):
        app = create_data_service(
            Settings,
            {THINGS: ThingTable, PLACES: PlaceTable, LEDGERS: LedgerTable},
            streams={COUNTERS: CounterEvents},
            calls={SLOW: slow},
            publisher=Publisher.open,
        )
        app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
        with serve_app(app) as base_url:
            yield base_url


class TestPostgres(DataServiceConformance):
    """On PostgreSQL."""

    @pytest.fixture
    async def service(self, base_url: str) -> AsyncIterator[ServiceUnderTest]:
        async with ServiceUnderTest(base_url, lacks=LACKS) as service:
            yield service


@pytest.mark.usefixtures("unmeasured_test")
def test_every_answer_is_documented(base_url: str, explore: Callable[[str], list[str]]) -> None:
    """Whatever is sent: no failure, and no status, content type, header or body that OpenAPI doesn't tell."""
    assert explore(f"{base_url}/openapi.json") == []
