"""What both clients can do, against the contract's real routes on records in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, MongoDataClient, PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.dataservice import CallContext
from hybridkit.errors import (
    InvalidQueryError,
    InvalidRequestError,
    MisuseError,
    NotFoundError,
    PayloadTooLargeError,
    RequirementNotMetError,
    ResponseError,
    StaleVersionError,
    TransactionsUnavailableError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.resources import Aggregation, Call, Record, Resource, count, total
from hybridkit.testing import FakeDataService

UNKNOWN = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewItem(BaseModel):
    name: str
    price: Decimal = Decimal(0)
    quantity: int = 0


class Item(NewItem, Record):
    pass


class ItemChanges(BaseModel):
    name: str | None = None
    price: Decimal | None = None
    quantity: int | None = None


class Label(BaseModel):
    name: str
    quantity: int


class Place(BaseModel):
    name: str


class Country(Place, Record[str]):
    pass


class Words(BaseModel):
    words: list[str]


class Said(BaseModel):
    said: str


ITEMS = Resource(
    "items",
    record=Item,
    create=NewItem,
    update=ItemChanges,
    filterable=("name", "price", "quantity"),
    sortable=("name", "quantity"),
    soft_delete=True,
)
COUNTRIES = Resource("countries", record=Country, create=Place, update=Place)
SAY = Call("say", resource=ITEMS, request=Words, response=Said, safe=True)
SHOUT = Call("shout", resource=ITEMS, request=Words, response=Said)


async def say(body: Words, work: CallContext[Any]) -> Said:
    return Said(said=f"{work.caller}: {' '.join(body.words)}")


type AnyClient = PostgresDataClient | MongoDataClient


@pytest.fixture
def service() -> FakeDataService:
    return FakeDataService([ITEMS, COUNTRIES], unique={ITEMS: ["name"]}, calls={SAY: say, SHOUT: say})


@pytest.fixture(params=[PostgresDataClient, MongoDataClient])
async def client(service: FakeDataService, request: pytest.FixtureRequest) -> AsyncIterator[AnyClient]:
    """Both clients: what they share is tested on both. Patient ones, as a busy machine is no fault of theirs."""
    policy = ClientPolicy.bulk()
    async with request.param(
        "http://data", service="api", transport=service.transport, policy=policy
    ) as client:
        yield client


async def make(client: AnyClient, count: int) -> list[Item]:
    return await client.create_many(ITEMS, [NewItem(name=f"item {n}", quantity=n) for n in range(count)])


# ── reads ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refresh_brings_only_what_has_changed(client: AnyClient, service: FakeDataService) -> None:
    """An unchanged record is the same object, by the ETag that it has; one that is gone is an error."""
    (item,) = await make(client, 1)
    assert await client.refresh(ITEMS, item) is item
    assert service.requests[-1] == f"GET /v1/items/{item.id}"
    changed = await client.update(ITEMS, item, ItemChanges(name="other"))
    assert await client.refresh(ITEMS, item) == changed
    await client.delete(ITEMS, changed)
    with pytest.raises(NotFoundError):
        await client.refresh(ITEMS, changed)


async def test_many_by_id(client: AnyClient, service: FakeDataService) -> None:
    """Records come in the order of their ids, twice where an id is, with None for what is missing."""
    first, second = await make(client, 2)
    found = await client.get_many(ITEMS, [second.id, UNKNOWN, str(first.id), second.id])
    assert found == [second, None, first, second]
    assert service.requests[-1] == "POST /v1/items:batch_get"
    service.requests.clear()
    assert await client.get_many(ITEMS, []) == []
    assert service.requests == []


async def test_more_ids_than_one_request_takes(client: AnyClient, service: FakeDataService) -> None:
    """The ids are cut into batches of a thousand, and the answers are in their order."""
    (item,) = await make(client, 1)
    service.requests.clear()
    found = await client.get_many(ITEMS, [UNKNOWN] * 2000 + [item.id])
    assert (len(found), found[-1]) == (2001, item)
    assert service.requests == ["POST /v1/items:batch_get"] * 3


async def test_a_selection_is_a_model_of_its_own(client: AnyClient) -> None:
    """Only the model's fields are read, and a field that the record lacks is refused."""
    await make(client, 3)
    find = client.find(ITEMS).where(ITEMS["quantity"] > 0).select(Label).order_by("quantity")
    assert [label async for label in find] == [
        Label(name="item 1", quantity=1),
        Label(name="item 2", quantity=2),
    ]
    assert await find.first() == Label(name="item 1", quantity=1)
    with pytest.raises(InvalidQueryError, match="no field 'said' for Said"):
        client.find(ITEMS).select(Said)


