"""What a caller of an API is told: any status that a route raises, and of others' requests only what concerns it."""

import asyncio
from collections.abc import Generator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_DNS

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from hybridkit.adapters.fastapi import create_app
from hybridkit.context import current
from hybridkit.contract import Problem
from hybridkit.errors import (
    AccessDeniedError,
    ConflictError,
    FieldProblem,
    HybridkitError,
    InvalidRequestError,
    NotFoundError,
    StaleVersionError,
    UnauthenticatedError,
    UnavailableError,
    UniqueViolationError,
)
from tests.helpers.apis import Api, Settings, fails, raising, serving

INNER = "inner-secret-words"


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


@pytest.fixture(autouse=True)
def logged() -> Generator[list[Any]]:
    """The lines of the log: printed, a stack trace costs seconds."""
    with capture_logs() as lines:
        yield lines


# ── whatever status a route raises ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [200, 201, 204, 205, 301, 302, 303, 304, 307, 308])
async def test_a_status_that_is_no_error_is_answered_without_a_problem(
    app: FastAPI, serve_keyed: Api, status: int
) -> None:
    """An `HTTPException` below 400 keeps its headers, keyed or not."""
    paths = raising(app, HTTPException(status, headers={"Location": "/sign-in", "X-Mine": "1"}))
    async with serve_keyed(app) as client:
        for path in paths:
            for headers in ({}, {"idempotency-key": "k"}, {"idempotency-key": "k"}):
                answer = await client.post(path, headers=headers)
                assert (answer.status_code, answer.headers["location"]) == (status, "/sign-in")
                assert answer.headers["x-mine"] == "1"
                assert "problem" not in answer.headers.get("content-type", "")
                assert status not in (204, 205, 304) or answer.content == b""


async def test_what_is_raised_without_being_an_error_keeps_its_detail(app: FastAPI) -> None:
    """The detail of a 202 is its body."""
    raising(app, HTTPException(202, {"left": 3}))
    async with serving(app) as client:
        assert (await client.post("/route")).json() == {"detail": {"left": 3}}


@pytest.mark.parametrize(
    "status", [400, 402, 404, 409, 410, 418, 422, 423, 428, 429, 451, 460, 499, 500, 503, 520, 599]
)
async def test_every_status_from_400_on_is_a_problem(app: FastAPI, serve_keyed: Api, status: int) -> None:
    """This includes statuses without a name, wherever they are raised, keyed or not."""
    paths = raising(
        app, HTTPException(status, "as it is", headers={"Retry-After": "7", "Content-Type": "x/y"})
    )
    async with serve_keyed(app) as client:
        for path in paths[:2]:
            for headers in ({}, {"idempotency-key": "k"}, {"idempotency-key": "k"}):
                answer = await client.post(path, headers=headers)
                assert answer.status_code == answer.json()["status"] == status
                assert (answer.json()["detail"], answer.headers["retry-after"]) == ("as it is", "7")
                assert answer.headers.get_list("content-type") == ["application/problem+json"]
                assert answer.json()["code"]
                assert answer.json()["title"]


@pytest.mark.parametrize("status", [99, 103, 600, 1000])
async def test_a_status_that_no_answer_has_is_a_failure(app: FastAPI, status: int) -> None:
    """It is answered with a 500."""
    raising(app, HTTPException(status, "?"))
    async with serving(app) as client:
        answer = await client.post("/route")
        assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")


@pytest.mark.parametrize(
    "detail",
    [
        {"reason": "moved", "left": 0},
        ["a", {"b": [None, True, 1.5]}],
        [],
        {},
        0,
        False,
        12.5,
        {"nested": {"deeply": {"ü": "чай"}}},
    ],
)
async def test_a_detail_of_any_json_stays_json(app: FastAPI, detail: Any) -> None:
    """The problem is still valid for a client that expects text."""
    raising(app, HTTPException(409, detail))
    async with serving(app) as client:
        answer = await client.post("/route")
        assert answer.json()["detail"] == detail
        problem = Problem.model_validate_json(answer.content)
        assert isinstance(problem.detail, str)
        assert problem.code == "CONFLICT"


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        (None, ""),
        ("", ""),
        ("Conflict", ""),
        ("why", "why"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        ({1: "a", NAMESPACE_DNS: [Decimal("1.10")]}, {"1": "a", str(NAMESPACE_DNS): ["1.10"]}),
        ("half \ud83d", "half ?"),
        (b"\xff", ""),
        ({"a": object()}, ""),
        (object(), ""),
    ],
)
@pytest.mark.parametrize("status", [202, 409])
async def test_a_detail_of_no_json_leaves_the_status(
    app: FastAPI, status: int, detail: Any, told: Any
) -> None:
    """The status is sent without the detail."""
    raising(app, HTTPException(status, detail))
    async with serving(app) as client:
        answer = await client.post("/route")
        assert answer.status_code == status
        assert (answer.json()["detail"] if answer.content else "") == (
            "Conflict" if detail == "Conflict" and status < 400 else told
        )


