"""The client and the data service on a real PostgreSQL: what one says the other understands."""

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import Handle, PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    InvalidRequestError,
    NotFoundError,
    RejectedError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.events import Event
from hybridkit.resources import Record, Resource

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


class ItemStocked(Event, type="client_postgres_test.stocked", key="item_id"):
    item_id: UUID


@pytest.fixture
async def client(service: Any) -> AsyncGenerator[PostgresDataClient]:
    transport = httpx.ASGITransport(service.app)
    async with PostgresDataClient("http://data", service="api_service", transport=transport) as client:
        yield client


async def test_what_is_written_is_read(client: PostgresDataClient) -> None:
    created = await client.create(ITEMS, NewItem(name="pen", price=Decimal("1.50"), quantity=3))
    assert created.price == Decimal("1.50")
    assert await client.get(ITEMS, created.id) == created
    changed = await client.update(ITEMS, created, ItemChanges(quantity=5))
    assert (changed.quantity, changed.version, changed.price) == (5, 2, created.price)
    replaced = await client.upsert(ITEMS, created.id, NewItem(name="pencil"))
    assert (replaced.name, replaced.quantity, replaced.version) == ("pencil", 0, 3)
    await client.delete(ITEMS, replaced)
    assert await client.find_one(ITEMS, created.id) is None
    await client.probe()


async def test_natural_keys(client: PostgresDataClient) -> None:
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


async def test_errors_arrive_as_they_were_raised(client: PostgresDataClient) -> None:
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
    stock = await client.create(ITEMS, NewItem(name="stock", quantity=1))
    sold: list[Handle[Item]] = []

    async def sell(name: str) -> None:
        async with client.transaction() as tx:
            tx.check(OWNERS, "shop")
            sold.append(tx.create(ITEMS, NewItem(name=name)))
            tx.update(ITEMS, stock.id, increment={"quantity": -1}, require=ITEMS["quantity"] >= 1)
            tx.emit(ItemStocked(item_id=stock.id))

    with pytest.raises(NotFoundError):
        await sell("to nobody")
    await client.create(OWNERS, NewOwner(id="shop", title="Shop"))
    await sell("first")
    with pytest.raises(RejectedError):
        await sell("second")
    assert (await client.get(ITEMS, stock.id)).quantity == 0
    assert sold[1].result == await client.get(ITEMS, sold[1].id)
    assert await client.find_one(ITEMS, sold[2].id) is None
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
