"""The contract's routes on a store in memory, for the tests of what HTTP says."""

import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx
import orjson
import pytest
import structlog
from fakeredis import FakeAsyncRedis
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from starlette.routing import Match

from hybridkit.adapters.fastapi import create_app
from hybridkit.dataservice import CallContext
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._callers import Callers, Grant
from hybridkit.dataservice._http._routes import add_routes
from hybridkit.dataservice._memory._store import MemoryStore
from hybridkit.errors import RateLimitedError
from hybridkit.events import Event
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.lifespan import ServiceResources
from hybridkit.resources import Call, Record, Resource
from hybridkit.retry import Retry
from hybridkit.settings import ServiceSettings
from tests.helpers.consuming import Steps

_OF_HTTP = {"content-type", "content-length", "x-request-id"}


class NewNote(BaseModel):
    title: str
    price: Decimal | None = None


class Note(NewNote, Record):
    stars: int = 0


class NoteChanges(BaseModel):
    title: str | None = None
    stars: int | None = None


class NewTag(BaseModel):
    id: str
    color: str


class Tag(NewTag, Record[str]):
    pass


class TagChanges(BaseModel):
    color: str | None = None


class Praise(BaseModel):
    """Give stars to a note."""

    title: str


class Praised(BaseModel):
    caller: str
    letters: int


class NotePraised(Event, type="note.praised", version=1):
    title: str


NOTES = Resource(
    "notes",
    record=Note,
    create=NewNote,
    update=NoteChanges,
    filterable=("title", "stars"),
    sortable=("stars",),
    soft_delete=True,
)
TAGS = Resource("tags", record=Tag, create=NewTag, update=TagChanges, require_match=True)
PRAISE = Call("praise", resource=NOTES, request=Praise, response=Praised)
COUNT_LETTERS = Call("count_letters", resource=NOTES, request=Praise, response=Praised, safe=True)


async def praise(body: Praise, work: CallContext[Any]) -> Praised:
    if body.title == "busy":
        raise RateLimitedError("too much praise", retry_after_seconds=2.5)
    work.emit(NotePraised(title=body.title))
    return Praised(caller=work.caller, letters=len(body.title))


async def count_letters(body: Praise, work: CallContext[Any]) -> Praised:
    if body.title == "loud":
        work.emit(NotePraised(title=body.title))
    return Praised(caller=work.caller, letters=len(body.title))


class DataRoutes:
    """The routes and a client for them, which makes a key for every write."""

    def __init__(self) -> None:
        self.app = create_app(ServiceSettings, title="Notes", internal=True)
        self.store: Any = MemoryStore([NOTES, TAGS])
        resources = {resource.name: RequestBodies(resource) for resource in (NOTES, TAGS)}
        add_routes(self.app, resources, {PRAISE: praise, COUNT_LETTERS: count_letters})
        self.app.state.resources = ServiceResources()
        self.app.state.store = self.store
        self.app.state.can_emit = True
        self.admit(None)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://data")
        self._keys = itertools.count()

    def admit(self, grants: Mapping[str, Grant] | None) -> None:
        self.app.state.callers = Callers(None, grants)

    async def send(
        self, method: str, path: str, body: object = None, *, key: str | None = None, **headers: str
    ) -> httpx.Response:
        """Send it; the body as it is if it is bytes."""
        content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["idempotency-key"] = key or f"key {next(self._keys)}"
        answer = await self.http.request(method, path, content=content, headers=named)
        self.check_documented(answer)
        return answer

    def check_documented(self, answer: httpx.Response) -> None:
        """What a route of the contract answers is in the OpenAPI document: status, headers, type and shape."""
        scope = {"type": "http", "method": answer.request.method, "path": answer.request.url.path}
        match, child = self.app.router.routes[0].matches(scope)
        if match is not Match.FULL:
            return
        path, method = child["route"].path, answer.request.method.lower().replace("head", "get")
        if method == "query":  # OpenAPI 3.1 has no such method
            path, method = f"{path}:query", "post"
        document = self.app.openapi()
        documented = document["paths"][path][method]["responses"][str(answer.status_code)]
        documented = self._resolved(documented)
        assert {name.lower() for name in documented.get("headers", {})} >= set(answer.headers) - _OF_HTTP
        if answer.content:
            media_type = answer.headers["content-type"]
            schema = documented["content"][media_type]["schema"]
            found = answer.text if media_type.endswith("ndjson") else answer.json()
            Draft202012Validator({**schema, "components": document["components"]}).validate(found)

    def _resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in part:
            return part
        _, components, kind, name = part["$ref"].split("/")
        return dict(self.app.openapi()[components][kind][name])

    async def create(self, title: str = "a") -> dict[str, Any]:
        answer = await self.send("POST", "/v1/notes", {"title": title})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.fixture
async def routes() -> AsyncIterator[DataRoutes]:
    """The routes of `notes` (soft deletes, two calls) and `tags` (natural keys, conditions needed)."""
    routes = DataRoutes()
    async with routes.http:
        yield routes


# ── an API with an idempotency guard ─────────────────────────────────────────────────────────────


@pytest.fixture
def fake_redis() -> FakeAsyncRedis:
    """What the guard of `serve_keyed` has its records in."""
    return FakeAsyncRedis(decode_responses=True)


@pytest.fixture
def serve_keyed(
    fake_redis: FakeAsyncRedis,
) -> Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]:
    """Runs an application of `create_app` with a guard inside a `with` block, which is given a client."""

    @asynccontextmanager
    async def serve(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
        async with app.router.lifespan_context(app):
            app.state.resources.provide(IdempotencyGuard, IdempotencyGuard(fake_redis))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client

    return serve


# ── a consumer without a broker ──────────────────────────────────────────────────────────────────


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging is global; a test that configures it leaves it as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    others = [each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    before = [(each, each.level, each.propagate, list(each.handlers)) for each in others]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, its_level, propagates, its_handlers in before:
        logger.setLevel(its_level)
        logger.propagate = propagates
        logger.handlers[:] = its_handlers
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def instant_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays are their upper bound, and pauses of the process itself take no time."""
    monkeypatch.setattr("random.random", lambda: 1.0)
    monkeypatch.setattr(Retry, "pauses", lambda _: itertools.repeat(0.0))


@pytest.fixture
def steps() -> Steps:
    """Return fakes of a channel and a publisher, with a log of what happens to them."""
    return Steps()
