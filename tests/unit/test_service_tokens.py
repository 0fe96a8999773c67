"""Service tokens: who made one is known, and nobody else's is taken."""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hybridkit.errors import DeclarationError, UnauthenticatedError
from hybridkit.security import ServiceTokenIssuer, ServiceTokenVerifier

SECRET = "a secret of thirty-two bytes or more"
OTHER = "another secret of thirty-two bytes or so"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def pem_pair() -> tuple[str, str]:
    private = Ed25519PrivateKey.generate()
    return (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    )


def issuer(key: str = SECRET, *, service: str = "api_service", **options: object) -> ServiceTokenIssuer:
    return ServiceTokenIssuer(service, key=key, audience="data", **options)  # type: ignore[arg-type]


def claims_of(**changes: object) -> dict[str, object]:
    """What a good token says, and what is changed about it; None leaves a claim out."""
    now = int(time.time())
    claims: dict[str, object] = {
        "iss": "api_service",
        "sub": "api_service",
        "aud": "data",
        "iat": now,
        "exp": now + 60,
    }
    claims |= changes
    return {name: value for name, value in claims.items() if value is not None}


def signed(
    claims: dict[str, object], *, key: str = SECRET, kid: str = "api_service", header: object = None
) -> str:
    """A token with the right signature, whatever it says."""
    algorithm = "EdDSA" if "PRIVATE" in key else "HS256"
    headers = {"typ": "JWT", "kid": kid} | cast("dict[str, Any]", header or {})
    return "Bearer " + jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, headers=headers)


def forged(**changes: object) -> str:
    """A token by somebody who has the right secret and says something else with it."""
    return signed(claims_of(**changes))


def verifier(**options: object) -> ServiceTokenVerifier:
    keys = {"api_service": SECRET, "bot_service": OTHER}
    return ServiceTokenVerifier(keys, audience="data", **options)  # type: ignore[arg-type]


def refusal(header: str | None) -> tuple[str, str]:
    """What the sender of a refused token is told, and what the log says."""
    with capture_logs() as lines, pytest.raises(UnauthenticatedError) as caught:
        verifier().caller(header)
    return str(caught.value), lines[0]["reason"] if lines else ""


@pytest.mark.parametrize("pair", [lambda: (SECRET, SECRET), pem_pair], ids=["secret", "ed25519"])
def test_a_caller_is_known_by_its_key(pair: Callable[[], tuple[str, str]]) -> None:
    """With secrets and with key pairs, and two callers in one verifier."""
    signing, verifying = pair()
    known = ServiceTokenVerifier({"api_service": verifying, "bot_service": OTHER}, audience="data")
    assert known.caller(issuer(signing).header()) == "api_service"
    assert known.caller(issuer(OTHER, service="bot_service").header()) == "bot_service"


def test_a_token_is_used_again_and_renewed_in_time() -> None:
    """For half of its lifetime one signature does."""
    clock = Clock()
    made = issuer(clock=clock, lifetime_seconds=60)
    first = made.header()
    clock.now += 29
    assert made.header() == first
    clock.now += 2
    assert made.header() != first


def test_a_clock_that_was_set_back_makes_a_new_token() -> None:
    """The old one would be from the future."""
    clock = Clock()
    made = issuer(clock=clock)
    first = made.header()
    clock.now -= 3600
    assert made.header() != first


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic YTpi",
        "Bearer ",
        "Bearer nonsense",
        "Bearer a.b.c",
        "Bearer " + "a" * 5000,
        "Bearer " + b64encode(b"[" * 2900).decode() + ".a.b",
        "Bearer \ud800.a.b",
        issuer(OTHER).header(),
        issuer(service="stranger").header(),
        ServiceTokenIssuer("api_service", key=SECRET, audience="somebody else").header(),
        forged(aud=None),
        "Bearer " + jwt.encode({"sub": "api_service"}, "", algorithm="none"),
    ],
)
def test_what_does_not_prove_it_is_refused(header: str | None) -> None:
    """No header, nonsense, a foreign key, another audience: the caller learns only that it is refused."""
    with pytest.raises(UnauthenticatedError):
        verifier().caller(header)