async def test_counts(client: AnyClient) -> None:
    """A count comes alone or with a page, and only where it is asked for."""
    await make(client, 5)
    find = client.find(ITEMS).where(ITEMS["quantity"] >= 2).order_by("name").page_size(1)
    assert await find.count() == 3
    assert await find.count(exact=False) >= 0
    page = await find.page(count="exact")
    assert (len(page.items), page.total_size) == (1, 3)
    assert (await find.page()).total_size is None


async def test_an_export_is_everything(client: AnyClient, service: FakeDataService) -> None:
    """An export has every record with any page size, in both forms of a query."""
    long_name = "x" * 100  # too long together for a URL
    made = await client.create_many(ITEMS, [NewItem(name=f"{long_name} {n}", quantity=n) for n in range(25)])
    service.requests.clear()
    find = client.find(ITEMS).page_size(7).order_by("quantity")
    assert [item async for item in find.export()] == made
    wanted = [item.name for item in made]
    long = find.where(ITEMS["name"].in_(wanted)).select(Label)
    assert [label.name async for label in long.export()] == wanted
    assert service.requests == ["GET /v1/items", "POST /v1/items:query"]


async def test_an_export_that_is_cut(client: AnyClient, service: FakeDataService) -> None:
    """The records before the cut are there, then the error comes."""
    await make(client, 3)
    service.faults.garble("cut_json", matching="GET /v1/items")
    found: list[Item] = []

    async def export() -> None:
        async for item in client.find(ITEMS).export():
            found.append(item)  # noqa: PERF401 - what came before the error is looked at

    with pytest.raises(UnavailableError, match="was cut after 1 records"):
        await export()
    assert len(found) == 1


async def test_an_aggregation_has_typed_rows(client: AnyClient) -> None:
    """Rows are read as the given type, and without one they are JSON values."""

    class Row(TypedDict):
        quantity: int
        items: int
        worth: Decimal

    for name, quantity in (("a", 1), ("b", 1), ("c", 2)):
        await client.create(ITEMS, NewItem(name=name, quantity=quantity, price=Decimal("1.50")))
    by_quantity = Aggregation(group_by=("quantity",), functions={"items": count(), "worth": total("price")})
    first, second = await client.aggregate(ITEMS, by_quantity, row_type=Row)
    assert (first["items"], first["worth"], second["items"]) == (2, Decimal(3), 1)
    untyped = await client.aggregate(ITEMS, by_quantity)
    assert untyped[0]["items"] == 2


async def test_rows_that_do_not_fit(client: AnyClient) -> None:
    """A row that is not of the given type raises `ResponseError`."""
    await make(client, 1)
    with pytest.raises(ResponseError, match="rows of items"):
        await client.aggregate(ITEMS, Aggregation(functions={"n": count()}), row_type=Said)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


async def test_batches(client: AnyClient, service: FakeDataService) -> None:
    """Each batch is one request, and its records come in order."""
    made = await make(client, 3)
    changed = await client.update_many(
        ITEMS, [(made[0], ItemChanges(quantity=10)), (made[1].id, ItemChanges(quantity=11))]
    )
    assert [(item.id, item.quantity) for item in changed] == [(made[0].id, 10), (made[1].id, 11)]
    upserted = await client.upsert_many(
        ITEMS, [(made[2].id, NewItem(name="other")), (UNKNOWN, NewItem(name="new"))]
    )
    assert [(item.name, item.version) for item in upserted] == [("other", 2), ("new", 1)]
    await client.delete_many(ITEMS, [changed[0], UNKNOWN])
    assert await client.get_many(ITEMS, [changed[0].id, UNKNOWN]) == [None, None]
    assert [request.partition(":")[2] for request in service.requests] == [
        "batch_create",
        "batch_update",
        "batch_upsert",
        "batch_delete",
        "batch_get",
    ]


