"""Routes with rate limits: 429, what responses say about the limits, and who is counted."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import PlainTextResponse
from jsonschema import Draft202012Validator

from hybridkit.adapters._security._rate_limits import caller_of
from hybridkit.adapters.fastapi import create_app, rate_limited
from hybridkit.context import bind, current
from hybridkit.coordination import Rate, Redis, connect_redis
from hybridkit.errors import DeclarationError
from hybridkit.idempotency import IdempotencyGuard
from tests.helpers.apis import Settings, serving

HOURLY = Rate.parse("60/hour", burst=2)


async def signed_in(authorization: Annotated[str, Header()]) -> AsyncGenerator[str]:
    user_id = authorization.removeprefix("Bearer ")
    if user_id == "nobody":
        raise HTTPException(401)
    with bind(replace(current(), user_id=user_id)):
        yield user_id


def by_tenant(request: Request) -> str:
    return request.headers["x-tenant"]


def bearer(user: str) -> dict[str, str]:
    return {"authorization": f"Bearer {user}"}


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=5.0) as redis:
        yield redis


@asynccontextmanager
async def limited(app: FastAPI, redis: Redis) -> AsyncGenerator[httpx.AsyncClient]:
    """Run the application with this Redis."""
    async with serving(app) as client:
        app.state.resources.provide(Redis, redis)
        yield client


async def test_too_many_requests_are_429_with_the_headers_of_the_draft(app: FastAPI, redis: Redis) -> None:
    """`RateLimit` tells the same moment as `Retry-After` then."""
    done: list[str] = []

    @app.post("/uploads", dependencies=[rate_limited("uploads", per_caller=HOURLY)])
    async def upload() -> str:
        done.append("upload")
        return "stored"

    async with limited(app, redis) as client:
        first = await client.post("/uploads")
        await client.post("/uploads")
        refused = await client.post("/uploads")
    assert (first.status_code, first.json()) == (200, "stored")
    assert first.headers["ratelimit-policy"] == '"uploads";q=60;w=3600'
    assert first.headers["ratelimit"] == '"uploads";r=1;t=60'
    assert "retry-after" not in first.headers
    assert (refused.status_code, len(done)) == (429, 2)
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert (problem["code"], problem["retryable"]) == ("RATE_LIMITED", True)
    assert problem["detail"] == "the limit uploads of 60/hour;burst=2 is reached"
    assert problem["request_id"] == refused.headers["x-request-id"]
    seconds = int(refused.headers["retry-after"])
    assert 50 < seconds <= 60
    assert refused.headers["ratelimit"] == f'"uploads";r=0;t={seconds}'
    assert refused.headers["ratelimit-policy"] == first.headers["ratelimit-policy"]


@pytest.mark.parametrize("answer", ["error", "response"])
async def test_every_kind_of_response_tells_the_limit(app: FastAPI, redis: Redis, answer: str) -> None:
    """An error does, and a response that the route has made by itself."""

    @app.get("/uploads", dependencies=[rate_limited("uploads", per_caller=HOURLY)])
    async def read() -> Any:
        if answer == "error":
            raise HTTPException(404, "no such upload")
        return PlainTextResponse("here")

    async with limited(app, redis) as client:
        assert (await client.get("/uploads")).headers["ratelimit"] == '"uploads";r=1;t=60'
        assert (await client.head("/uploads")).headers["ratelimit"].startswith('"uploads";r=0;t=')


async def test_a_limit_per_caller_and_one_in_total(app: FastAPI, redis: Redis) -> None:
    """What the caller's limit refuses takes nothing of the total."""
    check = rate_limited("uploads", per_caller=HOURLY, in_total=Rate.parse("60/hour", burst=3), key=signed_in)
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    async with limited(app, redis) as client:
        anna = [await client.get("/uploads", headers=bearer("anna")) for _ in range(4)]
        boris = [await client.get("/uploads", headers=bearer("boris")) for _ in range(2)]
    assert [answer.status_code for answer in anna] == [200, 200, 429, 429]
    assert [answer.status_code for answer in boris] == [200, 429]
    assert anna[0].headers["ratelimit-policy"] == '"uploads.caller";q=60;w=3600, "uploads.total";q=60;w=3600'
    assert anna[2].headers["ratelimit"].startswith('"uploads.caller";r=0;')
    assert boris[1].headers["ratelimit"].startswith('"uploads.total";r=0;')


