"""MongoDB's data service in transactions: what a server does to one, and what its caller is told.

Fail points (`configureFailPoint`) make a server of the module's own refuse, wait and drop connections on demand:
https://github.com/mongodb/mongo/wiki/The-%22failCommand%22-fail-point.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel
from pymongo import AsyncMongoClient, InsertOne, MongoClient
from pymongo.asynchronous.database import AsyncDatabase

from hybridkit.dataservice import CallContext, DocumentCollection, create_data_service
from hybridkit.dataservice._mongo._driver._capabilities import probe
from hybridkit.dataservice._mongo._store import MongoStore
from hybridkit.dev import Server
from hybridkit.errors import NotFoundError
from hybridkit.events import Event
from hybridkit.resources import Call, Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl
from hybridkit.testing import _isolation, plugin
from tests.helpers import until


class NewAccount(BaseModel):
    balance: int = 0


class Account(NewAccount, Record[str]):
    pass


ACCOUNTS = Resource("accounts", record=Account, create=NewAccount, update=NewAccount)


class Note(BaseModel):
    way: str
    fails: bool = False


class Noted(BaseModel):
    notes: int


class NoteWritten(Event, type="note.written", version=1):
    way: str


WAYS: dict[str, Any] = {
    "insert_one": lambda notes: notes.insert_one({"a": 1}),
    "insert_many": lambda notes: notes.insert_many([{"a": 1}]),
    "update_one": lambda notes: notes.update_one({"_id": 1}, {"$set": {"a": 1}}, upsert=True),
    "update_many": lambda notes: notes.update_many({"_id": 1}, {"$set": {"a": 1}}, upsert=True),
    "replace_one": lambda notes: notes.replace_one({"_id": 1}, {"a": 1}, upsert=True),
    "find_one_and_update": lambda notes: notes.find_one_and_update(
        {"_id": 1}, {"$set": {"a": 1}}, upsert=True
    ),
    "bulk_write": lambda notes: notes.bulk_write([InsertOne({"a": 1})]),
}


async def note(body: Note, work: CallContext[AsyncDatabase[dict[str, Any]]]) -> Noted:
    notes = work.database["notes"]
    await WAYS[body.way](notes)
    work.emit(NoteWritten(way=body.way))
    if body.fails:
        raise NotFoundError("on purpose")
    return Noted(notes=len(await notes.find().to_list()))


async def forget(body: Note, work: CallContext[AsyncDatabase[dict[str, Any]]]) -> Noted:
    notes = work.database["notes"]
    await notes.delete_one({"a": 2})
    await notes.delete_many({})
    return Noted(notes=await notes.count_documents({}))


class Service:
    """A running data service and its database."""

    def __init__(self, http: httpx.AsyncClient, url: str, store: MongoStore) -> None:
        self.http = http
        self.url = url
        self.store = store

    async def send(
        self, path: str, body: object, *, key: str = "", method: str = "POST", seconds: float = 20
    ) -> httpx.Response:
        headers = {"idempotency-key": key or uuid4().hex, "x-request-timeout": str(seconds)}
        return await self.http.request(method, path, json=body, headers=headers)

    async def transact(self, *operations: object, **options: Any) -> httpx.Response:
        return await self.send("/v1:transact", {"operations": operations}, **options)

    async def create(self, *names: str) -> None:
        for name in names:
            await self.send(f"/v1/accounts/{name}", {"balance": 0}, method="PUT")

    async def balance(self, name: str) -> int | None:
        answer = await self.http.get(f"/v1/accounts/{name}")
        return answer.json()["balance"] if answer.status_code == 200 else None

    async def notes(self) -> int:
        return await self.store._database["notes"].count_documents({})


def add(name: str, amount: int = 1) -> dict[str, Any]:
    return {"op": "update", "resource": "accounts", "id": name, "increment": {"balance": amount}}


def event() -> dict[str, Any]:
    return {
        "event_type": "a.b",
        "event_id": str(uuid4()),
        "timestamp": "2026-01-15T10:30:00Z",
        "key": "a",
        "request_id": "r",
        "data": {},
    }


def create(name: str) -> dict[str, Any]:
    return {"op": "create", "resource": "accounts", "id": name, "data": {}}


@asynccontextmanager
async def running(url: str, more_calls: Mapping[Any, Any] | None = None) -> AsyncGenerator[Service]:
    """A service without a relay, whose commands could use up the failures that a test ordered."""
    calls: dict[Any, Any] = {
        Call("note", resource=ACCOUNTS, request=Note, response=Noted): note,
        Call("forget", resource=ACCOUNTS, request=Note, response=Noted): forget,
        **(more_calls or {}),
    }
    app = create_data_service(
        MongoSettings,
        {ACCOUNTS: DocumentCollection()},
        calls=calls,
    )
    app.state.settings = MongoSettings(
        service_name="db_mongo_service", database_url=SecretUrl(url), start_budget_seconds=30
    )
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    async with app.router.lifespan_context(app), http:
        app.state.can_emit = True  # events stay in the outbox
        yield Service(http, url, app.state.store)


@pytest.fixture
async def each_service(each_mongo_url: str) -> AsyncIterator[Service]:
    """On a server without transactions, and on one with them."""
    async with running(each_mongo_url) as service:
        yield service


@pytest.fixture(scope="module")
def failing_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with transactions that nobody else uses."""
    yield from plugin._own(request, "mongo_transactions")


