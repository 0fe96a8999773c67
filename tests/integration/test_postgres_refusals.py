"""What the database refuses: whose mistake it is, which fields it means, and what the log says about it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import DOMAIN, ExcludeConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "db_rules_service"
    database_url: PostgresUrl


class NewRule(BaseModel):
    size: int = 0
    low: int | None = None
    high: int | None = None
    email: str | None = None
    title: str | None = None
    word: str | None = None
    short: str | None = None
    parent: str | None = None
    slot: int | None = None
    grade: int | None = None


class Rule(NewRule, Record):
    doubled: int | None = None
    number: int | None = None


class RuleChanges(NewRule):
    size: int | None = None  # type: ignore[assignment] # NULL is for the database to refuse
    doubled: int | None = None
    number: int | None = None


RULES = Resource(
    "rules", record=Rule, create=NewRule, update=RuleChanges, filterable=("size",), sortable=("size",)
)


class Base(DeclarativeBase):
    pass


class RuleTable(RecordColumns, Base):
    __tablename__ = "rules"
    __table_args__ = (
        CheckConstraint("size <> 7"),
        CheckConstraint("low < high", name="in_order"),
        UniqueConstraint("title", name="titles", deferrable=True, initially="DEFERRED"),
        Index("emails", text("lower(mail)"), unique=True, postgresql_where=text("size >= 0")),
        ExcludeConstraint((text("int4range(slot, slot + 2)"), "&&"), name="slots", where=text("slot > 0")),
    )
    size: Mapped[int]
    low: Mapped[int | None]
    high: Mapped[int | None]
    email: Mapped[str | None] = mapped_column("mail", Text)
    title: Mapped[str | None] = mapped_column(Text)
    word: Mapped[str | None] = mapped_column(Text, unique=True)
    short: Mapped[str | None] = mapped_column(String(5))
    parent: Mapped[str | None] = mapped_column(ForeignKey("parents.id"))
    slot: Mapped[int | None]
    grade: Mapped[int | None] = mapped_column(
        DOMAIN("grade", Integer, check=text("VALUE < 7")), key="other_grade"
    )
    doubled: Mapped[int | None] = mapped_column(Integer, Computed("size * 2", persisted=True))
    number: Mapped[int] = mapped_column(Integer, Identity(always=True))


class ParentTable(Base):
    __tablename__ = "parents"
    id: Mapped[str] = mapped_column(Text, primary_key=True)


TRIGGER = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE nobody text;
    BEGIN
        CASE NEW.size
            WHEN 13 THEN RAISE EXCEPTION 'the secret of 13';
            WHEN 14 THEN RAISE EXCEPTION 'the secret of 14' USING ERRCODE = 'MY014';
            WHEN 15 THEN RAISE EXCEPTION 'the secret of 15' USING ERRCODE = 'insufficient_privilege';
            WHEN 16 THEN RAISE EXCEPTION 'the secret of 16' USING ERRCODE = 'feature_not_supported';
            WHEN 17 THEN RAISE EXCEPTION 'the secret of 17' USING COLUMN = 'size';
            WHEN 19 THEN RAISE EXCEPTION 'the secret of 19' USING ERRCODE = '02000';
            WHEN 53 THEN RAISE EXCEPTION 'the secret of 53' USING ERRCODE = 'out_of_memory';
            WHEN 99 THEN RETURN NULL;
            WHEN 18 THEN SELECT id INTO STRICT nobody FROM parents;
            ELSE NULL;
        END CASE;
        RETURN NEW;
    END $$"""


