"""Writing to PostgreSQL below the routes: runs of operations, soft delete, dry runs, calls, and what a key keeps."""

import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import ARRAY, Integer, Numeric, String, Text, text
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.codec import encode_json, format_timestamp, now
from hybridkit.contract import Emission
from hybridkit.dataservice import RecordColumns, SoftDeleteColumns
from hybridkit.dataservice._postgres._refusals import UnnamedError
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dataservice._postgres._store import PostgresStore, open_postgres_store
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._operations import (
    Assert,
    CallAnswer,
    Create,
    Delete,
    Operation,
    Outcome,
    Undelete,
    Update,
    Upsert,
    Write,
)
from hybridkit.errors import (
    InvalidRequestError,
    KeyReusedError,
    NotFoundError,
    RejectedError,
    RequirementNotMetError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.resources import Compare, Record, Resource
from hybridkit.resources._resource import AnyResource


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class NewNote(BaseModel):
    title: str
    size: int = 0
    price: Decimal | None = None
    color: Color | None = None
    details: dict[str, Any] | None = None
    code: str | None = None


class Note(NewNote, Record):
    pass


class NewTag(BaseModel):
    words: list[str]


class Tag(NewTag, Record):
    mark: int = 0


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote, filterable=("size",), soft_delete=True)
PLAIN = Resource("plain", record=Note, create=NewNote, update=NewNote)
TAGS = Resource("tags", record=Tag, create=NewTag, update=NewTag)
MARKED = Resource("marked", record=Tag, create=NewTag, update=NewTag)


class Base(DeclarativeBase):
    pass


class NoteColumns:
    title: Mapped[str] = mapped_column(Text, unique=True)
    size: Mapped[int] = mapped_column(Integer)
    price: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    color: Mapped[Color | None]
    code: Mapped[str | None] = mapped_column(String(5))


class NoteTable(SoftDeleteColumns, NoteColumns, RecordColumns, Base):
    __tablename__ = "notes"
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class PlainTable(NoteColumns, RecordColumns, Base):
    __tablename__ = "order"
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class TagTable(RecordColumns, Base):
    """An array in every row: such rows can't be arrays."""

    __tablename__ = "tags"
    words: Mapped[list[str]] = mapped_column(ARRAY(Text))
    mark: Mapped[int] = mapped_column(server_default=text("7"))


class MarkedTable(RecordColumns, Base):
    """SQLAlchemy makes a value for every row."""

    __tablename__ = "marked"
    words: Mapped[list[str]] = mapped_column(ARRAY(Text))
    mark: Mapped[int] = mapped_column(default=itertools.count(1).__next__)


TABLES: dict[AnyResource, type[Any]] = {
    NOTES: NoteTable,
    PLAIN: PlainTable,
    TAGS: TagTable,
    MARKED: MarkedTable,
}


class Writer:
    """A store, and a key for every write."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.woken = 0

    async def __call__(self, *operations: Operation, **more: Any) -> Outcome:
        key = more.pop("key", None) or str(uuid4())
        write = Write(
            caller="api_service",
            key=key,
            fingerprint=more.pop("fingerprint", b"f"),
            operations=operations,
            **more,
        )
        return await self.store.write(write)

    async def rows(self, sql: str) -> list[Any]:
        return list(await self.store._pool.fetch(sql))

    async def note(self, title: str, **values: Any) -> dict[str, Any]:
        made = note(title, **values)
        [result] = (await self(made)).results
        return {**(result.record or {}), "id": made.id}


def note(
    title: str, *, label: str = "", resource: Any = NOTES, id: UUID | None = None, **values: Any
) -> Create:
    return Create(
        resource=resource,
        id=id or uuid4(),
        label=label,
        values=NewNote(title=title, **values).model_dump(),
    )


def notes(count: int, **values: Any) -> list[Create]:
    return [note(f"note {n}", label=f"items/{n}", **values) for n in range(count)]


@pytest.fixture
async def write(postgres_url: str) -> AsyncIterator[Writer]:
    """A store for the tables above."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    tables = {resource.name: ResourceTable(resource, table) for resource, table in TABLES.items()}
    async with open_postgres_store(postgres_url, tables, name="the test", pool_size=4) as store:
        yield Writer(store)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("resource", [NOTES, PLAIN])
