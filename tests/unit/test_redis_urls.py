"""URLs of one server, of a master that sentinels know, and of a cluster."""

import pytest

from hybridkit.coordination import connect_redis
from hybridkit.coordination._urls import target_of
from hybridkit.errors import SettingsError
from hybridkit.settings import RedisSettings, SecretUrl

SECRET = "hunter2-and-more"


class Settings(RedisSettings):
    """Redis only."""


def problems(url: str, **more: object) -> str:
    try:
        Settings(service_name="test", redis_url=SecretUrl(url), **more)  # type: ignore[arg-type]
    except SettingsError as error:
        assert SECRET not in str(error)
        return str(error)
    return ""


def test_a_url_of_sentinels_has_their_hosts_the_name_and_the_credentials_of_both() -> None:
    """A port may be left out, and the options are redis-py's."""
    query = "ssl_ca_certs=%2Fca.pem&sentinel_username=watch&sentinel_password=s%20ecret"
    target = target_of(f"rediss+sentinel://user:p%40w@a:26380,[::1],c/mymaster/2?{query}")
    assert target.kind == "sentinel"
    assert target.master == "mymaster"
    assert list(target.addresses) == [("a", 26380), ("::1", 26379), ("c", 26379)]
    assert target.plain_url == "rediss://user:p%40w@a:26380/2?ssl_ca_certs=%2Fca.pem"
    assert target.sentinel_options == {"username": "watch", "password": "s ecret"}


@pytest.mark.parametrize("path", ["", "/", "/0"])
def test_a_url_of_a_cluster_has_the_nodes_that_are_asked_first(path: str) -> None:
    """A cluster has one database."""
    target = target_of(f"redis+cluster://[::1]:7001,b{path}")
    assert target.kind == "cluster"
    assert list(target.addresses) == [("::1", 7001), ("b", 6379)]
    assert target.plain_url == "redis://[::1]:7001/0"


BAD = {
    f"redis+sentinel://user:{SECRET}@a:26379": "names no master",
    f"redis+sentinel://user:{SECRET}@a:26379/": "names no master",
    f"redis+sentinel://user:{SECRET}@a:26379/mymaster/one": "names no master",
    f"redis+cluster://user:{SECRET}@a:7001/3": "names a database",
}


@pytest.mark.parametrize("url", BAD)
def test_a_url_that_leads_nowhere_is_refused_with_the_remedy(url: str) -> None:
    """By the settings and by `connect_redis`, without the password."""
    assert f"REDIS_URL: {BAD[url]}" in problems(url)
    with pytest.raises(SettingsError, match=BAD[url]) as caught:
        connect_redis(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis+sentinel://user:{SECRET}@a:x{SECRET}/mymaster",
        f"redis+sentinel://user:{SECRET}@[::1/mymaster",
        f"redis+cluster://user:{SECRET}@",
        f"redis+cluster://user:{SECRET}/more@a:7001",
    ],
)
def test_hosts_that_can_not_be_read_are_an_error_without_the_password(url: str) -> None:
    """Python's own message would quote it."""
    with pytest.raises(SettingsError, match=r"host|names a database") as caught:
        connect_redis(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_option_that_redis_py_does_not_know_is_named() -> None:
    """As for one server."""
    with pytest.raises(SettingsError, match="the option sentinel_name can't be used"):
        connect_redis("redis+sentinel://a/mymaster?sentinel_name=x")


def test_an_option_that_means_nothing_to_a_cluster_is_named() -> None:
    """Nobody would follow it."""
    with pytest.raises(SettingsError, match="the option retry_on_timeout can't be used with a cluster"):
        connect_redis("redis+cluster://a:7001?retry_on_timeout=true")


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_production_wants_tls_to_other_hosts(kind: str) -> None:
    """Of all hosts, and with the scheme to use."""
    path = "/mymaster" if kind == "sentinel" else ""
    url = f"redis+{kind}://user:{SECRET}@127.0.0.1:7001,redis:7002{path}"
    production = {"environment": "production"}
    assert f"use rediss+{kind}://" in problems(url, **production)
    assert "not encrypted" not in problems(url.replace("redis+", "rediss+"), **production)
    assert "not encrypted" not in problems(url.replace("redis:7002", "localhost:7002"), **production)


def test_a_url_shows_hosts_and_name_only() -> None:
    """User, password and options are masked."""
    url = SecretUrl(f"redis+sentinel://user:{SECRET}@a:1,b:2/mymaster/0?sentinel_password={SECRET}")
    assert str(url) == "redis+sentinel://**********@a:1,b:2/mymaster/0?**********"
