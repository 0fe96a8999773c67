"""Rate limits of FastAPI's routes: 429 for whoever asks too often, and headers that say how much is left.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any, Final, cast
from weakref import WeakKeyDictionary, WeakSet

from fastapi import Depends, Request

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit.adapters._http._asgi import PROBE_PATHS, RESPONSE_HEADERS
from hybridkit.adapters._http._identity import principal
from hybridkit.contract import PROBLEM_MEDIA_TYPE
from hybridkit.coordination import LimitDecision, Rate, RateLimiter, Redis
from hybridkit.errors import DeclarationError, RateLimitedError, SettingsError, UnauthenticatedError
from hybridkit.settings import EdgeSettings, ServiceSettings

TOO_MANY_REQUESTS: Final[Mapping[str, Any]] = {
    "description": "Too many requests; the same one is let through after `Retry-After`.",
    "headers": {
        "Retry-After": {
            "description": "The seconds after which to try again.",
            "schema": {"type": "integer", "minimum": 1},
        },
        "RateLimit-Policy": {
            "description": 'The limits: `"name";q=requests;w=seconds`.',
            "schema": {"type": "string"},
        },
        "RateLimit": {
            "description": 'The limit that was reached: `"name";r=remaining;t=seconds`.',
            "schema": {"type": "string"},
        },
    },
    "content": {
        PROBLEM_MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["title", "status", "code", "retryable", "retry_after_seconds"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer", "const": 429},
                    "code": {"type": "string", "const": RateLimitedError.code},
                    "detail": {"type": "string"},
                    "instance": {"type": "string"},
                    "request_id": {"type": "string"},
                    "retryable": {"type": "boolean", "const": True},
                    "retry_after_seconds": {"type": "number"},
                },
            }
        }
    },
}
"""The response of a limited route in its OpenAPI document."""

type Guard = Callable[[Scope], Awaitable[None]]

_checks: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""The dependencies that `rate_limited` has made."""

_guards: Final[WeakKeyDictionary[Callable[..., Any], Guard]] = WeakKeyDictionary()
"""For those that count the verified user: the same check without FastAPI."""


async def caller_of(request: Request) -> str:
    """Return who is counted: the verified user, or the address of whoever is not known (of IPv6, its network).

    Credentials that nobody has verified do not count: whoever makes up a new one for each request would be let through.
    """
    return _caller_in(request.scope)


def _caller_in(scope: Scope) -> str:
    user = principal(scope, internal=False)
    if user is not None:
        return f"user.{user}"
    client: tuple[str, int] | None = scope.get("client")
    return "address." + (network_of(client[0]) if client else "unknown")


def network_of(host: str) -> str:
    """Return an address, or of an IPv6 address its network of 64 bits: one customer has at least as many."""
    try:
        address = ip_address(host)
    except ValueError:  # a name, as test clients have
        return host
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))


def rate_limited(
    name: str,
    *,
    per_caller: Rate | str | None = None,
    in_total: Rate | str | None = None,
    key: Callable[..., Any] = caller_of,
    cost: int = 1,
    replicas: int = 1,
) -> Any:
    """Limit a route, a router or an application, as in `dependencies=[rate_limited("uploads", per_caller=rate)]`.

    A request over a limit is answered with 429 and `Retry-After`; every response has `RateLimit` and
    `RateLimit-Policy`. While Redis doesn't answer, each replica allows its share.

    Args:
        name: the name of the limits, in snake_case; routes of one name share their counts.
        per_caller: the rate of each caller; a text is the name of the field of the settings that has it, a `Rate`.
        in_total: the rate of all callers together; a request that one of both refuses takes nothing of the other.
        key: a dependency that returns who is counted, such as the one that signs the caller in; without it, the user
            whom an earlier dependency has bound, or the address of the client.
        cost: how much a request takes of each limit.
        replicas: the processes that share the limits, for the time in which Redis doesn't answer.

    Raises:
        DeclarationError: there is no rate, the name has another form, or the cost is more than a burst; also when a
            request comes and the application has no Redis.
    """
    rates = {each: rate for each, rate in (("caller", per_caller), ("total", in_total)) if rate is not None}
    if not rates:
        raise DeclarationError(f"the limit {name!r} needs a rate: per_caller=, in_total=, or both")
    if not any(isinstance(rate, str) for rate in rates.values()):
        made_limiter(name, rates, cost=cost, replicas=replicas)  # refuses here what it can't take
    made: list[tuple[Redis, RateLimiter]] = []

    async def check(scope: Scope, caller: object) -> None:
        redis = _redis_of(scope)
        if not made or made[0][0] is not redis:  # an application that was started again has another client
            settings = scope["app"].state.settings
            limiter = made_limiter(name, rates, settings, redis=redis, cost=cost, replicas=replicas)
            made[:] = [(redis, limiter)]
        limiter = made[0][1]
        keys = [str(caller) if each == "caller" else "all" for each in rates]
        await _count(limiter, scope, keys, cost=cost)

    async def check_rate(request: Request, caller: Annotated[Any, Depends(key)]) -> None:
        await check(request.scope, caller)

    _checks.add(check_rate)
    if key is caller_of:
        _guards[check_rate] = lambda scope: check(scope, _caller_in(scope))
    return Depends(check_rate)


