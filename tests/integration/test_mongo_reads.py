"""Reading from MongoDB beyond single records: exports, counts, aggregations and pipelines, with SQL's answers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pydantic import BaseModel

from hybridkit.codec import Timestamp, decode_json, encode_json
from hybridkit.context import RequestContext, bind
from hybridkit.dataservice import DocumentCollection, DocumentIndex
from hybridkit.dataservice._mongo import _reader as reads
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._store import MongoStore, open_mongo_store
from hybridkit.dataservice._store._operations import (
    CallAnswer,
    Create,
    Delete,
    Undelete,
    Update,
    Upsert,
    Write,
)
from hybridkit.errors import (
    DeadlinePassedError,
    InvalidQueryError,
    NotFoundError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.resources import (
    Aggregation,
    Compare,
    Query,
    Record,
    Resource,
    average,
    count,
    distinct,
    largest,
    smallest,
    total,
)


class NewSale(BaseModel):
    status: str | None = None
    price: Decimal | None = None
    quantity: int | None = None
    sold_at: Timestamp | None = None
    tags: list[str] = []


class Sale(NewSale, Record[str]):
    pass


FIELDS = ("status", "price", "quantity", "sold_at", "tags", "created_at")
SALES = Resource(
    "sales", record=Sale, create=NewSale, update=NewSale, filterable=FIELDS, sortable=FIELDS, soft_delete=True
)


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[MongoStore]:
    indexes = (DocumentIndex("status", "-created_at"),)
    collections = {"sales": ResourceCollection(SALES, DocumentCollection(indexes=indexes))}
    async with open_mongo_store(url, collections, name="test") as store:
        yield store


@pytest.fixture
async def store(each_mongo_url: str) -> AsyncIterator[MongoStore]:
    async with opened(each_mongo_url) as store:
        yield store


async def do(store: MongoStore, operation: Any) -> dict[str, Any]:
    key = uuid4().hex
    outcome = await store.write(
        Write(caller="test", key=key, fingerprint=key.encode(), operations=(operation,))
    )
    return dict(outcome.results[0].record or {})


async def sell(store: MongoStore, record_id: str, **values: Any) -> dict[str, Any]:
    return await do(store, Create(resource=SALES, id=record_id, values={"tags": [], **values}))


@pytest.fixture
async def sales(store: MongoStore) -> MongoStore:
    """Six records, one of them hidden."""
    await sell(store, "a", status="paid", price=Decimal("1.50"), quantity=1, tags=["new", "red"])
    await sell(store, "b", status="paid", price=Decimal("2.25"), quantity=2)
    await sell(store, "c", status="open", price=Decimal("10.00"))
    await sell(store, "d", price=Decimal("0.10"), quantity=4)
    await sell(store, "e", status="open", quantity=5)
    await sell(store, "hidden", status="paid", price=Decimal(1000), quantity=1000)
    await do(store, Delete(resource=SALES, id="hidden"))
    return store


# ── exports and counts ───────────────────────────────────────────────────────────────────────────


async def test_an_export_is_every_record_in_pieces(
    sales: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is what a read of that record answers; hidden ones are not among them."""
    monkeypatch.setattr(reads, "PIECE_RECORDS", 2)
    query = Query(order=(("price", "desc"),))
    pieces = [piece async for piece in sales.export(SALES, query)]
    assert [piece.records for piece in pieces] == [2, 2, 1]
    lines = b"".join(piece.body for piece in pieces).splitlines()
    assert [orjson.loads(line)["id"] for line in lines] == ["e", "c", "b", "a", "d"]
    read = [await sales.get(SALES, orjson.loads(line)["id"]) for line in lines]
    assert lines == [found.body for found in read if found]