@pytest.fixture
async def service(failing_server: Server) -> AsyncIterator[Service]:
    with _isolation.mongo_database(failing_server) as url:
        async with running(url) as service:
            yield service


def fail(server: Server, command: str, times: int = 1, **how: Any) -> None:
    """Have the server fail so many of these commands in that way; 0: no more."""
    mode: Any = {"times": times} if times else "off"
    with MongoClient[dict[str, Any]](server.url) as client:
        client.admin.command(
            "configureFailPoint", "failCommand", mode=mode, data={"failCommands": [command], **how}
        )


# ── a service's own call ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_writes_with_its_key_whatever_method_it_takes(each_service: Service, way: str) -> None:
    """Each method of the driver's collection takes part in the transaction by itself."""
    first, again = [await each_service.send("/v1/accounts:note", {"way": way}, key="k") for _ in range(2)]
    assert (first.status_code, first.text, again.text) == (200, '{"notes":1}', first.text)
    assert again.headers["idempotency-replayed"] == "true"
    assert await each_service.notes() == 1
    forgotten = await each_service.send("/v1/accounts:forget", {"way": way})
    assert (forgotten.status_code, forgotten.json()) == (200, {"notes": 0})


async def test_a_call_that_fails_leaves_nothing_where_there_are_transactions(each_service: Service) -> None:
    """Without them what it had written stays."""
    answer = await each_service.send("/v1/accounts:note", {"way": "insert_one", "fails": True})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    has_transactions = each_service.store.capabilities.transactions
    assert await each_service.notes() == (0 if has_transactions else 1)


# ── the caller's time ────────────────────────────────────────────────────────────────────────────


async def test_a_transaction_that_met_its_deadline_leaves_its_records_free(
    service: Service, failing_server: Server
) -> None:
    """Its caller's time is over, and not that of those who write the same records afterwards."""
    await service.create("a")
    fail(failing_server, "insert", blockConnection=True, blockTimeMS=1000)
    late = await service.transact(add("a"), create("b"), seconds=0.4)
    assert (late.status_code, late.json()["code"]) == (504, "DEADLINE_PASSED")
    began = time.monotonic()

    async def written() -> bool:
        return (await service.transact(add("a"), create(uuid4().hex))).status_code == 200

    await until(written)
    assert time.monotonic() - began < 15  # and not the minute after which the server gives it up
    assert (await service.balance("a"), await service.balance("b")) == (1, None)


@pytest.mark.real_server
async def test_a_server_that_stops_in_a_transaction_is_a_timeout_at_the_deadline(
    own_mongo_transactions_server: Server,
) -> None:
    """The caller doesn't wait for the abort that no server answers."""
    stopped_at = 0.0

    async def stop(_: Note, work: CallContext[AsyncDatabase[dict[str, Any]]]) -> Noted:
        nonlocal stopped_at
        await work.database["notes"].insert_one({"a": 1})
        own_mongo_transactions_server.freeze()
        stopped_at = time.monotonic()
        await work.database["notes"].insert_one({"a": 2})
        return Noted(notes=2)

    stopping = Call("stop", resource=ACCOUNTS, request=Note, response=Noted)
    async with running(f"{own_mongo_transactions_server.url}notes", {stopping: stop}) as service:
        answer = await service.send("/v1/accounts:stop", {"way": ""}, seconds=1)
        took_seconds = time.monotonic() - stopped_at
        own_mongo_transactions_server.resume()
        assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_PASSED")
        assert took_seconds < 9
        assert await service.notes() == 0