@pytest.mark.parametrize("kind", ["secret", "ed25519"])
@pytest.mark.parametrize("claim", ["sub", "iss"])
@pytest.mark.parametrize(
    "name",
    [
        "bot_service",
        "admin",
        "API_SERVICE",
        "api_service ",
        "api_service\r\nSet-Cookie: a=b",
        "",
        None,
        17,
        True,
        ["api_service"],
        {"name": "api_service"},
    ],
    ids=repr,
)
def test_a_key_vouches_for_its_owner_and_for_nobody_else(kind: str, claim: str, name: object) -> None:
    """Whoever has a key signs what they like with it: it proves who they are, and nothing else that they say."""
    signing, verifying = pem_pair() if kind == "ed25519" else (SECRET, SECRET)
    known = ServiceTokenVerifier({"api_service": verifying, "bot_service": OTHER}, audience="data")
    assert known.caller(signed(claims_of(), key=signing)) == "api_service"
    with pytest.raises(UnauthenticatedError):
        known.caller(signed(claims_of(**{claim: name}), key=signing))


@pytest.mark.parametrize(
    "audience", [["data", "other"], ["other"], [], "other", "dat", ["data", "data"], 1, {"data": 1}]
)
def test_a_token_is_good_at_one_service_only(audience: object) -> None:
    """One for several could be used by each of them at the others."""
    assert verifier().caller(forged(aud=["data"])) == "api_service"
    with pytest.raises(UnauthenticatedError):
        verifier().caller(forged(aud=audience))


@pytest.mark.parametrize("header", [{"typ": "at+jwt"}, {"typ": 1}, {"crit": ["exp"]}, {"crit": []}])
def test_a_token_of_another_kind_is_refused(header: dict[str, object]) -> None:
    """A JWT made for something else is no service token."""
    assert verifier().caller(signed(claims_of(), header={"typ": "jwt"})) == "api_service"
    with pytest.raises(UnauthenticatedError):
        verifier().caller(signed(claims_of(), header=header))


NOW = int(time.time())
NO_MOMENTS = [float("nan"), float("inf"), -float("inf"), 10**400, str(NOW + 60), True, False, [NOW], {}]


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value",
    [None, *NO_MOMENTS],
    ids=["null", "nan", "inf", "-inf", "huge", "text", "true", "false", "list", "object"],
)
def test_a_token_whose_times_are_no_moments_is_refused(claim: str, value: object) -> None:
    """Nothing is later than NaN, so that it would never end."""
    if claim == "nbf" and value is None:
        assert verifier().caller(forged(nbf=NOW)) == "api_service"
        return
    with pytest.raises(UnauthenticatedError):
        verifier().caller(forged(**{claim: value}))


@given(st.integers(-2000, 2000), st.integers(-2000, 2000), st.integers(-2000, 2000) | st.none())
@example(issued=5, expires=-5, begins=None)
@example(issued=0, expires=5, begins=9)
def test_a_token_holds_between_its_times_and_for_ten_minutes_at_most(
    issued: int, expires: int, begins: int | None
) -> None:
    """With ten seconds for clocks that differ; one that ends before it begins holds never."""
    now = 1_800_000_000
    times = {"iat": now + issued, "exp": now + expires} | ({} if begins is None else {"nbf": now + begins})
    first = max(issued, issued if begins is None else begins)
    good = first <= 10 and expires > max(first, -10) and expires - issued <= 600
    try:
        verifier(clock=lambda: now).caller(forged(**times))
    except UnauthenticatedError:
        assert not good
    else:
        assert good


def test_a_refusal_tells_its_reason_to_the_log_alone() -> None:
    """A stranger learns neither which services have a key here nor what is wrong with the token."""
    unknown, why_unknown = refusal(signed(claims_of(), kid="nobody\n"))
    forgery, why_forged = refusal(issuer(OTHER).header())
    garbage, _ = refusal("Bearer a.b.c")
    expired, why_expired = refusal(forged(iat=NOW - 600, exp=NOW - 300))
    assert unknown == forgery == garbage == expired
    assert "'nobody\\n' is no service" in why_unknown
    assert "Signature" in why_forged
    assert "api_service, and expired" in why_expired


