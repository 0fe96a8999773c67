"""Our own access tokens: made, verified, remembered, and every forgery refused."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fakeredis import FakeAsyncRedis
from pydantic import SecretStr
from structlog.testing import capture_logs

from hybridkit.errors import DeclarationError, MisuseError, UnauthenticatedError
from hybridkit.security import AccessTokens, KeyRing, Principal, Revocations, Security, SecurityStart
from hybridkit.security._verification import MAX_REMEMBERED, MAX_TOKEN_BYTES
from hybridkit.settings import ServiceSettings, TokenSettings
from tests.helpers.apis import Settings

ISSUER, AUDIENCE = "https://api.test", "shop"


def pem(key: Any) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def public_pem(key: Any) -> bytes:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


ED, OTHER_ED = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, Any] = {"EdDSA": ED, "ES256": EC, "RS256": RSA}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens_of(key: Any, clock: Callable[[], float], **options: Any) -> AccessTokens:
    return AccessTokens(issuer=ISSUER, audience=AUDIENCE, keys=KeyRing(pem(key)), clock=clock, **options)


@pytest.fixture
def tokens(clock: Clock) -> AccessTokens:
    return tokens_of(ED, clock)


async def principal(tokens: AccessTokens, token: str) -> Principal:
    """Return the principal by the whole way of a request."""
    scope = {"headers": [(b"authorization", b"Bearer " + token.encode())]}
    found = await Security(tokens).authenticate(scope)
    assert found is not None
    return found


async def is_refused(tokens: AccessTokens, token: str) -> bool:
    try:
        await principal(tokens, token)
    except UnauthenticatedError as refusal:
        assert refusal.challenge == 'Bearer error="invalid_token"'
        return True
    return False


def forged(tokens: AccessTokens, clock: Clock, key: Any = ED, *, alg: str = "EdDSA", **changes: Any) -> str:
    """Sign a token that is good but for the changes: of claims, or of the header by `header=`; None takes one away."""
    header = {"typ": "at+jwt", "kid": tokens.keys.kid, **changes.pop("header", {})}
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "jti": "1",
        "iat": clock.now,
        "exp": clock.now + 900,
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    header = {name: value for name, value in header.items() if value is not None}
    if alg != "EdDSA":
        return jwt.encode(claims, key, algorithm=alg, headers=header)
    parts = [encoded(json.dumps(each).encode()) for each in ({"alg": alg, **header}, claims)]
    return ".".join([*parts, encoded(key.sign(".".join(parts).encode()))])


def encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_says_who_calls(algorithm: str, clock: Clock) -> None:
    """A token of each kind of key is good, and its claims become the principal."""
    tokens = tokens_of(KEYS[algorithm], clock)
    token = tokens.issue(
        "ann", roles={"b", "a"}, scopes=["write", "read"], session_id="s1", claims={"plan": "pro"}
    )
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == (algorithm, "at+jwt")
    found = await principal(tokens, token)
    assert found == Principal(id="ann", issuer=ISSUER)
    assert found.roles == {"a", "b"}
    assert found.scopes == {"read", "write"}
    assert found.session_id == "s1"
    assert found.claims["plan"] == "pro"
    assert found.claims["exp"] - found.claims["iat"] == 900
    assert found.claims["jti"]


async def test_two_tokens_are_never_the_same(tokens: AccessTokens) -> None:
    """Each token has an id of its own, also of one user in one second."""
    assert tokens.issue("ann") != tokens.issue("ann")


def unsigned(token: str, alg: str) -> str:
    _, payload, _ = token.split(".")
    header = {"alg": alg, "typ": "at+jwt", "kid": jwt.get_unverified_header(token)["kid"]}
    return f"{encoded(json.dumps(header).encode())}.{payload}."


def hmac_signed(token: str, alg: str, secret: bytes) -> str:
    head, payload, _ = unsigned(token, alg).split(".")
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[alg]
    mac = hmac.new(secret, f"{head}.{payload}".encode(), digest).digest()
    return f"{head}.{payload}.{encoded(mac)}"


@pytest.mark.parametrize("own", KEYS)
@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
async def test_a_token_without_a_signature_is_refused(own: str, alg: str, clock: Clock) -> None:
    """The algorithm `none`, however it is written, is refused whatever the key."""
    tokens = tokens_of(KEYS[own], clock)
    assert await is_refused(tokens, unsigned(tokens.issue("ann"), alg))


@pytest.mark.parametrize("own", KEYS)
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_a_public_key_is_no_shared_secret(own: str, alg: str, clock: Clock) -> None:
    """A token that is signed by HMAC with the bytes of the public key is refused, in every form of these bytes."""
    key = KEYS[own]
    tokens = tokens_of(key, clock)
    jwk = tokens.keys.jwks()["keys"][0]
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    secrets = [public_pem(key), public_pem(key).strip(), der, json.dumps(jwk).encode(), b""]
    for secret in secrets:
        assert await is_refused(tokens, hmac_signed(tokens.issue("ann"), alg, secret))


@pytest.mark.parametrize("own", KEYS)
@pytest.mark.parametrize("theirs", ["EdDSA", "ES256", "RS256", "RS512", "PS256"])
async def test_the_algorithm_matrix(own: str, theirs: str, clock: Clock) -> None:
    """A token by another algorithm is refused, also with a key of that algorithm which is known by the same name."""
    tokens = tokens_of(KEYS[own], clock)
    keys = {"EdDSA": OTHER_ED, "ES256": EC, "RS256": RSA, "RS512": RSA, "PS256": RSA}
    token = forged(tokens, clock, keys[theirs], alg=theirs)
    is_own = keys[theirs] is KEYS[own] and theirs == own
    assert await is_refused(tokens, token) is not is_own


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "iat", "exp", "jti"])
@pytest.mark.parametrize("value", [None, "", 0, [], {}, True, ["shop", 1], float("nan"), 10**400])
async def test_a_claim_that_is_missing_or_wrong_refuses_the_token(
    claim: str, value: object, tokens: AccessTokens, clock: Clock
) -> None:
    """Every required claim has to be there, with a value of its kind."""
    if claim == "aud" and value == ["shop", 1]:
        return  # an array that has the audience is good by RFC 7519, section 4.1.3
    content: Any = {claim: value}
    assert await is_refused(tokens, forged(tokens, clock, **content))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://api.test/"},
        {"aud": "Shop"},
        {"aud": ["other"]},
        {"sub": "a\nb"},
        {"sub": "x" * 256},
        {"exp": Clock.now - 11},
        {"iat": Clock.now + 11, "exp": Clock.now + 100},
        {"nbf": Clock.now + 11},
        {"nbf": "soon"},
        {"iat": Clock.now, "exp": Clock.now},
        {"exp": Clock.now + 3601},
        {"header": {"typ": "JWT"}},
        {"header": {"typ": "id+jwt"}},
        {"header": {"typ": None}},
        {"header": {"kid": "other"}},
        {"header": {"kid": None}},
        {"header": {"kid": 7}},
        {"header": {"kid": "../../etc/passwd"}},
        {"header": {"crit": ["b64"], "b64": True}},
    ],
)
async def test_a_token_for_another_purpose_is_refused(
    changes: Any, tokens: AccessTokens, clock: Clock
) -> None:
    """Another issuer, audience, time or kind, a lifetime beyond the limit, a key that is not ours."""
    assert await is_refused(tokens, forged(tokens, clock, **changes))


async def test_the_application_prefix_of_the_type_may_be_there(tokens: AccessTokens, clock: Clock) -> None:
    """`application/at+jwt`, in any case, is the same type."""
    assert not await is_refused(tokens, forged(tokens, clock, header={"typ": "application/AT+JWT"}))


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c"])
async def test_a_token_can_not_bring_its_own_key(name: str, tokens: AccessTokens, clock: Clock) -> None:
    """Keys and addresses of keys in the header are ignored, so a token that was signed by them is refused."""
    other = tokens_of(OTHER_ED, clock)
    jwk = other.keys.jwks()["keys"][0]
    header = {name: jwk if name == "jwk" else "https://evil.test/keys"}
    assert await is_refused(tokens, forged(tokens, clock, OTHER_ED, header=header))
    assert not await is_refused(tokens, forged(tokens, clock, ED, header=header))


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c", "a.b.c.d", "....", "é.é.é", "\x00", "=" * 40])
async def test_what_is_no_token_is_refused(text: str, tokens: AccessTokens) -> None:
    """Anything that is no JWT is answered as a bad token is."""
    assert await is_refused(tokens, text)


async def test_a_token_has_a_size(tokens: AccessTokens, clock: Clock) -> None:
    """A token beyond the limit is refused before it is parsed."""
    assert await is_refused(tokens, forged(tokens, clock, much="x" * MAX_TOKEN_BYTES))


async def test_a_signature_of_another_content_is_refused(tokens: AccessTokens, clock: Clock) -> None:
    """Changed content with the old signature, and each flipped bit of the signature's start, are refused."""
    head, _, signature = forged(tokens, clock).split(".")
    other = forged(tokens, clock, sub="eve").split(".")[1]
    assert await is_refused(tokens, f"{head}.{other}.{signature}")
    assert await is_refused(tokens, f"{head}.{other}.")


