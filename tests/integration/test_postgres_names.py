"""Names of tables, schemas, columns and fields never meet those of the service's own statements."""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import create_model
from sqlalchemy import Integer, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, mapped_column

from hybridkit import Record, Resource
from hybridkit.dataservice import RecordColumns, SoftDeleteColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from hybridkit.testing import _isolation, plugin

pytestmark = pytest.mark.real_server

OURS = (
    "anon_1", "body", "c0", "c1", "etag_", "event", "excluded", "expires_at", "fingerprint", "found", "free", "given",
    "hk", "hk_found", "hk_found_", "hk_given", "hk_given_", "hk_row", "hk_row_", "hk_target", "hk_wanted",
    "hk_wanted_", "is_free", "kept", "key", "key_lock", "known", "line", "locks", "made", "n", "number", "numbered",
    "ordered", "p", "param_1", "place", "position", "r", "results", "sent", "shown", "taken", "v0", "wanted",
)  # fmt: skip
"""What our statements call things, and near it."""

OTHERS = (
    "Upper", "user", "order", "a b", "a.b", 'a"b', "a'b", "50%", "%s", "%(a)s", "a%(b)d", "a:b", ":a", " :hk_1 ", "::",
    "a\\b", "\\:a", "$1", "{a}", "[a]", "a;b", "--", "Größe", "名前", "x" * 63, "é" * 31,
)  # fmt: skip
"""What needs quotes, and what a driver may read as something else."""


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class Base(DeclarativeBase):
    metadata = MetaData(schema=None)


def resource_on(
    name: str, table: str, fields: dict[str, str], *, schema: str | None = None, soft: bool = False
) -> tuple[Any, Any]:
    """A resource whose fields are in the columns of those names, and its table."""
    new: Any = create_model("New", label=(str, ""), **dict.fromkeys(fields, (int, 0)))  # type: ignore[call-overload]
    models: dict[str, Any] = {"create": new, "update": new, "record": type("Thing", (new, Record), {})}
    columns = {field: mapped_column(column, Integer, nullable=False) for field, column in fields.items()}
    body: dict[str, Any] = {"__tablename__": table, "label": mapped_column(Text, nullable=False), **columns}
    if schema:
        body["__table_args__"] = {"schema": schema}
    bases: tuple[type, ...] = (RecordColumns, SoftDeleteColumns, Base) if soft else (RecordColumns, Base)
    mapped = type(f"Table{len(Base.metadata.tables)}", bases, body)
    names = ("label", *fields)
    return Resource(name, **models, filterable=names, sortable=names, soft_delete=soft), mapped


