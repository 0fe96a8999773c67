"""Routes that require an `Idempotency-Key`: their refusals, the key as a parameter, and the OpenAPI document."""

from collections.abc import AsyncGenerator
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException

from hybridkit.adapters.fastapi import IdempotencyKey, create_app, require_idempotency_key
from tests.helpers.apis import Api, Order, Settings, key, problem, serving

REQUIRED = (400, "IDEMPOTENCY_KEY_REQUIRED")


async def signed_in(authorization: Annotated[str, Header()] = "") -> None:
    if authorization != "Bearer ann":
        raise HTTPException(401)


@pytest.fixture
def done() -> list[str]:
    """The keys of what was done."""
    return []


@pytest.fixture
def app(done: list[str]) -> FastAPI:
    app = create_app(Settings, title="Test")
    router = APIRouter(prefix="/router", dependencies=[Depends(require_idempotency_key)])

    @app.post("/value", status_code=201)
    async def pay(body: Order, key: IdempotencyKey) -> str:
        done.append(key)
        return key

    @app.put("/option", dependencies=[Depends(require_idempotency_key)])
    def put(body: Order) -> int:
        return body.amount

    @router.delete("/{number}", status_code=204)
    async def delete(number: int) -> None:
        done.append(str(number))

    @app.post("/private", dependencies=[Depends(signed_in), Depends(require_idempotency_key)])
    async def private() -> None: ...

    @app.post("/free", responses={422: {"description": "its own"}})
    async def free(body: Order) -> int:
        return body.amount

    @app.post("/own", responses={400: {"description": "its own"}})
    async def own(key: IdempotencyKey) -> str:
        return key

    @app.get("/read")
    async def read(key: IdempotencyKey) -> str:
        return key

    app.include_router(router)
    return app


@pytest.fixture
async def client(app: FastAPI, serve_keyed: Api) -> AsyncGenerator[httpx.AsyncClient]:
    async with serve_keyed(app) as client:
        yield client


async def test_a_request_without_a_key_is_refused_wherever_the_key_is_required(
    client: httpx.AsyncClient, done: list[str]
) -> None:
    """By a parameter, an option of a route, and one of a router; also where the body doesn't fit either."""
    body = {"amount": 1}
    for method, path, sent in (
        ("POST", "/value", body),
        ("POST", "/value", {"amount": "x"}),
        ("PUT", "/option", body),
        ("DELETE", "/router/7", None),
    ):
        refused = await client.request(method, path, json=sent)
        assert problem(refused) == REQUIRED
        assert refused.headers["content-type"] == "application/problem+json"
    assert done == []


@pytest.mark.parametrize("sent", ["k-1", '"k-1"'])
async def test_the_key_is_a_parameter_without_its_quotes(
    client: httpx.AsyncClient, done: list[str], sent: str
) -> None:
    """The function runs once for a key, and the repetition has its answer."""
    first = await client.post("/value", json={"amount": 1}, headers=key(sent))
    again = await client.post("/value", json={"amount": 1}, headers=key(sent))
    assert (first.status_code, first.json(), again.json()) == (201, "k-1", "k-1")
    assert again.headers["idempotency-replayed"] == "true"
    assert done == ["k-1"]


async def test_options_of_routes_and_routers_let_a_key_pass(
    client: httpx.AsyncClient, done: list[str]
) -> None:
    """Each runs once under its key."""
    for _ in range(2):
        assert (await client.put("/option", json={"amount": 3}, headers=key("k"))).json() == 3
        assert (await client.delete("/router/7", headers=key("k"))).status_code == 204
    assert done == ["7"]


async def test_a_key_out_of_syntax_or_of_another_request_is_refused(client: httpx.AsyncClient) -> None:
    """These are 422, as documented."""
    assert problem(await client.post("/value", json={"amount": 1}, headers=key('"'))) == (422, "VALIDATION")
    await client.post("/value", json={"amount": 1}, headers=key("k"))
    other = await client.post("/value", json={"amount": 2}, headers=key("k"))
    assert problem(other) == (422, "KEY_REUSED")


async def test_who_may_not_learns_nothing_of_the_key(client: httpx.AsyncClient) -> None:
    """A dependency before it answers first."""
    assert (await client.post("/private")).status_code == 401
    assert problem(await client.post("/private", headers={"authorization": "Bearer ann"})) == REQUIRED


async def test_a_key_that_nothing_keeps_is_a_mistake_of_the_code(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    """A read has no effect to protect, and an application without Redis keeps nothing."""
    assert (await client.get("/read", headers=key("k"))).status_code == 500
    async with serving(app) as without_redis:
        answer = await without_redis.post("/value", json={"amount": 1}, headers=key("k"))
    assert problem(answer)[0] == 500


def test_the_document_names_header_and_answers(app: FastAPI) -> None:
    """Clients made from it send the header, and know what each refusal means; other routes stay as they were."""
    document = app.openapi()
    assert app.openapi() is document
    for path, method, success in (
        ("/value", "post", "201"),
        ("/option", "put", "200"),
        ("/router/{number}", "delete", "204"),
    ):
        operation = document["paths"][path][method]
        [header] = [each for each in operation["parameters"] if each["in"] == "header"]
        assert (header["name"], header["required"]) == ("Idempotency-Key", True)
        assert "printable ASCII" in header["description"]
        for status in ("400", "409", "422"):
            content = operation["responses"][status]["content"]
            assert content == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
        assert "IDEMPOTENCY_IN_PROGRESS" in operation["responses"]["409"]["description"]
        assert "Idempotency-Replayed" in operation["responses"][success]["headers"]
    schemas = document["components"]["schemas"]
    assert schemas["Problem"]["properties"]["errors"]["items"]["$ref"].rpartition("/")[2] in schemas
    free = document["paths"]["/free"]["post"]
    assert free["responses"]["422"]["description"] == "its own"
    assert "parameters" not in free
    assert document["paths"]["/own"]["post"]["responses"]["400"] == {"description": "its own"}


def test_a_document_without_such_routes_names_no_key() -> None:
    """An application that requires no key, and has no Redis to keep one, has no header for it."""
    app = create_app(Settings, title="Test")
    app.post("/free")(lambda: None)
    assert "Idempotency-Key" not in str(app.openapi())
