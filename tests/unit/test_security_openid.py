"""Tokens of an identity provider: its keys are found, kept and renewed without help of strangers."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit.codec import encode_json
from hybridkit.errors import DeclarationError, UnauthenticatedError, UnavailableError
from hybridkit.security import AccessTokens, KeyRing, OpenIdIssuer, Principal, Security, SecurityStart
from hybridkit.security._openid import FRESH_SECONDS, REFETCH_SECONDS
from tests.helpers import until
from tests.helpers.apis import Settings
from tests.unit.test_security_access_tokens import Clock, pem, tokens_of

PROVIDER = "https://id.test/realm"
DISCOVERY = "https://id.test/realm/.well-known/openid-configuration"
JWKS = "https://keys.test/jwks?p=policy"
ED = Ed25519PrivateKey.generate()
SMALL = rsa.generate_private_key(65537, 1024)


class Provider:
    """A provider whose documents may be changed, and that counts who asks."""

    def __init__(self) -> None:
        self.rings = [KeyRing(pem(ED))]
        self.discovery: Any = {"issuer": PROVIDER, "jwks_uri": JWKS}
        self.extra: list[Any] = []
        self.asked: list[str] = []
        self.is_down = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, url: str) -> object:
        self.asked.append(url)
        await self.gate.wait()
        if self.is_down:
            raise UnavailableError("down")
        if url == DISCOVERY:
            return self.discovery
        return {"keys": [*(key for ring in self.rings for key in ring.jwks()["keys"]), *self.extra]}

    def token(self, ring: KeyRing | None = None, **changes: Any) -> bytes:
        """Make a token as the provider does."""
        tokens = AccessTokens(
            issuer=changes.pop("issuer", PROVIDER),
            audience=changes.pop("audience", "shop"),
            keys=ring or self.rings[0],
            clock=Clock(),
        )
        return tokens.issue(changes.pop("sub", "ann"), **changes).encode()


@pytest.fixture
def provider() -> Provider:
    return Provider()


class Times:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def times() -> Times:
    return Times()


@asynccontextmanager
async def opened(issuer: OpenIdIssuer, *others: Any) -> AsyncGenerator[Security]:
    security = Security(*(others or (issuer,)))
    async with security.opened(Settings(), None):
        yield security


def issuer_of(provider: Provider, times: Times, **options: Any) -> OpenIdIssuer:
    return OpenIdIssuer(
        PROVIDER,
        audience="shop",
        algorithm="EdDSA",
        fetch=provider.fetch,
        clock=Clock(),
        monotonic=times,
        **options,
    )


async def who(security: Security, token: bytes) -> Principal | None:
    return await security.authenticate({"headers": [(b"authorization", b"Bearer " + token)]})


async def refusal(security: Security, token: bytes) -> str:
    with pytest.raises(UnauthenticatedError) as refused:
        await who(security, token)
    return refused.value.challenge


async def test_a_token_of_the_provider_is_good(provider: Provider, times: Times) -> None:
    """The keys are found by discovery, and the token's claims become the principal."""
    async with opened(issuer_of(provider, times, roles_claim="realm_access.roles")) as security:
        token = provider.token(claims={"realm_access": {"roles": ["admin"]}, "scp": ["read"]})
        found = await who(security, token)
    assert found == Principal(id="ann", issuer=PROVIDER)
    assert found is not None
    assert (set(found.roles), set(found.scopes)) == ({"admin"}, {"read"})
    assert provider.asked == [DISCOVERY, JWKS]


async def test_many_callers_wait_for_one_request(provider: Provider, times: Times) -> None:
    """The first tokens arrive together, and the keys are asked for once."""
    provider.gate.clear()
    async with opened(issuer_of(provider, times)) as security:
        tokens = [provider.token(sub=str(number)) for number in range(50)]
        waiting = [asyncio.create_task(who(security, token)) for token in tokens]
        await until(lambda: bool(provider.asked))
        provider.gate.set()
        found = await asyncio.gather(*waiting)
    assert [each.id for each in found if each] == [str(number) for number in range(50)]
    assert provider.asked == [DISCOVERY, JWKS]


