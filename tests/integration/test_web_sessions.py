"""The session of an HTTP request, from the cookie to Redis and back, in an application of `create_app`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, StreamingResponse
from structlog.testing import capture_logs

from hybridkit.adapters._http._asgi import RESPONSE_COOKIES
from hybridkit.adapters.fastapi import SessionCookies, WebSession, create_app
from hybridkit.context import current
from hybridkit.coordination import SessionInfo
from hybridkit.dev import Server
from hybridkit.errors import DeclarationError
from hybridkit.observability import metrics
from hybridkit.security import OPEN
from hybridkit.settings import RedisSettings, SecretUrl, ServiceSettings
from tests.helpers import until
from tests.helpers.apis import key, problem

pytestmark = pytest.mark.real_server

COOKIE = "__Host-web_session"


class Account(BaseModel):
    items: list[str] = []


web = SessionCookies("web", Account, trusted_origins=["https://admin.shop.test:8443"])
type Current = Annotated[WebSession[Account], Depends(web)]


router = APIRouter()


@router.post("/visit", status_code=204)
async def visit(session: Current) -> None:
    await session.start(Account(items=["tea"]))


@router.post("/login", status_code=204)
async def login(session: Current, user: str = "ada") -> None:
    if session.current is None:
        await session.start(Account(), user_id=user)
    else:
        await session.rotate(user_id=user)


@router.post("/relogin")
async def relogin(session: Current) -> RedirectResponse:
    await session.start(Account(), user_id="ada")
    return RedirectResponse("/me", 303)


@router.get("/me", response_model=None)
async def me(session: Current) -> dict[str, Any]:
    found = session.required()
    return {"user": session.user_id, "items": found.data.items, "context": current().user_id}


@router.post("/items/{item}")
async def add(item: str, session: Current) -> Account:
    updated = await session.update(lambda account: Account(items=[*account.items, item]))
    return updated.data


@router.post("/replace")
async def replace(body: Account, session: Current, request: Request) -> Account:
    await request.app.state.release.wait()
    return (await session.save(body)).data


@router.post("/logout", status_code=204)
async def logout(session: Current) -> None:
    await session.end()


@router.post("/fails")
async def fails(session: Current) -> None:
    await session.rotate()
    raise HTTPException(409, "too late")


@router.post("/streams/{call}")
async def streams(call: Literal["start", "rotate", "end"], session: Current) -> StreamingResponse:
    async def body() -> AsyncGenerator[bytes]:
        yield b"begun "
        arguments = (Account(),) if call == "start" else ()
        try:
            await getattr(session, call)(*arguments)
        except Exception as error:  # noqa: BLE001 - the test reads which it was
            yield type(error).__name__.encode()

    return StreamingResponse(body())


@router.get("/reprs")
async def reprs(session: Current, request: Request) -> str:
    await session.rotate()
    return f"{session!r} {session._cookie!r} {request.scope[RESPONSE_COOKIES]!r} {web!r}"


@router.get("/sessions", response_model=None)
async def sessions(session: Current) -> list[SessionInfo]:
    return list(await session.sessions.of_user(session.user_id or ""))


@router.post("/revoke_others", status_code=204)
async def revoke_others(session: Current) -> None:
    await session.sessions.revoke_all("ada", keep=session.current)


class Browsers:
    """Makes browsers for the running application."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.release: asyncio.Event = app.state.release

    def __call__(self, base_url: str = "https://shop.test") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base_url)

    async def until_waiting(self, count: int) -> None:
        """Wait until so many requests wait for `release`."""
        waiting: Any = self.release
        await until(lambda: len(waiting._waiters) >= count)


@asynccontextmanager
async def running(redis_url: str, **settings: Any) -> AsyncGenerator[Browsers]:
    app = create_app(RedisSettings, title="Shop", security=OPEN)
    app.include_router(router)
    app.state.release = asyncio.Event()
    app.state.settings = RedisSettings(
        service_name="shop", redis_url=SecretUrl(redis_url), allow_plaintext_urls=True, **settings
    )
    async with app.router.lifespan_context(app):
        yield Browsers(app)


@pytest.fixture
async def browser(redis_url: str) -> AsyncGenerator[Browsers]:
    async with running(redis_url) as browser:
        yield browser


