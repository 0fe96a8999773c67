"""Several records in one write: in a transaction where the server has them, and its statements alone where it doesn't.

On a server without transactions each statement takes effect at once, which shows that the statements are right.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson
import pytest
from pydantic import BaseModel

from hybridkit.codec import encode_json, now
from hybridkit.contract import Emission
from hybridkit.dataservice import DocumentCollection, DocumentIndex
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._store import MongoStore, open_mongo_store
from hybridkit.dataservice._mongo._transaction_writer import ORDERING_KEYS_COLLECTION, TransactionWriter
from hybridkit.dataservice._outbox._protocol import PARTITIONS
from hybridkit.dataservice._store._kept_outcomes import MAX_KEPT_BYTES
from hybridkit.dataservice._store._operations import (
    Assert,
    CallAnswer,
    Create,
    Delete,
    Outcome,
    Update,
    Upsert,
    Write,
)
from hybridkit.errors import (
    KeyReusedError,
    NotFoundError,
    RequirementNotMetError,
    TransactionsUnavailableError,
)
from hybridkit.resources import Compare, Record, Resource


class NewThing(BaseModel):
    name: str = ""
    stock: int = 0


class Thing(NewThing, Record[str]):
    pass


THINGS = Resource("things", record=Thing, create=NewThing, update=NewThing, filterable=("name", "stock"))


class Several:
    """Writes in a transaction; where the server has none, the transaction's statements without it."""

    def __init__(self, store: MongoStore) -> None:
        self.store = store
        self._writer = TransactionWriter(
            store._database, store._collections, audit=store._audit, emitted=lambda: None
        )

    async def write(self, *operations: Any, key: str = "", **more: Any) -> Outcome:
        if self.store.capabilities.transactions:
            return await self._writer.write(a_write(*operations, key=key, **more))
        async with self.store._database.client.start_session() as session:
            return await self._writer.attempt(session, a_write(*operations, key=key, **more))

    async def stock(self, record_id: str) -> int | None:
        found = await self.store.get(THINGS, record_id)
        return None if found is None else orjson.loads(found.body)["stock"]


def a_write(*operations: Any, key: str = "", **more: Any) -> Write:
    key = key or uuid4().hex
    fingerprint = more.pop("fingerprint", key.encode())
    return Write(caller="api_service", key=key, fingerprint=fingerprint, operations=operations, **more)


def create(record_id: str, **values: Any) -> Create:
    return Create(resource=THINGS, id=record_id, values={"name": record_id, **values})


def event(key: str | None) -> Emission:
    return Emission(
        event_type="thing.changed", event_id=uuid4(), timestamp=now(), key=key, request_id="r", data={}
    )


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[MongoStore]:
    indexes = (DocumentIndex("name", unique=True), DocumentIndex("stock", "-created_at"))
    collections = {"things": ResourceCollection(THINGS, DocumentCollection(indexes=indexes))}
    async with open_mongo_store(url, collections, name="test") as store:
        yield store


@pytest.fixture
async def several(each_mongo_url: str) -> AsyncIterator[Several]:
    async with opened(each_mongo_url) as store:
        yield Several(store)


async def test_operations_see_what_those_before_them_did(several: Several) -> None:
    """Reads inside of a transaction see its own writes, in the order of the operations."""
    outcome = await several.write(
        create("a", stock=3),
        Update(resource=THINGS, id="a", increment={"stock": -1}, require=Compare("stock", "gte", 1)),
        Assert(resource=THINGS, id="a"),
        Upsert(resource=THINGS, id="b", values={"name": "b", "stock": 9}),
        create("c"),
        Delete(resource=THINGS, id="c"),
    )
    stocks = [result.record and result.record["stock"] for result in outcome.results]
    assert stocks == [3, 2, None, 9, 0, None]
    assert [await several.stock(name) for name in "abc"] == [2, 9, None]


