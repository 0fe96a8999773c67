"""Migrate a database to the schema that the code needs, from any number of replicas at a time.

There are two histories, each with its own version table: that of hybridkit's tables (`hk_revision`) and the service's
(`alembic_version`, Alembic's default). Both are run by the `env.py` in `_migrations`, so a service needs only a folder
of revisions.
"""

import asyncio
import io
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import MigrationScript
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from hybridkit.dataservice._postgres._audit._triggers import (
    AuditTrigger,
    add_trigger_changes,
    differing_tables,
    install,
    triggers_of,
)
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._driver._errors import database_error
from hybridkit.errors import DeclarationError, NotSupportedError, UnavailableError

if TYPE_CHECKING:
    from hybridkit.dataservice._postgres._columns import RecordColumns
    from hybridkit.resources._resource import AnyResource

LOCK_KEY: Final = 0x6879627269646B69
"""The advisory lock that one replica holds while it migrates."""
LOCK_TIMEOUT: Final = "5s"
"""How long a migration waits for a table's lock; all other statements on the table wait behind it."""

# Newlines separate the folders in `version_locations`, as a folder may have a space; renamed in Alembic 1.16.
_SEPARATOR_OPTION: Final = (
    "path_separator" if hasattr(Config, "get_version_locations_list") else "version_path_separator"
)
_FOLDER: Final = Path(__file__).with_name("_migrations")


@dataclass(frozen=True, kw_only=True)
class History:
    """A history of revisions.

    Attributes:
        versions: the folder of revisions.
        version_table: the table in which a database keeps the revision that it has reached.
    """

    versions: Path
    version_table: str

    @cached_property
    def script(self) -> ScriptDirectory:
        """The revisions, read from the folder once."""
        return ScriptDirectory.from_config(self._config())

    def missing(self, connection: Connection) -> Sequence[str]:
        """Return the newest revisions of the code that the database has not reached.

        A database whose revision the code doesn't know was migrated by a newer deployment: nothing is missing.
        """
        reached = self._reached(connection)
        known = {revision.revision for revision in self.script.walk_revisions()}
        if not known.issuperset(reached):
            return ()
        return sorted(set(self.script.get_heads()) - set(reached))

    def pending(self, connection: Connection) -> Sequence[Script]:
        """Return all revisions that `upgrade` would run, in their order."""
        if not self.missing(connection):
            return ()
        walk = self.script.walk_revisions
        done = {each.revision for head in self._reached(connection) for each in walk(head=head)}
        return [each for each in walk() if each.revision not in done][::-1]

    def _reached(self, connection: Connection) -> Sequence[str]:
        options = {"version_table": self.version_table}
        return MigrationContext.configure(connection, opts=options).get_current_heads()

    def upgrade(self, connection: Connection) -> None:
        """Run the missing revisions."""
        missing = self.missing(connection)
        connection.rollback()  # Alembic begins and commits by itself, each revision on its own
        if missing:
            command.upgrade(self._config(connection), "heads")

    def statements(self, connection: Connection) -> str:
        """Return the SQL of the missing revisions, for people to run.

        Raises:
            NotSupportedError: the database is at several revisions of this history, as branches were not merged.
        """
        reached = self._reached(connection)
        if not self.missing(connection):
            return ""
        if len(reached) > 1:
            raise NotSupportedError(
                f"the database is at {len(reached)} revisions ({', '.join(reached)}), from which no SQL can be written"
            )
        output = io.StringIO()
        command.upgrade(self._config(output=output), f"{''.join(reached) or 'base'}:heads", sql=True)
        return output.getvalue()

    def write(
        self,
        connection: Connection,
        message: str,
        metadata: MetaData,
        *,
        triggers: Sequence[AuditTrigger] = (),
        only_changes: bool = False,
    ) -> Path | None:
        """Write the revision that leads from the database's tables to the declared ones, and return its file.

        Args:
            connection: the connection to a database at the newest revision.
            message: the purpose of the revision.
            metadata: the declared tables.
            triggers: the declared triggers of the audit trail.
            only_changes: whether to write nothing, and return None, where nothing differs.
        """
        self.versions.mkdir(parents=True, exist_ok=True)

        def complete(_context: Any, _revision: Any, directives: list[MigrationScript]) -> None:
            upgrade, downgrade = directives[0].upgrade_ops, directives[0].downgrade_ops
            if upgrade is None or downgrade is None:
                return
            add_trigger_changes(connection, triggers, upgrade.ops, downgrade.ops)
            if only_changes and upgrade.is_empty():
                directives.clear()

        config = self._config(connection, metadata)
        made = command.revision(config, message, autogenerate=True, process_revision_directives=complete)
        return Path(cast("Script", made).path) if made else None

    def _config(
        self,
        connection: Connection | None = None,
        metadata: MetaData | None = None,
        *,
        output: io.StringIO | None = None,
    ) -> Config:
        # Alembic prints which file it writes, past `stdout`.
        config = Config(stdout=io.StringIO(), output_buffer=output, cmd_opts=Namespace(quiet=True))
        config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
        config.set_main_option("version_locations", str(self.versions).replace("%", "%%"))
        config.set_main_option(_SEPARATOR_OPTION, "newline")
        config.attributes |= {
            "connection": connection,
            "metadata": metadata,
            "version_table": self.version_table,
            "include_name": _is_ours_to_change,
        }
        return config


def histories_of(migrations: Path | str | None) -> tuple[History, ...]:
    """Return hybridkit's history and, with a folder of revisions, the service's."""
    own = History(versions=_FOLDER / "versions", version_table="hk_revision")
    if migrations is None:
        return (own,)
    return (own, History(versions=Path(migrations), version_table="alembic_version"))


