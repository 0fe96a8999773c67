"""Whatever a column's type: every way to write a value stores it as it is, or refuses it alike."""

import asyncio
import enum
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import create_model
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    REAL,
    BigInteger,
    Boolean,
    Date,
    Double,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import BIT, CITEXT, DOMAIN, INET, INT4RANGE, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeEngine, UserDefinedType

from hybridkit import Record, Resource
from hybridkit.codec import Timestamp, format_timestamp
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.testing import _isolation, plugin

pytestmark = pytest.mark.real_server


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Wrapped(TypeDecorator[Any]):
    """Somebody's own type over JSON, whose values are lists in Python."""

    impl = JSONB
    cache_ok = True


class Words(TypeDecorator[Any]):
    """Somebody's own type over a text: a list, joined."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        return None if value is None else " ".join(value)

    def process_result_value(self, value: Any, dialect: object) -> Any:
        return None if value is None else value.split()


class Point(UserDefinedType[Any]):
    """A type of PostgreSQL's that the driver makes of a tuple."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pair"

    def result_processor(self, dialect: object, coltype: object) -> Any:
        return lambda value: None if value is None else list(value)


class Span(TypeDecorator[Any]):
    """A range as its first and last number, a list that the driver takes for bounds."""

    impl = INT4RANGE
    cache_ok = True

    def process_result_value(self, value: Any, dialect: object) -> Any:
        return None if value is None else [value.lower, value.upper - 1]


# ── values as JSON has them, in their canonical form ─────────────────────────────────────────────

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
small = st.integers(-(2**31), 2**31 - 1)
floats = st.floats(-1e9, 1e9, width=32).map(lambda number: number + 0.0)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        # A merge patch with null takes a member away.
        | st.dictionaries(texts, inner.filter(lambda it: it is not None), max_size=2)
    ),
    max_leaves=6,
)
lists = st.lists(documents, max_size=3)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(format_timestamp)
amounts = (
    st.decimals(-(10**9), 10**9, places=2).map(lambda amount: f"{amount:f}").filter(lambda s: s != "-0.00")
)
grids = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(small, min_size=width, max_size=width), max_size=3)
)
Case = tuple[Any, TypeEngine[Any], st.SearchStrategy[Any]]

