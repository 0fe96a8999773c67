"""The client and the data service on a real PostgreSQL: what one says the other understands."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import Body
from pydantic import BaseModel

from hybridkit.adapters.dependencies import Postgres
from hybridkit.adapters.fastapi import create_app
from hybridkit.clients import Handle, PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    InvalidRequestError,
    NotFoundError,
    RequirementNotMetError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.events import Event
from hybridkit.resources import Aggregation, Record, Resource, average, count, total
from hybridkit.security import OPEN
from hybridkit.settings import DataClientSettings
from hybridkit.testing import running_api

UNKNOWN = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewOwner(BaseModel):
    id: str
    title: str


class Owner(Record[str]):
    title: str


class NewItem(BaseModel):
    name: str
    price: Decimal | None = None
    quantity: int = 0
    due_at: Timestamp | None = None


class Item(NewItem, Record):
    is_active: bool = True


class ItemChanges(BaseModel):
    name: str | None = None
    price: Decimal | None = None
    quantity: int | None = None
    is_active: bool | None = None


OWNERS = Resource("owners", record=Owner, create=NewOwner, update=NewOwner, filterable=("title",))
ITEMS = Resource(
    "items",
    record=Item,
    create=NewItem,
    update=ItemChanges,
    filterable=("name", "price", "quantity", "is_active"),
    sortable=("name", "price", "created_at"),
)


class Label(BaseModel):
    name: str
    quantity: int


class Sum(BaseModel):
    is_active: bool
    items: int
    worth: Decimal
    mean: float


class ItemStocked(Event, type="client_postgres_test.stocked", key="item_id"):
    item_id: UUID


@pytest.fixture
async def client(service: Any) -> AsyncGenerator[PostgresDataClient]:
    transport = httpx.ASGITransport(service.app)
    async with PostgresDataClient("http://data", service="api_service", transport=transport) as client:
        yield client


async def test_what_is_written_is_read(client: PostgresDataClient) -> None:
    """A record goes through its whole life with its version and its decimals intact."""
    created = await client.create(ITEMS, NewItem(name="pen", price=Decimal("1.50"), quantity=3))
    assert created.price == Decimal("1.50")
    assert await client.get(ITEMS, created.id) == created
    changed = await client.update(ITEMS, created, ItemChanges(quantity=5))
    assert (changed.quantity, changed.version, changed.price) == (5, 2, created.price)
    replaced = await client.upsert(ITEMS, created.id, NewItem(name="pencil"))
    assert (replaced.name, replaced.quantity, replaced.version) == ("pencil", 0, 3)
    await client.delete(ITEMS, replaced)
    assert await client.get_or_none(ITEMS, created.id) is None
    await client.probe()


async def test_natural_keys(client: PostgresDataClient) -> None:
    """A key with a slash is one segment of the path."""
    owner = await client.create(OWNERS, NewOwner(id="a/b", title="A"))
    assert (await client.get(OWNERS, "a/b")) == owner


async def test_queries_and_pages(client: PostgresDataClient) -> None:
    """By both forms of a query, in order, without a gap between the pages."""
    for number in range(7):
        await client.create(ITEMS, NewItem(name=f"item {number}", quantity=number))
    find = client.find(ITEMS).where(ITEMS["quantity"] >= 2).order_by("name", descending=True)
    assert [item.quantity async for item in find.page_size(2)] == [6, 5, 4, 3, 2]
    names = [f"item {number}" for number in range(400)]
    long = client.find(ITEMS).where(ITEMS["name"].in_(names)).page_size(3)
    assert sorted([item.quantity async for item in long]) == list(range(7))
    either = client.find(ITEMS).where((ITEMS["quantity"] == 1) | (ITEMS["name"] == "item 6")).order_by("name")
    assert [item.quantity async for item in either] == [1, 6]


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**63, 2**70])
async def test_a_number_too_large_for_its_column_is_the_callers_at_a_public_api(
    client: PostgresDataClient, number: int
) -> None:
    """By each way of writing it is 422 with the field; a filter compares by value, and finds what is there."""
    api = create_app(DataClientSettings, title="Shop", security=OPEN)
    api.dependency_overrides[PostgresDataClient] = lambda: client
    stored = await client.create(ITEMS, NewItem(name="pen", quantity=1))

    @api.post("/{way}")
    async def write(way: str, amount: Annotated[int, Body()], postgres: Postgres) -> list[str]:
        new, changes = NewItem(name=way, quantity=amount), ItemChanges(quantity=amount)
        match way:
            case "create":
                await postgres.create(ITEMS, new)
            case "replace":
                await postgres.replace(ITEMS, stored.id, new)
            case "update":
                await postgres.update(ITEMS, stored.id, changes)
            case "upsert":
                await postgres.upsert(ITEMS, stored.id, new)
            case "batch":
                await postgres.create_many(ITEMS, [NewItem(name="fine"), new])
            case "find":
                return [item.name async for item in postgres.find(ITEMS).where(ITEMS["quantity"] < amount)]
            case _:
                async with postgres.transaction() as tx:
                    if way == "transaction":
                        tx.create(ITEMS, new)
                    else:
                        tx.update(ITEMS, stored.id, increment={"quantity": amount})
        return []

    async with running_api(api, DataClientSettings(service_name="shop", environment="test")) as http:
        for way in ("create", "replace", "update", "upsert", "batch", "transaction", "increment"):
            answer = await http.post(f"/{way}", json=number)
            assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION"), way
            assert [each["pointer"] for each in answer.json()["errors"]] == ["/quantity"], (way, answer.text)
        assert (await http.post("/find", json=number)).json() == ["pen"] * (number > 0)
    assert await client.get(ITEMS, stored.id) == stored
    assert await client.find(ITEMS).count() == 1


async def test_errors_arrive_as_they_were_raised(client: PostgresDataClient) -> None:
    """What PostgreSQL refuses is a typed error with its fields at the client."""
    item = await client.create(ITEMS, NewItem(name="pen"))
    with pytest.raises(UniqueViolationError) as twice:
        await client.create(ITEMS, NewItem(name="pen"))
    assert twice.value.fields == ("name",)
    changed = await client.update(ITEMS, item.id, ItemChanges(is_active=False))
    with pytest.raises(StaleVersionError) as stale:
        await client.update(ITEMS, item, ItemChanges(is_active=True))
    assert stale.value.current == changed.etag
    with pytest.raises(StaleVersionError):
        await client.delete(ITEMS, item)
    with pytest.raises(NotFoundError):
        await client.delete(ITEMS, UNKNOWN)
    with pytest.raises(InvalidRequestError):
        await client.create(ITEMS, NewItem(name="out of range", price=Decimal(10) ** 20))


async def test_a_transaction_happens_as_a_whole(client: PostgresDataClient, service: Any) -> None:
    """A missing record or a condition that doesn't hold leaves neither records nor events."""
    stock = await client.create(ITEMS, NewItem(name="stock", quantity=1))
    sold: list[Handle[Item]] = []

    async def sell(name: str) -> None:
        async with client.transaction() as tx:
            tx.require(OWNERS, "shop")
            sold.append(tx.create(ITEMS, NewItem(name=name)))
            tx.update(ITEMS, stock.id, increment={"quantity": -1}, require=ITEMS["quantity"] >= 1)
            tx.emit(ItemStocked(item_id=stock.id))

    with pytest.raises(NotFoundError):
        await sell("to nobody")
    await client.create(OWNERS, NewOwner(id="shop", title="Shop"))
    await sell("first")
    with pytest.raises(RequirementNotMetError) as refused:
        await sell("second")
    assert [(each.pointer, each.code) for each in refused.value.errors] == [
        ("/operations/2/require", "requirement_not_met")
    ]
    assert (await client.get(ITEMS, stock.id)).quantity == 0
    assert sold[1].result == await client.get(ITEMS, sold[1].id)
    assert await client.get_or_none(ITEMS, sold[2].id) is None
    assert len(await service.sql("select * from hk_outbox")) <= 1


