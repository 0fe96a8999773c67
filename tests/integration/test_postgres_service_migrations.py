"""Schemas: from any number of replicas at once, each to the revision that its code needs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData

from hybridkit.dataservice import migrate, write_revision
from hybridkit.dataservice._postgres._audit._table import AuditRows
from hybridkit.dataservice._postgres._columns import SYSTEM
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._schema import LOCK_KEY, histories_of, migrating_connection
from hybridkit.errors import UnavailableError

FIRST = """
from alembic import op

revision = "0001"
down_revision = None

def upgrade() -> None:
    op.execute("CREATE TABLE colors (id integer PRIMARY KEY)")
"""

SECOND = """
from alembic import op

revision = "0002"
down_revision = "0001"

def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY colors_again ON colors (id)")
"""

BROKEN = """
from alembic import op

revision = "0003"
down_revision = "0002"

def upgrade() -> None:
    op.execute("CREATE TABLE half (id integer)")
    op.execute("nonsense")
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations of a service"
    folder.mkdir()
    (folder / "0001_colors.py").write_text(FIRST)
    return folder


async def tables(url: str) -> set[str]:
    async with migrating_connection(url) as connection:
        rows = await connection.exec_driver_sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {row[0] for row in rows}


async def revisions(url: str, table: str) -> set[str]:
    async with migrating_connection(url) as connection:
        return {row[0] for row in await connection.exec_driver_sql(f"SELECT version_num FROM {table}")}


async def test_both_histories_are_brought_to_their_ends(postgres_url: str, migrations: Path) -> None:
    """Hybridkit's tables and the service's are migrated, also by a revision that comes later."""
    await migrate(postgres_url, migrations=migrations)
    assert {"colors", "hk_keys", "hk_outbox", "hk_leases", "hk_secrets"} <= await tables(postgres_url)
    assert await revisions(postgres_url, "alembic_version") == {"0001"}
    (migrations / "0002_index.py").write_text(SECOND)
    await migrate(postgres_url, migrations=migrations)
    assert await revisions(postgres_url, "alembic_version") == {"0002"}


async def test_racing_replicas_do_not_collide(postgres_url: str, migrations: Path) -> None:
    """Replicas that start together run each revision once."""
    (migrations / "0002_index.py").write_text(SECOND)
    await asyncio.gather(*(migrate(postgres_url, migrations=migrations) for _ in range(6)))
    assert await revisions(postgres_url, "alembic_version") == {"0002"}


async def test_a_replica_waits_for_the_other_one_but_not_for_ever(postgres_url: str) -> None:
    """While another process holds the lock, migrating is refused after the given time."""
    pool = Pool(postgres_url, pool_size=1, application_name="the other one")
    async with pool.session() as session:
        from sqlalchemy import func, select

        await session.execute(select(func.pg_advisory_xact_lock(LOCK_KEY)))
        with pytest.raises(UnavailableError, match="another process"):
            await migrate(postgres_url, wait_seconds=0.1)
    await migrate(postgres_url, wait_seconds=0.1)
    await pool.close()


async def test_a_broken_revision_leaves_nothing_behind(postgres_url: str, migrations: Path) -> None:
    """The revisions before it stay; of its own statements none does."""
    (migrations / "0002_index.py").write_text(SECOND)
    (migrations / "0003_broken.py").write_text(BROKEN)
    with pytest.raises(Exception, match="nonsense"):
        await migrate(postgres_url, migrations=migrations)
    assert await revisions(postgres_url, "alembic_version") == {"0002"}
    assert "half" not in await tables(postgres_url)


async def test_an_older_deployment_leaves_a_newer_schema_alone(postgres_url: str, migrations: Path) -> None:
    """During a rolling update the old replicas go on, and may even start again."""
    (migrations / "0002_index.py").write_text(SECOND)
    await migrate(postgres_url, migrations=migrations)
    (migrations / "0002_index.py").unlink()
    await migrate(postgres_url, migrations=migrations)
    assert await revisions(postgres_url, "alembic_version") == {"0002"}


async def test_a_database_that_is_away_is_unavailable() -> None:
    """Without a server, migrating raises the error that a start waits for."""
    with pytest.raises(UnavailableError):
        await migrate("postgresql://nobody@127.0.0.1:1/nothing")


async def test_readiness_is_red_until_the_schema_is_there(
    postgres_url: str, migrations: Path, make_tables: Any, run_service: Any
) -> None:
    """The check names the revision that the database lacks."""
    await make_tables(postgres_url)
    async with run_service(postgres_url, migrations=migrations) as service:
        assert (await service.get("/ready")).status_code == 200
        await service.sql("UPDATE alembic_version SET version_num = '0000' WHERE false")
        await service.sql("DELETE FROM alembic_version")
        with pytest.raises(UnavailableError, match="0001"):
            await service.store.check()
        await service.sql("INSERT INTO alembic_version VALUES ('0001')")
        await service.store.check()


async def test_our_own_tables_are_what_the_code_declares(postgres_url: str) -> None:
    """After a migration, Alembic finds no difference to the declared tables."""
    await migrate(postgres_url)

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_server_default": True,
                "version_table": "hk_revision",
                "include_name": lambda name, *_: not str(name).startswith("hk_audit_rest"),  # a partition
                "target_metadata": [SYSTEM, AuditRows.metadata],
            },
        )
        # Alembic has the server compare two defaults, and two random numbers differ.
        found = list(compare_metadata(context, [SYSTEM, AuditRows.metadata]))  # type: ignore[arg-type] # takes several
        return [each for each in found if each[0][:1] != ("modify_default",) or each[0][3] != "incarnation"]

    async with migrating_connection(postgres_url) as connection:
        assert await connection.run_sync(differences) == []


async def test_they_can_be_taken_away_again(postgres_url: str) -> None:
    """A downgrade to the base leaves only the version table."""
    from alembic import command

    await migrate(postgres_url)
    [own] = histories_of(None)
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(lambda sync: command.downgrade(own._config(sync), "base"))
    assert await tables(postgres_url) == {"hk_revision"}


async def test_a_revision_is_written_from_the_declared_tables(
    postgres_url: str, tmp_path: Path, service_tables: MetaData
) -> None:
    """It leaves hybridkit's own tables out, and run it makes what is declared."""
    folder = tmp_path / "migrations"
    await migrate(postgres_url)
    written = await write_revision(
        postgres_url, metadata=service_tables, migrations=folder, message="create items"
    )
    assert [written] == [*folder.glob("*.py")]
    assert "hk_" not in written.read_text()
    await migrate(postgres_url, migrations=folder)
    assert {"items", "owners"} <= await tables(postgres_url)
    newest = await write_revision(
        postgres_url, metadata=service_tables, migrations=folder, message="nothing new"
    )
    assert "op." not in newest.read_text().replace("from alembic import op", "")
