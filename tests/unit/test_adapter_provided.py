"""Arguments of FastAPI's routes that the application provides by type."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from hybridkit._injection import plan_injection
from hybridkit.adapters.dependencies import Mongo, Postgres, Provided, Publisher
from hybridkit.adapters.fastapi import api_lifespan, create_app
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.errors import DeclarationError
from hybridkit.lifespan import ServiceResources
from hybridkit.settings import ServiceSettings
from tests.helpers.apis import Settings, serving


@dataclass
class Mailer:
    """A resource of the application's own, which FastAPI would take for a body."""

    sender: str


def opening(yielded: Any) -> Callable[[FastAPI], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[Any]:
        yield yielded

    return lifespan


def signing(mailer: Provided[Mailer]) -> str:
    return f"by {mailer.sender}"


def mailing_app(yielded: Mapping[Any, object]) -> FastAPI:
    app, router = create_app(Settings, title="Mails", lifespan=opening(yielded)), APIRouter(prefix="/mails")

    @router.post("")
    async def send(
        text: str,
        settings: Provided[Settings],
        mailer: Provided[Mailer],
        signed: Annotated[str, Depends(signing)],
    ) -> list[str]:
        return [settings.service_name, mailer.sender, text, signed]

    app.include_router(router)
    return app


async def test_a_route_gets_the_settings_and_what_the_lifespan_yields() -> None:
    """Also in a router and a dependency, and the request's own parameters stay what they are."""
    app = mailing_app({Mailer: Mailer("ada"), "greeting": "hello"})
    async with serving(app) as client:
        answer = await client.post("/mails?text=hi")
        assert answer.json() == ["test_service", "ada", "hi", "by ada"]
    async with serving(app) as client:  # again, with other resources
        assert (await client.post("/mails?text=hi")).status_code == 200


async def test_what_the_lifespan_yields_by_name_is_the_state_of_starlette() -> None:
    """As in every application of FastAPI, whether or not there are types beside it."""
    for yielded in ({"greeting": "hello"}, {"greeting": "hello", Mailer: Mailer("ada")}):
        async with create_app(Settings, title="Mails", lifespan=opening(yielded)).router.lifespan_context(
            FastAPI()
        ) as state:
            assert state == {"greeting": "hello"}


async def test_the_document_has_nothing_of_what_is_provided() -> None:
    """Neither a body nor a parameter, as no request has them."""
    operation = mailing_app({}).openapi()["paths"]["/mails"]["post"]
    assert [each["name"] for each in operation["parameters"]] == ["text"]
    assert "requestBody" not in operation


async def test_a_test_overrides_a_dependency_by_its_type() -> None:
    """Of the application's own, of the settings and of a data client, which then needs no provider."""
    app = mailing_app({})
    client_of_test = object()

    @app.get("/same")
    async def same(postgres: Postgres) -> bool:
        return postgres is client_of_test

    app.dependency_overrides = {
        Mailer: lambda: Mailer("a test"),
        Settings: lambda: Settings(service_name="tested"),
        PostgresDataClient: lambda: client_of_test,
    }
    async with serving(app) as client:
        assert (await client.post("/mails?text=hi")).json() == ["tested", "a test", "hi", "by a test"]
        assert (await client.get("/same")).json() is True


async def test_an_application_does_not_start_without_what_its_routes_ask_for() -> None:
    """All of it is named, with the routes, but a data client, as a test of other routes leaves its address out."""
    app = mailing_app({})

    @app.get("/orders")
    async def orders(publisher: Publisher, mongo: Mongo) -> None: ...

    with pytest.raises(DeclarationError, match=r"provides Mailer \(/mails\), RobustPublisher \(/orders\): "):
        async with serving(app):
            pass


async def settings_as_body(settings: Settings) -> None: ...
async def settings_in_a_dependency(told: Annotated[None, Depends(settings_as_body)]) -> None: ...
async def settings_or_none(settings: ServiceSettings | None = None) -> None: ...
async def mailer_as_body(mailer: Mailer) -> None: ...


@pytest.mark.parametrize(
    ("route", "named"),
    [
        (settings_as_body, "settings: Settings"),
        (settings_in_a_dependency, "settings: Settings"),
        (settings_or_none, "settings: ServiceSettings"),
        (mailer_as_body, "mailer: Mailer"),
    ],
)
async def test_a_bare_type_that_would_be_read_from_the_request_is_refused(
    route: Callable[..., Any], named: str
) -> None:
    """FastAPI takes it for a body in silence, so whoever calls could choose the settings."""
    app = create_app(Settings, title="Mails", lifespan=opening({Mailer: Mailer("ada")}))
    app.add_api_route("/mails", route, methods=["POST"])
    with pytest.raises(DeclarationError, match=rf"read {named} \(/mails\) from the request: write Provided"):
        async with serving(app):
            pass


async def test_a_model_that_nothing_provides_stays_a_body() -> None:
    """The same class is a resource in one application and a body in another."""
    app = create_app(Settings, title="Mails")

    @app.post("/mails")
    async def send(mailer: Mailer) -> str:
        return mailer.sender

    async with serving(app) as client:
        assert (await client.post("/mails", json={"sender": "ada"})).json() == "ada"


async def test_a_key_that_is_no_type_is_refused_in_an_api_too() -> None:
    """No route could ask for it."""
    with pytest.raises(DeclarationError, match="the lifespan yields 7"):
        async with serving(create_app(Settings, title="Mails", lifespan=opening({7: "seven"}))):
            pass


async def test_a_route_of_an_application_of_ones_own_says_what_is_missing() -> None:
    """`api_lifespan` checks no routes, so the request fails."""
    own = FastAPI()

    @own.get("/mails")
    async def mails(mailer: Provided[Mailer]) -> None: ...

    transport = httpx.ASGITransport(own)  # raises what the application raises
    async with (
        api_lifespan(own, Settings()),
        httpx.AsyncClient(transport=transport, base_url="http://own") as client,
    ):
        with pytest.raises(DeclarationError, match="nothing provides Mailer: "):
            await client.get("/mails")


async def test_the_same_annotation_works_in_a_worker_and_a_bot() -> None:
    """Their handlers are planned by the type inside of it."""

    async def handle(mailer: Provided[Mailer], mongo: Mongo) -> None: ...

    async with ServiceResources() as resources:
        resources.provide(Mailer, Mailer("ada"))
        missing = plan_injection(handle).missing(resources.providers)
    assert [want.type for want in missing] == [MongoDataClient]