async def test_a_rerun_in_a_claim_writes_nothing_twice(client: PostgresDataClient) -> None:
    """A crash after the work and before its acknowledgement: the same records, once."""

    async def work() -> list[UUID]:
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            item = await client.create(ITEMS, NewItem(name="one"))
            changed = await client.update(ITEMS, item.id, ItemChanges(quantity=item.quantity + 1))
            async with client.transaction() as tx:
                other = tx.create(ITEMS, NewItem(name="other"))
                tx.update(ITEMS, item.id, increment={"quantity": 1})
            assert (changed.quantity, changed.version) == (1, 2)
            return [item.id, other.result.id]

    first = await work()
    assert await work() == first
    assert (await client.get(ITEMS, first[0])).quantity == 2
    assert len([item async for item in client.find(ITEMS)]) == 2


async def make(client: PostgresDataClient, size: int) -> list[Item]:
    wanted = [NewItem(name=f"item {n:04}", quantity=n, price=Decimal("0.50")) for n in range(size)]
    return await client.create_many(ITEMS, wanted)


async def test_batches(client: PostgresDataClient) -> None:
    """Batches of a thousand records are written, read, changed and removed in their order."""
    made = await make(client, 1000)
    assert [item.quantity for item in made] == list(range(1000))
    found = await client.get_many(ITEMS, [made[999].id, UNKNOWN, made[0].id])
    assert found == [made[999], None, made[0]]
    changed = await client.update_many(
        ITEMS, [(made[0], ItemChanges(quantity=5)), (made[1].id, ItemChanges(price=None))]
    )
    assert [(item.quantity, item.price, item.version) for item in changed] == [
        (5, Decimal("0.50"), 2),
        (1, None, 2),
    ]
    with pytest.raises(StaleVersionError):
        await client.update_many(ITEMS, [(each, ItemChanges(quantity=7)) for each in (made[2], made[0])])
    with pytest.raises(UniqueViolationError):
        await client.create_many(ITEMS, [NewItem(name="new"), NewItem(name=made[5].name)])
    upserted = await client.upsert_many(
        ITEMS, [(made[3].id, NewItem(name="three")), (UNKNOWN, NewItem(name="unknown"))]
    )
    assert [(item.name, item.version) for item in upserted] == [("three", 2), ("unknown", 1)]
    assert await client.get_many(ITEMS, [item.id for item in upserted]) == upserted
    await client.delete_many(ITEMS, [changed[0], made[1].id])
    assert await client.find(ITEMS).count() == 999
    assert await client.get(ITEMS, made[2].id) == made[2]


