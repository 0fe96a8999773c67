"""The login of an application's own users, over HTTP, with sessions in a data service."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest
from fakeredis import FakeAsyncRedis
from structlog.testing import capture_logs

from hybridkit.adapters._security import _login_limits
from hybridkit.adapters.fastapi import create_app, login_routes
from hybridkit.security import (
    LOGIN_SESSIONS,
    AccessTokens,
    Account,
    CurrentPrincipal,
    DataSessions,
    Passwords,
    Revocations,
    Security,
    SessionStore,
    require,
)
from hybridkit.settings import TokenSettings
from hybridkit.testing import FakeDataService
from tests.helpers.apis import problem

PASSWORD = "correct horse battery"
PASSWORDS = Passwords()


class Settings(TokenSettings):
    service_name: str = "shop_api"


class Shop:
    """An application with a login, and the accounts behind it."""

    def __init__(self, *, revocations: Revocations | None = None) -> None:
        self.data = FakeDataService([LOGIN_SESSIONS])
        self.by_name: dict[str, Account] = {}
        self.tokens = AccessTokens(revocations=revocations)
        self.redis: Any = None
        self.app = app = create_app(Settings, title="Shop", security=Security(self.tokens))
        app.include_router(login_routes(self.accounts, self.tokens, passwords=PASSWORDS, store=self.store))

        @app.get("/me", dependencies=[require()])
        async def me(principal: CurrentPrincipal) -> dict[str, Any]:
            return {"id": principal.id, "roles": sorted(principal.roles)}

        @app.get("/admin", dependencies=[require(role="admin")])
        async def admin() -> None: ...

    def accounts(self) -> "Directory":
        return Directory(self.by_name)

    async def store(self) -> AsyncGenerator[SessionStore]:
        async with self.data.postgres_client(service="shop_api") as client:
            yield DataSessions(client)

    async def add(self, name: str, **changes: Any) -> None:
        stored = await PASSWORDS.hash(PASSWORD)
        self.by_name[name] = Account(id=f"id-{name}", password_hash=stored, **changes)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[httpx.AsyncClient]:
        async with self.app.router.lifespan_context(self.app):
            self.app.state.redis = self.redis
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client


class Directory:
    """The accounts of a shop."""

    def __init__(self, by_name: dict[str, Account]) -> None:
        self._by_name = by_name

    async def by_name(self, name: str) -> Account | None:
        return self._by_name.get(name.casefold())

    async def by_id(self, user_id: str) -> Account | None:
        return next((each for each in self._by_name.values() if each.id == user_id), None)

    async def save_password_hash(self, user_id: str, password_hash: str) -> None:
        for name, each in self._by_name.items():
            if each.id == user_id:
                self._by_name[name] = Account(id=each.id, roles=each.roles, password_hash=password_hash)


@pytest.fixture
async def shop() -> Shop:
    shop = Shop()
    await shop.add("ann", roles=["admin"])
    await shop.add("bob")
    return shop


async def log_in(client: httpx.AsyncClient, name: str = "ann", password: str = PASSWORD) -> httpx.Response:
    return await client.post(
        "/login", data={"grant_type": "password", "username": name, "password": password}
    )


def bearing(answer: httpx.Response) -> dict[str, str]:
    return {"authorization": f"Bearer {answer.json()['access_token']}"}


async def renew(client: httpx.AsyncClient, answer: httpx.Response) -> httpx.Response:
    return await client.post("/login/refresh", json={"refresh_token": answer.json()["refresh_token"]})


async def test_a_login_gives_tokens_that_open_routes(shop: Shop) -> None:
    """Name and password get an access token with the account's roles, and an answer that nobody stores."""
    async with shop.serving() as client:
        answer = await log_in(client, "Ann")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert (body["token_type"], body["expires_in"]) == ("Bearer", 900)
        assert body.keys() == {"access_token", "token_type", "expires_in", "refresh_token"}
        me = await client.get("/me", headers=bearing(answer))
        assert me.json() == {"id": "id-ann", "roles": ["admin"]}
        assert (await client.get("/admin", headers=bearing(await log_in(client, "bob")))).status_code == 403