async def test_a_batch_has_its_results_in_order(write: Writer, resource: Any) -> None:
    """A thousand rows of every kind of column, created, changed and read as single ones are."""
    given: dict[str, Any] = {
        "price": Decimal("1.5"),
        "color": Color.BLUE,
        "details": {"a": [1.5]},
        "code": "abc",
    }
    made = notes(1000, resource=resource, **given)
    created = await write(*made)
    assert [result.record and result.record["id"] for result in created.results] == [each.id for each in made]
    assert all(result.created for result in created.results)
    [one] = (await write(note("one", resource=resource, **given))).results
    first = created.results[0].record
    assert one.record is not None
    assert first is not None
    varying = ("id", "etag", "title", "created_at", "updated_at")
    found = await write.store.get(resource, first["id"])
    assert found is not None
    assert set(one.record) == set(first)
    assert b'"price":"1.50"' in found.body
    assert {name: str(one.record[name]) for name in one.record if name not in (*varying, "color")} == {
        name: str(first[name]) for name in first if name not in (*varying, "color")
    }
    changed = await write(
        *(
            Update(resource=resource, id=each.id, changes={"size": n, "details": None})
            for n, each in enumerate(made)
        )
    )
    assert [result.record and result.record["size"] for result in changed.results] == list(range(1000))
    [row] = await write.rows(
        f"SELECT count(*) AS n FROM {'notes' if resource is NOTES else '"order"'} WHERE details IS NULL"
    )
    assert row["n"] == 1000
    assert len((await write(*(Delete(resource=resource, id=each.id) for each in made))).results) == 1000


@pytest.mark.parametrize("resource", [TAGS, MARKED])
async def test_tables_with_unusual_columns_take_batches_too(write: Writer, resource: Any) -> None:
    """Arrays, which can't be elements of arrays, are written one parameter per value."""
    made = [Create(resource=resource, id=uuid4(), values={"words": ["a", str(n)]}) for n in range(7)]
    results = (await write(*made)).results
    assert [result.record and result.record["words"][1] for result in results] == list("0123456")
    again = [
        Update(resource=resource, id=each.id, changes={"words": [str(n)]}) for n, each in enumerate(made)
    ]
    assert [result.record and result.record["words"] for result in (await write(*again)).results] == [
        [digit] for digit in "0123456"
    ]


async def test_a_default_of_the_table_is_made_for_each_row(write: Writer) -> None:
    """A default that Python computes differs between the rows of a batch."""
    made = [Create(resource=MARKED, id=uuid4(), values={"words": []}) for _ in range(3)]
    await write(*made)
    assert len({row["mark"] for row in await write.rows("SELECT mark FROM marked")}) == 3


@pytest.mark.parametrize("culprit", [0, 7, 19])
async def test_a_refusal_names_its_operation(write: Writer, culprit: int) -> None:
    """The first operation that the database refuses is found by halving, and nothing is done."""
    await write.note("note 19")
    made = notes(19)
    made.insert(culprit, note("note 19", label="items/taken"))
    with pytest.raises(UniqueViolationError, match="items/taken: ") as caught:
        await write(*made)
    assert caught.value.fields == ("title",)
    assert len(await write.rows("SELECT FROM notes")) == 1
    assert len(await write.rows("SELECT FROM hk_keys")) == 1


async def test_no_text_is_cut_to_its_column(write: Writer) -> None:
    """A text that is too long is refused, alone and in a batch."""
    for made in ([note("a", code="abcdef")], [note("a"), note("b", code="abcdef", label="items/1")]):
        with pytest.raises(InvalidRequestError):
            await write(*made)


async def test_what_only_works_in_turn_is_done_in_turn(write: Writer) -> None:
    """The second takes the title that the first gives up; one statement can't."""
    one, two = await write.note("one"), await write.note("two")
    await write(
        Update(resource=NOTES, id=one["id"], changes={"title": "free"}),
        Update(resource=NOTES, id=two["id"], changes={"title": "one"}),
    )
    first, again = uuid4(), uuid4()
    results = await write(
        note("three", id=first),
        note("four", id=again),
        Upsert(resource=NOTES, id=first, values={"title": "five", "size": 1}),
        Upsert(resource=NOTES, id=first, values={"title": "six", "size": 1}),
    )
    assert [result.record and result.record["version"] for result in results.results] == [1, 1, 2, 3]