async def test_a_single_update_adds_and_requires_as_a_transaction_does(client: AnyClient) -> None:
    """It returns the record, is done once in a claim, and says when the requirement does not hold."""
    [item] = await make(client, 1)
    price = Decimal("0.10")
    changed = await client.update(
        ITEMS, item, ItemChanges(name="pen"), increment={"price": price, "quantity": 2}
    )
    assert (changed.name, changed.price, changed.quantity) == ("pen", item.price + price, item.quantity + 2)
    enough = ITEMS["quantity"] >= 1000
    with pytest.raises(RequirementNotMetError):
        await client.update(ITEMS, item.id, increment={"quantity": -1000}, require=enough)
    with pytest.raises(RequirementNotMetError):
        await client.update(ITEMS, item.id, ItemChanges(name="rich"), require=enough)
    with pytest.raises(StaleVersionError):
        await client.update(ITEMS, item, increment={"quantity": 1})
    for _ in range(2):
        with bind(RequestContext(claim=Claim("items:one_more:7"))):
            await client.update(ITEMS, item.id, increment={"quantity": 1})
    assert (await client.get(ITEMS, item.id)).quantity == changed.quantity + 1
    with pytest.raises(MisuseError, match="changes, or something to add"):
        await client.update(ITEMS, item.id)


async def test_a_single_upsert_counts(client: AnyClient) -> None:
    """A new record begins with the data and the increment; one that is there keeps its other fields."""
    for quantity, name in ((11, "first"), (12, "first")):
        counted = await client.upsert(
            ITEMS, UNKNOWN, NewItem(name=f"{name}", quantity=10), increment={"quantity": 1}
        )
        assert (counted.quantity, counted.name) == (quantity, "first")


async def test_a_batch_happens_as_a_whole(client: AnyClient) -> None:
    """One record that is stale, taken or missing leaves all others of its batch unchanged."""
    first, second = await make(client, 2)
    await client.update(ITEMS, second, ItemChanges(quantity=5))
    with pytest.raises(StaleVersionError):
        await client.update_many(ITEMS, [(each, ItemChanges(quantity=9)) for each in (first, second)])
    with pytest.raises(StaleVersionError):
        await client.delete_many(ITEMS, [first, second])
    with pytest.raises(UniqueViolationError):
        await client.create_many(ITEMS, [NewItem(name="third"), NewItem(name=first.name)])
    with pytest.raises(NotFoundError):
        await client.update_many(ITEMS, [(first, ItemChanges(quantity=9)), (UNKNOWN, ItemChanges())])
    assert await client.get(ITEMS, first.id) == first
    assert await client.find(ITEMS).count() == 2


async def test_natural_keys_in_a_batch(client: AnyClient) -> None:
    """Each record needs its key, and their numbers have to agree."""
    made = await client.create_many(COUNTRIES, [Place(name="France"), Place(name="Italy")], ids=["fr", "it"])
    assert [country.id for country in made] == ["fr", "it"]
    with pytest.raises(InvalidRequestError, match="1 records of countries have 2 ids"):
        await client.create_many(COUNTRIES, [Place(name="Spain")], ids=["es", "pt"])
    with pytest.raises(InvalidRequestError, match="natural key"):
        await client.create_many(COUNTRIES, [Place(name="Spain")])


async def test_a_batch_is_never_split(client: AnyClient, service: FakeDataService) -> None:
    """A batch that is too large raises, as two could not be atomic; an empty one sends nothing."""
    with pytest.raises(InvalidRequestError, match="1001 records of items are more than the 1000"):
        await client.delete_many(ITEMS, [UNKNOWN] * 1001)
    with pytest.raises(PayloadTooLargeError):
        await client.create_many(ITEMS, [NewItem(name="x" * 20_000)] * 60)
    assert await client.create_many(ITEMS, []) == []
    await client.delete_many(ITEMS, [])
    assert service.requests == []


async def test_a_rerun_of_batches_in_a_claim_writes_nothing_twice(client: AnyClient) -> None:
    """The versions say that each batch was applied once."""

    async def work() -> list[UUID]:
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            items = await make(client, 3)
            await client.update_many(ITEMS, [(item.id, ItemChanges(quantity=7)) for item in items])
            await client.upsert_many(ITEMS, [(UNKNOWN, NewItem(name="z"))])
            return [item.id for item in items]

    first = await work()
    assert await work() == first
    assert [item.version for item in await client.get_many(ITEMS, first) if item] == [2, 2, 2]
    assert (await client.get(ITEMS, UNKNOWN)).version == 1


async def test_steps_tell_writes_apart_whatever_their_order(client: AnyClient) -> None:
    """Named steps find their identity on a rerun in another order."""

    async def work(*names: str) -> dict[str, UUID]:
        with bind(RequestContext(claim=Claim("worker:event:8"))):
            return {n: (await client.create(ITEMS, NewItem(name=n), step=n)).id for n in names}

    assert await work("a", "b") == await work("b", "a")


# ── single records ───────────────────────────────────────────────────────────────────────────────


