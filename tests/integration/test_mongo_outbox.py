"""Events on MongoDB: there exactly when their document is, moved by any replica, in their document's order.

All of it on a server without transactions and on one with them.
"""

import asyncio
import random
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from pydantic import BaseModel

from hybridkit.codec import now
from hybridkit.contract import Emission
from hybridkit.dataservice import DocumentCollection, create_data_service
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._store import MongoStore, open_mongo_store
from hybridkit.dataservice._outbox._protocol import PARTITIONS, ParkedRow, WaitingRow, fair_share
from hybridkit.dataservice._store._keys import RETENTION
from hybridkit.dataservice._store._operations import Assert, Delete, Update, Upsert, Write
from hybridkit.errors import UnroutableError
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl
from tests.helpers import until


class NewCounter(BaseModel):
    value: int = 0


class Counted(NewCounter, Record[str]):
    pass


COUNTERS = Resource("counters", record=Counted, create=NewCounter, update=NewCounter, filterable=("value",))


class Broker:
    """What all replicas publish to."""

    def __init__(self) -> None:
        self.received: list[UUID] = []
        self.values: defaultdict[str, list[int]] = defaultdict(list)
        self.unroutable: set[str] = set()

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> None:
        assert queue is None
        await asyncio.sleep(0)
        if event_type in self.unroutable:
            raise UnroutableError("nobody wants it", exchange="events", routing_key=event_type)
        data = orjson.loads(body)["data"]
        self.received.append(event_id)
        self.values[data["key"]].append(data["value"])

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Broker"]:
        yield self


def emission(key: str | None, value: int = 0, **more: Any) -> Emission:
    fields: dict[str, Any] = {
        "event_type": "counter.changed",
        "event_id": uuid4(),
        "timestamp": now(),
        "key": key,
        "request_id": "r1",
        "data": {"key": key, "value": value},
    }
    return Emission(**fields | more)


def write(*operations: Any, emit: Sequence[Emission] = (), key: str | None = None) -> Write:
    key = key or uuid4().hex
    return Write(
        caller="api_service", key=key, fingerprint=key.encode(), operations=operations, emit=tuple(emit)
    )


def upsert(record_id: str, value: int = 0) -> Upsert:
    return Upsert(resource=COUNTERS, id=record_id, values={"value": value})


def increment(record_id: str) -> Update:
    return Update(resource=COUNTERS, id=record_id, increment={"value": 1})


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[MongoStore]:
    collections = {"counters": ResourceCollection(COUNTERS, DocumentCollection())}
    async with open_mongo_store(url, collections, name="test") as store:
        yield store


@pytest.fixture
async def store(each_mongo_url: str) -> AsyncIterator[MongoStore]:
    async with opened(each_mongo_url) as store:
        yield store


@pytest.fixture
def apart(store: MongoStore) -> MongoStore:
    """A replica on the same database that has found no transactions: its events wait in their documents."""
    capabilities = replace(store.capabilities, transactions=False)
    return MongoStore(store._database, store._collections, capabilities=capabilities, outbox=store.outbox)


async def waiting(store: MongoStore, limit: int = 100) -> Sequence[WaitingRow]:
    return await store.outbox.waiting(range(PARTITIONS), without=(), limit=limit)


async def drained(store: MongoStore, events: int) -> None:
    """Until so many events are in the outbox and none of them waits."""
    outbox = store._database["hk_outbox"]

    async def all_published() -> bool:
        published = await outbox.count_documents({"state": "published"})
        return published >= events and not await outbox.count_documents({"state": "waiting"})

    await until(all_published, seconds=200)


async def sources(store: MongoStore) -> list[dict[str, Any]]:
    return await store._database["counters"].find().to_list()


# ── events and their document ────────────────────────────────────────────────────────────────────


async def test_an_event_is_in_the_outbox_with_its_change_where_there_are_transactions(
    store: MongoStore,
) -> None:
    """Without transactions it waits in its document until a relay asks for it."""
    event = emission("a", 1)
    await store.write(write(upsert("a", 1), emit=[event]))
    in_outbox = await store._database["hk_outbox"].count_documents({"_id": str(event.event_id)})
    assert in_outbox == int(store.capabilities.transactions)
    assert [row.event_id for row in await waiting(store)] == [event.event_id]


