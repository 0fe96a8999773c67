"""The Redis client: its limits, and the demands on a server before work is built on it."""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit._tasks import TaskSet
from hybridkit.coordination._clients import ClusterClient, SharedClient
from hybridkit.coordination._failover import following_master
from hybridkit.coordination._redis._cluster import ClusterMultiplexer
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._redis._plain import PlainCommands
from hybridkit.coordination._redis._sentinels import Sentinels, by_sentinels
from hybridkit.coordination._urls import Target, target_of
from hybridkit.errors import SettingsError, UnavailableError
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.coordination")

_RETRIES: Final = 1
"""The tries of a command after the first. One is enough for a connection that Redis has closed meanwhile; redis-py's
default is 10, at 5 s each.
"""

_TIMEOUTS_OF_A_CALL: Final = 6
"""The whole time of a call, in timeouts: two for a free connection, and two tries to connect and to read."""

_NOT_OF_SENTINELS: Final = frozenset({"username", "password", "db", "client_name", "host", "port"})

_RETRIES_IN_A_CLUSTER: Final = 3
"""The tries of redis-py after the first, with the table of slots asked for anew before each."""

_NOT_OF_NODES: Final = frozenset({"self", "host", "port", "db", "path", "retry", "max_connections"})

_NO_KEY: Final = "hk:probe"
"""A key that nobody sets."""
_KEYS_TRIED: Final = 1000
"""The keys among which one for each master of a cluster is found."""
_TAKES_WRITES: Final = "return redis.call('SETRANGE', KEYS[1], 0, '')"
"""A script that changes nothing. Redis refuses it where it refuses a claim: a full one still deletes."""

_EVICTS: Final = (
    "its maxmemory-policy is {policy}: set `maxmemory-policy noeviction` in redis.conf, or run `redis-cli CONFIG SET"
    " maxmemory-policy noeviction`; a cache that may be evicted belongs to a Redis of its own, REDIS_CACHE_URL"
)

_MAY_LOSE_WRITES: Final = (
    "the master has replicas, and takes writes also when none of them gets them: set `min-replicas-to-write 1` and"
    " `min-replicas-max-lag 3` in redis.conf of every server, or run `redis-cli CONFIG SET min-replicas-to-write 1`;"
    " otherwise a fail-over loses claims and locks that were confirmed"
)


