"""Settings of each kind of process: three capabilities, and the kinds that combine them."""

import re
from typing import Final, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationInfo, field_validator

from hybridkit.errors import DeclarationError, MissingExtraError
from hybridkit.settings._edge import EdgeSettings
from hybridkit.settings._secret_url import (
    AmqpUrl,
    HttpUrl,
    MongoUrl,
    PostgresUrl,
    RedisUrl,
    SecretUrl,
    refused,
)
from hybridkit.settings._service import ServiceSettings, checked_name, required
from hybridkit.settings._service_keys import signing_key, verifying_keys


class RabbitSettings(ServiceSettings):
    """Settings of a process that publishes or consumes events.

    Attributes:
        rabbitmq_url: one broker, or several with one user: `amqp://user:password@a:5672,b:5672/`.
        process_events: whether to publish the events of `hybridkit.events.process`: of the start, the health, the stop.
    """

    rabbitmq_url: AmqpUrl = required("amqps://user:password@rabbitmq:5671/")
    process_events: bool = False


class RedisSettings(ServiceSettings):
    """Settings of a process that uses Redis, as the idempotency guard does.

    Attributes:
        redis_url: a server that evicts nothing (`maxmemory-policy noeviction`).
        redis_cache_url: a server that may evict keys; None uses `redis_url` for the cache too.
    """

    redis_url: RedisUrl = required("rediss://:password@redis:6379/0")
    redis_cache_url: RedisUrl | None = None


_ON_THIS_MACHINE: Final = {
    "postgres_service_url": SecretUrl("http://127.0.0.1:8001"),
    "mongo_service_url": SecretUrl("http://127.0.0.1:8002"),
}


