"""The database of a data service: reachable, writable, with enough connections, and with nothing to migrate."""

import time
from collections.abc import Sequence
from typing import Any, Final

from hybridkit._cli._checks._finding import Finding, answered, clock
from hybridkit._cli._data_services import pending_in
from hybridkit.dataservice._service import DataServiceDeclaration

OWN_CONNECTIONS: Final = 3
"""Connections of a data service beside its pool, as `PostgresSettings` says."""
CROWDED: Final = 0.8

_FACTS: Final = """
SELECT current_setting('server_version') AS version,
       current_setting('max_connections')::int AS most,
       current_setting('superuser_reserved_connections')::int AS reserved,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
       extract(epoch FROM clock_timestamp())::float8 AS now,
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS is_read_only,
       coalesce(current_setting('idle_session_timeout', true), '0') AS idle
"""


async def check_postgres(url: str, *, pool_size: int, replicas: int) -> Sequence[Finding]:
    """Look at the PostgreSQL of a data service.

    Args:
        url: the URL of the database.
        pool_size: the value of `DATABASE_POOL_SIZE`.
        replicas: the number of processes of the service.

    Raises:
        UnavailableError: PostgreSQL does not answer.
        SettingsError: PostgreSQL refuses the user, the database or an option of the URL.
    """
    from hybridkit.dataservice._postgres._driver._connection import connect  # noqa: PLC0415 - an extra of its own

    since = time.monotonic()
    connection = await connect(
        url, timeout_seconds=5.0, command_seconds=5.0, application_name="hybridkit_doctor"
    )
    try:
        facts: Any = await connection.fetchrow(_FACTS)
    finally:
        await connection.close(timeout=2)
    found = [answered("database", f"PostgreSQL {facts['version']}", since=since)]
    found += [
        _connections(facts, pool_size=pool_size, replicas=replicas),
        clock("database.clock", facts["now"]),
    ]
    if facts["is_read_only"]:
        advice = "name the primary in DATABASE_URL, or add target_session_attrs=read-write"
        found.append(
            Finding(level="problem", check="database.writable", detail="it takes no writes", advice=advice)
        )
    if facts["idle"] != "0":
        detail = f"PostgreSQL ends sessions that were idle for {facts['idle']}"
        advice = "set idle_session_timeout = 0 for the service's role"
        found.append(Finding(level="warning", check="database.keep_alive", detail=detail, advice=advice))
    return found


def _connections(facts: Any, *, pool_size: int, replicas: int) -> Finding:
    needed, there = replicas * (pool_size + OWN_CONNECTIONS), facts["most"] - facts["reserved"]
    detail = (
        f"{replicas} × {pool_size + OWN_CONNECTIONS} connections of {there} are for this service;"  # noqa: RUF001
        f" {facts['used']} are used now"
    )
    advice = "raise max_connections, or lower DATABASE_POOL_SIZE"
    if needed > there:
        return Finding(level="problem", check="database.connections", detail=detail, advice=advice)
    if needed > CROWDED * there:
        return Finding(level="warning", check="database.connections", detail=detail, advice=advice)
    return Finding(level="ok", check="database.connections", detail=detail)


async def check_mongo(url: str) -> Sequence[Finding]:
    """Look at the MongoDB of a data service.

    Args:
        url: the URL of the database.

    Raises:
        UnavailableError: MongoDB does not answer.
    """
    from hybridkit.dataservice._mongo._driver._database import (  # noqa: PLC0415 - an extra of its own
        bounded,
        meaning,
        open_database,
    )
    from hybridkit.dataservice._mongo._driver._errors import read_error  # noqa: PLC0415

    since = time.monotonic()
    async with open_database(url, name="hybridkit_doctor") as database:
        with bounded(), meaning(read_error):
            hello = await database.command("hello")
            build = await database.command("buildInfo")
    ferret = build.get("ferretdb")
    name = (
        f"FerretDB {build.get('ferretdb', {}).get('version', '')}"
        if ferret
        else f"MongoDB {build.get('version')}"
    )
    found = [answered("database", name.strip(), since=since)]
    if "localTime" in hello:
        found.append(clock("database.clock", hello["localTime"].timestamp()))
    if ferret or not ("setName" in hello or hello.get("msg") == "isdbgrid"):
        detail = "it has no transactions: a write of several records is refused"
        advice = "run MongoDB as a replica set, also one of a single server"
        found.append(Finding(level="warning", check="database.transactions", detail=detail, advice=advice))
    return found


async def check_schema(declared: DataServiceDeclaration, url: str, module: str) -> Sequence[Finding]:
    """Look for revisions or indexes that the database lacks.

    Args:
        declared: the declarations of the data service.
        url: the URL of the database.
        module: the module, for the advice.

    Raises:
        UnavailableError: the database does not answer.
    """
    pending = await pending_in(declared, url)
    if not pending:
        return [Finding(level="ok", check="database.schema", detail="nothing is to be migrated")]
    names = ", ".join(each.name for each in pending)
    detail = f"{len(pending)} to be migrated: {names}"
    advice = f"hybridkit migrate {module}; or the next start does it"
    return [Finding(level="warning", check="database.schema", detail=detail, advice=advice)]