async def test_an_event_stands_in_its_document_until_it_is_moved(
    store: MongoStore, apart: MongoStore
) -> None:
    """One document changes at once: so the change and what tells of it become true together."""
    first, second = emission("a", 1), emission("a", 2)
    await apart.write(write(upsert("a", 1), emit=[first, second]))
    [document] = await sources(store)
    assert [event["_id"] for event in document["_hk"]["events"]] == [
        str(first.event_id),
        str(second.event_id),
    ]
    rows = await waiting(store)
    assert [row.event_id for row in rows] == [first.event_id, second.event_id]
    assert rows[0].sequence < rows[1].sequence
    [document] = await sources(store)
    assert not {"events", "emitted_at"} & document["_hk"].keys()
    assert orjson.loads(rows[0].body)["service"] == "api_service"


async def test_a_refused_write_emits_nothing(store: MongoStore) -> None:
    """An event is only told of what has happened."""
    with pytest.raises(Exception, match="no such record"):
        await store.write(write(increment("a"), emit=[emission("a")]))
    assert await waiting(store) == []


async def test_a_repeated_write_emits_nothing_new(store: MongoStore) -> None:
    """A replay finds the event of the first write in the outbox and adds no other."""
    event = emission("a")
    once = write(upsert("a"), emit=[event], key="k")
    await store.write(once)
    await waiting(store)
    assert (await store.write(once)).replayed
    assert [row.event_id for row in await waiting(store)] == [event.event_id]


async def test_a_tombstone_keeps_what_its_record_told(store: MongoStore) -> None:
    """A hard delete takes the record away, not its events."""
    events = [emission("a", value) for value in range(3)]
    await store.write(write(upsert("a"), emit=events[:1]))
    await store.write(write(increment("a"), emit=events[1:2]))
    await store.write(write(Delete(resource=COUNTERS, id="a"), emit=events[2:]))
    assert await store.get(COUNTERS, "a") is None
    assert [row.event_id for row in await waiting(store)] == [event.event_id for event in events]


async def test_clean_up_leaves_tombstones_and_claims_with_events(
    store: MongoStore, apart: MongoStore
) -> None:
    """They are only deleted once a relay has moved their events."""
    await apart.write(write(upsert("a"), emit=[emission("a")]))
    await apart.write(write(Delete(resource=COUNTERS, id="a")))
    await apart.write(write(emit=[emission("b")]))
    long_ago = now() - timedelta(days=60)
    await store._database["counters"].update_many({}, {"$set": {"_hk.deleted_at": long_ago}})
    await store._database["hk_keys"].update_many({}, {"$set": {"expires_at": long_ago}})
    await store.clean()
    assert len(await waiting(store)) == 2
    assert await store.clean() == 2
    assert await sources(store) == []


async def test_an_assert_or_nothing_at_all_may_emit(store: MongoStore) -> None:
    """What changes no record tells of it in the claim of its key."""
    await store.write(write(upsert("a")))
    looked, alone = emission("a", 1), emission(None, 2)
    await store.write(write(Assert(resource=COUNTERS, id="a"), emit=[looked]))
    only_events = write(emit=[alone], key="alone")
    assert not (await store.write(only_events)).replayed
    assert (await store.write(only_events)).replayed
    assert {row.event_id for row in await waiting(store)} == {looked.event_id, alone.event_id}


async def test_a_move_that_was_interrupted_is_done_again_without_a_second_event(
    store: MongoStore, apart: MongoStore
) -> None:
    """Events are in the outbox before they leave their document; a crash in between repeats the first half."""
    event = emission("a")
    await apart.write(write(upsert("a"), emit=[event]))
    [document] = await sources(store)
    await store._database["hk_outbox"].insert_one(document["_hk"]["events"][0])
    assert [row.event_id for row in await waiting(store)] == [event.event_id]


async def test_two_movers_of_one_document_leave_its_order_alone(store: MongoStore) -> None:
    """Four relays that move at once leave each event once, in the order of the document's changes."""
    events = [emission("a", value) for value in range(30)]
    await store.write(write(upsert("a")))
    for event in events:
        await store.write(write(increment("a"), emit=[event]))
    source = store._database["counters"]
    await asyncio.gather(*(store.outbox.move(source) for _ in range(4)))
    assert [row.event_id for row in await waiting(store)] == [event.event_id for event in events]


