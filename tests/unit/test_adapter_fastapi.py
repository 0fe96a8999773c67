"""What every FastAPI application of `create_app` has: context, one log line, problems, health, keyed writes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from structlog.testing import capture_logs

from hybridkit.adapters import _running
from hybridkit.adapters.dependencies import Context
from hybridkit.adapters.fastapi import api_lifespan, create_app
from hybridkit.context import bind, current
from hybridkit.errors import MisuseError, RateLimitedError, UnavailableError, UniqueViolationError
from hybridkit.security import OPEN
from tests.helpers.apis import Settings, serving


class Order(BaseModel):
    amount: int
    note: str = ""


@pytest.fixture
def app() -> FastAPI:
    application = create_app(Settings, title="Test", security=OPEN)

    @application.get("/context")
    async def context(context: Context) -> dict[str, Any]:
        remaining = context.remaining_seconds()
        return {"id": context.request_id, "user": context.user_id, "waits": remaining is not None}

    @application.get("/orders/{number}")
    async def read(number: int) -> int:
        return number

    @application.get("/taken")
    async def taken() -> None:
        raise UniqueViolationError("another order has this number", fields=["number"])

    @application.get("/slow_down")
    async def slow_down() -> None:
        raise RateLimitedError("too many orders", retry_after_seconds=1.2)

    @application.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"x-handle": "here"})

    @application.get("/broken")
    async def broken() -> None:
        raise RuntimeError("hunter2")

    return application


async def test_an_answer_carries_the_request_id_that_came_or_a_new_one(app: FastAPI) -> None:
    """A malformed id is replaced by a new one."""
    async with serving(app) as client:
        kept = await client.get("/context", headers={"x-request-id": "r-1", "x-request-timeout": "5"})
        forged = await client.get("/context", headers={"x-request-id": "two words"})
    assert kept.headers["x-request-id"] == "r-1"
    assert kept.json() == {"id": "r-1", "user": None, "waits": True}
    assert forged.headers["x-request-id"] == forged.json()["id"] != "two words"


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ([("x-request-timeout", "0")], 504, "DEADLINE_PASSED"),
        ([("x-request-timeout", "-0.2")], 504, "DEADLINE_PASSED"),
        ([("x-request-timeout", "5s")], 400, "INVALID_HEADER"),
        ([("x-request-timeout", "5"), ("x-request-timeout", "6")], 400, "INVALID_HEADER"),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], 400, "INVALID_HEADER"),
        ([("idempotency-key", "a"), ("idempotency-key", "b")], 400, "INVALID_HEADER"),
        ([("content-type", "application/json"), ("content-type", "text/plain")], 400, "INVALID_HEADER"),
    ],
)
async def test_a_request_that_is_over_or_says_two_things_does_nothing(
    lines: list[tuple[str, str]], status: int, code: str
) -> None:
    """The refusal has the request's id, so that its sender finds it."""
    application = create_app(Settings, title="Test")
    done: list[Order] = []

    @application.post("/orders")
    async def create(body: Order) -> None:
        done.append(body)

    async with serving(application) as client:
        answer = await client.post("/orders", json={"amount": 1}, headers=[("x-request-id", "r-1"), *lines])
    assert (answer.status_code, answer.json()["code"], done) == (status, code, [])
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "r-1"


