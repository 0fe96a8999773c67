"""`PostgresDataClient` and the data service speak the same contract."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from hybridkit.clients import PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    InvalidQueryError,
    InvalidRequestError,
    NotFoundError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.events import Event


class ItemMade(Event, type="item.made", key="item_id"):
    item_id: UUID


@pytest.fixture
async def client(service: Any) -> AsyncIterator[PostgresDataClient]:
    transport = httpx.ASGITransport(service.app)
    async with PostgresDataClient("http://data", service="api_service", transport=transport) as client:
        yield client


async def test_records_make_the_round_trip(client: PostgresDataClient, service: Any) -> None:
    """The client creates, reads, changes, replaces, finds and deletes a record of the real service."""
    items, new_item = service.items, service.items.create
    made = await client.create(items, new_item(name="pen", price=Decimal("1.10")))
    assert await client.get(items, made.id) == made
    changed = await client.update(items, made, items.update(rank=3))
    assert (changed.rank, changed.version, changed.price) == (3, 2, Decimal("1.10"))
    replaced = await client.upsert(items, made.id, new_item(name="ink"))
    assert [item async for item in client.find(items)] == [replaced]
    await client.delete(items, replaced)
    assert await client.get_or_none(items, made.id) is None


async def test_errors_arrive_as_they_were_raised(client: PostgresDataClient, service: Any) -> None:
    """Errors of the store reach the caller as the same classes, with their data."""
    items, new_item = service.items, service.items.create
    made = await client.create(items, new_item(name="pen"))
    changed = await client.update(items, made.id, items.update(rank=1))
    with pytest.raises(StaleVersionError) as stale:
        await client.update(items, made, items.update(rank=2))
    assert stale.value.current == changed.etag
    with pytest.raises(UniqueViolationError) as taken:
        await client.create(items, new_item(name="pen"))
    assert taken.value.fields == ("name",)
    with pytest.raises(InvalidRequestError):
        await client.create(items, new_item(name="ink", quantity=-1))
    with pytest.raises(NotFoundError):
        await client.get(items, uuid4())
    with pytest.raises(InvalidQueryError):
        await client.find(items).page("made up")


async def test_pages_are_walked(client: PostgresDataClient, service: Any) -> None:
    """A filtered, descending query yields every record over several pages, in order."""
    items = service.items
    async with client.transaction() as tx:
        for number in range(25):
            tx.create(items, items.create(name=f"item {number:02}", rank=number % 3 or None))
    found = client.find(items).where(items["rank"] == 1).order_by("name", descending=True).page_size(3)
    assert [item.name async for item in found] == [f"item {n:02}" for n in range(22, -1, -3)]


async def test_a_transaction_is_one_request(client: PostgresDataClient, service: Any) -> None:
    """Its operations and its event are done together, in the name of the caller and the user."""
    items = service.items
    with bind(RequestContext(request_id="the-request", user_id="ann")):
        async with client.transaction() as tx:
            pen = tx.create(items, items.create(name="pen", quantity=3))
            tx.update(items, pen.id, increment={"quantity": -1}, require=items["quantity"] >= 1)
            tx.require(items, pen.id)
            tx.emit(ItemMade(item_id=pen.id))
    assert (pen.result.name, (await client.get(items, pen.id)).quantity) == ("pen", 2)
    await service.until("SELECT 1 FROM hk_outbox WHERE published_at IS NOT NULL")
    [(_, _, envelope)] = service.publisher.published
    assert (envelope["service"], envelope["request_id"], envelope["user_id"]) == (
        "api_service",
        "the-request",
        "ann",
    )


async def test_a_rerun_of_a_claim_makes_the_same_record_and_event(
    client: PostgresDataClient, service: Any
) -> None:
    """Ids are derived from the claim, so the second run replays the first one."""
    items = service.items

    async def handle() -> UUID:
        with bind(RequestContext(claim=Claim("orders:order:1"))):
            async with client.transaction() as tx:
                item = tx.create(items, items.create(name="pen"))
                tx.emit(ItemMade(item_id=item.id))
            return UUID(str(item.result.id))

    assert await handle() == await handle()
    [row] = await service.sql(
        "SELECT (SELECT count(*) FROM items) AS items, (SELECT count(*) FROM hk_outbox) AS events"
    )
    assert (row["items"], row["events"]) == (1, 1)


async def test_the_deadline_of_the_context_bounds_a_call(client: PostgresDataClient, service: Any) -> None:
    """A write that waits for a lock ends when the caller's time is over."""
    made = await client.create(service.items, service.items.create(name="pen"))
    async with service.holding("SELECT 1 FROM items FOR UPDATE"):
        with bind(RequestContext().within(0.3)), pytest.raises((DeadlineExceededError, DeadlinePassedError)):
            await client.update(service.items, made, service.items.update(rank=1))
