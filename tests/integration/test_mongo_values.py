"""What MongoDB holds can be read by every path and ordered by, whatever its type, and whoever has stored it."""

import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.regex import Regex
from pydantic import BaseModel
from pymongo import MongoClient

from hybridkit.codec import decode_json
from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl


class NewBox(BaseModel):
    id: str
    name: str = ""
    code: str | None = None
    owner__id: str | None = None
    score: float | None = None
    count: int = 0
    tags: list[str] = []
    anything: Any = None
    doc: dict[str, Any] | None = None


class Box(NewBox, Record[str]):
    pass


BOXES = Resource(
    "boxes",
    record=Box,
    create=NewBox,
    update=NewBox,
    filterable=("name", "count", "anything", "doc", "doc.size"),
    sortable=("name", "score", "tags", "anything", "doc.size", "doc.parts.size", "created_at", "version"),
)
COLLECTION = DocumentCollection(
    indexes=(
        DocumentIndex("code", unique=True),
        DocumentIndex("name"),
        DocumentIndex("owner__id", "-doc.größe", unique=True),
    )
)

FOREIGN: Mapping[str, tuple[Any, Any]] = {
    "id": (ObjectId("65a4f1e2c3b4a5968778695a"), {"$oid": "65a4f1e2c3b4a5968778695a"}),
    "regex": (Regex("a", "i"), {"$regularExpression": {"pattern": "a", "options": "i"}}),
    "code": (Code("f"), {"$code": "f"}),
    "scope": (
        Code("f", {"a": ObjectId("65a4f1e2c3b4a5968778695a")}),
        {"$code": "f", "$scope": {"a": {"$oid": "65a4f1e2c3b4a5968778695a"}}},
    ),
    "least": (MinKey(), {"$minKey": 1}),
    "greatest": (MaxKey(), {"$maxKey": 1}),
    "clock": (Timestamp(1, 2), {"$timestamp": {"t": 1, "i": 2}}),
    "bytes": (b"\xff", {"$binary": {"base64": "/w==", "subType": "00"}}),
    "kind of bytes": (Binary(b"a", 5), {"$binary": {"base64": "YQ==", "subType": "05"}}),
    "text as bytes": (b"abc", "abc"),
    "no number": (Decimal128("NaN"), "NaN"),
    "no end": (Decimal128("-Infinity"), "-Infinity"),
    "nan": (float("nan"), None),
    "long": (Int64(2**63 - 1), 2**63 - 1),
    "uuid": (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "reference": ({"$ref": "a", "$id": ObjectId("65a4f1e2c3b4a5968778695a"), "$db": "b"}, None),
}
FAR: Mapping[str, Any] = {"year 36 million": DatetimeMS(2**60), "long ago": DatetimeMS(-(2**60))}


class Service:
    def __init__(self, http: httpx.AsyncClient, url: str, *, dates_are_checked: bool) -> None:
        self.http = http
        self.url = url
        self.dates_are_checked = dates_are_checked

    async def send(self, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {"idempotency-key": uuid4().hex}
        return await self.http.request(method, path, content=orjson.dumps(body), headers=headers)

    async def create(self, record_id: str, **values: Any) -> dict[str, Any]:
        answer = await self.send("POST", "/v1/boxes", {"id": record_id, **values})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def items(self, **params: str) -> list[dict[str, Any]]:
        answer = await self.http.get("/v1/boxes", params=params)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])

    async def pages(self, order: str, *, size: int = 2) -> list[str]:
        """The ids of all records, page by page."""
        found: list[str] = []
        token: dict[str, str] = {}
        for _ in range(100):
            params = {"order": order, "page_size": str(size), **token}
            answer = await self.http.get("/v1/boxes", params=params)
            assert answer.status_code == 200, answer.text
            found += [item["id"] for item in answer.json()["items"]]
            if answer.json()["next_page_token"] is None:
                return found
            token = {"page_token": answer.json()["next_page_token"]}
        raise AssertionError("the pages don't end")

    def store(self, record_id: str, change: Mapping[str, Any]) -> None:
        """What another program does to a document."""
        with MongoClient[dict[str, Any]](self.url, uuidRepresentation="standard") as client:
            client.get_default_database()["boxes"].update_one({"_id": record_id}, change)

    def insert(self, *documents: Mapping[str, Any]) -> None:
        """Documents of another program."""
        with MongoClient[dict[str, Any]](self.url, uuidRepresentation="standard") as client:
            client.get_default_database()["boxes"].insert_many([dict(document) for document in documents])