async def test_headers_of_another_body_are_dropped(app: FastAPI) -> None:
    """With both a length and chunks no client could read the response."""
    others = {"Content-Length": "5", "Transfer-Encoding": "chunked", "Content-Encoding": "gzip", "X-Own": "1"}
    for status in (202, 409):
        app.add_api_route(f"/{status}", fails(HTTPException(status, ["why"], headers=others)))
    async with serving(app) as client:
        for status in (202, 409):
            answer = await client.get(f"/{status}")
            assert (answer.json()["detail"], answer.headers["x-own"]) == (["why"], "1")
            assert not {"transfer-encoding", "content-encoding"} & answer.headers.keys()
            assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (["Basic", 'Digest realm="é"'], ["Basic", 'Digest realm="é"']),
        (("Basic",), ["Basic"]),
        (7, ["7"]),
        (None, ["Bearer"]),
        ("Basic\r\nset-cookie: a=b", ["Basic  set-cookie: a=b"]),
        ("10 €", ["10 €".encode().decode("latin-1")]),
        ("\ud800", ["?"]),
    ],
    ids=["list", "tuple", "number", "none", "lines", "beyond Latin-1", "half a character"],
)
async def test_a_header_of_an_exception_is_sent_as_it_can_be(
    app: FastAPI, value: Any, lines: list[str]
) -> None:
    """A value with odd characters neither costs the status nor adds a header line."""
    app.add_api_route("/a", fails(HTTPException(401, headers={"WWW-Authenticate": value})))
    async with serving(app) as client:
        answer = await client.get("/a")
    assert answer.status_code == 401
    found = [text.decode("latin-1") for name, text in answer.headers.raw if name == b"www-authenticate"]
    assert found == lines


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(float("inf"), None), (float("nan"), None), (-5.0, "0"), (1e308, "129600"), (1.2, "2")],
)
async def test_nobody_is_asked_for_a_time_that_is_none(
    app: FastAPI, seconds: float, header: str | None
) -> None:
    """An infinite or negative `retry_after_seconds` is left out, and the status stays."""
    app.add_api_route("/a", fails(UnavailableError("busy", retry_after_seconds=seconds)))
    async with serving(app) as client:
        answer = await client.get("/a")
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, header)


HALF = "\ud800"


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        NotFoundError(HALF),
        InvalidRequestError("x", errors=[FieldProblem(f"/{HALF}", HALF, HALF)]),
        UniqueViolationError("x", fields=[HALF]),
        StaleVersionError("x", current=HALF),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_half_a_character_in_an_error_costs_no_status(error: HybridkitError, *, internal: bool) -> None:
    """Half of a surrogate pair, as a caller may send it, is replaced in the detail."""
    app = create_app(Settings, title="Test", internal=internal)
    app.add_api_route("/a", fails(error))
    async with serving(app) as client:
        answer = await client.get("/a")
    assert (answer.status_code, answer.json()["code"]) == (error.status, error.code)


@pytest.mark.parametrize("name", ["WWW-Authenticate", "www-authenticate"])
async def test_a_401_has_its_own_challenge_or_ours(app: FastAPI, name: str) -> None:
    """Without a challenge of the route it is `Bearer`."""

    @app.get("/own")
    async def own() -> None:
        raise HTTPException(401, headers={name: 'Basic realm="shop"'})

    @app.get("/ours")
    async def ours() -> None:
        raise HTTPException(401)

    @app.get("/typed")
    async def typed() -> None:
        raise UnauthenticatedError("sign in")

    async with serving(app) as client:
        challenges = [
            (await client.get(path)).headers.get_list("www-authenticate")
            for path in ("/own", "/ours", "/typed")
        ]
    assert challenges == [['Basic realm="shop"'], ["Bearer"], ["Bearer"]]


async def test_an_exception_that_is_raised_from_an_error_of_ours_is_the_one_that_is_told(
    app: FastAPI,
) -> None:
    """The cause does not replace it."""

    def error_of_ours() -> None:
        raise NotFoundError(INNER)

    @app.get("/loan")
    async def loan() -> None:
        try:
            error_of_ours()
        except NotFoundError as error:
            raise HTTPException(410, "no such loan") from error

    async with serving(app) as client:
        answer = await client.get("/loan")
        assert (answer.status_code, answer.json()["detail"]) == (410, "no such loan")


async def test_a_validation_error_that_a_route_raises_is_a_problem(app: FastAPI) -> None:
    """It has a pointer to the field, and not its value."""
    paths = raising(
        app, RequestValidationError([{"loc": ("body", "a", 0), "type": "missing", "input": INNER}])
    )
    async with serving(app) as client:
        for path in paths[:2]:
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")
            assert [error["pointer"] for error in answer.json()["errors"]] == ["/a/0"]
            assert INNER not in answer.text


@pytest.mark.parametrize("error", [NotFoundError("no such loan"), ConflictError("busy"), RuntimeError(INNER)])
async def test_what_a_mounted_application_lets_through_is_a_problem(app: FastAPI, error: Exception) -> None:
    """The 500 of the mounted framework is replaced."""
    raising(app, error)
    async with serving(app) as client:
        answer = await client.post("/mounted/route")
        assert answer.status_code == getattr(error, "status", 500)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("of", [Exception, 500])
