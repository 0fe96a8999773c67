"""What was revoked before its last access token expires, in Redis."""

from typing import Final

from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError, HybridkitError
from hybridkit.observability import get_logger
from hybridkit.security._principal import Principal

KEEP_SECONDS: Final = 3660
"""A little longer than any access token lives."""

_log = get_logger("hybridkit.security")


class Revocations:
    """The sessions and tokens that are over: `Security(AccessTokens(revocations=Revocations()))`.

    Without it, an access token is good until it expires, also after its session has ended. With it, each replica asks
    Redis again when it has known a token for `recheck_seconds`. While Redis does not answer, tokens are good.

    Args:
        recheck_seconds: how long an ended session's tokens may still be taken, 0 to 60; 0 asks with each request.
        key_prefix: the prefix of every key in Redis.

    Raises:
        DeclarationError: the time is out of its range.
    """

    def __init__(self, *, recheck_seconds: float = 5.0, key_prefix: str = "hk:revoked:") -> None:
        if not 0 <= recheck_seconds <= 60:
            raise DeclarationError("recheck_seconds is from 0 to 60")
        self.recheck_seconds = recheck_seconds
        self._prefix = key_prefix
        self._redis: Redis | None = None

    def __repr__(self) -> str:
        return f"Revocations(recheck_seconds={self.recheck_seconds})"

    def use(self, redis: Redis | None) -> None:
        """Use a connection from now on.

        Raises:
            DeclarationError: the application has no Redis.
        """
        if redis is None:
            raise DeclarationError("Revocations() needs Redis: the settings have to be RedisSettings too")
        self._redis = redis

    async def add_session(self, session_id: str) -> None:
        """Refuse the access tokens of a session from now on; they also end by themselves while Redis is down."""
        await self._add(f"sid:{session_id}")

    async def add_token(self, principal: Principal) -> None:
        """Refuse the token that a request came with from now on."""
        await self._add(f"jti:{principal.claims.get('jti', '')}")

    async def _add(self, name: str) -> None:
        if self._redis is None:
            return
        try:
            await self._redis.set(f"{self._prefix}{name}", "1", ex=KEEP_SECONDS)
        except (HybridkitError, OSError) as error:
            _log.warning("revocation not stored", reason=str(error))

    async def is_revoked(self, principal: Principal) -> bool:
        """Return whether the session or the token of a principal is over; False while Redis does not answer."""
        if self._redis is None:
            return False
        names = [f"{self._prefix}jti:{principal.claims.get('jti', '')}"]
        if principal.session_id is not None:
            names.append(f"{self._prefix}sid:{principal.session_id}")
        try:
            return any(
                [await self._redis.exists(name) for name in names]
            )  # keys of a cluster may be anywhere
        except (HybridkitError, OSError) as error:
            _log.warning("revocations not read", reason=str(error))
            return False