@pytest.fixture
async def service(each_mongo_url: str) -> AsyncIterator[Service]:
    app = create_data_service(MongoSettings, {BOXES: COLLECTION})
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(each_mongo_url)
    )
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    async with app.router.lifespan_context(app), http:
        transactions = app.state.store.capabilities.transactions
        yield Service(http, each_mongo_url, dates_are_checked=transactions)


# ── written by callers ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "doc",
    [
        {"$ref": "#/x", "$id": 1},
        {"$id": 1, "$ref": "#/x", "more": {"$ref": "y", "$id": {"$ref": "z", "$id": None}}},
        {"$ref": "a", "$id": 1, "$db": "b"},
        {"$ref": 1, "$id": 1},
        {"$ref": "a"},
        {"in": [{"$ref": "a", "$id": 1}]},
        {"$oid": "65a4f1e2c3b4a5968778695a"},
        {"$date": "2026-01-15T10:30:00Z", "$numberDecimal": "1"},
        {"$gt": {"$in": [1]}, "a.b": {"c.d": 1}, "": {"": 1}, "$": 1},
        {"_id": 1, "_hk": {"deleted_at": 1}},
        {"n": [2**63 - 1, -(2**63), 1.5, -0.0, 1e308, 5e-324, True, None, "a\x00b"]},
    ],
    ids=str,
)
async def test_any_document_of_json_is_there_again_by_every_path(
    service: Service, doc: dict[str, Any]
) -> None:
    """Whatever its keys mean to MongoDB."""
    await service.create("other")
    created = await service.send("POST", "/v1/boxes", {"id": "a", "doc": doc, "anything": [doc]})
    assert (created.status_code, created.json()["doc"], created.json()["anything"]) == (201, doc, [doc])
    assert (await service.http.get("/v1/boxes/a")).content == created.content
    assert await service.items(order="name") == [created.json(), *(await service.items())[1:]]
    many = await service.send("POST", "/v1/boxes:batch_get", {"ids": ["a", "other"]})
    assert many.json()["items"][0] == created.json()
    exported = await service.http.get("/v1/boxes", headers={"accept": "application/x-ndjson"})
    assert orjson.loads(exported.content.splitlines()[0]) == created.json()
    changed = await service.send("PATCH", "/v1/boxes/a", {"id": "a", "doc": {"added": 1}})
    assert changed.json()["doc"] == {**doc, "added": 1}
    replaced = await service.send("PUT", "/v1/boxes/a", {"id": "a", "doc": {"again": doc}})
    assert replaced.json()["doc"] == {"again": doc}


async def test_a_reference_that_drivers_would_change_is_refused(service: Service) -> None:
    """A DBRef whose database is null would come back without that member."""
    answer = await service.send("POST", "/v1/boxes", {"id": "a", "doc": {"$ref": "a", "$id": 1, "$db": None}})
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")