PLAIN: dict[str, Case] = {
    "words": (str, Text(), texts),
    "short": (str, String(5), texts),
    "number": (int, Integer(), small),
    "big": (int, BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    "ratio": (float, Double(), floats),
    "amount": (Decimal, Numeric(), amounts),
    "price": (Decimal, Numeric(14, 2), amounts),
    "flag": (bool, Boolean(), st.booleans()),
    "at": (Timestamp, TIMESTAMP(timezone=True), moments),
    "day": (date, Date(), st.dates().map(date.isoformat)),
    "opens": (time, Time(), st.times().map(lambda it: it.replace(microsecond=0, fold=0).isoformat())),
    "took": (timedelta, Interval(), st.integers(0, 59).map(lambda it: f"PT{it}S" if it else "PT0S")),
    "mood": (Mood, Enum(Mood, name="values_mood"), st.sampled_from(list(Mood)).map(str)),
    "word": (str, Enum("a", "b", name="values_word"), st.sampled_from("ab")),
    "other": (UUID, Uuid(), st.uuids().map(str)),
    "data": (bytes, LargeBinary(), texts),
    "doc": (Any, JSONB(), documents),
    "raw": (Any, JSON(), documents),
    "list": (list[Any], JSONB(), lists),
    "either": (list[Any], JSON().with_variant(JSONB(), "postgresql"), lists),
}
LEVEL = DOMAIN("values_level", Enum(Mood, name="values_mood"), create_type=False)
ODD: dict[str, Case] = {
    "labels": (list[str | None], ARRAY(Text), st.lists(texts | st.none(), max_size=3)),
    "codes": (list[str], ARRAY(String(5)), st.lists(texts, max_size=3)),
    "grid": (list[list[int]], ARRAY(Integer, dimensions=2), grids),
    "loose": (list[Any], ARRAY(Integer), grids | st.lists(small, max_size=3)),
    "days": (list[date], ARRAY(Date), st.lists(st.dates().map(date.isoformat), max_size=2)),
    "moments": (list[Timestamp], ARRAY(TIMESTAMP(timezone=True)), st.lists(moments, max_size=2)),
    "moods": (
        list[Mood],
        ARRAY(Enum(Mood, name="values_mood")),
        st.lists(st.sampled_from(list(Mood)).map(str)),
    ),
    "docs": (list[Any], ARRAY(JSONB), st.lists(documents.filter(lambda it: it is not None), max_size=3)),
    "wrapped": (Any, Wrapped(), lists | documents.filter(lambda it: it is not None)),
    "joined": (list[str], Words(), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3)),
    "span": (list[int], Span(), st.tuples(st.integers(0, 9), st.integers(10, 20)).map(list)),
    "point": (tuple[int, str], Point(), st.tuples(small, texts).map(list)),
    "limited": (str, DOMAIN("values_limited", String(5)), texts),
    "bits": (str, BIT(3), st.text("01", min_size=3, max_size=3)),
    "host": (IPv4Address, INET(), st.ip_addresses(v=4).map(str)),
    "count": (int, Integer(), small),
    "padded": (str, CHAR(5), texts.filter(lambda it: not it.endswith(" "))),
    "named": (dict[int, int], JSONB(), st.dictionaries(small.map(str), small, max_size=3)),
    "measured": (float, REAL(), st.decimals(-9999, 9999, places=1).map(lambda it: float(it) + 0.0)),
    "rated": (Decimal, Double(), st.integers(-(2**42), 2**42).map(lambda it: it / 4)),
    "half": (int | float, Double(), floats),
    "owner": (str, Uuid(as_uuid=False), st.uuids().map(str)),
    "mixed": (int | float, JSONB(), small | floats.filter(bool)),
    "whole": (int, JSONB(), small),
    "step": (Literal[1, 2], Integer(), st.sampled_from([1, 2])),
    "since": (Timestamp, TIMESTAMP(timezone=True), moments),
    "cost": (Decimal, Numeric(10, 2), amounts.filter(lambda it: len(it) < 10)),
    "doc": (Any, JSONB(), documents),
    "sheet": (Any, JSON(), documents),
    "credit": (Decimal, JSONB(), amounts),
    "level": (Mood, LEVEL, st.sampled_from(list(Mood)).map(str)),
    "levels": (list[Mood | None], ARRAY(LEVEL), st.lists(st.none() | st.sampled_from(list(Mood)).map(str))),
    "names": (list[str | None], ARRAY(CITEXT), st.lists(texts | st.none(), max_size=3)),
    "points": (
        list[tuple[int, str]],
        ARRAY(Point()),
        st.lists(st.tuples(small, texts).map(list), max_size=3),
    ),
    "wraps": (list[Any], ARRAY(Wrapped()), st.lists(lists, max_size=3)),
    "tag": (
        str,
        DOMAIN("values_tag", CHAR(5), create_type=False),
        texts.filter(lambda it: not it.endswith(" ")),
    ),
}


def declared(name: str, cases: dict[str, Case]) -> tuple[Any, Any]:
    """A resource with such fields, none of which needs a value, and its table."""
    fields: dict[str, Any] = {field: (kind | None, None) for field, (kind, _, _) in cases.items()}
    new = create_model(f"New_{name}", **fields)
    record: Any = create_model(f"Record_{name}", __base__=(new, Record))
    columns = {field: mapped_column(kind, nullable=True) for field, (_, kind, _) in cases.items()}
    table = type(f"Table_{name}", (RecordColumns, Base), {"__tablename__": name, **columns})
    listed = tuple(field for field in cases if field != "raw")
    return Resource(name, record=record, create=new, update=new, filterable=listed), table


class Base(DeclarativeBase):
    pass


ALL = {"plain": PLAIN, "odd": ODD}
RESOURCES = dict(declared(name, cases) for name, cases in ALL.items())


