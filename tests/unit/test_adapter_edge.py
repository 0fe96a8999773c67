"""The edge of an API: headers for browsers, cross-origin pages, time, and settings that belong to one start."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from hybridkit.adapters import _running
from hybridkit.adapters._http import _asgi, _deadlines
from hybridkit.adapters._http._edge import Edge
from hybridkit.adapters.fastapi import create_app
from hybridkit.context import bind, current
from hybridkit.errors import DeclarationError, SettingsError
from hybridkit.security import OPEN
from hybridkit.settings import EdgeSettings
from tests.helpers.apis import problem, serving

SHOP = "https://shop.example"
SECURITY = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Settings(EdgeSettings):
    service_name: str = "edge"
    environment: Any = "test"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No load balancer is waited for."""
    monkeypatch.setattr(_running, "UNREADY_SECONDS", 0.0)


@pytest.fixture
def app() -> FastAPI:
    application = create_app(Settings, title="Edge", security=OPEN, timeouts={"/long": None, "/short": 0.05})

    @application.get("/plain")
    async def plain() -> str:
        return "plain"

    @application.get("/own")
    async def own() -> Response:
        headers = {"content-security-policy": "default-src 'self'", "cache-control": "max-age=60"}
        return Response("own", headers=headers)

    @application.get("/who")
    async def who(request: Request) -> dict[str, Any]:
        return {"client": request.client.host if request.client else None, "url": str(request.url)}

    return application


@asynccontextmanager
async def started(app: FastAPI, **settings: Any) -> AsyncGenerator[httpx.AsyncClient]:
    app.state.settings = Settings(**settings)
    async with serving(app) as client:
        yield client


# ── headers ──────────────────────────────────────────────────────────────────────────────────────


async def test_every_answer_has_the_security_headers(app: FastAPI) -> None:
    """Answers of routes, of unknown paths and of refused requests have them, and an answer's own ones stay."""
    async with started(app) as client:
        answers = [
            await client.get("/plain"),
            await client.get("/nowhere"),
            await client.post("/plain"),
            await client.get("/plain", headers=[("x-request-id", "a"), ("x-request-id", "b")]),
        ]
        own = await client.get("/own")
    assert [answer.status_code for answer in answers] == [200, 404, 405, 400]
    for answer in answers:
        assert SECURITY.items() <= answer.headers.items()
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    assert own.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert own.headers["x-content-type-options"] == "nosniff"


async def test_our_own_services_get_no_headers_for_browsers() -> None:
    """Behind the edge there is none."""
    app = create_app(Settings, title="Inner", internal=True)
    async with started(app) as client:
        answer = await client.get("/health", headers={"authorization": "Bearer x"})
    assert not SECURITY.keys() & answer.headers.keys()


@pytest.mark.parametrize(
    ("environment", "scheme", "has_it"),
    [("production", "https", True), ("production", "http", False), ("test", "https", False)],
)
async def test_browsers_stay_with_tls_where_the_answer_came_by_it(
    app: FastAPI, environment: str, scheme: str, has_it: bool
) -> None:
    """`Strict-Transport-Security` is for production, and means nothing without TLS."""
    async with started(app, environment=environment, trusted_proxies=["127.0.0.1"]) as client:
        forwarded = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": scheme}
        answer = await client.get("/plain", headers=forwarded)
    assert ("strict-transport-security" in answer.headers) is has_it


async def test_an_answer_to_credentials_is_not_stored(app: FastAPI) -> None:
    """The same holds for an answer to a user who was found in another way; a route's own words stay."""

    @app.get("/bound")
    async def bound() -> str:
        with bind(replace(current(), user_id="7")):
            return "for 7"

    async with started(app) as client:
        stored = [
            (await client.get(path, headers=headers)).headers.get("cache-control")
            for path, headers in (
                ("/plain", {}),
                ("/plain", {"authorization": "Bearer x"}),
                ("/plain", {"cookie": "session=x"}),
                ("/bound", {}),
                ("/own", {"authorization": "Bearer x"}),
            )
        ]
    assert stored == [None, "no-store", "no-store", "no-store", "max-age=60"]


@pytest.mark.parametrize("value", ["a\r\nset-cookie: session=x", "a\nb", "a\rb"])
async def test_a_header_with_the_end_of_a_line_is_a_failure(app: FastAPI, value: str) -> None:
    """A route that copies a parameter into a header forges nothing; the caller gets a 500 without the value."""

    @app.get("/copy")
    async def copy(to: str) -> Response:
        return Response(headers={"location": to})

    async with started(app) as client:
        answer = await client.get("/copy", params={"to": value})
    assert problem(answer) == (500, "INTERNAL")
    assert "set-cookie" not in answer.headers
    assert "location" not in answer.headers


