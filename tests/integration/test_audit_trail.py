"""The audit trail on real servers: what the trigger sees, its months and migration, and MongoDB's moving entries."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
import pytest
from pydantic import BaseModel
from sqlalchemy import LargeBinary, Numeric, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, CHAR, INTERVAL, JSONB, REAL, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator
from typer.testing import CliRunner

from hybridkit._cli._app import app as cli
from hybridkit.clients import PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.dataservice import (
    CallContext,
    DocumentCollection,
    RecordColumns,
    SoftDeleteColumns,
    create_data_service,
    migrate,
    write_revision,
)
from hybridkit.dataservice._mongo._audit import _entries
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._store import missing_indexes, open_mongo_store
from hybridkit.dataservice._postgres._audit._upkeep import keep_months
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._keys import lock_number
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dataservice._store._operations import Create, Delete, Update, Write
from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.resources import AUDIT, Call, Change, Query, Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings
from tests.helpers import until

pytestmark = pytest.mark.real_server


type Database = Any
"""A connection of asyncpg, which has no types."""


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl
    audit_days: int = 400


class Color(Enum):
    RED = "r"
    BLUE = "b"


class Doubled(TypeDecorator[int]):
    """A number that is stored as its double."""

    impl = Numeric
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: object) -> int | None:
        return None if value is None else value * 2

    def process_result_value(self, value: Any, dialect: object) -> int | None:
        return None if value is None else int(value) // 2


class Base(DeclarativeBase):
    pass


class NewOddity(BaseModel):
    name: str
    secret: str | None = None
    amount: Decimal | None = None
    fine: Decimal | None = None
    data: bytes | None = None
    wait: timedelta | None = None
    color: Color | None = None
    code: str | None = None
    weight: float | None = None
    light: float | None = None
    big: int | None = None
    day: date | None = None
    hour: time | None = None
    at: Timestamp | None = None
    owner: UUID | None = None
    tags: list[str] | None = None
    blobs: list[bytes] | None = None
    sums: list[Decimal] | None = None
    notes: dict[str, Any] | None = None
    half: int | None = None


class Oddity(NewOddity, Record):
    pass


class OddityTable(RecordColumns, SoftDeleteColumns, Base):
    __tablename__ = "odd things"
    name: Mapped[str] = mapped_column("odd name", Text)
    secret: Mapped[str | None] = mapped_column('se"cret', Text)
    amount: Mapped[Decimal | None] = mapped_column(Numeric)
    fine: Mapped[Decimal | None] = mapped_column(Numeric(38, 12))
    data: Mapped[bytes | None]
    wait: Mapped[timedelta | None] = mapped_column(INTERVAL)
    color: Mapped[Color | None]
    code: Mapped[str | None] = mapped_column(CHAR(6))
    weight: Mapped[float | None]
    light: Mapped[float | None] = mapped_column(REAL)
    big: Mapped[int | None] = mapped_column(Numeric(30, 0, asdecimal=True))
    day: Mapped[date | None]
    hour: Mapped[time | None]
    at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
    owner: Mapped[UUID | None]
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    blobs: Mapped[list[bytes] | None] = mapped_column(ARRAY(LargeBinary))
    sums: Mapped[list[Decimal] | None] = mapped_column(ARRAY(Numeric))
    notes: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    half: Mapped[int | None] = mapped_column(Doubled)
    internal: Mapped[str | None] = mapped_column(Text, server_default="kept out")


def oddities(**options: Any) -> Resource[Oddity, NewOddity, NewOddity]:
    return Resource(
        "oddities",
        record=Oddity,
        create=NewOddity,
        update=NewOddity,
        soft_delete=True,
        **options,
    )


ODDITIES = oddities(audited=True, audit_hide=("secret",))
PLAIN = oddities()
RENAME = Call("rename", resource=ODDITIES, request=NewOddity, response=NewOddity)


async def rename(body: NewOddity, work: CallContext[AsyncConnection]) -> NewOddity:
    await work.database.execute(text('UPDATE "odd things" SET "odd name" = :name'), {"name": body.name})
    return body


async def create_tables(url: str) -> None:
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()


@asynccontextmanager
async def served(url: str, resource: Any = ODDITIES, **options: Any) -> AsyncGenerator[PostgresDataClient]:
    import httpx

    app = create_data_service(Settings, {resource: OddityTable}, **options)
    app.state.settings = Settings(database_url=SecretUrl(url), start_budget_seconds=30)
    async with (
        app.router.lifespan_context(app),
        PostgresDataClient(
            "http://data.test", service="api_service", transport=httpx.ASGITransport(app)
        ) as client,
    ):
        client.store = app.state.store  # type: ignore[attr-defined] # for the tests of upkeep
        yield client


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """A person's own connection to the database, as psql has it."""
    await create_tables(postgres_url)
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def client(postgres_url: str, database: Database) -> AsyncIterator[PostgresDataClient]:
    async with served(postgres_url, calls={RENAME: rename}) as client:
        yield client


