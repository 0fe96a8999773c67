"""A data service's declarations beside its database, for the commands that look after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hybridkit.dev._applications import applications_of
from hybridkit.errors import DeclarationError, MissingExtraError
from hybridkit.settings import MongoSettings

try:
    from hybridkit.dataservice._service import DataServiceDeclaration
except ImportError:
    raise MissingExtraError("hybridkit migrate", extra="postgres", or_extra="mongo") from None


@dataclass(frozen=True, slots=True)
class Pending:
    """A part of the schema that a database lacks.

    Attributes:
        kind: `revision`, `index`, or `trigger` for a table of a service without revisions.
        name: the revision, the collection and the index, or the table.
        purpose: the first line of the revision's docstring; empty for an index.
    """

    kind: str
    name: str
    purpose: str = ""


def declarations_in(module: ModuleType) -> Sequence[DataServiceDeclaration]:
    """Return the data services that a module declares."""
    applications = applications_of(module)
    return [each.state.data_service for each in applications if hasattr(each.state, "data_service")]


def is_mongo(declared: DataServiceDeclaration) -> bool:
    """Return whether a data service is on MongoDB; it is on PostgreSQL otherwise."""
    return issubclass(declared.settings_class, MongoSettings)


async def pending_in(declared: DataServiceDeclaration, url: str) -> Sequence[Pending]:
    """Return the revisions, triggers or indexes that the database lacks, in the order in which they are made.

    Raises:
        UnavailableError: the database does not answer.
    """
    if is_mongo(declared):
        from hybridkit.dataservice._mongo._store import missing_indexes  # noqa: PLC0415 - an extra of its own

        indexes = await missing_indexes(url, _collections(declared))
        return [Pending("index", f"{collection}.{name}") for collection, name in indexes]
    from hybridkit.dataservice._postgres._schema import (  # noqa: PLC0415 - an extra of its own
        pending_revisions,
        pending_triggers,
    )

    revisions = await pending_revisions(url, migrations=declared.migrations)
    pending = [Pending("revision", name, purpose) for name, purpose in revisions]
    if declared.migrations is None:
        tables = await pending_triggers(url, tables=cast("Mapping[Any, Any]", declared.tables))
        pending += [Pending("trigger", name, "the audit trail") for name in tables]
    return pending


async def migrate_to(declared: DataServiceDeclaration, url: str, *, wait_seconds: float) -> None:
    """Run the missing revisions, or create the missing indexes.

    Raises:
        UnavailableError: the database does not answer, or another process has been migrating for `wait_seconds`.
        DeclarationError: a revision fails; the message has the database's words.
    """
    if is_mongo(declared):
        from hybridkit.dataservice._mongo._store import open_mongo_store  # noqa: PLC0415 - an extra of its own

        async with open_mongo_store(url, _collections(declared), name="hybridkit_migrate"):
            return
    from hybridkit.dataservice._postgres._schema import migrate  # noqa: PLC0415 - an extra of its own

    tables = cast("Mapping[Any, Any]", declared.tables)
    await migrate(url, migrations=declared.migrations, tables=tables, wait_seconds=wait_seconds)


async def statements_for(declared: DataServiceDeclaration, url: str) -> str:
    """Return the SQL of the missing revisions."""
    from hybridkit.dataservice._postgres._schema import pending_statements  # noqa: PLC0415 - an extra of its own

    return await pending_statements(url, migrations=declared.migrations)


async def write_revision_of(declared: DataServiceDeclaration, url: str, message: str) -> Path | None:
    """Write the revision from the database's tables to the declared ones; None where nothing differs.

    Raises:
        DeclarationError: the database is not at the newest revision, the tables have several declarative bases, or the
            service has no folder for revisions.
    """
    from hybridkit.dataservice._postgres._schema import write_changes  # noqa: PLC0415 - an extra of its own

    if declared.migrations is None:
        raise DeclarationError(
            "the service has no folder for revisions: give create_data_service(…, migrations=Path(…))"
        )
    if pending := await pending_in(declared, url):
        raise DeclarationError(
            f"the database lacks {', '.join(each.name for each in pending)}: hybridkit migrate comes first"
        )
    # hybridkit's own tables have migrations of their own.
    tables: list[Any] = [*declared.tables.values(), *declared.streams.values()]
    own = [each for each in tables if not _is_ours(each)]
    bases = {id(table.metadata): table.metadata for table in own}
    if len(bases) != 1:
        raise DeclarationError(
            f"the tables have {len(bases)} declarative bases, and their revisions are one history: use one base"
        )
    return await write_changes(
        url,
        metadata=next(iter(bases.values())),
        migrations=declared.migrations,
        message=message,
        tables=cast("Mapping[Any, Any]", declared.tables),
    )


async def rebase_streams(declared: DataServiceDeclaration, url: str) -> Mapping[str, int]:
    """Begin a new epoch of each log that was restored into another cluster, and return the epochs by stream.

    Raises:
        UnavailableError: the database does not answer.
    """
    from hybridkit.dataservice._postgres._driver._pool import Pool  # noqa: PLC0415 - an extra of its own
    from hybridkit.dataservice._postgres._streams._epochs import rebase  # noqa: PLC0415
    from hybridkit.dataservice._postgres._streams._table import StreamTable  # noqa: PLC0415

    pool = Pool(url, pool_size=1, application_name="hybridkit_streams")
    try:
        return await rebase(
            pool, [StreamTable(stream, mapped) for stream, mapped in declared.streams.items()]
        )
    finally:
        await pool.close()


def _is_ours(table: Any) -> bool:
    return str(table.__table__.name).startswith("hk_")


def _collections(declared: DataServiceDeclaration) -> Mapping[str, Any]:
    from hybridkit.dataservice._mongo._collection import ResourceCollection  # noqa: PLC0415 - an extra of its own

    collections = cast("Mapping[Any, Any]", declared.tables)
    return {resource.name: ResourceCollection(resource, each) for resource, each in collections.items()}