async def test_a_piece_of_an_export_ends_by_its_bytes(
    sales: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large records are not collected by the hundred."""
    monkeypatch.setattr(reads, "PIECE_BYTES", 300)
    pieces = [piece async for piece in sales.export(SALES, Query())]
    assert sum(piece.records for piece in pieces) == 5
    assert len(pieces) > 1
    for piece in pieces:
        *before_the_last, _ = piece.body.splitlines(keepends=True)
        assert sum(map(len, before_the_last)) < 300


async def test_a_reader_that_leaves_closes_the_cursor(
    sales: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server doesn't keep a cursor for an export that nobody reads."""
    monkeypatch.setattr(reads, "PIECE_RECORDS", 1)
    closed: list[Any] = []
    close = reads._close

    async def noted(cursor: Any) -> None:
        await close(cursor)
        closed.append(cursor.alive)

    monkeypatch.setattr(reads, "_close", noted)
    export = sales.export(SALES, Query())
    await anext(export)
    await export.aclose()
    assert closed == [False]


async def test_each_piece_has_the_deadline_and_not_the_whole(
    sales: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export may take longer than its caller's deadline as long as each chunk comes in time."""
    monkeypatch.setattr(reads, "PIECE_RECORDS", 1)
    with bind(RequestContext().within(0.4)):
        export = sales.export(SALES, Query())
        for _ in range(5):
            assert (await anext(export)).records == 1
            await asyncio.sleep(0.15)
        await export.aclose()


async def test_an_estimate_leaves_out_what_is_hidden(sales: MongoStore) -> None:
    """With a filter the estimate is a count."""
    assert await sales.count(SALES, None, exact=True) == 5
    assert await sales.count(SALES, None, exact=False) == 5
    assert await sales.count(SALES, Compare("status", "eq", "paid"), exact=False) == 2


async def test_many_records_come_in_the_order_of_their_ids(sales: MongoStore) -> None:
    """Hidden and unknown ones are null, and an id may be asked for twice."""
    found = orjson.loads(await sales.get_many(SALES, ["c", "nobody", "a", "hidden", "c"]))
    assert [record and record["id"] for record in found] == ["c", None, "a", None, "c"]


# ── aggregations ─────────────────────────────────────────────────────────────────────────────────


async def rows(store: MongoStore, **aggregation: Any) -> list[dict[str, Any]]:
    return list(orjson.loads(await store.aggregate(SALES, Aggregation(**aggregation))))


async def test_groups_are_those_of_sql(sales: MongoStore) -> None:
    """No value is a group of its own and comes last; sums over nothing are null; decimals are exact texts."""
    functions = {
        "n": count(),
        "sum": total("price"),
        "mean": average("price"),
        "quantities": distinct("quantity"),
    }
    assert await rows(sales, group_by=("status",), functions=functions) == [
        {"status": "open", "n": 2, "sum": "10.00", "mean": "10", "quantities": 1},
        {"status": "paid", "n": 2, "sum": "3.75", "mean": "1.875", "quantities": 2},
        {"status": None, "n": 1, "sum": "0.10", "mean": "0.1", "quantities": 1},
    ]


async def test_sums_and_averages_over_nothing_are_null_and_sorted_so(sales: MongoStore) -> None:
    """MongoDB's own sum of nothing would be 0, and come first."""
    functions = {"sum": total("quantity"), "mean": average("quantity"), "n": distinct("quantity")}
    for order in ("sum", "mean"):
        found = await rows(sales, group_by=("id",), functions=functions, order=((order, "asc"),))
        assert [row["id"] for row in found] == ["a", "b", "d", "e", "c"]
        assert found[-1] == {"id": "c", "sum": None, "mean": None, "n": 0}


async def test_an_order_by_a_result_has_nothing_last(sales: MongoStore) -> None:
    """A result without a value comes last, or first when descending, as in SQL."""
    functions = {"least": smallest("quantity"), "most": largest("price")}
    found = await rows(sales, group_by=("id",), functions=functions, order=(("most", "asc"),), limit=5)
    assert [(row["id"], row["most"], row["least"]) for row in found] == [
        ("d", "0.10", 4),
        ("a", "1.50", 1),
        ("b", "2.25", 2),
        ("c", "10.00", None),
        ("e", None, 5),
    ]
    found = await rows(sales, group_by=("id",), functions=functions, order=(("most", "desc"),), limit=2)
    assert [row["id"] for row in found] == ["e", "c"]


@pytest.mark.parametrize(("where", "n", "mean"), [(None, 5, 3.0), (Compare("status", "eq", "none"), 0, None)])
async def test_without_groups_there_is_one_row(sales: MongoStore, where: Any, n: int, mean: Any) -> None:
    """There is one over no records too, with a count of 0."""
    [row] = await rows(sales, functions={"n": count(), "mean": average("quantity")}, where=where)
    assert row == {"n": n, "mean": mean}


async def test_an_average_of_decimals_has_the_digits_that_postgresql_gives(store: MongoStore) -> None:
    """It is computed from sums and counts, as MongoDB's average has 34 digits."""
    for record_id, price in (("a", "1"), ("b", "1"), ("c", "8.00")):
        await sell(store, record_id, price=Decimal(price))
    [row] = await rows(store, functions={"mean": average("price")})
    assert row["mean"] == "3.3333333333333333"


async def test_a_sum_of_integers_is_exact_beyond_64_bits(store: MongoStore) -> None:
    """And an integer, however small; the average stays a float."""
    most = 2**63 - 1
    for record_id in "abc":
        await sell(store, record_id, quantity=most)
    functions = {"sum": total("quantity"), "mean": average("quantity")}
    body = await store.aggregate(SALES, Aggregation(functions=functions))
    assert decode_json(body) == [{"sum": 3 * most, "mean": float(most)}]


@pytest.mark.parametrize("function", [total("status"), average("created_at")])
async def test_what_is_no_number_has_no_sum(sales: MongoStore, function: Any) -> None:
    """A text and a time are refused, as SQL refuses them."""
    with pytest.raises(InvalidQueryError, match="no number"):
        await rows(sales, functions={"x": function})


# ── pipelines ────────────────────────────────────────────────────────────────────────────────────


async def run(store: MongoStore, *stages: Any) -> list[Any]:
    return list(orjson.loads(await store.run_pipeline(SALES, stages)))


async def test_a_pipeline_sees_records_and_nothing_else(sales: MongoStore) -> None:
    """Neither hidden records nor the bookkeeping of documents can be found."""
    found = await run(sales, {"$match": {"status": "paid"}}, {"$sort": {"id": 1}})
    assert [record["id"] for record in found] == ["a", "b"]
    assert found[0]["price"] == "1.50"
    assert found[0].keys() <= Sale.model_fields.keys() - {"etag"}


async def test_every_allowed_stage_runs(sales: MongoStore) -> None:
    """The server takes each stage in the form that the checks give it."""
    group = {"$group": {"_id": {"status": "$status"}, "sum": {"$sum": "$price"}, "n": {"$count": {}}}}
    found = await run(
        sales,
        {"$match": {"price": {"$gte": "0.50"}, "created_at": {"$gt": "2020-01-01T00:00:00Z"}}},
        {"$addFields": {"double": {"$multiply": ["$price", 2]}}},
        {"$set": {"day": {"$dateToString": {"date": "$created_at", "format": "%Y"}}}},
        {"$match": {"$expr": {"$gt": ["$double", 1]}}},
        group,
        {"$project": {"_id": 0, "status": "$_id.status", "sum": 1, "n": 1}},
        {"$sort": {"status": 1}},
        {"$skip": 0},
        {"$limit": 10},
    )
    assert found == [{"status": "open", "sum": "10.00", "n": 1}, {"status": "paid", "sum": "3.75", "n": 2}]
    buckets = {"groupBy": "$quantity", "boundaries": [0, 3, 10], "default": "none"}
    [facets] = await run(
        sales,
        {
            "$facet": {
                "tags": [{"$unwind": "$tags"}, {"$match": {"tags": "red"}}, {"$count": "n"}],
                "by": [{"$sortByCount": "$status"}, {"$sort": {"_id": 1}}],
                "sizes": [{"$bucket": buckets}],
                "one": [{"$sample": {"size": 1}}, {"$count": "n"}],
            }
        },
    )
    assert facets["tags"] == facets["one"] == [{"n": 1}]
    assert sum(row["count"] for row in facets["by"]) == sum(row["count"] for row in facets["sizes"]) == 5


async def test_a_pipeline_compares_with_the_value_that_was_given(sales: MongoStore) -> None:
    """Also with one that BSON doesn't have: moments are not cut before they are compared."""
    between = "2026-01-15T10:30:00.0015Z"
    for at, record_id in enumerate("abc"):
        moment = datetime(2026, 1, 15, 10, 30, 0, at * 1000, tzinfo=UTC)
        await do(sales, Update(resource=SALES, id=record_id, changes={"sold_at": moment}))
    cases: list[tuple[Any, str]] = [
        (between, ""),
        ({"$eq": between}, ""),
        ({"$ne": between}, "abcde"),
        ({"$gt": between}, "c"),
        ({"$gte": between}, "c"),
        ({"$lt": between}, "ab"),
        ({"$lte": between}, "ab"),
        ({"$not": {"$lt": between}}, "cde"),
        ({"$in": [between, "2026-01-15T10:30:00.002Z"]}, "c"),
        ({"$nin": [between]}, "abcde"),
    ]
    for wanted, ids in cases:
        for before in ([], [{"$sort": {"id": 1}}]):
            found = await run(sales, *before, {"$match": {"sold_at": wanted}})
            assert sorted(row["id"] for row in found) == list(ids), wanted


async def test_what_the_server_cannot_run_is_the_callers_mistake(sales: MongoStore) -> None:
    """A division by zero is a bad query, not a failure of the database."""
    with pytest.raises(InvalidQueryError, match="can't run this pipeline"):
        await run(sales, {"$project": {"x": {"$divide": ["$price", 0]}}})


async def test_a_result_has_a_size(sales: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline with too many results is refused rather than cut off."""
    monkeypatch.setattr(reads, "MAX_DOCUMENTS", 3)
    with pytest.raises(InvalidQueryError, match="more than 3 documents"):
        await run(sales, {"$sort": {"id": 1}})
    assert len(await run(sales, {"$limit": 3})) == 3


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_asks_with_the_drivers_database(sales: MongoStore) -> None:
    """It counts hidden documents too, and ends by the caller's deadline."""

    async def work(database: Any) -> CallAnswer:
        return CallAnswer(encode_json({"n": await database["sales"].count_documents({})}))

    assert await sales.ask(work) == b'{"n":6}'
    with bind(RequestContext().within(0)), pytest.raises(DeadlinePassedError):
        await sales.ask(work)


async def test_without_transactions_a_call_runs_at_least_once_and_answers_once(store: MongoStore) -> None:
    """A crash lets a retry run it again; after an answer the key has it."""
    runs: list[int] = []

    async def work(database: Any) -> CallAnswer:
        runs.append(await database["sales"].count_documents({}))
        if len(runs) == 1:
            raise ConnectionError("the process died")
        return CallAnswer(b'{"run":%d}' % len(runs))

    call = Write(caller="test", key="k", fingerprint=b"f", call=work)
    with pytest.raises(ConnectionError):
        await store.write(call)
    answers = [await store.write(call) for _ in range(2)]
    assert [answer.answer for answer in answers] == [b'{"run":2}', b'{"run":2}']
    assert [answer.replayed for answer in answers] == [False, True]


# ── hidden records ───────────────────────────────────────────────────────────────────────────────


async def test_a_hidden_record_comes_back_as_it_was(sales: MongoStore) -> None:
    """An undelete counts a version, and a second one changes nothing."""
    assert await sales.get(SALES, "hidden") is None
    with pytest.raises(NotFoundError):
        await do(sales, Update(resource=SALES, id="hidden", changes={"quantity": 1}))
    back = await do(sales, Undelete(resource=SALES, id="hidden"))
    assert (back["quantity"], back["version"]) == (1000, 3)
    again = await do(sales, Undelete(resource=SALES, id="hidden", if_match=back["etag"]))
    assert again == back
    with pytest.raises(NotFoundError):
        await do(sales, Undelete(resource=SALES, id="nobody"))
    with pytest.raises(StaleVersionError):
        await do(sales, Undelete(resource=SALES, id="hidden", if_match='"1-1"'))


@pytest.mark.parametrize("kind", [Create, Upsert])
async def test_the_id_of_a_hidden_record_is_taken(sales: MongoStore, kind: Any) -> None:
    """Neither a create nor an upsert replaces what an undelete could bring back."""
    with pytest.raises(UniqueViolationError) as refused:
        await do(sales, kind(resource=SALES, id="hidden", values={}))
    assert refused.value.fields == ("id",)


async def test_clean_up_never_takes_a_hidden_record(sales: MongoStore) -> None:
    """Only tombstones of hard deletes are deleted, however old."""
    long_ago = {"$set": {"_hk.deleted_at": datetime(2020, 1, 1, tzinfo=UTC)}}
    await sales._database["sales"].update_many({"_id": "hidden"}, long_ago)
    assert await sales.clean() == 0
    assert (await do(sales, Undelete(resource=SALES, id="hidden")))["quantity"] == 1000
