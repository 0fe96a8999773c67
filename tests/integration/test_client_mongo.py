"""The client and the data service on a real MongoDB's wire: the same methods, as far as the server goes."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel
from pymongo import MongoClient

from hybridkit.clients import MongoDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.errors import (
    InvalidQueryError,
    StaleVersionError,
    TransactionsUnavailableError,
    UniqueViolationError,
)
from hybridkit.resources import Aggregation, Record, Resource, count, total
from hybridkit.settings import MongoSettings, SecretUrl

UNKNOWN = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewThing(BaseModel):
    name: str
    price: Decimal = Decimal("0.50")
    quantity: int = 0


class Thing(NewThing, Record):
    pass


class ThingChanges(BaseModel):
    name: str | None = None
    quantity: int | None = None


class Label(BaseModel):
    name: str
    quantity: int


class Group(BaseModel):
    quantity: int
    things: int
    worth: Decimal


THINGS = Resource(
    "things",
    record=Thing,
    create=NewThing,
    update=ThingChanges,
    filterable=("name", "price", "quantity"),
    sortable=("name",),
    soft_delete=True,
)


@pytest.fixture
async def client(each_mongo_url: str) -> AsyncGenerator[MongoDataClient]:
    unique_name = DocumentCollection(indexes=(DocumentIndex("name", unique=True),))
    app = create_data_service(MongoSettings, {THINGS: unique_name})
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(each_mongo_url)
    )
    async with (
        app.router.lifespan_context(app),
        MongoDataClient("http://data", service="api", transport=httpx.ASGITransport(app)) as client,
    ):
        yield client


async def make(client: MongoDataClient, size: int) -> list[Thing]:
    return [await client.create(THINGS, NewThing(name=f"{n:03}", quantity=n % 2)) for n in range(size)]


async def test_a_page_with_what_no_data_service_has_stored_is_read(
    client: MongoDataClient, each_mongo_url: str
) -> None:
    """A document of another program has version 1, and a time."""
    with MongoClient[dict[str, Any]](each_mongo_url) as other:
        other.get_default_database()["things"].insert_many(
            [{"_id": str(UUID(int=1)), "name": "a"}, {"_id": str(UUID(int=2)), "name": "b", "version": 0}]
        )
    await make(client, 1)
    things = [thing async for thing in client.find(THINGS).order_by("name")]
    assert [(thing.name, thing.version) for thing in things] == [("000", 1), ("a", 1), ("b", 1)]
    assert [thing async for thing in client.find(THINGS).order_by("name").export()] == things
    changed = await client.update(THINGS, things[2], ThingChanges(quantity=9))
    assert (changed.version, changed.created_at, changed.quantity) == (2, things[2].created_at, 9)


async def test_single_records(client: MongoDataClient) -> None:
    """Each write of one record works on a real server, with its refusals."""
    (thing,) = await make(client, 1)
    assert await client.get(THINGS, thing.id) == thing
    replaced = await client.replace(THINGS, thing, NewThing(name="other"))
    with pytest.raises(StaleVersionError) as stale:
        await client.update(THINGS, thing, ThingChanges(quantity=9))
    assert stale.value.current == replaced.etag
    with pytest.raises(StaleVersionError):
        await client.replace(THINGS, UNKNOWN, NewThing(name="nobody"))
    with pytest.raises(UniqueViolationError):
        await client.create(THINGS, NewThing(name="other"))
    await client.delete(THINGS, replaced)
    assert await client.get_or_none(THINGS, thing.id) is None
    assert (await client.undelete(THINGS, thing.id)).name == "other"


async def test_many_records(client: MongoDataClient) -> None:
    """Batches, queries, selections, counts and exports agree about the same records."""
    made = await make(client, 12)
    assert await client.get_many(THINGS, [made[3].id, UNKNOWN, made[0].id]) == [made[3], None, made[0]]
    find = client.find(THINGS).where(THINGS["quantity"] == 1).order_by("name")
    labels = [label async for label in find.page_size(4).select(Label)]
    assert [label.name for label in labels] == ["001", "003", "005", "007", "009", "011"]
    assert [label async for label in find.select(Label).export()] == labels
    assert [thing async for thing in client.find(THINGS).order_by("name").export()] == made
    assert (await find.page_size(1).page(count="exact")).total_size == await find.count() == 6


async def test_aggregations_and_pipelines(client: MongoDataClient) -> None:
    """Groups have typed rows, a pipeline its own, and a stage that writes is refused."""
    await make(client, 5)
    wanted = Aggregation(group_by=("quantity",), functions={"things": count(), "worth": total("price")})
    rows = await client.aggregate(THINGS, wanted, row_type=Group)
    assert rows == [
        Group(quantity=0, things=3, worth=Decimal("1.50")),
        Group(quantity=1, things=2, worth=Decimal("1.00")),
    ]
    pipeline: list[dict[str, Any]] = [
        {"$match": {"quantity": 1}},
        {"$group": {"_id": None, "things": {"$sum": 1}}},
    ]
    [row] = await client.aggregate(THINGS, pipeline)
    assert row["things"] == 2
    with pytest.raises(InvalidQueryError):
        await client.aggregate(THINGS, [{"$out": "elsewhere"}])


async def test_concurrent_changes_are_all_kept(client: MongoDataClient) -> None:
    """Five changes of one record at a time add up."""
    (thing,) = await make(client, 1)

    def one_more(thing: Thing) -> ThingChanges:
        return ThingChanges(quantity=thing.quantity + 1)

    await asyncio.gather(*(client.modify(THINGS, thing.id, one_more) for _ in range(5)))
    assert (await client.get(THINGS, thing.id)).quantity == 5


async def test_a_rerun_in_a_claim_writes_nothing_twice(client: MongoDataClient) -> None:
    """The second run has the outcome of the first, and the record was changed once."""

    async def work() -> tuple[UUID, int]:
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            thing = await client.create(THINGS, NewThing(name="one"))
            changed = await client.modify(
                THINGS, thing.id, lambda thing: ThingChanges(quantity=thing.quantity + 1)
            )
            return thing.id, changed.quantity

    assert await work() == await work()
    assert [thing.quantity async for thing in client.find(THINGS)] == [1]


async def test_a_transaction_of_one_operation(client: MongoDataClient) -> None:
    """It works on a server without transactions too."""
    async with client.transaction() as tx:
        thing = tx.create(THINGS, NewThing(name="one"))
    assert thing.result == await client.get(THINGS, thing.id)


async def test_several_are_all_or_nothing_or_refused(client: MongoDataClient) -> None:
    """By what the server can do, which isn't known before it is asked."""
    try:
        made = await client.create_many(THINGS, [NewThing(name="one"), NewThing(name="two")])
    except TransactionsUnavailableError:
        made = []
    assert await client.find(THINGS).count() == len(made)
