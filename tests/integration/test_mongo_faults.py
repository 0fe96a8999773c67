"""The MongoDB service while its database is frozen, killed and restarted: bounded, typed, and back by itself."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.dataservice import DocumentCollection, create_data_service
from hybridkit.dev import Server
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, SecretUrl


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record):
    pass


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)


@asynccontextmanager
async def running(url: str) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_data_service(MongoSettings, {NOTES: DocumentCollection()})
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
        assert read.json()["code"] == "DEADLINE_EXCEEDED"
        assert written.status_code == 504
        assert took_seconds < 5
        assert (await write(http, "during")).status_code == 201
        notes = (await http.get("/v1/notes")).json()["items"]
        assert sorted(note["text"] for note in notes) == ["before", "during"]


@pytest.mark.real_server
async def test_a_killed_database_is_unavailable_until_it_is_back(own_mongo_server: Server) -> None:
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