@pytest.mark.parametrize("length", [3_000, 9_000, 200_000])
async def test_a_value_that_is_too_long_for_an_index_is_the_callers(service: Service, length: int) -> None:
    """A server either takes it or refuses it; what it takes is there."""
    text = "".join(uuid4().hex for _ in range(length // 32))
    for answer in (
        await service.send("POST", "/v1/boxes", {"id": text}),
        await service.send("POST", "/v1/boxes", {"id": "code", "code": text}),
        await service.send("POST", "/v1/boxes", {"id": "name", "name": text}),
        await service.send("PUT", "/v1/boxes/code", {"id": "code", "code": text}),
        await service.send(
            "POST",
            "/v1:transact",
            {"operations": [{"op": "upsert", "resource": "boxes", "id": text, "data": {"id": text}}]},
        ),
    ):
        assert answer.status_code in (200, 201, 422), answer.text
    stored = {item["id"] for item in await service.items()}
    assert stored <= {text, "code", "name"}


async def test_a_value_that_is_taken_is_named_whatever_its_fields_are_called(service: Service) -> None:
    """FerretDB tells the name of the index, which is made of theirs."""
    values: dict[str, Any] = {"owner__id": "x", "doc": {"größe": 1}}
    await service.create("a", **values)
    answer = await service.send("POST", "/v1/boxes", {"id": "b", **values})
    assert (answer.status_code, answer.json()["code"]) == (409, "UNIQUE_VIOLATION")
    assert answer.json()["fields"] == ["owner__id", "doc.größe"]
    taken = await service.send("POST", "/v1/boxes", {"id": "a"})
    assert (taken.status_code, taken.json()["fields"]) == (409, ["id"])


async def test_a_document_is_compared_as_one_value_whatever_its_members_are_called(service: Service) -> None:
    """Members with a dollar are compared, not run as operators."""
    docs: dict[str, Any] = {"a": {"$gt": 1, "b": 2}, "b": {"x": 1}, "c": {"$ref": "a", "$id": 1}, "d": None}
    for record_id, doc in docs.items():
        await service.create(record_id, doc=doc, anything=doc)
    cases: list[tuple[Any, list[str]]] = [
        ({"eq": docs["a"]}, ["a"]),
        ({"neq": docs["a"]}, ["b", "c"]),
        ({"in": [docs["a"], docs["c"]]}, ["a", "c"]),
        ({"not eq": docs["c"]}, ["a", "b"]),
        ({"not neq": docs["c"]}, ["c"]),
        ({"not in": [docs["a"], docs["b"]]}, ["c"]),
    ]
    for field, (condition, ids) in itertools.product(("doc", "anything"), cases):
        ((operator, value),) = condition.items()
        where: Any = {operator.removeprefix("not "): [field, value]}
        where = {"not": where} if operator.startswith("not ") else where
        answer = await service.send("POST", "/v1/boxes:query", {"where": where, "order": [["id", "asc"]]})
        assert answer.status_code == 200, (where, answer.text)
        assert [item["id"] for item in answer.json()["items"]] == ids, where


# ── stored by others ─────────────────────────────────────────────────────────────────────────────


async def test_what_json_does_not_know_is_read_as_extended_json(service: Service) -> None:
    """One such value hides neither its record nor the others, and a patch of something else leaves it as it is."""
    await service.create("other")
    await service.create("a", doc={"size": 1})
    far = {} if service.dates_are_checked else FAR
    values = {name: stored for name, (stored, _) in FOREIGN.items()} | dict(far)
    service.store("a", {"$set": {f"doc.{name}": value for name, value in values.items()}})
    expected = {name: shown for name, (_, shown) in FOREIGN.items()} | {"size": 1}
    expected["reference"] = {"$ref": "a", "$id": {"$oid": "65a4f1e2c3b4a5968778695a"}, "$db": "b"}
    expected |= {name: {"$date": {"$numberLong": str(int(value))}} for name, value in far.items()}

    read = (await service.http.get("/v1/boxes/a")).json()
    assert read["doc"] == expected
    assert [item["id"] for item in await service.items()] == ["a", "other"]
    many = await service.send("POST", "/v1/boxes:batch_get", {"ids": ["other", "a"]})
    assert many.json()["items"][1] == read
    exported = await service.http.get("/v1/boxes", headers={"accept": "application/x-ndjson"})
    assert orjson.loads(exported.content.splitlines()[0]) == read
    changed = await service.send("PATCH", "/v1/boxes/a", {"id": "a", "doc": {"size": 2}})
    assert (changed.status_code, changed.json()["doc"]) == (200, {**expected, "size": 2})
    with MongoClient[dict[str, Any]](service.url) as client:
        [stored] = client.get_default_database()["boxes"].find({"_id": "a"}, {"doc.id": 1, "doc.clock": 1})
        assert stored["doc"] == {name: FOREIGN[name][0] for name in ("id", "clock")}


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "nan"])
async def test_groups_and_extremes_show_what_json_does_not_know(service: Service, name: str) -> None:
    """A value of BSON's own is shown as Extended JSON in groups, extremes and pipelines."""
    await service.create("a", name="x", doc={"size": 1})
    service.store("a", {"$set": {"doc.size": FOREIGN[name][0]}})
    for body in (
        {"group_by": ["doc.size"], "functions": {"n": ["count"]}},
        {"group_by": ["name"], "functions": {"n": ["max", "doc.size"], "m": ["min", "doc.size"]}},
        {"pipeline": [{"$group": {"_id": "$doc.size"}}]},
    ):
        answer = await service.send("POST", "/v1/boxes:aggregate", body)
        assert answer.status_code == 200, answer.text


