"""What each kind of process needs on top: three capabilities, and the kinds that combine them."""

import re

from pydantic import Field, SecretStr, field_validator

from hybridkit.settings._secret_url import (
    AmqpUrl,
    HttpUrl,
    MongoUrl,
    PostgresUrl,
    RedisUrl,
    SecretUrl,
    refused,
)
from hybridkit.settings._service import ServiceSettings, required


class RabbitSettings(ServiceSettings):
    """For a process that publishes or consumes events.

    Attributes:
        rabbitmq_url: one broker, or several with one user: `amqp://user:password@a:5672,b:5672/`.
    """

    rabbitmq_url: AmqpUrl = required("amqps://user:password@rabbitmq:5671/")


class RedisSettings(ServiceSettings):
    """For a process with an idempotency guard, a cache, locks, limits or sessions.

    Attributes:
        redis_url: a server that evicts nothing (`maxmemory-policy noeviction`).
        redis_cache_url: a server that may evict keys; None uses `redis_url` for the cache too.
    """

    redis_url: RedisUrl = required("rediss://:password@redis:6379/0")
    redis_cache_url: RedisUrl | None = None


class DataClientSettings(ServiceSettings):
    """For a process that reaches data, which it does over HTTP only.

    Attributes:
        postgres_service_url: the PostgreSQL data service.
        mongo_service_url: the MongoDB data service.
    """

    postgres_service_url: HttpUrl = SecretUrl("http://127.0.0.1:8001")
    mongo_service_url: HttpUrl = SecretUrl("http://127.0.0.1:8002")


class ApiSettings(DataClientSettings, RedisSettings, RabbitSettings):
    """An HTTP application, by default on port 8000."""


class WorkerSettings(DataClientSettings, RedisSettings, RabbitSettings):
    """A consumer of events. Its `port` serves health and metrics, by default 8003."""

    port: int = Field(default=8003, ge=0, le=65535)


class BotSettings(DataClientSettings, RedisSettings, RabbitSettings):
    """A Telegram bot. Its `port` serves health and metrics, by default 8004.

    Attributes:
        bot_token: as @BotFather gave it.
        telegram_api_url: another address, for a Bot API server of one's own or for tests.
    """

    port: int = Field(default=8004, ge=0, le=65535)
    bot_token: SecretStr = required("123456:what-BotFather-gave")
    telegram_api_url: HttpUrl = SecretUrl("https://api.telegram.org")

    @field_validator("bot_token")
    @classmethod
    def _is_token(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[0-9]+:[A-Za-z0-9_-]+", value.get_secret_value()):
            raise refused("should be digits, a colon, and the token itself")
        return value


class PostgresSettings(RabbitSettings):
    """The PostgreSQL data service, by default on port 8001. Its relay publishes events.

    Attributes:
        database_url: `postgresql://user:password@host:5432/database`.
        database_pool_size: connections that one process has for requests; it has three more for itself.
    """

    port: int = Field(default=8001, ge=0, le=65535)
    database_url: PostgresUrl = required("postgresql://user:password@postgres:5432/app?sslmode=verify-full")
    database_pool_size: int = Field(default=10, ge=1, le=500)


class MongoSettings(ServiceSettings):
    """The MongoDB data service, by default on port 8002. Add `RabbitSettings` where it publishes events.

    Attributes:
        database_url: `mongodb://user:password@host:27017/database`.
    """

    port: int = Field(default=8002, ge=0, le=65535)
    database_url: MongoUrl = required("mongodb://user:password@mongo:27017/app?tls=true")