async def test_values_of_every_kind_survive(client: PostgresDataClient) -> None:
    """Decimals, bytes, intervals, labels, arrays and documents come out of the history as out of the record."""
    made = await client.create(
        ODDITIES,
        NewOddity(
            name="a",
            secret="s",
            amount=Decimal("123456789012345678901234567890.000000000100"),
            fine=Decimal("0.000000000001"),
            data=b"\x41\x00\x42",
            wait=timedelta(days=400, hours=3, microseconds=5000),
            color=Color.BLUE,
            code="ab",
            weight=0.1,
            light=0.1,
            big=12345678901234567890123,
            day=date(2026, 2, 28),
            hour=time(23, 59, 59, 5000),
            at=datetime(2026, 2, 3, 4, 5, 6, 789000, UTC),
            owner=UUID(int=5),
            tags=["a,b", '"', "\\"],
            blobs=[b"x", b"y"],
            sums=[Decimal("1.10"), Decimal("1e-9")],
            notes={"big": 2**62, "float": 1.5, "none": None, "deep": [{"x": 1e-300}]},
            half=21,
        ),
    )
    [created] = [entry async for entry in client.history(ODDITIES, made.id)]
    values = {name: change.after for name, change in created.changes.items()}
    expected = made.model_dump(exclude={"id", "version", "updated_at", "etag", "secret"})
    assert values.pop("secret") == "***"
    assert values == expected
    assert values["amount"].as_tuple() == made.amount.as_tuple() if made.amount else False
    before = await client.as_of(ODDITIES, made.id, made.created_at)
    assert before == made


async def test_what_json_lacks_survives(client: PostgresDataClient, database: Database) -> None:
    """NaN, infinite numbers and times beyond Python's are read as the record reads them, however they were stored."""
    made = await client.create(ODDITIES, NewOddity(name="a"))
    await database.execute(
        """UPDATE "odd things" SET amount = 'NaN', weight = 'Infinity', light = 1e-20, at = 'infinity',
            notes = '{"n": 1e400, "d": 0.1234567890123456789}' || jsonb_build_object('h', 10::numeric ^ 400 + 0.5),
            sums = ARRAY['NaN', '1.50']::numeric[],
            wait = '1 year 2 months', day = '0044-03-15 BC'"""
    )
    changed = await client.get(ODDITIES, made.id)
    *_, last = [entry async for entry in client.history(ODDITIES, made.id)]
    shown = {name: change.after for name, change in last.changes.items()}
    assert str(shown["amount"]) == str(changed.amount) == "NaN"
    assert (shown["weight"], shown["light"]) == (changed.weight, changed.light)
    assert shown["notes"] == changed.notes
    assert str(shown["sums"]) == str(changed.sums)
    assert {"at", "wait", "day"} <= shown.keys()


async def test_every_way_to_change_a_row_is_seen(
    client: PostgresDataClient, database: Database, postgres_url: str
) -> None:
    """A service's own call, a replacement in one statement, psql and a migration each leave one entry with who."""
    made = await client.create(ODDITIES, NewOddity(name="a"))
    replaced = await client.replace(ODDITIES, made, NewOddity(name="b", secret="x"))
    await client.call(RENAME, NewOddity(name="c"))
    await database.execute('UPDATE "odd things" SET "odd name" = $1, internal = $1', "d")
    async with migrating_connection(postgres_url) as connection:
        await connection.execute(text('UPDATE "odd things" SET "odd name" = \'e\''))
        await connection.commit()
    await client.delete(ODDITIES, made.id)
    await client.undelete(ODDITIES, made.id)
    await database.execute('DELETE FROM "odd things"')
    entries = [entry async for entry in client.history(ODDITIES, made.id)]
    role = await database.fetchval("SELECT session_user")
    assert [(entry.operation, entry.caller, entry.changes["name"]) for entry in entries] == [
        ("create", "api_service", (None, "a")),
        ("update", "api_service", ("a", "b")),
        ("update", "api_service", ("b", "c")),
        ("update", f"sql:{role}", ("c", "d")),
        ("update", f"sql:{role}", ("d", "e")),
        ("delete", "api_service", ("e", None)),
        ("undelete", "api_service", (None, "e")),
        ("delete", f"sql:{role}", ("e", None)),
    ]
    assert entries[1].changes["secret"].is_hidden
    assert entries[1].created_at == replaced.updated_at
    assert entries[2].request_id is not None
    assert entries[3].request_id is None
    assert all("internal" not in entry.changes for entry in entries)
    stored = await database.fetch("SELECT changes::text FROM hk_audit")
    assert not any("kept out" in row[0] or '"x"' in row[0] for row in stored)


