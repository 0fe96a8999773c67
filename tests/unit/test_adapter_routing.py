"""The last steps to a route: the routes of the SDK, and errors above the application's own routes."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import NoMatchFound
from structlog.testing import capture_logs

from hybridkit.adapters._http._asgi import ProblemMiddleware, RequestContextMiddleware
from hybridkit.adapters._http._routing import RouteDispatch, shorten
from hybridkit.adapters.fastapi import create_app
from tests.helpers.apis import Settings, serving


class Passing:
    """Middleware of an application's own, which changes nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, *arguments: Any) -> None:
        await self.app(*arguments)


@pytest.fixture(params=[False, True], ids=["short", "with middleware"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    """An application without middleware of its own, and one with it, which keeps all of Starlette's."""
    application = create_app(Settings, title="Test")
    if request.param:
        application.add_middleware(Passing)
    return application


def kinds(stack: Any) -> list[type]:
    found: list[type] = []
    while stack is not None:
        found.append(type(stack))
        stack = getattr(stack, "app", None)
    return found


def test_an_application_without_middleware_has_the_short_way(app: FastAPI) -> None:
    """What the outermost middleware does as well is left out; an application's own middleware needs all of it."""
    found = kinds(app.build_middleware_stack())
    is_short = Passing not in found
    assert (RouteDispatch in found) is is_short
    assert (ProblemMiddleware in found) is not is_short
    assert (ExceptionMiddleware in found) is not is_short


async def test_a_handler_answers_what_the_router_raises(app: FastAPI) -> None:
    """An unknown path and a wrong method have no route that could ask for the handler of their errors."""

    async def answer(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"ours: {error}", 404)

    async def read() -> None:
        """Answer nothing."""

    app.add_exception_handler(404, answer)
    app.add_api_route("/known", read)
    async with serving(app) as client:
        unknown, wrong = await client.get("/unknown"), await client.post("/known")
    assert (unknown.status_code, unknown.text) == (404, "ours: 404: Not Found")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "application/problem+json")


async def test_an_error_after_the_head_of_a_response_has_no_second_answer(app: FastAPI) -> None:
    """The application's handler is not asked, as a client can't have two responses."""
    asked: list[Exception] = []

    async def answer(_: Request, error: Exception) -> Response:
        asked.append(error)
        return PlainTextResponse("ours", 400)

    async def torn(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("gone")

    app.add_exception_handler(LookupError, answer)
    app.mount("/torn", torn)
    with capture_logs():
        async with serving(app) as client:
            response = await client.get("/torn/it")
    assert response.status_code == 200
    assert asked == []


async def test_own_routes_are_found_before_those_of_the_application(app: FastAPI) -> None:
    """No route of an application hides whether it is alive, also behind a proxy that adds a prefix."""

    async def read(path: str) -> str:
        return path

    app.add_api_route("/{path:path}", read)
    async with serving(app) as client:
        assert (await client.get("/health")).json()["status"] == "alive"
        assert (await client.post("/health")).status_code == 405
        assert (await client.get("/health/")).json() == "health/"
        app.root_path = "/api"
        for path in ("/health", "/api/health"):
            assert (await client.get(path)).json()["status"] == "alive"
        assert (await client.get("/apihealth")).json() == "apihealth"


def test_own_routes_have_their_names(app: FastAPI) -> None:
    """FastAPI's names of its pages lead to them."""
    assert app.url_path_for("swagger_ui_html") == "/docs"
    with pytest.raises(NoMatchFound):
        app.url_path_for("unknown")
    assert "/ready" in repr(app.router.routes[0])


async def test_a_stack_of_another_form_stays_as_it_is() -> None:
    """Another version of Starlette or FastAPI may put it together in another way."""

    async def answer(*_: Any) -> None:
        """Answer nothing."""

    handling = ExceptionMiddleware(answer)
    outermost = RequestContextMiddleware(ProblemMiddleware(Passing(handling)))
    shorten(outermost)
    assert kinds(outermost)[:3] == [RequestContextMiddleware, Passing, ExceptionMiddleware]
    plain = RequestContextMiddleware(ProblemMiddleware(answer))
    shorten(plain)
    assert plain.app is answer
    assert repr(RouteDispatch((), handling, "files", FastAPI().router)) == "RouteDispatch('files')"
