"""Service tokens: JWTs by which one service knows another, https://www.rfc-editor.org/rfc/rfc7519.

The key decides the algorithm, and the token never does (RFC 8725, section 3.1): a PEM key signs with Ed25519, anything
else is a shared secret for HMAC-SHA256. With Ed25519 the callee holds public keys only, so that it can't pose as its
callers. The key decides the caller as well (section 3.8): a token that names anybody but the key's owner is refused.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hybridkit.errors import DeclarationError, UnauthenticatedError
from hybridkit.observability import get_logger
from hybridkit.settings._service_keys import signing_key, verifying_keys

__all__ = ["ServiceTokenIssuer", "ServiceTokenVerifier"]

type Algorithm = Literal["HS256", "EdDSA"]

LIFETIME_SECONDS: Final = 60.0
MAX_LIFETIME_SECONDS: Final = 600.0
"""The longest lifetime that a verifier takes, so that a leaked token is soon worth nothing, whoever made it."""
LEEWAY_SECONDS: Final = 10.0
"""How far the clocks of two machines may be apart."""
RENEWAL_SHARE: Final = 0.5
"""The part of its lifetime after which a token is made anew: one that is on its way then is still good."""
MAX_REMEMBERED: Final = 1024
MAX_LENGTH: Final = 4096

_SCHEME: Final = "Bearer "
_SIGNATURE_ONLY: Final[Any] = {
    f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}
"""The library checks no claims: they are checked below, by one set of rules and by our own clock."""

MAX_CLAIMED_CHARS: Final = 100

_log = get_logger(__name__)


class _RefusedError(Exception):
    """The reason why a token is refused, for the log; its sender learns only that it is."""


_OF_CALLEE: Final = ": a caller has this service's name as POSTGRES_SERVICE_NAME or MONGO_SERVICE_NAME"


class ServiceTokenIssuer:
    """The maker of the tokens with which one service calls another.

    Args:
        service: the caller's name.
        key: at least 32 bytes shared with the callee, or an Ed25519 private key as PEM.
        audience: the callee's name.
        lifetime_seconds: how long a token is good for, 1 to 600.
        clock: gives Unix seconds.

    Raises:
        DeclarationError: the key can't be used, or no verifier would take a token of that lifetime.
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
        if not 1 <= lifetime_seconds <= MAX_LIFETIME_SECONDS:
            raise DeclarationError(
                f"a service token lives for 1 to {MAX_LIFETIME_SECONDS:.0f} s, not {lifetime_seconds}"
            )
        self._service = service
        self._audience = audience
        self._key = signing_key(key)
        self._algorithm = _algorithm(self._key)
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock
        self._header = ""
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"ServiceTokenIssuer({self._service!r}, audience={self._audience!r}, {self._algorithm})"

    def header(self) -> str:
        """Return the value of the `Authorization` header for a call that begins now."""
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
    """The callee's side: it knows callers by their tokens.

    A token is good if the key that its `kid` names has signed it, `iss` and `sub` are that key's owner, `aud` is this
    service alone, and now is between its times, which are at most ten minutes apart. A verified token is remembered
    until it expires: it costs a signature once, not with each request.

    Args:
        keys: by the caller's name, the secret that it shares with this service, or its Ed25519 public key as PEM.
        audience: this service's name.
        clock: gives Unix seconds.

    Raises:
        DeclarationError: a key can't be used, or two callers have the same.
    """

    def __init__(
        self, keys: Mapping[str, str], *, audience: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = verifying_keys(keys)
        self._audience = audience
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"ServiceTokenVerifier({sorted(self._keys)}, audience={self._audience!r})"

    def caller(self, authorization: str | None) -> str:
        """Return the name of the service that made a token.

        Args:
            authorization: the value of the header; None where there is none.

        Raises:
            UnauthenticatedError: there is no token, or it is not a good one; the log has the reason.
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME.lower():
            raise UnauthenticatedError("a call needs the header `Authorization: Bearer` with a service token")
        token = authorization[len(_SCHEME) :].strip()
        if (known := self._known.get(token)) is not None and self._clock() < known[1] + LEEWAY_SECONDS:
            return known[0]
        try:
            service, expires_at = self._verified(token)
        except _RefusedError as reason:
            _log.warning("service token refused", reason=str(reason), claimed_kid=_claimed(token))
            raise UnauthenticatedError(
                "the service token is not good here; the log of the service that was called says why"
            ) from None
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[token] = (service, expires_at)
        return service

    def _verified(self, token: str) -> tuple[str, float]:
        """Return the owner of the token, and the time of its end."""
        if len(token) > MAX_LENGTH:
            raise _RefusedError(f"it has more than {MAX_LENGTH} characters")
        try:
            header = jwt.get_unverified_header(token)
            service = _owner(header, self._keys)
            key = self._keys[service]
            claims = jwt.decode(token, key, algorithms=[_algorithm(key)], options=_SIGNATURE_ONLY)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise _RefusedError(f"{error!r:.200}") from None
        for name, wanted in ("iss", service), ("sub", service), ("aud", self._audience):
            # RFC 7519, section 4.1.3: one audience may be an array of one. With several of them each could pose as the
            # caller at the others.
            if claims.get(name) != wanted and not (name == "aud" and claims.get(name) == [wanted]):
                advice = _OF_CALLEE if name == "aud" else ""
                raise _RefusedError(f"it is signed by {service}, and its {name} is not {wanted}{advice}")
        return service, self._checked_end(claims, service)

    def _checked_end(self, claims: Mapping[str, object], service: str) -> float:
        now, issued, expires = self._clock(), _moment(claims, "iat"), _moment(claims, "exp")
        begins = _moment(claims, "nbf") if "nbf" in claims else issued
        if now >= expires + LEEWAY_SECONDS:
            raise _RefusedError(f"it is from {service}, and expired {now - expires:.0f} s ago")
        if max(issued, begins) > now + LEEWAY_SECONDS:
            raise _RefusedError(
                f"it is from {service}, and begins in {max(issued, begins) - now:.0f} s;"
                " compare the clocks of both machines"
            )
        if expires <= max(issued, begins):
            raise _RefusedError(f"it is from {service}, and ends before it begins")
        if expires - issued > MAX_LIFETIME_SECONDS:
            raise _RefusedError(
                f"it is from {service}, and lives for {expires - issued:.0f} s;"
                f" at most {MAX_LIFETIME_SECONDS:.0f} are taken"
            )
        return expires


def _owner(header: Mapping[str, object], keys: Mapping[str, object]) -> str:
    """Return the owner of the key that a token names, of the known ones."""
    service = header.get("kid")
    if not isinstance(service, str) or service not in keys:
        raise _RefusedError(f"its kid {service!r:.100} is no service that has a key here")
    if str(header.get("typ", "JWT")).upper() != "JWT" or "crit" in header:
        # RFC 8725, section 3.11: a token of another kind; RFC 7515, section 4.1.11: what isn't understood.
        raise _RefusedError(f"it has the key of {service}, and is no plain JWT, by its typ or crit")
    return service


def _claimed(token: str) -> str | None:
    """Return the sender that the token names, whether or not that is true; None where it can't be read."""
    if len(token) > MAX_LENGTH:
        return None
    try:
        kid: object = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    return ascii(kid)[1:-1][:MAX_CLAIMED_CHARS] if isinstance(kid, str) else None


def _moment(claims: Mapping[str, object], name: str) -> float:
    """Read a claim in Unix seconds: a number, and no NaN or infinity, which JSON doesn't have and Python reads."""
    value = claims.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            moment = float(value)
        except OverflowError:
            moment = math.inf
        if math.isfinite(moment):
            return moment
    raise _RefusedError(f"its {name} is no moment")


def _algorithm(key: Ed25519PrivateKey | Ed25519PublicKey | bytes) -> Algorithm:
    return "HS256" if isinstance(key, bytes) else "EdDSA"