async def test_the_id_of_a_request_with_two_is_a_new_one(app: FastAPI) -> None:
    """The problem points to the header, and neither id is used."""
    async with serving(app) as client:
        answer = await client.get("/context", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/header/x-request-id")
    assert answer.headers["x-request-id"] not in ("a", "b")


@pytest.mark.parametrize(("internal", "user"), [(False, None), (True, "ada")])
async def test_only_an_internal_service_believes_who_the_user_is(internal: bool, user: str | None) -> None:
    """An external caller's `X-User-ID` is ignored, and an internal one's must be well formed."""
    application = create_app(Settings, title="Test", internal=internal)

    @application.get("/user")
    async def read_user(context: Context) -> str | None:
        return context.user_id

    async with serving(application) as client:
        assert (await client.get("/user", headers={"x-user-id": "ada"})).json() == user
        odd = await client.get("/user", headers={"x-user-id": "a b"})
        assert odd.status_code == (400 if internal else 200)


async def test_errors_are_problems_with_what_a_client_needs(app: FastAPI) -> None:
    """A conflict has its fields, and a refusal for load has `Retry-After`."""
    async with serving(app) as client:
        taken = await client.get("/taken", headers={"x-request-id": "r-2"})
        slow_down = await client.get("/slow_down")
    assert taken.headers["content-type"] == "application/problem+json"
    assert taken.json() == {
        "type": "about:blank",
        "title": "Value already taken",
        "status": 409,
        "detail": "another order has this number",
        "instance": "/taken",
        "code": "UNIQUE_VIOLATION",
        "retryable": False,
        "request_id": "r-2",
        "errors": [],
        "fields": ["number"],
    }
    assert (slow_down.status_code, slow_down.headers["retry-after"]) == (429, "2")


async def test_what_the_framework_refuses_is_a_problem_too(app: FastAPI) -> None:
    """Unknown routes, wrong methods and `HTTPException` keep their status, headers and detail."""
    async with serving(app) as client:
        unknown = await client.get("/nowhere")
        wrong_method = await client.delete("/context")
        teapot = await client.get("/teapot")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert (teapot.json()["detail"], teapot.headers["x-handle"]) == ("short and stout", "here")


async def test_an_invalid_request_is_told_where_but_never_what(app: FastAPI) -> None:
    """The problem has pointers to the wrong fields, and none of their values."""

    @app.post("/orders")
    async def create(body: Order) -> None: ...

    async with serving(app) as client:
        body = await client.post("/orders", json={"amount": "hunter2", "note": 3})
        path = await client.get("/orders/hunter2")
    assert body.status_code == path.status_code == 422
    assert [error["pointer"] for error in body.json()["errors"]] == ["/amount", "/note"]
    assert [error["pointer"] for error in path.json()["errors"]] == ["/path/number"]
    assert "hunter2" not in body.text + path.json()["detail"]


async def test_an_unexpected_error_tells_the_client_nothing(app: FastAPI) -> None:
    """The log has the exception, and the client its request id."""
    with capture_logs() as lines:
        async with serving(app) as client:
            answer = await client.get("/broken", headers={"x-request-id": "r-3"})
    assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (
        500,
        "INTERNAL",
        "r-3",
    )
    assert "hunter2" not in answer.text
    assert [str(line["exc_info"]) for line in lines if "exc_info" in line] == ["hunter2"]


@pytest.mark.parametrize("internal", [False, True])
async def test_only_our_own_services_are_told_why_something_failed(internal: bool) -> None:
    """External callers get the status and the code without the detail."""
    application = create_app(Settings, title="Test", internal=internal)

    @application.get("/mistaken")
    async def mistaken() -> None:
        raise MisuseError("the shop has no till")

    @application.get("/down")
    async def down() -> None:
        raise UnavailableError("db_postgres_service at 10.0.0.3 does not answer", retry_after_seconds=2)

    with capture_logs() as lines:
        async with serving(application) as client:
            mistake, outage = await client.get("/mistaken"), await client.get("/down")
    assert (mistake.status_code, mistake.json()["code"]) == (500, "MISUSE")
    assert (outage.status_code, outage.json()["retryable"], outage.headers["retry-after"]) == (503, True, "2")
    assert ("no till" in mistake.json()["detail"]) is internal
    assert ("10.0.0.3" in outage.json()["detail"]) is internal
    assert [line["log_level"] for line in lines if line["event"] == "request failed"] == ["error", "warning"]


async def test_metrics_name_the_whole_template_also_of_an_included_router() -> None:
    """A label has neither the path's values nor an unknown method."""
    application, router = create_app(Settings, title="Test"), APIRouter(prefix="/things")

    @router.get("/{number}")
    async def read(number: int) -> int:
        return number

    application.include_router(router, prefix="/v7")
    async with serving(application) as client:
        await client.get("/v7/things/3")
        await client.request("BREW", "/v7/things/3")
        text = (await client.get("/metrics")).text
    assert 'method="GET",route="/v7/things/{number}",status="200"' in text
    assert "BREW" not in text


async def test_head_is_answered_as_get_without_the_body(app: FastAPI) -> None:
    """This includes FastAPI's, included and mounted routes, and errors; a route's own `HEAD` stays."""
    router, mounted = APIRouter(), FastAPI()
    router.get("/included")(lambda: "a")
    mounted.get("/deep")(lambda: "a")
    app.include_router(router)
    app.mount("/mounted", mounted)
    app.post("/posted")(lambda: "a")
    app.head("/own", status_code=204)(lambda: None)
    app.get("/own")(lambda: "a")
    paths = ["/orders/7", "/orders/x", "/taken", "/included", "/mounted/deep", "/health", "/absent"]
    async with serving(app) as client:
        for path in paths:
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert head.headers["content-length"] == got.headers["content-length"]
        assert (await client.head("/posted")).status_code == 405
        assert (await client.head("/own")).status_code == 204
        metrics = (await client.get("/metrics")).text
    assert 'method="HEAD",route="/orders/{number}",status="200"' in metrics


async def test_the_head_of_a_stream_without_end_is_given_at_once(app: FastAPI) -> None:
    """The generator of the body is ended, and not waited for."""
    ended = asyncio.Event()

    async def ticks() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0)
        finally:
            ended.set()

    @app.get("/ticks")
    async def stream() -> StreamingResponse:
        return StreamingResponse(ticks(), media_type="text/event-stream")

    async with serving(app) as client, asyncio.timeout(60):
        assert (await client.head("/ticks")).status_code == 200
        await ended.wait()


