"""The rules by which a bearer token is verified (RFC 9068, RFC 8725), and the tokens that were verified before."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import jwt
from jwt.utils import base64url_decode

from hybridkit.codec import decode_json
from hybridkit.context import is_context_id
from hybridkit.errors import HybridkitError, UnauthenticatedError
from hybridkit.observability import get_logger
from hybridkit.security._keys import Algorithm, TokenRefusedError, VerifyingKey
from hybridkit.security._principal import Principal

MAX_TOKEN_BYTES: Final = 8192
LEEWAY_SECONDS: Final = 10.0
"""How far the clocks of two machines may be apart."""
MAX_REMEMBERED: Final = 2048
MAX_REMEMBERED_SECONDS: Final = 60.0
MAX_NAMES: Final = 256
"""The most roles and scopes that are read from a token."""

REFUSED: Final = 'Bearer error="invalid_token"'

_SIGNATURE_ONLY: Final[Any] = {
    f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}
"""The library checks no claims: they are checked below, by one set of rules and by our own clock."""

_log = get_logger("hybridkit.security")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The tokens that are taken.

    Attributes:
        issuer: the `iss` of each.
        audience: what `aud` is or has.
        algorithm: the only algorithm, whatever a token says.
        types: the `typ` of which a token has one, in lower case; "" stands for none.
        required: claims that have to be there besides `iss`, `aud`, `sub`, `exp` and `iat`.
        roles_claim: the claim with the roles; a dot leads into an object, as in `realm_access.roles`.
        is_home: whether the subject is the id of the user; else the issuer is added to it.
        max_lifetime_seconds: the longest time between `iat` and `exp`.
    """

    issuer: str
    audience: str
    algorithm: Algorithm
    types: frozenset[str]
    required: tuple[str, ...] = ()
    roles_claim: str = "roles"
    is_home: bool = True
    max_lifetime_seconds: float = 86_400.0

    def key_name(self, token: str) -> str:
        """Check the header of a token, and return the name of its key.

        What else the header says of keys (`jku`, `x5u`, `x5c`, `jwk`) is never looked at.

        Raises:
            TokenRefusedError: the token is no JWT of this kind.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenRefusedError(f"it has more than {MAX_TOKEN_BYTES} characters")
        try:
            header = cast("dict[str, object]", jwt.get_unverified_header(token))
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise TokenRefusedError(f"it is no JWT: {error!r:.100}") from None
        if header.get("alg") != self.algorithm:
            raise TokenRefusedError(
                f"its alg is {header.get('alg')!r:.40}, and {self.issuer} signs by {self.algorithm}"
            )
        # RFC 9068, section 2.1: `application/` may be left out; RFC 8725, section 3.11: a token of another kind.
        kind = str(header.get("typ", "")).lower().removeprefix("application/")
        if kind not in self.types:
            raise TokenRefusedError(f"its typ is {kind!r:.40}")
        if "crit" in header:  # RFC 7515, section 4.1.11
            raise TokenRefusedError("it has critical extensions")
        kid = header.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= 255:
            raise TokenRefusedError("it names no key")
        return kid

    def principal(self, token: str, key: VerifyingKey, now: float) -> tuple[Principal, float]:
        """Verify a token, and return its principal and the time of its end.

        Raises:
            TokenRefusedError: the signature or a claim is not good.
        """
        if key.algorithm != self.algorithm:
            raise TokenRefusedError(f"its key is for {key.algorithm}")
        try:
            claims = cast(
                "dict[str, object]",
                jwt.decode(
                    token, cast("Any", key.public), algorithms=[self.algorithm], options=_SIGNATURE_ONLY
                ),
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise TokenRefusedError(f"{error!r:.200}") from None
        expires = self._checked(claims, now)
        return self._principal(claims), expires

    def _checked(self, claims: Mapping[str, object], now: float) -> float:
        if claims.get("iss") != self.issuer:
            raise TokenRefusedError("its iss is another issuer")
        audience = claims.get("aud")
        if audience != self.audience and not (isinstance(audience, list) and self.audience in audience):
            raise TokenRefusedError("its aud is another service")
        for name in ("sub", *self.required):
            if not isinstance(value := claims.get(name), str) or not value:
                raise TokenRefusedError(f"it has no {name}")
        issued, expires = _moment(claims, "iat"), _moment(claims, "exp")
        begins = max(issued, _moment(claims, "nbf")) if "nbf" in claims else issued
        if now >= expires + LEEWAY_SECONDS:
            raise TokenRefusedError(f"it expired {now - expires:.0f} s ago")
        if begins > now + LEEWAY_SECONDS:
            raise TokenRefusedError(f"it begins in {begins - now:.0f} s; compare the clocks of both machines")
        if not 0 < expires - issued <= self.max_lifetime_seconds:
            raise TokenRefusedError(f"it lives for {expires - issued:.0f} s")
        return expires

    def _principal(self, claims: Mapping[str, object]) -> Principal:
        subject = str(claims["sub"])
        user_id = subject if self.is_home else f"{subject}@{self.issuer}"
        if not is_context_id(user_id):
            raise TokenRefusedError("its sub has more than 255 characters, or characters that are no text")
        roles: Any = dict(claims)
        for part in self.roles_claim.split("."):
            roles = cast("Any", roles).get(part) if isinstance(roles, dict) else None
        session = claims.get("sid")
        return Principal(
            id=user_id,
            issuer=self.issuer,
            subject=subject,
            roles=_names(roles),
            scopes=_names(claims.get("scope", claims.get("scp"))),
            session_id=session if isinstance(session, str) else None,
            claims=claims,
        )


class VerifiedTokens:
    """Tokens that were verified in the last 60 seconds: a signature costs more than a small route.

    Args:
        seconds: how long a token is remembered.
        clock: gives Unix seconds.
    """

    def __init__(self, *, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = min(seconds, MAX_REMEMBERED_SECONDS)
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, float, float]] = {}

    def __repr__(self) -> str:
        return f"VerifiedTokens({len(self._known)})"

    def find(self, token: bytes) -> Principal | None:
        """Return the principal of a token that was verified lately, or None."""
        found = self._known.get(token)
        # Also not before it was verified: a clock that went back would make a token live longer.
        return found[0] if found is not None and found[1] <= self._clock() < found[2] else None

    def add(self, token: bytes, principal: Principal, expires_at: float) -> None:
        """Remember a verified token until it expires, at most for the time of this store."""
        now = self._clock()
        while len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[token] = (principal, now, min(now + self._seconds, expires_at + LEEWAY_SECONDS))

    def clear(self) -> None:
        """Forget all tokens, so that each is verified again."""
        self._known.clear()


def bearer_token(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """Return the bearer token of a request (RFC 6750, section 2.1), or None when it has other credentials or none.

    Raises:
        UnauthenticatedError: the request has several.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if found is not None:
                raise UnauthenticatedError(
                    "credentials are given more than once", challenge='Bearer error="invalid_request"'
                )
            found = value
    if found is None or found[:7].lower() != b"bearer ":
        return None
    return found[7:].strip()


def claimed_issuer(token: bytes) -> str | None:
    """Return the `iss` that a token claims, true or not, which decides who verifies it; None for no JWT."""
    if len(token) > MAX_TOKEN_BYTES or token.count(b".") != 2:
        return None
    payload = token.split(b".")[1]
    try:
        claims: object = decode_json(base64url_decode(payload))
    except (ValueError, HybridkitError):
        return None
    issuer = cast("dict[str, object]", claims).get("iss") if isinstance(claims, dict) else None
    return issuer if isinstance(issuer, str) else None


def refused(token: bytes, reason: str, *, issuer: str) -> UnauthenticatedError:
    """Log why a token is refused, and return the error for its sender, who is told nothing of that."""
    _log.info("token refused", reason=reason, issuer=issuer, token_bytes=len(token))
    return UnauthenticatedError("the token is not good here, or has expired", challenge=REFUSED)


def _names(value: object) -> frozenset[str]:
    """Read roles or scopes: a text with spaces between them (RFC 8693, section 4.2), or a list."""
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list):
        return frozenset()
    return frozenset(
        each for each in cast("list[object]", listed)[:MAX_NAMES] if isinstance(each, str) and each
    )


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
    raise TokenRefusedError(f"its {name} is no moment")