async def test_a_total_counts_all_callers_together(app: FastAPI, redis: Redis) -> None:
    """A cost takes more than one."""
    check = rate_limited("uploads", in_total=Rate.parse("60/hour", burst=5), cost=2)
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    async with limited(app, redis) as client:
        found = [await client.get("/uploads", headers=bearer(user)) for user in ("anna", "boris", "clara")]
    assert [answer.status_code for answer in found] == [200, 200, 429]
    assert found[2].headers["ratelimit"].startswith('"uploads";r=1;')


# ── who is counted ───────────────────────────────────────────────────────────────────────────────


async def test_the_user_whom_an_earlier_dependency_has_bound_is_counted(app: FastAPI, redis: Redis) -> None:
    """Whoever that refuses is not counted at all."""
    check = rate_limited("uploads", per_caller=Rate.parse("1/day"))
    app.add_api_route("/uploads", lambda: None, dependencies=[Depends(signed_in), check])
    async with limited(app, redis) as client:
        for user in ("anna", "boris"):
            assert (await client.get("/uploads", headers=bearer(user))).status_code == 200
        assert (await client.get("/uploads", headers=bearer("anna"))).status_code == 429
        nobody = await client.get("/uploads", headers=bearer("nobody"))
        assert (nobody.status_code, "ratelimit" in nobody.headers) == (401, False)
    keys = {str(key).rpartition(":")[2] for key in await redis.keys()}
    assert keys == {"user.anna", "user.boris"}


async def test_unverified_credentials_do_not_make_another_caller(app: FastAPI, redis: Redis) -> None:
    """Without a verified user the address is counted, whatever the request claims."""
    check = rate_limited("uploads", per_caller=Rate.parse("1/day"))
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    async with limited(app, redis) as client:
        headers = [bearer("a"), bearer("b"), {"x-user-id": "c"}, {"x-forwarded-for": "8.8.8.8"}]
        found = [(await client.get("/uploads", headers=each)).status_code for each in headers]
        assert found == [200, 429, 429, 429]
        far = httpx.ASGITransport(app, client=("192.0.2.7", 1234))
        async with httpx.AsyncClient(transport=far, base_url="http://test") as another:
            assert (await another.get("/uploads")).status_code == 200
        unknown = httpx.ASGITransport(app, client=None)  # type: ignore[arg-type] # as behind a UNIX socket
        async with httpx.AsyncClient(transport=unknown, base_url="http://test") as another:
            assert (await another.get("/uploads")).status_code == 200
            assert (await another.get("/uploads")).status_code == 429


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
async def test_an_address_of_ipv6_counts_by_its_network(host: str, counted: str) -> None:
    """One customer has 2^64 of them."""
    scope = {"type": "http", "client": (host, 1234), "headers": []}
    assert await caller_of(Request(scope)) == f"address.{counted}"


async def test_a_dependency_may_say_who_is_counted(app: FastAPI, redis: Redis) -> None:
    """A plain function works as well."""
    check = rate_limited("uploads", per_caller=Rate.parse("1/day"), key=by_tenant)
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    async with limited(app, redis) as client:
        found = [(await client.get("/uploads", headers={"x-tenant": tenant})).status_code for tenant in "aab"]
    assert found == [200, 429, 200]


async def test_routes_of_one_name_share_a_limit_and_one_request_may_have_several(
    app: FastAPI, redis: Redis
) -> None:
    """A router's limit and a route's are told one after the other."""
    router = APIRouter(dependencies=[rate_limited("api", in_total=Rate.parse("60/hour", burst=3))])
    strict = rate_limited("strict", in_total=Rate.parse("1/day"))
    router.add_api_route("/a", lambda: None, dependencies=[strict])
    router.add_api_route("/b", lambda: None)
    app.include_router(router)
    async with limited(app, redis) as client:
        first = await client.get("/a")
        assert first.headers.get_list("ratelimit") == ['"api";r=2;t=60', '"strict";r=0;t=86400']
        assert (await client.get("/a")).status_code == 429
        assert [(await client.get("/b")).status_code for _ in range(2)] == [200, 429]


# ── beside the rest ──────────────────────────────────────────────────────────────────────────────


async def test_a_replayed_answer_tells_the_limits_of_now(app: FastAPI, redis: Redis) -> None:
    """A repetition under a key counts as a request; what was kept has no limits in it."""
    check = rate_limited("orders", per_caller=Rate.parse("60/hour", burst=3))
    app.add_api_route("/orders", lambda: 1, methods=["POST"], dependencies=[check])
    async with limited(app, redis) as client:
        app.state.resources.provide(IdempotencyGuard, IdempotencyGuard(redis))
        found = [await client.post("/orders", headers={"idempotency-key": "k"}) for _ in range(4)]
    assert [answer.status_code for answer in found] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit"].split(";")[1] for answer in found] == ["r=2", "r=1", "r=0", "r=0"]
    assert all(len(answer.headers.get_list("ratelimit")) == 1 for answer in found)
    assert found[1].headers["idempotency-replayed"] == "true"