class Rules:
    """A running service for `rules`."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.http = http
        self.url = url

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.http.request(
            method, path, content=orjson.dumps(body), headers={"idempotency-key": f'"{uuid4()}"'}
        )

    async def made(self, **fields: Any) -> str:
        answer = await self.send("POST", "/v1/rules", fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def sql(self, *statements: str) -> None:
        connection = await connect(self.url, timeout_seconds=10, command_seconds=30, application_name="test")
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def running(url: str) -> AsyncGenerator[Rules]:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {RULES: RuleTable})
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    async with app.router.lifespan_context(app), http:
        yield Rules(http, url)


@pytest.fixture
async def rules(postgres_url: str) -> AsyncIterator[Rules]:
    async with running(postgres_url) as rules:
        await rules.sql(
            TRIGGER,
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON rules FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        yield rules


LONG = "".join(uuid4().hex for _ in range(120))
LONGER = "".join(uuid4().hex for _ in range(700))

CASES: list[tuple[dict[str, Any], int, set[str], str]] = [
    ({"size": 7}, 422, {"size"}, "23514"),
    ({"low": 2, "high": 1}, 422, {"low", "high"}, "23514"),
    ({"email": "Taken@x"}, 409, {"email"}, "23505"),
    ({"title": "taken"}, 409, {"title"}, "23505"),
    ({"word": "taken"}, 409, {"word"}, "23505"),
    ({"word": LONG}, 422, {"word"}, "54000"),
    ({"word": LONGER}, 422, {"word"}, "54000"),
    ({"parent": "nobody"}, 409, {"parent"}, "23503"),
    ({"slot": 11}, 409, {"slot"}, "23P01"),
    ({"grade": 7}, 422, {"grade"}, "23514"),
    ({"size": 13}, 422, set(), "P0001"),
    ({"size": 14}, 422, set(), "MY014"),
    ({"size": 15}, 422, set(), "42501"),
    ({"size": 16}, 422, set(), "0A000"),
    ({"size": 17}, 422, {"size"}, "P0001"),
    ({"size": 18}, 422, set(), "P0002"),
    ({"size": 19}, 422, set(), "02000"),
    ({"size": 53}, 503, set(), "53200"),
]
CHANGES: list[tuple[dict[str, Any], int, set[str], str]] = [
    *CASES,
    ({"size": None}, 422, {"size"}, "23502"),
    ({"doubled": 1}, 422, {"doubled"}, "428C9"),
    ({"number": 1}, 422, {"number"}, "428C9"),
]


def pointers(answer: httpx.Response) -> set[str]:
    return {error["pointer"] for error in answer.json().get("errors", ())}


async def test_a_refusal_points_to_its_fields_on_every_path(
    rules: Rules, caplog: pytest.LogCaptureFixture
) -> None:
    """POST, PUT, PATCH, batches and transactions point to the fields of every kind of constraint."""
    taken = {"email": "taken@X", "title": "taken", "word": "taken", "slot": 10}
    await rules.made(**taken)
    mine = await rules.made(size=1)
    wrong: list[object] = []
    for body, status, fields, state in CASES:
        new, other = str(uuid4()), {"id": str(uuid4()), "data": {"size": 2}}
        in_data = {f"/{name}" for name in fields}
        whole: set[str] = set() if status == 503 else {"/items/1"}
        asked = {
            "POST": (("POST", "/v1/rules", body), in_data, "/"),
            "PUT": (("PUT", f"/v1/rules/{new}", body), in_data, "/"),
            "batch": (
                ("POST", "/v1/rules:batch_create", {"items": [other, {"id": new, "data": body}]}),
                {f"/items/1/data{name}" for name in in_data} or whole,
                "/items/1",
            ),
            "upsert": (
                ("POST", "/v1/rules:batch_upsert", {"items": [other, {"id": new, "data": body}]}),
                {f"/items/1/data{name}" for name in in_data} or whole,
                "/items/1",
            ),
        }
        for path, (request, expected, _) in asked.items():
            deferred = state == "23505" and "title" in body and path in ("batch", "upsert")
            with caplog.at_level("INFO"):
                caplog.clear()
                answer = await rules.send(*request)
            told = [record.getMessage() for record in caplog.records if state in record.getMessage()]
            found = (answer.status_code, set() if deferred else pointers(answer), len(told))
            if found != (status, set() if deferred else expected, 1):
                wrong.append((path, body if "word" not in body else "word", found, answer.text[:300]))
            if any("secret" in line for line in (*told, answer.text)):
                wrong.append((path, body, "a secret is told"))
    for body, status, fields, _ in CHANGES:
        answer = await rules.send("PATCH", f"/v1/rules/{mine}", body)
        if (answer.status_code, pointers(answer)) != (status, {f"/{name}" for name in fields}):
            wrong.append(("PATCH", body if "word" not in body else "word", answer.text[:300]))
        operations = [
            {"op": "update", "resource": "rules", "id": mine, "data": {"low": 1}},
            {"op": "update", "resource": "rules", "id": mine, "data": body},
        ]
        answer = await rules.send("POST", "/v1:transact", {"operations": operations})
        expected = {f"/operations/1/data/{name}" for name in fields} or (
            set() if status == 503 else {"/operations/1"}
        )
        if "title" not in body and (answer.status_code, pointers(answer)) != (status, expected):
            wrong.append(("transact", body if "word" not in body else "word", answer.text[:300]))
    assert wrong == []


async def test_an_increment_that_breaks_a_rule_is_pointed_to(rules: Rules) -> None:
    """The pointer leads to `increment`, not to `data`."""
    mine = await rules.made(size=6)
    grow = {"op": "update", "resource": "rules", "id": mine, "increment": {"size": 1}}
    answer = await rules.send("POST", "/v1:transact", {"operations": [grow]})
    assert (answer.status_code, pointers(answer)) == (422, {"/operations/0/increment/size"})


async def test_what_a_trigger_passes_over_is_refused(rules: Rules) -> None:
    """A trigger that returns NULL leaves the row out, and the database says nothing about it."""
    mine, kept = await rules.made(size=1), await rules.made(size=2)
    await rules.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER keep BEFORE DELETE ON rules FOR EACH ROW WHEN (OLD.size = 2) EXECUTE FUNCTION keep()",
    )
    other, passed = {"id": str(uuid4()), "data": {"size": 3}}, {"size": 99}
    new = {"id": str(uuid4()), "data": passed}
    update = {"op": "update", "resource": "rules", "id": mine, "data": passed}
    asked: list[tuple[str, str, Any, set[str]]] = [
        ("POST", "/v1/rules", passed, set()),
        ("PUT", f"/v1/rules/{uuid4()}", passed, set()),
        ("PUT", f"/v1/rules/{mine}", passed, set()),
        ("PATCH", f"/v1/rules/{mine}", passed, set()),
        ("DELETE", f"/v1/rules/{kept}", None, set()),
        ("POST", "/v1/rules:batch_create", {"items": [other, new]}, {"/items/1"}),
        ("POST", "/v1/rules:batch_upsert", {"items": [other, new]}, {"/items/1"}),
        ("POST", "/v1:transact", {"operations": [update]}, {"/operations/0"}),
    ]
    for method, path, body, expected in asked:
        answer = await rules.send(method, path, body)
        assert (answer.status_code, pointers(answer)) == (422, expected), (method, path, answer.text)
    sizes = [rule["size"] for rule in (await rules.send("GET", "/v1/rules?order=size")).json()["items"]]
    assert sizes == [1, 2]


async def test_a_record_that_is_referred_to_is_not_deleted(rules: Rules) -> None:
    """The violated constraint is another table's: no field of this one is to blame."""
    mine = await rules.made(word="mine")
    await rules.sql(
        "CREATE TABLE others (word text REFERENCES rules (word))", "INSERT INTO others VALUES ('mine')"
    )
    answer = await rules.send("DELETE", f"/v1/rules/{mine}")
    assert (answer.status_code, answer.json()["code"], pointers(answer)) == (
        409,
        "FOREIGN_KEY_VIOLATION",
        set(),
    )