async def test_a_login_sets_a_cookie_that_only_this_host_gets(browser: Browsers) -> None:
    """It has the prefix that a subdomain can't set, is out of reach of scripts, and no cache keeps the response."""
    ada = browser()
    answer = await ada.post("/login")
    cookie = answer.headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    value, *attributes = rest.split("; ")
    assert (answer.status_code, name) == (204, COOKIE)
    assert len(value) == 66
    assert attributes == ["Max-Age=43200", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"]
    assert answer.headers["cache-control"] == "no-store"
    me = await ada.get("/me")
    assert me.json() == {"user": "ada", "items": [], "context": "ada"}
    assert "set-cookie" not in me.headers


async def test_without_a_session_there_is_an_answer_for_it(browser: Browsers) -> None:
    """A browser without a cookie, and with a forged one, gets 401, and its cookie is left alone."""
    stranger = browser()
    values = ("", "forged", f"{'a' * 22}.{'b' * 43}")
    sent = [{}, *({"cookie": f"{COOKIE}={value}"} for value in values)]
    answers = [await stranger.get("/me", headers=headers) for headers in sent]
    assert {problem(each) for each in answers} == {(401, "UNAUTHENTICATED")}
    assert not any("set-cookie" in each.headers for each in answers)


async def test_a_cookie_that_is_there_twice_is_none(browser: Browsers) -> None:
    """No guess is made which of them is the user's."""
    ada = browser()
    await ada.post("/login")
    good = f"{COOKIE}={ada.cookies[COOKIE]}"
    ada.cookies.clear()
    assert (await ada.get("/me", headers={"cookie": f"theme=dark; {good}"})).status_code == 200
    twice = await ada.get("/me", headers={"cookie": f"{COOKIE}=x; {good}"})
    assert problem(twice) == (401, "UNAUTHENTICATED")


async def test_a_planted_session_is_not_the_users_after_the_login(browser: Browsers) -> None:
    """Whoever has planted the cookie before the login (fixation) is left with a dead one; the data has moved on."""
    attacker, victim = browser(), browser()
    await attacker.post("/visit")
    planted = attacker.cookies[COOKIE]
    victim.cookies.set(COOKIE, planted, domain="shop.test")
    await victim.post("/login")
    assert victim.cookies[COOKIE] != planted
    assert (await victim.get("/me")).json()["items"] == ["tea"]
    assert problem(await attacker.get("/me")) == (401, "UNAUTHENTICATED")


async def test_a_response_of_ones_own_carries_the_cookie_too(browser: Browsers) -> None:
    """A redirect after the login sets it; the session before it has ended."""
    ada = browser()
    await ada.post("/visit")
    before = ada.cookies[COOKIE]
    answer = await ada.post("/relogin")
    assert (answer.status_code, answer.headers["cache-control"]) == (303, "no-store")
    assert ada.cookies[COOKIE] != before
    assert (await ada.get("/me")).json() == {"user": "ada", "items": [], "context": "ada"}
    assert (await browser().get("/me", headers={"cookie": f"{COOKIE}={before}"})).status_code == 401


async def test_an_error_after_a_rotation_does_not_lose_the_session(browser: Browsers) -> None:
    """The problem has the new cookie, as the old one is dead."""
    ada = browser()
    await ada.post("/login")
    before = ada.cookies[COOKIE]
    answer = await ada.post("/fails")
    assert problem(answer) == (409, "CONFLICT")
    assert ada.cookies[COOKIE] != before
    assert (await ada.get("/me")).status_code == 200


async def test_a_logout_ends_the_session_and_clears_the_cookie(browser: Browsers) -> None:
    """A copy of the cookie is worth nothing afterwards; a second logout is no error."""
    ada = browser()
    await ada.post("/login")
    copied = ada.cookies[COOKIE]
    answer = await ada.post("/logout")
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; Path=/; Secure")
    assert COOKIE not in ada.cookies
    assert (await ada.get("/me", headers={"cookie": f"{COOKIE}={copied}"})).status_code == 401
    assert (await ada.post("/logout")).status_code == 204


@pytest.mark.parametrize("call", ["start", "rotate", "end"])
async def test_a_session_is_not_changed_behind_the_head_of_the_response(browser: Browsers, call: str) -> None:
    """The browser could not be told, and would be left with a dead id: the call is refused, the session stays."""
    ada = browser()
    await ada.post("/login")
    answer = await ada.post(f"/streams/{call}")
    assert answer.text == "begun MisuseError"
    assert (await ada.get("/me")).status_code == 200


# ── requests beside each other ───────────────────────────────────────────────────────────────────


async def test_fifty_requests_at_once_change_one_session(browser: Browsers) -> None:
    """Each of them adds its item, and none is lost."""
    ada = browser()
    await ada.post("/login")
    answers = await asyncio.gather(*(ada.post(f"/items/{number}") for number in range(50)))
    assert {each.status_code for each in answers} == {200}
    assert sorted(map(int, (await ada.get("/me")).json()["items"])) == list(range(50))


async def test_a_revocation_reaches_a_request_under_way(browser: Browsers) -> None:
    """What had read the session before it can't save it afterwards, and gets 401."""
    ada, other = browser(), browser()
    await ada.post("/login")
    await other.post("/login")
    under_way = asyncio.create_task(other.post("/replace", json={"items": ["salt"]}))
    await browser.until_waiting(1)
    assert (await ada.post("/revoke_others")).status_code == 204
    browser.release.set()
    assert problem(await under_way) == (401, "SESSION_ENDED")
    assert problem(await other.get("/me")) == (401, "UNAUTHENTICATED")
    [left] = (await ada.get("/sessions")).json()
    assert left["label"].startswith("python-httpx/")
    assert "id" not in left


async def test_of_two_saves_of_what_was_read_the_second_is_refused(browser: Browsers) -> None:
    """It is answered with 412, and the first one's data stays."""
    ada = browser()
    await ada.post("/login")
    saves = [asyncio.create_task(ada.post("/replace", json={"items": [name]})) for name in "ab"]
    await browser.until_waiting(2)
    browser.release.set()
    answers = [await each for each in saves]
    assert sorted(each.status_code for each in answers) == [200, 412]


# ── pages of other sites ─────────────────────────────────────────────────────────────────────────

REFUSED = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "https://shop.test"},
    {"sec-fetch-site": ""},
    {"origin": "https://evil.test"},
    {"origin": "null"},
    {"origin": "http://shop.test"},
    {"origin": "https://shop.test.evil.test"},
    {"origin": "https://shop.test:444"},
    {"origin": "https://["},
    {"sec-fetch-site": "same-site", "origin": "https://admin.shop.test"},
]
TAKEN = [
    {},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"origin": "https://shop.test"},
    {"origin": "https://SHOP.test"},
    {"sec-fetch-site": "same-site", "origin": "https://admin.shop.test:8443"},
]