# ── leases, marks ────────────────────────────────────────────────────────────────────────────────


async def test_each_partition_has_one_owner_among_many(store: MongoStore) -> None:
    """Replicas that ask at once share the partitions without a gap and without two owners."""
    owners = [f"owner{number}" for number in range(5)]
    for _ in range(3):
        held = await asyncio.gather(*(store.outbox.renew_leases(owner) for owner in owners))
        for owner, its in zip(owners, held, strict=True):
            extra = [lease.partition for lease in its.leases[its.share :]]
            if extra:
                await store.outbox.release_leases(owner, extra)
    held = await asyncio.gather(*(store.outbox.renew_leases(owner) for owner in owners))
    owned = Counter(lease.partition for its in held for lease in its.leases)
    assert owned == dict.fromkeys(range(PARTITIONS), 1)
    assert {its.share for its in held} == {fair_share(5)}


async def test_a_partition_that_is_released_is_free_and_its_replica_alive(store: MongoStore) -> None:
    """The others stay with the replica that holds them; the fence of the next holder is greater."""
    held = await store.outbox.renew_leases("one")
    released = held.leases[0].partition
    await store.outbox.release_leases("one", [released])
    assert len((await store.outbox.renew_leases("two")).leases) == 1
    again = await store.outbox.renew_leases("one")
    assert {lease.partition for lease in again.leases} == {lease.partition for lease in held.leases} - {
        released
    }


async def test_a_new_owner_has_a_higher_fence_and_the_old_ones_marks_are_ignored(store: MongoStore) -> None:
    """A replica that has lost its leases can't record anything of their rows."""
    await store.write(write(upsert("a"), emit=[emission("a")]))
    old = await store.outbox.renew_leases("old")
    [row] = await waiting(store)
    await store.outbox.release_leases("old")
    new = await store.outbox.renew_leases("new")
    fences = {lease.partition: lease.fence for lease in old.leases}
    assert all(lease.fence > fences[lease.partition] for lease in new.leases)
    lost = await store.outbox.mark(old.leases, published=[row], parked=[])
    assert set(lost) == set(range(PARTITIONS))
    assert await waiting(store) == [row]
    assert not await store.outbox.mark(new.leases, published=[row], parked=[])
    assert await waiting(store) == []


async def test_what_a_dead_replica_had_is_free_when_its_lease_has_run_out(store: MongoStore) -> None:
    """Until then no other replica gets its partitions."""
    await store.outbox.renew_leases("dead")
    assert (await store.outbox.renew_leases("other")).leases == []
    await store._database["hk_leases"].update_many({}, {"$set": {"expires_at": now() - timedelta(seconds=1)}})
    assert len((await store.outbox.renew_leases("other")).leases) == PARTITIONS


async def test_parked_events_are_listed_counted_and_tried_again(store: MongoStore) -> None:
    """A parked event keeps its reason and its place until somebody lets it wait again."""
    first, second = emission("a", event_type="x.y"), emission("b")
    await store.write(write(emit=[first, second]))
    held = await store.outbox.renew_leases("me")
    rows = {row.event_id: row for row in await waiting(store)}
    await store.outbox.mark(
        held.leases, published=[], parked=[ParkedRow(rows[first.event_id], "nobody wants it")]
    )
    backlog = await store.outbox.backlog(range(PARTITIONS))
    assert (backlog.waiting, backlog.parked) == (1, 1)
    assert backlog.lag_seconds >= 0
    [entry] = await store.outbox.entries(parked=True, event_type="x.y", limit=10)
    assert (entry.event_id, entry.reason, entry.key) == (first.event_id, "nobody wants it", "a")
    assert entry.parked_at is not None
    assert await store.outbox.entries(parked=True, event_ids=[second.event_id], limit=10) == []
    assert await store.outbox.retry(event_ids=[first.event_id]) == 1
    assert {row.event_id for row in await waiting(store)} == {first.event_id, second.event_id}


