"""The store in memory: all or nothing, once per key, and SQL's idea of no value."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from pydantic import BaseModel

from hybridkit.codec import encode_json, now
from hybridkit.contract import Emission
from hybridkit.dataservice._memory._store import MemoryStore
from hybridkit.dataservice._store._operations import (
    Create,
    Delete,
    Operation,
    Outcome,
    Undelete,
    Update,
    Write,
)
from hybridkit.errors import (
    KeyReusedError,
    NotFoundError,
    RequirementNotMetError,
    StaleVersionError,
    TransactionsUnavailableError,
    UniqueViolationError,
)
from hybridkit.resources import Filter, Query, Record, Resource
from hybridkit.testing import VirtualClock


class NewThing(BaseModel):
    name: str
    rank: int | None = None
    details: dict[str, Any] | None = None


class Thing(NewThing, Record):
    is_active: bool = True


class ThingChanges(BaseModel):
    name: str | None = None
    rank: int | None = None


THINGS = Resource(
    "things",
    record=Thing,
    create=NewThing,
    update=ThingChanges,
    filterable=("name", "rank", "details.size"),
    sortable=("name", "rank", "details.size"),
    soft_delete=True,
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore([THINGS], unique={THINGS: ["name"]})


async def write(
    store: MemoryStore, *operations: Operation, key: str = "", body: str = "", **options: Any
) -> Outcome:
    return await store.write(
        Write(
            caller="api_orders",
            key=key or str(uuid4()),
            fingerprint=body.encode(),
            operations=operations,
            **options,
        )
    )


def creates(name: str, **values: Any) -> Create:
    given = {"rank": None, "details": None, **values}
    return Create(resource=THINGS, id=uuid4(), values={"name": name, **given})


async def names(store: MemoryStore, where: Filter | None = None, **options: Any) -> list[str]:
    found = await store.find(THINGS, Query(where=where, **options), after=None)
    return [item["name"] for item in orjson.loads(found.items)]


async def test_a_write_that_fails_leaves_nothing(store: MemoryStore) -> None:
    """Neither records nor events nor the key stay of it, so the same key may be used again."""
    emission = Emission(event_type="thing.made", event_id=uuid4(), timestamp=now(), request_id="r", data={})
    with pytest.raises(UniqueViolationError) as caught:
        await write(store, creates("pen"), creates("pen"), emit=(emission,), key="k")
    assert caught.value.fields == ("name",)
    assert (await names(store), store.emitted) == ([], [])
    await write(store, creates("pen"), emit=(emission,), key="k")
    assert (await names(store), store.emitted) == (["pen"], [emission])


async def test_a_key_answers_again_what_it_did(store: MemoryStore) -> None:
    """A replay has the record of then, and another request under the key is refused."""
    create = creates("pen")
    first = await write(store, create, key="k")
    await write(store, Update(resource=THINGS, id=create.id, changes={"rank": 1}))
    again = await write(store, create, key="k")
    assert again.replayed
    assert encode_json(again.results) == encode_json(first.results)
    with pytest.raises(KeyReusedError):
        await write(store, create, key="k", body="another")


@pytest.mark.parametrize(
    ("key", "kept"),
    [("k", timedelta(hours=72)), ("hks_1", timedelta(hours=72)), ("hkd_1", timedelta(days=30))],
)
async def test_a_key_is_forgotten_after_its_time(store: MemoryStore, key: str, kept: timedelta) -> None:
    """The write is then done anew, and fails here on the record that the first one made."""
    create = creates("pen")
    with VirtualClock() as clock:
        await write(store, create, key=key)
        clock.advance(kept - timedelta(milliseconds=1))
        assert await store.clean() == 0
        assert (await write(store, create, key=key)).replayed
        clock.advance(timedelta(milliseconds=1))
        with pytest.raises(UniqueViolationError):
            await write(store, create, key=key)
        assert await store.clean() == 1


async def test_a_short_lived_derived_key_lets_a_rerun_go_on(store: MemoryStore) -> None:
    """A rerun that asks for something else gets what the first run did, as with any derived key."""
    first = await write(store, creates("pen"), key="hks_1", body="one")
    again = await write(store, creates("ink"), key="hks_1", body="another")
    assert again.replayed
    assert encode_json(again.results) == encode_json(first.results)


async def test_a_dry_run_tells_what_would_come_of_it(store: MemoryStore) -> None:
    """It leaves no record behind, and its key is still free."""
    outcome = await write(store, creates("pen"), key="k", dry_run=True)
    assert outcome.results[0].created
    assert await names(store) == []
    assert not (await write(store, creates("pen"), key="k")).replayed


async def test_a_hidden_record_keeps_its_id_and_comes_back_with_another_tag(store: MemoryStore) -> None:
    """Nobody can read it or take its id until an undelete."""
    create = creates("pen")
    first = (await write(store, create)).results[0].record
    await write(store, Delete(resource=THINGS, id=create.id))
    assert await store.get(THINGS, create.id) is None
    with pytest.raises(UniqueViolationError):
        await write(store, create)
    back = (await write(store, Undelete(resource=THINGS, id=create.id))).results[0].record
    assert first
    assert back
    assert (back["name"], back["etag"] != first["etag"]) == ("pen", True)


async def test_conditions_are_checked(store: MemoryStore) -> None:
    """A wrong ETag and a requirement that doesn't hold are refused; so is a record that isn't there."""
    create = creates("pen", rank=1)
    await write(store, create)
    taking = Update(resource=THINGS, id=create.id, increment={"rank": -1}, require=THINGS["rank"] > 1)
    for operation, refusal in (
        (Update(resource=THINGS, id=create.id, if_match='"9-1"'), StaleVersionError),
        (taking, RequirementNotMetError),
        (Delete(resource=THINGS, id=create.id, if_match='"9-1"'), StaleVersionError),
    ):
        with pytest.raises(refusal):
            await write(store, operation)
    with pytest.raises(NotFoundError):
        await write(store, Delete(resource=THINGS, id=UUID(int=1)))


async def test_without_transactions_one_record_is_written_at_a_time() -> None:
    """A write of two records is refused as on a server of MongoDB without transactions."""
    store = MemoryStore([THINGS], has_transactions=False)
    await write(store, creates("pen"))
    with pytest.raises(TransactionsUnavailableError):
        await write(store, creates("a"), creates("b"))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (THINGS["rank"] == 1, ["one"]),
        (THINGS["rank"] != 1, ["two"]),
        (~(THINGS["rank"] == 1), ["two"]),
        (~THINGS["rank"].in_([]), ["none", "one", "two"]),
        (~THINGS["rank"].in_([1]), ["two"]),
        (THINGS["rank"].is_null() | (THINGS["rank"] > 1), ["none", "two"]),
        (~((THINGS["rank"] == 1) & (THINGS["name"] == "none")), ["one", "two"]),
        (THINGS["name"].ilike("%O%"), ["none", "one", "two"]),
        (THINGS["name"].like("_ne"), ["one"]),
        (THINGS["details.size"] > 1, ["two"]),
        (THINGS["details.size"] == "big", ["one"]),
        (~(THINGS["details.size"] > 1), ["one"]),
    ],
)
async def test_no_value_is_neither_equal_nor_different(
    store: MemoryStore, where: Filter, expected: list[str]
) -> None:
    """A record without a value fits neither a condition nor its negation, as in SQL."""
    await write(
        store,
        creates("none"),
        creates("one", rank=1, details={"size": "big"}),
        creates("two", rank=2, details={"size": 2}),
    )
    assert await names(store, where, order=(("name", "asc"),)) == expected


async def test_what_has_no_value_comes_last_or_first_when_descending(store: MemoryStore) -> None:
    """The order of records without a value is PostgreSQL's."""
    await write(store, creates("none"), creates("two", rank=2), creates("one", rank=1))
    assert await names(store, order=(("rank", "asc"),)) == ["one", "two", "none"]
    assert await names(store, order=(("rank", "desc"),)) == ["none", "two", "one"]


async def test_pages_follow_each_other(store: MemoryStore) -> None:
    """Records that tie, and those without a value, are each on one page."""
    await write(store, *(creates(str(number), rank=None if number % 3 else 1) for number in range(7)))
    query = Query(order=(("rank", "desc"),), page_size=2)
    seen: list[str] = []
    after = None
    while True:
        found = await store.find(THINGS, query, after=after)
        seen += [item["name"] for item in orjson.loads(found.items)]
        if found.position is None:
            break
        after = orjson.loads(orjson.dumps(list(found.position), default=str))
    assert sorted(seen) == [str(number) for number in range(7)]