# ── a migration under traffic ────────────────────────────────────────────────────────────────────


async def test_after_a_migration_every_request_works(rules: Rules) -> None:
    """After two columns have changed their type, requests run again on new connections and succeed."""
    mine = await rules.made(size=1)

    async def answers() -> list[httpx.Response]:
        paths = [("GET", "/v1/rules?size=eq.1", None), ("PATCH", f"/v1/rules/{mine}", {"low": 1})]
        return await asyncio.gather(*(rules.send(*path) for path in paths * 5))

    assert {answer.status_code for answer in await answers()} == {200}
    for kind in ("bigint", "numeric", "integer"):
        await rules.sql(
            f"ALTER TABLE rules ALTER low TYPE {kind}",
            "ALTER TABLE rules DROP CONSTRAINT IF EXISTS in_order",
        )
        assert {answer.status_code for answer in await answers()} == {200}


async def test_a_mistake_in_the_code_stays_one(rules: Rules) -> None:
    """It is not blamed on a migration each time, which would open connections for every request."""
    await rules.made(size=1)
    await rules.sql("ALTER TABLE rules RENAME COLUMN low TO lowest")
    statuses = [(await rules.send("GET", "/v1/rules")).status_code for _ in range(3)]
    assert statuses == [500, 500, 500]
