"""The response of a keyed write: when it is stored, and what comes after it or instead of it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any

import httpx
import pytest
from fakeredis import FakeAsyncRedis
from fastapi import BackgroundTasks, FastAPI, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.requests import Request

from tests.helpers.apis import GONE, Api, key, orders_app, problem, receive_of, scope_of

NOT_KEPT = (409, "IDEMPOTENCY_ANSWER_NOT_KEPT")


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app(done: list[Any]) -> FastAPI:
    return orders_app(done)


@pytest.fixture
async def keyed(app: FastAPI, serve_keyed: Api) -> AsyncGenerator[httpx.AsyncClient]:
    async with serve_keyed(app) as client:
        yield client


# ── answers that can't be kept ───────────────────────────────────────────────────────────────────


@pytest.fixture
def large(app: FastAPI, done: list[Any], tmp_path: Any) -> FastAPI:
    """Routes with answers that are too much for a record."""
    chunk = b"x" * 9000
    (tmp_path / "large").write_bytes(chunk * 5)

    async def chunks() -> AsyncIterable[bytes]:
        for _ in range(5):
            yield chunk

    @app.post("/large_body")
    async def large_body() -> str:
        done.append(1)
        return "x" * 40_000

    @app.post("/binary")
    async def binary() -> Response:
        done.append(1)
        return Response(bytes(range(256)) * 100)

    @app.post("/large_headers")
    async def largeraw_headers(response: Response) -> int:
        done.append(1)
        response.headers["x-much"] = "x" * 40_000
        return 1

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        done.append(1)
        return StreamingResponse(chunks())

    @app.post("/events")
    async def events() -> StreamingResponse:
        done.append(1)
        return StreamingResponse(chunks(), media_type="text/event-stream")

    @app.post("/file")
    async def file() -> FileResponse:
        done.append(1)
        return FileResponse(tmp_path / "large")

    return app


@pytest.mark.parametrize("path", ["/large_body", "/binary", "/large_headers", "/stream", "/events", "/file"])
async def test_an_answer_too_large_to_keep_is_given_once_and_the_work_is_not_repeated(
    large: FastAPI, serve_keyed: Api, done: list[Any], path: str
) -> None:
    """A repetition gets a 409 that says so, and another body still gets a 422."""
    async with serve_keyed(large) as client:
        first = await client.post(path, headers=key("k"))
        assert first.status_code == 200
        for _ in range(2):
            again = await client.post(path, headers=key("k"))
            assert problem(again) == NOT_KEPT
            assert "too large to keep" in again.json()["detail"]
        assert problem(await client.post(path, headers=key("k"), content=b"x")) == (422, "KEY_REUSED")
    assert done == [1]


async def test_a_stream_that_fits_is_kept_when_it_is_complete(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The replay has the whole body and its length."""

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        done.append(1)
        return StreamingResponse(iter([b"a", b"b"]), 202, media_type="text/plain")

    async with serve_keyed(app) as client:
        answers = [await client.post("/stream", headers=key("k")) for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in answers] == [(202, "ab")] * 2
    assert answers[1].headers["content-length"] == "2"
    assert done == [1]


