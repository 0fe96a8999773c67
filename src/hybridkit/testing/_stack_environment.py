"""The processes of a stack, and the environment that each one needs of the others."""

import json
import os
import secrets
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from hybridkit.dev import Service, free_port
from hybridkit.dev._applications import load_application, settings_class_of
from hybridkit.errors import DeclarationError, MisuseError
from hybridkit.jobs import Jobs
from hybridkit.settings import (
    BotSettings,
    DataClientSettings,
    DataServiceSettings,
    MongoSettings,
    PostgresSettings,
    RabbitSettings,
    RedisSettings,
    ServiceSettings,
)

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackService:
    """A process of a `Stack`.

    Attributes:
        module: the module that is run, as in `python -m MODULE`.
        name: the name in the stack; by default the default of `service_name` in the settings, else the name of the
            module or of its package. A second process of a module needs a name of its own.
        environment: variables in addition to those that the stack sets; they come first.
        port: the port that it listens on; None takes a free one.
    """

    module: str = field(kw_only=False)
    name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The URLs of a stack's servers and fakes; None for what it does not have.

    Attributes:
        redis: the Redis server.
        rabbitmq: the broker.
        postgres: the database of the PostgreSQL data service.
        mongo: the database of the MongoDB data service.
        fake_postgres_service: the fake in place of a PostgreSQL data service.
        fake_mongo_service: the fake in place of a MongoDB data service.
        telegram: the fake Telegram.
        telegram_token: the only token that it accepts.
    """

    redis: str | None = field(repr=False)
    rabbitmq: str | None = field(repr=False)
    postgres: str | None = field(repr=False)
    mongo: str | None = field(repr=False)
    fake_postgres_service: str | None
    fake_mongo_service: str | None
    telegram: str
    telegram_token: str = field(repr=False)


class Member:
    """A process of a stack with its settings class, its port and its place among the others.

    Args:
        declared: what the test has declared.
    """

    def __init__(self, declared: StackService) -> None:
        self.declared = declared
        self.settings_class = settings_class_of(load_application(declared.module))
        self.service_name = _default_name(self.settings_class) or _name_of(declared.module)
        self.name = declared.name or self.service_name
        self.port = free_port() if declared.port is None else declared.port
        self.management_port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.management_url = f"http://{LOOPBACK}:{self.management_port}"

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.url})"

    def uses(self, *kinds: type[ServiceSettings]) -> bool:
        """Return whether the settings are of one of these kinds."""
        return issubclass(self.settings_class, kinds)

    @property
    def jobs(self) -> Sequence[str]:
        """The names of the jobs that its module declares."""
        declared = vars(sys.modules[self.declared.module]).values()
        return [job.name for jobs in declared if isinstance(jobs, Jobs) for job in jobs]

    @property
    def is_data_service(self) -> bool:
        """Whether it is one of the processes that the others need, and so starts before them."""
        return self.uses(DataServiceSettings)


class Members:
    """The processes of a stack and the keys by which they know each other.

    Args:
        declared: the processes.
        callers: further names that call the data services, such as that of the test.

    Raises:
        DeclarationError: two processes have the same name, or a module has no settings class.
    """

    def __init__(self, declared: Iterable[str | StackService], *, callers: Collection[str]) -> None:
        asked = [each if isinstance(each, StackService) else StackService(module=each) for each in declared]
        self.all = [Member(each) for each in asked]
        if len(self.by_name) < len(self.all):
            names = sorted(member.name for member in self.all)
            raise DeclarationError(
                f"two processes have the same name: {', '.join(names)}; use StackService(module=…, name=…)"
            )
        own = {member.service_name for member in self.all if not member.is_data_service}
        self.keys = {name: secrets.token_urlsafe(32) for name in sorted({*own, *callers})}

    @property
    def by_name(self) -> Mapping[str, Member]:
        """The processes by their names in the stack."""
        return {member.name: member for member in self.all}

    @property
    def data_services(self) -> Sequence[Member]:
        """The processes that start before the others."""
        return [member for member in self.all if member.is_data_service]

    @property
    def business_services(self) -> Sequence[Member]:
        """The processes that start last."""
        return [member for member in self.all if not member.is_data_service]

    @property
    def servers(self) -> set[str]:
        """The servers that the processes need, by the name of the argument of `Stack`."""
        kinds: dict[str, type[ServiceSettings]] = {
            "redis": RedisSettings,
            "rabbitmq": RabbitSettings,
            "postgres": PostgresSettings,
            "mongo": MongoSettings,
        }
        return {name for name, kind in kinds.items() if any(member.uses(kind) for member in self.all)}

    def data_service(self, kind: type[ServiceSettings]) -> Member | None:
        """Return the first data service of a kind, `PostgresSettings` or `MongoSettings`; None for none."""
        return next((member for member in self.data_services if member.uses(kind)), None)

    def with_job(self, job: str) -> Member:
        """Return the process whose module has a job of that name.

        Raises:
            MisuseError: no process has one, or several have.
        """
        found = [member for member in self.all if job in member.jobs]
        if len(found) != 1:
            known = ", ".join(
                f"{member.name}: {', '.join(member.jobs)}" for member in self.all if member.jobs
            )
            count = "several processes of the stack have" if found else "no process of the stack has"
            raise MisuseError(
                f"{count} a job {job!r}; there are {known or 'none'}; name the worker with service="
            )
        return found[0]

    @property
    def have_bot(self) -> bool:
        """Whether one of the processes is a bot."""
        return any(member.uses(BotSettings) for member in self.all)

    def environment(
        self, member: Member, addresses: Addresses, *, start_seconds: float
    ) -> dict[str, str | None]:
        """Return the environment of a process: its settings, and none of its parent's by accident.

        Raises:
            DeclarationError: it is a data service, and the stack has no database for it.
        """
        inherited = dict.fromkeys(name.upper() for name in member.settings_class.model_fields)
        return {
            **inherited,
            "ENVIRONMENT": "test",
            "LOG_FORMAT": "json",
            "SERVICE_NAME": member.service_name,
            "HOST": LOOPBACK,
            "PORT": str(member.port),
            "MANAGEMENT_HOST": LOOPBACK,
            "MANAGEMENT_PORT": str(member.management_port),
            "START_BUDGET_SECONDS": f"{start_seconds:g}",
            **self._servers(member, addresses),
            **self._data(member, addresses),
            **member.declared.environment,
        }

    def service(self, member: Member, addresses: Addresses, *, start_seconds: float) -> Service:
        """Return how a process is started, with the arguments and errors of `environment`."""
        environment = self.environment(member, addresses, start_seconds=start_seconds)
        return Service(
            name=member.name,
            argv=[sys.executable, "-m", member.declared.module],
            environment={"PYTHONPATH": _import_path(), **environment},
            ready_url=f"{member.management_url}/ready",
        )

    def _servers(self, member: Member, addresses: Addresses) -> dict[str, str | None]:
        settings: dict[str, str | None] = {}
        if member.uses(RedisSettings):
            settings["REDIS_URL"] = addresses.redis
        if member.uses(RabbitSettings):
            settings["RABBITMQ_URL"] = addresses.rabbitmq
        if member.uses(BotSettings):
            settings |= {"TELEGRAM_API_URL": addresses.telegram, "BOT_TOKEN": addresses.telegram_token}
        return settings

    def _data(self, member: Member, addresses: Addresses) -> dict[str, str | None]:
        if member.is_data_service:
            keys = {"SERVICE_TOKEN_KEYS": json.dumps(self.keys)} if self.keys else {}
            return {"DATABASE_URL": _database_of(member, addresses), **keys}
        if not member.uses(DataClientSettings):
            return {}
        postgres, mongo = self.data_service(PostgresSettings), self.data_service(MongoSettings)
        settings: dict[str, str | None] = {"SERVICE_TOKEN_KEY": self.keys[member.service_name]}
        if postgres is not None:
            settings |= {"POSTGRES_SERVICE_URL": postgres.url, "POSTGRES_SERVICE_NAME": postgres.service_name}
        elif addresses.fake_postgres_service is not None:
            settings["POSTGRES_SERVICE_URL"] = addresses.fake_postgres_service
        if mongo is not None:
            settings |= {"MONGO_SERVICE_URL": mongo.url, "MONGO_SERVICE_NAME": mongo.service_name}
        elif addresses.fake_mongo_service is not None:
            settings["MONGO_SERVICE_URL"] = addresses.fake_mongo_service
        return settings


def _database_of(member: Member, addresses: Addresses) -> str:
    if "DATABASE_URL" in member.declared.environment:
        return member.declared.environment["DATABASE_URL"]
    kind, url = ("mongo", addresses.mongo) if member.uses(MongoSettings) else ("postgres", addresses.postgres)
    if url is None:
        raise DeclarationError(
            f"{member.name} needs a database: give the stack {kind}=URL, such as the fixture {kind}_url; or leave"
            f" {member.declared.module} out, and give {kind}=FakeDataService(…) to those that call it"
        )
    parts = urlsplit(url)
    has_name = kind == "postgres" or parts.path.strip("/")
    return url if has_name else urlunsplit(parts._replace(path=f"/{member.service_name}"))


def _import_path() -> str:
    """Return the places of this process's modules, for a child that is to find the same ones."""
    installed = {sys.prefix, sys.base_prefix}
    folders = [
        path for path in sys.path if path and not any(path.startswith(f"{each}/") for each in installed)
    ]
    return os.pathsep.join(dict.fromkeys(folders))


def _default_name(settings_class: type[ServiceSettings]) -> str | None:
    default = settings_class.model_fields["service_name"].default
    return default if isinstance(default, str) else None


def _name_of(module: str) -> str:
    parts = module.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in {"main", "__main__"} else parts[-1]