class DataClientSettings(ServiceSettings):
    """Settings of a process that reaches data, which it does over HTTP only.

    Attributes:
        allow_unauthenticated_calls: lets production call data services without a token, where those believe whoever
            says its name.
        postgres_service_url: the URL of the PostgreSQL data service. In development it is `http://127.0.0.1:8001` if it
            isn't set; elsewhere nothing provides a client without it.
        mongo_service_url: the URL of the MongoDB data service, in development `http://127.0.0.1:8002` if it isn't set.
        postgres_service_name: the `service_name` of the PostgreSQL data service, for which this service's tokens are
            made.
        mongo_service_name: the `service_name` of the MongoDB data service.
        service_token_key: proves to both data services who calls: a secret of at least 32 bytes that they share with
            this service, or this service's Ed25519 private key as PEM. Without it the service only says its name, which
            production refuses where a data service's URL is set.
    """

    allow_unauthenticated_calls: bool = False
    postgres_service_url: HttpUrl | None = None
    mongo_service_url: HttpUrl | None = None
    postgres_service_name: str = "db_postgres_service"
    mongo_service_name: str = "db_mongo_service"
    service_token_key: SecretStr | None = None

    @field_validator("postgres_service_url", "mongo_service_url", mode="before")
    @classmethod
    def _on_this_machine(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.data.get("environment") == "development":
            return _ON_THIS_MACHINE[str(info.field_name)]
        return value

    @field_validator("postgres_service_name", "mongo_service_name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        return checked_name(value)

    @field_validator("service_token_key")
    @classmethod
    def _proves_in_production(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        calls_data = any(info.data.get(url) is not None for url in _ON_THIS_MACHINE)
        unproven = value is None and calls_data and not info.data.get("allow_unauthenticated_calls")
        if unproven and info.data.get("environment", "production") == "production":
            raise refused(
                "should be the secret that this service shares with the data services that it calls: without, they"
                " can't tell it from anybody else, which production refuses; or set ALLOW_UNAUTHENTICATED_CALLS=true"
                " if they allow unauthenticated callers"
            )
        return value

    @field_validator("service_token_key")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            if value is not None:
                signing_key(value.get_secret_value())
        except (DeclarationError, MissingExtraError) as error:
            raise refused(str(error)) from None
        return value


class ApiSettings(EdgeSettings, DataClientSettings, RedisSettings, RabbitSettings):
    """Settings of an HTTP application, by default on port 8000."""


class WorkerSettings(DataClientSettings, RedisSettings, RabbitSettings):
    """Settings of a consumer of events. Its management port is 9003 by default, and it has no other."""

    port: int = Field(default=8003, ge=0, le=65535)


class BotSettings(DataClientSettings, RedisSettings, RabbitSettings):
    """Settings of a Telegram bot. Its management port is 9004 by default; `port`, 8004, is only for a webhook.

    Attributes:
        bot_token: the token that @BotFather gave.
        telegram_api_url: the address of another Bot API server, such as a local one or a fake for tests.
        updates: how updates reach the handlers. `polling` asks Telegram for them; `webhook` has Telegram send them;
            `queue` stores them in RabbitMQ first, so that several replicas share the work.
        webhook_url: the public HTTPS URL that leads to `port`, to which Telegram sends updates. One without a path gets
            a path that nobody can guess. With `queue`, updates are polled for without it.
        webhook_networks: the networks that may call the webhook, such as Telegram's, `149.154.160.0/20` and
            `91.108.4.0/22`; empty for all. Behind a proxy the last address of `X-Forwarded-For` counts.
    """

    port: int = Field(default=8004, ge=0, le=65535)
    bot_token: SecretStr = required("123456:what-BotFather-gave")
    telegram_api_url: HttpUrl = SecretUrl("https://api.telegram.org")
    updates: Literal["polling", "webhook", "queue"] = "polling"
    webhook_url: HttpUrl | None = None
    webhook_networks: tuple[IPvAnyNetwork, ...] = ()

    @field_validator("webhook_url")
    @classmethod
    def _is_where_telegram_sends(cls, value: SecretUrl | None, info: ValidationInfo) -> SecretUrl | None:
        if value is None and info.data.get("updates") == "webhook":
            raise refused(
                "should be the public HTTPS URL that leads to PORT, such as https://bot.example.com, with"
                " UPDATES=webhook"
            )
        return value

    @field_validator("bot_token")
    @classmethod
    def _is_token(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[0-9]+:[A-Za-z0-9_-]+", value.get_secret_value()):
            raise refused("should be digits, a colon, and the token itself")
        return value


class DataServiceSettings(ServiceSettings):
    """Settings of a data service, of either kind.

    Attributes:
        allow_unauthenticated_callers: lets production believe callers who only say who they are, where the network
            itself keeps everybody else out.
        service_token_keys: for the name of each calling service, the secret that it shares with this one (at least 32
            bytes), or its Ed25519 public key as PEM. Empty believes every caller, which production refuses.
    """

    allow_unauthenticated_callers: bool = False
    service_token_keys: dict[str, SecretStr] = Field(default_factory=dict)

    @field_validator("service_token_keys")
    @classmethod
    def _needed_in_production(cls, value: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        trusted = info.data.get("allow_unauthenticated_callers")
        if not value and not trusted and info.data.get("environment", "production") == "production":
            raise refused(
                'should have a key for each calling service, such as {"users_api": "…"}: without, anybody who can'
                " connect may claim to be any of them, which production refuses; or set"
                " ALLOW_UNAUTHENTICATED_CALLERS=true if nobody else can connect"
            )
        return value

    @field_validator("service_token_keys")
    @classmethod
    def _verify(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            checked_name(name)
        try:
            verifying_keys({name: key.get_secret_value() for name, key in value.items()})
        except (DeclarationError, MissingExtraError) as error:
            raise refused(str(error)) from None
        return value


class PostgresSettings(DataServiceSettings, RabbitSettings):
    """Settings of the PostgreSQL data service, by default on port 8001. Its relay publishes events.

    Attributes:
        database_url: `postgresql://user:password@host:5432/database`.
        database_pool_size: the connections that one process has for requests; it has three more for itself.
        audit_days: for how many days the audit trail is kept, to the end of a month.
    """

    port: int = Field(default=8001, ge=0, le=65535)
    database_url: PostgresUrl = required("postgresql://user:password@postgres:5432/app?sslmode=verify-full")
    database_pool_size: int = Field(default=10, ge=1, le=500)
    audit_days: int = Field(default=400, ge=1, le=36_500)


class MongoSettings(DataServiceSettings):
    """Settings of the MongoDB data service, by default on port 8002. Add `RabbitSettings` where it publishes events.

    Attributes:
        database_url: `mongodb://user:password@host:27017/database`.
        audit_days: for how many days the audit trail is kept.
    """

    port: int = Field(default=8002, ge=0, le=65535)
    database_url: MongoUrl = required("mongodb://user:password@mongo:27017/app?tls=true")
    audit_days: int = Field(default=400, ge=1, le=36_500)