async def test_health_ready_and_metrics_are_there_and_undocumented(app: FastAPI) -> None:
    """A draining process is not ready, and the OpenAPI document has none of the three."""
    async with serving(app) as client:
        health, ready = await client.get("/health"), await client.get("/ready")
        await client.get("/orders/7")
        metrics = await client.get("/metrics")
        documented = (await client.get("/openapi.json")).json()["paths"]
        app.state.resources.health.drain()
        draining = await client.get("/ready")
    assert (health.status_code, ready.status_code, draining.status_code) == (200, 200, 503)
    assert 'route="/orders/{number}"' in metrics.text
    assert not {"/health", "/ready", "/metrics"} & set(documented)


@pytest.mark.parametrize("internal", [False, True])
async def test_the_port_of_an_api_tells_strangers_nothing_in_production(
    internal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness is a bare status without the names of dependencies, and metrics are no route at all."""
    monkeypatch.setattr(_running, "UNREADY_SECONDS", 0.0)
    app = create_app(Settings, title="Test", internal=internal, security=OPEN)
    app.state.settings = Settings(environment="production")
    async with serving(app) as client:
        app.state.resources.health.add("inner_service", asyncio.Event().wait)
        ready = await client.get("/ready")
        unknown, metrics = await client.get("/nowhere"), await client.get("/metrics")
        health = await client.get("/health")
    assert (ready.status_code, ready.json()) == (503, {"status": "not_ready"})
    assert (health.status_code, health.json()) == (200, {"status": "alive"})
    assert metrics.status_code == 404
    told = [{**answer.json(), "instance": "", "request_id": ""} for answer in (unknown, metrics)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("environment", "status"), [("development", 200), ("test", 200), ("production", 404)]
)
async def test_documents_are_not_served_in_production(
    app: FastAPI,
    environment: Literal["development", "test", "production"],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Strangers learn none of the routes, and load no page with other hosts' scripts."""
    monkeypatch.setattr(_running, "UNREADY_SECONDS", 0.0)
    app.state.settings = Settings(environment=environment)
    async with serving(app) as client:
        paths = ["/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect"]
        assert {(await client.get(path)).status_code for path in paths} == {status}


def _with_user(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**line, "user": current().user_id}


async def test_a_users_request_is_logged_as_theirs_whether_it_ends_well_or_not() -> None:
    """The log line has the user that a dependency has bound, and no other request's line has."""
    application = create_app(Settings, title="Test")

    async def signed_in(x_name: Annotated[str, Header()]) -> AsyncGenerator[str]:
        with bind(replace(current(), user_id=x_name)):
            yield x_name

    @application.get("/fine")
    async def fine(user: Annotated[str, Depends(signed_in)]) -> str:
        return user

    @application.get("/broken")
    async def broken(user: Annotated[str, Depends(signed_in)]) -> str:
        raise RuntimeError(user)

    async with serving(application) as client:
        with capture_logs([_with_user]) as lines:
            await client.get("/fine", headers={"x-name": "ann"})
            await client.get("/broken", headers={"x-name": "bea"})
            await client.get("/nowhere")
    found = [(line["event"], line["user"]) for line in lines]
    assert found == [
        ("GET /fine 200", "ann"),
        ("request failed", "bea"),
        ("GET /broken 500", "bea"),
        ("GET /nowhere 404", None),
    ]


@pytest.mark.parametrize("is_nested", [False, True])
async def test_a_dependency_that_binds_where_nobody_sees_it_is_told(is_nested: bool) -> None:
    """FastAPI runs a plain generator in a thread, so the route would not see the user."""
    application, done = create_app(Settings, title="Test"), list[str | None]()

    @contextmanager
    def acting() -> Generator[None]:
        with bind(replace(current(), user_id="ann")):
            yield

    def signed_in() -> Generator[None]:
        with acting() if is_nested else bind(replace(current(), user_id="ann")):
            yield

    @application.get("/mine", dependencies=[Depends(signed_in)])
    async def mine() -> None:
        done.append(current().user_id)

    @application.get("/thread")
    def thread() -> str | None:
        with acting():
            return current().user_id

    with capture_logs() as lines:
        async with serving(application) as client:
            assert (await client.get("/mine")).status_code == 500
            assert (await client.get("/thread")).json() == "ann"
    [reason] = [line["reason"] for line in lines if line["event"] == "request failed"]
    assert "write it as `async def signed_in`" in reason
    assert done == []


async def test_each_request_is_one_log_line_without_its_query(app: FastAPI) -> None:
    """Probes are not logged at all, and secrets in a query never are."""
    with capture_logs() as lines:
        async with serving(app) as client:
            await client.get("/orders/7?token=hunter2")
            await client.get("/health")
    [line] = [line for line in lines if "url.path" in line and line["log_level"] == "info"]
    assert line["event"] == "GET /orders/7 200"
    assert "hunter2" not in json.dumps(line)


async def test_the_state_has_what_the_settings_name(app: FastAPI) -> None:
    """Without Redis and RabbitMQ in the settings, both are None."""
    async with serving(app):
        assert app.state.settings.service_name == "test_service"
        assert app.state.redis is None
        assert app.state.rabbitmq is None


async def test_an_application_of_ones_own_gets_the_same_resources() -> None:
    """`api_lifespan` fills the state of any FastAPI application."""
    own = FastAPI()
    async with api_lifespan(own, Settings()) as resources:
        assert own.state.resources is resources


async def test_a_lifespan_of_the_applications_own_runs_inside() -> None:
    """It begins with open resources, and ends before they are closed."""
    steps: list[str] = []

    @asynccontextmanager
    async def own(application: FastAPI) -> AsyncGenerator[dict[str, str]]:
        steps.append(f"open {application.state.resources is not None}")
        yield {"kept": "here"}
        steps.append("closed")

    async with serving(create_app(Settings, title="Test", lifespan=own)):
        assert steps == ["open True"]
    assert steps == ["open True", "closed"]


async def test_two_kinds_of_service_in_one_process_are_refused(app: FastAPI) -> None:
    """When the first one has ended, the process may be of another kind."""
    from hybridkit.adapters._running import open_resources

    async with serving(app):
        with pytest.raises(MisuseError, match="type fastapi, so it can't run one of type worker"):
            async with open_resources("worker", Settings()):
                pass
    async with open_resources("worker", Settings()):
        pass


# ── several starts ───────────────────────────────────────────────────────────────────────────────


async def test_settings_belong_to_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start reads the environment again, unless settings were given for it."""
    app = create_app(Settings, title="Test")

    @app.get("/name")
    async def name(request: Request) -> str:
        return str(request.app.state.settings.service_name)

    async def started() -> str:
        async with serving(app) as client:
            return str((await client.get("/name")).json())

    names = [await started()]
    monkeypatch.setenv("SERVICE_NAME", "from_the_environment")
    names.append(await started())
    app.state.settings = Settings(service_name="given")
    names.append(await started())
    names.append(await started())
    assert names == ["test_service", "from_the_environment", "given", "from_the_environment"]


async def test_a_start_that_failed_leaves_no_settings_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start reads the environment, and succeeds."""
    failures = [LookupError("no templates")]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        if failures:
            raise failures.pop()
        yield

    app = create_app(Settings, title="Test", lifespan=lifespan)
    app.state.settings = Settings(service_name="first")
    with pytest.raises(LookupError):
        async with serving(app):
            pass
    monkeypatch.setenv("SERVICE_NAME", "second")
    async with serving(app) as client:
        assert app.state.settings.service_name == "second"
        assert (await client.get("/ready")).status_code == 200