async def test_conditions_hold_for_each_of_a_batch(write: Writer) -> None:
    """The first operation whose condition fails is named, and none is done."""
    one, two = await write.note("one", size=1), await write.note("two", size=5)
    changes = [
        Update(
            resource=NOTES, id=record["id"], changes={"size": 9}, if_match=record["etag"], label=f"items/{n}"
        )
        for n, record in enumerate((one, two))
    ]
    await write(*changes)
    with pytest.raises(StaleVersionError, match="items/0: "):
        await write(*changes)
    with pytest.raises(StaleVersionError):
        await write(Update(resource=NOTES, id=one["id"], changes={"size": 1}, if_match='"no tag"'))
    with pytest.raises(RequirementNotMetError, match="requirement"):
        await write(
            *(
                Update(resource=NOTES, id=r["id"], increment={"size": -1}, require=Compare("size", "gt", 9))
                for r in (one, two)
            )
        )
    with pytest.raises(NotFoundError, match="items/1: "):
        await write(
            Delete(resource=NOTES, id=one["id"], label="items/0"),
            Delete(resource=NOTES, id=uuid4(), label="items/1"),
        )
    asserts = [Assert(resource=NOTES, id=record["id"]) for record in (one, two)]
    assert len((await write(*asserts)).results) == 2
    with pytest.raises(StaleVersionError):
        await write(Assert(resource=NOTES, id=one["id"], if_match=one["etag"]))
    with pytest.raises(NotFoundError):
        await write(*asserts, Assert(resource=NOTES, id=uuid4()))


async def test_documents_are_merged_in_a_batch(write: Writer) -> None:
    """Each record gets its merge patch and increment by one statement."""
    made = [await write.note(f"{n}", details={"a": n, "b": 1}) for n in range(3)]
    patches = [
        Update(resource=NOTES, id=r["id"], merges={"details": {"b": None}}, increment={"size": 2})
        for r in made
    ]
    results = (await write(*patches)).results
    assert [r.record and (r.record["details"], r.record["size"]) for r in results] == [
        ({"a": n}, 2) for n in range(3)
    ]
    with pytest.raises(NotFoundError):
        await write(
            *patches, Update(resource=NOTES, id=uuid4(), merges={"details": {}}, increment={"size": 1})
        )


async def test_upserts_create_and_replace_in_one_batch(write: Writer) -> None:
    """The result says which of the two it was, and `only` allows one of them."""
    there = await write.note("there", size=1)
    put = [
        Upsert(resource=NOTES, id=there["id"], values={"title": "there", "size": 2}),
        Upsert(resource=NOTES, id=uuid4(), values={"title": "new", "size": 3}),
    ]
    assert [result.created for result in (await write(*put)).results] == [False, True]
    with pytest.raises(StaleVersionError):
        await write(Upsert(resource=NOTES, id=there["id"], values={"title": "x", "size": 0}, only="absent"))
    with pytest.raises(StaleVersionError) as caught:
        await write(Upsert(resource=NOTES, id=uuid4(), values={"title": "x", "size": 0}, only="present"))
    assert caught.value.current is None
    [absent] = (
        await write(Upsert(resource=NOTES, id=uuid4(), values={"title": "y", "size": 0}, only="absent"))
    ).results
    assert absent.created


# ── soft delete ──────────────────────────────────────────────────────────────────────────────────


async def test_a_deleted_record_is_hidden_and_comes_back(write: Writer) -> None:
    """Until it is undeleted it is not found by any operation; then it has a new version."""
    record = await write.note("pen")
    target: dict[str, Any] = {"resource": NOTES, "id": record["id"]}
    await write(Delete(**target, if_match=record["etag"]))
    for operation in (
        Assert(**target),
        Update(**target, changes={"size": 1}),
        Update(**target, merges={"details": {}}),
        Delete(**target),
    ):
        with pytest.raises(NotFoundError):
            await write(operation)
    [back] = (await write(Undelete(**target))).results
    assert back.record is not None
    assert (back.record["version"], back.record["title"], back.created) == (3, "pen", False)
    assert format_timestamp(back.record["created_at"]) == record["created_at"]