async def test_a_change_that_is_taken_back_leaves_nothing(
    client: PostgresDataClient, database: Database
) -> None:
    """The entry is a part of the change's transaction, of psql's too; a row that stays hidden has no entry."""
    made = await client.create(ODDITIES, NewOddity(name="a"))
    transaction = database.transaction()
    await transaction.start()
    await database.execute('UPDATE "odd things" SET "odd name" = $1', "b")
    await transaction.rollback()
    await client.delete(ODDITIES, made.id)
    await database.execute('UPDATE "odd things" SET "odd name" = $1', "c")
    assert [entry.operation async for entry in client.history(ODDITIES, made.id)] == ["create", "delete"]


async def test_the_trail_cannot_be_passed_by(
    client: PostgresDataClient, database: Database, postgres_url: str
) -> None:
    """TRUNCATE is refused, a role without rights on the trail is audited, and a table of the same name is no trail."""
    await client.create(ODDITIES, NewOddity(name="a"))
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="is audited"):
        await database.execute('TRUNCATE "odd things"')
    role = f"clerk_{UUID(int=id(client)).hex[-8:]}"
    await database.execute(f"CREATE ROLE {role}")
    try:
        await database.execute(f'GRANT SELECT, UPDATE ON "odd things" TO {role}')
        await database.execute(f"SET ROLE {role}")
        await database.execute("CREATE TEMP TABLE hk_audit (id int)")
        await database.execute("SET search_path = pg_temp, public")
        await database.execute('UPDATE public."odd things" SET "odd name" = $1', "b")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("DELETE FROM public.hk_audit")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(
                "CREATE TEMP TABLE forged (id int); CREATE TRIGGER t AFTER INSERT ON forged"
                " FOR EACH ROW EXECUTE FUNCTION public.hk_audit_row('oddities', 'id', '{}', '{}', '')"
            )
    finally:
        await database.execute("RESET ROLE")
        await database.execute("RESET search_path")
        await database.execute(f"DROP OWNED BY {role}")
        await database.execute(f"DROP ROLE {role}")
    assert [entry.operation async for entry in client.find(AUDIT)] == ["create", "update"]


async def test_entries_of_what_is_gone_stay_readable(client: PostgresDataClient, database: Database) -> None:
    """A value of an earlier type, a removed column and a removed resource are shown as they were written."""
    insert = (
        "INSERT INTO hk_audit (resource, record_id, record_version, operation, caller, changes)"
        " VALUES ($1, $2, 1, 'update', 'test', $3)"
    )
    record_id = str(UUID(int=1))
    written = '{"amount": ["abc", 1.50], "at": ["soon", null], "data": ["no hex", null], "gone": [1, 2]}'
    await database.execute(insert, "oddities", record_id, written)
    await database.execute(insert, "former", "x", '{"any": [1.10, {"b": 12345678901234567890}]}')
    [entry] = (await client.history(ODDITIES, record_id).page()).items
    assert entry.changes == {
        "amount": Change("abc", Decimal("1.50")),
        "at": Change("soon", None),
        "data": Change(b"no hex", None),
    }
    [former] = (await client.find(AUDIT).where(AUDIT["resource"] == "former").page()).items
    assert former.changes == {"any": Change("1.10", {"b": 12345678901234567890})}

    class Who(BaseModel):
        caller: str

    assert [each.caller async for each in client.find(AUDIT).select(Who)] == ["test", "test"]

    class What(BaseModel):
        changes: dict[str, Any]

    shown = [each.changes async for each in client.find(AUDIT).select(What)]
    assert [sorted(each) for each in shown] == [["amount", "at", "data"], ["any"]]