@pytest.mark.parametrize("headers", REFUSED)
async def test_a_page_of_another_site_can_not_act_for_the_user(
    browser: Browsers, headers: dict[str, str]
) -> None:
    """The request is refused with a problem, whether there is a session or not; nothing has happened; a GET passes."""
    ada = browser()
    await ada.post("/login")
    before = metrics.sessions.labels("web", "cross_site")._value.get()
    for person in (ada, browser()):
        answer = await person.post("/items/salt", headers=headers)
        assert problem(answer) == (403, "CROSS_SITE_REQUEST")
        assert answer.headers["content-type"] == "application/problem+json"
    assert metrics.sessions.labels("web", "cross_site")._value.get() == before + 2
    assert (await ada.get("/me", headers=headers)).json()["items"] == []


@pytest.mark.parametrize("headers", TAKEN)
async def test_a_page_of_ones_own_and_a_program_can(browser: Browsers, headers: dict[str, str]) -> None:
    """The same origin, a trusted one, and a request without any sign of a browser are let in."""
    ada = browser()
    await ada.post("/login")
    assert (await ada.post("/items/salt", headers=headers)).status_code == 200


@pytest.mark.parametrize("origin", ["shop.test", "https://shop.test/", "https://", "null"])
def test_a_trusted_origin_has_the_form_of_one(origin: str) -> None:
    """Another form would never match, so it is refused at once."""
    with pytest.raises(DeclarationError, match="origin"):
        SessionCookies("web", Account, trusted_origins=[origin])


