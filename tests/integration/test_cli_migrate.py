"""`hybridkit migrate` and `hybridkit revision` against real databases, for a service with no `env.py` of its own."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from pymongo import MongoClient
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.dataservice import (
    DocumentCollection,
    DocumentIndex,
    RecordColumns,
    create_data_service,
)
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._schema import LOCK_KEY
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, PostgresSettings

pytestmark = pytest.mark.real_server


class NewNote(BaseModel):
    title: str


class Note(NewNote, Record):
    pass


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)
LINES = Resource("lines", record=Note, create=NewNote, update=NewNote)

type Service = Callable[..., str]


def table() -> type[RecordColumns]:
    class Base(DeclarativeBase):
        pass

    class NoteTable(RecordColumns, Base):
        __tablename__ = "notes"
        title: Mapped[str] = mapped_column(index=True)

    return NoteTable


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Declares data services, and returns their modules."""
    made: list[str] = []

    def declare(settings: type[PostgresSettings | MongoSettings], tables: Any, **options: Any) -> str:
        module = ModuleType(f"notes_service_{len(made)}")
        vars(module)["app"] = create_data_service(settings, tables, **options)
        sys.modules[module.__name__] = module
        made.append(module.__name__)
        return module.__name__

    yield declare
    for name in made:
        del sys.modules[name]


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    return tmp_path / "migrations"


@pytest.fixture
def notes(service: Service, migrations: Path) -> str:
    return service(PostgresSettings, {NOTES: table()}, migrations=migrations)


def hybridkit(*arguments: str, url: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, env={"DATABASE_URL": url})


def test_a_revision_is_written_applied_and_then_nothing_is_missing(
    notes: str, migrations: Path, postgres_url: str
) -> None:
    """From the declared tables to the database, by commands alone."""
    unmigrated = hybridkit("revision", notes, "-m", "create notes", "--database-url", postgres_url)
    assert unmigrated.exit_code == 1
    assert "the database lacks hk_0001" in unmigrated.output
    assert "hybridkit migrate comes first" in unmigrated.output

    assert hybridkit("migrate", notes, url=postgres_url).exit_code == 0
    written = hybridkit("revision", notes, "-m", "create notes", "--database-url", postgres_url)
    assert written.exit_code == 0, written.output
    [file] = migrations.glob("*_create_notes.py")
    assert written.output == f"{file}\n"

    checked = hybridkit("migrate", notes, "--check", "--json", url=postgres_url)
    assert checked.exit_code == 1
    [pending] = json.loads(checked.output)["pending"]
    assert (pending["kind"], pending["purpose"]) == ("revision", "create notes.")
    shown = hybridkit("migrate", notes, url=postgres_url)
    assert (shown.exit_code, shown.output.split()[:2]) == (0, ["done", "revision"])

    again = hybridkit("migrate", notes, "--check", url=postgres_url)
    assert (again.exit_code, again.output) == (0, "nothing is missing\n")
    nothing = hybridkit("revision", notes, "-m", "nothing new", "--database-url", postgres_url)
    assert (nothing.exit_code, nothing.output) == (0, "nothing differs: no revision is written\n")
    assert [*migrations.glob("*.py")] == [file]


def test_a_revision_needs_no_database_of_its_own(notes: str, migrations: Path) -> None:
    """Without a URL it is compared with a new one, to which the revisions so far have been applied."""
    assert "create_notes" in hybridkit("revision", notes, "-m", "create notes").output
    assert hybridkit("revision", notes, "-m", "again").output.startswith("nothing differs")


def test_the_sql_of_what_is_missing_does_what_migrate_does(
    notes: str, migrations: Path, postgres_url: str
) -> None:
    """A dry run changes nothing; people may run its statements themselves."""
    hybridkit("revision", notes, "-m", "create notes")
    printed = hybridkit("migrate", notes, "--sql", url=postgres_url)
    assert printed.exit_code == 0, printed.output
    assert "CREATE TABLE notes" in printed.output
    assert hybridkit("migrate", notes, "--check", url=postgres_url).exit_code == 1

    async def execute() -> None:
        connection = await connect(postgres_url, timeout_seconds=10.0, command_seconds=60.0)
        for statement in printed.output.strip().removesuffix(";").split(";\n\n"):  # one by one, as psql
            await connection.execute(statement)
        await connection.close()

    asyncio.run(execute())
    assert hybridkit("migrate", notes, "--check", url=postgres_url).output == "nothing is missing\n"
    assert hybridkit("migrate", notes, "--sql", url=postgres_url).output == ""