# ── refusals that pass ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("update", {"errorCode": 112}),
        ("update", {"errorCode": 24}),
        ("find", {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}),
        ("insert", {"closeConnection": True}),
        ("findAndModify", {"closeConnection": True}),
        ("commitTransaction", {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}),
        ("commitTransaction", {"closeConnection": True}),
    ],
    ids=str,
)
async def test_what_only_lost_is_begun_again(
    service: Service, failing_server: Server, command: str, how: dict[str, Any]
) -> None:
    """With its label or without it, also where the numbers of events are taken beside the transaction."""
    await service.create("a")
    fail(failing_server, command, **how)
    answer = await service.send("/v1:transact", {"operations": [add("a"), create("b")], "emit": [event()]})
    fail(failing_server, command, times=0)
    assert answer.status_code == 200, answer.text
    assert await service.balance("a") == 1
    assert await service.store._database["hk_outbox"].count_documents({}) == 1


@pytest.mark.parametrize("code", [112, 246])
async def test_a_refusal_at_the_start_does_not_turn_transactions_off(
    failing_server: Server, code: int
) -> None:
    """The server may say so right after it has made indexes; two replicas start at once."""
    fail(failing_server, "commitTransaction", errorCode=code, errorLabels=["TransientTransactionError"])
    with _isolation.mongo_database(failing_server) as url:
        async with running(url) as service:
            fail(failing_server, "commitTransaction", times=0)
            assert (await service.transact(create("a"), create("b"))).status_code == 200


async def test_a_server_without_the_snapshot_that_writes_need_has_no_transactions(
    failing_server: Server,
) -> None:
    """Better one record at a time than a start that promises more."""
    fail(failing_server, "insert", 100, errorCode=115, errorMessage="snapshot reads are not supported")
    with _isolation.mongo_database(failing_server) as url:
        async with AsyncMongoClient[dict[str, Any]](url) as client:
            found = await probe(client.get_default_database(), "hk_keys")
    fail(failing_server, "insert", times=0)
    assert not found.transactions


# ── writes that are done, and not yet durable ────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [64, 100])
@pytest.mark.parametrize("several", [False, True], ids=["one record", "transaction"])
async def test_a_write_that_is_not_durable_yet_is_of_unknown_outcome_and_its_key_finds_out(
    service: Service, failing_server: Server, code: int, several: bool
) -> None:
    """It was done, and the same key gets its answer once the server confirms writes again."""
    await service.create("a")
    concern = {"code": code, "errmsg": "waiting for replication timed out"}
    operations = [add("a"), create("b")] if several else [add("a")]
    fail(
        failing_server,
        "commitTransaction" if several else "update",
        4 if several else 1,
        writeConcernError=concern,
    )
    first = await service.transact(*operations, key="k")
    fail(failing_server, "update", times=0)
    assert (first.status_code, first.json()["code"]) == (504, "OUTCOME_UNKNOWN"), first.text
    assert first.json()["retryable"]
    again = await service.transact(*operations, key="k")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert await service.balance("a") == 1


# ── a key on both sides ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first_without", [True, False], ids=["first without", "first with"])
async def test_a_key_is_known_to_replicas_with_and_without_transactions(
    mongo_transactions_url: str, first_without: bool
) -> None:
    """A replica may have started before its server became a replica set."""
    body = {"operations": [add("a")], "emit": [event()]}
    async with running(mongo_transactions_url) as one, running(mongo_transactions_url) as other:
        await one.create("a")
        old, new = (one, other) if first_without else (other, one)
        without_transactions(one)
        first = await old.send("/v1:transact", body, key="k")
        again = await new.send("/v1:transact", body, key="k")
        assert (first.status_code, again.status_code, again.text) == (200, 200, first.text)
        assert again.headers["idempotency-replayed"] == "true"
        assert await one.balance("a") == 1
        another = await new.send("/v1:transact", {**body, "operations": [add("a", 2)]}, key="k")
        assert (another.status_code, another.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


def without_transactions(service: Service) -> None:
    """Have the running service take its server for one that has none."""
    writer = service.store._writer
    writer._capabilities = replace(writer._capabilities, transactions=False)
