"""Our own access tokens: made at login, verified by every service that reads the public keys."""

import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_urlsafe
from typing import Any, Final, cast

import jwt

from hybridkit._asgi_types import Scope
from hybridkit.errors import DeclarationError, MisuseError
from hybridkit.observability import get_logger
from hybridkit.security._keys import KeyRing, TokenRefusedError
from hybridkit.security._principal import Principal
from hybridkit.security._revocations import Revocations
from hybridkit.security._security import SecurityStart
from hybridkit.security._verification import (
    TokenRules,
    VerifiedTokens,
    bearer_token,
    claimed_issuer,
    refused,
)
from hybridkit.settings import TokenSettings

LIFETIME_SECONDS: Final = 900.0
MAX_LIFETIME_SECONDS: Final = 3600.0
"""The longest lifetime: until then a leaked token is good, and roles that were taken away hold."""
TYPE: Final = "at+jwt"
RESERVED: Final = frozenset({"iss", "aud", "sub", "iat", "exp", "nbf", "jti", "sid", "roles", "scope"})

_log = get_logger("hybridkit.security")


class AccessTokens:
    """The maker and verifier of an application's own access tokens: `Security(AccessTokens())`.

    A token is a JWT by RFC 9068 (`typ: at+jwt`) with `iss`, `aud`, `sub`, `iat`, `exp`, `jti`, and `sid`, `roles` and
    `scope` where there are such. Issuer, audience and keys come from the `TokenSettings` of the running application,
    unless they are given.

    Args:
        issuer: the `iss` of the tokens.
        audience: their `aud`.
        keys: the keys; the first signs.
        lifetime_seconds: how long a token is good, at most an hour.
        login_path: the path of the login, for the button "Authorize" of the OpenAPI page; "" without one.
        revocations: what ended sessions are known by before their last token expires; without it a token is good until
            it expires, whatever happens to its session.
        clock: gives Unix seconds.

    Raises:
        DeclarationError: the lifetime is out of its range.
    """

    def __init__(
        self,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        keys: KeyRing | None = None,
        lifetime_seconds: float = LIFETIME_SECONDS,
        login_path: str = "/login",
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= lifetime_seconds <= MAX_LIFETIME_SECONDS:
            raise DeclarationError(f"an access token lives for 1 to {MAX_LIFETIME_SECONDS:.0f} s")
        self.lifetime_seconds = lifetime_seconds
        self.revocations = revocations
        self._given = issuer, audience, keys
        self._login_path = login_path
        self._clock = clock
        self._rules: TokenRules | None = None
        self._keys = keys
        self._known = VerifiedTokens(
            seconds=60.0 if revocations is None else revocations.recheck_seconds, clock=clock
        )
        if issuer is not None and audience is not None and keys is not None:
            self._begin(issuer, audience, keys)

    def __repr__(self) -> str:
        return f"AccessTokens({self._rules.issuer!r})" if self._rules else "AccessTokens()"

    @property
    def keys(self) -> KeyRing:
        """The keys of the running application.

        Raises:
            MisuseError: the application does not run.
        """
        if self._keys is None:
            raise MisuseError("AccessTokens() has keys while the application runs, from its TokenSettings")
        return self._keys

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """The security schemes of OpenAPI: a form of name and password if there is a login, else a bearer token."""
        if not self._login_path:
            return {"access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        flow: dict[str, Any] = {"tokenUrl": self._login_path.lstrip("/"), "scopes": {}}
        return {"access_token": {"type": "oauth2", "flows": {"password": flow}}}

    def open(self, start: SecurityStart) -> AbstractAsyncContextManager[None]:
        """Take issuer, audience and keys from the settings inside the block.

        Raises:
            DeclarationError: they were not given, and the settings are no `TokenSettings`; or production has no keys.
        """
        return self._opened(start)

    @asynccontextmanager
    async def _opened(self, start: SecurityStart) -> AsyncGenerator[None]:
        issuer, audience, keys = self._given
        settings = start.settings
        if self.revocations is not None:
            self.revocations.use(start.redis)
        if None in self._given:
            if not isinstance(settings, TokenSettings):
                raise DeclarationError(
                    "AccessTokens() reads the settings class of the application, which has to be TokenSettings too"
                )
            issuer = issuer or settings.token_issuer or settings.service_name
            audience = audience or settings.token_audience or issuer
            keys = keys or _keys_of(settings)
        self._begin(cast("str", issuer), cast("str", audience), cast("KeyRing", keys))
        yield
        self._known.clear()

    def _begin(self, issuer: str, audience: str, keys: KeyRing) -> None:
        self._keys = keys
        self._rules = TokenRules(
            issuer=issuer,
            audience=audience,
            algorithm=keys.algorithm,
            types=frozenset({TYPE}),
            required=("jti",),
            max_lifetime_seconds=MAX_LIFETIME_SECONDS,
        )
        self._known.clear()

    def issue(
        self,
        user_id: str,
        *,
        roles: Collection[str] = (),
        scopes: Collection[str] = (),
        session_id: str | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a new access token.

        Args:
            user_id: the `sub`.
            roles: the roles of the user.
            scopes: what the token is good for.
            session_id: the session that it belongs to, `sid`.
            claims: further claims; everybody who holds the token can read them.

        Raises:
            MisuseError: the application does not run.
            DeclarationError: a further claim has the name of one that is set here.
        """
        keys, now = self.keys, int(self._clock())
        if taken := RESERVED & (claims or {}).keys():
            raise DeclarationError(
                f"{', '.join(sorted(taken))}: issue() sets these claims by its other arguments"
            )
        rules = cast("TokenRules", self._rules)
        content: dict[str, Any] = {
            **(claims or {}),
            "iss": rules.issuer,
            "aud": rules.audience,
            "sub": user_id,
            "iat": now,
            "exp": now + int(self.lifetime_seconds),
            "jti": token_urlsafe(16),
        }
        if session_id is not None:
            content["sid"] = session_id
        if roles:
            content["roles"] = sorted(roles)
        if scopes:
            content["scope"] = " ".join(sorted(scopes))
        headers = {"typ": TYPE, "kid": keys.kid}
        return jwt.encode(content, cast("Any", keys.signing), algorithm=keys.algorithm, headers=headers)

    async def authenticate(self, scope: Scope) -> Principal | None:
        """Return the caller by the bearer token of a request; None without one, or for the token of another issuer.

        Raises:
            UnauthenticatedError: the token is not good.
        """
        token = bearer_token(scope["headers"])
        if token is None:
            return None
        return self._known.find(token) or await self.verify(token)

    async def verify(self, token: bytes) -> Principal | None:
        """Verify a token, and return its principal; None for the token of another issuer.

        Raises:
            UnauthenticatedError: the token is not good; the log says why.
            MisuseError: the application does not run.
        """
        keys, rules = self.keys, cast("TokenRules", self._rules)
        if claimed_issuer(token) != rules.issuer:
            return None
        try:
            text = token.decode("ascii")
            key = keys.key(rules.key_name(text))
            principal, expires = rules.principal(text, key, self._clock())
        except (TokenRefusedError, UnicodeDecodeError) as reason:
            raise refused(token, str(reason), issuer=rules.issuer) from None
        if self.revocations is not None and await self.revocations.is_revoked(principal):
            raise refused(token, "it was revoked", issuer=rules.issuer)
        self._known.add(token, principal, expires)
        return principal


def _keys_of(settings: TokenSettings) -> KeyRing:
    if settings.token_keys is not None:
        return KeyRing(settings.token_keys.get_secret_value())
    if settings.environment == "production":
        raise DeclarationError("production needs TOKEN_KEYS, as tokens have to be good in every replica")
    _log.info("tokens have a key of this process", reason="TOKEN_KEYS is not set; they end with the process")
    return KeyRing.generated()
