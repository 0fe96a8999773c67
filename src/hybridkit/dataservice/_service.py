"""Make a data service, a FastAPI application, from declarations."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI
from pydantic import BaseModel

from hybridkit.adapters.fastapi import create_app
from hybridkit.dataservice._housekeeping import Housekeeping
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._callers import Callers, Grant, check_grants
from hybridkit.dataservice._http._own_calls import CallHandler
from hybridkit.dataservice._http._routes import add_routes
from hybridkit.dataservice._outbox._relay import EventSink, Relay
from hybridkit.dataservice._store._audit import AUDIT_DAYS
from hybridkit.dataservice._store._protocol import Store
from hybridkit.dataservice._traced_store import TracedStore
from hybridkit.errors import DeclarationError, MissingExtraError
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustPublisher
from hybridkit.observability import is_tracing
from hybridkit.resources._resource import AnyCall, AnyResource
from hybridkit.settings import MongoSettings, ServiceSettings

if TYPE_CHECKING:
    from hybridkit.dataservice._mongo._collection import DocumentCollection
    from hybridkit.dataservice._postgres._columns import RecordColumns
    from hybridkit.dataservice._postgres._streams._columns import StreamColumns
    from hybridkit.streams._stream import AnyStream

type OpenStore = Callable[[Any], AbstractAsyncContextManager[Store]]
type OpenEventSink = Callable[[], AbstractAsyncContextManager[EventSink]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataServiceDeclaration:
    """The declarations of a data service, which `app.state.data_service` keeps for the command line.

    Attributes:
        settings_class: the class of its settings.
        tables: the place of each resource in the database.
        streams: the table of each kind of stream.
        migrations: the folder with the service's revisions; None for none.
    """

    settings_class: type[ServiceSettings]
    tables: "Mapping[AnyResource, type[RecordColumns] | DocumentCollection]"
    streams: "Mapping[AnyStream, type[StreamColumns]]"
    migrations: Path | None


def create_data_service(
    settings_class: type[ServiceSettings],
    tables: "Mapping[AnyResource, type[RecordColumns] | DocumentCollection]",
    *,
    streams: "Mapping[AnyStream, type[StreamColumns]] | None" = None,
    calls: Mapping[AnyCall, CallHandler] | None = None,
    migrations: Path | str | None = None,
    publisher: OpenEventSink | None = None,
    grants: Mapping[str, Grant] | None = None,
    saga_data: Mapping[str, type[BaseModel]] | None = None,
    title: str = "Data service",
    version: str = "0.1.0",
) -> FastAPI:
    """Make an application that serves the contract's routes for these resources from one database.

    At its start it waits for the database and migrates it, or creates missing indexes. A relay publishes the events
    that writes emit. Without a broker (settings that are no `RabbitSettings`, and no `publisher`) the service refuses
    to emit. RabbitMQ may go away while it runs: events wait in the outbox.

    Args:
        settings_class: `PostgresSettings` or `MongoSettings`, or a subclass; read once, at the start.
        tables: where each resource is stored: a declarative class in PostgreSQL, a `DocumentCollection` in MongoDB.
        streams: the table of each kind of stream, a declarative class with `StreamColumns`; only on PostgreSQL.
        calls: the service's own calls, each with an async function that takes its request and a `CallContext`.
        migrations: the folder with the service's Alembic revisions; without one its tables are left as they are.
        publisher: opens an event sink to use instead of RabbitMQ, for example in tests.
        saga_data: the data models of sagas, by their names, so that their personal fields are erased with a person.
        grants: what each calling service may do, by its name; None lets every caller do everything.
        title: the title in the OpenAPI document.
        version: the version in the OpenAPI document.

    Raises:
        DeclarationError: a resource does not fit its table, a call does not fit its handler, a name is taken twice, a
            grant names what the service doesn't have, or MongoDB is to keep streams.
    """
    streams = streams or {}
    if "database_url" not in settings_class.model_fields:
        raise DeclarationError(
            f"{settings_class.__name__} has no database_url; use PostgresSettings or MongoSettings"
        )
    if issubclass(settings_class, MongoSettings):
        if streams:
            raise DeclarationError(
                f"{', '.join(stream.name for stream in streams)}: streams of events need PostgreSQL, as their log is in"
                " the order of its transactions; keep them in a PostgreSQL data service"
            )
        open_store = _store_on_mongo(cast("Mapping[AnyResource, DocumentCollection]", tables))
    else:
        open_store = _store_on_postgres(
            cast("Mapping[AnyResource, type[RecordColumns]]", tables), streams, migrations
        )
    bodies = _bodies_by_name(tables)
    check_grants(grants or {}, tables, calls or {}, streams)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        resources: ServiceResources = app.state.resources
        settings = app.state.settings
        app.state.callers = Callers.of(settings, grants)
        store = await resources.open(
            "database", lambda: open_store(settings), probe=lambda opened: opened.check()
        )
        await resources.open("housekeeping", lambda: Housekeeping(store))
        app.state.store = _traced(store, settings, tables)
        app.state.can_emit = await _start_relay(resources, store, publisher)
        yield

    app = create_app(settings_class, title=title, version=version, lifespan=lifespan, internal=True)
    add_routes(app, bodies, calls, streams=streams, saga_data=saga_data)
    app.state.data_service = DataServiceDeclaration(
        settings_class=settings_class,
        tables=tables,
        streams=streams,
        migrations=None if migrations is None else Path(migrations),
    )
    return app


def _traced(store: Store, settings: Any, tables: Mapping[Any, Any]) -> Store:
    """Return the store, with spans where the process records any."""
    if not is_tracing():
        return store
    names = {
        resource.name: getattr(table, "__tablename__", "") or getattr(table, "name", "")
        for resource, table in tables.items()
    }
    named = {resource: name for resource, name in names.items() if name}
    return TracedStore(store, settings.database_url.get_secret_value(), named)


async def _start_relay(resources: ServiceResources, store: Store, publisher: OpenEventSink | None) -> bool:
    """Start the relay if the store has an outbox and there is a broker, and return whether it runs."""
    outbox, publishing = store.outbox, await _open_publisher(resources, publisher)
    if outbox is None or publishing is None:
        return False
    await resources.open("relay", lambda: Relay(outbox, publishing))
    return True


def _store_on_postgres(
    tables: "Mapping[AnyResource, type[RecordColumns]]",
    streams: "Mapping[AnyStream, type[StreamColumns]]",
    migrations: Path | str | None,
) -> OpenStore:
    try:
        from hybridkit.dataservice._postgres._store import POOL_SIZE, open_postgres_store  # noqa: PLC0415 - an extra
        from hybridkit.dataservice._postgres._streams._table import StreamTable  # noqa: PLC0415
        from hybridkit.dataservice._postgres._table import ResourceTable  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("a data service on PostgreSQL", extra="postgres") from None

    named = {resource.name: ResourceTable(resource, mapped) for resource, mapped in tables.items()}
    kinds = {stream.name: StreamTable(stream, mapped) for stream, mapped in streams.items()}

    def open_store(settings: Any) -> AbstractAsyncContextManager[Store]:
        return open_postgres_store(
            settings.database_url.get_secret_value(),
            named,
            streams=kinds,
            name=settings.service_name,
            pool_size=getattr(settings, "database_pool_size", POOL_SIZE),
            migrations=migrations,
            mapped=tables,
            audit_days=getattr(settings, "audit_days", AUDIT_DAYS),
            wait_seconds=settings.start_budget_seconds,
        )

    return open_store


def _store_on_mongo(collections: "Mapping[AnyResource, DocumentCollection]") -> OpenStore:
    try:
        from hybridkit.dataservice._mongo._collection import ResourceCollection  # noqa: PLC0415 - an extra of its own
        from hybridkit.dataservice._mongo._store import open_mongo_store  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("a data service on MongoDB", extra="mongo") from None

    named = {
        resource.name: ResourceCollection(resource, declared) for resource, declared in collections.items()
    }

    def open_store(settings: Any) -> AbstractAsyncContextManager[Store]:
        return open_mongo_store(
            settings.database_url.get_secret_value(),
            named,
            name=settings.service_name,
            audit_days=getattr(settings, "audit_days", AUDIT_DAYS),
        )

    return open_store


async def _open_publisher(resources: ServiceResources, given: OpenEventSink | None) -> EventSink | None:
    if given is not None:
        return await resources.open("publisher", given)
    # The outbox keeps events while the broker is away, so the service stays ready without it.
    resources.health.remove("rabbitmq")
    publisher = resources.providers.get(RobustPublisher)
    return publisher if isinstance(publisher, RobustPublisher) else None


def _bodies_by_name(resources: Iterable[AnyResource]) -> dict[str, RequestBodies]:
    bodies: dict[str, RequestBodies] = {}
    for resource in resources:
        if resource.name in bodies:
            raise DeclarationError(f"two resources are called {resource.name!r}")
        bodies[resource.name] = RequestBodies(resource)
    return bodies
