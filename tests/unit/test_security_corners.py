"""The corners of tokens, sessions and policies that no ordinary request reaches."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from fastapi import FastAPI

from hybridkit.adapters._security._documents import describe_security
from hybridkit.adapters._security._login import postgres_sessions
from hybridkit.adapters._security._login_limits import LoginLimits
from hybridkit.adapters.fastapi import create_app, rate_limited
from hybridkit.coordination import Rate
from hybridkit.errors import ResponseError, StaleVersionError
from hybridkit.security import (
    OPEN,
    AccessTokens,
    CurrentPrincipal,
    DataSessions,
    KeyRing,
    LoginSessions,
    OpenIdIssuer,
    Principal,
    Revocations,
    Security,
    require,
)
from hybridkit.security._keys import TokenRefusedError
from hybridkit.security._openid import MAX_DOCUMENT_BYTES, _Documents
from hybridkit.security._verification import MAX_TOKEN_BYTES, TokenRules
from tests.helpers.apis import Settings, serving
from tests.unit.test_security_access_tokens import EC, ED, Clock, forged, pem, tokens_of

RULES = TokenRules(issuer="https://api.test", audience="shop", algorithm="EdDSA", types=frozenset({"at+jwt"}))


def test_no_repr_tells_a_secret() -> None:
    """What is shown of the parts has names and numbers in it, and no key."""
    store: Any = DataSessions(SimpleNamespace(name="client"))  # type: ignore[arg-type]
    shown = [repr(each) for each in (LoginLimits("login"), store, LoginSessions(store), Revocations(), OPEN)]
    assert shown[0] == "LoginLimits('login')"
    assert shown[1].startswith("DataSessions(")
    assert shown[2].startswith("LoginSessions(DataSessions(")
    assert shown[3:] == ["Revocations(recheck_seconds=5.0)", "OPEN"]
    assert repr(_Documents("api")) == "_Documents([])"


async def test_the_sessions_of_the_login_are_in_postgresql_by_default() -> None:
    """The dependency makes the store of the client that the application has."""
    client: Any = SimpleNamespace()
    assert isinstance(await postgres_sessions(client), DataSessions)


def test_the_rules_of_a_token_hold_by_themselves() -> None:
    """Size, issuer, and the kind of the key are checked also where nobody has looked before."""
    clock = Clock()
    tokens = tokens_of(ED, clock)
    key = tokens.keys.key(tokens.keys.kid)
    token = forged(tokens, clock)
    with pytest.raises(TokenRefusedError, match="characters"):
        RULES.key_name("x" * (MAX_TOKEN_BYTES + 1))
    with pytest.raises(TokenRefusedError, match="iss"):
        replace(RULES, issuer="https://other.test").principal(token, key, clock.now)
    other = KeyRing(pem(EC))
    with pytest.raises(TokenRefusedError, match="ES256"):
        RULES.principal(token, other.key(other.kid), clock.now)
    with pytest.raises(TokenRefusedError, match="iat"):
        RULES.principal(forged(tokens, clock, iat=10**400), key, clock.now)
    assert RULES.principal(token, key, clock.now)[0] == Principal(id="ann", issuer="https://api.test")


async def test_a_session_that_never_stands_still_is_left() -> None:
    """An end gives up after some tries when each of them meets another rotation."""
    tried: list[int] = []

    async def get_or_none(*_: Any) -> Any:
        return SimpleNamespace()

    async def delete(*_: Any) -> None:
        tried.append(1)
        raise StaleVersionError("rotated")

    client: Any = SimpleNamespace(get_or_none=get_or_none, delete=delete)
    await DataSessions(client).end(id)  # type: ignore[arg-type]
    assert len(tried) == 5


async def test_only_the_token_is_asked_for_without_a_session() -> None:
    """Revocations without Redis revoke nothing, and a token without a session is known by itself."""
    revocations = Revocations()
    ann = Principal(id="ann", claims={"jti": "1"})
    assert not await revocations.is_revoked(ann)
    revocations.use(FakeAsyncRedis())
    assert not await revocations.is_revoked(ann)
    await revocations.add_token(ann)
    assert await revocations.is_revoked(ann)


async def test_credentials_of_another_kind_are_left_to_others() -> None:
    """An issuer of tokens says nothing of a request without one."""
    issuer = OpenIdIssuer("https://id.test", audience="shop")
    assert await issuer.authenticate({"headers": [(b"authorization", b"Basic abc")]}) is None


async def test_a_provider_without_usable_keys_is_one_that_was_not_reached() -> None:
    """A set without a key that can be used replaces no keys."""

    async def fetch(url: str) -> object:
        return (
            {"issuer": "https://id.test", "jwks_uri": "https://id.test/keys"}
            if "openid" in url
            else {"keys": 1}
        )

    issuer: Any = OpenIdIssuer("https://id.test", audience="shop", fetch=fetch)
    await issuer._refetch()
    assert repr(issuer) == "OpenIdIssuer('https://id.test', 0 keys)"


async def test_a_document_has_a_size() -> None:
    """A provider that answers with too much is not read."""
    documents: Any = _Documents("api")

    async def get(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(body=b" " * (MAX_DOCUMENT_BYTES + 1), status=200)

    documents._clients["https://id.test"] = SimpleNamespace(get=get)
    with pytest.raises(ResponseError, match="too much"):
        await documents.get("https://id.test/keys")


async def test_an_application_without_security_has_no_principal() -> None:
    """A handler that wants the principal fails in an application that knows none."""
    app = create_app(Settings, title="Test")

    @app.get("/me")
    async def me(principal: CurrentPrincipal) -> str:
        return principal.id

    async with serving(app) as client:
        assert (await client.get("/me")).status_code == 500


def test_a_route_that_is_not_in_the_document_needs_nothing_in_it() -> None:
    """A hidden protected route adds no scheme to the document."""
    tokens = AccessTokens(issuer="i", audience="a", keys=KeyRing.generated())
    app = create_app(Settings, title="Test", security=Security(tokens))
    app.add_api_route("/hidden", lambda: None, dependencies=[require()], include_in_schema=False)
    assert "securitySchemes" not in app.openapi().get("components", {})
    document: dict[str, Any] = {"paths": {}}
    describe_security(document, FastAPI().routes, Security(tokens))
    assert document == {"paths": {}}


async def test_what_is_neither_a_request_nor_a_connection_is_passed_on() -> None:
    """The lifespan goes through the check."""
    from hybridkit.adapters._security._middleware import SecurityMiddleware

    passed: list[Any] = []

    async def app(scope: Any, *_: Any) -> None:
        passed.append(scope["type"])

    tokens = AccessTokens(issuer="i", audience="a", keys=KeyRing.generated())
    middleware: Any = SecurityMiddleware(app, security=Security(tokens))
    await middleware({"type": "lifespan"}, None, None)
    assert passed == ["lifespan"]


async def test_limits_of_verified_callers_count_before_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protected route's limits are checked with its policy, for the user, and are in the document."""
    from hybridkit.adapters._security import _rate_limits

    counted: list[Any] = []

    async def count(_: Any, scope: Any, keys: Any, **__: Any) -> None:
        counted.append((scope["path"], *keys))

    monkeypatch.setattr(_rate_limits, "_count", count)
    monkeypatch.setattr(_rate_limits, "_redis_of", lambda _: FakeAsyncRedis())
    tokens = AccessTokens(issuer="i", audience="a", keys=KeyRing.generated())
    app = create_app(Settings, title="Test", security=Security(tokens))
    limits = [
        rate_limited("mine", per_caller=Rate.parse("1/s")),
        rate_limited("all", in_total=Rate.parse("1/s")),
    ]
    app.add_api_route("/items", lambda: "items", dependencies=[require(), *limits])
    async with serving(app) as client:
        assert (await client.get("/items")).status_code == 401
        headers = {"authorization": f"Bearer {tokens.issue('ann')}"}
        assert (await client.get("/items", headers=headers)).status_code == 200
    assert counted == [("/items", "user.ann"), ("/items", "all")]
    assert "429" in app.openapi()["paths"]["/items"]["get"]["responses"]
