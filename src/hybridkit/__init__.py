"""Typed building blocks for microservices that reach data over HTTP and each other through events.

Every name here is loaded when it is first used (PEP 562), so `import hybridkit` costs nothing and needs no extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridkit.adapters.aiogram import run_bot as run_bot
    from hybridkit.adapters.dependencies import Context as Context
    from hybridkit.adapters.dependencies import Mongo as Mongo
    from hybridkit.adapters.dependencies import Postgres as Postgres
    from hybridkit.adapters.dependencies import Publisher as Publisher
    from hybridkit.adapters.dependencies import Redis as Redis
    from hybridkit.adapters.fastapi import create_app as create_app
    from hybridkit.adapters.fastapi import run_api as run_api
    from hybridkit.adapters.worker import run_worker as run_worker
    from hybridkit.clients import MongoDataClient as MongoDataClient
    from hybridkit.clients import PostgresDataClient as PostgresDataClient
    from hybridkit.context import RequestContext as RequestContext
    from hybridkit.dataservice import create_data_service as create_data_service
    from hybridkit.errors import HybridkitError as HybridkitError
    from hybridkit.events import Command as Command
    from hybridkit.events import Event as Event
    from hybridkit.events import EventEnvelope as EventEnvelope
    from hybridkit.idempotency import IdempotencyGuard as IdempotencyGuard
    from hybridkit.messaging import RobustConsumer as RobustConsumer
    from hybridkit.messaging import RobustPublisher as RobustPublisher
    from hybridkit.resources import Call as Call
    from hybridkit.resources import Query as Query
    from hybridkit.resources import Record as Record
    from hybridkit.resources import Resource as Resource
    from hybridkit.retry import Retry as Retry
    from hybridkit.settings import ApiSettings as ApiSettings
    from hybridkit.settings import BotSettings as BotSettings
    from hybridkit.settings import MongoSettings as MongoSettings
    from hybridkit.settings import PostgresSettings as PostgresSettings
    from hybridkit.settings import WorkerSettings as WorkerSettings

_HOMES = {
    "ApiSettings": "settings",
    "BotSettings": "settings",
    "Call": "resources",
    "Command": "events",
    "Context": "adapters.dependencies",
    "Event": "events",
    "EventEnvelope": "events",
    "HybridkitError": "errors",
    "IdempotencyGuard": "idempotency",
    "Mongo": "adapters.dependencies",
    "MongoDataClient": "clients",
    "MongoSettings": "settings",
    "Postgres": "adapters.dependencies",
    "PostgresDataClient": "clients",
    "PostgresSettings": "settings",
    "Publisher": "adapters.dependencies",
    "Query": "resources",
    "Record": "resources",
    "Redis": "adapters.dependencies",
    "RequestContext": "context",
    "Resource": "resources",
    "Retry": "retry",
    "RobustConsumer": "messaging",
    "RobustPublisher": "messaging",
    "WorkerSettings": "settings",
    "create_app": "adapters.fastapi",
    "create_data_service": "dataservice",
    "run_api": "adapters.fastapi",
    "run_bot": "adapters.aiogram",
    "run_worker": "adapters.worker",
}

__all__ = [
    "ApiSettings",
    "BotSettings",
    "Call",
    "Command",
    "Context",
    "Event",
    "EventEnvelope",
    "HybridkitError",
    "IdempotencyGuard",
    "Mongo",
    "MongoDataClient",
    "MongoSettings",
    "Postgres",
    "PostgresDataClient",
    "PostgresSettings",
    "Publisher",
    "Query",
    "Record",
    "Redis",
    "RequestContext",
    "Resource",
    "Retry",
    "RobustConsumer",
    "RobustPublisher",
    "WorkerSettings",
    "create_app",
    "create_data_service",
    "run_api",
    "run_bot",
    "run_worker",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