async def test_the_pages_of_the_document_may_load_what_they_need(app: FastAPI) -> None:
    """Scripts come from the place that FastAPI's pages name, and from nowhere else."""
    async with started(app) as client:
        for path in ("/docs", "/redoc"):
            page = await client.get(path)
            [policy] = page.headers.get_list("content-security-policy")
            allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
            sources = {line.split('"')[1] for line in page.text.split("src=")[1:]}
            assert sources
            assert all(source.split("/")[2] in allowed["script-src"] for source in sources)
            assert (allowed["default-src"], allowed["frame-ancestors"]) == ("'none'", "'none'")
            assert allowed["connect-src"] == "'self'"


@pytest.mark.parametrize(
    ("environment", "serve_docs", "status"),
    [("production", True, 200), ("production", None, 404), ("test", False, 404), ("test", None, 200)],
)
async def test_the_document_is_served_where_the_settings_ask_for_it(
    app: FastAPI, environment: str, serve_docs: bool | None, status: int
) -> None:
    """By default that is everywhere but in production."""
    async with started(app, environment=environment, serve_docs=serve_docs) as client:
        assert {(await client.get(path)).status_code for path in ("/docs", "/openapi.json")} == {status}


# ── other origins ────────────────────────────────────────────────────────────────────────────────


async def test_pages_of_other_origins_may_not_call_by_default(app: FastAPI) -> None:
    """No header allows them, and a question before a request is a wrong method."""
    question = {"origin": SHOP, "access-control-request-method": "POST"}
    async with started(app) as client:
        answers = [
            await client.get("/plain", headers={"origin": SHOP}),
            await client.options("/plain", headers=question),
        ]
    assert [answer.status_code for answer in answers] == [200, 405]
    assert not any(name.startswith("access-control-") for each in answers for name in each.headers)


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (SHOP, True),
        ("https://shop.example.evil.example", False),
        ("https://evil.example", False),
        ("http://shop.example", False),
        ("https://SHOP.example", False),
        ("https://shop.example:8443", False),
        ("null", False),
        ("", False),
        ("*", False),
    ],
)
async def test_pages_of_named_origins_may_call(app: FastAPI, origin: str, is_allowed: bool) -> None:
    """Answers, errors among them, and the question before a request name that one origin; caches tell them apart."""
    question = {
        "origin": origin,
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization,idempotency-key",
    }
    async with started(app, cors_origins=[SHOP], cors_credentials=True) as client:
        answers = [await client.get(path, headers={"origin": origin}) for path in ("/plain", "/nowhere")]
        asked = await client.options("/plain", headers=question)
    for answer in (*answers, asked):
        assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
        assert ("access-control-allow-credentials" in answer.headers) is is_allowed
        assert "Origin" in answer.headers["vary"]
    assert asked.status_code == (204 if is_allowed else 403)
    if is_allowed:
        assert asked.headers["access-control-allow-headers"] == "authorization,idempotency-key"
        assert "PUT" in asked.headers["access-control-allow-methods"]
        assert "X-Request-ID" in answers[0].headers["access-control-expose-headers"]


