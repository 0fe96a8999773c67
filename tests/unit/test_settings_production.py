"""What production does not start with, and what it does start with."""

import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr
from structlog.testing import capture_logs

from hybridkit.adapters._running import _dependencies
from hybridkit.settings import (
    DataClientSettings,
    DataServiceSettings,
    HttpUrl,
    MongoUrl,
    PostgresUrl,
    RabbitSettings,
    RedisUrl,
    SecretUrl,
    ServiceSettings,
    SettingsError,
)

GOOD = "kV3-mB7_qT1xYw9z"


class Settings(ServiceSettings):
    service_name: str = "users_api"
    jwt_secret: SecretStr = SecretStr(GOOD)
    web_url: HttpUrl | None = None
    redis_url: RedisUrl | None = None
    postgres_url: PostgresUrl | None = None
    mongo_url: MongoUrl | None = None
    other_url: SecretUrl | None = None


def problems_of(**arguments: Any) -> tuple[str, ...]:
    values: dict[str, Any] = {"environment": "production", "_env_file": None, **arguments}
    try:
        Settings(**values)
    except SettingsError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    "secret",
    [
        "changeme",
        "change-me",
        "Secret",
        "PASSWORD!",
        "<your-secret>",
        "replace_me_please",
        "xxxxxxxxxxxxxxxx",
        "guest",
        "",
    ],
)
def test_a_placeholder_is_refused(secret: str) -> None:
    """In any spelling, and an empty one too."""
    (problem,) = problems_of(jwt_secret=secret)
    assert problem.startswith(
        "JWT_SECRET: is a placeholder, which production refuses; make one with: python -c"
    )


def test_a_short_secret_is_refused() -> None:
    """The message has a command that makes a good one."""
    (problem,) = problems_of(jwt_secret=GOOD[:11])
    assert problem.startswith("JWT_SECRET: is shorter than the 12 characters that production wants; make one")
    assert problems_of(jwt_secret=GOOD[:12]) == ()


@pytest.mark.parametrize("password", ["guest", "change%6De", "short", ""])
def test_a_weak_password_in_a_url_is_refused(password: str) -> None:
    """Also one that is percent-encoded."""
    (problem,) = problems_of(redis_url=f"rediss://cache:{password}@redis:6379/0")
    assert problem.startswith("REDIS_URL: has a password that is ")


def test_a_url_may_do_without_a_password() -> None:
    """The server may know its clients otherwise."""
    assert problems_of(redis_url="rediss://redis:6379/0", web_url="https://key@sentry.example/1") == ()


@pytest.mark.parametrize(
    ("name", "url", "remedy"),
    [
        ("web_url", "http://db_postgres_service:8000", "use https://"),
        ("redis_url", f"redis://:{GOOD}@redis:6379/0", "use rediss://"),
        ("postgres_url", f"postgresql://app:{GOOD}@db/app", "add ?sslmode=verify-full"),
        ("postgres_url", f"postgres://app:{GOOD}@db/app?sslmode=prefer", "add ?sslmode=verify-full"),
        ("mongo_url", f"mongodb://app:{GOOD}@db/app?tls=false", "add ?tls=true"),
    ],
)
def test_an_unencrypted_connection_to_another_host_is_refused(name: str, url: str, remedy: str) -> None:
    """The message says what to change in this kind of URL."""
    (problem,) = problems_of(**{name: url})
    assert problem == (
        f"{name.upper()}: is not encrypted, which production refuses; {remedy},"
        " or set ALLOW_PLAINTEXT_URLS=true if the network itself is trusted"
    )
    assert problems_of(**{name: url}, allow_plaintext_urls=True) == ()


def test_all_that_is_wrong_with_one_url_is_told_at_once() -> None:
    """One start shows both."""
    (problem,) = problems_of(redis_url="redis://:guest@redis:6379/0")
    assert "has a password that is a placeholder" in problem
    assert "; and is not encrypted" in problem


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("web_url", "https://db_postgres_service:8000"),
        ("web_url", "http://localhost:8000"),
        ("web_url", "http://127.0.0.2:8000"),
        ("redis_url", "redis://[::1]:6379/0"),
        ("postgres_url", f"postgresql+asyncpg://app:{GOOD}@db/app?sslmode=require"),
        ("postgres_url", f"postgresql://app:{GOOD}@/app?host=/run/postgresql"),
        ("mongo_url", f"mongodb://app:{GOOD}@a:1,b:2/app?tls=true"),
        ("mongo_url", f"mongodb+srv://app:{GOOD}@cluster/app"),
        ("other_url", "ldap://directory"),
    ],
)
def test_encrypted_local_and_unknown_connections_are_accepted(name: str, url: str) -> None:
    """What never leaves the machine needs no TLS."""
    assert problems_of(**{name: url}) == ()


def test_one_remote_host_among_local_ones_is_enough() -> None:
    """The client may choose any of them."""
    with pytest.raises(SettingsError, match="use amqps://"):
        RabbitSettings(
            environment="production", service_name="relay", rabbitmq_url=SecretUrl("amqp://localhost,rabbit/")
        )