async def test_the_openapi_page_can_sign_in(shop: Shop) -> None:
    """The document names the login as OAuth2's password flow, and protected routes refer to it."""
    async with shop.serving() as client:
        document = (await client.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["access_token"]
    assert scheme == {"type": "oauth2", "flows": {"password": {"tokenUrl": "login", "scopes": {}}}}
    assert document["paths"]["/me"]["get"]["security"] == [{"access_token": []}]
    form = document["paths"]["/login"]["post"]["requestBody"]["content"]
    assert list(form) == ["application/x-www-form-urlencoded"]


@pytest.mark.parametrize("name", ["ann", "nobody", "gone", "without"])
async def test_every_refusal_is_the_same(shop: Shop, name: str) -> None:
    """A wrong password, an unknown name, a disabled account and one without a password can't be told apart."""
    await shop.add("gone", is_active=False)
    shop.by_name["without"] = Account(id="id-without")
    password = "wrong password" if name == "ann" else PASSWORD
    async with shop.serving() as client:
        with capture_logs() as lines:
            answer = await log_in(client, name, password)
    assert problem(answer) == (401, "UNAUTHENTICATED")
    assert answer.json()["detail"] == "the name or the password is wrong"
    assert name not in str([line for line in lines if line["event"] == "login refused"])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("username=ann", "application/x-www-form-urlencoded"),
        ("username=ann&username=bob&password=x", "application/x-www-form-urlencoded"),
        ("username=&password=x", "application/x-www-form-urlencoded"),
        ("username=a%00&password=x", "application/x-www-form-urlencoded"),
        ("grant_type=client_credentials&username=ann&password=x", "application/x-www-form-urlencoded"),
        ("username=ann&password=" + "x" * 9000, "application/x-www-form-urlencoded"),
        ("&".join(f"a{number}=1" for number in range(30)), "application/x-www-form-urlencoded"),
        ('{"username": "ann", "password": "secret-in-body"}', "application/json"),
        ("é".encode("latin-1"), "application/x-www-form-urlencoded"),
        (f"username={'a' * 256}&password=x", "application/x-www-form-urlencoded"),
    ],
)
async def test_a_login_is_a_form(shop: Shop, content: str | bytes, kind: str) -> None:
    """Anything but one name and one password in a form is refused, and not quoted."""
    async with shop.serving() as client:
        answer = await client.post("/login", content=content, headers={"content-type": kind})
    assert problem(answer) == (422, "VALIDATION")
    assert "secret-in-body" not in answer.text


async def test_an_old_hash_is_replaced_at_the_login(shop: Shop) -> None:
    """A hash by weaker parameters is made anew when its owner signs in."""
    import argon2

    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    shop.by_name["ann"] = Account(id="id-ann", password_hash=old)
    async with shop.serving() as client:
        assert (await log_in(client)).status_code == 200
        assert "m=19456" in (shop.by_name["ann"].password_hash or "")
        assert (await log_in(client)).status_code == 200


async def test_a_refresh_reads_the_account_again(shop: Shop) -> None:
    """New roles are in the next access token, and a disabled account's sessions end."""
    async with shop.serving() as client:
        first = await log_in(client)
        stored = shop.by_name["ann"].password_hash
        shop.by_name["ann"] = Account(id="id-ann", password_hash=stored, roles=["clerk"])
        second = await renew(client, first)
        assert second.headers["cache-control"] == "no-store"
        assert (await client.get("/me", headers=bearing(second))).json()["roles"] == ["clerk"]
        shop.by_name["ann"] = Account(id="id-ann", password_hash=stored, is_active=False)
        assert problem(await renew(client, second)) == (401, "SESSION_ENDED")
        shop.by_name["ann"] = Account(id="id-ann", password_hash=stored)
        assert problem(await renew(client, second)) == (401, "SESSION_ENDED")


