"""Service tokens: JWTs by which one service knows another, https://www.rfc-editor.org/rfc/rfc7519.

The key decides the algorithm, and the token never does (RFC 8725, section 3.1): a PEM key signs with Ed25519, anything
else is a shared secret for HMAC-SHA256. With Ed25519 the callee holds public keys only, so that it can't pose as its
callers.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from hybridkit.errors import DeclarationError, UnauthenticatedError

__all__ = ["ServiceTokenIssuer", "ServiceTokenVerifier"]

type Algorithm = Literal["HS256", "EdDSA"]

LIFETIME_SECONDS: Final = 60.0
LEEWAY_SECONDS: Final = 10.0
"""How far the clocks of two machines may be apart."""
RENEWAL_SHARE: Final = 0.5
"""Of its lifetime, after which a token is made anew: what is on its way then is still good."""
MIN_SECRET_BYTES: Final = 32
"""As long as the hash, RFC 7518, section 3.2."""
MAX_REMEMBERED: Final = 1024
MAX_LENGTH: Final = 4096

_SCHEME: Final = "Bearer "
_CLAIMS: Final = ["exp", "iat", "aud", "iss", "sub"]


class ServiceTokenIssuer:
    """Makes the tokens with which one service calls another.

    Args:
        service: the caller's name.
        key: at least 32 bytes shared with the callee, or an Ed25519 private key as PEM.
        audience: the callee's name.
        lifetime_seconds: how long a token is good for.
        clock: Unix seconds.

    Raises:
        DeclarationError: the key can't be used.
    """

    def __init__(
        self,
        service: str,
        *,
        key: str,
        audience: str,
        lifetime_seconds: float = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._audience = audience
        self._key, self._algorithm = _signing_key(key)
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._header = ""
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"ServiceTokenIssuer({self._service!r}, audience={self._audience!r}, {self._algorithm})"

    def header(self) -> str:
        """The value of the `Authorization` header for a call that begins now."""
        now = self._clock()
        if now >= self._renew_at or now < self._renew_at - self._lifetime_seconds:
            self._header = _SCHEME + self._token(now)
            self._renew_at = now + self._lifetime_seconds * RENEWAL_SHARE
        return self._header

    def _token(self, now: float) -> str:
        claims = {
            "iss": self._service,
            "sub": self._service,
            "aud": self._audience,
            "iat": int(now),
            "exp": int(now + self._lifetime_seconds),
        }
        return jwt.encode(claims, self._key, algorithm=self._algorithm, headers={"kid": self._service})


class ServiceTokenVerifier:
    """Knows callers by their tokens.

    A token that was verified is remembered until it expires: it costs a signature once, not with each request.

    Args:
        keys: by the caller's name, the secret that it shares with this service, or its Ed25519 public key as PEM.
        audience: this service's name.
        clock: Unix seconds.

    Raises:
        DeclarationError: a key can't be used.
    """

    def __init__(
        self, keys: Mapping[str, str], *, audience: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = {service: _verifying_key(service, key) for service, key in keys.items()}
        self._audience = audience
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"ServiceTokenVerifier({sorted(self._keys)}, audience={self._audience!r})"

    def caller(self, authorization: str | None) -> str:
        """The name of the service that made this token.

        Args:
            authorization: the value of the header; None where there is none.

        Raises:
            UnauthenticatedError: there is no token, or it is not a good one.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME.lower():
            raise UnauthenticatedError("a call needs the header `Authorization: Bearer` with a service token")
        token = authorization[len(_SCHEME) :].strip()
        if (known := self._known.get(token)) is not None and self._clock() < known[1] + LEEWAY_SECONDS:
            return known[0]
        service, expires_at = self._verified(token)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[token] = (service, expires_at)
        return service

    def _verified(self, token: str) -> tuple[str, float]:
        if len(token) > MAX_LENGTH:
            raise UnauthenticatedError("the service token is too long")
        try:
            service = jwt.get_unverified_header(token).get("kid")
            key, algorithm = (
                self._keys.get(service, (None, None)) if isinstance(service, str) else (None, None)
            )
            if key is None or algorithm is None:
                raise UnauthenticatedError("the service token is from a service that is not known here")
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=service,
                # By our own clock, below; the library looks at the system's.
                options={"require": _CLAIMS, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.InvalidTokenError, ValueError) as error:
            raise UnauthenticatedError(f"the service token is no good: {type(error).__name__}") from None
        return str(claims["sub"]), self._checked_times(claims)

    def _checked_times(self, claims: Mapping[str, object]) -> float:
        now, issued, expires = self._clock(), claims["iat"], claims["exp"]
        if not isinstance(issued, int | float) or not isinstance(expires, int | float):
            raise UnauthenticatedError("the service token has no times")
        if now >= expires + LEEWAY_SECONDS:
            raise UnauthenticatedError("the service token has expired")
        if issued > now + LEEWAY_SECONDS:
            raise UnauthenticatedError(
                "the service token is from the future; compare the clocks of both machines"
            )
        return float(expires)


def _signing_key(key: str) -> tuple[Ed25519PrivateKey | bytes, Algorithm]:
    if not _is_pem(key):
        return _secret(key), "HS256"
    loaded = _loaded(lambda: load_pem_private_key(key.encode(), password=None))
    if not isinstance(loaded, Ed25519PrivateKey):
        raise DeclarationError("a service signs with an Ed25519 private key, or with a shared secret")
    return loaded, "EdDSA"


def _verifying_key(service: str, key: str) -> tuple[Ed25519PublicKey | bytes, Algorithm]:
    if not _is_pem(key):
        return _secret(key), "HS256"
    loaded = _loaded(lambda: load_pem_public_key(key.encode()))
    if not isinstance(loaded, Ed25519PublicKey):
        raise DeclarationError(f"the key of {service} is no Ed25519 public key, and no shared secret")
    return loaded, "EdDSA"


def _secret(key: str) -> bytes:
    if len(key.encode()) < MIN_SECRET_BYTES:
        raise DeclarationError(
            f"a service's secret has at least {MIN_SECRET_BYTES} bytes;"
            " make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return key.encode()


def _is_pem(key: str) -> bool:
    return key.lstrip().startswith("-----BEGIN")


def _loaded(load: Callable[[], object]) -> object:
    try:
        return load()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: what it says of a key is nobody's business.
        raise DeclarationError(
            "a service's PEM key can't be read; it has to be an Ed25519 key without a password"
        ) from None