async def test_its_key_is_recorded_with_its_outcome(several: Several) -> None:
    """A replay has the results of all records, and another request under the key is refused."""
    first = await several.write(create("a"), create("b"), key="k")
    again = await several.write(create("a"), create("b"), key="k")
    assert again.replayed
    assert [result.record for result in again.results] == [
        orjson.loads(encode_json(result.record)) for result in first.results
    ]
    with pytest.raises(KeyReusedError):
        await several.write(create("c"), key="k", fingerprint=b"another")


async def test_a_large_outcome_is_read_again(several: Several) -> None:
    """Each record is found by its reference and still counts as created."""
    creates = [create(f"{number}" + "x" * 2000) for number in range(MAX_KEPT_BYTES // 2000)]
    await several.write(*creates, key="k")
    again = await several.write(*creates, key="k")
    assert (again.replayed, again.reread) == (True, True)
    assert all(result.created for result in again.results)
    assert [result.record and result.record["id"] for result in again.results] == [
        each.id for each in creates
    ]


async def test_what_does_not_hold_is_refused(several: Several) -> None:
    """A requirement and an assert are checked inside of the transaction."""
    await several.write(create("a"))
    with pytest.raises(RequirementNotMetError):
        await several.write(
            Update(resource=THINGS, id="a", increment={"stock": -1}, require=Compare("stock", "gte", 1))
        )
    with pytest.raises(NotFoundError):
        await several.write(Assert(resource=THINGS, id="b"))


async def test_events_go_to_the_outbox_once_in_the_order_of_their_key(several: Several) -> None:
    """Events with a key change the key's document, so that their numbers follow the commits."""
    first, second, alone = event("a"), event("a"), event(None)
    await several.write(create("a"), create("b"), emit=(first, alone))
    await several.write(emit=(first, second))
    rows = await several.store.outbox.waiting(range(PARTITIONS), without=(), limit=10)
    assert [row.event_id for row in rows] == [first.event_id, alone.event_id, second.event_id]
    [counted] = await several.store._database[ORDERING_KEYS_COLLECTION].find().to_list()
    assert (counted["_id"], counted["events"]) == ("a", 2)


async def test_a_call_has_its_answer_and_its_events_under_its_key(several: Several) -> None:
    """What it wrote, its answer and its events are there once, however often it is asked."""
    told = event("a")

    async def work(database: Any) -> CallAnswer:
        await database["notes"].insert_one({"text": "seen"})
        return CallAnswer(b'{"ok":true}', (told,))

    assert (await several.write(call=work, key="k")).answer == b'{"ok":true}'
    again = await several.write(call=work, key="k")
    assert (again.answer, again.replayed) == (b'{"ok":true}', True)
    assert await several.store._database["notes"].count_documents({}) == 1
    rows = await several.store.outbox.waiting(range(PARTITIONS), without=(), limit=10)
    assert [row.event_id for row in rows] == [told.event_id]


async def test_a_server_is_asked_for_what_it_can_do_and_refuses_the_rest(each_mongo_url: str) -> None:
    """All or nothing where it has transactions; a typed refusal, with nothing done, where it has none."""
    async with opened(each_mongo_url) as store:
        await store.write(a_write(create("there")))
        both = a_write(create("a"), create("there"))
        if store.capabilities.transactions:
            with pytest.raises(Exception, match="id"):
                await store.write(both)
            add = Update(resource=THINGS, id="there", increment={"stock": 1})
            await asyncio.gather(*(store.write(a_write(add, create(str(n)))) for n in range(8)))
            found = await store.get(THINGS, "there")
            assert found is not None
            assert orjson.loads(found.body)["stock"] == 8
        else:
            for refused in (both, a_write(create("a"), dry_run=True)):
                with pytest.raises(TransactionsUnavailableError, match=r"FerretDB|MongoDB"):
                    await store.write(refused)
        assert await store.get(THINGS, "a") is None
        assert await store._database["hk_keys"].count_documents({"_id": {"$regex": "^probe"}}) == 0