async def test_replace_needs_a_record(client: AnyClient) -> None:
    """A record that is stale or missing is not replaced; an id alone replaces any state."""
    (item,) = await make(client, 1)
    replaced = await client.replace(ITEMS, item, NewItem(name="other", quantity=3))
    assert (replaced.id, replaced.name, replaced.version) == (item.id, "other", 2)
    with pytest.raises(StaleVersionError) as stale:
        await client.replace(ITEMS, item, NewItem(name="late"))
    assert stale.value.current == replaced.etag
    assert (await client.replace(ITEMS, item.id, NewItem(name="by id"))).version == 3
    with pytest.raises(StaleVersionError):
        await client.replace(ITEMS, UNKNOWN, NewItem(name="nobody"))
    assert await client.get_or_none(ITEMS, UNKNOWN) is None


async def test_undelete(client: AnyClient) -> None:
    """A record that was hidden is back as it was; one that never was raises."""
    (item,) = await make(client, 1)
    await client.delete(ITEMS, item)
    assert await client.get_or_none(ITEMS, item.id) is None
    again = await client.undelete(ITEMS, item.id)
    assert (again.id, again.name) == (item.id, item.name)
    assert await client.get(ITEMS, item.id) == again
    with pytest.raises(NotFoundError):
        await client.undelete(ITEMS, UNKNOWN)


async def test_calls(client: AnyClient, service: FakeDataService) -> None:
    """A safe call is sent as a read, another one as a write with a key."""
    assert (await client.call(SAY, Words(words=["a", "b"]))).said == "api: a b"
    assert (await client.call(SHOUT, Words(words=["c"]))).said == "api: c"
    assert service.requests == ["POST /v1/items:say", "POST /v1/items:shout"]


# ── modify ───────────────────────────────────────────────────────────────────────────────────────


def one_more(item: Item) -> ItemChanges:
    return ItemChanges(quantity=item.quantity + 1)


async def one_more_later(item: Item) -> ItemChanges | None:
    await asyncio.sleep(0)
    return one_more(item)


@pytest.mark.parametrize("change", [one_more, one_more_later])
async def test_concurrent_changes_are_all_kept(
    client: AnyClient, change: Callable[[Item], ItemChanges]
) -> None:
    """Each reads what the others wrote, and applies itself to that."""
    (item,) = await make(client, 1)
    await asyncio.gather(*(client.modify(ITEMS, item.id, change) for _ in range(8)))
    assert (await client.get(ITEMS, item.id)).quantity == 8


async def test_modify_begins_with_the_record_at_hand(client: AnyClient, service: FakeDataService) -> None:
    """A fresh record costs one request, a stale one is read again, and None changes nothing."""
    (item,) = await make(client, 1)
    service.requests.clear()
    changed = await client.modify(ITEMS, item, one_more)
    assert changed.quantity == 1
    assert service.requests == [f"PATCH /v1/items/{item.id}"]
    assert (await client.modify(ITEMS, item, one_more)).quantity == 2
    assert await client.modify(ITEMS, changed, lambda _: None) == changed


async def test_modify_gives_up(client: AnyClient, service: FakeDataService) -> None:
    """After ten lost races the error says so; a missing record ends it at once."""
    (item,) = await make(client, 1)
    service.faults.refuse(StaleVersionError("it changed"), matching="PATCH *")
    with pytest.raises(StaleVersionError) as stale:
        await client.modify(ITEMS, item.id, one_more)
    assert stale.value.__notes__ == ["given up after 10 tries"]
    with pytest.raises(NotFoundError):
        await client.modify(ITEMS, UNKNOWN, one_more)


async def test_modify_in_a_claim_is_done_once(client: AnyClient) -> None:
    """The rerun reads its own first change, and still finds what it did."""
    (item,) = await make(client, 1)
    for _ in range(2):
        with bind(RequestContext(claim=Claim("worker:event:9"))):
            assert (await client.modify(ITEMS, item.id, one_more)).quantity == 1
    assert (await client.get(ITEMS, item.id)).quantity == 1


# ── transactions ─────────────────────────────────────────────────────────────────────────────────


async def test_a_dry_run_tells_and_keeps_nothing(client: AnyClient) -> None:
    """The result or the error is that of the real transaction, and no record is there."""
    async with client.transaction(dry_run=True) as tx:
        item = tx.create(ITEMS, NewItem(name="tried"))
    assert item.result.name == "tried"
    assert await client.get_or_none(ITEMS, item.id) is None
    await make(client, 1)
    with pytest.raises(UniqueViolationError):
        async with client.transaction(dry_run=True) as tx:
            tx.create(ITEMS, NewItem(name="item 0"))