async def test_the_reason_is_logged_and_not_told(tokens: AccessTokens, clock: Clock) -> None:
    """The log says why a token is refused, and has nothing of the token."""
    token = forged(tokens, clock, aud="other")
    with capture_logs() as lines, pytest.raises(UnauthenticatedError) as refusal:
        await principal(tokens, token)
    assert "aud" not in str(refusal.value)
    assert [line["reason"] for line in lines] == ["its aud is another service"]
    assert token not in str(lines)


async def test_a_token_is_good_until_it_expires_also_when_it_is_known(
    tokens: AccessTokens, clock: Clock
) -> None:
    """A remembered token ends at its time, and a clock that goes back does not prolong it."""
    token = tokens.issue("ann")
    assert not await is_refused(tokens, token)
    clock.now += 905
    assert not await is_refused(tokens, token)  # within the tolerance for clocks
    clock.now += 6
    assert await is_refused(tokens, token)


async def test_a_verified_token_is_remembered_for_a_minute(
    tokens: AccessTokens, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is checked once in 60 seconds, and again then."""
    checked: list[int] = []
    decode = jwt.decode

    def counting(*args: Any, **kwargs: Any) -> Any:
        checked.append(1)
        return decode(*args, **kwargs)

    monkeypatch.setattr(jwt, "decode", counting)
    token = tokens.issue("ann")
    for _ in range(3):
        await principal(tokens, token)
    assert len(checked) == 1
    clock.now += 60
    await principal(tokens, token)
    assert len(checked) == 2


async def test_remembered_tokens_are_bounded(tokens: AccessTokens) -> None:
    """The oldest of too many known tokens is forgotten."""
    for number in range(3):
        await principal(tokens, tokens.issue(str(number)))
    known: Any = tokens._known
    assert repr(known) == "VerifiedTokens(3)"
    for number in range(MAX_REMEMBERED):
        known.add(b"%d" % number, Principal(id="x"), tokens._clock() + 60)
    assert len(known._known) == MAX_REMEMBERED


async def test_several_credentials_are_refused(tokens: AccessTokens) -> None:
    """A request with two `Authorization` lines could mean two callers to two readers."""
    line = (b"authorization", b"Bearer " + tokens.issue("ann").encode())
    with pytest.raises(UnauthenticatedError) as refusal:
        await Security(tokens).authenticate({"headers": [line, line]})
    assert "invalid_request" in refusal.value.challenge


async def test_other_schemes_are_no_tokens(tokens: AccessTokens) -> None:
    """Credentials of another scheme are none for us; the scheme's case does not matter."""
    token = tokens.issue("ann").encode()
    security = Security(tokens)
    assert await security.authenticate({"headers": [(b"authorization", b"Basic " + token)]}) is None
    assert await security.authenticate({"headers": []}) is None
    assert await security.authenticate({"headers": [(b"authorization", b"bEARER  " + token)]}) is not None


async def test_keys_overlap_while_they_change(clock: Clock) -> None:
    """Tokens of the former key are good while the key is in the ring, private or public, and not after."""
    before = tokens_of(OTHER_ED, clock)
    token = before.issue("ann")
    for former in (pem(OTHER_ED), public_pem(OTHER_ED).decode()):
        ring = KeyRing(pem(ED) + former)
        assert repr(ring) == "KeyRing(EdDSA, 2 keys)"
        during = AccessTokens(issuer=ISSUER, audience=AUDIENCE, keys=ring, clock=clock)
        assert not await is_refused(during, token)
        assert jwt.get_unverified_header(during.issue("ann"))["kid"] == ring.kid
    assert await is_refused(tokens_of(ED, clock), token)


def test_the_published_keys_are_public() -> None:
    """The JWK Set has each key's public members, its thumbprint as name, and nothing private."""
    for algorithm, key in KEYS.items():
        [jwk] = KeyRing(pem(key)).jwks()["keys"]
        assert (jwk["alg"], jwk["use"]) == (algorithm, "sig")
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & jwk.keys()


def test_a_thumbprint_is_that_of_the_standard() -> None:
    """The name of a key is the thumbprint of RFC 8037, appendix A.3."""
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert KeyRing(pem(key)).kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        pem(rsa.generate_private_key(65537, 1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(ED).decode(),
        pem(ED) + pem(EC),
    ],
    ids=["empty", "no-pem", "damaged", "small-rsa", "other-curve", "public-first", "mixed"],
)
def test_a_ring_refuses_other_keys(text: str) -> None:
    """Small, damaged, foreign and mixed keys are refused at the start, in words without the key."""
    with pytest.raises(DeclarationError) as refusal:
        KeyRing(text)
    assert "AAAA" not in str(refusal.value)


def test_what_issuing_refuses(tokens: AccessTokens) -> None:
    """A further claim can't replace one of ours, and no token is made before the application runs."""
    with pytest.raises(DeclarationError, match="roles, sub"):
        tokens.issue("ann", claims={"roles": ["admin"], "sub": "bob"})
    with pytest.raises(MisuseError):
        AccessTokens().issue("ann")
    for seconds in (0, 3601):
        with pytest.raises(DeclarationError):
            AccessTokens(lifetime_seconds=seconds)


class ApiSettings(TokenSettings):
    service_name: str = "shop_api"


async def test_settings_give_issuer_audience_and_keys() -> None:
    """What the constructor does not say comes from the settings of each start; production wants keys."""
    tokens = AccessTokens()
    assert repr(tokens) == "AccessTokens()"
    settings = ApiSettings(token_keys=SecretStr(pem(ED)), environment="production")
    async with tokens.open(SecurityStart(settings=settings)):
        assert tokens.keys.kid == KeyRing(pem(ED)).kid
        found = await principal(tokens, tokens.issue("ann"))
        assert (found.issuer, found.claims["aud"]) == ("shop_api", "shop_api")
    own = ApiSettings(token_issuer="https://a.test", token_audience="b")
    async with tokens.open(SecurityStart(settings=own)):
        assert tokens.keys.kid != KeyRing(pem(ED)).kid
        assert repr(tokens) == "AccessTokens('https://a.test')"
    refused: list[ServiceSettings] = [Settings(), ApiSettings(environment="production")]
    for wrong in refused:
        with pytest.raises(DeclarationError):
            async with tokens.open(SecurityStart(settings=wrong)):
                pass


async def test_a_revoked_session_ends_its_tokens(clock: Clock) -> None:
    """With revocations an ended session's tokens are refused within the time to recheck, and others are not."""
    revocations = Revocations(recheck_seconds=5)
    tokens = tokens_of(ED, clock, revocations=revocations)
    one, other = tokens.issue("ann", session_id="s1"), tokens.issue("ann", session_id="s2")
    async with tokens.open(SecurityStart(settings=Settings(), redis=FakeAsyncRedis())):
        assert [await is_refused(tokens, each) for each in (one, other)] == [False, False]
        await revocations.add_session("s1")
        assert not await is_refused(tokens, one)
        clock.now += 5
        assert [await is_refused(tokens, each) for each in (one, other)] == [True, False]
        await revocations.add_token(await principal(tokens, other))
        clock.now += 5
        assert await is_refused(tokens, other)


async def test_tokens_are_good_while_redis_is_down(clock: Clock) -> None:
    """Revocations that can't be read hold nobody up, and one that can't be stored is logged."""

    class Down(FakeAsyncRedis):
        async def exists(self, *_: Any) -> int:
            raise ConnectionError("down")

        async def set(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("down")

    revocations = Revocations()
    tokens = tokens_of(ED, clock, revocations=revocations)
    await revocations.add_session("before the start")
    async with tokens.open(SecurityStart(settings=Settings(), redis=Down())):
        with capture_logs() as lines:
            await revocations.add_session("s1")
            assert not await is_refused(tokens, tokens.issue("ann", session_id="s1"))
    assert [line["event"] for line in lines] == ["revocation not stored", "revocations not read"]


async def test_revocations_need_redis(clock: Clock) -> None:
    """An application without Redis does not start with them."""
    tokens = tokens_of(ED, clock, revocations=Revocations())
    with pytest.raises(DeclarationError, match="RedisSettings"):
        async with tokens.open(SecurityStart(settings=Settings())):
            pass
    with pytest.raises(DeclarationError):
        Revocations(recheck_seconds=61)


def test_the_scheme_is_a_login_or_a_bearer_token() -> None:
    """The OpenAPI page asks for name and password where there is a login, and for a token otherwise."""
    assert AccessTokens().schemes["access_token"]["flows"]["password"]["tokenUrl"] == "login"
    assert AccessTokens(login_path="").schemes["access_token"]["scheme"] == "bearer"