async def test_nothing_brings_a_deleted_record_back_unseen(write: Writer) -> None:
    """Its id stays taken: a create and an upsert are refused alike, and a condition on it does not hold."""
    record = await write.note("pen")
    target: dict[str, Any] = {"resource": NOTES, "id": record["id"], "values": {"title": "ink", "size": 1}}
    await write(Delete(resource=NOTES, id=record["id"]))
    for operation in (Create(**target), Upsert(**target), Upsert(**target, only="absent")):
        with pytest.raises(UniqueViolationError) as caught:
            await write(operation)
        assert caught.value.fields == ("id",)
    with pytest.raises(StaleVersionError) as stale:
        await write(Upsert(**target, only="present"))
    assert stale.value.current is None


async def test_undelete_asks_for_what_is_there(write: Writer) -> None:
    """Undeleting what was never deleted changes nothing, and a condition must hold."""
    record = await write.note("pen")
    target: dict[str, Any] = {"resource": NOTES, "id": record["id"]}
    [same] = (await write(Undelete(**target, if_match=record["etag"]))).results
    assert same.record is not None
    assert same.record["etag"] == record["etag"]
    await write(Delete(**target))
    with pytest.raises(StaleVersionError) as caught:
        await write(Undelete(**target, if_match=record["etag"]))
    assert [
        r.record and r.record["version"]
        for r in (await write(Undelete(**target, if_match=caught.value.current))).results
    ] == [3]
    with pytest.raises(NotFoundError):
        await write(Undelete(resource=NOTES, id=uuid4()))
    hard = await write(note("hard", resource=PLAIN))
    [there] = (await write(Undelete(resource=PLAIN, id=(hard.results[0].record or {})["id"]))).results
    assert there.record is not None


# ── dry runs ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_dry_run_answers_and_leaves_nothing(write: Writer) -> None:
    """It has nothing to do with keys: it is not recorded, and no recorded outcome replaces it."""
    made = note("pen")
    for _ in range(2):
        [result] = (await write(made, emit=(emission(),), key="k", dry_run=True)).results
        assert result.record is not None
        assert result.record["title"] == "pen"
    for table in ("notes", "hk_keys", "hk_outbox"):
        assert await write.rows(f"SELECT FROM {table}") == []
    assert not (await write(made, key="k")).replayed
    with pytest.raises(UniqueViolationError):
        await write(made, key="k", dry_run=True)


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


def emission(**changes: Any) -> Emission:
    given = {
        "event_type": "note.made",
        "event_id": uuid4(),
        "timestamp": now(),
        "key": "k",
        "request_id": "r",
        "data": {},
    }
    return Emission.model_validate({**given, **changes})


async def test_a_call_happens_once_with_its_events(write: Writer) -> None:
    """A repeated key replays the answer's bytes, and another call under it is refused."""
    runs = 0

    async def work(connection: Any) -> CallAnswer:
        nonlocal runs
        runs += 1
        await connection.execute(text("CREATE TABLE counted (n int)"))
        return CallAnswer(b'{"n":  1}', (emission(),))

    first = await write(call=work, key="k")
    again = await write(call=work, key="k")
    assert (first.answer, first.replayed) == (b'{"n":  1}', False)
    assert (again.answer, again.replayed) == (b'{"n":  1}', True)
    assert runs == 1
    assert len(await write.rows("SELECT FROM hk_outbox")) == 1
    with pytest.raises(KeyReusedError):
        await write(call=work, key="k", fingerprint=b"other")


async def test_a_call_that_fails_has_done_nothing(write: Writer) -> None:
    """An error of the database undoes rows and key."""

    async def work(connection: Any) -> CallAnswer:
        await connection.execute(
            text("INSERT INTO hk_leases (name, owner, fence, expires_at) VALUES ('x', '', 1, now())")
        )
        await connection.execute(
            text("INSERT INTO hk_leases (name, owner, fence, expires_at) VALUES ('x', '', 1, now())")
        )
        raise AssertionError

    with pytest.raises(UniqueViolationError):
        await write(call=work)
    assert await write.rows("SELECT FROM hk_leases WHERE name = 'x'") == []
    assert await write.rows("SELECT FROM hk_keys") == []


# ── what a key keeps ─────────────────────────────────────────────────────────────────────────────