FIELDS = {name: name for name in (*OURS, "größe")} | {f"field_{n}": name for n, name in enumerate(OTHERS)}
RESOURCES = dict(
    [
        *(resource_on(f"table_{n}", name, {"n": "n"}) for n, name in enumerate((*OURS, *OTHERS[::3]))),
        *(resource_on(f"soft_{n}", f"s_{name}", {"r": "r"}, soft=True) for n, name in enumerate(("excluded", "a"))),
        resource_on("in_schema", "given", {"n": 'n"'}, schema='a "b" %s:c'),
        resource_on("hidden", "excluded", {"n": "n"}, schema="other", soft=True),
        *(
            resource_on(f"fields_{n}", f"fields_{n}", dict(list(FIELDS.items())[n * 8 : n * 8 + 8]))
            for n in range(len(FIELDS) // 8 + 1)
        ),
    ]
)  # fmt: skip


async def create_tables(url: str) -> None:
    async with migrating_connection(url) as connection:
        for schema in ("other", 'a ""b"" %s:c'):
            await connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, serve_app: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[httpx.Client]:
    """One service for all names."""
    server = plugin._find(request, "postgres")
    with _isolation.postgres_database(server) as url:
        asyncio.run(create_tables(url))
        app = create_data_service(Settings, RESOURCES)
        app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
        with serve_app(app) as base_url, httpx.Client(base_url=base_url, timeout=60) as http:
            yield http


def ask(http: httpx.Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
    content = None if body is None else json.dumps(body).encode()
    sent = {"idempotency-key": f'"{uuid.uuid4()}"', **headers}
    answer = http.request(method, path, content=content, headers=sent)
    assert answer.is_success, (method, path, answer.text)
    return answer.json() if answer.content and "ndjson" not in answer.headers["content-type"] else answer.text


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda it: it.name)
def test_any_name_works_on_every_path(service: httpx.Client, resource: Any) -> None:
    """A record is written, read, found, ordered, counted and exported, whatever its table and fields are called."""
    fields = [name for name in resource.create.model_fields if name != "label"]
    path = resource.path

    def values(label: str, number: int) -> dict[str, Any]:
        return {"label": label, **{field: number + n for n, field in enumerate(fields)}}

    def like(record: dict[str, Any], label: str, number: int) -> bool:
        return {name: record[name] for name in ("label", *fields)} == values(label, number)

    one = ask(service, "POST", path, values("a", 1))
    two = ask(service, "PUT", f"{path}/{uuid.uuid4()}", values("b", 2))
    assert like(one, "a", 1)
    assert like(two, "b", 2)
    assert like(ask(service, "PUT", f"{path}/{two['id']}", values("c", 3)), "c", 3)
    assert like(ask(service, "PATCH", f"{path}/{one['id']}", values("d", 4)), "d", 4)
    assert like(ask(service, "GET", f"{path}/{one['id']}"), "d", 4)
    many = ask(service, "POST", f"{path}:batch_get", {"ids": [two["id"]]})["items"]
    assert [it["id"] for it in many] == [two["id"]]
    for field in fields or ["label"]:
        where = {"eq": [field, one[field] + 3 if field in fields else "d"]}
        found = ask(service, "POST", f"{path}:query", {"where": where, "order": [[field, "desc"]]})["items"]
        assert [it["id"] for it in found] == [one["id"]], field
    lines = ask(service, "GET", f"{path}?order=label", accept="application/x-ndjson").splitlines()
    assert [json.loads(line).get("label") for line in lines] == ["c", "d", None]
    page = ask(service, "GET", f"{path}?order=label.desc&page_size=1&select=label", prefer="count=exact")
    again = ask(service, "GET", f"{path}?order=label.desc&page_size=1&page_token={page['next_page_token']}")
    assert (page["total_size"], page["items"][0]["label"], again["items"][0]["label"]) == (2, "d", "c")
    functions = {"total": ["sum", fields[0]]} if fields else {"total": ["count"]}
    grouped = {"functions": functions, "group_by": ["label"]}
    assert [it["label"] for it in ask(service, "POST", f"{path}:aggregate", grouped)["items"]] == ["c", "d"]
    name, required = resource.name, {"eq": ["label", "d"]}
    operations = [
        {"op": "assert", "resource": name, "id": one["id"]},
        {"op": "update", "resource": name, "id": one["id"], "increment": dict.fromkeys(fields, 1), "require": required},
        {"op": "upsert", "resource": name, "id": two["id"], "data": values("e", 6)},
        {"op": "create", "resource": name, "id": str(uuid.uuid4()), "data": values("f", 7)},
    ]  # fmt: skip
    _, updated, upserted, created = ask(service, "POST", "/v1:transact", {"operations": operations})[
        "results"
    ]
    assert like(updated, "d", 5)
    assert like(upserted, "e", 6)
    assert like(created, "f", 7)
    ask(service, "DELETE", f"{path}/{one['id']}")
    if resource.soft_delete:
        refused = service.put(
            f"{path}/{one['id']}", json=values("g", 8), headers={"idempotency-key": "hidden"}
        )
        assert refused.status_code == 409, refused.text
        assert ask(service, "POST", f"{path}/{one['id']}:undelete")["label"] == "d"
