"""A service's own calls and routes on real PostgreSQL: one transaction with the key, the rows and the events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from hybridkit.dataservice import CallContext, Database
from hybridkit.errors import NotFoundError
from hybridkit.events import Event
from hybridkit.resources import Call


class Restock(BaseModel):
    name: str
    quantity: int


class Stock(BaseModel):
    quantity: int


class ItemRestocked(Event, type="item.restocked", version=1):
    name: str


async def restock(body: Restock, work: CallContext[AsyncConnection]) -> Stock:
    changed = await work.database.execute(
        text("UPDATE items SET quantity = quantity + :quantity WHERE name = :name RETURNING quantity"),
        {"quantity": body.quantity, "name": body.name},
    )
    work.emit(ItemRestocked(name=body.name))
    found = changed.scalar_one_or_none()
    if found is None:
        raise NotFoundError("there is no such item")
    return Stock(quantity=found)


async def stock_of(body: Restock, work: CallContext[AsyncConnection]) -> Stock:
    """Says how much there is, and tries to change it if it is asked for any."""
    if body.quantity:
        await work.database.execute(text("UPDATE items SET quantity = 0"))
    found = await work.database.execute(
        text("SELECT quantity FROM items WHERE name = :name"), {"name": body.name}
    )
    return Stock(quantity=found.scalar_one())


@pytest.fixture
async def calls(service: Any, run_service: Callable[..., Any]) -> AsyncIterator[Any]:
    """The data service with two calls of its own."""
    restocking = Call("restock", resource=service.items, request=Restock, response=Stock)
    asking = Call("stock", resource=service.items, request=Restock, response=Stock, safe=True)
    async with run_service(service.url, calls={restocking: restock, asking: stock_of}) as calls:
        yield calls


async def test_a_call_its_rows_and_its_events_are_one_transaction(calls: Any) -> None:
    """A call repeated with its key replays the answer, changes no row again, and emits one event."""
    await calls.create("pen", quantity=1)
    wanted = {"name": "pen", "quantity": 2}
    first, again = [await calls.send("POST", "/v1/items:restock", wanted, key="k") for _ in range(2)]
    for answer in (first, again):
        assert (answer.status_code, answer.json()) == (200, {"quantity": 3})
    assert again.headers["idempotency-replayed"] == "true"
    [row] = await calls.sql("SELECT count(*) AS events FROM hk_outbox WHERE event_type = 'item.restocked'")
    assert row["events"] == 1


async def test_a_call_that_fails_leaves_nothing(calls: Any) -> None:
    """A failed call keeps neither rows, events nor its key, so the same key works later."""
    answer = await calls.send("POST", "/v1/items:restock", {"name": "ink", "quantity": 2}, key="k")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    assert await calls.sql("SELECT 1 FROM hk_outbox") == []
    await calls.create("ink")
    answer = await calls.send("POST", "/v1/items:restock", {"name": "ink", "quantity": 2}, key="k")
    assert answer.json() == {"quantity": 2}


async def test_what_a_constraint_refuses_in_a_call_is_the_callers_mistake(calls: Any) -> None:
    """A violated check is 422, as in a write of the contract."""
    await calls.create("pen", quantity=1)
    answer = await calls.send("POST", "/v1/items:restock", {"name": "pen", "quantity": -2})
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")


async def test_a_dry_run_of_a_call_is_taken_back(calls: Any) -> None:
    """`Prefer: tx=rollback` answers with the result, and the row stays as it was."""
    await calls.create("pen", quantity=1)
    answer = await calls.send(
        "POST", "/v1/items:restock", {"name": "pen", "quantity": 2}, prefer="tx=rollback"
    )
    assert (answer.json(), answer.headers["preference-applied"]) == ({"quantity": 3}, "tx=rollback")
    [row] = await calls.sql("SELECT quantity FROM items")
    assert row["quantity"] == 1


async def test_many_calls_at_once_lose_nothing(calls: Any) -> None:
    """Twenty calls that add one each count to twenty, however they race."""
    await calls.create("pen")
    sent = [calls.insist("POST", "/v1/items:restock", {"name": "pen", "quantity": 1}) for _ in range(20)]
    assert sorted(answer.json()["quantity"] for answer in await asyncio.gather(*sent)) == list(range(1, 21))


async def test_a_safe_call_reads_and_can_do_nothing_else(calls: Any) -> None:
    """A write in a call that is declared safe is refused and changes nothing."""
    await calls.create("pen", quantity=4)
    answer = await calls.http.post("/v1/items:stock", json={"name": "pen", "quantity": 0})
    assert answer.json() == {"quantity": 4}
    refused = await calls.http.post("/v1/items:stock", json={"name": "pen", "quantity": 1})
    assert refused.status_code >= 400
    assert (await calls.http.post("/v1/items:stock", json={"name": "pen", "quantity": 0})).json() == {
        "quantity": 4
    }


async def test_a_route_of_the_application_ends_at_its_deadline(service: Any) -> None:
    """A slow query of an own route is stopped by `X-Request-Timeout` with a 504."""

    async def slow(database: Database) -> int:
        async def query(connection: AsyncConnection) -> int:
            return int((await connection.execute(text("SELECT 1 FROM pg_sleep(30)"))).scalar_one())

        return await database.read(query)

    service.app.add_api_route("/slow", slow, methods=["GET"])
    answer = await service.get("/slow", x_request_timeout="0.3")
    assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_PASSED")


async def test_an_answer_says_how_long_the_database_took(service: Any) -> None:
    """`Server-Timing` names the time that was spent in the database."""
    await service.create("pen")
    answer = await service.get("/v1/items")
    assert answer.headers["server-timing"].startswith("db;dur=")


async def test_an_export_comes_from_a_cursor(service: Any) -> None:
    """An export of many records is complete, and its last line counts them."""
    items = [{"data": {"name": str(number)}} for number in range(500)]
    assert (await service.send("POST", "/v1/items:batch_create", {"items": items})).status_code == 200
    answer = await service.get("/v1/items?select=name", accept="application/x-ndjson")
    assert answer.content.count(b"\n") == 501
    assert answer.content.endswith(b'{"$end":true,"count":500}\n')
