"""Options of a URL are followed, or refused by their name: never by a driver's stack in the middle of a start."""

from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from hybridkit.coordination import connect_redis
from hybridkit.dataservice._mongo._driver._database import open_database
from hybridkit.dataservice._mongo._driver._errors import read_error
from hybridkit.dataservice._postgres._driver._url import Target
from hybridkit.errors import SettingsError
from hybridkit.settings import MongoSettings, PostgresSettings, RedisSettings, SecretUrl

SECRET = "hunter2-and-more"


class Everything(PostgresSettings, RedisSettings):
    """Every kind of URL but MongoDB's."""


URLS = {
    "database_url": f"postgresql://user:{SECRET}@host/app",
    "rabbitmq_url": f"amqp://user:{SECRET}@host/",
    "redis_url": f"redis://:{SECRET}@host/0",
}


def problems(**urls: str) -> str:
    try:
        Everything(service_name="test", **{**URLS, **urls})  # type: ignore[arg-type]
    except SettingsError as error:
        assert SECRET not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=require",
        "sslmode=verify-full&sslrootcert=system",
        "connect_timeout=5&application_name=shop",
        "options=-c%20search_path%3Dapp",
        "target_session_attrs=read-write",
        "channel_binding=prefer&gssencmode=disable&client_encoding=UTF8",
        "search_path=app",
    ],
)
def test_what_hosters_print_is_taken(query: str) -> None:
    """A URL can be pasted from their page."""
    assert problems(database_url=f"postgresql://user:{SECRET}@a:5432,b:5433/app?{query}") == ""


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("keepalives=1", "keepalives"),
        ("keepalives_idle=30", "keepalives_idle"),
        ("tcp_user_timeout=5", "tcp_user_timeout"),
        ("channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("sslmode=yes", "sslmode"),
        ("sslmode=", "sslmode"),
        ("connect_timeout=soon", "connect_timeout"),
        ("target_session_attrs=primary,any", "target_session_attrs"),
        ("hostaddr=10.0.0.1", "hostaddr"),
        ("sslcompression=1", "sslcompression"),
        ("load_balance_hosts=random", "load_balance_hosts"),
        ("client_encoding=latin1", "client_encoding"),
    ],
)
def test_what_the_driver_of_postgresql_can_not_follow_is_refused_by_name(query: str, named: str) -> None:
    """An option that nobody follows is a promise that is not kept."""
    report = problems(database_url=f"postgresql://user:{SECRET}@host/app?{query}")
    assert f"DATABASE_URL: has the option {named}" in report


@pytest.mark.parametrize("query", ["frame_max=1", "cacertfile=ca.pem", "heartbeat=often", "cafile="])
def test_what_the_client_of_rabbitmq_would_pass_over_is_refused_by_name(query: str) -> None:
    """Without its value."""
    report = problems(rabbitmq_url=f"amqps://user:{SECRET}@a,b/?{query}")
    assert f"RABBITMQ_URL: has the option {query.partition('=')[0]}" in report
    assert problems(rabbitmq_url=f"amqps://user:{SECRET}@a,b/?heartbeat=10&cafile=ca.pem&name=shop") == ""


def test_a_server_of_which_there_is_one_has_one_host() -> None:
    """The client would take the first, or fail later."""
    assert "REDIS_URL: names several hosts" in problems(redis_url=f"redis://:{SECRET}@a:6379,b:6379/0")


@pytest.mark.parametrize(
    "query", ["connect_timeout=5", "tls=true", "socket_timeout=soon", "ssl_certs=none", "max_connections=x"]
)
def test_what_the_client_of_redis_does_not_know_is_refused_by_name(query: str) -> None:
    """The password is not in the message."""
    with pytest.raises(SettingsError, match=f"the option {query.partition('=')[0]}") as refusal:
        connect_redis(f"redis://:{SECRET}@127.0.0.1/0?{query}")
    assert SECRET not in str(refusal.value)


async def test_what_the_client_of_redis_knows_is_used() -> None:
    """In the types that it wants."""
    redis = connect_redis("rediss://127.0.0.1/0?socket_timeout=3&ssl_cert_reqs=none&client_name=shop")
    options: dict[str, Any] = redis.connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["ssl_cert_reqs"], options["client_name"]) == (
        3.0,
        "none",
        "shop",
    )
    await redis.aclose()


@pytest.mark.parametrize(
    "query", ["sslmode=require", "connect_timeout=5", "w=x&maxPoolSize=many", "readPreference=best"]
)
async def test_what_the_driver_of_mongodb_does_not_know_is_refused_by_name(query: str) -> None:
    """It would only warn."""
    with pytest.raises(SettingsError, match="the option") as refusal:
        async with open_database(f"mongodb://user:{SECRET}@127.0.0.1/app?{query}", name="test"):
            pass
    assert query.rpartition("&")[2].partition("=")[0] in str(refusal.value)
    assert SECRET not in str(refusal.value)


async def test_options_of_mongodb_win_over_ours() -> None:
    """Of those that we have defaults for."""
    url = "mongodb://a,b/app?retryWrites=true&w=majority&maxpoolsize=7&connectTimeoutMS=1234&appName=shop"
    MongoSettings(service_name="test", database_url=SecretUrl(url))
    async with open_database(url, name="test") as database:
        options = database.client.options.pool_options
        assert (options.max_pool_size, options.connect_timeout) == (7, 1.234)


# ── what asyncpg is called with ──────────────────────────────────────────────────────────────────


def test_a_url_of_libpq_becomes_what_asyncpg_takes() -> None:
    """With its options moved to where asyncpg has them."""
    target = Target.of(
        "postgresql+asyncpg://user:p%40ss@a:1,b:2/app?connect_timeout=2&channel_binding=prefer&application_name=shop"
        "&target_session_attrs=primary&options=-c%20jit%3Doff"
    )
    assert target.dsn == (
        "postgresql://user:p%40ss@a:1,b:2/app?application_name=shop&target_session_attrs=primary&options=-c+jit%3Doff"
    )
    assert target.settings({"application_name": "ours", "lock_timeout": "1s"}) == {"lock_timeout": "1s"}
    assert [target.timeout_seconds(limit) for limit in (10.0, 1.0)] == [2.0, 1.0]


def test_without_options_ours_hold() -> None:
    """And no TLS is forced on a socket."""
    target = Target.of("postgresql:///app?host=/run/postgresql")
    assert target.timeout_seconds(3.0) == 3.0
    assert target.settings({"application_name": "ours"}) == {"application_name": "ours"}
    assert target.ssl is None


def test_the_authorities_of_the_system_verify_names() -> None:
    """`sslrootcert=system`, as in libpq 16."""
    target = Target.of("postgresql://host/app?sslmode=verify-full&sslrootcert=system")
    assert target.ssl is not None
    assert target.ssl.check_hostname
    assert target.dsn == "postgresql://host/app"


def test_a_file_that_is_not_there_is_named_by_its_option(tmp_path: Path) -> None:
    """Its path is not in the message."""
    with pytest.raises(SettingsError, match="sslrootcert names a file that can't be read") as refusal:
        Target.of(f"postgresql://host/app?sslmode=verify-ca&sslrootcert={tmp_path}/none.crt")
    assert str(tmp_path) not in str(refusal.value)


def test_a_mongodb_without_tls_is_told_from_one_that_is_down() -> None:
    """The remedy is another one."""
    down, plain = (
        read_error(AutoReconnect(words)) for words in ("refused", "SSL handshake failed: 127.0.0.1")
    )
    assert "TLS" not in str(down)
    assert "TLS can't be set up with it" in str(plain)