async def test_months_are_made_ahead_and_dropped(
    client: PostgresDataClient, database: Database, postgres_url: str
) -> None:
    """Months are there before they begin, what came early moves into its month, and old ones go with their entries."""
    await client.create(ODDITIES, NewOddity(name="a"))
    pool = Pool(postgres_url, pool_size=2, application_name="the test")
    try:
        start = datetime(2031, 1, 31, 12, tzinfo=UTC)
        await database.execute(
            "INSERT INTO hk_audit (created_at, resource, record_id, record_version, operation, caller, changes)"
            " SELECT moment, 'oddities', 'x', 1, 'create', 'test', '{}'"
            " FROM unnest($1::timestamptz[]) AS moment",
            [start, datetime(2031, 3, 1, tzinfo=UTC)],
        )
        assert await database.fetchval("SELECT count(*) FROM hk_audit_rest") == 2
        await database.execute(
            "SELECT pg_advisory_lock($1)", lock_number("audit")
        )  # another replica is at it
        await keep_months(pool, keep_days=40_000, moment=start, ahead=True)
        assert await database.fetchval("SELECT count(*) FROM hk_audit_rest") == 2
        await database.execute("SELECT pg_advisory_unlock($1)", lock_number("audit"))
        both = [keep_months(pool, keep_days=40_000, moment=start, ahead=True) for _ in range(2)]
        assert await asyncio.gather(*both) == [0, 0]
        await keep_months(pool, keep_days=40_000, moment=start, ahead=True)
        assert await database.fetchval("SELECT count(*) FROM hk_audit_rest") == 0
        assert await months(database) >= {"hk_audit_203101", "hk_audit_203102", "hk_audit_203103"}
        assert await database.fetchval("SELECT count(*) FROM hk_audit_203103") == 1
        later = datetime(2031, 3, 10, tzinfo=UTC)
        assert await keep_months(pool, keep_days=30, moment=later, ahead=False) >= 1
        assert await keep_months(pool, keep_days=30, moment=later, ahead=False) == 0
        assert {name for name in await months(database) if name < "hk_audit_203102"} == set()
        assert await database.fetchval("SELECT count(*) FROM hk_audit") == 1
    finally:
        await pool.close()


async def months(database: Database) -> set[str]:
    rows = await database.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'hk_audit'::regclass"
    )
    return {row[0] for row in rows} - {"hk_audit_rest"}


async def test_a_start_does_not_wait_for_whoever_reads_the_trail(
    postgres_url: str, database: Database
) -> None:
    """While a month can't be made, as the trail is locked, the service starts, and entries wait in the rest."""
    await migrate(postgres_url)
    async with database.transaction():
        await database.execute("LOCK TABLE hk_audit_rest IN ACCESS SHARE MODE")
        async with served(postgres_url) as client:
            assert await months(database) == set()
            await client.create(ODDITIES, NewOddity(name="a"))
            assert len((await client.find(AUDIT).page()).items) == 1
    async with served(postgres_url) as client:
        assert len(await months(database)) == 3
        assert len((await client.find(AUDIT).page()).items) == 1


async def test_housekeeping_keeps_the_months(client: PostgresDataClient, database: Database) -> None:
    """The running service's clean-up drops a month that is past `audit_days`."""
    await database.execute("CREATE TABLE hk_audit_201001 (LIKE hk_audit INCLUDING ALL)")
    await database.execute(
        "ALTER TABLE hk_audit ATTACH PARTITION hk_audit_201001 FOR VALUES FROM ('2010-01-01') TO ('2010-02-01')"
    )
    store: Any = client.store  # type: ignore[attr-defined] # given by the fixture

    async def is_dropped() -> bool:
        await store.clean()  # the running service may have been first
        return "hk_audit_201001" not in await months(database)

    await until(is_dropped)