async def test_a_storm_of_unknown_keys_asks_once_in_30_seconds(provider: Provider, times: Times) -> None:
    """Tokens with made-up keys are refused, and can't make the API flood the provider."""
    other = KeyRing.generated()
    async with opened(issuer_of(provider, times)) as security:
        await who(security, provider.token())
        times.now += REFETCH_SECONDS
        for number in range(100):
            assert "invalid_token" in await refusal(security, provider.token(other, sub=str(number)))
        assert provider.asked.count(JWKS) == 2
        times.now += REFETCH_SECONDS
        await refusal(security, provider.token(other))
        assert provider.asked.count(JWKS) == 3
        assert await who(security, provider.token()) is not None


async def test_a_new_key_is_found_and_an_old_one_forgotten(provider: Provider, times: Times) -> None:
    """A token by a key that was added is good at once, and the removed key's tokens are refused, known ones too."""
    old, new = provider.rings[0], KeyRing.generated()
    async with opened(issuer_of(provider, times)) as security:
        kept = provider.token(old)
        await who(security, kept)
        provider.rings = [new]
        times.now += REFETCH_SECONDS
        assert await who(security, provider.token(new)) is not None
        await refusal(security, kept)


async def test_keys_outlive_a_provider_that_is_down(provider: Provider, times: Times) -> None:
    """Known keys stay good for as long as the provider can't be reached, and it is asked again beside the work."""
    async with opened(issuer_of(provider, times)) as security:
        await who(security, provider.token())
        provider.is_down = True
        for _ in range(3):
            times.now += FRESH_SECONDS
            assert await who(security, provider.token(scopes=[str(times.now)])) is not None
            await until(lambda: security.authenticators[0]._fetching is None)  # type: ignore[attr-defined]
        assert provider.asked.count(DISCOVERY) == 4


async def test_a_provider_that_was_never_reached_is_no_refusal(provider: Provider, times: Times) -> None:
    """Without keys nobody can say whether a token is good: the caller is asked to come back."""
    provider.is_down = True
    async with opened(issuer_of(provider, times)) as security:
        with pytest.raises(UnavailableError) as answer:
            await who(security, provider.token())
        assert answer.value.retry_after_seconds
        provider.is_down = False
        times.now += REFETCH_SECONDS
        assert await who(security, provider.token()) is not None


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://evil.test", "jwks_uri": JWKS},
        {"issuer": PROVIDER, "jwks_uri": "http://keys.test/jwks"},
        {"issuer": PROVIDER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": PROVIDER},
        ["nothing"],
    ],
)
async def test_a_document_of_somebody_else_is_not_believed(
    discovery: Any, provider: Provider, times: Times
) -> None:
    """A discovery document that names another issuer, or keys at an address without TLS, is not used."""
    provider.discovery = discovery
    async with opened(issuer_of(provider, times)) as security:
        with pytest.raises(UnavailableError):
            await who(security, provider.token())
    assert JWKS not in provider.asked


async def test_keys_that_can_not_be_used_are_left_out(provider: Provider, times: Times) -> None:
    """Symmetric, private, small, encrypting, nameless and damaged keys of a set verify nothing, and hurt no other."""
    good = provider.rings[0].jwks()["keys"][0]
    small = rsa_jwk(SMALL)
    provider.extra = [
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {**good, "kid": "private", "d": "AAAA"},
        {**small, "kid": "small"},
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": None},
        {**good, "kid": "damaged", "x": "AA"},
        {**good, "kid": "other", "alg": "RS256"},
        "nothing",
    ]
    async with opened(issuer_of(provider, times)) as security:
        await who(security, provider.token())
        assert repr(security) == f"Security(OpenIdIssuer('{PROVIDER}', 1 keys))"


