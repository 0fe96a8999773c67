"""Who calls and what is asked for, as far as a route declares it and middleware has found it out."""

from collections.abc import Callable
from typing import Annotated, Any
from uuid import NAMESPACE_DNS, uuid5

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Response, Security
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from hybridkit.adapters.fastapi import create_app
from tests.helpers.apis import Api, Settings, key, problem


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


async def test_whatever_header_or_parameter_a_scheme_names_parts_keys(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The route says where it looks for an API key; no name of it is needed to be known."""
    by_header = APIKeyHeader(name="X-Gate", auto_error=False)
    by_parameter = APIKeyQuery(name="gate", auto_error=False)

    def opened(
        first: Annotated[str | None, Security(by_header)],
        second: Annotated[str | None, Security(by_parameter)],
    ) -> str:
        return first or second or ""

    @app.post("/mine")
    async def mine(by: Annotated[str, Depends(opened)]) -> str:
        done.append(by)
        return by

    async with serve_keyed(app) as client:
        for value in ("one", "two", "one"):
            answer = await client.post("/mine", headers=key("k") | {"x-gate": value})
            assert answer.json() == value
            answer = await client.post("/mine?gate=" + value, headers=key("q"))
            assert answer.json() == value
    assert done == ["one", "one", "two", "two"]


class Wishes(BaseModel):
    x_size: str = ""


@pytest.mark.parametrize("where", ["route", "model"])
async def test_a_header_that_the_route_declares_is_part_of_the_request(
    app: FastAPI, serve_keyed: Api, done: list[Any], where: str
) -> None:
    """Another value under one key is refused, whoever sends it; what belongs to one attempt may differ."""

    async def by_route(x_size: Annotated[str, Header()]) -> str:
        done.append(x_size)
        return x_size

    async def by_model(wishes: Annotated[Wishes, Header()]) -> str:
        done.append(wishes.x_size)
        return wishes.x_size

    routes: dict[str, Callable[..., Any]] = {"route": by_route, "model": by_model}
    app.post("/mine")(routes[where])
    async with serve_keyed(app) as client:
        answers = [
            await client.post("/mine", headers=key("k") | {"x-size": value, "x-request-id": f"r-{attempt}"})
            for attempt, value in enumerate(["S", "L", "S"])
        ]
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert (answers[1].json()["code"], answers[2].json(), done) == ("KEY_REUSED", "S", ["S"])


HEADERS_OF_CALLERS = [
    "x-employee-no",
    "x-who",
    "x-telegram-init-data",
    "x-ssl-client-dn",
    "x-consumer-username",
    "x-amzn-oidc-data",
    "cf-access-jwt-assertion",
    "x-forwarded-email",
    "x-sso",
    "x-signed-by",
]
PLACES = ["route dependency", "router dependency", "inner dependency", "scheme", "request", "none", "plain"]


def _serve_at(app: FastAPI, place: str, header: str, done: list[Any]) -> None:
    """Add `POST /mine`, which answers with the header's value, read where the place says."""

    def read(value: Annotated[str, Header(alias=header)]) -> str:
        return value

    def read_further(value: Annotated[str, Depends(read)]) -> str:
        return value

    def read_request(request: Request) -> str:
        return request.headers[header]

    async def mine(request: Request) -> Response:
        done.append(request.headers[header])
        return Response(request.headers[header])

    dependencies: dict[str, Any] = {
        "route dependency": Depends(read),
        "inner dependency": Depends(read_further),
        "scheme": Security(APIKeyHeader(name=header)),
        "request": Depends(read_request),
    }
    if place == "plain":
        app.add_route("/mine", mine, methods=["POST"])
    elif place == "router dependency":
        router = APIRouter(dependencies=[Depends(read)])
        router.post("/mine")(mine)
        app.include_router(router)
    else:
        app.post("/mine", dependencies=[dependencies[place]] if place in dependencies else [])(mine)


@pytest.mark.parametrize("place", PLACES)
async def test_no_header_of_whatever_name_lets_one_caller_have_the_answer_of_another(
    app: FastAPI, serve_keyed: Api, done: list[Any], place: str
) -> None:
    """What a dependency or a scheme reads says who calls; what nobody is known to read makes another request."""
    async with serve_keyed(app) as client:
        for header in HEADERS_OF_CALLERS:
            done.clear()
            one = FastAPI()
            _serve_at(one, place, header, done)
            app.router.routes[:] = [*one.router.routes, *app.router.routes]
            answers = [
                await client.post("/mine", headers=key(header) | {header: value})
                for value in ("ann", "bea", "ann")
            ]
            assert answers[0].text == answers[2].text == "ann", header
            if place in ("request", "none", "plain") and answers[1].status_code == 422:
                assert problem(answers[1]) == (422, "KEY_REUSED")
                assert done == ["ann"]
            else:
                assert (answers[1].text, done) == ("bea", ["ann", "bea"]), header


async def test_cookies_and_parameters_that_dependencies_read_part_keys(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """Another cookie or another parameter is another caller."""

    def read(who: str, badge: Annotated[str, Cookie()]) -> str:
        return who + badge

    @app.post("/mine")
    async def mine(by: Annotated[str, Depends(read)]) -> str:
        done.append(by)
        return by

    async with serve_keyed(app) as client:
        for who, badge in (("a", "1"), ("b", "1"), ("a", "2"), ("a", "1")):
            headers = key("k") | {"cookie": f"badge={badge}"}
            assert (await client.post("/mine", params={"who": who}, headers=headers)).json() == who + badge
    assert done == ["a1", "b1", "a2"]


@pytest.mark.parametrize("place", PLACES)
async def test_what_belongs_to_one_attempt_may_differ_wherever_it_is_read(
    app: FastAPI, serve_keyed: Api, done: list[Any], place: str
) -> None:
    """Tracing, forwarding, the caller's program: a scheme that declares one of them as a key is the exception."""
    async with serve_keyed(app) as client:
        for header in (
            "traceparent",
            "tracestate",
            "baggage",
            "x-b3-traceid",
            "x-cloud-trace-context",
            "x-amzn-trace-id",
            "x-request-id",
            "x-correlation-id",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-real-ip",
            "forwarded",
            "via",
            "cf-ray",
            "cache-control",
            "pragma",
            "user-agent",
            "origin",
            "referer",
            "sec-fetch-site",
            "dnt",
            "priority",
            "x-retry-count",
            "date",
        ):
            done.clear()
            one = FastAPI()
            _serve_at(one, place, header, done)
            app.router.routes[:] = [*one.router.routes, *app.router.routes]
            for value in ("1", "2"):
                await client.post("/mine", headers=key(header) | {header: value})
            assert done == (["1", "2"] if place == "scheme" else ["1"]), header


class _Person:
    def __init__(self, name: str) -> None:
        self.id = name


FOUND: dict[str, Callable[[str], dict[str, Any]]] = {
    "a text as the user": lambda name: {"user": name},
    "a dictionary as the user": lambda name: {"user": {"sub": name}},
    "an object as the user": lambda name: {"user": _Person(name)},
    "a user in the state": lambda name: {"state": {"user": _Person(name)}},
    "an id in the state": lambda name: {"state": {"user_id": uuid5(NAMESPACE_DNS, name)}},
    "claims in the state": lambda name: {"state": {"claims": {"sub": name}}},
    "a tenant in the state": lambda name: {"state": {"tenant_id": name}},
    "a certificate": lambda name: {"extensions": {"tls": {"client_cert_name": f"CN={name}"}}},
}


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("is_mounted", [False, True])
async def test_whom_middleware_has_found_out_owns_the_key(
    app: FastAPI,
    serve_keyed: Api,
    done: list[Any],
    found: Callable[[str], dict[str, Any]],
    *,
    is_mounted: bool,
) -> None:
    """By whatever means: nothing in the headers needs to tell two callers apart."""

    class Authentication:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                name = dict(scope["headers"])[b"x-way-in"].decode()
                for part, value in found(name).items():
                    scope[part] = (
                        {**scope.get(part, {}), **value} if part in ("state", "extensions") else value
                    )
            await self.inner(scope, receive, send)

    async def mine(request: Request) -> Response:
        done.append(request.headers["x-way-in"])
        return Response(request.headers["x-way-in"])

    app.add_middleware(Authentication)
    app.post("/mine")(mine)
    app.mount("/apps", Starlette(routes=[Route("/mine", mine, methods=["POST"])]))
    async with serve_keyed(app) as client:
        for name in ("ann", "bea", "ann"):
            path = "/apps/mine" if is_mounted else "/mine"
            assert (await client.post(path, headers=key("k") | {"x-way-in": name})).text == name
    assert done == ["ann", "bea"]
