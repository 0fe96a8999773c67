"""Whatever SQL has put into a table can be read: one odd value hides neither its record nor the others."""

import enum
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Date,
    DateTime,
    Double,
    Enum,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.clients import AsgiTransport, PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "db_odd_service"
    database_url: PostgresUrl


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class NewSimple(BaseModel):
    name: str
    weight: float = 0.0
    amount: Decimal = Decimal(0)
    at: Timestamp = datetime(2026, 1, 1, tzinfo=UTC)
    day: date = date(2026, 1, 1)
    doc: Any = None
    plain: Any = None
    big: int = 0
    short: str = ""
    cents: Decimal | None = None
    tiny: int | None = None
    codes: list[str] = []


class Simple(NewSimple, Record):
    pass


class SimpleChanges(NewSimple):
    name: str = ""


class NewOdd(NewSimple):
    start: time = time(0)
    took: timedelta = timedelta(0)
    raw: bytes = b""
    days: list[date] = []


class Odd(NewOdd, Record):
    pass


class NewLabel(BaseModel):
    name: str


class Label(NewLabel, Record):
    mood: Mood | str
    took: timedelta


NAMES = ("name", "at", "day", "weight", "short", "big")
SIMPLE = Resource(
    "simple", record=Simple, create=NewSimple, update=SimpleChanges, filterable=NAMES, sortable=NAMES
)
ODD = Resource("odd", record=Odd, create=NewOdd, update=NewOdd, filterable=(*NAMES, "start"), sortable=NAMES)
LABELS = Resource("labels", record=Label, create=NewLabel, update=NewLabel, sortable=("name",))


class Base(DeclarativeBase):
    pass


class _Columns(RecordColumns):
    name: Mapped[str] = mapped_column(Text)
    weight: Mapped[float] = mapped_column(Double, server_default="0")
    amount: Mapped[Decimal] = mapped_column(Numeric, server_default="0")
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default="2026-01-01")
    day: Mapped[date] = mapped_column(Date, server_default="2026-01-01")
    doc: Mapped[Any] = mapped_column(JSONB, nullable=True)
    plain: Mapped[Any] = mapped_column(JSON, nullable=True)
    big: Mapped[int] = mapped_column(BigInteger, server_default="0")
    short: Mapped[str] = mapped_column(String(5), server_default="")
    cents: Mapped[Decimal | None] = mapped_column(Numeric(5, 2))
    tiny: Mapped[int | None] = mapped_column(SmallInteger)
    codes: Mapped[list[str]] = mapped_column(ARRAY(String(3)), server_default="{}")


class SimpleTable(_Columns, Base):
    __tablename__ = "simple"


class OddTable(_Columns, Base):
    __tablename__ = "odd"
    start: Mapped[time] = mapped_column(Time, server_default="00:00")
    took: Mapped[timedelta] = mapped_column(Interval, server_default="0")
    raw: Mapped[bytes] = mapped_column(LargeBinary, server_default="")
    days: Mapped[list[date]] = mapped_column(ARRAY(Date), server_default="{}")


class LabelTable(RecordColumns, Base):
    __tablename__ = "labels"
    name: Mapped[str] = mapped_column(Text)
    mood: Mapped[Any] = mapped_column(Enum(Mood, name="mood"), server_default="GOOD")
    took: Mapped[timedelta] = mapped_column(Interval, server_default="0")


COMMON: list[tuple[str, str, object]] = [
    ("weight", "NaN", "NaN"),
    ("weight", "-Infinity", "-Infinity"),
    ("amount", "NaN", "NaN"),
    ("at", "infinity", "9999-12-31T23:59:59.999Z"),
    ("at", "-infinity", "0001-01-01T00:00:00Z"),
    ("at", "10000-01-01 00:00:00+00", "9999-12-31T23:59:59.999Z"),
    ("at", "0044-03-15 00:00:00+00 BC", "0001-01-01T00:00:00Z"),
    ("day", "infinity", "9999-12-31"),
    ("day", "20000-01-01", "9999-12-31"),
    ("day", "0044-03-15 BC", "0001-01-01"),
    ("doc", '{"n": 1e400}', {"n": 10**400}),
    ("doc", '{"n": 18446744073709551617}', {"n": 2**64 + 1}),
    ("plain", '{"n": 1e400}', {"n": 10**400}),
    ("plain", r'{"n": "\u0000\ud800"}', {"n": "\0\ufffd"}),
    ("plain", "[" * 63 + "]" * 63, orjson.loads("[" * 63 + "]" * 63)),
]
MORE: list[tuple[str, str, object]] = [
    ("start", "24:00", "23:59:59.999999"),
    ("took", "1 year", "P360D"),
    ("took", "178000000 years", None),
    ("raw", r"\xff00", "\\xff\0"),
    ("days", "{infinity,0044-03-15 BC,2026-01-01}", ["9999-12-31", "0001-01-01", "2026-01-01"]),
]
"""What a table has that Python prints."""