async def test_without_redis_the_share_of_the_replica_counts(app: FastAPI, tmp_path: Path) -> None:
    """Nothing is an error."""
    check = rate_limited("uploads", in_total=Rate.parse("60/hour", burst=4), replicas=2)
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    async with (
        connect_redis(f"unix://{tmp_path}/nobody.sock", timeout_seconds=0.05) as nobody,
        limited(app, nobody) as client,
    ):
        found = [(await client.get("/uploads")).status_code for _ in range(3)]
    assert found == [200, 200, 429]


async def test_an_application_may_be_started_again(app: FastAPI, redis_url: str) -> None:
    """The limit asks the client of the present start."""
    check = rate_limited("uploads", in_total=Rate.parse("60/hour", burst=2))
    app.add_api_route("/uploads", lambda: None, dependencies=[check])
    found: list[int] = []
    for _ in range(3):
        async with connect_redis(redis_url) as redis, limited(app, redis) as client:
            found.append((await client.get("/uploads")).status_code)
    assert found == [200, 200, 429]


async def test_a_limit_without_redis_in_the_settings_says_so(app: FastAPI) -> None:
    """It is a mistake of the service, and no refusal."""
    app.add_api_route(
        "/uploads", lambda: None, dependencies=[rate_limited("uploads", in_total=Rate.parse("1/s"))]
    )
    async with serving(app) as client:
        assert (await client.get("/uploads")).json()["code"] == "MISUSE"


def test_a_limit_without_a_rate_or_with_a_bad_name_is_refused_at_import() -> None:
    """And not with the first request."""
    with pytest.raises(DeclarationError, match="per_caller="):
        rate_limited("uploads")
    with pytest.raises(DeclarationError, match="snake_case"):
        rate_limited("Uploads!", in_total=Rate.parse("1/s"))
    with pytest.raises(DeclarationError, match="from 1 to"):
        rate_limited("uploads", in_total=Rate.parse("1/s"), cost=2)


async def test_limited_routes_are_documented(app: FastAPI, redis: Redis) -> None:
    """Those of routers too, and no others; a route's own words stay, and a real refusal has the documented form."""
    check = rate_limited("uploads", in_total=Rate.parse("1/day"))
    router = APIRouter(dependencies=[check])
    router.add_api_route("/in_router", lambda: None)
    inner = APIRouter()
    inner.add_api_route("/in_inner_router", lambda: None, dependencies=[check])
    router.include_router(inner, prefix="/inner")
    app.include_router(router, prefix="/v1")
    app.add_api_route("/limited", lambda: None, dependencies=[check])
    app.add_api_route("/own", lambda: None, dependencies=[check], responses={429: {"description": "Slow."}})
    app.add_api_route("/free", lambda: None)
    app.add_api_route("/signed_in", lambda: None, dependencies=[Depends(signed_in)])

    async def signed_in_and_limited(
        _: Annotated[str, Depends(signed_in)], __: Annotated[None, check]
    ) -> None:
        pass

    app.add_api_route("/nested", lambda: None, dependencies=[Depends(signed_in_and_limited)])
    paths = app.openapi()["paths"]
    documented = {path: each["get"]["responses"].get("429") for path, each in paths.items()}
    assert documented.keys() == {
        "/v1/in_router",
        "/v1/inner/in_inner_router",
        "/limited",
        "/own",
        "/free",
        "/signed_in",
        "/nested",
    }
    assert (documented["/signed_in"], documented["/nested"]) == (None, documented["/limited"])
    assert (documented["/free"], documented["/own"]) == (None, {"description": "Slow."})
    full = documented["/limited"]
    assert documented["/v1/in_router"] == documented["/v1/inner/in_inner_router"] == full
    async with limited(app, redis) as client:
        await client.get("/limited")
        refused = await client.get("/limited")
    assert {"retry-after", "ratelimit", "ratelimit-policy"} <= set(refused.headers)
    assert {name.lower() for name in full["headers"]} <= set(refused.headers)
    schema = full["content"]["application/problem+json"]["schema"]
    Draft202012Validator(schema).validate(refused.json())
    assert set(refused.json()) - {"errors", "fields"} <= set(schema["properties"])