async def test_a_large_answer_is_read_again(write: Writer) -> None:
    """A replay shows the records as they are now, and null for one that is gone or was created anew."""
    made = [note(f"{n}", resource=PLAIN, details={"text": "x" * 1000}) for n in range(100)]
    mixed: list[Operation] = [*made, Assert(resource=PLAIN, id=made[0].id)]
    await write(*mixed, key="k")
    [row] = await write.rows("SELECT octet_length(results) AS n FROM hk_keys")
    assert row["n"] < 10_000
    await write(Update(resource=PLAIN, id=made[0].id, changes={"size": 5}))
    await write(Delete(resource=PLAIN, id=made[1].id))
    await write(Delete(resource=PLAIN, id=made[2].id))
    await write(note("another", resource=PLAIN, id=made[2].id))
    again = await write(*mixed, key="k")
    assert (again.replayed, again.reread) == (True, True)
    sizes = [result.record and result.record["size"] for result in again.results]
    assert sizes[:4] == [5, None, None, 0]
    assert len(sizes) == 101
    assert [result.created for result in again.results] == [True] * 100 + [False]


async def test_a_large_record_is_read_again_too(write: Writer) -> None:
    """A record that is too large to keep under its key is replayed as it is now."""
    made = note("large", details={"text": "x" * 70_000})
    first = await write(made, key="k")
    again = await write(made, key="k")
    assert (again.replayed, again.reread) == (True, True)
    assert [result.created for result in again.results] == [True]
    [then], [now_] = first.results, again.results
    assert then.record is not None
    assert now_.record is not None
    assert then.record["etag"] == now_.record["etag"]


async def test_keys_of_an_older_release_are_read(write: Writer) -> None:
    """Outcomes in the former form are replayed."""
    await write.rows(
        "INSERT INTO hk_keys (caller, key, fingerprint, results, expires_at)"
        """ VALUES ('api_service', 'old', 'f', '[[{"id":"1"},true],[null,false]]', now() + interval '1 h')"""
    )
    again = await write(note("pen"), key="old")
    assert again.replayed
    assert [(result.record, result.created) for result in again.results] == [
        ({"id": "1"}, True),
        (None, False),
    ]


# ── one statement ────────────────────────────────────────────────────────────────────────────────