async def test_erased_values_are_in_no_row(client: PostgresDataClient, database: Database) -> None:
    """Blanking leaves the entries and nothing of the values; the history of a removed record is found by its fields."""
    made = await client.create(ODDITIES, NewOddity(name="canary", code="kept"))
    await client.update(ODDITIES, made.id, NewOddity(name="canary too"))
    await client.delete(ODDITIES, made.id)
    await database.execute('DELETE FROM "odd things"')
    store: Any = client.store  # type: ignore[attr-defined] # given by the fixture
    assert await store.deleted_ids(ODDITIES, "name", "canary too") == [str(made.id)]
    assert await store.blank_audit(ODDITIES, ["name"], [made.id]) == 3
    assert await store.blank_audit(ODDITIES, ["name"], [made.id]) == 0
    entries = [entry async for entry in client.history(ODDITIES, made.id)]
    assert [entry.changes["name"].is_hidden for entry in entries] == [True] * 3
    assert entries[0].changes["code"] == Change(None, "kept")
    assert [entry.version for entry in entries] == [2, 2, 2]
    assert await database.fetchval("SELECT count(*) FROM hk_audit WHERE changes::text LIKE '%canary%'") == 0
    assert await store.blank_audit(PLAIN, ["name"], [made.id]) == 0
    assert await store.deleted_ids(PLAIN, "name", "a") == []


async def test_a_revision_installs_changes_and_removes_the_triggers(
    postgres_url: str, database: Database, tmp_path: Path
) -> None:
    """`write_revision` follows `audited` and `audit_hide`; without it the service names the table and stays down."""
    folder = tmp_path / "migrations"

    async def revise(number: int, resource: Any) -> str:
        tables = {resource: OddityTable}
        path = await write_revision(
            postgres_url,
            metadata=Base.metadata,
            migrations=folder,
            message=f"step {number}",
            tables=tables,
        )
        await migrate(postgres_url, migrations=folder)
        return path.read_text()

    await migrate(postgres_url)
    with pytest.raises(DeclarationError, match='"odd things": declared with audited=True'):
        async with served(postgres_url, migrations=folder):
            pass
    assert "CREATE TRIGGER hk_audit AFTER INSERT" in await revise(1, ODDITIES)
    async with served(postgres_url, migrations=folder) as client:
        await client.create(ODDITIES, NewOddity(name="a"))
        assert len((await client.find(AUDIT).page()).items) == 1
        await database.execute('ALTER TABLE "odd things" DISABLE TRIGGER hk_audit')
        store: Any = client.store  # type: ignore[attr-defined] # given by `served`
        with pytest.raises(UnavailableError, match="turned off"):
            await store.check()
        await database.execute('ALTER TABLE "odd things" ENABLE TRIGGER hk_audit')
        await store.check()
    more = oddities(audited=True, audit_hide=("secret", "name"))
    with pytest.raises(DeclarationError, match="of another declaration"):
        async with served(postgres_url, more, migrations=folder):
            pass
    hidden = await revise(2, more)
    assert "DROP TRIGGER IF EXISTS hk_audit ON" in hidden
    assert "odd name" in hidden
    removal = await revise(3, PLAIN)
    assert "CREATE TRIGGER" not in removal.partition("def downgrade")[0]
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'hk_audit%'"
    assert await database.fetchval(triggers) == 0
    assert "pass" in await revise(4, PLAIN)


async def test_a_service_without_revisions_installs_and_removes_them_itself(
    postgres_url: str, database: Database
) -> None:
    """At its start the triggers become what the declarations say."""
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'hk_audit%'"
    await database.execute('ALTER TABLE "odd things" RENAME TO later')
    await migrate(postgres_url, tables={ODDITIES: OddityTable})  # before the tables are there
    assert await database.fetchval(triggers) == 0
    await database.execute('ALTER TABLE later RENAME TO "odd things"')
    for _ in range(2):
        async with served(postgres_url):
            assert await database.fetchval(triggers) == 2
    async with served(postgres_url, PLAIN):
        assert await database.fetchval(triggers) == 0


