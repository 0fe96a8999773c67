"""Limit how often something is done, over all replicas together."""

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import UUID

from redis.asyncio import Redis

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._local_limiter import LocalLimiter
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.coordination._rates import Rate
from hybridkit.coordination._redis._commands import Script
from hybridkit.errors import DeclarationError, MisuseError, UnavailableError
from hybridkit.observability import get_logger, metrics

_log = get_logger("hybridkit.coordination")

NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# The generic cell rate algorithm (ITU-T I.371, annex A): a key holds the time at which its bucket is full again, in
# microseconds of Redis's clock. One that a clock which went back has left in the far future counts as just emptied.
DECIDE: Final = """
-- ARGV: cost, then interval and size (burst times interval) of each key's bucket in microseconds
-- answers: {1 if allowed, index of the limit that decides, remaining, microseconds to wait, microseconds until full}
local cost = tonumber(ARGV[1])
local before, longest, wait = {}, 1, -math.huge
for i = 1, #KEYS do
    local interval, size = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    before[i] = math.min(math.max(tonumber(redis.call('GET', KEYS[i]) or now), now), now + size)
    local waits = before[i] + cost * interval - size - now
    if waits > wait then
        longest, wait = i, waits
    end
end
if wait > 0 then
    local interval, size = tonumber(ARGV[2 * longest]), tonumber(ARGV[2 * longest + 1])
    local missing = before[longest] - now
    return {0, longest - 1, math.floor((size - missing) / interval), wait, missing}
end
local tightest, remaining, reset = 1, math.huge, 0
for i = 1, #KEYS do
    local interval, size = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    local missing = before[i] + cost * interval - now
    redis.call('SET', KEYS[i], string.format('%.0f', now + missing), 'PX', math.ceil(missing / 1000))
    local left = math.floor((size - missing) / interval)
    if left < remaining then
        tightest, remaining, reset = i, left, missing
    end
end
return {1, tightest - 1, remaining, 0, reset}
"""

CHECK: Final = Script("CHECK", NOW + DECIDE)

_LONGEST_KEY: Final = 200


class LimitDecision(NamedTuple):
    """The answer to one request.

    Attributes:
        allowed: whether the request may go on; its cost is taken off then, and only then.
        policy: the name of the limit that decides: the one to wait for longest, or the one with the least remaining.
        limit: the rate of that limit.
        remaining: the requests of cost 1 that it would let through now.
        retry_after_seconds: the time after which the same request would be let through; 0 if it was.
        reset_seconds: the time until the whole burst is free again.
        is_local: whether Redis didn't answer, so that the share of this replica decides.
    """

    allowed: bool
    policy: str
    limit: Rate
    remaining: int
    retry_after_seconds: float
    reset_seconds: float
    is_local: bool