async def test_a_create_with_its_events_is_one_statement(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events are stored in their order, without one that is in the outbox already."""
    known = emission(key=None)
    await write(emit=(known,))
    statements: list[str] = []
    fetch = write.store._pool.fetch

    async def noting(sql: str, *arguments: Any, **options: Any) -> Any:
        statements.append(sql)
        return await fetch(sql, *arguments, **options)

    monkeypatch.setattr(write.store._pool, "fetch", noting)
    events = (emission(key="b"), known, emission(key="a"), emission(key=None))
    await write(note("pen", details={"a": 1}), emit=events, key="k")
    assert len(statements) == 1
    rows = await write.rows("SELECT event_id FROM hk_outbox ORDER BY sequence")
    assert [row["event_id"] for row in rows] == [
        known.event_id,
        events[0].event_id,
        events[2].event_id,
        events[3].event_id,
    ]
    assert "SingleStatement(1 " in repr(write.store._writer._single_statement)


async def test_a_replacement_with_its_events_is_one_statement(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record, the key, the new message and the cancelled one are one round trip; a repetition is a replay."""
    soon = now() + timedelta(hours=1)
    old = emission(key=None, not_before=soon)
    record = await write.note("pen", details={"a": 1})
    await write(emit=(old,))
    statements: list[str] = []
    fetch = write.store._pool.fetch

    async def noting(sql: str, *arguments: Any, **options: Any) -> Any:
        statements.append(sql)
        return await fetch(sql, *arguments, **options)

    monkeypatch.setattr(write.store._pool, "fetch", noting)
    new = emission(key=None, not_before=soon)
    values = NewNote(title="ink", price=Decimal("2.50")).model_dump()
    replacing = Upsert(
        resource=NOTES, id=record["id"], values=values, only="present", if_match=record["etag"]
    )
    done = await write(replacing, emit=(new, emission(key="a")), cancel=(old.event_id,), key="k")
    assert len(statements) == 1
    [result] = done.results
    assert result.record is not None
    assert not result.created
    shown = {name: result.record[name] for name in ("title", "price", "details", "version")}
    assert shown == {"title": "ink", "price": "2.50", "details": None, "version": 2}
    rows = await write.rows("SELECT event_id FROM hk_outbox WHERE not_before IS NOT NULL")
    assert [row["event_id"] for row in rows] == [new.event_id]
    again = await write(replacing, emit=(new,), key="k")
    assert again.replayed
    assert encode_json(again.results) == encode_json(done.results)


@pytest.mark.parametrize("operations", [0, 1, 2])
async def test_a_message_is_cancelled_by_its_own_service_before_its_time(
    write: Writer, operations: int
) -> None:
    """Not one that waits for nothing, whose time has come, that another service sent, or a data member feigns."""
    soon = now() + timedelta(hours=1)
    mine, ready, due = (emission(key="a", not_before=moment) for moment in (soon, None, now()))
    await write(emit=(mine, ready, due))
    other = emission(key="a", not_before=soon, data={"x": ',"service":"api_service",'})
    await write.store.write(
        Write(caller="other_service", key="k", fingerprint=b"f", operations=(), emit=(other,))
    )
    cancelled = [each.event_id for each in (mine, ready, due, other)]
    for event_id in (*cancelled, uuid4()):
        await write(*(note(str(uuid4())) for _ in range(operations)), cancel=(event_id,))
    rows = await write.rows("SELECT event_id FROM hk_outbox")
    assert {row["event_id"] for row in rows} == set(cancelled) - {mine.event_id}


async def test_a_refused_write_cancels_nothing(write: Writer) -> None:
    """Nor does a dry run: a message is taken back with the transaction, or not at all."""
    waits = emission(key="a", not_before=now() + timedelta(hours=1))
    await write(emit=(waits,))
    record = await write.note("pen")
    for more in ({}, {"emit": (emission(key="b"),)}):
        stale = Upsert(
            resource=NOTES, id=record["id"], values={"title": "x"}, only="present", if_match='"7-1"'
        )
        with pytest.raises(StaleVersionError) as caught:
            await write(stale, cancel=(waits.event_id,), **more)
        assert caught.value.current == record["etag"]
    await write(note("ink"), cancel=(waits.event_id,), dry_run=True)
    assert len(await write.rows("SELECT event_id FROM hk_outbox")) == 1


async def test_a_lost_race_of_a_single_statement_is_a_replay(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is older than the lock and misses the key's row, which another replica has written meanwhile."""
    made = note("pen")
    first = await write(made, key="k")
    statement = write.store._writer._single_statement
    write_by_statement = statement.write

    async def blind(asked: Write) -> Any:
        await write.rows("UPDATE hk_keys SET key = 'hidden' WHERE key = 'k'")
        try:
            return await write_by_statement(asked)
        finally:
            await write.rows("UPDATE hk_keys SET key = 'k' WHERE key = 'hidden'")

    monkeypatch.setattr(statement, "write", blind)
    again = await write(made, key="k")
    assert again.replayed
    assert [result.record and str(result.record["id"]) for result in again.results] == [
        first.results[0].record and str(first.results[0].record["id"])
    ]
    assert len(await write.rows("SELECT FROM notes")) == 1


async def test_a_lost_race_of_a_transaction_is_a_replay(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like a refusal was the work of the key's former holder."""
    from hybridkit.dataservice._postgres import _writer

    record = await write.note("pen")
    change = Delete(resource=PLAIN, id=record["id"])
    made = await write(note("hard", resource=PLAIN, id=record["id"]))
    assert made.results[0].record is not None
    await write(change, key="k")

    async def nothing_yet(*_: Any) -> None:
        return None

    monkeypatch.setattr(_writer, "claim_key", nothing_yet)
    assert (await write(change, key="k")).replayed


async def test_errors_have_their_operation(write: Writer) -> None:
    """The pointer begins with the operation's label, if it has one."""
    with pytest.raises(RejectedError, match="/operations/0/data/code"):
        await write(note("a", code="abcdef", label="operations/0"))
    with pytest.raises(InvalidRequestError):
        await write(note("a", code="abcdef"))
    assert repr(write.store._writer) == "PostgresWriter(['marked', 'notes', 'plain', 'tags'], InFlight(0))"


async def test_a_conflict_is_met_by_trying_again(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conflict of the single statement is repeated as a transaction."""
    statement = write.store._writer._single_statement

    async def lose(_: Write) -> None:
        raise UnnamedError

    monkeypatch.setattr(statement, "write", lose)
    assert (await write(note("pen"))).results[0].created
