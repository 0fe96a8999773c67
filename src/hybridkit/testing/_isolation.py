"""Isolation of tests that share a server: each test gets a database or virtual host.

PostgreSQL: a database, copied from a template. RabbitMQ: a virtual host. Redis: a numbered database, leased so that no
two tests of any process have the same. MongoDB: a database name, dropped afterwards.

The drivers come from the tests' environment and are imported when a test needs one: the package works without them.
"""

import asyncio
import json
import secrets
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from hybridkit.dev import Server
from hybridkit.errors import MissingExtraError, NotSupportedError, UnavailableError

_LEASE_SECONDS = 3600


def unique_name() -> str:
    """Return a random name of letters, digits and `_`, which needs no quoting in SQL or URLs."""
    return f"test_{secrets.token_hex(6)}"


@contextmanager
def postgres_database(server: Server, *, template: str = "template1") -> Generator[str]:
    """Copy a database from the template, yield its URL, and drop it at the end, with all connections to it."""
    name = unique_name()
    _execute(server.url, f"create database {name} template {template}")
    try:
        yield with_path(server.url, name)
    finally:
        _execute(server.url, f"drop database if exists {name} with (force)")


@contextmanager
def postgres_template(server: Server, fill: Callable[[str], None] | None) -> Generator[str]:
    """Create and fill a database to be copied for each test, and yield its name."""
    if fill is None:
        yield "template1"
        return
    with postgres_database(server) as url:
        fill(url)
        name = urlsplit(url).path.strip("/")
        # PostgreSQL does not copy a database that has connections.
        end = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"  # noqa: S608 # nosec B608
        _execute(server.url, end)
        yield name


@contextmanager
def mongo_database(server: Server) -> Generator[str]:
    """Yield a URL with a new database name, and drop the database at the end."""
    pymongo = _driver("pymongo", extra="mongo")
    name = unique_name()
    try:
        yield with_path(server.url, name)
    finally:
        with pymongo.MongoClient(server.url, timeoutMS=60_000) as client:
            client.drop_database(name)


@contextmanager
def redis_database(server: Server) -> Generator[str]:
    """Lease an empty numbered database, yield its URL, and empty it at the end.

    Channels of publish/subscribe are not part of a database: all databases share them.

    Raises:
        UnavailableError: every database of the server has keys in it, or is leased to another test.
    """
    redis = _driver("redis")
    with redis.Redis.from_url(with_path(server.url, "0")) as leases:
        number = _lease_database(redis, leases, server.url)
        url = with_path(server.url, str(number))
        try:
            yield url
        finally:
            with redis.Redis.from_url(url) as database:
                database.flushdb()
            leases.delete(_lease_key(number))


@contextmanager
def rabbitmq_virtual_host(server: Server) -> Generator[str]:
    """Create a virtual host, yield its URL, and delete it at the end, with its connections and queues."""
    name = unique_name()
    if not server.is_real:
        # The development broker creates a virtual host with the first connection to it, and keeps none on disk.
        yield with_path(server.url, name)
        return
    user = quote(urlsplit(server.url).username or "guest", safe="")
    _manage(server, "PUT", f"vhosts/{name}", {})
    try:
        _manage(server, "PUT", f"permissions/{name}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
        yield with_path(server.url, name)
    finally:
        _manage(server, "DELETE", f"vhosts/{name}")


def _driver(name: str, *, extra: str = "testing") -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the fixture that uses {name}", extra=extra) from error


def with_path(url: str, path: str) -> str:
    """Return the URL with another path: the database, or the virtual host."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))


def _execute(url: str, statement: str) -> None:
    asyncpg = _driver("asyncpg", extra="postgres")

    async def execute() -> None:
        connection = await asyncpg.connect(url, timeout=10, command_timeout=60)
        try:
            await connection.execute(statement)
        finally:
            await connection.close(timeout=10)

    # In another thread, because this one may have the test's event loop.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, execute()).result()


def _lease_key(number: int) -> str:
    return f"hybridkit:testing:lease:{number}"


def _lease_database(redis: Any, leases: Any, url: str) -> int:
    for number in range(1, _count_databases(redis, url)):
        if not leases.set(_lease_key(number), "1", nx=True, ex=_LEASE_SECONDS):
            continue
        with redis.Redis.from_url(with_path(url, str(number))) as database:
            if database.dbsize() == 0:
                return number
        # It has data of others: the lease stays, so that the next test does not look at it again.
    raise UnavailableError("no Redis database is free for a test: each one has keys in it or is leased")


def _count_databases(redis: Any, url: str) -> int:
    # On a separate connection: fakeredis does not know the command, and closes the connection after an error.
    try:
        with redis.Redis.from_url(url) as server:
            return int(server.config_get("databases")["databases"])
    except (redis.RedisError, KeyError):
        return 16


def _manage(server: Server, method: str, path: str, body: object = None) -> None:
    if server.management_url is None:
        raise NotSupportedError(f"no virtual host per test on {server.source}: it has no management API")
    parts = urlsplit(server.management_url)
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"/api/{path}"))
    credentials = b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - the scheme is that of the server's own URL
        address,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Basic {credentials}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30):  # noqa: S310 # nosec B310
            pass
    except urllib.error.URLError as error:
        raise UnavailableError(f"RabbitMQ's management API refused {method} {path}: {error}") from error