class RateLimiter:
    """One or several limits, which all replicas share. One question to Redis decides on all of them.

    A request that one limit refuses takes nothing of the others. When Redis breaks off in the middle of a question, it
    is asked again, and the request may count twice; it never counts less than once.

    While Redis doesn't answer, each replica allows its share by itself. Nothing is an error then.

    Args:
        name: the name of what is limited, in snake_case; limiters of one name share their counts.
        limits: a rate, or the rates by name, each with a key of its own, as in `{"user": …, "endpoint": …}`.
        redis: a client from `connect_redis`; by default that of the process, see `use_redis`.
        replicas: the processes that share the limits, for the time in which Redis doesn't answer.
        key_prefix: the prefix of every key in Redis.

    Raises:
        DeclarationError: there is no limit, a name has another form, or `replicas` is not positive.
    """

    def __init__(
        self,
        name: str,
        limits: Rate | Mapping[str, Rate],
        *,
        redis: Redis | None = None,
        replicas: int = 1,
        key_prefix: str = "hk:limit:",
    ) -> None:
        named = {"all": limits} if isinstance(limits, Rate) else dict(limits)
        if bad := [each for each in (name, *named) if not NAME_SYNTAX.fullmatch(each)]:
            raise DeclarationError(f"a limit is named in snake_case, such as per_user, not {bad[0][:80]!r}")
        if not named or replicas < 1:
            raise DeclarationError(
                f"a limiter has at least one limit and one replica, not {len(named)} and {replicas}"
            )
        self.name = name
        self.policies: Mapping[str, Rate] = (
            {name: limits}
            if isinstance(limits, Rate)
            else {f"{name}.{each}": rate for each, rate in named.items()}
        )
        """The rates by the names that clients see."""
        self._redis = redis
        self._names = list(self.policies.items())
        # The keys of a script have to be on one node of a cluster, which the part in braces decides.
        tag = name if len(named) == 1 else f"{{{name}}}"
        self._prefixes = [f"{key_prefix}{tag}:{each}:" for each in named]
        self._arguments = [
            number
            for rate in named.values()
            for number in (rate.interval_microseconds, rate.interval_microseconds * rate.burst)
        ]
        self._highest_cost = min(rate.burst for rate in named.values())
        self._local = LocalLimiter(list(named.values()), replicas=replicas)
        self._is_local = False
        self._counters = {
            (is_local, allowed): metrics.rate_limit_decisions.labels(
                name, ("allowed" if allowed else "denied") + ("_locally" if is_local else "")
            )
            for is_local in (False, True)
            for allowed in (0, 1)
        }

    def __repr__(self) -> str:
        rates = ", ".join(f"{name}={rate}" for name, rate in self.policies.items())
        return f"RateLimiter({rates}, local={self._is_local})"

    async def check(self, *keys: str | int | UUID | None, cost: int = 1) -> LimitDecision:
        """Take the cost of a request off all limits, if all of them have it.

        Args:
            keys: who or what is counted, one key for each limit, in the order of the limits; whatever it is. None for a
                limit that doesn't concern this request.
            cost: how much the request takes of each limit; from 1 to the smallest burst.

        Raises:
            MisuseError: the number of keys isn't that of the limits, all are None, or the cost is more than can ever be
                had.
        """
        if len(keys) != len(self._prefixes):
            raise MisuseError(
                f"{self.name} has {len(self._prefixes)} limits ({', '.join(self.policies)}): give a key for each,"
                f" not {len(keys)}"
            )
        concerned = [index for index, key in enumerate(keys) if key is not None]
        if not concerned:
            raise MisuseError(f"a request to {self.name} is concerned by one of its limits at least")
        if not 1 <= cost <= self._highest_cost:
            raise MisuseError(
                f"a cost of {cost} is never allowed by {self.name}: it is from 1 to its smallest burst,"
                f" {self._highest_cost}"
            )
        names = [self._prefixes[index] + _as_text(keys[index]) for index in concerned]
        arguments = [self._arguments[2 * index + which] for index in concerned for which in (0, 1)]
        multiplexer = multiplexer_of(self._redis or redis_of_process(f"the rate limiter {self.name}"))
        try:
            numbers = await multiplexer.run(CHECK, names, cost, *arguments)
        except UnavailableError as error:
            self._note(reason=str(error))
            numbers = self._local.check(names, cost, concerned)
        else:
            if self._is_local:
                self._note(reason=None)
        allowed, index, remaining, wait, reset = numbers
        self._counters[self._is_local, allowed].inc()
        policy, rate = self._names[concerned[index]]
        return LimitDecision(
            allowed == 1, policy, rate, remaining, wait / 1_000_000, reset / 1_000_000, self._is_local
        )

    def _note(self, *, reason: str | None) -> None:
        is_local = reason is not None
        if is_local and not self._is_local:
            _log.warning("a rate limit is kept by each replica alone", limiter=self.name, reason=reason)
        elif self._is_local and not is_local:
            _log.info("a rate limit is kept in Redis again", limiter=self.name)
        self._is_local = is_local


def _as_text(key: object) -> str:
    """Return a key as it is, or its SHA-256 if it is long, or has characters that not every tool shows."""
    text = str(key)
    if len(text) <= _LONGEST_KEY and text.isascii():
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