@pytest.mark.parametrize("applied", ["", "return=minimal", "tx=", 'tx="rollback', "tx=rollbacks"])
async def test_a_service_that_ignores_the_wish_for_a_dry_run(applied: str) -> None:
    """A dry run that was carried out raises instead of looking like a success."""
    headers = {"preference-applied": applied}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"results": [None]}, headers=headers))
    async with PostgresDataClient("http://data", service="api", transport=transport) as client:
        tx = client.transaction(dry_run=True)
        await tx.__aenter__()
        tx.require(ITEMS, UNKNOWN)
        with pytest.raises(ResponseError, match="was carried out"):
            await tx.__aexit__(None, None, None)


@pytest.mark.parametrize("applied", ["tx=rollback", 'return=minimal, TX = "rollback"; a=1'])
async def test_a_dry_run_may_be_confirmed_in_any_form(applied: str) -> None:
    """The confirmation is read by RFC 7240, with quotes or without."""
    headers = {"preference-applied": applied}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"results": [None]}, headers=headers))
    async with (
        PostgresDataClient("http://data", service="api", transport=transport) as client,
        client.transaction(dry_run=True) as tx,
    ):
        tx.require(ITEMS, UNKNOWN)


async def test_a_server_without_transactions() -> None:
    """One operation with its events works, and several raise `TransactionsUnavailableError`."""
    service = FakeDataService([ITEMS], has_transactions=False)
    async with service.mongo_client(service="api") as client:
        async with client.transaction() as tx:
            item = tx.create(ITEMS, NewItem(name="one"))
        assert item.result.name == "one"
        with pytest.raises(TransactionsUnavailableError):
            async with client.transaction() as tx:
                [tx.create(ITEMS, NewItem(name=name)) for name in ("two", "three")]
        with pytest.raises(TransactionsUnavailableError):
            await make(client, 2)


async def test_a_pipeline_is_sent_as_it_is() -> None:
    """The stages reach MongoDB's data service untouched."""
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json={"items": [{"n": 3}]})

    transport = httpx.MockTransport(answer)
    async with MongoDataClient("http://data", service="api", transport=transport) as client:
        assert await client.aggregate(ITEMS, [{"$count": "n"}]) == [{"n": 3}]
    assert seen == [b'{"pipeline":[{"$count":"n"}]}']


@pytest.mark.parametrize("answer", [{"items": []}, {"items": [None, None]}])
async def test_answers_of_another_length(answer: dict[str, Any]) -> None:
    """An answer with more or fewer records than were asked for raises `ResponseError`."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    async with PostgresDataClient("http://data", service="api", transport=transport) as client:
        with pytest.raises(ResponseError, match=r"records of items|the batch has 1 records"):
            await client.get_many(ITEMS, [UNKNOWN])
        with pytest.raises(ResponseError, match="the batch has 1 records"):
            await client.create_many(ITEMS, [NewItem(name="a")])
        with pytest.raises(ResponseError, match=r"not counted|a page of items"):
            await client.find(ITEMS).count()


async def test_a_repeated_write_of_what_is_gone_since() -> None:
    """A repeated write whose record was removed since raises `NotFoundError`."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1:transact":
            return httpx.Response(200, json={"results": [None]})
        batch = ":batch" in request.url.path
        return httpx.Response(200, json={"items": [None]}) if batch else httpx.Response(204)

    transport = httpx.MockTransport(answer)
    async with PostgresDataClient("http://data", service="api", transport=transport) as client:
        with pytest.raises(NotFoundError, match="removed since"):
            await client.create(ITEMS, NewItem(name="a"))
        with pytest.raises(NotFoundError, match="removed since"):
            await client.create_many(ITEMS, [NewItem(name="a")])
        async with client.transaction() as tx:
            item = tx.create(ITEMS, NewItem(name="a"))
        with pytest.raises(NotFoundError, match="removed since"):
            _ = item.result


def test_presets_differ_in_patience() -> None:
    """Each preset waits longer, tries more often and does less at a time than the one before."""
    interactive, worker, bulk = ClientPolicy.interactive(), ClientPolicy.worker(), ClientPolicy.bulk()
    assert interactive == ClientPolicy()
    for patient, hasty in ((worker, interactive), (bulk, worker)):
        assert patient.write_timeout_seconds > hasty.write_timeout_seconds
        assert patient.retry.attempts > hasty.retry.attempts
        assert patient.max_in_flight < hasty.max_in_flight
    assert bulk.max_response_bytes > interactive.max_response_bytes