def multiplexer_of(redis: Redis) -> Multiplexer:
    """Return the shared connection of a client, or a slower stand-in where `connect_redis` has not made the client."""
    if isinstance(redis, SharedClient):
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
    connection is closed, and the name looked up again. With sentinels, the master is asked for with each connection;
    they are also asked once a second, and listened to, and when they name another master, every connection is made
    anew.

    The client of a cluster has the commands of the others, and sends each to the owner of its key's slot; its attribute
    `redis_cluster` is redis-py's `RedisCluster`, for what concerns the nodes.

    Beside its pool, the client has one shared connection for the commands of hybridkit itself (claims, locks, limits,
    the cache): those of one turn of the event loop travel together, and each ends within twice `timeout_seconds`.

    A command or a pipeline of the client takes at most six times `timeout_seconds`, whatever happens: waiting for a
    free connection (twice that time), and two tries to connect and to read. After that it fails with redis-py's
    `TimeoutError`; Redis may have carried it out. Commands that block on purpose (`BLPOP`) need a shorter timeout of
    their own than `timeout_seconds`. Subscriptions have no such limit.

    Args:
        url: `redis://user:password@host:6379/0`; or the name of a master that sentinels know,
            `redis+sentinel://user:password@a:26379,b:26379/mymaster/0`; or some nodes of a cluster,
            `redis+cluster://user:password@a:7001,b:7002`. User and password are those of the servers; those of the
            sentinels are the options `sentinel_username` and `sentinel_password`. With TLS the schemes are `rediss`,
            `rediss+sentinel` and `rediss+cluster`.
        timeout_seconds: the time for connecting, for writing, and for each answer.
        max_connections: the connections that are open at most; further commands wait for a free one.
        decode_responses: answer `str`; without it, `bytes`.

    Raises:
        SettingsError: the URL is not one of Redis.
    """
    target = target_of(url)
    call_seconds = timeout_seconds * _TIMEOUTS_OF_A_CALL
    pool = _pool(
        target.plain_url,
        max_connections=max_connections,
        timeout=timeout_seconds * 2,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.05), _RETRIES),
        decode_responses=decode_responses,
        protocol=2,  # the same replies from every supported redis-py; stand-ins speak nothing newer
    )
    if target.kind == "cluster":
        return _cluster_client(target, pool, call_seconds)
    plain = pool.connection_class
    following = following_master(plain)
    sentinels = _sentinels(target, plain, pool.connection_kwargs) if target.kind == "sentinel" else None
    if sentinels is not None:
        plain, following = by_sentinels(plain), by_sentinels(following)
        pool.connection_kwargs["sentinels"] = sentinels
    pool.connection_class = following
    options: dict[str, Any] = pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)}
    multiplexer = Multiplexer(
        lambda: plain(**options), name=_name(target, options), timeout_seconds=timeout_seconds * 2
    )
    client = cast("SharedClient", SharedClient.from_pool(pool))
    client.multiplexer = multiplexer
    client.call_seconds = call_seconds
    if sentinels is not None:
        client.closing = sentinels.close
        dropping = TaskSet()
        sentinels.on_change(multiplexer.retire)
        sentinels.on_change(lambda _: dropping.start(pool.disconnect()))
    return client


def _cluster_client(target: Target, pool: BlockingConnectionPool, call_seconds: float) -> ClusterClient:
    """Make the client of a cluster; the pool has checked the options, and stays without a connection."""
    plain: Any = pool.connection_class
    of_nodes = pool.connection_kwargs
    shared: dict[str, Any] = of_nodes | {"retry": Retry(NoBackoff(), 0)}
    client = cast("ClusterClient", ClusterClient.from_pool(pool))
    client.multiplexer = ClusterMultiplexer(
        lambda host, port: plain(**shared | {"host": host, "port": port}),
        target.addresses,
        name=_name(target, of_nodes),
        timeout_seconds=of_nodes["socket_timeout"] * 2,
    )
    client.call_seconds = call_seconds
    client.free = asyncio.Semaphore(pool.max_connections)
    make: Any = RedisCluster
    taken = inspect.signature(make).parameters.keys() - _NOT_OF_NODES
    asked_for = parse_qs(urlsplit(target.plain_url).query)
    if unknown := sorted(asked_for.keys() - taken):
        problems = [f"the option {name} can't be used with a cluster" for name in unknown]
        raise SettingsError("the Redis URL can't be used", problems=problems)
    options: dict[str, Any] = {name: value for name, value in of_nodes.items() if name in taken}
    client.redis_cluster = make(
        startup_nodes=[ClusterNode(host, port) for host, port in target.addresses],
        ssl=issubclass(plain, SSLConnection),
        require_full_coverage=False,
        max_connections=pool.max_connections,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.05), _RETRIES_IN_A_CLUSTER),
        **options,
    )
    return client


def _pool(url: str, **options: Any) -> BlockingConnectionPool:
    if not url.startswith("unix:"):
        options["socket_keepalive"] = True
    try:
        pool = BlockingConnectionPool.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]
        pool.connection_class(**pool.connection_kwargs)  # it takes its options, or says which it doesn't know
    except (ValueError, TypeError, RedisError) as error:
        raise SettingsError("the Redis URL can't be used", problems=[_what_is_wrong(url, error)]) from None
    return pool


def _sentinels(
    target: Target, connection_class: type[AbstractConnection], of_servers: dict[str, Any]
) -> Sentinels:
    """Make the look-up of a master: the sentinels take the options of the servers, but credentials of their own."""
    options: dict[str, Any] = {
        **{name: value for name, value in of_servers.items() if name not in _NOT_OF_SENTINELS},
        **target.sentinel_options,
        "connection_class": connection_class,
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 0),
    }

    def make(host: str, port: int) -> Redis:
        return Redis.from_pool(ConnectionPool(**options, host=host, port=port))

    return Sentinels(
        [partial(make, *address) for address in target.addresses],
        master=target.master,
        timeout_seconds=of_servers["socket_timeout"],
    )


async def probe_redis(redis: Redis) -> None:
    """Check for readiness that Redis answers, runs scripts and takes writes: a replica or a full one answers `PING`.

    Of a cluster, one master that does is enough: work on the keys of the others fails, and the rest goes on.

    Raises:
        UnavailableError: Redis does not do one of the three.
    """
    keys = await _keys_of_masters(redis)
    probes = await asyncio.gather(*(_probe(redis, key) for key in keys), return_exceptions=True)
    errors = [error for error in probes if isinstance(error, BaseException)]
    if len(errors) == len(probes):
        raise errors[0]
    for error in errors:
        _log.warning("a master of the Redis cluster takes no writes", reason=str(error))


async def _probe(redis: Redis, key: str) -> None:
    try:
        await cast("Any", redis).eval(_TAKES_WRITES, 1, key)
    except RedisError as error:
        raise UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}") from error


async def _keys_of_masters(redis: Redis) -> Sequence[str]:
    """Return a key that nobody sets for each master."""
    if not isinstance(redis, ClusterClient):
        return [_NO_KEY]
    cluster: Any = redis.redis_cluster
    try:
        await redis.initialize_cluster()
    except RedisError as error:
        raise UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    owners: dict[str, str] = {}
    for key in (f"{_NO_KEY}:{number}" for number in range(_KEYS_TRIED)):
        with suppress(SlotNotCoveredError):
            owners.setdefault(cluster.get_node_from_key(key).name, key)
    return list(owners.values()) or [_NO_KEY]


async def replication_problems(redis: Redis) -> list[str]:
    """Return what is wrong with the replication of a master: its words, with the remedy; empty without replicas.

    A master that is cut off from its replicas goes on to take writes, and loses them when another one is made the
    master meanwhile: claims are taken twice then, and locks are held twice. `min-replicas-to-write` stops it.

    Raises:
        UnavailableError: Redis does not answer.
    """
    replications = await server_info(redis, "replication")
    return [_MAY_LOSE_WRITES] if any(map(_may_lose_writes, replications)) else []


def _may_lose_writes(replication: Mapping[str, Any]) -> bool:
    # Redis reports the good replicas only where it demands some, so that CONFIG need not be allowed.
    has_replicas = replication.get("role") == "master" and bool(replication.get("connected_slaves"))
    return has_replicas and "min_slaves_good_slaves" not in replication


async def check_noeviction(redis: Redis) -> None:
    """Check at the start that Redis never throws a key away to make room for another.

    Claims, locks and sessions are such keys; one that is gone is work done twice. A server that won't tell its policy
    (a stand-in) is taken as it is, with a line in the log.

    Raises:
        SettingsError: Redis evicts keys; the message says how to change that.
        UnavailableError: Redis does not answer.
    """
    policies = {memory.get("maxmemory_policy") for memory in await server_info(redis, "memory")}
    policy = next(iter(policies - {"noeviction", None}), None)
    if None in policies:
        _log.warning("Redis does not tell its maxmemory-policy: make sure that it is noeviction")
    if policy is not None:
        raise SettingsError(
            "Redis may throw away claims, locks and sessions",
            problems=[_EVICTS.format(policy=policy)],
        )


async def server_info(redis: Redis, section: str) -> Sequence[Mapping[str, Any]]:
    """Return a section of INFO, of one server or of each master of a cluster; empty where it is refused."""
    untyped: Any = redis
    is_cluster = isinstance(redis, ClusterClient)
    try:
        reply = await untyped.info(section, **{"target_nodes": "primaries"} if is_cluster else {})
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    except ResponseError as error:
        _log.info("Redis refuses INFO", reason=str(error))
        return [{}]
    several = is_cluster and all(isinstance(each, dict) for each in reply.values())
    return list(reply.values()) if several else [reply]


def _name(target: Target, options: dict[str, Any]) -> str:
    if target.kind != "server":
        hosts = ",".join(f"{host}:{port}" for host, port in target.addresses)
        return f"{target.master} of {hosts}" if target.master else hosts
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _what_is_wrong(url: str, error: Exception) -> str:
    """Name the option that is to blame; the client's own words may quote the password."""
    named = next((name for name in parse_qs(urlsplit(url).query) if f"'{name}'" in str(error)), None)
    if named is not None:
        return f"the option {named} can't be used: the client doesn't know it, or doesn't take its value"
    return (
        "it should be redis://user:password@host:6379/0 (rediss:// with TLS),"
        " redis+sentinel://user:password@a:26379,b:26379/mymaster/0 or redis+cluster://user:password@a:7001,b:7002,"
        " the password percent-encoded"
    )