async def test_what_documents_hold_is_in_the_backlog_once(store: MongoStore, apart: MongoStore) -> None:
    """Only the first partition's owner counts it, so that replicas don't add it twice."""
    await apart.write(write(upsert("a"), emit=[emission("a"), emission("a")]))
    await apart.write(write(emit=[emission("b")]))
    long_ago = {"$set": {"_hk.emitted_at": now() - timedelta(minutes=1)}}
    await store._database["counters"].update_many({}, long_ago)
    backlog = await store.outbox.backlog([0, 1])
    assert (backlog.waiting, backlog.lag_seconds >= 60) == (3, True)
    assert (await store.outbox.backlog([1, 2])).waiting == 0


async def test_an_event_waits_for_its_time(store: MongoStore) -> None:
    """Until then it holds back no event of another key."""
    later = emission("a", not_before=now() + timedelta(hours=1))
    await store.write(write(emit=[later, emission("b")]))
    assert [row.ordering_key for row in await waiting(store)] == ["b"]
    await store._database["hk_outbox"].update_many({}, {"$set": {"not_before": now()}})
    assert {row.ordering_key for row in await waiting(store)} == {"a", "b"}
    assert [
        row.ordering_key for row in await store.outbox.waiting(range(PARTITIONS), without=["b"], limit=9)
    ] == ["a"]


async def test_a_message_is_cancelled_by_its_own_service_before_its_time(
    store: MongoStore, apart: MongoStore
) -> None:
    """In the outbox as in the document that still holds it, with transactions and without."""
    soon = now() + timedelta(hours=1)
    for number, own in enumerate((store, apart)):
        for held in (False, True):
            name = f"{number}-{held}"
            kept, mine = (emission(name, not_before=soon) for _ in range(2))
            other = emission(name, not_before=soon)
            await own.write(write(upsert(name), emit=[kept, mine]))
            await own.write(replace(write(emit=[other]), caller="other_service"))
            if not held:
                await waiting(own)
            gone = (mine.event_id, other.event_id, uuid4())
            await own.write(replace(write(upsert(name)), cancel=gone))
            await waiting(own)
            rows = await own._database["hk_outbox"].find({"lane": name}).to_list()
            assert {row["_id"] for row in rows} == {str(kept.event_id), str(other.event_id)}


async def test_published_events_are_deleted_after_a_while(store: MongoStore) -> None:
    """They stay for the retention of keys, so that a repeated write finds them."""
    await store.write(write(upsert("a"), emit=[emission("a")]))
    held = await store.outbox.renew_leases("me")
    await store.outbox.mark(held.leases, published=await waiting(store), parked=[])
    assert await store.outbox.clean() == 0
    outbox = store._database["hk_outbox"]
    await outbox.update_many({}, {"$set": {"published_at": now() - RETENTION - timedelta(minutes=1)}})
    assert await store.outbox.clean() == 1


# ── through the service ──────────────────────────────────────────────────────────────────────────


async def test_a_service_with_a_broker_publishes_what_a_write_of_one_record_emits(
    each_mongo_url: str,
) -> None:
    """One that no queue takes is parked, and those after it with its key are still published."""
    broker = Broker()
    broker.unroutable = {"nobody.listens"}
    app = create_data_service(MongoSettings, {COUNTERS: DocumentCollection()}, publisher=broker.open)
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(each_mongo_url)
    )
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    events = [emission("a", 1), emission("a", 2, event_type="nobody.listens"), emission("a", 3)]
    body = {
        "operations": [{"op": "create", "resource": "counters", "id": "a", "data": {"value": 1}}],
        "emit": [event.model_dump(mode="json") for event in events],
    }
    async with app.router.lifespan_context(app), http:
        answer = await http.post("/v1:transact", json=body, headers={"idempotency-key": "k"})
        assert answer.status_code == 200, answer.text
        await drained(app.state.store, 2)
        [parked] = await app.state.store.outbox.entries(parked=True, limit=10)
        two = {**body, "operations": [*body["operations"], *body["operations"]]}
        refused = await http.post("/v1:transact", json=two, headers={"idempotency-key": "k2"})
        has_transactions = app.state.store.capabilities.transactions
    assert broker.values == {"a": [1, 3]}
    assert parked.event_id == events[1].event_id
    assert (refused.status_code, refused.json()["code"]) == (
        (409, "UNIQUE_VIOLATION") if has_transactions else (501, "TRANSACTIONS_UNAVAILABLE")
    )