# ── development, and what is missing ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "shop.localhost"])
async def test_on_this_machine_the_cookie_needs_no_tls(browser: Browsers, host: str) -> None:
    """Over plain HTTP it has neither the prefix nor `Secure`."""
    ada = browser(f"http://{host}")
    answer = await ada.post("/login")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("web_session=")
    assert cookie.endswith("; Max-Age=43200; Path=/; HttpOnly; SameSite=Lax")
    given = cookie.partition(";")[0]
    assert (await ada.get("/me", headers={"cookie": given})).status_code == 200


async def test_elsewhere_and_in_production_it_does(
    redis_url: str, browser: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host over plain HTTP, and production on any host, get the cookie that only travels with TLS."""
    monkeypatch.setattr("hybridkit.adapters._running.UNREADY_SECONDS", 0.0)
    answer = await browser("http://shop.test").post("/login")
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}=")
    async with running(redis_url, environment="production") as strict:
        answer = await strict("http://localhost").post("/login")
        assert answer.headers["set-cookie"].startswith(f"{COOKIE}=")
        plain = answer.headers["set-cookie"].partition(";")[0].removeprefix("__Host-")
        assert (await strict("http://localhost").get("/me", headers={"cookie": plain})).status_code == 401


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_a_session_can_not_be_read(own_redis_server: Server, how: str) -> None:
    """Whoever has a cookie gets 503, since nobody knows whose it is; who has none is not held up."""
    async with running(own_redis_server.url) as browser:
        ada = browser()
        await ada.post("/login")
        getattr(own_redis_server, how)()
        try:
            assert problem(await ada.get("/me")) == (503, "UNAVAILABLE")
            assert problem(await browser().get("/me")) == (401, "UNAUTHENTICATED")
        finally:
            if how == "freeze":
                own_redis_server.resume()


async def test_an_application_without_redis_says_what_is_missing() -> None:
    """The error names the setting; the caller gets a plain 500."""
    app = create_app(ServiceSettings, title="Shop")
    app.state.settings = ServiceSettings(service_name="shop")

    @app.get("/me")
    async def me(session: Current) -> None: ...

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
        with capture_logs() as lines:
            assert problem(await client.get("https://shop.test/me")) == (500, "MISUSE")
    assert any("redis_url" in str(line.get("reason")) for line in lines)


async def test_an_application_without_the_middleware_is_told(redis_url: str, browser: Browsers) -> None:
    """Nobody would set the cookie, so the dependency raises."""
    app = FastAPI()
    app.state.redis = browser.app.state.redis

    @app.get("/me")
    async def me(session: Current) -> None: ...

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as client:
        with pytest.raises(DeclarationError, match="RequestContextMiddleware"):
            await client.get("/me")


async def test_a_keyed_login_is_not_kept_with_its_cookie(browser: Browsers) -> None:
    """A repetition of a request with an `Idempotency-Key` gets the answer, but nobody's cookie."""
    ada = browser()
    first = await ada.post("/login", headers=key("k1"))
    again = await browser().post("/login", headers=key("k1"))
    assert "set-cookie" in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert "set-cookie" not in again.headers


async def test_the_id_is_in_no_log_line(browser: Browsers) -> None:
    """Login, use, a conflict, a logout and a forged id leave no trace of it, and neither has the repr."""
    with capture_logs() as lines:
        ada = browser()
        await ada.post("/login")
        value = ada.cookies[COOKIE]
        await ada.get("/me")
        await ada.post("/fails")
        await ada.post("/logout")
        await ada.get("/me", headers={"cookie": f"{COOKIE}={value}"})
    assert value.partition(".")[2] not in repr(lines)


async def test_no_repr_shows_the_id(browser: Browsers) -> None:
    """Neither the session's, nor that of a cookie on its way in or out."""
    ada = browser()
    await ada.post("/login")
    before = ada.cookies[COOKIE]
    shown = (await ada.get("/reprs")).text
    assert "user_id='ada'" in shown
    assert COOKIE in shown
    for value in (before, ada.cookies[COOKIE]):
        assert value.partition(".")[2] not in shown
