"""What an attacker sends to an API, and what comes of it: nothing in a log, an answer, or another user's data."""

import asyncio
import gzip
import io
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, SecretStr

from hybridkit.adapters.fastapi import create_app
from hybridkit.context import current
from hybridkit.observability import configure_logging, get_logger, render_metrics
from hybridkit.security import AccessTokens, CurrentPrincipal, Security, public, require
from hybridkit.settings import TokenSettings
from tests.helpers.apis import problem, serving

pytestmark = pytest.mark.usefixtures("restored_logging")

CANARY = "canary-7f3a91c4e8"


class Profile(BaseModel):
    """What a client may write."""

    name: str


class Stored(Profile):
    """What is stored beside that."""

    role: str = "user"
    password_hash: str = CANARY


class ApiSettings(TokenSettings):
    service_name: str = "shop_api"


@pytest.fixture
def tokens() -> AccessTokens:
    return AccessTokens()


@pytest.fixture
def app(tokens: AccessTokens) -> FastAPI:
    app = create_app(ApiSettings, title="Shop", security=Security(tokens))

    @app.put("/profile", dependencies=[require()])
    async def write(body: Profile, principal: CurrentPrincipal) -> Profile:
        return Stored(**body.model_dump(), role=",".join(principal.roles))

    @app.get("/whoami", dependencies=[public])
    async def whoami() -> str | None:
        return current().user_id

    @app.post("/number", dependencies=[public])
    async def number(body: dict[str, int]) -> int:
        return len(body)

    @app.get("/broken", dependencies=[public])
    async def broken(value: str) -> None:
        raise RuntimeError("it broke")

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    async with serving(app) as client:
        yield client


@pytest.mark.parametrize(
    "path",
    [
        "/whoami/",
        "//evil.test/whoami",
        "/whoami//",
        "/\\evil.test",
        "/%2f%2fevil.test",
        "/whoami?next=https://evil.test",
    ],
)
async def test_no_address_of_a_request_becomes_a_redirect(client: httpx.AsyncClient, path: str) -> None:
    """A path with another host in it, and a path with a slash too many, lead nowhere."""
    answer = await client.get(path, headers={"host": "evil.test"})
    assert "location" not in answer.headers
    assert answer.status_code in {200, 404}


@pytest.mark.parametrize("header", ["x-user-id", "x-forwarded-user", "x-remote-user", "x-service-name"])
async def test_nobody_becomes_a_user_by_saying_so(client: httpx.AsyncClient, header: str) -> None:
    """Headers that name a user or a service are not believed from outside."""
    assert (await client.get("/whoami", headers={header: "admin"})).json() is None


async def test_a_token_in_the_query_or_a_cookie_is_no_token(
    client: httpx.AsyncClient, tokens: AccessTokens
) -> None:
    """Credentials count in the `Authorization` header alone, so that no link and no other page can carry them."""
    token = tokens.issue("ann")
    for request in (
        client.put(f"/profile?access_token={token}", json={"name": "x"}),
        client.put("/profile", json={"name": "x"}, headers={"cookie": f"access_token={token}"}),
    ):
        assert (await request).status_code == 401


async def test_fields_that_a_model_does_not_name_are_neither_taken_nor_shown(
    client: httpx.AsyncClient, tokens: AccessTokens
) -> None:
    """A client can't give itself a role by a field of the body, and gets none that the response model lacks."""
    headers = {"authorization": f"Bearer {tokens.issue('ann', roles=['user'])}"}
    body = {"name": "Ann", "role": "admin", "password_hash": "mine"}
    answer = await client.put("/profile", json=body, headers=headers)
    assert answer.json() == {"name": "Ann"}


async def test_deep_json_is_refused(client: httpx.AsyncClient) -> None:
    """JSON of a hundred thousand levels is a bad request, and no end of the process."""
    headers = {"content-type": "application/json"}
    answer = await client.post("/number", content="[" * 100_000, headers=headers)
    assert answer.status_code in {400, 422}
    assert (await client.get("/whoami")).status_code == 200