def made_limiter(
    name: str,
    rates: Mapping[str, Rate | str],
    settings: ServiceSettings | None = None,
    *,
    redis: Redis | None = None,
    cost: int,
    replicas: int,
) -> RateLimiter:
    """Return the limiter of a route, with the rates that the settings have.

    Args:
        name: the name of the limits.
        rates: the rates, or the fields of the settings that have them.
        settings: the settings of this start; None where no rate comes from them.
        redis: where they are counted.
        cost: how much a request takes of each limit.
        replicas: the processes that share the limits.

    Raises:
        DeclarationError: a setting is missing or no rate, or the cost is more than a burst.
    """
    found: dict[str, Rate] = {}
    for each, rate in rates.items():
        value: object = getattr(settings, rate, None) if isinstance(rate, str) else rate
        if not isinstance(value, Rate):
            raise DeclarationError(
                f"the limit {name!r} is the setting {rate!r}: declare it in {type(settings).__name__} as a Rate"
            )
        found[each] = value
    if not 1 <= cost <= min(rate.burst for rate in found.values()):
        raise DeclarationError(
            f"a cost of {cost} is never allowed by {name!r}: it is from 1 to its smallest burst"
        )
    limits = found if len(found) > 1 else next(iter(found.values()))
    return RateLimiter(name, limits, redis=redis, replicas=replicas)


def take_guards(route: Any) -> Iterator[Guard]:
    """Take the limits that count verified users out of a route's dependencies, and yield their checks.

    They are the same without FastAPI, which spends more on a dependency than the check itself costs.

    Args:
        route: one of FastAPI's routes whose callers are verified before it.
    """
    for each in list(route.dependant.dependencies):
        if (guard := _guards.get(each.call)) is not None:
            route.dependant.dependencies.remove(each)
            route.responses.setdefault(429, TOO_MANY_REQUESTS)
            yield guard


async def _count(limiter: RateLimiter, scope: Scope, keys: Sequence[str], *, cost: int = 1) -> None:
    """Take a request off its limits, and let its response say what is left.

    Raises:
        RateLimitedError: a limit is reached.
    """
    decision = await limiter.check(*keys, cost=cost)
    scope.get(RESPONSE_HEADERS, []).extend(_headers(limiter.policies, decision))
    if not decision.allowed:
        raise RateLimitedError(
            f"the limit {decision.policy} of {decision.limit} is reached",
            retry_after_seconds=decision.retry_after_seconds,
        )


def default_limiter(settings: ServiceSettings, redis: object) -> RateLimiter | None:
    """Return the limiter of every caller's requests, or None where the settings name no rate.

    Args:
        settings: the settings of a start.
        redis: the application's Redis; anything else for none.

    Raises:
        SettingsError: the rate can't be read, or there is no Redis to count in.
    """
    text = settings.rate_limit if isinstance(settings, EdgeSettings) else None
    if text is None:
        return None
    try:
        rate = Rate.parse(text)
    except DeclarationError as error:
        raise SettingsError(
            "the limit of requests can't be kept:", problems=[f"RATE_LIMIT: {error}"]
        ) from None
    if not isinstance(redis, Redis):
        raise SettingsError(
            "the limit of requests can't be kept:",
            problems=["RATE_LIMIT: needs Redis: the application's settings have to be RedisSettings too"],
        )
    return RateLimiter("requests", rate, redis=redis)


class LimitMiddleware:
    """Counts each request of a caller by the limit of the settings.

    It stands on both sides of the check of who calls: inside to count for the user, and outside for the address of
    whoever tries credentials that are not good.

    Args:
        app: the application.
        counts_refusals: whether it stands outside, and counts only requests that are refused as not authenticated.
    """

    def __init__(self, app: ASGIApp, *, counts_refusals: bool = False) -> None:
        self.app = app
        self.counts_refusals = counts_refusals

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request; without a limit without a coroutine of its own."""
        limiter: RateLimiter | None = None
        if scope["type"] == "http" and scope["path"] not in PROBE_PATHS:
            limiter = getattr(scope["app"].state, "limiter", None)
        if limiter is None:
            return self.app(scope, receive, send)
        return self._serve(limiter, scope, receive, send)

    async def _serve(self, limiter: RateLimiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request if its caller has not reached the limit.

        Raises:
            RateLimitedError: the caller has.
        """
        if not self.counts_refusals:
            await _count(limiter, scope, [_caller_in(scope)])
            await self.app(scope, receive, send)
        else:
            try:
                await self.app(scope, receive, send)
            except UnauthenticatedError:
                await _count(limiter, scope, [_caller_in(scope)])
                raise


def document_limits(routes: Iterable[Any]) -> None:
    """Add the response 429 to the OpenAPI description of all routes that are limited."""
    for route in routes:
        included = getattr(route, "effective_candidates", None)
        if included is not None:
            document_limits(included())
        elif any(call in _checks for call in _calls(getattr(route, "dependant", None))):
            route.responses.setdefault(429, TOO_MANY_REQUESTS)


def _calls(dependant: Any) -> Iterator[Any]:
    for each in getattr(dependant, "dependencies", ()):
        yield each.call
        yield from _calls(each)


def _redis_of(scope: Scope) -> Redis:
    redis = cast("Redis | None", scope["app"].state.resources.providers.get(Redis))
    if redis is None:
        raise DeclarationError(
            "a limited route needs Redis: the application's settings have to be RedisSettings too"
        )
    return redis


def _headers(policies: Mapping[str, Rate], decision: LimitDecision) -> list[tuple[bytes, bytes]]:
    policy = ", ".join(f'"{name}";q={rate.count};w={rate.period_seconds}' for name, rate in policies.items())
    # Both name the same moment where `Retry-After` is sent.
    seconds = decision.reset_seconds if decision.allowed else decision.retry_after_seconds
    state = f'"{decision.policy}";r={decision.remaining};t={math.ceil(seconds)}'
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]
