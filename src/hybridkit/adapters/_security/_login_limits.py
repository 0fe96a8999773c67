"""The limits of logins: per account and address, per account, and per address."""

import hashlib
from typing import Final

from hybridkit.coordination import Rate, RateLimiter, Redis
from hybridkit.coordination._local_limiter import LocalLimiter
from hybridkit.errors import RateLimitedError

# The first keeps a guesser out, without keeping the owner of the account out; the second those with many addresses,
# and the third those who try one password with many accounts.
RATES: Final = {
    "account_here": Rate.parse("20/hour;burst=10"),
    "account": Rate.parse("120/hour;burst=100"),
    "address": Rate.parse("600/hour;burst=100"),
}


class LoginLimits:
    """Counts attempts to sign in, in Redis where the application has one, and in this process otherwise.

    Args:
        name: the name of what is limited.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._local = LocalLimiter(list(RATES.values()), replicas=1)
        self._shared: tuple[Redis, RateLimiter] | None = None

    def __repr__(self) -> str:
        return f"LoginLimits({self._name!r})"

    async def check(self, redis: Redis | None, *, account: str, address: str) -> None:
        """Count an attempt.

        Raises:
            RateLimitedError: there were too many.
        """
        # Names of people stand in no key.
        who = hashlib.sha256(account.strip().casefold().encode(errors="replace")).hexdigest()[:32]
        keys = [f"{who}.{address}", who, address]
        if redis is None:
            allowed, _, _, wait, _ = self._local.check([f"{n}{key}" for n, key in enumerate(keys)], 1)
            is_allowed, seconds = bool(allowed), wait / 1_000_000
        else:
            if self._shared is None or self._shared[0] is not redis:
                self._shared = redis, RateLimiter(self._name, RATES, redis=redis)
            decision = await self._shared[1].check(*keys)
            is_allowed, seconds = decision.allowed, decision.retry_after_seconds
        if not is_allowed:
            raise RateLimitedError("too many attempts to sign in", retry_after_seconds=seconds)