async def create_tables(url: str) -> None:
    async with migrating_connection(url) as connection:
        await connection.exec_driver_sql("CREATE TYPE pair AS (first integer, second text)")
        await connection.exec_driver_sql("CREATE TYPE values_mood AS ENUM ('GOOD', 'BAD')")
        await connection.exec_driver_sql("CREATE DOMAIN values_level AS values_mood")
        await connection.exec_driver_sql("CREATE DOMAIN values_tag AS char(5)")
        await connection.exec_driver_sql("CREATE EXTENSION citext")
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


class Service:
    """A running data service, and every way to write to it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        sent = {"idempotency-key": f'"{uuid.uuid4()}"', **headers}
        return self._http.request(method, path, content=content, headers=sent)

    def made(self, resource: str, **values: Any) -> str:
        answer = self.send("POST", f"/v1/{resource}", values)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def writes(self, resource: str, values: Sequence[Any]) -> Iterator[tuple[str, httpx.Response, list[Any]]]:
        """Each way's name, its answer, and the records that came of it."""
        one, path = values[0], f"/v1/{resource}"
        fresh = [str(uuid.uuid4()) for _ in values]
        old = [self.made(resource) for _ in range(8)]
        yield self._single("POST", path, one)
        yield self._single("POST", path, one, prefer="tx=rollback")
        yield self._single("PUT", f"{path}/{fresh[0]}", one)
        yield self._single("PUT", f"{path}/{old[0]}", one)
        yield self._single("PATCH", f"{path}/{old[1]}", one)
        yield self._single("PATCH", f"{path}/{old[1]}", one, prefer="tx=rollback")
        ids = {
            "create": [str(uuid.uuid4()) for _ in values],
            "update": old[2:4],
            "upsert": [old[4], fresh[1]],
        }
        for kind, named in ids.items():
            items = [{"id": own, "data": data} for own, data in zip(named, values, strict=True)]
            answer = self.send("POST", f"{path}:batch_{kind}", {"items": items})
            yield f"batch_{kind}", answer, _members(answer, "items")
        ids = {
            "create": [str(uuid.uuid4()) for _ in values],
            "update": old[5:7],
            "upsert": [old[7], str(uuid.uuid4())],
        }
        for kind, named in ids.items():
            operations = [
                {"op": kind, "resource": resource, "id": own, "data": data}
                for own, data in zip(named, values, strict=True)
            ]
            answer = self.send("POST", "/v1:transact", {"operations": operations})
            yield f"transact {kind}", answer, _members(answer, "results")

    def _single(
        self, method: str, path: str, body: Any, **headers: str
    ) -> tuple[str, httpx.Response, list[Any]]:
        answer = self.send(method, path, body, **headers)
        return f"{method} {headers}", answer, [answer.json()] if answer.is_success else []

    def reads(self, resource: str, record_id: str) -> Iterator[tuple[str, Any]]:
        """Each way to read a record, and the record."""
        path = f"/v1/{resource}"
        yield "GET", self.send("GET", f"{path}/{record_id}").json()
        batch = self.send("POST", f"{path}:batch_get", {"ids": [record_id]})
        yield "batch_get", _members(batch, "items")[0]
        found = self.send("POST", f"{path}:query", {"where": {"eq": ["id", record_id]}})
        yield "list", _members(found, "items")[0]
        lines = self.send("GET", f"{path}?id=eq.{record_id}", accept="application/x-ndjson")
        yield "export", json.loads(lines.content.split(b"\n")[0])


def _members(answer: httpx.Response, name: str) -> list[Any]:
    return list(answer.json()[name]) if answer.is_success else []


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, serve_app: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[Service]:
    """One service for all tests: each looks at its own records only."""
    server = plugin._find(request, "postgres")
    with _isolation.postgres_database(server) as url:
        asyncio.run(create_tables(url))
        app = create_data_service(Settings, RESOURCES)
        app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
        with serve_app(app) as base_url:
            found = Service(base_url)
            yield found
            found.close()