def test_the_command_line_makes_the_triggers(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`migrate` names and makes the triggers of a service without revisions; for others `revision` writes them."""
    asyncio.run(create_tables(postgres_url))

    def command(*arguments: str, url: str = postgres_url) -> Any:
        done = CliRunner().invoke(cli, [*arguments, "--database-url", url])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done

    def declare(name: str, resource: Any, **options: Any) -> str:
        module = ModuleType(name)
        vars(module)["app"] = create_data_service(Settings, {resource: OddityTable}, **options)
        monkeypatch.setitem(sys.modules, name, module)
        return name

    free = declare("audited_service", ODDITIES)
    command("migrate", declare("plain_service", PLAIN))
    checked = command("migrate", free, "--check", "--json")
    assert (checked.exit_code, [each["kind"] for each in json.loads(checked.stdout)["pending"]]) == (
        1,
        ["trigger"],
    )
    assert '"odd things"' in command("migrate", free).output
    assert "nothing is missing" in command("migrate", free, "--check").output
    kept = declare("kept_service", PLAIN, migrations=tmp_path / "migrations")
    written = Path(command("revision", kept, "-m", "no trail").output.strip())
    assert "DROP TRIGGER" in written.read_text().partition("def downgrade")[0]


# ── MongoDB ──────────────────────────────────────────────────────────────────────────────────────

COLLECTIONS = {"oddities": ResourceCollection(ODDITIES, DocumentCollection())}


def a_write(operation: Any, key: str) -> Write:
    return Write(caller="api_service", key=key, fingerprint=b"f", operations=(operation,))


async def operations(store: Any) -> list[str]:
    import orjson

    page = await store.find(AUDIT, Query(order=(("id", "asc"),)), after=None)
    return [entry["operation"] for entry in orjson.loads(page.items)]


async def test_an_entry_waits_in_its_document_and_moves_once(each_mongo_url: str) -> None:
    """Whatever moves an entry, and wherever that ends early, it is in the trail once, and no reader misses it."""
    from pymongo import AsyncMongoClient

    record_id = UUID(int=7)
    async with (
        AsyncMongoClient[dict[str, Any]](each_mongo_url) as driver,
        open_mongo_store(each_mongo_url, COLLECTIONS, name="test") as store,
    ):
        database = driver.get_default_database()
        audit: Any = store._audit
        audit.wake = lambda: None  # nothing moves by itself
        await store.write(
            a_write(
                Create(resource=ODDITIES, id=record_id, values={"name": "a", "amount": Decimal("1.10")}), "1"
            )
        )
        stored = await database["oddities"].find_one({})
        assert stored is not None
        [waiting] = stored["_hk"]["audit"]
        assert await database["hk_audit"].count_documents({}) == 0
        await audit.take_over([waiting])  # as far as a mover came that was killed
        assert await operations(store) == ["create"]
        stored = await database["oddities"].find_one({})
        assert stored is not None
        assert "audit" not in stored["_hk"]
        for number, name in enumerate(("b", "c"), 2):
            await store.write(
                a_write(Update(resource=ODDITIES, id=record_id, changes={"name": name}), str(number))
            )
        assert await database["hk_audit"].count_documents({}) == 2  # the next change has moved the one before
        await store.write(a_write(Delete(resource=ODDITIES, id=record_id), "4"))
        assert await store.clean() == 0
        assert await operations(store) == ["create", "update", "update", "delete"]
        assert await store.count(AUDIT, None, exact=True) == 4
        exported = [chunk async for chunk in store.export(AUDIT, Query())]
        assert sum(chunk.records for chunk in exported) == 4
        entry = await database["hk_audit"].find_one({"operation": "create"})
        assert entry is not None
        assert entry["changes"]["amount"][1].to_decimal() == Decimal("1.10")


async def test_entries_move_in_the_background_are_erased_and_expire(
    mongo_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write has its entry moved; blanking reaches entries wherever they are; old ones are deleted."""
    from pymongo import AsyncMongoClient

    monkeypatch.setattr(_entries, "MOVE_DOCUMENTS", 1)
    async with (
        AsyncMongoClient[dict[str, Any]](mongo_url) as driver,
        open_mongo_store(mongo_url, COLLECTIONS, name="test", audit_days=1) as store,
    ):
        trail = driver.get_default_database()["hk_audit"]
        assert await missing_indexes(mongo_url, COLLECTIONS) == []
        ids = [UUID(int=number) for number in range(1, 4)]
        for number, record_id in enumerate(ids):
            await store.write(
                a_write(Create(resource=ODDITIES, id=record_id, values={"name": "canary"}), str(number))
            )

        async def all_moved() -> bool:
            store._audit.wake()
            return await trail.count_documents({}) == 3

        await until(all_moved)
        await store.write(a_write(Update(resource=ODDITIES, id=ids[0], changes={"name": "canary 2"}), "9"))
        assert await store.blank_audit(ODDITIES, ["name"], ids) == 4
        assert await store.blank_audit(ODDITIES, ["name"], ids) == 0
        assert await trail.count_documents({"changes.name": {"$regex": "canary"}}) == 0
        await store.write(a_write(Delete(resource=ODDITIES, id=ids[1]), "10"))
        assert await store.deleted_ids(ODDITIES, "name", "canary") == [str(ids[1])]
        assert await store.clean() == 0
        await trail.update_many({}, {"$set": {"created_at": datetime(2020, 1, 1, tzinfo=UTC)}})
        assert await store.clean() == 5