# ── replicas that die ────────────────────────────────────────────────────────────────────────────

KEYS = [f"k{number}" for number in range(6)]
EVENTS_PER_KEY = 25


async def _write_all(store: MongoStore) -> None:
    """Every key's record counts up, and tells each number; several writers at a time."""

    async def count_up(key: str) -> None:
        await store.write(write(upsert(key), emit=[emission(key, 0)]))
        for value in range(1, EVENTS_PER_KEY):
            await store.write(write(increment(key), emit=[emission(key, value)]))

    await asyncio.gather(*map(count_up, KEYS))


PROGRAM = """
    import asyncio, os, sys, time

    import orjson

    from hybridkit.dataservice import Relay
    from hybridkit.dataservice._mongo._store import open_mongo_store

    books = os.open({books!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    class Publisher:
        async def publish_encoded(self, body, *, event_type, event_id, queue=None):
            data = orjson.loads(body)["data"]
            os.write(books, f"{{time.monotonic_ns()}} {{event_id}} {{data['key']}} {{data['value']}}\\n".encode())
            await asyncio.sleep(0.002)

    async def main():
        async with open_mongo_store({url!r}, {{}}, name="replica") as store:
            renew_leases = store.outbox.renew_leases
            store.outbox._sources.append(store._database["counters"])

            async def told(owner):
                print("owner", owner, file=sys.stderr, flush=True)
                return await renew_leases(owner)

            store.outbox.renew_leases = told
            async with Relay(store.outbox, Publisher()):
                await asyncio.sleep(3600)

    asyncio.run(main())
"""


class Replica:
    """A process that publishes, until it is killed."""

    def __init__(self, url: str, books: Path) -> None:
        self._program = textwrap.dedent(PROGRAM.format(url=url, books=str(books)))

    async def live_and_die(self, store: MongoStore, *, seconds: float) -> None:
        """Some seconds after it is up, `kill -9`. Its leases run out at once, to save the test ten seconds."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self._program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        line = b""
        try:
            async with asyncio.timeout(200):
                while not line.startswith(b"owner "):
                    line = await process.stderr.readline()
                    assert line, "it did not start"
            await asyncio.sleep(seconds)
        finally:
            process.kill()
            await process.communicate()
        owner = line.decode().split()[1]
        await store._database["hk_leases"].update_many(
            {"$or": [{"owner": owner}, {"replica": owner}]},
            {"$set": {"expires_at": now() - timedelta(seconds=1)}},
        )


@pytest.mark.real_server
@pytest.mark.usefixtures("unmeasured_test")
async def test_replicas_killed_at_random_lose_nothing_and_keep_each_keys_order(
    each_mongo_url: str, tmp_path: Path
) -> None:
    """Every event at least once and none without its document; first seen in the order of its key's writes."""
    books, chance = tmp_path / "published", random.Random(7)

    async def lives(store: MongoStore) -> None:
        for _ in range(2):
            await Replica(each_mongo_url, books).live_and_die(store, seconds=chance.uniform(0.05, 0.8))

    async with opened(each_mongo_url) as store:
        await asyncio.gather(_write_all(store), lives(store), lives(store))
        async with asyncio.TaskGroup() as group:
            group.create_task(Replica(each_mongo_url, books).live_and_die(store, seconds=1))
            last = group.create_task(Replica(each_mongo_url, books).live_and_die(store, seconds=60))
            await drained(store, len(KEYS) * EVENTS_PER_KEY)
            last.cancel()
        moved = {row["_id"] for row in await store._database["hk_outbox"].find({}, {"_id": 1}).to_list()}
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for _, _, key, value in sorted(line.split() for line in books.read_text().splitlines()):
        seen[key].append(int(value))
    assert {line.split()[1] for line in books.read_text().splitlines()} == moved
    assert len(moved) == len(KEYS) * EVENTS_PER_KEY
    for key in KEYS:
        assert list(dict.fromkeys(seen[key])) == list(range(EVENTS_PER_KEY))