SUMS: tuple[tuple[list[Any], Any, Any], ...] = (
    ([2**62, 2**62, 2**62 + 1], 3 * 2**62 + 1, float(2**62)),
    ([Int64(1), 2], 3, 1.5),
    ([1, 2.5], 3.5, 1.75),
    ([2, Decimal128("2.5")], "4.5", "2.25"),
    ([1, float("nan")], None, None),
    ([1, Decimal128("-Infinity")], "-Infinity", "-Infinity"),
    ([Decimal128("3E+6000")], "3" + "0" * 6000, "3" + "0" * 6000),
    ([None, None], None, None),
)


@pytest.mark.parametrize("field", ["count", "doc.size"])
async def test_sums_are_of_all_numbers_that_are_stored(service: Service, field: str) -> None:
    """Integers alone make an integer, of any size and also inside of documents; what else there is, is no failure."""
    for at, (values, _, _) in enumerate(SUMS):
        service.insert(*({"name": f"{at}", "count": value, "doc": {"size": value}} for value in values))
    functions = {"total": ["sum", field], "mean": ["avg", field]}
    answer = await service.send("POST", "/v1/boxes:aggregate", {"group_by": ["name"], "functions": functions})
    expected = [{"name": f"{at}", "total": total, "mean": mean} for at, (_, total, mean) in enumerate(SUMS)]
    assert decode_json(answer.content) == {"items": expected}


async def test_a_document_that_no_data_service_has_stored_is_a_record(service: Service) -> None:
    """It has version 1 until it is changed, and hides no other."""
    await service.create("other")
    with MongoClient[dict[str, Any]](service.url) as client:
        client.get_default_database()["boxes"].insert_one({"_id": "a", "name": "old", "doc": {"size": 1}})
    [read, _] = await service.items()
    assert (read["id"], read["name"], read["version"]) == ("a", "old", 1)
    changed = await service.send("PATCH", "/v1/boxes/a", {"id": "a", "doc": {"more": 2}})
    assert (changed.json()["version"], changed.json()["doc"]) == (2, {"size": 1, "more": 2})
    assert (await service.send("DELETE", "/v1/boxes/a")).status_code == 204
    assert [item["id"] for item in await service.items()] == ["other"]


@pytest.mark.parametrize("version", [{"$gt": 0}, Regex("a"), "x", None, [1], Decimal128("2")], ids=str)
async def test_a_record_can_be_changed_whatever_its_version_is(service: Service, version: Any) -> None:
    """A version that something else has stored counts as 1."""
    await service.create("a")
    service.store("a", {"$set": {"version": version}})
    changed = await service.send("PATCH", "/v1/boxes/a", {"id": "a", "name": "b"})
    assert (changed.status_code, changed.json().get("version")) == (200, 2), changed.text


@pytest.mark.parametrize(
    "hidden", [{"incarnation": 2.0**61}, {"incarnation": "x"}, {"keys": None}, {"events": None}, 1], ids=str
)
async def test_a_record_is_read_and_changed_whatever_became_of_its_bookkeeping(
    service: Service, hidden: Any
) -> None:
    """A shell that stores a document again makes floats of large integers; that hides no record."""
    await service.create("a")
    service.store("a", {"$set": {"_hk": hidden}})
    [read] = await service.items()
    changed = await service.send("PATCH", "/v1/boxes/a", {"id": "a", "name": "b"})
    assert (changed.status_code, changed.json()["version"]) == (200, read["version"] + 1), changed.text
    assert (await service.http.get("/v1/boxes/a")).content == changed.content


# ── order ────────────────────────────────────────────────────────────────────────────────────────

OF_ALL_KINDS: tuple[Any, ...] = (
    *(3, 2.5, 10, 3, 3.0, -1, 0),
    *("x", "a", "", "x"),
    *(True, False, True),
    *(None, None),
    *([1, 2], [], [3], ["a"], [None], [[1]]),
    *({"a": 1}, {}, {"a": 1}, {"$ref": "a", "$id": 1}),
)