async def test_a_stolen_refresh_token_is_worth_nothing(shop: Shop) -> None:
    """The second use of a token by somebody else ends the session, and the log has a warning."""
    async with shop.serving() as client:
        first = await log_in(client)
        second = await renew(client, first)
        third = await renew(client, second)
        with capture_logs() as lines:
            assert problem(await renew(client, first)) == (401, "SESSION_ENDED")
        assert "refresh token used again" in [line["event"] for line in lines]
        assert first.json()["refresh_token"] not in str(lines)
        assert problem(await renew(client, third)) == (401, "SESSION_ENDED")


async def test_an_expired_access_token_does_not_hinder_a_refresh(shop: Shop) -> None:
    """A client that sends its old token along with the refresh gets new ones."""
    async with shop.serving() as client:
        first = await log_in(client)
        body = {"refresh_token": first.json()["refresh_token"]}
        answer = await client.post("/login/refresh", json=body, headers={"authorization": "Bearer old"})
        assert answer.status_code == 200


async def test_a_logout_ends_the_session(shop: Shop) -> None:
    """The refresh token of a session that was signed out is over, and other sessions go on."""
    async with shop.serving() as client:
        one, other = await log_in(client), await log_in(client)
        assert (await client.post("/logout", headers=bearing(one))).status_code == 204
        assert (await renew(client, one)).status_code == 401
        assert (await renew(client, other)).status_code == 200
        bare = {"authorization": f"Bearer {shop.tokens.issue('id-ann')}"}
        assert (await client.post("/logout", headers=bare)).status_code == 204


async def test_users_see_and_end_their_own_sessions_only(shop: Shop) -> None:
    """The list has the user's sessions with the current one marked, and nobody can end another's."""
    async with shop.serving() as client:
        client.headers["user-agent"] = "Firefox"
        ann, bob = await log_in(client), await log_in(client, "bob")
        await log_in(client)
        listed = (await client.get("/login/sessions", headers=bearing(ann))).json()
        assert [each["label"] for each in listed] == ["Firefox", "Firefox"]
        assert [each["is_current"] for each in listed].count(True) == 1
        theirs = (await client.get("/login/sessions", headers=bearing(bob))).json()[0]["id"]
        assert (await client.delete(f"/login/sessions/{theirs}", headers=bearing(ann))).status_code == 404
        [own] = [each["id"] for each in listed if not each["is_current"]]
        assert (await client.delete(f"/login/sessions/{own}", headers=bearing(ann))).status_code == 204
        assert len((await client.get("/login/sessions", headers=bearing(ann))).json()) == 1
        assert (await client.delete("/login/sessions", headers=bearing(ann))).status_code == 204
        assert (await renew(client, ann)).status_code == 401
        assert (await renew(client, bob)).status_code == 200


async def test_a_password_change_needs_the_current_one(shop: Shop) -> None:
    """It is refused with a wrong or a weak password; when it is done all other sessions are over."""
    async with shop.serving() as client:
        this, other = await log_in(client), await log_in(client)

        async def change(current: str, new: str) -> httpx.Response:
            body = {"current_password": current, "new_password": new}
            return await client.put("/login/password", json=body, headers=bearing(this))

        wrong = await change("wrong password", "a new passphrase")
        weak = await change(PASSWORD, "password1")
        assert [each.status_code for each in (wrong, weak)] == [422, 422]
        assert wrong.json()["errors"][0]["pointer"] == "/current_password"
        assert weak.json()["errors"][0]["pointer"] == "/new_password"
        assert (await change(PASSWORD, "a new passphrase")).status_code == 204
        assert (await log_in(client)).status_code == 401
        assert (await log_in(client, password="a new passphrase")).status_code == 200
        assert (await renew(client, other)).status_code == 401
        assert (await renew(client, this)).status_code == 200