def rsa_jwk(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    from jwt.algorithms import RSAAlgorithm

    return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig"}


@pytest.mark.parametrize(
    "changes", [{"audience": "other"}, {"issuer": "https://evil.test"}, {"sub": "a\nb"}, {"sub": "é" * 256}]
)
async def test_a_token_for_others_is_refused(changes: Any, provider: Provider, times: Times) -> None:
    """Another audience, another issuer with the same keys, and subjects that are no text."""
    async with opened(issuer_of(provider, times)) as security:
        assert "invalid_token" in await refusal(security, provider.token(**changes))


async def test_the_pinned_algorithm_holds_for_keys_of_the_provider(provider: Provider, times: Times) -> None:
    """A key of another kind that the provider publishes as well verifies nothing."""
    other = KeyRing(pem(rsa.generate_private_key(65537, 2048)))
    provider.rings.append(other)
    async with opened(issuer_of(provider, times)) as security:
        await who(security, provider.token())
        await refusal(security, provider.token(other))


async def test_a_plain_jwt_is_taken_only_where_that_is_said(provider: Provider, times: Times) -> None:
    """A provider whose access tokens have no type of their own is declared as such."""
    import jwt

    ring = provider.rings[0]
    claims = {"iss": PROVIDER, "aud": "shop", "sub": "ann", "iat": Clock.now, "exp": Clock.now + 60}
    token = jwt.encode(claims, ED, algorithm="EdDSA", headers={"kid": ring.kid, "typ": "JWT"}).encode()
    async with opened(issuer_of(provider, times)) as security:
        await refusal(security, token)
    async with opened(issuer_of(provider, times, token_type="")) as security:
        assert await who(security, token) is not None


async def test_two_issuers_can_not_name_the_same_user(provider: Provider, times: Times) -> None:
    """The users of the first issuer keep their ids, and those of others have the issuer in theirs."""
    own = tokens_of(Ed25519PrivateKey.generate(), Clock())
    issuer = issuer_of(provider, times)
    async with opened(issuer, own, issuer) as security:
        mine, theirs = await who(security, own.issue("ann").encode()), await who(security, provider.token())
        assert mine is not None
        assert theirs is not None
        assert (mine.id, theirs.id) == ("ann", f"ann@{PROVIDER}")
        assert theirs.subject == "ann"
    async with opened(issuer, issuer, own) as security:
        found = await who(security, provider.token())
        assert found is not None
        assert found.id == "ann"


@pytest.mark.parametrize(
    "issuer", ["http://id.test", "id.test", "https://", "https://u:p@id.test", "https://a/#b"]
)
def test_an_issuer_is_reached_by_tls(issuer: str) -> None:
    """Only `https`, and plain HTTP on this machine, is an address for keys."""
    with pytest.raises(DeclarationError, match="https"):
        OpenIdIssuer(issuer, audience="shop")
    OpenIdIssuer("http://127.0.0.1:8080/realm", audience="shop")


def test_the_scheme_is_openid() -> None:
    """The OpenAPI page finds the provider by its discovery document."""
    scheme = OpenIdIssuer(PROVIDER, audience="shop").schemes["openid"]
    assert scheme == {"type": "openIdConnect", "openIdConnectUrl": DISCOVERY}


@asynccontextmanager
async def listening(answer: Callable[[str], object]) -> AsyncGenerator[str]:
    async def respond(request: HttpRequest) -> HttpResponse:
        body = encode_json(answer(request.target))
        return HttpResponse(200, [(b"content-type", b"application/json")], body)

    def refuse(status: int, _: str) -> HttpResponse:
        return HttpResponse(status, [], b"")

    server = HttpServer(respond, refuse=refuse, name="provider", limits=HttpLimits())
    port = await server.listen("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.close()


async def test_the_keys_come_by_the_clients_of_the_sdk() -> None:
    """A provider on a real socket is asked for its two documents, with the query of the keys' address."""
    asked: list[str] = []
    ring = KeyRing(pem(ED))
    url: list[str] = []

    def answer(target: str) -> object:
        asked.append(target)
        if target.endswith("openid-configuration"):
            return {"issuer": url[0], "jwks_uri": f"{url[0]}/keys?p=b2c"}
        return ring.jwks()

    async with listening(answer) as base:
        url.append(base)
        issuer = OpenIdIssuer(base, audience="shop", algorithm="EdDSA")
        tokens = AccessTokens(issuer=base, audience="shop", keys=ring)
        async with Security(issuer).opened(Settings(), None):
            found = await issuer.verify(tokens.issue("ann").encode())
    assert found is not None
    assert asked == ["/.well-known/openid-configuration", "/keys?p=b2c"]


async def test_nothing_is_fetched_outside_of_a_running_application() -> None:
    """An issuer that was not opened has no client, and says so."""
    issuer = OpenIdIssuer(PROVIDER, audience="shop", algorithm="EdDSA", clock=Clock())
    with pytest.raises(UnavailableError):
        await issuer.verify(Provider().token())
    async with issuer.open(SecurityStart(settings=Settings(), authenticators=[issuer])):
        pass