async def migrate(
    url: str,
    *,
    migrations: Path | str | None = None,
    tables: "Mapping[AnyResource, type[RecordColumns]] | None" = None,
    wait_seconds: float = 60.0,
) -> None:
    """Migrate the database to the newest revision. One replica does it while the others wait.

    Args:
        url: `postgresql://user:password@host:5432/name`.
        migrations: the folder with the service's revisions; without one only hybridkit's tables are made, and the
            triggers of the audit trail on the given tables.
        tables: the tables of the service's resources, as for `create_data_service`.
        wait_seconds: how long to wait for another replica that migrates.

    Raises:
        UnavailableError: PostgreSQL does not answer or takes no writes, or another replica is still migrating.
        DeclarationError: PostgreSQL refuses a statement of a revision; the message has its words.
    """
    try:
        async with migrating_connection(url) as connection, _locked(connection, wait_seconds):
            for history in histories_of(migrations):
                await connection.run_sync(history.upgrade)
            if migrations is None and tables is not None:
                await connection.run_sync(install, triggers_of(tables))
                await connection.commit()
    except DBAPIError as error:
        found = database_error(error)
        if isinstance(found, UnavailableError):
            raise found from error
        raise DeclarationError(f"a revision fails, and nothing of it is kept: {error.orig}") from error


def missing_revisions(connection: Connection, histories: Sequence[History]) -> Sequence[str]:
    """Return the newest revisions of the code, of all histories, that the database has not reached."""
    return [revision for history in histories for revision in history.missing(connection)]


async def write_revision(
    url: str,
    *,
    metadata: MetaData,
    migrations: Path | str,
    message: str,
    tables: "Mapping[AnyResource, type[RecordColumns]] | None" = None,
) -> Path:
    """Write the revision that leads from the database's tables to the declared ones, for people to review.

    Args:
        url: the URL of a database at the newest revision.
        metadata: the metadata of the declarative base.
        migrations: the folder with the service's revisions.
        message: the purpose of the revision, in a few words; part of the file's name.
        tables: the tables of the service's resources, whose triggers for the audit trail are compared too.

    Returns:
        The path of the file.
    """

    def write(connection: Connection) -> Path | None:
        return histories_of(migrations)[-1].write(
            connection, message, metadata, triggers=triggers_of(tables or {})
        )

    async with migrating_connection(url) as connection:
        return cast("Path", await connection.run_sync(write))


async def write_changes(
    url: str,
    *,
    metadata: MetaData,
    migrations: Path,
    message: str,
    tables: "Mapping[AnyResource, type[RecordColumns]]",
) -> Path | None:
    """Write a revision as `write_revision` does, but none, and return None, where nothing differs."""

    def write(connection: Connection) -> Path | None:
        return histories_of(migrations)[-1].write(
            connection, message, metadata, triggers=triggers_of(tables), only_changes=True
        )

    async with migrating_connection(url) as connection:
        return await connection.run_sync(write)


async def pending_revisions(url: str, *, migrations: Path | str | None) -> Sequence[tuple[str, str]]:
    """Return the revisions that `migrate` would run, in their order, each with its purpose."""

    def pending(connection: Connection) -> Sequence[tuple[str, str]]:
        found = [each for history in histories_of(migrations) for each in history.pending(connection)]
        return [(each.revision, each.doc.partition("\n")[0]) for each in found]

    async with migrating_connection(url) as connection:
        return await connection.run_sync(pending)


async def pending_triggers(url: str, *, tables: "Mapping[AnyResource, type[RecordColumns]]") -> Sequence[str]:
    """Return the tables whose triggers `migrate` would change, for a service without revisions of its own."""
    async with migrating_connection(url) as connection:
        return await connection.run_sync(differing_tables, triggers_of(tables))


async def pending_statements(url: str, *, migrations: Path | str | None) -> str:
    """Return the SQL that `migrate` would run; empty where nothing is missing.

    Raises:
        NotSupportedError: the database is at several revisions of a history.
    """

    def statements(connection: Connection) -> str:
        return "".join(history.statements(connection) for history in histories_of(migrations))

    async with migrating_connection(url) as connection:
        return await connection.run_sync(statements)


@asynccontextmanager
async def migrating_connection(url: str) -> AsyncGenerator[AsyncConnection]:
    """Open a connection for as long as a migration may take; a service's pool would drop it much earlier."""

    async def connected() -> Any:
        return await connect(
            url,
            timeout_seconds=10.0,
            command_seconds=3600.0,
            application_name="hybridkit_migrate",
            lock_timeout=LOCK_TIMEOUT,
        )

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connected, poolclass=NullPool, hide_parameters=True
    )
    try:
        try:
            connection = await engine.connect()
        except (DBAPIError, TimeoutError, OSError) as error:
            raise database_error(error) or error from error
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        await engine.dispose()


@asynccontextmanager
async def _locked(connection: AsyncConnection, wait_seconds: float) -> AsyncGenerator[None]:
    """Hold the lock for migrations, which belongs to the session and so ends with the connection, not before."""
    give_up = time.monotonic() + wait_seconds
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
        await connection.rollback()
        if time.monotonic() > give_up:
            raise UnavailableError(f"another process has been migrating for more than {wait_seconds:.0f} s")
        await asyncio.sleep(0.1)
    await connection.commit()
    yield


def _is_ours_to_change(
    name: str | None,
    type_: Literal["schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint"],
    _parents: Any,
) -> bool:
    """Leave hybridkit's own tables out of what a service's revision is made from."""
    return not (type_ == "table" and name is not None and name.startswith("hk_"))
