"""Redis: reachable, evicting nothing, keeping what it has confirmed, and patient with idle connections."""

import time
from collections.abc import Sequence
from typing import Any, Final

from hybridkit._cli._checks._finding import Finding, Level, answered, clock
from hybridkit.coordination import check_noeviction, connect_redis, replication_problems
from hybridkit.coordination._connection import server_info
from hybridkit.errors import SettingsError

SHORTEST_IDLE_SECONDS: Final = 60
"""A shorter `timeout` of the server closes connections of a pool between two requests."""
FULL: Final = 0.8


async def check_redis(url: str, *, is_production: bool) -> Sequence[Finding]:
    """Look at the Redis of claims, locks, sessions and limits.

    Args:
        url: the URL.
        is_production: whether a server that keeps nothing on disk is a problem.

    Raises:
        UnavailableError: Redis does not answer.
    """
    async with connect_redis(url, timeout_seconds=2.0) as redis:
        client: Any = redis
        since = time.monotonic()
        servers = await server_info(redis, "server")
        version = servers[0].get("redis_version", "a stand-in")
        found = [answered("redis", f"Redis {version}", since=since)]
        found.append(await _policy(client))
        found += [await _persistence(client, is_production=is_production), *await _memory(client)]
        found += [
            Finding(
                level="warning", check="redis.replication", detail=problem, advice="see `When Redis is down`"
            )
            for problem in await replication_problems(redis)
        ]
        idle = await _setting(client, "timeout")
        if idle is not None and 0 < int(idle) < SHORTEST_IDLE_SECONDS:
            detail = f"Redis closes connections that were idle for {idle} s"
            found.append(
                Finding(
                    level="warning", check="redis.keep_alive", detail=detail, advice="set timeout 0 there"
                )
            )
        if len(servers) == 1 and "redis_version" in servers[0]:
            seconds, microseconds = await client.time()
            found.append(clock("redis.clock", seconds + microseconds / 1e6))
        return found


async def _policy(client: Any) -> Finding:
    try:
        await check_noeviction(client)
    except SettingsError as error:
        return Finding(
            level="problem",
            check="redis.policy",
            detail="Redis may throw away claims, locks and sessions",
            advice=" ".join(error.problems),
        )
    return Finding(level="ok", check="redis.policy", detail="Redis evicts nothing (noeviction)")


async def _persistence(client: Any, *, is_production: bool) -> Finding:
    check = "redis.persistence"
    advice = "set appendonly yes there, so that a restart forgets no claim"
    infos = await server_info(client, "persistence")
    if all(info.get("aof_enabled") for info in infos):
        return Finding(level="ok", check=check, detail="Redis writes each change to its append-only file")
    saves = await _setting(client, "save")
    if saves:
        detail = f"Redis keeps snapshots only (save {saves}): a crash forgets what came after the last one"
        return Finding(level="warning", check=check, detail=detail, advice=advice)
    level: Level = "problem" if is_production else "warning"
    detail = "Redis keeps nothing on disk: a restart forgets claims, locks and sessions"
    return Finding(level=level, check=check, detail=detail, advice=advice)


async def _memory(client: Any) -> Sequence[Finding]:
    found: list[Finding] = []
    for memory in await server_info(client, "memory"):
        used, most = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        if most and used > FULL * most:
            detail = f"{used / most:.0%} of maxmemory is used; at 100 % Redis refuses writes"
            advice = "raise maxmemory, or shorten how long things are kept"
            found.append(Finding(level="warning", check="redis.memory", detail=detail, advice=advice))
    return found


async def _setting(client: Any, name: str) -> str | None:
    """Return a setting of the server; None where it isn't told, as managed services and stand-ins don't."""
    try:
        found: dict[str, Any] = await client.config_get(name)
    except Exception:  # noqa: BLE001 - whatever a server or a cluster's client answers to a command that is refused
        return None
    return str(found[name]) if name in found else None