def test_while_another_process_migrates_the_command_gives_up_after_its_time(
    notes: str, postgres_url: str
) -> None:
    """Replicas don't race, as one lock is held by whoever migrates."""

    async def locked() -> Result:
        pool = Pool(postgres_url, pool_size=1, application_name="the other one")
        async with pool.session() as session:
            await session.execute(select(func.pg_advisory_xact_lock(LOCK_KEY)))
            result = await asyncio.to_thread(hybridkit, "migrate", notes, "--wait", "0.1", url=postgres_url)
        await pool.close()
        return result

    refused = asyncio.run(locked())
    assert refused.exit_code == 1
    assert "another process has been migrating" in refused.output


def test_a_revision_that_fails_is_told_in_one_line(notes: str, migrations: Path, postgres_url: str) -> None:
    """With the database's own words, and exit code 1."""
    migrations.mkdir()
    (migrations / "0001_broken.py").write_text(
        '"""Break."""\nfrom alembic import op\nrevision = "0001"\ndown_revision = None\n'
        'def upgrade() -> None:\n    op.execute("nonsense")\n'
    )
    failed = hybridkit("migrate", notes, url=postgres_url)
    assert failed.exit_code == 1
    assert "error: a revision fails, and nothing of it is kept:" in failed.output
    assert "nonsense" in failed.output


def test_branches_that_were_not_merged_have_no_sql(notes: str, migrations: Path, postgres_url: str) -> None:
    """The command says so; migrating itself works."""
    migrations.mkdir()
    for name, text in {"a": "select 1", "b": "select 2"}.items():
        (migrations / f"{name}.py").write_text(
            f'"""Branch."""\nfrom alembic import op\nrevision = "{name}"\ndown_revision = None\n'
            f'def upgrade() -> None:\n    op.execute("{text}")\n'
        )
    assert hybridkit("migrate", notes, url=postgres_url).exit_code == 0
    (migrations / "c.py").write_text(
        '"""Merge."""\nrevision = "c"\ndown_revision = ("a", "b")\ndef upgrade() -> None:\n    pass\n'
    )
    refused = hybridkit("migrate", notes, "--sql", url=postgres_url)
    assert refused.exit_code == 1
    assert "the database is at 2 revisions" in refused.output
    assert "c" in hybridkit("migrate", notes, "--check", url=postgres_url).output


def test_on_mongodb_indexes_are_made(service: Service, mongo_url: str) -> None:
    """The check names what is missing, and the command creates it."""
    collection = DocumentCollection(indexes=(DocumentIndex("title", unique=True),))
    module = service(MongoSettings, {NOTES: collection})
    checked = hybridkit("migrate", module, "--check", url=mongo_url)
    assert checked.exit_code == 1
    assert "pending  index  notes.title" in checked.output
    assert hybridkit("migrate", module, url=mongo_url).exit_code == 0
    with MongoClient[Any](mongo_url) as client:
        assert "title" in client.get_default_database()["notes"].index_information()
    assert hybridkit("migrate", module, "--check", url=mongo_url).output == "nothing is missing\n"
    assert hybridkit("migrate", module, "--sql", url=mongo_url).exit_code == 2
    refused = hybridkit("revision", module, "-m", "x")
    assert (refused.exit_code, "only indexes are made" in refused.output) == (2, True)


def test_the_database_is_that_of_the_service_s_settings(
    notes: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes from a file with secrets, as in a container."""
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("SERVICE_NAME", "notes")
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1/")
    (tmp_path / "database_url").write_text(postgres_url)
    assert hybridkit("migrate", notes, "--check").exit_code == 1


def test_what_can_t_be_migrated_is_refused(service: Service, postgres_url: str) -> None:
    """A module without a data service, a URL of another kind, tables of two bases, no folder for revisions."""
    assert "has none" in hybridkit("migrate", "json").output
    bare = service(PostgresSettings, {NOTES: table()})
    assert hybridkit("migrate", bare, url="mongodb://127.0.0.1/db").exit_code == 2
    assert hybridkit("migrate", bare, url=postgres_url).exit_code == 0
    homeless = hybridkit("revision", bare, "-m", "x", "--database-url", postgres_url)
    assert (homeless.exit_code, "no folder for revisions" in homeless.output) == (1, True)


def test_tables_of_two_declarative_bases_have_no_common_history(
    service: Service, migrations: Path, postgres_url: str
) -> None:
    """The error says what to do."""
    first, second = table(), table()
    second.__table__.name = "lines"  # type: ignore[attr-defined]
    module = service(PostgresSettings, {NOTES: first, LINES: second}, migrations=migrations)
    assert hybridkit("migrate", module, url=postgres_url).exit_code == 0
    refused = hybridkit("revision", module, "-m", "x", "--database-url", postgres_url)
    assert "the tables have 2 declarative bases" in refused.output
