"""The contract on MongoDB: one document at a time, atomic and once per key, with transactions and without."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
from pydantic import BaseModel, create_model
from pymongo import MongoClient

from hybridkit.codec import Timestamp
from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._keys import EMBEDDED_KEYS
from hybridkit.dataservice._mongo._store import MongoStore
from hybridkit.errors import DeclarationError
from hybridkit.ids import derived_id
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl


class Kind(StrEnum):
    PAPER = "paper"
    PEN = "pen"


class NewThing(BaseModel):
    name: str
    kind: Kind = Kind.PEN
    price: Decimal | None = None
    quantity: int = 0
    rank: int | None = None
    due_at: Timestamp | None = None
    details: dict[str, Any] | None = None
    owner_id: UUID | None = None


class Thing(NewThing, Record):
    is_active: bool = True


class ThingChanges(BaseModel):
    name: str | None = None
    quantity: int | None = None
    price: Decimal | None = None
    rank: int | None = None
    details: dict[str, Any] | None = None
    is_active: bool | None = None


class NewPlace(BaseModel):
    id: str
    title: str


class Place(Record[str]):
    title: str


class PlaceChanges(BaseModel):
    title: str | None = None


THINGS = Resource(
    "things",
    record=Thing,
    create=NewThing,
    update=ThingChanges,
    filterable=(
        "name",
        "kind",
        "price",
        "quantity",
        "rank",
        "due_at",
        "is_active",
        "owner_id",
        "details.size",
    ),
    sortable=("name", "price", "rank", "due_at", "details.size"),
)
PLACES = Resource("places", record=Place, create=NewPlace, update=PlaceChanges)
COLLECTIONS: dict[Resource[Any, Any, Any], DocumentCollection] = {
    THINGS: DocumentCollection(indexes=(DocumentIndex("name", unique=True), DocumentIndex("rank"))),
    PLACES: DocumentCollection(name="all_places"),
}


class Service:
    """A running data service, and a client that makes a key for every write."""

    def __init__(self, http: httpx.AsyncClient, url: str, store: MongoStore) -> None:
        self.http = http
        self.url = url
        self.store = store
        self._keys = itertools.count()

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers=_named(headers))

    async def send(
        self, method: str, path: str, body: object = None, *, key: str | None = None, **headers: str
    ) -> httpx.Response:
        return await self.http.request(
            method,
            path,
            content=None if body is None else orjson.dumps(body),
            headers={"idempotency-key": key or f"key {next(self._keys)}", **_named(headers)},
        )

    async def create(self, name: str, **fields: object) -> dict[str, Any]:
        answer = await self.send("POST", "/v1/things", {"name": name, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def transact(self, *operations: Mapping[str, Any], **more: Any) -> httpx.Response:
        return await self.send("POST", "/v1:transact", {"operations": operations, **more})

    async def names(self, query: str) -> list[str]:
        answer = await self.get(f"/v1/things?{query}")
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    def stored(self, collection: str) -> list[dict[str, Any]]:
        with MongoClient[dict[str, Any]](self.url, uuidRepresentation="standard") as client:
            return list(client.get_default_database()[collection].find())


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def running(url: str) -> AsyncGenerator[Service]:
    app = create_data_service(MongoSettings, COLLECTIONS)
    app.state.settings = MongoSettings(service_name="db_mongo_service", database_url=SecretUrl(url))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    async with app.router.lifespan_context(app), http:
        yield Service(http, url, app.state.store)


@pytest.fixture
async def service(each_mongo_url: str) -> AsyncIterator[Service]:
    async with running(each_mongo_url) as service:
        yield service


# ── records ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_written_is_what_is_read(service: Service) -> None:
    """Decimals are strings, timestamps are UTC with milliseconds at most, identifiers lower case."""
    owner = "1F1E54A2-F5D4-612B-8824-DDCDFEBDD6FC"
    record = await service.create(
        "pen",
        price="1.50",
        due_at="2026-01-15T11:30:00.123987+01:00",
        details={"at": "x", "n": 1.5},
        owner_id=owner,
    )
    [listed] = (await service.get("/v1/things")).json()["items"]
    read = (await service.get(f"/v1/things/{record['id']}")).json()
    assert record == read == listed
    assert record["price"] == "1.50"
    assert record["due_at"] == "2026-01-15T10:30:00.123Z"
    assert record["owner_id"] == owner.lower()
    assert (record["version"], record["kind"], record["is_active"]) == (1, "pen", True)
    assert record["rank"] is None


async def test_a_patch_changes_what_it_names(service: Service) -> None:
    """Null removes a value, a document is merged, and other fields stay."""
    record = await service.create("pen", rank=3, details={"size": 1, "color": "red"})
    answer = await service.send(
        "PATCH",
        f"/v1/things/{record['id']}",
        {"rank": None, "details": {"size": 2}},
        if_match=record["etag"],
    )
    changed = answer.json()
    assert changed["rank"] is None
    assert changed["details"] == {"size": 2, "color": "red"}
    assert (changed["version"], changed["name"]) == (2, "pen")
    assert answer.headers["etag"] == changed["etag"] != record["etag"]


async def test_a_stale_change_is_refused_with_the_current_tag(service: Service) -> None:
    """The refusal has the ETag to read and try again with."""
    record = await service.create("pen")
    path = f"/v1/things/{record['id']}"
    await service.send("PATCH", path, {"rank": 1})
    answer = await service.send("PATCH", path, {"rank": 2}, if_match=record["etag"])
    assert answer.status_code == 412
    assert answer.json()["current"] == (await service.get(path)).json()["etag"]


async def test_put_creates_or_replaces_under_its_condition(service: Service) -> None:
    """If-None-Match creates only, If-Match replaces only, and without both either is done."""
    path = "/v1/places/kyiv"
    assert (
        await service.send("PUT", path, {"id": "kyiv", "title": "A"}, if_match='"1-1"')
    ).status_code == 412
    created = await service.send("PUT", path, {"id": "kyiv", "title": "A"}, if_none_match="*")
    assert created.status_code == 201
    assert (
        await service.send("PUT", path, {"id": "kyiv", "title": "B"}, if_none_match="*")
    ).status_code == 412
    replaced = await service.send("PUT", path, {"id": "kyiv", "title": "B"})
    assert (replaced.status_code, replaced.json()["version"], replaced.json()["title"]) == (200, 2, "B")


async def test_a_deleted_record_is_gone_and_its_tag_never_comes_back(service: Service) -> None:
    """A new record with the id has version 1 and another ETag."""
    first = await service.create("pen")
    path = f"/v1/things/{first['id']}"
    assert (await service.send("DELETE", path, if_match='"9-9"')).status_code == 412
    assert (await service.send("DELETE", path)).status_code == 204
    assert (await service.get(path)).status_code == 404
    assert (await service.get("/v1/things")).json()["items"] == []
    assert (await service.send("DELETE", path)).status_code == 404
    again = await service.create("pen", id=first["id"])
    assert again["version"] == 1
    assert again["etag"] != first["etag"]


async def test_a_value_that_only_one_may_have_is_refused_to_the_second(service: Service) -> None:
    """The refusal names the fields of the index, or the id."""
    first = await service.create("pen")
    second = await service.create("paper")
    for answer in (
        await service.send("POST", "/v1/things", {"name": "pen"}),
        await service.send("PATCH", f"/v1/things/{second['id']}", {"name": "pen"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "UNIQUE_VIOLATION")
        assert answer.json()["fields"] == ["name"]
    same_id = await service.send("POST", "/v1/things", {"name": "other", "id": first["id"]})
    assert (same_id.status_code, same_id.json()["fields"]) == (409, ["id"])


async def test_the_bookkeeping_is_hidden_and_a_collection_may_have_its_own_name(service: Service) -> None:
    """Readers never see the member in which keys and events are kept."""
    await service.send("PUT", "/v1/places/kyiv", {"id": "kyiv", "title": "A"})
    [place] = (await service.get("/v1/places")).json()["items"]
    assert set(place) == {"id", "version", "created_at", "updated_at", "etag", "title"}
    assert [stored["_id"] for stored in service.stored("all_places")] == ["kyiv"]


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("name=eq.a", ["a"]),
        ("rank=neq.1", ["b"]),
        ("rank=not.eq.1", ["b"]),
        ("rank=not.neq.1", ["a"]),
        ("rank=not.is.null", ["a", "b"]),
        ("name=not.like.a*", ["b", "c"]),
        ("rank=gte.1", ["a", "b"]),
        ("rank=not.gte.2", ["a"]),
        ("rank=is.null", ["c"]),
        ("is_active=is.true", ["a", "b", "c"]),
        ("price=lt.2", ["a"]),
        ("kind=in.(paper)", ["c"]),
        ("kind=not.in.(paper)", ["a", "b"]),
        ("kind=in.()", []),
        ("rank=not.in.()", ["a", "b", "c"]),
        ("details.size=gt.1", ["b"]),
        ("or=(name.eq.a,rank.eq.2)", ["a", "b"]),
        ("not.or=(name.eq.a,rank.eq.2)", []),
        ("not.and=(name.eq.a,kind.eq.pen)", ["b", "c"]),
        ("due_at=gte.2026-01-02T00:00:00Z", ["b"]),
        ("owner_id=eq.1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc", ["a"]),
    ],
)
async def test_filters_find_what_sql_would_find(service: Service, query: str, names: list[str]) -> None:
    """A field without a value is neither equal nor unequal to anything."""
    owner = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    await service.create(
        "a", rank=1, price="1.5", details={"size": 1}, due_at="2026-01-01T00:00:00Z", owner_id=owner
    )
    await service.create("b", rank=2, price="10", details={"size": 2}, due_at="2026-01-02T00:00:00Z")
    await service.create("c", kind="paper")
    assert await service.names(f"{query}&order=name") == names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("like.a*", ["a.c", "abc"]),
        ("like.a_c", ["a.c", "abc"]),
        ("ilike.A.C", ["a.c"]),
        ("like.*%0Ab*", ["x\nb"]),
    ],
)
async def test_patterns_match_as_sqls_do(service: Service, pattern: str, names: list[str]) -> None:
    """Dots are literal, and wildcards match line feeds too."""
    for name in ("abc", "a.c", "x\nb", "B"):
        await service.create(name)
    assert await service.names(f"name={pattern}&order=name") == names


async def test_a_value_is_never_an_operator(service: Service) -> None:
    """An object of a filter with a dollar in it is a value, or is refused."""
    await service.create("pen", details={"size": 1})
    for where in (
        {"eq": ["name", {"$ne": "x"}]},
        {"eq": ["details.size", {"$gt": 0}]},
        {"$where": ["name", "1"]},
    ):
        answer = await service.send("POST", "/v1/things:query", {"where": where})
        assert answer.status_code == 400 or answer.json()["items"] == [], answer.text


@pytest.mark.parametrize(
    "order", ["name", "name.desc", "rank", "rank.desc", "price.desc,name", "details.size"]
)
async def test_pages_follow_the_order_through_ties_and_absent_values(service: Service, order: str) -> None:
    """What has no value comes last, or first when descending, as in PostgreSQL."""
    for number in range(11):
        rank = {} if number % 4 == 0 else {"rank": number % 3, "price": f"{number % 2}.50"}
        await service.create(f"n{number:02}", **rank, details={"size": number % 2} if number % 3 else None)
    whole = (await service.get(f"/v1/things?order={order}&page_size=50")).json()
    assert "next_page_token" not in whole or whole["next_page_token"] is None
    seen: list[dict[str, Any]] = []
    token = ""
    while True:
        page = (await service.get(f"/v1/things?order={order}&page_size=3{token}")).json()
        seen += page["items"]
        if not page.get("next_page_token"):
            break
        token = f"&page_token={page['next_page_token']}"
    assert seen == whole["items"]
    assert len({item["id"] for item in seen}) == 11
    if order.startswith("rank"):
        absent = [item["rank"] is None for item in seen]
        assert absent == sorted(absent, reverse=order.endswith("desc"))


async def test_a_selection_has_a_weak_tag(service: Service) -> None:
    """Part of a record can't be the condition of a change."""
    await service.create("pen", rank=1)
    [item] = (await service.get("/v1/things?select=name,rank")).json()["items"]
    assert set(item) == {"name", "rank", "etag"}
    assert item["etag"].startswith("W/")


