"""An export ends with its count, or it was cut; and a reader that leaves takes its cursor along."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from hybridkit.dataservice._http import _export
from hybridkit.dataservice._store._protocol import ExportChunk
from hybridkit.errors import DeadlinePassedError, UnavailableError

NDJSON = "application/x-ndjson"


class Cursor:
    """A store whose export gives lines until it is told otherwise."""

    def __init__(self, store: Any, *, pieces: int, failure: Exception | None = None) -> None:
        self._store = store
        self._pieces = pieces
        self._failure = failure
        self.closed = asyncio.Event()
        self.given = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def export(self, *_: Any) -> AsyncGenerator[ExportChunk]:
        try:
            while self.given < self._pieces:
                self.given += 1
                yield ExportChunk(b'{"n":1}\n', 1)
                await asyncio.sleep(0)
            if self._failure is not None:
                raise self._failure
        finally:
            self.closed.set()


class Reader:
    """Reads an answer as a server does, and leaves when it has had enough."""

    def __init__(self, *, leaves_after: int | None = None, stops_after: int | None = None) -> None:
        self.started: list[int] = []
        self.body = b""
        self.whole = False
        self._leaves_after = leaves_after
        self._stops_after = stops_after
        self._left = asyncio.Event()
        self._received = 0

    async def receive(self) -> dict[str, Any]:
        if self._received == 0:
            self._received = 1
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started.append(message["status"])
            return
        self.body += message["body"]
        self.whole = not message.get("more_body", False)
        lines = self.body.count(b"\n")
        if self._leaves_after is not None and lines >= self._leaves_after:
            self._left.set()
        if self._stops_after is not None and lines >= self._stops_after:
            await asyncio.Event().wait()

    async def export(self, app: Any) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/v1/notes",
            "query_string": b"",
            "headers": [(b"accept", NDJSON.encode())],
        }
        await app(scope, self.receive, self.send)


@pytest.mark.parametrize("records", [0, 1, 250])
async def test_an_export_is_every_record_and_their_number(routes: Any, records: int) -> None:
    """`GET` and `QUERY` export alike; without records there is the last line only."""
    items = [{"data": {"title": str(number)}} for number in range(records)]
    if items:
        await routes.send("POST", "/v1/notes:batch_create", {"items": items})
    for method, path, body in (
        ("GET", "/v1/notes?select=title", None),
        ("QUERY", "/v1/notes", {"select": ["title"]}),
    ):
        answer = await routes.send(method, path, body, accept=NDJSON)
        assert (answer.status_code, answer.headers["content-type"]) == (200, NDJSON)
        *lines, end = map(orjson.loads, answer.content.splitlines())
        assert {line["title"] for line in lines} == {str(number) for number in range(records)}
        assert end == {"$end": True, "count": records}


async def test_an_export_has_no_pages(routes: Any) -> None:
    """A page token is refused, as it can't mean anything."""
    answer = await routes.send("GET", "/v1/notes?page_token=x", accept=NDJSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_QUERY")


async def test_what_fails_before_the_first_line_is_a_problem(routes: Any) -> None:
    """The status is not sent yet, so the caller gets a proper one."""
    routes.app.state.store = Cursor(routes.store, pieces=0, failure=UnavailableError("away"))
    answer = await routes.send("GET", "/v1/notes", accept=NDJSON)
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")


async def test_what_fails_later_leaves_the_answer_without_an_end(routes: Any) -> None:
    """The server then closes the connection, as the application has raised."""
    routes.app.state.store = Cursor(routes.store, pieces=2, failure=UnavailableError("away"))
    reader = Reader()
    with pytest.raises(UnavailableError):
        await reader.export(routes.app)
    assert (reader.started, reader.body.count(b"\n"), reader.whole) == ([200], 2, False)


async def test_a_cursor_that_times_out_is_no_reader_that_left(routes: Any) -> None:
    """Its error goes through, so that the connection is cut."""
    routes.app.state.store = Cursor(routes.store, pieces=2, failure=TimeoutError("the cursor's own"))
    with pytest.raises(TimeoutError, match="the cursor's own"):
        await Reader().export(routes.app)


async def test_a_reader_that_leaves_stops_the_cursor(routes: Any) -> None:
    """The cursor holds a connection of the pool, so it ends after a few more lines."""
    cursor = routes.app.state.store = Cursor(routes.store, pieces=1_000_000)
    reader = Reader(leaves_after=3)
    async with asyncio.timeout(60):
        await reader.export(routes.app)
    assert cursor.closed.is_set()
    assert cursor.given < 100
    assert not reader.whole


async def test_a_reader_that_takes_nothing_loses_the_cursor(
    routes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stays open without reading must not hold one of the pool."""
    monkeypatch.setattr(_export, "SLOW_READER_SECONDS", 0.02)
    cursor = routes.app.state.store = Cursor(routes.store, pieces=1_000_000)
    with pytest.raises(DeadlinePassedError, match="took nothing"):
        await Reader(stops_after=2).export(routes.app)
    assert cursor.closed.is_set()
