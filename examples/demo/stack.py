"""The five services and a fake Telegram, as processes on this machine."""

import json
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from hybridkit.dev import Service, Supervisor, free_port
from hybridkit.security import ServiceTokenIssuer
from hybridkit.testing import FakeTelegram

LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0

DATA_SERVICES: Final = ("db_postgres_service", "db_mongo_service")
BUSINESS_SERVICES: Final = ("api_service", "worker_service", "bot_service")
OBSERVER: Final = "demo"
"""As whom the scenario itself looks at the data."""
SERVICES: Final = (*DATA_SERVICES, *BUSINESS_SERVICES)
TELEGRAM: Final = "fake_telegram"

_PREFERRED_PORTS: Final = {
    "api_service": 8000,
    "db_postgres_service": 8001,
    "db_mongo_service": 8002,
    "worker_service": 8003,
    "bot_service": 8004,
    TELEGRAM: 8081,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """The URLs of the servers."""

    postgres: str = field(repr=False)
    mongo: str = field(repr=False)
    redis: str = field(repr=False)
    rabbitmq: str = field(repr=False)


class Stack:
    """The processes with their ports and environments.

    Args:
        urls: the URLs of the servers.
    """

    def __init__(self, urls: Urls) -> None:
        self.urls = urls
        self.ports = _choose_ports(_PREFERRED_PORTS)
        self.management_ports = _choose_ports({name: _PREFERRED_PORTS[name] + 1000 for name in SERVICES})
        self.telegram_token = FakeTelegram().token
        self.keys = {name: secrets.token_urlsafe(32) for name in (*BUSINESS_SERVICES, OBSERVER)}

    def __repr__(self) -> str:
        return f"Stack({self.ports})"

    def url(self, name: str) -> str:
        """Return the base URL of a process."""
        return f"http://{LOOPBACK}:{self.ports[name]}"

    def management_url(self, name: str) -> str:
        """Return the base URL of a service's management port, which has its readiness and metrics."""
        return f"http://{LOOPBACK}:{self.management_ports[name]}"

    async def start(self, supervisor: Supervisor) -> None:
        """Start all processes in the order of their dependencies, and wait until they are ready."""
        await supervisor.start(self._telegram(), timeout_seconds=START_SECONDS)
        await supervisor.start(*map(self._service, DATA_SERVICES), timeout_seconds=START_SECONDS)
        await supervisor.start(*map(self._service, BUSINESS_SERVICES), timeout_seconds=START_SECONDS)

    def _telegram(self) -> Service:
        command = ["-m", "hybridkit.testing", "telegram", "--port", str(self.ports[TELEGRAM])]
        return Service(
            name=TELEGRAM,
            argv=[sys.executable, *command, "--token", self.telegram_token],
            ready_url=f"{self.url(TELEGRAM)}/health",
        )

    def _service(self, name: str) -> Service:
        return Service(
            name=name,
            argv=[sys.executable, "-m", f"examples.{name}.main"],
            environment={
                "ENVIRONMENT": "test",
                "LOG_FORMAT": "json",
                "SERVICE_NAME": name,
                "HOST": LOOPBACK,
                "PORT": str(self.ports[name]),
                "MANAGEMENT_PORT": str(self.management_ports[name]),
                "START_BUDGET_SECONDS": str(START_SECONDS),
                **self._environment(name),
                **self._keys(name),
            },
            ready_url=f"{self.management_url(name)}/ready",
        )

    def _environment(self, name: str) -> dict[str, str]:
        """Return the settings of a service, and no more: a business service has no database's URL."""
        shared = {"REDIS_URL": self.urls.redis, "RABBITMQ_URL": self.urls.rabbitmq}
        users = {"POSTGRES_SERVICE_URL": self.url("db_postgres_service")}
        match name:
            case "db_postgres_service":
                return {"DATABASE_URL": self.urls.postgres, "RABBITMQ_URL": self.urls.rabbitmq}
            case "db_mongo_service":
                return {"DATABASE_URL": _with_database(self.urls.mongo)}
            case "worker_service":
                return {**shared, "MONGO_SERVICE_URL": self.url("db_mongo_service")}
            case "bot_service":
                telegram = {"TELEGRAM_API_URL": self.url(TELEGRAM), "BOT_TOKEN": self.telegram_token}
                return {**shared, **users, **telegram}
            case _:
                return {**shared, **users}

    def _keys(self, name: str) -> dict[str, str]:
        """Return the keys that a service needs: a data service those of its callers, a caller its own."""
        if name in DATA_SERVICES:
            return {"SERVICE_TOKEN_KEYS": json.dumps(self.keys)}
        return {"SERVICE_TOKEN_KEY": self.keys[name]}

    def authorization(self, callee: str) -> Callable[[], str]:
        """Return what authenticates the scenario to a data service."""
        return ServiceTokenIssuer(OBSERVER, key=self.keys[OBSERVER], audience=callee).header


def _choose_ports(preferred: Mapping[str, int]) -> dict[str, int]:
    """Return the documented ports, with others in place of those that are taken."""
    return {name: port if _is_free(port) else free_port() for name, port in preferred.items()}


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services will
        try:
            attempt.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _with_database(mongo_url: str) -> str:
    parts = urlsplit(mongo_url)
    return mongo_url if parts.path.strip("/") else urlunsplit(parts._replace(path="/hybridkit_demo"))