async def test_an_ended_session_ends_its_access_tokens_too() -> None:
    """With revocations a logout is seen by the next check of the access token."""
    shop = Shop(revocations=Revocations(recheck_seconds=0))
    await shop.add("ann")
    shop.redis = FakeAsyncRedis()
    revocations: Any = shop.tokens.revocations
    revocations.use = lambda _: setattr(revocations, "_redis", shop.redis)
    async with shop.serving() as client:
        one, other = await log_in(client), await log_in(client)
        assert (await client.get("/me", headers=bearing(one))).status_code == 200
        await client.post("/logout", headers=bearing(one))
        assert (await client.get("/me", headers=bearing(one))).status_code == 401
        assert (await client.delete("/login/sessions", headers=bearing(other))).status_code == 204
        assert (await client.get("/me", headers=bearing(other))).status_code == 401


@pytest.mark.parametrize("has_redis", [False, True])
async def test_guessing_is_limited_and_locks_nobody_out(shop: Shop, has_redis: bool) -> None:
    """A guesser is stopped by account and address; the owner still signs in from elsewhere."""
    shop.redis = FakeAsyncRedis() if has_redis else None
    async with shop.serving() as client:
        answers = [(await log_in(client, "ann", "wrong password")).status_code for _ in range(12)]
        assert answers == [401] * 10 + [429] * 2
        refused = await log_in(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 1
        assert (await log_in(client, " ANN ")).status_code == 429
        assert (await log_in(client, "bob")).status_code == 200
        elsewhere = httpx.ASGITransport(shop.app, client=("203.0.113.7", 1))
        async with httpx.AsyncClient(transport=elsewhere, base_url="http://test") as other:
            assert (await log_in(other)).status_code == 200


async def test_names_stand_in_no_key_of_redis(shop: Shop) -> None:
    """Who tries to sign in can't be read from the counters."""
    shop.redis = FakeAsyncRedis()
    async with shop.serving() as client:
        await log_in(client)
    names = [name.decode() async for name in shop.redis.scan_iter("*")]
    assert len(names) == len(_login_limits.RATES)
    assert not any("ann" in name for name in names)


async def test_an_idempotency_key_is_refused(shop: Shop) -> None:
    """The answers hold credentials, which are never stored."""
    async with shop.serving() as client:
        form = {"username": "ann", "password": PASSWORD}
        answer = await client.post("/login", data=form, headers={"idempotency-key": "k"})
    assert answer.status_code == 400
    assert "Idempotency-Key".lower() in answer.text.lower()


async def test_the_public_keys_verify_the_tokens(shop: Shop) -> None:
    """Another service finds the keys at the well-known path, and needs nothing else."""
    async with shop.serving() as client:
        keys = await client.get("/.well-known/jwks.json")
        token = (await log_in(client)).json()["access_token"]
    assert keys.headers["cache-control"] == "public, max-age=300"
    [jwk] = jwt.PyJWKSet.from_dict(keys.json()).keys
    claims = jwt.decode(token, jwk.key, algorithms=["EdDSA"], audience="shop_api")
    assert claims["sub"] == "id-ann"


async def test_a_password_and_a_token_are_in_no_log_line(shop: Shop) -> None:
    """What a login is given and what it gives are written nowhere, nor shown by the account."""
    async with shop.serving() as client:
        with capture_logs() as lines:
            first = await log_in(client)
            await log_in(client, password=quote("a secret guess"))
            second = await renew(client, first)
    text = str(lines) + repr(shop.by_name["ann"])
    secrets = [PASSWORD, "a secret guess", shop.by_name["ann"].password_hash or ""]
    secrets += [each.json()[name] for each in (first, second) for name in ("access_token", "refresh_token")]
    assert not [secret for secret in secrets if secret in text]