@pytest.mark.parametrize(
    ("header", "claimed"),
    [
        (signed(claims_of(), kid="nobody\n"), "nobody\\n"),
        (issuer(OTHER).header(), "api_service"),
        ("Bearer a.b.c", None),
    ],
)
def test_the_log_names_who_claimed_to_call(header: str, claimed: str | None) -> None:
    """Also of a forgery: it is the first question of whoever reads the line."""
    with capture_logs() as lines, pytest.raises(UnauthenticatedError):
        verifier().caller(header)
    assert lines[0]["claimed_kid"] == claimed


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    """The key decides the algorithm: otherwise whoever knows a public key could sign with it as a secret."""
    _, public = pem_pair()
    body = {"iss": "api_service", "sub": "api_service", "aud": "data", "iat": 1, "exp": int(time.time()) + 60}
    known = ServiceTokenVerifier({"api_service": public}, audience="data")
    # PyJWT itself refuses to sign with a PEM key as a secret, so this is put together from its parts.
    secret_token = jwt.encode(body, "x" * 32, algorithm="HS256", headers={"kid": "api_service"})
    with pytest.raises(UnauthenticatedError):
        known.caller("Bearer " + secret_token)


def test_a_verified_token_is_remembered_and_expires_all_the_same() -> None:
    """What is remembered is the end, not only the caller."""
    clock = Clock()
    known = verifier(clock=clock)
    header = issuer(clock=clock, lifetime_seconds=60).header()
    assert known.caller(header) == known.caller(header) == "api_service"
    clock.now += 71
    with pytest.raises(UnauthenticatedError):
        known.caller(header)


def test_what_is_remembered_has_a_bound() -> None:
    """A caller that makes a token for each request fills no memory."""
    clock = Clock()
    known = verifier(clock=clock)
    for _ in range(1100):
        clock.now += 0.01
        known.caller(forged(iat=clock.now, exp=clock.now + 60))
    assert len(known._known) <= 1024


def test_keys_that_protect_nothing_are_refused() -> None:
    """On both sides, when they are made."""
    with pytest.raises(DeclarationError, match="at least 32 bytes"):
        issuer("short")
    with pytest.raises(DeclarationError, match="at least 32 bytes"):
        ServiceTokenVerifier({"api_service": "short"}, audience="data")


@pytest.mark.parametrize("seconds", [0, -1, 0.5, 601, float("nan"), float("inf")])
def test_a_lifetime_that_no_verifier_takes_is_refused(seconds: float) -> None:
    """The caller would find out by every call's refusal."""
    with pytest.raises(DeclarationError, match="1 to 600 s"):
        issuer(lifetime_seconds=seconds)


def test_two_callers_with_one_key_are_refused() -> None:
    """Each could name itself as the other."""
    _, public = pem_pair()
    for key in (SECRET, public):
        with pytest.raises(DeclarationError, match="a and c have the same key"):
            ServiceTokenVerifier({"a": key, "b": OTHER, "c": key}, audience="data")


def test_keys_of_another_kind_are_refused_without_being_shown() -> None:
    """The message has nothing of the key."""
    other = generate_private_key(SECP256R1())
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for refused in (
        lambda: issuer(private),
        lambda: issuer("-----BEGIN PRIVATE KEY-----\nno key\n-----END PRIVATE KEY-----"),
        lambda: ServiceTokenVerifier({"api_service": public}, audience="data"),
        lambda: ServiceTokenVerifier({"api_service": private}, audience="data"),
    ):
        with pytest.raises(DeclarationError, match="Ed25519") as caught:
            refused()
        assert "no key" not in str(caught.value)
        assert private[40:80] not in str(caught.value)


def test_neither_side_shows_its_key() -> None:
    """Their reprs end up in logs."""
    assert SECRET not in repr(issuer()) + repr(ServiceTokenVerifier({"api_service": SECRET}, audience="data"))
