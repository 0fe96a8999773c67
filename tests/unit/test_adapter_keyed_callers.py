"""Whose a keyed write is, and which request: nobody else is given its answer, and no other request of the caller's."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any

import pytest
from fakeredis import FakeAsyncRedis
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, HTTPException, Response
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    UnauthenticatedUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.routing import Route

from hybridkit.adapters.fastapi import create_app
from hybridkit.context import bind, current
from tests.helpers.apis import Api, Settings, key, problem

ANN = {"authorization": "Bearer ann"}
BEA = {"authorization": "Bearer bea"}


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


# ── whose answer it is ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def revoked() -> set[str]:
    """Tokens that are good for nothing any more."""
    return set()


@pytest.fixture
def guarded(done: list[Any], revoked: set[str]) -> FastAPI:
    """An application whose routes let only some callers in, each in its own way."""

    def user(authorization: Annotated[str, Header()] = "") -> str:
        if authorization not in (ANN["authorization"], BEA["authorization"]) or authorization in revoked:
            raise HTTPException(401, "sign in")
        return authorization.removeprefix("Bearer ")

    def note(who: Annotated[str, Depends(user)]) -> dict[str, str]:
        done.append(who)
        return {"owner": who}

    application, router = create_app(Settings, title="Test"), APIRouter(dependencies=[Depends(user)])
    mounted = FastAPI()
    application.post("/direct", status_code=201)(note)
    router.post("/notes", status_code=201)(note)
    application.include_router(router, prefix="/v1")
    mounted.include_router(router, prefix="/deep")
    application.mount("/apps", mounted)

    async def plain(request: Request) -> Response:
        who = user(request.headers.get("authorization", ""))
        done.append(who)
        return Response(who, 201)

    application.mount("/plain", Starlette(routes=[Route("/notes", plain, methods=["POST"])]))
    application.add_route("/plain", plain, methods=["POST"])
    return application


PLACES = ["/direct", "/v1/notes", "/apps/deep/notes", "/plain", "/plain/notes"]


@pytest.mark.parametrize("path", PLACES)
async def test_a_kept_answer_is_for_whom_it_was_made(
    guarded: FastAPI, serve_keyed: Api, done: list[Any], path: str
) -> None:
    """The same user gets it again, another user a response of their own, and a stranger none."""
    async with serve_keyed(guarded) as client:
        first = await client.post(path, headers=ANN | key("k"))
        again = await client.post(path, headers=ANN | key("k"))
        other = await client.post(path, headers=BEA | key("k"))
        wrong = await client.post(path, headers={"authorization": "Bearer eve"} | key("k"))
        nobody = await client.post(path, headers=key("k"))
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert other.status_code == 201
    assert "ann" not in other.text
    assert (wrong.status_code, nobody.status_code) == (401, 401)
    assert done == ["ann", "bea"]


@pytest.mark.parametrize("path", PLACES)
async def test_who_is_not_let_in_does_not_learn_that_a_key_is_taken(
    guarded: FastAPI, serve_keyed: Api, path: str
) -> None:
    """Every request with it is answered with 401, never with 409 or 422."""
    async with serve_keyed(guarded) as client:
        await client.post(path, headers=ANN | key("k"), content=b"1")
        for headers in ({}, {"authorization": "Bearer eve"}):
            for content in (b"1", b"2", b"2", b"3"):
                answer = await client.post(path, headers=headers | key("k"), content=content)
                assert answer.status_code == 401
                assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize("path", ["/direct", "/v1/notes", "/apps/deep/notes"])
async def test_a_kept_answer_is_not_given_to_whom_the_route_refuses_by_now(
    guarded: FastAPI, serve_keyed: Api, revoked: set[str], path: str
) -> None:
    """With a revoked token the repetition gets a 401, and later again the stored response."""
    async with serve_keyed(guarded) as client:
        await client.post(path, headers=ANN | key("k"))
        revoked.add(ANN["authorization"])
        assert (await client.post(path, headers=ANN | key("k"))).status_code == 401
        revoked.clear()
        assert (await client.post(path, headers=ANN | key("k"))).json() == {"owner": "ann"}


async def test_a_repetition_lacks_nothing_that_the_route_asks_for(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """A dependency's header and a route's cookie are required of it as well."""

    def has_seen_terms(x_terms: Annotated[str, Header()]) -> None: ...

    @app.post("/buy", dependencies=[Depends(has_seen_terms)])
    async def buy(color: Annotated[str, Header()]) -> int:
        done.append(color)
        return 1

    seen, color = {"x-terms": "seen"}, {"color": "red"}
    async with serve_keyed(app) as client:
        assert (await client.post("/buy", headers=key("k") | seen | color)).status_code == 200
        assert (await client.post("/buy", headers=key("k") | color)).status_code == 422
        assert (await client.post("/buy", headers=key("k") | seen)).status_code == 422
        assert (await client.post("/buy", headers=key("k") | seen | color)).json() == 1
    assert done == ["red"]


@pytest.mark.parametrize(
    "header",
    [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-apikey",
        "x-auth-token",
        "x-access-token",
        "x-session-id",
        "x-client-id",
        "x-forwarded-client-cert",
        "x-amzn-oidc-identity",
        "remote-user",
        "x-tenant-id",
        "tenant",
        "x-organization",
        "x-org-id",
        "x-account-id",
        "x-workspace",
        "x-scope-orgid",
        "signature",
        "x-username",
        "x-consumer-id",
        "x-member",
        "x-actor",
        "x-merchant-id",
        "x-telegram-init-data",
        "x-client",
        "host",
        "x-forwarded-host",
    ],
)
async def test_what_parts_callers_from_each_other_parts_their_keys(
    app: FastAPI, serve_keyed: Api, done: list[Any], header: str
) -> None:
    """Two values of such a header are two callers with a response each."""

    @app.post("/mine")
    async def mine(request: Request) -> str:
        done.append(request.headers[header])
        return request.headers[header]

    async with serve_keyed(app) as client:
        for value in ("one", "two", "one"):
            answer = await client.post("/mine", headers=key("k") | {header: value})
            assert answer.json() == value
    assert done == ["one", "two"]


@pytest.mark.parametrize("parameter", ["api_key", "access_token", "token", "apikey", "session_id"])
async def test_credentials_in_the_query_part_keys_as_well(
    app: FastAPI, serve_keyed: Api, done: list[Any], parameter: str
) -> None:
    """Two values of such a parameter are two callers with a response each."""

    @app.post("/mine")
    async def mine(request: Request) -> str:
        done.append(request.query_params[parameter])
        return request.query_params[parameter]

    async with serve_keyed(app) as client:
        for value in ("one", "two", "one"):
            answer = await client.post("/mine", params={parameter: value}, headers=key("k"))
            assert answer.json() == value
    assert done == ["one", "two"]


@pytest.mark.parametrize(
    "header",
    [
        "x-request-id",
        "traceparent",
        "baggage",
        "user-agent",
        "x-forwarded-for",
        "x-retry-count",
        "x-csrf-token",
        "x-request-timeout",
    ],
)
async def test_what_differs_between_two_attempts_makes_no_other_request(
    app: FastAPI, serve_keyed: Api, done: list[Any], header: str
) -> None:
    """A repetition with another value of such a header is a replay."""

    @app.post("/orders")
    async def order() -> int:
        done.append(1)
        return len(done)

    async with serve_keyed(app) as client:
        for value in ("1", "2"):
            answer = await client.post("/orders", headers=key("k") | {header: value})
            assert answer.json() == 1


async def test_a_user_whom_a_dependency_has_made_known_may_change_the_token(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """The verified principal owns the key, by whichever token."""

    async def signed_in(authorization: Annotated[str, Header()]) -> AsyncGenerator[str]:
        user_id = authorization.removeprefix("Bearer ").partition(".")[0]
        with bind(replace(current(), user_id=user_id)):
            yield user_id

    @app.post("/notes")
    async def note(user: Annotated[str, Depends(signed_in)], session: Annotated[str, Cookie()] = "") -> str:
        done.append(user + session)
        return user

    async with serve_keyed(app) as client:
        for token in ("ann.1", "ann.2", "bea.1", "ann.3"):
            headers = {"authorization": f"Bearer {token}", "cookie": f"session={token}"} | key("k")
            assert (await client.post("/notes", headers=headers)).json() == token.partition(".")[0]
    assert [entry[:3] for entry in done] == ["ann", "bea"]


class _Named(UnauthenticatedUser):
    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return "Kim"

    @property
    def identity(self) -> str:
        raise NotImplementedError


class _Identified(_Named):
    def __init__(self, identity: str) -> None:
        self._identity = identity

    @property
    def identity(self) -> str:
        return self._identity


@pytest.mark.parametrize("names_only", [False, True])
async def test_the_user_of_starlettes_authentication_owns_the_key_by_identity_and_not_by_name(
    app: FastAPI, serve_keyed: Api, done: list[Any], names_only: bool
) -> None:
    """Two users without an identity and with one display name have two keys."""

    class Backend(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
            identity = conn.headers["authorization"][0]
            return AuthCredentials(), _Named() if names_only else _Identified(identity)

    app.add_middleware(AuthenticationMiddleware, backend=Backend())

    @app.post("/notes")
    async def note(authorization: Annotated[str, Header()]) -> str:
        done.append(authorization)
        return authorization

    async with serve_keyed(app) as client:
        for token in ("a1", "a2", "b1"):
            await client.post("/notes", headers={"authorization": token} | key("k"))
    assert done == (["a1", "a2", "b1"] if names_only else ["a1", "b1"])


async def test_a_service_among_our_own_may_renew_its_token(serve_keyed: Api, done: list[Any]) -> None:
    """A calling service and its user own the key, by whichever token."""
    app = create_app(Settings, title="Test", internal=True)

    @app.post("/notes")
    async def note() -> int:
        done.append(1)
        return len(done)

    async with serve_keyed(app) as client:
        for caller, token, user in (
            ("a", "1", "ann"),
            ("a", "2", "ann"),
            ("b", "1", "ann"),
            ("a", "1", "bea"),
        ):
            headers = {"x-service-name": caller, "authorization": token, "x-user-id": user} | key("k")
            await client.post("/notes", headers=headers)
    assert len(done) == 3


async def test_what_an_answer_sets_for_its_caller_and_its_connection_is_not_kept(
    app: FastAPI, serve_keyed: Api
) -> None:
    """The replay has neither cookies nor hop-by-hop headers, but the location."""

    @app.post("/sign_in")
    async def sign_in(response: Response) -> int:
        response.set_cookie("session", "secret")
        response.headers.update({"server-timing": "db;dur=1", "connection": "close", "location": "/me"})
        return 1

    async with serve_keyed(app) as client:
        first = await client.post("/sign_in", headers=key("k"))
        client.cookies.clear()
        again = await client.post("/sign_in", headers=key("k"))
    assert "secret" in first.headers["set-cookie"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == "/me"
    assert not {"set-cookie", "server-timing", "connection"} & set(again.headers)


async def test_nothing_of_a_caller_can_be_read_in_redis(
    guarded: FastAPI, serve_keyed: Api, fake_redis: FakeAsyncRedis
) -> None:
    """The name of the claim has a digest in place of the credentials."""
    async with serve_keyed(guarded) as client:
        await client.post("/direct", headers=ANN | key("k"))
        names = await fake_redis.keys()
    assert len(names) == 1
    assert "ann" not in str(names[0])


async def test_a_caller_who_is_refused_leaves_nothing_in_redis(
    guarded: FastAPI, serve_keyed: Api, fake_redis: FakeAsyncRedis
) -> None:
    """Where the claim comes first, it is released within a minute."""
    async with serve_keyed(guarded) as client:
        await client.post("/direct", headers=key("k"))
        assert await fake_redis.keys() == []
        await client.post("/plain", headers=key("k"))
        assert [await fake_redis.ttl(name) <= 60 for name in await fake_redis.keys()] == [True]


# ── which request it is ──────────────────────────────────────────────────────────────────────────


async def test_a_key_with_another_body_is_refused(app: FastAPI, serve_keyed: Api, done: list[Any]) -> None:
    """The 422 says nothing of the first request."""

    @app.post("/orders")
    async def order(request: Request) -> None:
        done.append(await request.json())

    async with serve_keyed(app) as client:
        await client.post("/orders", json={"amount": 1}, headers=key("k"))
        other = await client.post("/orders", json={"amount": 2}, headers=key("k"))
    assert problem(other) == (422, "KEY_REUSED")
    assert "http:" not in other.text
    assert done == [{"amount": 1}]


@pytest.mark.parametrize(
    ("path", "is_the_same"),
    [("a~b", True), ("%61%7eb", True), ("a%7Eb", True), ("A~b", False), ("a~b/", False), ("a%2Fb", False)],
)
async def test_a_path_is_the_same_however_it_is_written(
    app: FastAPI, serve_keyed: Api, done: list[Any], path: str, *, is_the_same: bool
) -> None:
    """A proxy may rewrite escapes between two attempts (RFC 3986, section 6.2.2); `%2F` is no slash."""

    @app.post("/notes/{name:path}")
    async def note(name: str) -> str:
        done.append(name)
        return name

    async with serve_keyed(app) as client:
        await client.post("/notes/a~b", headers=key("k"))
        again = await client.post(f"/notes/{path}", headers=key("k"))
    assert ("idempotency-replayed" in again.headers) == is_the_same
    assert len(done) == (1 if is_the_same else 2)


async def test_a_slash_in_a_name_is_no_slash_of_a_path(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """`a%2Fb` and `a/b` are two requests, `%2F` and `%2f` one."""

    @app.post("/notes/{name:path}")
    async def note(name: str) -> str:
        done.append(name)
        return name

    async with serve_keyed(app) as client:
        for path in ("a%2Fb", "a/b", "a%2fb"):
            await client.post(f"/notes/{path}", headers=key("k"))
    assert len(done) == 2


@pytest.mark.parametrize("query", ["to=bea", "", "to=ann&fast=1", "to=Ann"])
async def test_a_key_with_another_query_is_refused(
    app: FastAPI, serve_keyed: Api, done: list[Any], query: str
) -> None:
    """The payment of another query does not run."""

    @app.post("/payments")
    async def pay(request: Request) -> str:
        done.append(str(request.query_params))
        return request.query_params.get("to", "")

    async with serve_keyed(app) as client:
        await client.post("/payments?to=ann", headers=key("k"))
        assert problem(await client.post(f"/payments?{query}", headers=key("k"))) == (422, "KEY_REUSED")
    assert done == ["to=ann"]


@pytest.mark.parametrize(
    "header", ["accept", "accept-language", "prefer", "if-match", "content-type", "range", "content-language"]
)
async def test_a_key_with_another_wish_for_the_answer_is_refused(
    app: FastAPI, serve_keyed: Api, header: str
) -> None:
    """Another `Accept` or the like is another request, and the first one is still replayed."""

    @app.post("/greet")
    async def greet(request: Request) -> str:
        return request.headers[header]

    async with serve_keyed(app) as client:
        for value, status in (("a/b", 200), ("c/d", 422), ("a/b", 200)):
            answer = await client.post("/greet", headers=key("k") | {header: value})
            assert answer.status_code == status
            assert status != 200 or answer.json() == "a/b"


async def test_method_and_path_are_requests_of_their_own(
    app: FastAPI, serve_keyed: Api, done: list[Any]
) -> None:
    """One key runs once for each of them."""

    @app.api_route("/files/{name:path}", methods=["POST", "PUT", "PATCH", "DELETE"])
    async def change(request: Request, name: str) -> str:
        done.append((request.method, name))
        return request.method + name

    places = [("POST", "a/b"), ("POST", "a%2Fb"), ("PUT", "a/b"), ("PATCH", "a/b"), ("DELETE", "a/b")]
    async with serve_keyed(app) as client:
        for method, name in places * 2:
            answer = await client.request(method, f"/files/{name}", headers=key("k"))
            assert answer.json().startswith(method)
    assert len(done) == len(places)
