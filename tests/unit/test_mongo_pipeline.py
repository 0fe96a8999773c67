"""A caller's pipeline reaches only what the resource declares: whatever it says, the bookkeeping stays out of reach."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.codec import Timestamp
from hybridkit.dataservice import DocumentCollection
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._pipeline import MAX_STAGES, checked_pipeline
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Record, Resource


class NewSale(BaseModel):
    status: str
    price: float = 0
    secret: str = ""
    sold_at: Timestamp | None = None
    details: dict[str, Any] | None = None
    tags: list[str] = []


class Sale(NewSale, Record):
    pass


SALES = Resource(
    "sales",
    record=Sale,
    create=NewSale,
    update=NewSale,
    filterable=("status", "price", "sold_at", "details.size", "tags", "created_at"),
    sortable=("price",),
)
COLLECTION = ResourceCollection(SALES, DocumentCollection())


def checked(*stages: Any) -> list[dict[str, Any]]:
    return checked_pipeline(COLLECTION, list(stages))


GROUP = {"$group": {"_id": "$status", "total": {"$sum": "$price"}}}


@pytest.mark.parametrize(
    ("stages", "pointer"),
    [
        ([{"$out": "users"}], "/pipeline/0/$out"),
        ([{"$merge": {"into": "users"}}], "/pipeline/0/$merge"),
        ([{"$lookup": {"from": "users", "as": "x", "pipeline": []}}], "/pipeline/0/$lookup"),
        ([{"$graphLookup": {"from": "users"}}], "/pipeline/0/$graphLookup"),
        ([{"$unionWith": "hk_keys"}], "/pipeline/0/$unionWith"),
        ([{"$replaceRoot": {"newRoot": "$details"}}], "/pipeline/0/$replaceRoot"),
        ([{"$currentOp": {}}], "/pipeline/0/$currentOp"),
        ([{"$collStats": {}}], "/pipeline/0/$collStats"),
        ([{"$match": {"$where": "1"}}], "/pipeline/0/$match/$where"),
        ([{"$match": {"_hk.keys": {"$exists": True}}}], "/pipeline/0/$match/_hk.keys"),
        ([{"$match": {"secret": "x"}}], "/pipeline/0/$match/secret"),
        ([{"$match": {"details": {"size": 1}}}], "/pipeline/0/$match/details"),
        ([{"$match": {"status": {"$regex": "(a+)+$"}}}], "/pipeline/0/$match/status/$regex"),
        ([{"$match": {"status": {"$ne": {"$gt": 1}}}}], "/pipeline/0/$match/status/$ne"),
        ([{"$match": {"$or": [{"status": {"$function": {}}}]}}], "/pipeline/0/$match/$or/0/status/$function"),
        ([{"$limit": 1}, {"$match": {"$expr": {"$function": {}}}}], "/pipeline/1/$match/$expr/$function"),
        ([{"$group": {"_id": "$_hk"}}], "/pipeline/0/$group/_id"),
        ([{"$group": {"_id": "$$ROOT"}}], "/pipeline/0/$group/_id"),
        ([{"$group": {"_id": "$secret"}}], "/pipeline/0/$group/_id"),
        ([{"$group": {"_id": None, "x": {"$push": "$$CURRENT._hk"}}}], "/pipeline/0/$group/x/$push"),
        ([{"$group": {"_id": None, "x": {"$accumulator": {}}}}], "/pipeline/0/$group/x"),
        ([{"$group": {"_id": None, "_hk": {"$sum": 1}}}], "/pipeline/0/$group"),
        ([{"$group": {"total": {"$sum": 1}}}], "/pipeline/0/$group"),
        ([{"$project": {"secret": 1}}], "/pipeline/0/$project/secret"),
        ([{"$project": {"secret": 1.0}}], "/pipeline/0/$project/secret"),
        ([{"$project": {"x": {"secret": 1}}}], "/pipeline/0/$project/x"),
        ([{"$project": {"x": {"$getField": "_hk"}}}], "/pipeline/0/$project/x/$getField"),
        ([{"$addFields": {"x": {"$objectToArray": "$$ROOT"}}}], "/pipeline/0/$addFields/x/$objectToArray"),
        ([{"$addFields": {"x": {"$let": {"vars": {}, "in": "$$ROOT"}}}}], "/pipeline/0/$addFields/x/$let"),
        ([{"$addFields": {"a.b": 1}}], "/pipeline/0/$addFields"),
        ([{"$sort": {"_hk.incarnation": 1}}], "/pipeline/0/$sort/_hk.incarnation"),
        ([{"$unwind": "$_hk.keys"}], "/pipeline/0/$unwind"),
        ([{"$unwind": {"path": "$tags", "includeArrayIndex": "_hk"}}], "/pipeline/0/$unwind"),
        ([{"$facet": {"a": [{"$out": "x"}]}}], "/pipeline/0/$facet/a/0/$out"),
        ([{"$facet": {"a": [{"$facet": {"b": [{"$count": "n"}]}}]}}], "/pipeline/0/$facet/a/0/$facet"),
        ([GROUP, {"$sort": {"price": 1}}], "/pipeline/1/$sort/price"),
        ([{"$limit": True}], "/pipeline/0/$limit"),
        ([{"$match": {}, "$out": "x"}], "/pipeline/0"),
        (["$out"], "/pipeline/0"),
        ([], "/pipeline"),
        ([{"$limit": 1}] * (MAX_STAGES + 1), "/pipeline"),
        ([{"$facet": {"a": [{"$limit": 1}] * MAX_STAGES}}], "/pipeline/0/$facet/a"),
        ([{"$match": {"sold_at": {"$gt": "soon"}}}], "/pipeline/0/$match/sold_at/$gt"),
        ([{"$addFields": {"x": {"$date": "soon"}}}], "/pipeline/0/$addFields/x"),
        ([{"$addFields": {"x": {"$date": "2026-01-15T10:30:00.0015Z"}}}], "/pipeline/0/$addFields/x"),
        (
            [{"$match": {"sold_at": {"$gt": "2026-01-15", "$gte": "2026-01-15T10:30:00.0015Z"}}}],
            "/pipeline/0/$match/sold_at/$gte",
        ),
    ],
)
def test_what_is_not_on_the_list_is_refused_with_its_place(stages: list[Any], pointer: str) -> None:
    """Unknown stages, operators, variables and hidden fields are refused before the server sees them."""
    with pytest.raises(InvalidQueryError) as refused:
        checked(*stages)
    assert refused.value.pointer == pointer


def test_what_is_on_the_list_goes_on_over_the_records_own_fields() -> None:
    """Leading matches use stored names, and a projection behind them cuts off the bookkeeping."""
    record_id = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
    stages = checked(
        {"$match": {"id": record_id, "price": {"$gte": 1}}}, GROUP, {"$sort": {"total": -1}}, {"$limit": 3}
    )
    assert stages[0] == {"$match": {"$and": [{"_id": {"$eq": record_id}}, {"price": {"$gte": 1.0}}]}}
    fields = [name for name in Sale.model_fields if name not in ("id", "etag")]
    assert stages[1] == {"$project": {"_id": 0, "id": "$_id", **dict.fromkeys(fields, 1)}}
    assert stages[2:] == [GROUP, {"$sort": {"total": -1}}, {"$limit": 3}]


def test_values_are_of_the_types_that_the_fields_have() -> None:
    """A text is compared as a time with a field that holds times."""
    [match, *_] = checked({"$match": {"sold_at": {"$gte": "2026-01-15T10:30:00Z"}}})
    assert match["$match"]["$and"][0]["sold_at"]["$gte"].year == 2026


def test_an_unwound_field_is_compared_as_one_of_its_values() -> None:
    """Behind an $unwind the declared list type no longer says what a value may be."""
    stages = checked({"$unwind": "$tags"}, {"$match": {"tags": "new"}})
    assert stages[-1] == {"$match": {"$and": [{"tags": {"$eq": "new"}}]}}


def test_depth_and_number_of_parts_are_limited() -> None:
    """A hostile expression is refused by its size, before it costs the server anything."""
    deep: Any = "$price"
    for _ in range(50):
        deep = {"$abs": deep}
    broad = {"$add": ["$price"] * 1000}
    for hostile in (deep, {"$add": [broad, broad, broad]}, {"$add": [1] * 1001}):
        with pytest.raises(InvalidQueryError):
            checked({"$addFields": {"x": hostile}})


# ── hostile pipelines ────────────────────────────────────────────────────────────────────────────

WORDS = [
    "$match", "$group", "$project", "$addFields", "$sort", "$limit", "$unwind", "$count", "$facet", "$bucket",
    "$lookup", "$out", "$merge", "$unionWith", "$where", "$expr", "$function", "$accumulator", "$let", "$map",
    "$getField", "$objectToArray", "$$ROOT", "$$CURRENT", "$_hk", "$_hk.keys", "_hk", "_hk.events", "$secret",
    "secret", "_id", "id", "status", "$status", "price", "$price", "$sum", "$push", "$cond", "$literal", "$and",
    "$or", "$gt", "$in", "$not", "from", "as", "in", "vars", "input", "path", "groupBy", "boundaries", "output",
    "x", "", ".", "$", "$$", "$date", "details.size", "details", "$details",
]  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 5), st.sampled_from(WORDS), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=12,
)
STAGES = st.lists(
    st.one_of(st.dictionaries(st.sampled_from(WORDS[:16]), VALUES, min_size=1, max_size=1), VALUES),
    max_size=4,
)

ALLOWED_STAGES = {
    "$match", "$group", "$project", "$addFields", "$set", "$sort", "$limit", "$skip", "$sample", "$unwind", "$count",
    "$sortByCount", "$bucket", "$facet",
}  # fmt: skip
NEVER = (
    "$where",
    "$function",
    "$accumulator",
    "$lookup",
    "$out",
    "$merge",
    "$unionWith",
    "$let",
    "$map",
    "$getField",
)


def _texts(value: Any) -> Iterator[str]:
    """Everything in it that could mean something to the server, except what `$literal` keeps from it."""
    if isinstance(value, dict):
        for name, member in cast("dict[str, Any]", value).items():
            yield name
            if name != "$literal":
                yield from _texts(member)
    elif isinstance(value, list):
        for member in cast("list[Any]", value):
            yield from _texts(member)
    elif isinstance(value, str) and value.startswith("$"):
        yield value


@given(STAGES)
def test_no_pipeline_gets_past_the_list(stages: list[Any]) -> None:
    """Whatever is asked: it is refused in words, or holds nothing that is not on the list."""
    try:
        allowed = checked_pipeline(COLLECTION, stages)
    except InvalidQueryError as error:
        assert error.pointer.startswith("/pipeline")
        return
    projections = [stage for stage in allowed if stage.get("$project", {}).get("id") == "$_id"]
    caller = [stage for stage in allowed if stage is not projections[0]]
    for stage in caller:
        assert set(stage) <= ALLOWED_STAGES
    for text in _texts(caller):
        assert text not in NEVER
        assert "_hk" not in text
        assert not text.startswith("$$") or text == "$$NOW"
        assert text.lstrip("$").partition(".")[0] != "secret" or not text.startswith("$")