async def test_every_page_may_read_what_needs_no_credentials(app: FastAPI) -> None:
    """`*` is told as it is, so browsers send no cookie."""
    async with started(app, cors_origins=["*"]) as client:
        answer = await client.get("/plain", headers={"origin": "https://anybody.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_an_options_request_of_the_applications_own_reaches_it(app: FastAPI) -> None:
    """Only a browser's question, which names an origin and a method, is answered before the application."""

    @app.options("/plain")
    async def options() -> str:
        return "mine"

    async with started(app, cors_origins=[SHOP]) as client:
        for headers in ({}, {"origin": SHOP}, {"access-control-request-method": "PUT"}):
            assert (await client.options("/plain", headers=headers)).json() == "mine"


# ── proxies ──────────────────────────────────────────────────────────────────────────────────────


async def test_the_client_is_the_one_that_trusted_proxies_name(app: FastAPI) -> None:
    """Routes, rate limits and the log see its address and scheme; without trusted proxies nothing is believed."""
    headers = {"x-forwarded-for": "198.51.100.9, 203.0.113.7", "x-forwarded-proto": "https"}
    async with started(app, trusted_proxies=["127.0.0.0/8"]) as client:
        believed = (await client.get("/who", headers=headers)).json()
    async with started(app) as client:
        ignored = (await client.get("/who", headers=headers)).json()
    assert believed == {"client": "203.0.113.7", "url": "https://test/who"}
    assert ignored == {"client": "127.0.0.1", "url": "http://test/who"}


async def test_production_refuses_to_start_where_uvicorn_believes_everybody(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `FORWARDED_ALLOW_IPS=*` each caller would choose its own address."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with pytest.raises(SettingsError, match="FORWARDED_ALLOW_IPS: should be unset"):
        async with started(app, environment="production"):
            pass
    async with started(app):
        pass


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_has_the_time_of_the_settings(app: FastAPI) -> None:
    """Calls to other services share it; a caller may shorten it, and paths may have their own."""

    @app.get("/left")
    @app.get("/long/left")
    async def left() -> float | None:
        return current().remaining_seconds()

    async with started(app, request_seconds=20) as client:
        remaining = [
            (await client.get(path, headers=headers)).json()
            for path, headers in (
                ("/left", {}),
                ("/left", {"x-request-timeout": "5"}),
                ("/left", {"x-request-timeout": "500"}),
                ("/long/left", {}),
                ("/long/left", {"x-request-timeout": "500"}),
            )
        ]
    assert 15 < remaining[0] <= 20
    assert 0 < remaining[1] <= 5
    assert 15 < remaining[2] <= 20
    assert remaining[3] is None
    assert remaining[4] > 400


async def test_work_beyond_its_time_is_cancelled(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns that the outcome is open, and what ran sees its cancellation."""
    monkeypatch.setattr(_deadlines, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(_deadlines, "SWEEP_SECONDS", 0.01)
    ended = asyncio.Event()

    @app.get("/short/work")
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with started(app) as client:
        answer = await client.get("/short/work")
        assert (await client.get("/plain")).status_code == 200
    assert problem(answer) == (504, "DEADLINE_EXCEEDED")
    assert ended.is_set()


async def test_a_response_that_has_begun_goes_on(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is not cut when the time for its request is over."""
    monkeypatch.setattr(_deadlines, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(_deadlines, "SWEEP_SECONDS", 0.01)

    is_over = asyncio.Event()
    run_out_of_time = _asgi._RequestCycle.run_out_of_time

    def noted(cycle: Any) -> None:
        run_out_of_time(cycle)
        is_over.set()

    monkeypatch.setattr(_asgi._RequestCycle, "run_out_of_time", noted)

    async def parts() -> AsyncGenerator[bytes]:
        yield b"first "
        await is_over.wait()
        yield b"last"

    @app.get("/short/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(parts())

    async with started(app) as client:
        assert (await client.get("/short/stream")).text == "first last"


def test_deadlines_hold_in_a_second_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer of a loop that has ended is not waited for."""
    monkeypatch.setattr(_deadlines, "SWEEP_SECONDS", 0.01)
    deadlines = _deadlines.Deadlines()

    class Ended:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        def run_out_of_time(self) -> None:
            self.event.set()

    async def begun() -> None:
        deadlines.add(Ended(), time.monotonic() + 600)

    async def ended() -> None:
        request = Ended()
        deadlines.add(request, time.monotonic() - 600)
        async with asyncio.timeout(60):
            await request.event.wait()

    asyncio.run(begun())
    asyncio.run(ended())
    assert repr(deadlines) == "Deadlines(1 requests)"


@pytest.mark.parametrize("timeouts", [{"reports": 5.0}, {"/reports": 0.0}, {"/reports": -1.0}])
def test_a_timeout_that_means_nothing_is_refused(timeouts: dict[str, float | None]) -> None:
    """A path begins with a slash, and a time is positive."""
    with pytest.raises(DeclarationError, match=r"timeout '/?reports'"):
        create_app(Settings, title="Edge", timeouts=timeouts)


def test_the_edge_is_shown_by_its_rules() -> None:
    """Origins and proxies are no secrets."""
    edge = Edge()
    edge.configure(Settings(cors_origins=(SHOP,), trusted_proxies=(IPv4Network("10.0.0.0/8"),)))
    assert repr(edge) == (
        f"Edge(Cors([b'{SHOP}'], credentials=False), TrustedProxies(['10.0.0.0/8'], hops=0))"
    )


async def test_a_long_url_is_refused(app: FastAPI) -> None:
    """Path and query have 8 KiB together."""
    async with started(app) as client:
        fits = await client.get("/plain", params={"q": "x" * 8000})
        answers = [
            await client.get("/plain", params={"q": "x" * 8192}),
            await client.get("/" + "x" * 8192),
        ]
    assert fits.status_code == 200
    assert [problem(answer) for answer in answers] == [(414, "URI_TOO_LONG")] * 2


# ── one start after the other ────────────────────────────────────────────────────────────────────


async def test_each_start_has_settings_of_its_own(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an earlier start is left, neither in the application nor in its middleware."""
    asked = {"origin": SHOP, "x-forwarded-for": "203.0.113.7"}
    seen: list[Any] = []
    for settings in (
        {"cors_origins": [SHOP], "trusted_proxies": ["127.0.0.1"], "environment": "production"},
        {"cors_origins": ["https://other.example"]},
        {},
    ):
        async with started(app, **settings) as client:
            answer = await client.get("/who", headers=asked)
            shown = answer.headers.get("access-control-allow-origin"), answer.headers.get("vary")
            seen.append((*shown, answer.json()["client"], (await client.get("/docs")).status_code))
    assert seen == [
        (SHOP, "Origin", "203.0.113.7", 404),
        (None, "Origin", "127.0.0.1", 200),
        (None, None, "127.0.0.1", 200),
    ]
    monkeypatch.setenv("CORS_ORIGINS", f'["{SHOP}"]')
    async with serving(app) as client:  # settings of no start before: read anew
        assert (await client.get("/who", headers=asked)).headers["access-control-allow-origin"] == SHOP
