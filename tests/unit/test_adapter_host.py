"""What a caller says about the host is echoed nowhere: no open redirect, no poisoned link, no second header."""

from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import RedirectResponse

from hybridkit.adapters.fastapi import create_app
from tests.helpers.apis import Settings, problem, serving

EVIL = "evil.example"


@pytest.fixture
def app() -> FastAPI:
    application = create_app(Settings, title="Hosts")

    @application.get("/items")
    async def items() -> list[int]:
        return []

    @application.get("/old")
    async def old(to: str) -> Any:
        if to == "raised":
            raise HTTPException(303, headers={"location": "/items\r\nset-cookie: session=x"})
        return RedirectResponse(to, 303)

    return application


@pytest.mark.parametrize(
    "headers",
    [
        {"host": EVIL},
        {"x-forwarded-host": EVIL},
        {"forwarded": f"host={EVIL};proto=https"},
        {"x-original-url": f"//{EVIL}/", "x-rewrite-url": f"//{EVIL}/"},
        {"x-forwarded-prefix": f"//{EVIL}", "x-forwarded-proto": "https"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/items", "/items/", f"//{EVIL}/items", "/nowhere", "/health", "/ready", "/docs"]
)
async def test_no_answer_names_a_host_of_the_callers_choice(
    app: FastAPI, path: str, headers: dict[str, str]
) -> None:
    """A path with a slash too many is unknown, and no redirect; no link of ours is made from `Host`."""
    async with serving(app) as client:
        answer = await client.get(f"http://test{path}", headers=headers)
    assert answer.status_code in {200, 404}
    told = {**answer.headers, "body": answer.text.replace(path, "")}
    assert not any(EVIL in text for text in told.values())


@pytest.mark.parametrize("path", ["/items/", "//evil.example/%2e%2e/items", "/\\evil.example", "/items//"])
async def test_no_path_is_corrected_by_a_redirect(app: FastAPI, path: str) -> None:
    """A redirect to a path that begins with two slashes leads to another site."""
    async with serving(app) as client:
        answer = await client.get(f"http://test{path}")
    assert problem(answer) == (404, "NOT_FOUND")
    assert "location" not in answer.headers


@pytest.mark.parametrize("to", ["/items\r\nset-cookie: session=x", "/items\nx: y", "/items\rx: y"])
async def test_a_redirect_carries_no_second_header(app: FastAPI, to: str) -> None:
    """Starlette encodes the end of a line in a location, so it stays a part of the path."""
    async with serving(app) as client:
        answer = await client.get("/old", params={"to": to})
        raised = await client.get("/old", params={"to": "raised"})
    for each in (answer, raised):
        assert each.status_code == 303
        assert not {"set-cookie", "x"} & set(each.headers)
        assert not {"\r", "\n"} & set(each.headers["location"])


@pytest.mark.parametrize("field", ["x-request-id", "accept-language", "origin", "user-agent"])
async def test_a_line_break_in_a_request_ends_up_in_no_response(app: FastAPI, field: str) -> None:
    """Servers refuse it; where one lets it through, no answer repeats it."""
    async with serving(app) as client:
        answer = await client.get("/items", headers=[(field.encode(), b"a\r\nset-cookie: session=x")])
    assert "session=x" not in str(answer.headers)