async def test_a_stream_that_breaks_off_may_run_again(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """A response that failed half-way is not stored."""

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        def parts() -> Iterable[bytes]:
            yield b"a"
            done.append(1)
            if len(done) == 1:
                raise RuntimeError("half-way")
            yield b"b"

        return StreamingResponse(parts())

    async with serve_keyed(app) as client:
        with pytest.raises(RuntimeError):
            await _whole(client, app, "/stream")
        assert (await client.post("/stream", headers=key("k"))).text == "ab"
    assert len(done) == 2


async def _whole(client: httpx.AsyncClient, app: FastAPI, path: str) -> None:
    """As a server does that lets the application's error through."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=client.base_url) as raw:
        await raw.post(path, headers=key("k"))


async def test_parts_of_a_stream_are_not_held_back(app: FastAPI, serve_keyed: Api) -> None:
    """The first part is sent before the second one is generated."""
    sent: list[Any] = []
    first_is_out = asyncio.Event()

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterable[bytes]:
            yield b"a"
            await first_is_out.wait()
            yield b"b"

        return StreamingResponse(parts())

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message.get("body") == b"a":
            first_is_out.set()

    async with serve_keyed(app), asyncio.timeout(60):
        await app(scope_of("/stream"), receive_of([b""]), send)
    assert sent[0] == "http.response.start"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 302, 303])
async def test_an_answer_that_says_done_is_kept_also_when_it_redirects(
    app: FastAPI, serve_keyed: Api, done: list[Any], status: int
) -> None:
    """The replay has the status and the location."""

    @app.post("/done")
    async def finish() -> Response:
        done.append(1)
        return Response(None, status, {"location": "/there"})

    async with serve_keyed(app) as client:
        for _ in range(2):
            answer = await client.post("/done", headers=key("k"))
            assert (answer.status_code, answer.headers["location"]) == (status, "/there")
    assert done == [1]


@pytest.mark.parametrize("status", [307, 308, 400, 404, 409, 422, 429, 460, 500, 503])
async def test_an_answer_that_does_not_say_done_is_not_kept(
    app: FastAPI, serve_keyed: Api, done: list[Any], status: int
) -> None:
    """Other redirects and errors release the key."""

    @app.post("/other")
    async def other() -> Response:
        done.append(1)
        return RedirectResponse("/there", status) if status < 400 else Response("no", status)

    async with serve_keyed(app) as client:
        for _ in range(2):
            answer = await client.post("/other", headers=key("k"))
            assert answer.status_code == status
            assert "idempotency-replayed" not in answer.headers
    assert done == [1, 1]


@pytest.mark.parametrize("kind", ["http.response.pathsend", "http.response.zerocopysend"])
async def test_a_file_that_the_server_sends_by_itself_is_sent_and_not_kept(
    app: FastAPI, serve_keyed: Api, done: list[Any], kind: str
) -> None:
    """A repetition gets the error for a response that was not stored."""

    async def sends(scope: Any, receive: Any, send: Any) -> None:
        done.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": kind, "path": "/file"})

    app.mount("/file", sends)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with serve_keyed(app) as client:
        await app(scope_of("/file/"), receive_of([b""]), send)
        assert [message["type"] for message in sent] == ["http.response.start", kind]
        assert problem(await client.post("/file/", headers=key("k"))) == NOT_KEPT
    assert done == [1]


# ── what comes after an answer, or instead of it ─────────────────────────────────────────────────


async def test_an_answer_does_not_wait_for_what_comes_after_it(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The response is sent and stored while its background task still runs."""
    answered, go_on = asyncio.Event(), asyncio.Event()

    @app.post("/letters")
    async def letter(tasks: BackgroundTasks) -> str:
        async def deliver() -> None:
            await go_on.wait()
            done.append("delivered")

        tasks.add_task(deliver)
        done.append("asked")
        return "ok"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    async with serve_keyed(app) as client, asyncio.timeout(60):
        first = asyncio.create_task(app(scope_of("/letters"), receive_of([b""]), send))
        await answered.wait()
        assert (await client.post("/letters", headers=key("k"))).json() == "ok"
        go_on.set()
        await first
    assert done == ["asked", "delivered"]


async def test_a_failure_after_an_answer_takes_it_not_back(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The repetition gets the stored response although the background task has failed."""

    @app.post("/letters")
    async def letter(tasks: BackgroundTasks) -> str:
        def deliver() -> None:
            raise RuntimeError("nobody takes letters today")

        tasks.add_task(deliver)
        done.append("asked")
        return "ok"

    async with serve_keyed(app) as client:
        for _ in range(2):
            answer = await client.post("/letters", headers=key("k"))
            assert (answer.status_code, answer.json()) == (200, "ok")
    assert done == ["asked"]


async def test_a_request_that_is_cancelled_after_its_answer_has_been_answered(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """A stop cuts the background task off, and the answer stays kept."""
    answered = asyncio.Event()

    @app.post("/letters")
    async def letter(tasks: BackgroundTasks) -> str:
        async def deliver() -> None:
            await asyncio.Event().wait()

        tasks.add_task(deliver)
        done.append("asked")
        return "ok"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    async with serve_keyed(app) as client, asyncio.timeout(60):
        first = asyncio.create_task(app(scope_of("/letters"), receive_of([b""]), send))
        await answered.wait()
        first.cancel()
        await asyncio.wait({first})
        assert (await client.post("/letters", headers=key("k"))).json() == "ok"
    assert done == ["asked"]


async def test_a_request_that_is_cancelled_before_its_answer_may_run_again(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The cancelled run releases its key."""
    going = asyncio.Event()

    @app.post("/slow")
    async def slow() -> str:
        done.append(1)
        if len(done) == 1:
            going.set()
            await asyncio.Event().wait()
        return "ok"

    async def send(message: Any) -> None: ...

    async with serve_keyed(app) as client, asyncio.timeout(60):
        first = asyncio.create_task(app(scope_of("/slow"), receive_of([b""]), send))
        await going.wait()
        first.cancel()
        await asyncio.wait({first})
        assert (await client.post("/slow", headers=key("k"))).json() == "ok"
    assert len(done) == 2


async def test_a_client_that_leaves_before_the_answer_finds_it_kept(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The work goes on after the disconnect, and the repetition is a replay."""

    @app.post("/slow")
    async def slow(request: Request) -> str:
        await request.body()
        assert await request.is_disconnected()
        done.append(1)
        return "ok"

    async def send(message: Any) -> None: ...

    async with serve_keyed(app) as client, asyncio.timeout(60):
        await app(scope_of("/slow"), receive_of([b""]), send)
        assert (await client.post("/slow", headers=key("k"))).json() == "ok"
    assert done == [1]


async def test_a_client_that_leaves_in_the_middle_of_its_body_has_asked_for_nothing(
    app: FastAPI, serve_keyed: Api, done: list[Any], fake_redis: FakeAsyncRedis
) -> None:
    """Nothing runs, and Redis has no key."""
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, GONE])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None: ...

    async with serve_keyed(app):
        await app(scope_of("/orders"), receive, send)
        assert await fake_redis.keys() == []
    assert done == []
