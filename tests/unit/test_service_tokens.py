"""Service tokens: who made one is known, and nobody else's is taken."""

import time
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

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


def forged(**changes: object) -> str:
    """A token by somebody who has the right secret and says something else with it."""
    now = int(time.time())
    claims: dict[str, object] = {
        "iss": "api_service",
        "sub": "api_service",
        "aud": "data",
        "iat": now,
        "exp": now + 60,
    }
    claims |= changes
    kept = {name: value for name, value in claims.items() if value is not None}
    return "Bearer " + jwt.encode(kept, SECRET, algorithm="HS256", headers={"kid": "api_service"})


@pytest.mark.parametrize("pair", [lambda: (SECRET, SECRET), pem_pair], ids=["secret", "ed25519"])
def test_a_caller_is_known_by_its_key(pair: Callable[[], tuple[str, str]]) -> None:
    signing, verifying = pair()
    verifier = ServiceTokenVerifier({"api_service": verifying, "bot_service": OTHER}, audience="data")
    assert verifier.caller(issuer(signing).header()) == "api_service"
    assert verifier.caller(issuer(OTHER, service="bot_service").header()) == "bot_service"


def test_a_token_is_used_again_and_renewed_in_time() -> None:
    clock = Clock()
    made = issuer(clock=clock, lifetime_seconds=60)
    first = made.header()
    clock.now += 29
    assert made.header() == first
    clock.now += 2
    assert made.header() != first


def test_a_clock_that_was_set_back_makes_a_new_token() -> None:
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
        issuer(OTHER).header(),
        issuer(service="stranger").header(),
        ServiceTokenIssuer("api_service", key=SECRET, audience="somebody else").header(),
        forged(iss="bot_service"),
        forged(sub=None),
        forged(exp=None),
        forged(iat=None),
        forged(aud=None),
        forged(exp=int(time.time()) - 3600),
        forged(iat=int(time.time()) + 3600),
        "Bearer " + jwt.encode({"sub": "api_service"}, "", algorithm="none"),
    ],
)
def test_what_does_not_prove_it_is_refused(header: str | None) -> None:
    verifier = ServiceTokenVerifier({"api_service": SECRET, "bot_service": OTHER}, audience="data")
    with pytest.raises(UnauthenticatedError):
        verifier.caller(header)


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    """The key decides the algorithm: otherwise whoever knows a public key could sign with it as a secret."""
    _, public = pem_pair()
    body = {"iss": "api_service", "sub": "api_service", "aud": "data", "iat": 1, "exp": int(time.time()) + 60}
    verifier = ServiceTokenVerifier({"api_service": public}, audience="data")
    # PyJWT itself refuses to sign with a PEM key as a secret, so this is put together from its parts.
    secret_token = jwt.encode(body, "x" * 32, algorithm="HS256", headers={"kid": "api_service"})
    with pytest.raises(UnauthenticatedError):
        verifier.caller("Bearer " + secret_token)


def test_a_verified_token_is_remembered_and_expires_all_the_same() -> None:
    clock = Clock()
    verifier = ServiceTokenVerifier({"api_service": SECRET}, audience="data", clock=clock)
    header = issuer(clock=clock, lifetime_seconds=60).header()
    assert verifier.caller(header) == verifier.caller(header) == "api_service"
    clock.now += 71
    with pytest.raises(UnauthenticatedError, match="expired"):
        verifier.caller(header)


def test_what_is_remembered_has_a_bound() -> None:
    clock = Clock()
    verifier = ServiceTokenVerifier({"api_service": SECRET}, audience="data", clock=clock)
    for _ in range(1100):
        clock.now += 0.01
        token = jwt.encode(
            {
                "iss": "api_service",
                "sub": "api_service",
                "aud": "data",
                "iat": clock.now,
                "exp": clock.now + 60,
            },
            SECRET,
            algorithm="HS256",
            headers={"kid": "api_service"},
        )
        verifier.caller(f"Bearer {token}")
    assert len(verifier._known) <= 1024


def test_keys_that_protect_nothing_are_refused() -> None:
    with pytest.raises(DeclarationError, match="at least 32 bytes"):
        issuer("short")
    with pytest.raises(DeclarationError, match="at least 32 bytes"):
        ServiceTokenVerifier({"api_service": "short"}, audience="data")


def test_keys_of_another_kind_are_refused_without_being_shown() -> None:
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
    assert SECRET not in repr(issuer()) + repr(ServiceTokenVerifier({"api_service": SECRET}, audience="data"))
