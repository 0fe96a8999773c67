"""Who calls and what is asked for, as far as a route declares it and middleware has found it out."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any
from uuid import NAMESPACE_DNS, uuid5

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, Response, Security
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from hybridkit.adapters.fastapi import create_app
from hybridkit.settings import ServiceSettings

type Api = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


class Settings(ServiceSettings):
    service_name: str = "test_service"


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


def key(name: str) -> dict[str, str]:
    return {"idempotency-key": name}


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


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


@pytest.mark.parametrize("where", ["route", "dependency", "model"])
async def test_a_header_that_the_route_declares_is_part_of_the_request(
    app: FastAPI, serve_keyed: Api, done: list[Any], where: str
) -> None:
    """Another value under one key is refused, whoever sends it; what belongs to one attempt may differ."""

    def size(x_size: Annotated[str, Header()], x_request_id: Annotated[str, Header()]) -> str:
        assert x_request_id
        return x_size

    async def by_route(x_size: Annotated[str, Header()]) -> str:
        done.append(x_size)
        return x_size

    async def by_dependency(found: Annotated[str, Depends(size)]) -> str:
        done.append(found)
        return found

    async def by_model(wishes: Annotated[Wishes, Header()]) -> str:
        done.append(wishes.x_size)
        return wishes.x_size

    routes: dict[str, Callable[..., Any]] = {
        "route": by_route,
        "dependency": by_dependency,
        "model": by_model,
    }
    app.post("/mine")(routes[where])
    async with serve_keyed(app) as client:
        answers = [
            await client.post("/mine", headers=key("k") | {"x-size": value, "x-request-id": f"r-{attempt}"})
            for attempt, value in enumerate(["S", "L", "S"])
        ]
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert (answers[1].json()["code"], answers[2].json(), done) == ("KEY_REUSED", "S", ["S"])


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