async def test_a_rerun_of_a_batch_in_a_claim(client: PostgresDataClient) -> None:
    """Its answer may be too large to keep; the records are the same ones."""

    async def work() -> list[UUID]:
        with bind(RequestContext(claim=Claim("worker:event:8"))):
            return [item.id for item in await make(client, 300)]

    assert await work() == await work()
    assert await client.find(ITEMS).count() == 300


async def test_selections_counts_and_exports(client: PostgresDataClient) -> None:
    """Pages, counts and exports agree about the same records."""
    made = await make(client, 230)
    find = client.find(ITEMS).where(ITEMS["quantity"] >= 200).order_by("name")
    labels = [label async for label in find.select(Label)]
    assert labels[:1] == [Label(name="item 0200", quantity=200)]
    assert len(labels) == await find.count() == 30
    page = await find.page_size(2).page(count="exact")
    assert (page.items, page.total_size) == (tuple(made[200:202]), 30)
    assert await client.find(ITEMS).count(exact=False) >= 0
    assert [item async for item in client.find(ITEMS).order_by("name").export()] == made
    assert [label async for label in find.select(Label).export()] == labels


async def test_aggregations(client: PostgresDataClient) -> None:
    """Groups are filtered, ordered and typed by the database."""
    made = await make(client, 4)
    await client.update(ITEMS, made[3], ItemChanges(is_active=False))
    wanted = Aggregation(
        group_by=("is_active",),
        functions={"items": count(), "worth": total("price"), "mean": average("quantity")},
        where=ITEMS["quantity"] > 0,
        order=(("items", "desc"),),
    )
    active, other = await client.aggregate(ITEMS, wanted, row_type=Sum)
    assert active == Sum(is_active=True, items=2, worth=Decimal("1.00"), mean=1.5)
    assert other.items == 1
    assert (await client.aggregate(ITEMS, wanted))[0]["worth"] == "1.00"


async def test_replace_and_modify(client: PostgresDataClient) -> None:
    """A stale record is not replaced, and concurrent changes of one are all kept."""
    (item,) = await make(client, 1)
    replaced = await client.replace(ITEMS, item, NewItem(name="other"))
    with pytest.raises(StaleVersionError) as stale:
        await client.replace(ITEMS, item, NewItem(name="late"))
    assert stale.value.current == replaced.etag
    with pytest.raises(StaleVersionError):
        await client.replace(ITEMS, UNKNOWN, NewItem(name="nobody"))

    async def one_more(item: Item) -> ItemChanges:
        return ItemChanges(quantity=item.quantity + 1)

    await asyncio.gather(*(client.modify(ITEMS, replaced, one_more) for _ in range(5)))
    assert (await client.get(ITEMS, item.id)).quantity == 5


async def test_a_dry_run(client: PostgresDataClient, service: Any) -> None:
    """The result or the error of a dry run is the real one, and nothing is kept."""
    (item,) = await make(client, 1)
    async with client.transaction(dry_run=True) as tx:
        tried = tx.update(ITEMS, item, ItemChanges(quantity=9))
        tx.emit(ItemStocked(item_id=item.id))
    assert tried.result.quantity == 9
    assert await client.get(ITEMS, item.id) == item
    assert await service.sql("select * from hk_outbox") == []
    with pytest.raises(StaleVersionError):
        async with client.transaction(dry_run=True) as tx:
            tx.update(ITEMS, tried.result, ItemChanges(quantity=10))


async def test_coalesced_reads(service: Any) -> None:
    """Twenty reads of a moment are one batch against a real database."""
    transport = httpx.ASGITransport(service.app)
    async with PostgresDataClient("http://data", service="api", transport=transport, coalesce=True) as client:
        made = await make(client, 20)
        found = await asyncio.gather(
            *(client.get_or_none(ITEMS, item.id) for item in made), client.get_or_none(ITEMS, UNKNOWN)
        )
    assert found == [*made, None]