TYPES = {
    "weight": "float8",
    "amount": "numeric",
    "at": "timestamptz",
    "day": "date",
    "doc": "jsonb",
    "plain": "json",
    "start": "time",
    "took": "interval",
    "raw": "bytea",
    "days": "date[]",
    "mood": "mood",
}


class Service:
    """A running service, its client, and SQL beside it."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.url = url
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
        self.client = PostgresDataClient("http://data", service="api", transport=AsgiTransport(app))

    async def put(self, resource: Any, column: str, text: str) -> str:
        """A record made by SQL."""
        connection = await connect(self.url, timeout_seconds=10, command_seconds=30, application_name="test")
        try:
            record_id = str(uuid4())
            value = f"CAST(CAST($2 AS text) AS {TYPES[column]})"
            await connection.execute(
                f"INSERT INTO {resource.name} (id, name, {column}) VALUES ($1, 'b', {value})", record_id, text
            )
        finally:
            await connection.close()
        return record_id

    async def send(self, method: str, path: str, body: object = None, key: str = "") -> httpx.Response:
        headers = {"idempotency-key": f'"{key or uuid4()}"'}
        return await self.http.request(method, path, content=json.dumps(body).encode(), headers=headers)


@asynccontextmanager
async def running(url: str) -> AsyncGenerator[Service]:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {SIMPLE: SimpleTable, ODD: OddTable, LABELS: LabelTable})
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    async with app.router.lifespan_context(app):
        service = Service(app, url)
        async with service.http, service.client:
            yield service


@pytest.fixture
async def service(postgres_url: str) -> AsyncIterator[Service]:
    async with running(postgres_url) as service:
        yield service


@pytest.mark.parametrize(
    ("resource", "cases"), [(SIMPLE, COMMON), (ODD, COMMON + MORE)], ids=["simple", "odd"]
)
async def test_an_odd_value_is_read_everywhere_and_alike(
    service: Service, resource: Any, cases: list[tuple[str, str, object]]
) -> None:
    """Lists, reads by id, batches, exports, repeated changes and a typed client all show the same value."""
    path = resource.path
    for name in ("a", "c"):
        assert (await service.send("POST", path, {"name": name})).status_code == 201
    wrong: list[object] = []
    for column, text, expected in cases:
        record_id = await service.put(resource, column, text)
        answers = {
            "list": await service.http.get(path, params={"order": "name"}),
            "get": await service.http.get(f"{path}/{record_id}"),
            "batch": await service.send("POST", f"{path}:batch_get", {"ids": [record_id]}),
            "export": await service.http.get(path, headers={"accept": "application/x-ndjson"}),
        }
        patch = {"name": "b"}
        answers["patch"] = await service.send("PATCH", f"{path}/{record_id}", patch, key=record_id)
        answers["replay"] = await service.send("PATCH", f"{path}/{record_id}", patch, key=record_id)
        for way, answer in answers.items():
            if answer.status_code != 200:
                wrong.append((way, column, text, answer.text[:200]))
                continue
            body = [json.loads(line) for line in answer.text.splitlines()]
            records = body if way == "export" else body[0].get("items", body)
            shown = [record[column] for record in records if record.get("id") == record_id]
            if len(shown) != 1 or (expected is not None and shown != [expected]):
                wrong.append((way, column, text, shown))
            if way in ("list", "export") and len([record for record in records if "id" in record]) != 3:
                wrong.append((way, column, text, "records are missing"))
        found = await service.client.get(resource, record_id)
        page = [record.name async for record in service.client.find(resource)]
        if found.id is None or sorted(page) != ["a", "b", "c"]:
            wrong.append(("client", column, text, page))
        assert (await service.send("DELETE", f"{path}/{record_id}")).status_code == 204
    assert wrong == []


async def test_a_label_that_the_code_does_not_have_is_shown_as_it_is(service: Service) -> None:
    """A label that a newer release has added is shown itself; the others are shown as their values."""
    connection = await connect(service.url, timeout_seconds=10, command_seconds=30, application_name="test")
    await connection.execute("ALTER TYPE mood ADD VALUE 'NEW'")
    await connection.close()
    new, bad = await service.put(LABELS, "mood", "NEW"), await service.put(LABELS, "mood", "BAD")
    items = (await service.http.get(LABELS.path)).json()["items"]
    assert {item["id"]: item["mood"] for item in items} == {new: "NEW", bad: "bad"}
    for method in ("PUT", "PATCH", "GET"):
        body = None if method == "GET" else {"name": method}
        answers = [await service.send(method, f"{LABELS.path}/{one}", body) for one in (new, bad)]
        assert [answer.json()["mood"] for answer in answers] == ["NEW", "bad"], method


@pytest.mark.parametrize("resource", [SIMPLE, ODD], ids=["simple", "odd"])
async def test_what_is_shown_of_an_odd_value_finds_it(service: Service, resource: Any) -> None:
    """`eq` with the shown value finds the record, and `gt` with the last one finds nothing."""
    cases = [
        case
        for case in (*COMMON, *MORE)
        if case[0] in resource.filterable and case[0] in ("at", "day", "start")
    ]
    for column, text, shown in cases:
        record_id = await service.put(resource, column, text)
        found = {}
        for word in ("eq", "gt", "lt"):
            page = await service.http.get(resource.path, params={column: f"{word}.{shown}"})
            found[word] = [record["id"] for record in page.json()["items"]]
        assert found == {"eq": [record_id], "gt": [], "lt": []}, (column, text)
        await service.send("DELETE", f"{resource.path}/{record_id}")


async def test_a_sum_of_integers_is_exact(service: Service) -> None:
    """A sum beyond 64 bits is exact on the wire and for a typed client."""
    largest = 2**63 - 1
    for _ in range(3):
        assert (await service.send("POST", SIMPLE.path, {"name": "a", "big": largest})).status_code == 201
    functions = {"total": ["sum", "big"], "most": ["max", "big"]}
    answer = await service.send("POST", f"{SIMPLE.path}:aggregate", {"functions": functions})
    assert json.loads(answer.text)["items"] == [{"total": 3 * largest, "most": largest}]


TOO_MUCH: list[tuple[str, object]] = [
    ("short", "abcdef"),
    ("short", "abc       "),
    ("short", "a\0"),
    ("name", "\0"),
    ("cents", "1000"),
    ("cents", "999.995"),
    ("tiny", 2**15),
    ("big", 2**63),
    ("big", -(2**63) - 1),
    ("codes", ["abc", "abc "]),
]


async def test_what_a_column_is_too_small_for_is_refused_with_its_field(service: Service) -> None:
    """So are blanks at the end, which PostgreSQL would cut silently, on every path."""
    mine = (await service.send("POST", SIMPLE.path, {"name": "a"})).json()["id"]
    for field, value in TOO_MUCH:
        body = {"name": "b", field: value}
        update = {"op": "update", "resource": "simple", "id": mine, "data": {field: value}}
        answers = {
            f"/{field}": [
                await service.send("POST", SIMPLE.path, body),
                await service.send("PUT", f"{SIMPLE.path}/{uuid4()}", body),
                await service.send("PATCH", f"{SIMPLE.path}/{mine}", {field: value}),
            ],
            f"/items/0/data/{field}": [
                await service.send("POST", f"{SIMPLE.path}:batch_create", {"items": [{"data": body}]})
            ],
            f"/operations/0/data/{field}": [
                await service.send("POST", "/v1:transact", {"operations": [update]})
            ],
        }
        for pointer, given in answers.items():
            for answer in given:
                assert answer.status_code == 422, (field, value, answer.text)
                assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert (await service.send("PATCH", f"{SIMPLE.path}/{mine}", {"short": "abc  "})).status_code == 200
    page = await service.http.get(SIMPLE.path, params={"short": "eq.abcdef"})
    assert page.json()["items"] == []


async def test_a_time_with_an_offset_is_refused_where_the_column_has_none(service: Service) -> None:
    """PostgreSQL would drop the offset silently."""
    answer = await service.send("POST", ODD.path, {"name": "a", "start": "06:00:00+02:00"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/start")
    assert (await service.http.get(ODD.path, params={"start": "eq.06:00:00+02:00"})).status_code == 400