@pytest.mark.parametrize("is_sync", [False, True])
async def test_a_failure_is_answered_by_the_applications_own_handler(
    app: FastAPI, logged: list[Any], of: Any, *, is_sync: bool
) -> None:
    """The failure is logged all the same, and hybridkit's errors stay problems."""

    def answer(request: Request, error: Exception) -> Response:
        return Response(f"{request.url.path}: {error}", 500)

    async def answer_later(request: Request, error: Exception) -> Response:
        return answer(request, error)

    app.add_exception_handler(of, answer if is_sync else answer_later)
    app.add_api_route("/broken", fails(RuntimeError("why")))
    app.add_api_route("/typed", fails(NotFoundError("what")))
    async with serving(app) as client:
        broken, typed = await client.get("/broken"), await client.get("/typed")
    assert (broken.status_code, broken.text) == (500, "/broken: why")
    assert (typed.status_code, typed.json()["code"]) == (404, "NOT_FOUND")
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["request failed"]


async def test_a_500_that_an_application_means_is_its_own(app: FastAPI) -> None:
    """A mounted application's `HTTPException(500)` keeps its detail."""
    raising(app, HTTPException(500, "our own"))
    async with serving(app) as client:
        assert (await client.post("/mounted/route")).json() == {"detail": "our own"}


FAILURES = [
    (HTTPException(418, {"a": 1}), 418, {"a": 1}),
    (HTTPException(404, "no such tenant"), 404, "no such tenant"),
    (RequestValidationError([]), 422, "the request does not fit"),
    (AccessDeniedError("not for you"), 403, "not for you"),
    (RuntimeError(INNER), 500, None),
]


@pytest.mark.parametrize(("error", "status", "detail"), FAILURES, ids=lambda case: type(case).__name__)
@pytest.mark.parametrize("is_plain", [False, True])
async def test_what_a_middleware_raises_is_a_problem(
    app: FastAPI, error: Exception, status: int, detail: Any, *, is_plain: bool, logged: list[Any]
) -> None:
    """Middleware that was added later also runs in the request's context, and is logged."""

    async def refuse(_: Request, __: Any) -> Response:
        current().check_deadline()
        raise error

    class Plain:
        def __init__(self, _: Any) -> None: ...

        async def __call__(self, scope: Any, _: Any, __: Any) -> None:
            if scope["type"] == "http":
                raise error

    if is_plain:
        app.add_middleware(Plain)
    else:
        app.middleware("http")(refuse)
    async with serving(app) as client:
        answer = await client.get("/", headers={"x-request-id": "r-1"})
    told = answer.json()
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r-1")
    assert (told.get("detail"), told["instance"], told["request_id"]) == (detail, "/", "r-1") or status == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert any(line["event"] == f"GET / {status}" for line in logged)


@pytest.mark.parametrize(("error", "status", "detail"), FAILURES, ids=lambda case: type(case).__name__)
@pytest.mark.parametrize("path", ["/route", "/first", "/mounted/route"])
async def test_middleware_adds_its_headers_to_problems(
    app: FastAPI, error: Exception, status: int, detail: Any, path: str
) -> None:
    """Without CORS headers no page could read the problem."""
    app.add_middleware(CORSMiddleware, allow_origins=["http://shop"], allow_credentials=True)
    raising(app, error)
    async with serving(app) as client:
        answer = await client.post(path, headers={"origin": "http://shop"})
    assert (answer.status_code, answer.json().get("detail")) == (status, detail) or status in {422, 500}
    assert answer.headers["access-control-allow-origin"] == "http://shop"


@pytest.mark.parametrize(("error", "status", "detail"), FAILURES, ids=lambda case: type(case).__name__)
async def test_a_task_group_changes_nothing_of_what_a_single_error_says(
    app: FastAPI, error: Exception, status: int, detail: Any
) -> None:
    """The error is answered as without the group."""

    async def fail() -> None:
        raise error

    @app.get("/")
    async def both() -> None:
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as group:
            outer.create_task(asyncio.sleep(0))
            group.create_task(fail())

    async with serving(app) as client:
        answer = await client.get("/")
    assert answer.status_code == status
    assert answer.json().get("detail") == detail or status == 500


@pytest.mark.parametrize(
    ("errors_of_group", "status"),
    [
        ([UnavailableError("a", retry_after_seconds=1), UnavailableError("b", retry_after_seconds=9)], 503),
        ([UnavailableError("a"), AccessDeniedError("b")], 403),
        ([UnavailableError("a"), RuntimeError("b")], 500),
    ],
    ids=["both again", "one for good", "one mistake"],
)
async def test_of_several_errors_the_one_that_says_most_about_a_new_try_is_told(
    app: FastAPI, errors_of_group: list[Exception], status: int
) -> None:
    """Two outages at once are an outage, and no mistake of the application."""

    @app.get("/")
    async def both() -> None:
        raise ExceptionGroup("both", errors_of_group)

    async with serving(app) as client:
        answer = await client.get("/")
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == ("9" if status == 503 else None)