often = settings(
    max_examples=6,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller example costs minutes
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def shown(value: Any) -> str:
    """A value's JSON, so that 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# ── what is asked for is what is stored ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL)
@often
@given(data=st.data())
def test_a_value_is_stored_as_it_is_on_every_path(service: Service, name: str, data: st.DataObject) -> None:
    """Whatever writes a record answers with the values that it was given, and so does whatever reads it."""
    every = st.fixed_dictionaries({field: st.none() | values for field, (_, _, values) in ALL[name].items()})
    asked = data.draw(st.lists(every, min_size=2, max_size=2))
    for way, answer, records in service.writes(name, asked):
        assert answer.is_success, f"{way}: {answer.text}"
        for record, wanted in zip(records, asked, strict=False):
            assert {f: shown(record[f]) for f in wanted} == {f: shown(wanted[f]) for f in wanted}, way
    for way, record in service.reads(name, service.made(name, **asked[0])):
        assert {f: shown(record[f]) for f in asked[0]} == {f: shown(asked[0][f]) for f in asked[0]}, way


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("docs", [[], {"a": 1}, [{"b": 2}], "text"]),
        ("wraps", [[], {"a": 1}, [{"b": 2}], "text"]),
        ("points", [[1, "a"], [2, ""]]),
        ("names", [""]),
        ("names", ["a", "", None]),
    ],
)
def test_the_elements_of_an_array_are_what_they_were(service: Service, field: str, value: Any) -> None:
    """A list is no further dimension where an element may be one, and an empty text is one."""
    asked = {field: value}
    for way, answer, records in service.writes("odd", [asked, asked]):
        assert answer.is_success, (way, answer.text)
        assert [record[field] for record in records] == [value] * len(records), way
    for way, record in service.reads("odd", service.made("odd", **asked)):
        assert record[field] == value, way
    found = service.send("POST", "/v1/odd:query", {"where": {"eq": [field, value]}})
    assert _members(found, "items"), found.text


# ── what can't be stored is refused ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("plain", "words", "a\0"),
        ("plain", "short", "abcdef"),
        ("plain", "number", 2**31),
        ("plain", "big", 2**63),
        ("plain", "price", "1e12"),
        ("plain", "amount", "1e131072"),
        ("plain", "amount", "-15e131071"),
        ("plain", "amount", "1e-16384"),
        ("plain", "doc", ["a\0"]),
        ("plain", "word", "c"),
        ("odd", "labels", ["a\0"]),
        ("odd", "codes", ["abcdef"]),
        ("odd", "grid", [[1], [2, 3]]),
        ("odd", "grid", [[], []]),
        ("odd", "loose", [[1], 2]),
        ("odd", "loose", ["a"]),
        ("odd", "wrapped", ["a\0"]),
        ("odd", "joined", ["abcdefgh", "abcdefgh", "abcdefgh"]),
        ("odd", "limited", "abcdef"),
        ("odd", "padded", "a "),
        ("odd", "named", {"01": 1}),
        ("odd", "rated", "0.12345678901234567890"),
        ("odd", "rated", "1e-400"),
        ("odd", "half", 2**53 + 1),
        ("odd", "owner", "0e984725c51c4bf49960e1c80e27aba0"),
        ("odd", "step", 1.0),
        ("odd", "step", True),
        ("odd", "bits", "01"),
        ("odd", "bits", "01x"),
        ("odd", "span", [2, 1]),
        ("odd", "point", [2**31, "a"]),
    ],
)
def test_what_a_column_can_not_hold_is_refused_alike(
    service: Service, name: str, field: str, value: Any
) -> None:
    """No write cuts a value, rounds it or fails over it: each is a 422, and nothing is stored."""
    answers = {way: answer for way, answer, _ in service.writes(name, [{field: value}, {field: value}])}
    assert {way: answer.status_code for way, answer in answers.items()} == dict.fromkeys(answers, 422)


def test_a_query_by_what_a_column_can_not_hold_is_refused(service: Service) -> None:
    """A filter with such a value is a 400, or finds nothing; it is no failure."""
    for name, field, value in [
        ("plain", "word", "c"),
        ("plain", "amount", "NaN"),
        ("odd", "loose", ["a"]),
        ("odd", "grid", [[1], [2, 3]]),
        ("odd", "bits", "01x"),
        ("odd", "host", "no address"),
    ]:
        for where in (
            {"eq": [field, value]},
            {"in": [field, [value, value]]},
            {"not": {"neq": [field, value]}},
        ):
            answer = service.send("POST", f"/v1/{name}:query", {"where": where})
            assert answer.status_code == 400, (where, answer.text)


@pytest.mark.parametrize(
    ("operator", "value"), [("eq", {"a": 1}), ("in", [1]), ("gt", [1]), ("is", True)], ids=str
)
def test_what_can_not_be_compared_is_a_mistake_of_the_query(
    service: Service, operator: str, value: Any
) -> None:
    """PostgreSQL compares no JSON: each way to ask says so at once, on a connection that others have used."""
    own = service.made("odd")
    where = {operator: ["sheet", value]}
    required = {"op": "update", "resource": "odd", "id": own, "require": where}
    lines = {"accept": "application/x-ndjson"}
    answers = {
        "query": service.send("POST", "/v1/odd:query", {"where": where}),
        "export": service.send("POST", "/v1/odd:query", {"where": where, "order": [["id", "asc"]]}, **lines),
        "require": service.send("POST", "/v1:transact", {"operations": [required]}),
        "require twice": service.send("POST", "/v1:transact", {"operations": [required, required]}),
    }
    assert {way: answer.status_code for way, answer in answers.items()} == dict.fromkeys(answers, 400)
    for way in ("require", "require twice"):
        problem = answers[way].json()
        assert problem["errors"][0]["pointer"] == "/operations/0/require", problem
        assert problem["detail"].startswith("operations/0: ")


def test_numbers_in_documents_are_compared_as_numbers(service: Service) -> None:
    """Also with numbers that the field can't hold, which would be texts of decimals elsewhere."""
    own = service.made("odd", mixed=1.5, whole=3)
    for field, at, beside in (("mixed", 1.5, 1.25), ("whole", 3, 2.5)):
        found: list[str] = []
        for operator, value in (("eq", at), ("in", [at]), ("gt", beside), ("lt", beside), ("eq", beside)):
            where = {"and": [{"eq": ["id", own]}, {operator: [field, value]}]}
            answer = service.send("POST", "/v1/odd:query", {"where": where})
            assert answer.is_success, answer.text
            found += [operator for _ in answer.json()["items"]]
        assert found == ["eq", "in", "gt"], field


def test_in_finds_values_of_every_type(service: Service) -> None:
    """`eq` and `in` find a record by each of its values, arrays and ranges too."""
    samples = {
        "plain": {"words": "ä", "number": 7, "mood": "bad", "day": "2026-01-02", "took": "PT5S", "list": [1, ["a"]]},
        "odd": {"labels": ["x", "y"], "grid": [[1, 2], [3, 4]], "moods": ["good"], "span": [1, 4], "bits": "011",
                "point": [1, "a"], "host": "10.0.0.1", "joined": ["a", "b"], "docs": [[1], {"a": None}],
                "level": "bad", "levels": ["good", None], "tag": "ab", "credit": "2"},
    }  # fmt: skip
    for name, values in samples.items():
        own = service.made(name, **values)
        service.made(name)
        for field, value in values.items():
            for where in ({"eq": [field, value]}, {"in": [field, [value, value]]}):
                both = {"and": [{"eq": ["id", own]}, where]}
                answer = service.send("POST", f"/v1/{name}:query", {"where": both})
                assert [it["id"] for it in _members(answer, "items")] == [own], (field, where, answer.text)
            required = {"op": "update", "resource": name, "id": own, "require": {"in": [field, [value]]}}
            answer = service.send("POST", "/v1:transact", {"operations": [required]})
            assert answer.status_code == 200, (field, answer.text)