async def test_a_compressed_body_is_not_unpacked(client: httpx.AsyncClient) -> None:
    """A small body that would be a large one is refused as it is."""
    bomb = gzip.compress(b" " * 10_000_000 + b"{}")
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await client.post("/number", content=bomb, headers=headers)
    assert answer.status_code in {400, 415, 422}


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "TRACK", "DEBUG", "\x7f"])
async def test_methods_that_show_requests_are_not_answered(client: httpx.AsyncClient, method: str) -> None:
    """Nothing is echoed, and no method goes around a policy."""
    for path in ("/profile", "/whoami"):
        answer = await client.request(method, path, headers={"x-secret": CANARY})
        assert answer.status_code in {400, 404, 405}
        assert CANARY not in answer.text


@pytest.mark.parametrize(
    "override",
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"],
)
async def test_no_header_changes_method_or_path(client: httpx.AsyncClient, override: str) -> None:
    """A header that some proxies obey moves no request past the check."""
    answer = await client.get("/whoami", headers={override: "/profile" if "url" in override else "PUT"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path", ["/PROFILE", "/profile/", "/./profile", "/x/../profile", "/profile;x", "/%70rofile"]
)
async def test_no_spelling_of_a_path_goes_around_its_policy(client: httpx.AsyncClient, path: str) -> None:
    """Another spelling is the same route with its policy, or no route."""
    answer = await client.put(path, json={"name": "x"})
    assert answer.status_code in {401, 404}


def planted(token: str) -> list[dict[str, Any]]:
    """Return requests with the secret in each of their inputs."""
    json_body = {"headers": {"content-type": "application/json"}}
    return [
        {"method": "GET", "url": "/whoami", "headers": {"authorization": f"Bearer {CANARY}"}},
        {"method": "GET", "url": "/whoami", "headers": {"authorization": f"Basic {CANARY}"}},
        {"method": "GET", "url": "/whoami", "headers": {"cookie": f"session={CANARY}"}},
        {"method": "GET", "url": "/whoami", "headers": {"x-api-key": CANARY}},
        {"method": "GET", "url": "/whoami", "headers": {"proxy-authorization": CANARY}},
        {"method": "GET", "url": f"/whoami?password={CANARY}"},
        {"method": "GET", "url": f"/broken?value={CANARY}"},
        {
            "method": "PUT",
            "url": "/profile",
            "json": {"name": "x"},
            "headers": {"authorization": f"Bearer {token}"},
        },
        {"method": "POST", "url": "/number", "json": {"password": CANARY}},
        {"method": "POST", "url": "/number", "content": f'{{"a": "{CANARY}', **json_body},
        {"method": "POST", "url": "/number", "content": f"password={CANARY}"},
        {
            "method": "POST",
            "url": "/number",
            "json": {"a": 1},
            "headers": {"idempotency-key": f"{CANARY}\x7f"},
        },
        {"method": "GET", "url": "/whoami", "headers": {"x-request-timeout": CANARY}},
    ]


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    """Logging is global, so the test leaves it as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    known = [each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    levels = [(logger, logger.level) for logger in known]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, before in levels:
        logger.setLevel(before)
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("_logging_restored")
async def test_no_planted_secret_comes_out(
    app: FastAPI, tokens: AccessTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in any input of a request, and the key of the tokens, are in no log line, answer, header or metric."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    from tests.unit.test_security_access_tokens import ED

    pem = ED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    settings = ApiSettings(token_keys=SecretStr(pem), log_level="DEBUG")
    configure_logging(settings.model_copy(update={"log_format": "json"}))
    app.state.settings = settings
    async with serving(app) as client:
        token = tokens.issue("ann", claims={"note": CANARY})
        answers = [await client.request(**each) for each in planted(token)]
        get_logger("test").info("the end of it", token=token)
        logging.getLogger("library").warning("a header: Bearer %s", token)
    await asyncio.sleep(0)
    told = [answer.text + str(answer.headers) for answer in answers]
    metrics, _ = render_metrics("text/plain")
    everything = "\n".join(
        [*told, metrics.decode(), out.getvalue(), repr(settings), repr(tokens), repr(app.state)]
    )
    assert {answer.status_code for answer in answers} <= {200, 400, 401, 422, 500}
    for secret in (CANARY, pem.splitlines()[1], token):
        assert secret not in everything


async def test_an_error_tells_nothing_of_the_inside(client: httpx.AsyncClient) -> None:
    """A failure is a problem without its reason, its place, or the names of what runs."""
    answer = await client.get("/broken", params={"value": "x"})
    assert problem(answer) == (500, "INTERNAL")
    for told in ("it broke", "RuntimeError", "Traceback", ".py", "uvicorn", "python"):
        assert told not in answer.text + str(answer.headers)