ORDERS = ("doc.size", "name,doc.size", "doc.size,name", "anything", "doc.parts.size")


async def test_pages_have_every_record_once_and_in_order(service: Service) -> None:
    """Values of all types, arrays and objects, ties, and records without a value; in both directions."""
    foreign = [value for name, (value, _) in FOREIGN.items() if name != "text as bytes"]
    for number, value in enumerate(OF_ALL_KINDS):
        doc = None if value is None else {"size": value, "parts": [{"size": value}]}
        await service.create(f"{number:02}", doc=doc, anything=value, name=str(number % 3))
    for number, value in enumerate(foreign, len(OF_ALL_KINDS)):
        await service.create(f"{number:02}", doc={}, name=str(number % 3))
        service.store(f"{number:02}", {"$set": {"doc.size": value, "anything": value}})
    for fields, direction in itertools.product(ORDERS, ("asc", "desc")):
        order = ",".join(f"{field}.{direction}" for field in fields.split(","))
        whole = [item["id"] for item in await service.items(order=order, page_size="500")]
        assert len(set(whole)) == len(whole) == len(OF_ALL_KINDS) + len(foreign)
        assert await service.pages(order, size=3) == whole, order
    without = [f"{number:02}" for number, value in enumerate(OF_ALL_KINDS) if value is None]
    items = await service.items(order="doc.size", page_size="500")
    assert [item["id"] for item in items][-len(without) :] == without


async def test_pages_of_declared_fields_have_every_record_once(service: Service) -> None:
    """Lists are compared as wholes, and numbers that are none come before all that are one."""
    tags = [[], ["b"], ["a", "c"], ["b"], ["a"], ["c", "a"]]
    for number, (these, score) in enumerate(itertools.product(tags, [1.5, None])):
        await service.create(f"{number:02}", tags=these, score=score)
    for number, value in ((0, float("nan")), (2, float("inf")), (4, float("-inf"))):
        service.store(f"{number:02}", {"$set": {"score": value}})
    for order in ("tags", "tags.desc", "score", "score.desc", "score,tags.desc", "score.desc,tags"):
        whole = [item["id"] for item in await service.items(order=order, page_size="500")]
        assert len(set(whole)) == len(whole) == 12
        assert await service.pages(order, size=1) == whole, order


async def test_pages_of_a_declared_field_have_every_record_once_whatever_others_have_stored(
    service: Service,
) -> None:
    """Values of other types, none at all, and documents that no data service has stored."""
    values = [value for name, (value, _) in FOREIGN.items() if name != "reference"]
    values += [value for value in OF_ALL_KINDS if not isinstance(value, list | dict)]
    documents = [
        {"_id": f"{at:02}", "name": value, "created_at": value, "version": value, "score": value}
        for at, value in enumerate(values)
    ]
    service.insert(*documents, {"_id": "nothing"}, {"_id": ObjectId()}, {"_id": 1}, {"_id": UUID(int=1)})
    for field, direction in itertools.product(
        ("name", "created_at", "version", "score", "id"), ("asc", "desc")
    ):
        order = f"{field}.{direction}"
        whole = [item["id"] for item in await service.items(order=order, page_size="500")]
        assert len(whole) == len(documents) + 4
        assert await service.pages(order, size=4) == whole, order


@pytest.mark.parametrize("order", ["name", "name.desc", "version,name"])
@pytest.mark.parametrize("value", [["b", "d"], [], [["b"]]], ids=str)
async def test_pages_are_refused_where_a_list_stands_instead_of_a_value(
    service: Service, order: str, value: list[Any]
) -> None:
    """`$sort` takes one of its elements: a cursor by the list itself would pass it over, or tell it twice."""
    service.insert(*({"_id": name, "name": name} for name in "abcde"), {"_id": "list", "name": value})
    assert len(await service.items(order=order)) == 6
    params = {"order": order, "page_size": "1"}
    answer = await service.http.get("/v1/boxes", params=params)
    while answer.status_code == 200:
        token = answer.json()["next_page_token"]
        assert token is not None
        answer = await service.http.get("/v1/boxes", params={**params, "page_token": token})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_QUERY")
    assert answer.json()["errors"][0]["pointer"] == "/order"