# ── once per key ─────────────────────────────────────────────────────────────────────────────────


async def test_twenty_calls_with_one_key_do_it_once(service: Service) -> None:
    """One creates the record, and nineteen get its answer as a replay."""

    async def call() -> httpx.Response:
        """As a client does: a conflict that passes is repeated with the same key."""
        while True:
            answer = await service.send("POST", "/v1/things", {"name": "pen", "id": _ID}, key="one")
            if answer.status_code != 409 or not answer.json()["retryable"]:
                return answer
            await asyncio.sleep(float(answer.headers.get("retry-after", 0.2)))

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(call() for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert sum(answer.headers.get("idempotency-replayed") == "true" for answer in answers) == 19
    assert len({answer.text for answer in answers}) == 1
    assert [stored["version"] for stored in service.stored("things")] == [1]


_ID = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"


async def test_a_retry_means_the_same_record_when_the_service_named_it(service: Service) -> None:
    """Also when only the claim of the first attempt is left: the rerun must not make a second record."""
    first = await service.send("POST", "/v1/places", {"id": "kyiv", "title": "A"}, key="p")
    thing = await service.send("POST", "/v1/things", {"name": "pen"}, key="k")
    assert (first.status_code, thing.status_code) == (201, 201)
    again = await service.send("POST", "/v1/things", {"name": "pen"}, key="k")
    assert again.json() == thing.json()
    assert again.json()["id"] == str(derived_id("anonymous k", "create things"))


async def test_a_replay_tells_what_was_done_then(service: Service) -> None:
    """A later change neither shows in the replay nor is undone by it."""
    record = await service.create("pen")
    path = f"/v1/things/{record['id']}"
    first = await service.send("PATCH", path, {"rank": 1}, key="k1")
    await service.send("PATCH", path, {"rank": 2})
    again = await service.send("PATCH", path, {"rank": 1}, key="k1")
    assert again.json() == first.json()
    assert (await service.get(path)).json()["rank"] == 2


async def test_a_late_retry_does_not_bring_a_deleted_record_back(service: Service) -> None:
    """The tombstone still has the keys of the record's writes."""
    body = {"name": "pen", "id": _ID}
    created = await service.send("POST", "/v1/things", body, key="create")
    assert (await service.send("DELETE", f"/v1/things/{_ID}", key="delete")).status_code == 204
    assert (await service.send("POST", "/v1/things", body, key="create")).json() == created.json()
    assert (await service.send("DELETE", f"/v1/things/{_ID}", key="delete")).status_code == 204
    assert (await service.get(f"/v1/things/{_ID}")).status_code == 404


async def test_another_request_under_a_callers_key_is_refused(service: Service) -> None:
    """Neither another body nor another method may use the key."""
    await service.send("POST", "/v1/things", {"name": "pen"}, key="k")
    for method, path, body in (
        ("POST", "/v1/things", {"name": "ink"}),
        ("PUT", "/v1/places/x", {"id": "x", "title": "X"}),
    ):
        answer = await service.send(method, path, body, key="k")
        assert (answer.status_code, answer.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_refused_request_leaves_its_key_free(service: Service) -> None:
    """Only what was done is remembered: the world may have changed."""
    assert (await service.send("PATCH", f"/v1/things/{_ID}", {"rank": 1}, key="k")).status_code == 404
    await service.create("pen", id=_ID)
    assert (await service.send("PATCH", f"/v1/things/{_ID}", {"rank": 1}, key="k")).status_code == 200


async def test_two_callers_may_use_the_same_key(service: Service) -> None:
    """A key belongs to the service that sends it."""
    for caller in ("api_service", "bot_service"):
        answer = await service.send("POST", "/v1/things", {"name": caller}, key="k", x_service_name=caller)
        assert answer.status_code == 201


async def test_a_rerun_under_a_derived_key_gets_what_the_first_run_did(service: Service) -> None:
    """A rerun of a handler may ask for something else, and must be able to go on."""
    await service.create("pen", id=_ID)
    first = await service.send("PATCH", f"/v1/things/{_ID}", {"rank": 1}, key="hkd_" + "0" * 64)
    again = await service.send("PATCH", f"/v1/things/{_ID}", {"rank": 2}, key="hkd_" + "0" * 64)
    assert again.json() == first.json()


async def test_keys_outlast_many_later_writes_of_their_document(service: Service) -> None:
    """They move out of the document before it grows without end, and are still known."""
    await service.create("pen", id=_ID)
    path = f"/v1/things/{_ID}"
    for number in range(EMBEDDED_KEYS + 5):
        await service.send("PATCH", path, {"rank": number}, key=f"k{number}")
    [stored] = service.stored("things")
    assert len(stored["_hk"]["keys"]) == EMBEDDED_KEYS
    for number in (0, 3, EMBEDDED_KEYS + 4):
        again = await service.send("PATCH", path, {"rank": number}, key=f"k{number}")
        assert (again.json()["rank"], again.headers["idempotency-replayed"]) == (number, "true")


async def test_a_large_answer_is_read_again_on_replay(service: Service) -> None:
    """Over 64 KiB only a reference is kept, and the replay says so."""
    body = {"name": "pen", "id": _ID, "details": {"text": "x" * 70_000}}
    first = await service.send("POST", "/v1/things", body, key="k")
    again = await service.send("POST", "/v1/things", body, key="k")
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == again.headers["idempotency-reread"] == "true"


async def test_reads_leave_the_outcomes_under_keys_in_the_database(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of 50 KiB has up to 1 MiB of them in its document, which no read fetches."""
    read: list[Mapping[str, Any]] = []
    document = ResourceCollection.document

    def noted(self: ResourceCollection, stored: Mapping[str, Any], fields: Sequence[str] = ()) -> Any:
        read.append(stored)
        return document(self, stored, fields)

    created = await service.create("pen")
    monkeypatch.setattr(ResourceCollection, "document", noted)
    one = await service.get(f"/v1/things/{created['id']}")
    page = await service.get("/v1/things?order=name")
    lines = await service.get("/v1/things", accept="application/x-ndjson")
    many = await service.http.post("/v1/things:batch_get", json={"ids": [created["id"]]})
    assert one.json() == created
    assert page.json()["items"] == many.json()["items"] == [created]
    assert orjson.loads(lines.text.splitlines()[0]) == created
    assert [list(stored["_hk"]) for stored in read] == [["incarnation"]] * 4
    assert service.stored("things")[0]["_hk"]["keys"]


async def test_increments_from_many_sides_all_count(service: Service) -> None:
    """None that was answered with 200 is lost, whatever came between its read and its write."""
    await service.create("pen", id=_ID)
    add = {"op": "update", "resource": "things", "id": _ID, "increment": {"quantity": 1}}
    answers = await asyncio.gather(*(service.transact(add) for _ in range(12)))
    done = sum(answer.status_code == 200 for answer in answers)
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert (await service.get(f"/v1/things/{_ID}")).json()["quantity"] == done > 0


async def test_a_requirement_holds_at_the_moment_of_the_write(service: Service) -> None:
    """The server checks it in the statement that replaces the document."""
    await service.create("pen", id=_ID, quantity=1, price="5.00")
    take = {
        "op": "update",
        "resource": "things",
        "id": _ID,
        "increment": {"quantity": -1, "price": -1},
        "require": {"gte": ["quantity", 1]},
    }
    taken = await service.transact(take)
    assert (taken.json()["results"][0]["quantity"], taken.json()["results"][0]["price"]) == (0, "4.00")
    assert (await service.transact(take)).status_code == 412


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"increment": {"name": 1}}, "not_a_number"),
        ({"increment": {"is_active": 1}}, "not_a_number"),
        ({"increment": {"quantity": 1}, "data": {"quantity": 3}}, "set_and_incremented"),
    ],
)
async def test_a_sum_that_makes_no_sense_is_refused(
    service: Service, change: dict[str, Any], code: str
) -> None:
    """The code of the problem says what is wrong with the increment."""
    await service.create("pen", id=_ID)
    answer = await service.transact({"op": "update", "resource": "things", "id": _ID, **change})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, code)


async def test_an_assert_only_looks(service: Service) -> None:
    """It has no result, and refuses another state."""
    record = await service.create("pen", id=_ID)
    look = {"op": "assert", "resource": "things", "id": _ID}
    assert (await service.transact({**look, "if_match": record["etag"]})).json() == {"results": [None]}
    assert (await service.transact({**look, "if_match": '"7-7"'})).status_code == 412


async def test_more_than_one_document_at_a_time_is_not_faked(service: Service) -> None:
    """Without transactions such a write is refused before any of it is done."""
    create = {"op": "create", "resource": "things", "id": _ID, "data": {"name": "pen"}}
    answer = await service.transact(create, create)
    assert (answer.status_code, answer.json()["code"]) == (
        (409, "UNIQUE_VIOLATION")
        if service.store.capabilities.transactions
        else (501, "TRANSACTIONS_UNAVAILABLE")
    )
    assert service.stored("things") == []


# ── limits and faults ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("details", [{"n": 2**63}, {"a\x00b": 1}], ids=["integer", "zero byte"])
async def test_a_value_that_bson_cannot_hold_is_refused(service: Service, details: dict[str, Any]) -> None:
    """It is the caller's mistake, not a failure of the database."""
    answer = await service.send("POST", "/v1/things", {"name": "pen", "details": details})
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION"), answer.text


async def test_a_deadline_that_has_passed_stops_before_the_database(service: Service) -> None:
    """Nothing is written for a caller that has left."""
    answer = await service.send("POST", "/v1/things", {"name": "pen"}, x_request_timeout="0")
    assert answer.status_code == 504
    assert service.stored("things") == []


async def test_a_second_replica_finds_indexes_and_signing_key(service: Service) -> None:
    """A page token of one replica is good for the other."""
    await service.create("a")
    await service.create("b")
    page = (await service.get("/v1/things?page_size=1")).json()
    async with running(service.url) as other:
        rest = (await other.get(f"/v1/things?page_size=1&page_token={page['next_page_token']}")).json()
        assert [item["name"] for item in rest["items"]] == ["b"]
        assert (await other.send("POST", "/v1/things", {"name": "a"}, key="another")).status_code == 409


@pytest.mark.parametrize("name", ["hk_keys", "system.views", "a$b"])
def test_a_collection_of_somebody_else_is_refused(name: str) -> None:
    """The service's own has everybody's answers and events."""
    with pytest.raises(DeclarationError, match="call it otherwise"):
        create_data_service(MongoSettings, {THINGS: DocumentCollection(name=name)})


@pytest.mark.parametrize("name", ["a.b", "$a"])
def test_a_field_that_mongodb_takes_for_something_else_is_refused(name: str) -> None:
    """Dots and dollars would be paths and operators."""
    fields: dict[str, Any] = {name: (int, 0)}
    record: Any = create_model("Odd", __base__=Record[str], **fields)
    odd: Any = Resource("odd", record=record, create=BaseModel, update=BaseModel)
    with pytest.raises(DeclarationError, match="call it otherwise"):
        create_data_service(MongoSettings, {odd: DocumentCollection()})


def test_an_index_over_an_unknown_field_is_refused() -> None:
    """The service doesn't start with an index that no record fills."""
    with pytest.raises(DeclarationError, match="'colour', which no record has"):
        create_data_service(MongoSettings, {THINGS: DocumentCollection(indexes=(DocumentIndex("colour"),))})
    with pytest.raises(DeclarationError, match="at least one field"):
        DocumentIndex()
