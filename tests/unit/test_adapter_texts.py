"""Text that no database takes is refused at an API's edge, where FastAPI reads it, with a pointer to it."""

from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request

from hybridkit.adapters.fastapi import create_app
from tests.helpers.apis import Settings


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app(done: list[Any]) -> FastAPI:
    application, router = create_app(Settings, title="Test"), APIRouter()

    async def body_of(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @router.post("/included")
    async def included(body: dict[str, Any]) -> None:
        done.append(body)

    @application.post("/direct")
    async def direct(body: dict[str, Any]) -> None:
        done.append(body)

    @application.post("/dependency")
    async def dependency(body: Annotated[dict[str, Any], Depends(body_of)]) -> None:
        done.append(body)

    @application.post("/hooks")
    async def hook(request: Request) -> None:
        done.append(await request.body())

    @application.get("/notes/{name:path}")
    async def read(name: str, query: str = "") -> None:
        done.append((name, query))

    application.include_router(router, prefix="/v1")
    return application


async def sent(app: FastAPI, method: str, path: str, **more: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **more)


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", ["/direct", "/v1/included", "/dependency"])
@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (rb'{"a": "x\u0000"}', ["/a"]),
        (rb'{"a": ["ok", "\ud800"], "b": "\uDFFF"}', ["/a/1", "/b"]),
        (rb'{"a/b": {"c~d": "\u0000"}}', ["/a~1b/c~0d"]),
        (rb'{"a": {"\u0000": 1}}', ["/a"]),
        ('{"a": "\\u0000"}'.encode("utf-16"), ["/a"]),
    ],
)
async def test_such_text_in_a_body_is_pointed_to(
    app: FastAPI, done: list[Any], path: str, body: bytes, pointers: list[str]
) -> None:
    """The 422 has a pointer to each, and nothing runs."""
    answer = await sent(app, "POST", path, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION")
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers
    assert done == []


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00"}', rb'{"a": "\\u0000"}', b'{"a": "\xc3\xbc"}'])
async def test_all_other_text_is_taken(app: FastAPI, done: list[Any], body: bytes) -> None:
    """A complete surrogate pair is a character, and an escaped backslash begins no escape."""
    assert (await sent(app, "POST", "/direct", content=body, headers=JSON)).status_code == 200
    assert len(done) == 1


async def test_a_body_that_the_route_reads_by_itself_is_its_own(app: FastAPI, done: list[Any]) -> None:
    """The route gets the bytes unchanged."""
    body = rb'{"a": "\u0000"}'
    assert (await sent(app, "POST", "/hooks", content=body, headers=JSON)).status_code == 200
    assert done == [body]


@pytest.mark.parametrize(
    ("path", "pointer"),
    [("/notes/a%00b", "/path"), ("/notes/a?query=%00", "/query/query"), ("/notes/a?%00=1", "/query")],
)
async def test_such_text_in_a_url_is_refused(app: FastAPI, done: list[Any], path: str, pointer: str) -> None:
    """The 422 points to the path or the parameter, and nothing runs."""
    answer = await sent(app, "GET", path)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert done == []