@pytest.mark.parametrize("environment", ["development", "test"])
def test_only_production_is_checked(environment: str) -> None:
    """Development works with simple passwords."""
    assert problems_of(environment=environment, jwt_secret="changeme", web_url="http://data:8000") == ()


def test_defaults_are_checked_too() -> None:
    """A default in code is where secrets are forgotten."""

    class Forgotten(Settings):
        signing_key: SecretStr = SecretStr("changeme")

    with pytest.raises(SettingsError, match="SIGNING_KEY: is a placeholder"):
        Forgotten(environment="production")


def test_an_unknown_environment_is_checked_like_production() -> None:
    """A slip in the name must not switch the checks off, or hide their findings until the next start."""
    found = problems_of(environment="prod", jwt_secret="changeme")
    assert [problem.partition(":")[0] for problem in found] == ["ENVIRONMENT", "JWT_SECRET"]


class ClientSettings(DataClientSettings):
    service_name: str = "api_service"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, {"db_postgres_service", "db_mongo_service"}),
        ({"environment": "test"}, set[str]()),
        ({"environment": "production"}, set[str]()),
        (
            {
                "environment": "production",
                "mongo_service_url": "http://127.0.0.1:8002",
                "service_token_key": GOOD * 2,
            },
            {"db_mongo_service"},
        ),
    ],
)
def test_only_development_takes_a_data_service_for_there_whose_url_nobody_has_set(
    values: dict[str, Any], found: set[str]
) -> None:
    """A guess is right on a developer's machine; elsewhere the log says which setting is missing."""
    with capture_logs() as lines:
        opened = {each.name for each in _dependencies("worker", ClientSettings(**values))}
    assert opened == found
    assert len([line for line in lines if "_SERVICE_URL is not set" in line["reason"]]) == 2 - len(found)


def client_settings(**values: Any) -> ClientSettings:
    return ClientSettings(**values)


def test_production_wants_a_caller_that_proves_who_it_is() -> None:
    """Without a key the first call would be refused, or a data service would believe anybody."""
    url = {"postgres_service_url": "https://db_postgres_service"}
    with pytest.raises(
        SettingsError, match=r"SERVICE_TOKEN_KEY: should be the secret .* ALLOW_UNAUTHENTICATED_CALLS"
    ):
        client_settings(environment="production", **url)
    client_settings(environment="test", **url)
    client_settings(environment="production")
    client_settings(environment="production", allow_unauthenticated_calls=True, **url)
    client_settings(environment="production", service_token_key=GOOD * 2, **url)


class DataSettings(DataServiceSettings):
    service_name: str = "db_postgres_service"


def data_settings(**arguments: Any) -> DataSettings:
    values: dict[str, Any] = {"_env_file": None, **arguments}
    return DataSettings(**values)


def test_production_wants_callers_that_prove_who_they_are() -> None:
    """A name alone may be anybody's."""
    with pytest.raises(SettingsError, match="ALLOW_UNAUTHENTICATED_CALLERS=true"):
        data_settings(environment="production")
    data_settings(environment="test")
    data_settings(environment="production", allow_unauthenticated_callers=True)
    data_settings(environment="production", service_token_keys={"a": SecretStr(GOOD * 2)})


def test_a_weak_key_of_a_caller_is_named() -> None:
    """By the caller's name, as there are several."""
    keys = {"api_service": SecretStr(GOOD), "bot_service": SecretStr("changeme")}
    with pytest.raises(SettingsError, match="SERVICE_TOKEN_KEYS: has for bot_service a placeholder"):
        data_settings(environment="production", service_token_keys=keys)


def test_keys_that_no_token_can_be_made_with_are_among_the_problems() -> None:
    """They would end the start later, after the broker and the database have been waited for."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    keys = {"a": "short", "b": GOOD * 2, "c": GOOD * 2, "d": pem}
    with pytest.raises(SettingsError) as caught:
        data_settings(service_token_keys={name: SecretStr(key) for name, key in keys.items()}, port="x")
    [port, wrong] = sorted(caught.value.problems)
    assert port.startswith("PORT")
    for told in (
        "key of a can't be used: a shared secret has at least 32",
        "b and c have the same",
        "key of d",
    ):
        assert told in wrong
    with pytest.raises(SettingsError, match=r"SERVICE_TOKEN_KEYS: .*snake_case"):
        data_settings(service_token_keys={"a\r\nb": SecretStr(GOOD * 2)})
    for key in ("short", "-----BEGIN PRIVATE KEY-----\nno key\n-----END PRIVATE KEY-----"):
        with pytest.raises(SettingsError, match="SERVICE_TOKEN_KEY: ") as caught:
            ClientSettings(service_token_key=SecretStr(key))
        assert "no key" not in str(caught.value)
    assert ClientSettings(service_token_key=SecretStr(pem)).service_token_key is not None


def test_a_pem_key_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start of the process, on both sides."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    pem = SecretStr("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(SettingsError, match=r"SERVICE_TOKEN_KEYS: .*hybridkit\[security\]"):
        data_settings(service_token_keys={"a": pem})
    with pytest.raises(SettingsError, match=r"SERVICE_TOKEN_KEY: .*hybridkit\[security\]"):
        ClientSettings(service_token_key=pem)
