"""The MongoDB service while its database is frozen, killed and restarted: bounded, typed, and back by itself."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from pydantic import BaseModel

from hybridkit.dataservice import DocumentCollection, DocumentIndex, create_data_service
from hybridkit.dev import Server
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl
from tests.helpers import until


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record):
    pass


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)


class Broker:
    """Takes note of what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.event_ids: set[UUID] = set()

    async def publish_encoded(self, body: bytes, *, event_id: UUID, **_: Any) -> None:
        self.texts.append(orjson.loads(body)["data"]["text"])
        self.event_ids.add(event_id)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Broker"]:
        yield self


@asynccontextmanager
async def running(url: str, broker: Broker | None = None) -> AsyncGenerator[httpx.AsyncClient]:
    publisher = None if broker is None else broker.open
    collections = {NOTES: DocumentCollection(indexes=(DocumentIndex("text"),))}
    app = create_data_service(MongoSettings, collections, publisher=publisher)
    app.state.settings = MongoSettings(service_name="db_mongo_service", database_url=SecretUrl(url))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://data")
    async with app.router.lifespan_context(app), http:
        yield http


async def write(http: httpx.AsyncClient, key: str, *, seconds: float = 10.0) -> httpx.Response:
    headers = {"idempotency-key": key, "x-request-timeout": str(seconds)}
    return await http.post("/v1/notes", json={"text": key}, headers=headers)


@pytest.mark.real_server
async def test_a_frozen_database_ends_calls_at_their_deadline_and_loses_nothing(
    own_mongo_server: Server,
) -> None:
    """A write whose outcome nobody knows is repeated with its key, and is there once."""
    async with running(own_mongo_server.url + "notes") as http:
        assert (await write(http, "before")).status_code == 201
        own_mongo_server.freeze()
        began = time.monotonic()
        read = await http.get("/v1/notes", headers={"x-request-timeout": "0.5"})
        written = await write(http, "during", seconds=0.5)
        took_seconds = time.monotonic() - began
        own_mongo_server.resume()
        assert read.json()["code"] == "DEADLINE_PASSED"
        assert written.status_code == 504
        assert took_seconds < 9
        assert (await write(http, "during")).status_code == 201
        notes = (await http.get("/v1/notes")).json()["items"]
        assert sorted(note["text"] for note in notes) == ["before", "during"]


@pytest.mark.real_server
async def test_a_killed_database_is_unavailable_until_it_is_back(own_mongo_server: Server) -> None:
    """The refused write is repeated under its key and done once."""
    async with running(own_mongo_server.url + "notes") as http:
        assert (await write(http, "before")).status_code == 201
        own_mongo_server.kill()
        answer = await write(http, "during", seconds=1)
        assert answer.status_code in (503, 504)
        assert (await http.get("/ready")).status_code == 503
        own_mongo_server.restart()
        assert (await write(http, "during")).status_code == 201
        notes = (await http.get("/v1/notes")).json()["items"]
        assert sorted(note["text"] for note in notes) == ["before", "during"]


# ── a ledger ─────────────────────────────────────────────────────────────────────────────────────


class Writers:
    """Write notes with their events, each until it is told what became of it, and keep book of it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.written: list[str] = []
        self.codes: Counter[str] = Counter()
        self.longest_seconds = 0.0
        self.stopping = asyncio.Event()

    async def work(self, name: str) -> None:
        number = 0
        while not self.stopping.is_set():
            await self._insist(f"{name} {number}")
            self.written.append(f"{name} {number}")
            number += 1

    async def _insist(self, text: str) -> None:
        note, event_id = str(uuid4()), str(uuid4())
        body = {
            "operations": [{"op": "create", "resource": "notes", "id": note, "data": {"text": text}}],
            "emit": [
                {
                    "event_type": "note.written",
                    "event_id": event_id,
                    "timestamp": "2026-01-15T10:30:00Z",
                    "key": text.split(maxsplit=1)[0],
                    "request_id": "r",
                    "data": {"text": text},
                }
            ],
        }
        headers = {"idempotency-key": text, "x-request-timeout": "1"}
        while True:
            began = time.monotonic()
            answer = await self._http.post("/v1:transact", json=body, headers=headers)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            if answer.status_code == 200:
                return
            problem = answer.json()
            assert problem["retryable"], problem
            self.codes[problem["code"]] += 1
            await asyncio.sleep(0.05)

    async def until_more(self, notes: int = 10) -> None:
        """So many more have been written."""
        goal = len(self.written) + notes
        await until(lambda: len(self.written) >= goal, seconds=200)

    async def until_refused(self) -> None:
        """One more write has been refused."""
        goal = self.codes.total() + 1
        await until(lambda: self.codes.total() >= goal, seconds=200)


@pytest.mark.real_server
async def test_nothing_is_lost_or_written_twice_while_the_database_comes_and_goes(
    own_mongo_server: Server,
) -> None:
    """Frozen, killed, restarted under writers that insist: every note once, every event, in its writer's order."""
    broker = Broker()
    async with running(own_mongo_server.url + "notes", broker) as http:
        writers = Writers(http)
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c", "d"):
                group.create_task(writers.work(name))
            await writers.until_more()
            own_mongo_server.freeze()
            await writers.until_refused()
            own_mongo_server.resume()
            await writers.until_more()
            for _ in range(2):
                own_mongo_server.kill()
                await writers.until_refused()
                await asyncio.to_thread(own_mongo_server.restart)
                await writers.until_more()
            writers.stopping.set()
        stored = await _every_note(http)
        await until(lambda: len(broker.event_ids) >= len(stored), seconds=200)
    assert Counter(stored) == Counter(writers.written)
    assert set(broker.texts) == set(stored)
    for name in ("a", "b", "c", "d"):
        mine = [text for text in dict.fromkeys(broker.texts) if text.startswith(f"{name} ")]
        assert mine == sorted(mine, key=lambda text: int(text.split()[1]))
    assert writers.codes.keys() <= {
        "DEADLINE_EXCEEDED",
        "DEADLINE_PASSED",
        "UNAVAILABLE",
        "OUTCOME_UNKNOWN",
        "OVERLOADED",
        "SERIALIZATION_FAILURE",
    }
    assert writers.longest_seconds < 9  # the driver alone would take its 10


async def _every_note(http: httpx.AsyncClient) -> list[str]:
    texts: list[str] = []
    token = ""
    while True:
        page = (await http.get(f"/v1/notes?page_size=500{token}")).json()
        texts += [note["text"] for note in page["items"]]
        if page["next_page_token"] is None:
            return texts
        token = f"&page_token={page['next_page_token']}"


@pytest.mark.real_server
async def test_a_restart_with_a_deadline_and_a_full_stop_answers_in_time(own_mongo_server: Server) -> None:
    """Twenty calls at a server that is gone: each has a typed answer within its second."""
    async with running(own_mongo_server.url + "notes") as http:
        own_mongo_server.kill()
        began = time.monotonic()
        answers = await asyncio.gather(*(write(http, f"k{number}", seconds=1) for number in range(20)))
        assert time.monotonic() - began < 9
        assert {answer.json()["code"] for answer in answers} <= {
            "UNAVAILABLE",
            "DEADLINE_EXCEEDED",
            "DEADLINE_PASSED",
            "OUTCOME_UNKNOWN",
            "OVERLOADED",
        }
        own_mongo_server.restart()
        again = await asyncio.gather(*(write(http, f"k{number}") for number in range(20)))
        assert {answer.status_code for answer in again} == {201}
        assert sorted(await _every_note(http)) == sorted(f"k{number}" for number in range(20))
