"""Clients on applications in the same process: our own transport, and httpx's."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from hybridkit.clients import AnyTransport, AsgiTransport, ClientPolicy, ServiceClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._transports._httpx import open_transport
from hybridkit.context import RequestContext, bind, current
from hybridkit.errors import DeadlinePassedError, OutcomeUnknownError, UnavailableError
from hybridkit.retry import Retry

POLICY = ClientPolicy(read_timeout_seconds=30, write_timeout_seconds=30, retry=Retry.immediate(attempts=1))
STREAM = Intent(method="GET", path="/stream", safe=True)


class Application:
    """What the tests ask, and what it noticed."""

    def __init__(self) -> None:
        self.noticed: list[str] = []
        self.go_on = asyncio.Event()
        self.done = asyncio.Event()
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.get("/hello/{name}")(self.hello)
        self.app.post("/echo")(self.echo)
        self.app.get("/slow")(self.slow)
        self.app.get("/stream")(self.stream)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncGenerator[dict[str, str]]:
        self.noticed.append("start")
        yield {"greeting": "hello"}
        self.noticed.append("stop")

    async def hello(self, name: str, request: Request) -> str:
        return f"{request.state.greeting} {name} {request.url} {current().user_id}"

    async def echo(self, request: Request) -> object:
        return await request.json()

    async def slow(self) -> None:
        await self.go_on.wait()
        self.done.set()

    async def stream(self) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"1\n"
            await self.go_on.wait()
            yield b"2\n"

        return StreamingResponse(lines())


def client(transport: AnyTransport, policy: ClientPolicy = POLICY) -> ServiceClient:
    return ServiceClient("http://app/", service="api", transport=transport, policy=policy)


async def test_the_lifespan_is_around_the_requests() -> None:
    """The application starts before its first request and ends with the client; the caller's context stays outside."""
    application = Application()
    with bind(RequestContext(user_id="user-1")):
        async with client(AsgiTransport(application.app)) as api:
            answer = await api.get("/hello/b%20c", params={"x": "ü"}, response_model=str)
            await api.get("/hello/again")
    assert answer == "hello b c http://app/hello/b c?x=%C3%BC None"
    assert application.noticed == ["start", "stop"]


@pytest.mark.parametrize("make", [AsgiTransport, httpx.ASGITransport])
async def test_a_body_goes_there_and_back(make: Callable[[FastAPI], AnyTransport]) -> None:
    """Both in-process transports carry a JSON body to a route and its answer back."""
    async with client(make(Application().app)) as api:
        assert await api.post("/echo", json={"a": [1]}, response_model=dict[str, list[int]]) == {"a": [1]}


@pytest.mark.parametrize("make", [AsgiTransport, httpx.ASGITransport])
async def test_a_deadline_ends_a_call_in_the_process_too(make: Callable[[FastAPI], AnyTransport]) -> None:
    """A handler that takes longer than the policy allows raises at its caller."""
    async with client(make(Application().app), replace(POLICY, read_timeout_seconds=0.05)) as api:
        with pytest.raises(DeadlinePassedError):
            await api.get("/slow")


async def test_a_handler_goes_on_when_its_caller_has_left() -> None:
    """The handler ends its work as it would behind a socket, so a lost answer can be tested."""
    application = Application()
    async with client(AsgiTransport(application.app), replace(POLICY, read_timeout_seconds=0.2)) as api:
        with pytest.raises(DeadlinePassedError):
            await api.get("/slow")
        application.go_on.set()
        await application.done.wait()


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"status": "none"},
        {"status": 200, "headers": [("name", "value")]},
        {"status": 200, "headers": [1]},
    ],
    ids=["no status", "status", "text for bytes", "no pairs"],
)
async def test_an_answer_whose_head_is_none_is_a_lost_one(start: dict[str, Any]) -> None:
    """An application that breaks ASGI's rules looks like a server that breaks HTTP's."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", **start})
            await send({"type": "http.response.body"})

    async with client(AsgiTransport(application)) as api:
        with pytest.raises(OutcomeUnknownError):
            await api.post("/a")


async def test_a_body_comes_while_it_is_made() -> None:
    """The first chunk is there while the handler still waits to make the second."""
    application = Application()
    wire = AsgiTransport(application.app)
    pipeline = Pipeline(wire, base_url="http://app", target="app", service="api", policy=POLICY)
    async with pipeline.stream(STREAM) as answer:
        assert await anext(answer.chunks) == b"1\n"
        application.go_on.set()
        assert [chunk async for chunk in answer.chunks] == [b"2\n"]
    async with pipeline.stream(STREAM) as answer:
        assert await anext(answer.chunks) == b"1\n"  # and the rest is left
    await wire.aclose()


async def test_httpx_makes_the_whole_body_first() -> None:
    """The difference that is the reason for a transport of our own: httpx's holds the body, and opens no lifespan."""
    application = Application()
    application.go_on.set()
    wire = open_transport(httpx.ASGITransport(application.app))
    pipeline = Pipeline(wire, base_url="http://app", target="app", service="api", policy=POLICY)
    async with pipeline.stream(STREAM) as answer:
        assert b"".join([chunk async for chunk in answer.chunks]) == b"1\n2\n"
    await wire.aclose()
    assert application.noticed == []


async def test_an_error_in_the_application_is_the_cause() -> None:
    """Starlette answers 500 and raises it again; what doesn't answer has lost its answer."""

    async def raises(scope: object, receive: object, send: object) -> None:
        raise KeyError("bug")

    async def ends(scope: object, receive: object, send: object) -> None:
        """Without an answer."""

    for application, cause in ((raises, KeyError), (ends, type(None))):
        async with client(AsgiTransport(application)) as api:
            with pytest.raises(OutcomeUnknownError, match="the application") as caught:
                await api.post("/")
            assert type(caught.value.__cause__) is cause


async def test_an_application_that_does_not_start() -> None:
    """A failed startup is an `UnavailableError` with its reason."""

    async def fails(
        scope: object, receive: object, send: Callable[[MutableMapping[str, object]], Awaitable[None]]
    ) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async with client(AsgiTransport(fails)) as api:
        with pytest.raises(UnavailableError, match="did not start: no database"):
            await api.get("/")
