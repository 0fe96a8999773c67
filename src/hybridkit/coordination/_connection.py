"""The Redis client: its limits, and the demands on a server before work is built on it."""

from typing import Any, Final, cast, override
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit.coordination._failover import following_master
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._redis._plain import PlainCommands
from hybridkit.errors import SettingsError, UnavailableError
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.coordination")

_RETRIES: Final = 1
"""The tries of a command after the first. One is enough for a connection that Redis has closed meanwhile; redis-py's
default is 10, at 5 s each.
"""

_NO_KEY: Final = "hk:probe"
"""A key that nobody sets."""
_TAKES_WRITES: Final = "return redis.call('SETRANGE', KEYS[1], 0, '')"
"""A script that changes nothing. Redis refuses it where it refuses a claim: a full one still deletes."""

_EVICTS: Final = (
    "its maxmemory-policy is {policy}: set `maxmemory-policy noeviction` in redis.conf, or run `redis-cli CONFIG SET"
    " maxmemory-policy noeviction`; a cache that may be evicted belongs to a Redis of its own, REDIS_CACHE_URL"
)


class _Client(Redis):
    """A client of redis-py with the shared connection beside its pool."""

    multiplexer: Multiplexer

    @override
    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.multiplexer.close()
        await super().aclose(close_connection_pool)


def multiplexer_of(redis: Redis) -> Multiplexer:
    """Return the shared connection of a client, or a slower stand-in where `connect_redis` has not made the client."""
    if isinstance(redis, _Client):
        return redis.multiplexer
    _log.warning(
        "this Redis client sends one command at a time: make it with connect_redis()",
        client=type(redis).__name__,
    )
    return cast("Multiplexer", PlainCommands(redis))  # the same methods


def connect_redis(
    url: str,
    *,
    timeout_seconds: float = 0.25,
    max_connections: int = 50,
    decode_responses: bool = True,
) -> Redis:
    """Make a client that connects when it is first used; close it with `aclose()`, or use it in `async with`.

    A server that isn't the master any more, or takes no writes for another reason, counts as one that has gone: its
    connection is closed, and the name looked up again.

    Beside its pool, the client has one shared connection for the commands of hybridkit itself (claims, locks, limits,
    the cache): those of one turn of the event loop travel together, and each ends within twice `timeout_seconds`.

    A command of the client takes at most about six times `timeout_seconds`, whatever happens: waiting for a free
    connection (twice that time), and two tries to connect and to read. Commands that block on purpose (`BLPOP`) need a
    shorter timeout of their own than `timeout_seconds`.

    Args:
        url: `redis://:password@host:6379/0`, or `rediss://`.
        timeout_seconds: the time for connecting, for writing, and for each answer.
        max_connections: the connections that are open at most; further commands wait for a free one.
        decode_responses: answer `str`; without it, `bytes`.

    Raises:
        SettingsError: the URL is not one of Redis.
    """
    of_tcp = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # untyped kwargs
            url,
            max_connections=max_connections,
            timeout=timeout_seconds * 2,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.05), _RETRIES),
            decode_responses=decode_responses,
            protocol=2,  # the same replies from every supported redis-py; stand-ins speak nothing newer
            **of_tcp,
        )
        pool.connection_class(**pool.connection_kwargs)  # it takes its options, or says which it doesn't know
    except (ValueError, TypeError, RedisError) as error:
        raise SettingsError("the Redis URL can't be used", problems=[_what_is_wrong(url, error)]) from None
    plain = pool.connection_class
    options: dict[str, Any] = pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)}
    pool.connection_class = following_master(plain)
    client = cast("_Client", _Client.from_pool(pool))
    client.multiplexer = Multiplexer(
        lambda: plain(**options), name=_address(options), timeout_seconds=timeout_seconds * 2
    )
    return client


async def probe_redis(redis: Redis) -> None:
    """Check for readiness that Redis answers, runs scripts and takes writes: a replica or a full one answers `PING`.

    Raises:
        UnavailableError: Redis does not do one of the three.
    """
    try:
        await cast("Any", redis).eval(_TAKES_WRITES, 1, _NO_KEY)
    except RedisError as error:
        raise UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}") from error


async def check_noeviction(redis: Redis) -> None:
    """Check at the start that Redis never throws a key away to make room for another.

    Claims, locks and sessions are such keys; one that is gone is work done twice. A server that won't tell its policy
    (a stand-in) is taken as it is, with a line in the log.

    Raises:
        SettingsError: Redis evicts keys; the message says how to change that.
        UnavailableError: Redis does not answer.
    """
    try:
        memory = await redis.info("memory")  # pyright: ignore[reportUnknownMemberType]  # untyped kwargs
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    except ResponseError as error:
        memory = {}
        _log.info("Redis refuses INFO", reason=str(error))
    policy = memory.get("maxmemory_policy")
    if policy is None:
        _log.warning("Redis does not tell its maxmemory-policy: make sure that it is noeviction")
    elif policy != "noeviction":
        raise SettingsError(
            "Redis may throw away claims, locks and sessions",
            problems=[_EVICTS.format(policy=policy)],
        )


def _address(options: dict[str, Any]) -> str:
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _what_is_wrong(url: str, error: Exception) -> str:
    """Name the option that is to blame; the client's own words may quote the password."""
    named = next((name for name in parse_qs(urlsplit(url).query) if f"'{name}'" in str(error)), None)
    if named is not None:
        return f"the option {named} can't be used: the client doesn't know it, or doesn't take its value"
    return "it should be redis://user:password@host:6379/0 or rediss://…, the password percent-encoded"
