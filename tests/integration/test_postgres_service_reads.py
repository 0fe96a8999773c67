"""What PostgreSQL prints has the bytes of `encode_json`; batches, counts, aggregations, exports and asking."""

import asyncio
import enum
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    Text,
    Uuid,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.codec import encode_json
from hybridkit.context import RequestContext, bind
from hybridkit.contract import MAX_PAGE_BYTES
from hybridkit.dataservice import RecordColumns, SoftDeleteColumns
from hybridkit.dataservice._postgres._driver._pool import Pool, Session
from hybridkit.dataservice._postgres._reader import PostgresReader
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._operations import CallAnswer
from hybridkit.errors import (
    AnswerTooLargeError,
    InvalidQueryError,
    MisuseError,
    NotSupportedError,
    OverloadedError,
)
from hybridkit.resources import (
    Aggregation,
    Compare,
    Function,
    Query,
    Record,
    Resource,
    average,
    count,
    distinct,
    largest,
    smallest,
    total,
)


class Kind(enum.Enum):
    BIG = "big one"
    SMALL = 'sm"all'


class Nothing(BaseModel):
    pass


class Thing(Record):
    name: str | None = None
    price: Decimal | None = None
    exact: Decimal | None = None
    ratio: float | None = None
    real: float | None = None
    number: int | None = None
    flag: bool | None = None
    at: datetime | None = None
    local: datetime | None = None
    day: date | None = None
    document: Any = None
    raw: Any = None
    tags: list[str] | None = None
    counts: list[int] | None = None
    kind: Kind | None = None
    mood: str | None = None
    other: UUID | None = None


class Odd(Record):
    """What Python has to print."""

    opens: time | None = None
    title: str = ""


class Listing(Record):
    """Lists of what is printed otherwise alone than in an array."""

    kinds: list[Kind | str] | None = None
    codes: list[str] | None = None


FIELDS = tuple(name for name in Thing.model_fields if name not in Record.model_fields)
THINGS = Resource(
    "things",
    record=Thing,
    create=Nothing,
    update=Nothing,
    filterable=(*FIELDS, "document.size"),
    sortable=(*FIELDS, "document.size"),
    soft_delete=True,
)
ODDS = Resource(
    "odds", record=Odd, create=Nothing, update=Nothing, filterable=("opens", "title"), sortable=("title",)
)
LISTINGS = Resource("listings", record=Listing, create=Nothing, update=Nothing)


class Base(DeclarativeBase):
    pass


class ThingTable(RecordColumns, SoftDeleteColumns, Base):
    __tablename__ = "things"
    name: Mapped[str | None] = mapped_column(Text)
    price: Mapped[Any] = mapped_column(Numeric(14, 2), nullable=True)
    exact: Mapped[Any] = mapped_column(Numeric(), nullable=True)
    ratio: Mapped[Any] = mapped_column(Float(53), nullable=True)
    real: Mapped[Any] = mapped_column(REAL(), nullable=True)
    number: Mapped[Any] = mapped_column(BigInteger(), nullable=True)
    flag: Mapped[bool | None]
    at: Mapped[Any] = mapped_column(DateTime(timezone=True), nullable=True)
    local: Mapped[Any] = mapped_column(DateTime(), nullable=True)
    day: Mapped[date | None]
    document: Mapped[Any] = mapped_column(JSONB, nullable=True)
    raw: Mapped[Any] = mapped_column(JSON, nullable=True)
    tags: Mapped[Any] = mapped_column(ARRAY(Text), nullable=True)
    counts: Mapped[Any] = mapped_column(ARRAY(Integer), nullable=True)
    kind: Mapped[Any] = mapped_column(Enum(Kind, name="kind"), nullable=True)
    mood: Mapped[Any] = mapped_column(Enum("good", "b'ad", name="mood"), nullable=True)
    other: Mapped[Any] = mapped_column(Uuid(), nullable=True)
    secret: Mapped[str] = mapped_column(default="never shown")


class OddTable(RecordColumns, Base):
    __tablename__ = "odds"
    opens: Mapped[time | None]
    title: Mapped[str]


class ListingTable(RecordColumns, Base):
    __tablename__ = "listings"
    kinds: Mapped[Any] = mapped_column(ARRAY(Enum(Kind, name="kind")), nullable=True)
    codes: Mapped[Any] = mapped_column(ARRAY(CHAR(3)), nullable=True)


class Reading:
    """A reader of the tables, and the way around it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.tables = {
            "things": ResourceTable(THINGS, ThingTable),
            "odds": ResourceTable(ODDS, OddTable),
            "listings": ResourceTable(LISTINGS, ListingTable),
        }
        self.reader = PostgresReader(pool, self.tables)

    async def add(self, rows: list[dict[str, Any]], mapped: Any = ThingTable) -> list[UUID]:
        ids = [UUID(int=n) for n in range(len(rows))]
        numbered = [{"id": record_id, **row} for record_id, row in zip(ids, rows, strict=True)]
        async with self.pool.session() as session:
            await session.execute(text(f"TRUNCATE {mapped.__tablename__}"))
            for row in numbered:
                await session.execute(insert(mapped).values(**row))
        return ids

    async def documents(self, resource: Any) -> list[Any]:
        """The records as Python has them, by id."""
        table = self.tables[resource.name]
        async with self.pool.session() as session:
            rows = await session.execute(select(*table.all).order_by(table["id"]))
        return [table.document(row) for row in rows]

    async def exported(self, resource: Any, query: Query) -> bytes:
        return b"".join([lines.body async for lines in self.reader.export(resource, query)])


@asynccontextmanager
async def reading(url: str, **options: Any) -> AsyncGenerator[Reading]:
    pool = Pool(url, application_name="reading", **{"pool_size": 4, **options})
    try:
        yield Reading(pool)
    finally:
        await pool.close()


@pytest.fixture
async def things(postgres_url: str) -> AsyncIterator[Reading]:
    """The tables, empty."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    async with reading(postgres_url) as found:
        yield found


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
moments = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30))
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=64) | st.integers(-(10**18), 10**18).map(float)
decimals = st.builds(
    lambda digits, exponent, sign: Decimal((sign, digits, -exponent)),
    st.lists(st.integers(0, 9), min_size=1, max_size=25).map(tuple),
    st.integers(0, 25),
    st.sampled_from([0, 1]),
) | st.sampled_from([Decimal(value) for value in ("NaN", "Infinity", "-Infinity", "0.00", "1E+3")])
documents = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def perhaps(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


rows = st.fixed_dictionaries(
    {
        "name": perhaps(words),
        "price": perhaps(st.decimals(-(10**11), 10**11, places=2)),
        "exact": perhaps(decimals),
        "ratio": perhaps(floats),
        "real": perhaps(st.floats(width=32)),
        "number": perhaps(integers),
        "flag": perhaps(st.booleans()),
        "at": perhaps(moments.map(lambda moment: moment.replace(tzinfo=UTC))),
        "local": perhaps(moments),
        "day": perhaps(st.dates() | st.sampled_from([date.min, date.max])),
        "document": documents,
        "raw": documents,
        "tags": perhaps(st.lists(st.none() | words, max_size=3)),
        "counts": perhaps(st.lists(st.integers(-5, 5), max_size=3)),
        "kind": perhaps(st.sampled_from(Kind)),
        "mood": perhaps(st.sampled_from(["good", "b'ad"])),
        "other": perhaps(st.uuids()),
    }
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(rows, min_size=1, max_size=12))
async def test_postgresql_prints_the_bytes_of_the_codec(things: Reading, added: list[dict[str, Any]]) -> None:
    """For every type and every kind of read, the database's JSON and Python's are the same."""
    ids = await things.add(added)
    expected = await things.documents(THINGS)
    assert await things.reader.get_many(THINGS, ids) == encode_json(expected)
    found = await things.reader.find(THINGS, Query(), after=None)
    assert found.items == encode_json(expected)
    lines = b"".join(encode_json(document) + b"\n" for document in expected)
    assert await things.exported(THINGS, Query()) == lines
    one = await things.reader.get(THINGS, ids[0])
    assert one is not None
    assert (one.body, one.etag) == (encode_json(expected[0]), expected[0]["etag"])


@pytest.mark.parametrize(
    "value", [1e-5, 9.9e-6, 1e15, 1e16, 123456789012345680.0, -0.0, 5e-324, 1e100, 0.1, 100.0]
)
async def test_floats_are_printed_as_orjson_does(things: Reading, value: float) -> None:
    """PostgreSQL's JSON has the same digits as the codec's for every float."""
    [record_id] = await things.add([{"ratio": value}])
    found = await things.reader.get(THINGS, record_id)
    assert found is not None
    assert b'"ratio":' + orjson.dumps(value) + b"," in found.body


async def test_the_elements_of_an_array_are_shown_as_what_is_alone(things: Reading) -> None:
    """Elements are shown as a column of their type: enumerations by value, unknown labels, texts without padding."""
    await things.add([{"kinds": [Kind.BIG, None], "codes": ["a", None, "b c"]}], ListingTable)
    async with things.pool.session() as session:
        await session.execute(text("ALTER TYPE kind ADD VALUE 'NEW'"))
    async with things.pool.session() as session:
        await session.execute(text("UPDATE listings SET kinds = kinds || 'NEW'::kind"))
    expected = {"kinds": ["big one", None, "NEW"], "codes": ["a", None, "b c"]}
    found = await things.reader.find(LISTINGS, Query(), after=None)
    [shown] = orjson.loads(found.items)
    assert {name: shown[name] for name in expected} == expected
    assert found.items == encode_json(await things.documents(LISTINGS))


async def test_documents_are_printed_as_python_would(things: Reading) -> None:
    """They have no spaces, keep the order of members, and print floats as orjson does and integers exactly."""
    [record_id] = await things.add([{}])
    raw = '{ "b" : 1.10, "a" : 1e2, "n" : 123456789012345678901234567890, "a" : [ ] }'
    async with things.pool.session() as session:
        await session.execute(text("UPDATE things SET raw = CAST(:raw AS json)").bindparams(raw=raw))
    found = await things.reader.get(THINGS, record_id)
    assert found is not None
    assert b'"raw":' + b'{"b":1.1,"a":[],"n":123456789012345678901234567890}' in found.body


async def test_what_is_not_in_the_model_is_not_shown(things: Reading) -> None:
    """Columns beyond the record's fields stay in the table."""
    await things.add([{"name": "a"}])
    found = await things.reader.find(THINGS, Query(), after=None)
    [record] = orjson.loads(found.items)
    assert list(record) == list(Thing.model_fields)


async def test_what_postgresql_cannot_print_python_does(things: Reading) -> None:
    """A table with a column of such a type is printed by Python, with the same answers."""
    ids = await things.add(
        [{"opens": time(9, n), "title": f"t{n}"} for n in range(5)] + [{"title": "t5"}], OddTable
    )
    expected = await things.documents(ODDS)
    one = await things.reader.get(ODDS, ids[2])
    assert one is not None
    assert (one.body, one.etag) == (encode_json(expected[2]), expected[2]["etag"])
    assert await things.reader.get(ODDS, UUID(int=99)) is None
    answer = await things.reader.get_many(ODDS, [ids[1], UUID(int=99), ids[0]])
    assert answer == encode_json([expected[1], None, expected[0]])
    query = Query(where=Compare("title", "gt", "t0"), order=(("title", "desc"),), page_size=2)
    page = await things.reader.find(ODDS, query, after=None)
    following = await things.reader.find(ODDS, query, after=page.position)
    assert page.items + following.items == encode_json(expected[5:3:-1]) + encode_json(expected[3:1:-1])
    assert (await things.reader.find(ODDS, query, after=following.position)).position is None
    lines = b"".join(encode_json(document) + b"\n" for document in expected)
    assert await things.exported(ODDS, Query()) == lines
    selected = await things.reader.find(ODDS, Query(select=("title",), page_size=1), after=None)
    assert orjson.loads(selected.items) == [{"title": "t0", "etag": f"W/{expected[0]['etag']}"}]
    with pytest.raises(InvalidQueryError, match="shown"):
        await things.reader.aggregate(ODDS, Aggregation(functions={"n": count()}, group_by=("opens",)))


# ── how much ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("printed", [True, False], ids=["by postgresql", "by python"])
async def test_no_more_is_read_than_one_answer_has_room_for(
    things: Reading, printed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL counts the bytes, so records beyond a page or a batch never reach this process."""
    resource, field, mapped = (THINGS, "name", ThingTable) if printed else (ODDS, "title", OddTable)
    ids = await things.add([{field: "x" * 1_000_000} for _ in range(12)], mapped)
    arrived: list[int] = []

    def counted(rows: Any) -> Any:
        arrived.append(sum(len(value) for row in rows for value in row if isinstance(value, str)))
        return rows

    fetch, execute = Pool.fetch, Session.execute
    monkeypatch.setattr(Pool, "fetch", lambda *a, **k: _then(fetch(*a, **k), counted))
    monkeypatch.setattr(Session, "execute", lambda *a, **k: _then(execute(*a, **k), counted))
    after, pages = None, list[list[str]]()
    while after is not None or not pages:
        page = await things.reader.find(resource, Query(page_size=1000), after=after)
        pages.append([item["id"] for item in orjson.loads(page.items)])
        after = page.position
    assert pages == [[str(record_id) for record_id in ids[n : n + 4]] for n in (0, 4, 8)]
    with pytest.raises(AnswerTooLargeError, match="fewer"):
        await things.reader.get_many(resource, ids)
    assert len(orjson.loads(await things.reader.get_many(resource, [*ids[:4], UUID(int=99)]))) == 5
    assert await things.reader.get_many(resource, []) == b"[]"
    assert max(arrived) < MAX_PAGE_BYTES + 1_100_000


async def _then[T](rows: Awaitable[T], look: Callable[[T], T]) -> T:
    return look(await rows)


# ── which ────────────────────────────────────────────────────────────────────────────────────────


async def test_many_come_in_the_order_of_their_ids(things: Reading) -> None:
    """A batch repeats an id that is asked for twice and has null for an unknown one."""
    ids = await things.add([{"name": f"{n}"} for n in range(3)])
    answer = orjson.loads(await things.reader.get_many(THINGS, [ids[2], UUID(int=99), ids[0], ids[2]]))
    assert [item and item["name"] for item in answer] == ["2", None, "0", "2"]
    assert await things.reader.get_many(THINGS, []) == b"[]"


async def test_what_is_deleted_is_seen_by_no_read(things: Reading) -> None:
    """A softly deleted record is hidden from reads, counts, exports and aggregations."""
    ids = await things.add([{"name": "a"}, {"name": "b", "deleted_at": datetime.now(UTC)}])
    reader = things.reader
    assert await reader.get(THINGS, ids[1]) is None
    assert orjson.loads(await reader.get_many(THINGS, ids))[1] is None
    assert len(orjson.loads((await reader.find(THINGS, Query(), after=None)).items)) == 1
    assert await reader.count(THINGS, None, exact=True) == 1
    assert (await things.exported(THINGS, Query())).count(b"\n") == 1
    assert orjson.loads(await reader.aggregate(THINGS, Aggregation(functions={"n": count()}))) == [{"n": 1}]


async def test_pages_go_on_behind_any_type(things: Reading) -> None:
    """Positions are exact for every type, so nothing is skipped and nothing comes twice."""
    ids = await things.add(
        [
            {
                "name": "x" * n,
                "exact": Decimal(n) / 3,
                "ratio": n / 3,
                "at": datetime(2026, 1, 1, microsecond=n, tzinfo=UTC),
                "local": datetime(2026, 1, 1, microsecond=n),
                "day": date(2026, 1, 1 + n),
                "flag": n % 2 == 0,
                "kind": Kind.BIG if n % 2 else Kind.SMALL,
                "other": UUID(int=n),
                "document": {"size": 2**53 + n},
            }
            for n in range(5)
        ]
        + [{}]
    )
    for field in ("name", "exact", "ratio", "at", "local", "day", "flag", "kind", "other", "document.size"):
        query, seen, after = Query(order=((field, "desc"),), page_size=1), [], None
        while True:
            page = await things.reader.find(THINGS, query, after=after)
            seen += [UUID(item["id"]) for item in orjson.loads(page.items)]
            if (after := page.position) is None:
                break
        assert sorted(seen) == ids, field


async def test_a_count_is_exact_or_what_the_planner_expects(things: Reading) -> None:
    """An estimate is near the real number once the table is analyzed."""
    await things.add([{"number": n % 10} for n in range(200)])
    async with things.pool.session() as session:
        await session.execute(text("ANALYZE things"))
    five = Compare("number", "lt", 5)
    assert await things.reader.count(THINGS, None, exact=True) == 200
    assert await things.reader.count(THINGS, five, exact=True) == 100
    assert await things.reader.count(THINGS, None, exact=False) == pytest.approx(200, rel=0.1)
    assert await things.reader.count(THINGS, five, exact=False) == pytest.approx(100, rel=0.3)


# ── aggregations ─────────────────────────────────────────────────────────────────────────────────


async def aggregated(things: Reading, *, group_by: tuple[str, ...] = (), **more: Any) -> list[dict[str, Any]]:
    asked = Aggregation(**more, group_by=group_by)
    body = await things.reader.aggregate(THINGS, asked)
    assert body == encode_json(orjson.loads(body))
    return list(orjson.loads(body))


async def test_groups_have_their_functions(things: Reading) -> None:
    """Every function works on columns and on paths into documents, exactly for decimals."""
    await things.add(
        [
            {"name": "a", "price": Decimal("1.50"), "number": 1, "ratio": 0.5, "flag": True},
            {"name": "a", "price": Decimal("2.00"), "number": 2, "ratio": 1.5, "flag": False},
            {"name": "b", "price": None, "number": None},
            {"price": Decimal("1.00"), "number": 2**62, "document": {"size": 3}, "other": UUID(int=7)},
        ]
    )
    functions = {
        "n": count(),
        "names": distinct("name"),
        "sum": total("price"),
        "whole": total("number"),
        "mean": average("price"),
        "middle": average("ratio"),
        "most": largest("flag"),
        "least": smallest("price"),
    }
    rows = await aggregated(things, functions=functions, group_by=("name",))
    assert [list(row.values()) for row in rows] == [
        ["a", 2, 1, "3.50", 3, "1.75", 1.0, True, "1.50"],
        ["b", 1, 1, None, None, None, None, None, None],
        [None, 1, 0, "1.00", 2**62, "1", None, None, "1.00"],
    ]
    [whole] = await aggregated(
        things,
        functions={
            "sum": total("document.size"),
            "least": smallest("document.size"),
            "ids": largest("other"),
            "mean": average("document.size"),
        },
        where=Compare("name", "is", None),
    )
    assert whole == {"sum": 3, "least": 3, "ids": str(UUID(int=7)), "mean": 3.0}


async def test_rows_are_ordered_and_limited(things: Reading) -> None:
    """Groups come by their fields unless another order is asked for."""
    await things.add([{"name": name} for name in "abbccc"])
    asked: dict[str, Any] = {"functions": {"n": count()}, "group_by": ("name",)}
    assert [row["n"] for row in await aggregated(things, **asked)] == [1, 2, 3]
    most = await aggregated(things, **asked, order=(("n", "desc"),), limit=2)
    assert most == [{"name": "c", "n": 3}, {"name": "b", "n": 2}]
    assert await aggregated(things, **asked, where=Compare("name", "eq", "nobody")) == []


@pytest.mark.parametrize(
    "function", [total("name"), average("at"), total("flag"), total("other"), Function("max", "raw")]
)
async def test_a_function_that_the_type_does_not_know_is_refused(things: Reading, function: Function) -> None:
    """A sum of texts, for one, is an invalid query."""
    with pytest.raises(InvalidQueryError):
        await aggregated(things, functions={"x": function})


async def test_pipelines_are_for_mongodb(things: Reading) -> None:
    """The refusal says what PostgreSQL has instead."""
    with pytest.raises(NotSupportedError, match="group_by"):
        await things.reader.run_pipeline(THINGS, [])


# ── exports ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_export_is_one_view_in_bounded_pieces(things: Reading) -> None:
    """Later writes are not in it, and a piece has about 256 KiB."""
    await things.add([{"name": "x" * 2000, "number": n} for n in range(600)])
    sizes: list[int] = []
    seen: list[int] = []
    async for lines in things.reader.export(THINGS, Query(order=(("number", "desc"),))):
        if not sizes:
            async with things.pool.session() as session:
                await session.execute(text("DELETE FROM things WHERE number < 300"))
        sizes.append(len(lines.body))
        found = [orjson.loads(line) for line in lines.body.splitlines()]
        assert len(found) == lines.records
        seen += [record["number"] for record in found]
    assert seen == list(range(599, -1, -1))
    assert len(sizes) > 4
    assert max(sizes) < 400_000


async def test_the_deadline_of_an_export_is_that_of_each_piece(things: Reading) -> None:
    """A reader who is slower than the deadline still gets every piece."""
    await things.add([{"name": "x" * 4000} for _ in range(200)])
    with bind(RequestContext().within(0.4)):
        pieces = 0
        async for _ in things.reader.export(THINGS, Query()):
            pieces += 1
            await asyncio.sleep(0.3)
    assert pieces > 2


async def test_exports_leave_connections_for_others(postgres_url: str, things: Reading) -> None:
    """Further exports are refused until a reader has left one, whose connection is free at once."""
    await things.add([{"name": "a"}, {"name": "b"}])
    export = things.reader.export(THINGS, Query())
    await anext(export)
    with pytest.raises(OverloadedError) as refused:
        await anext(things.reader.export(THINGS, Query()))
    assert refused.value.retry_after_seconds == 5.0
    assert await things.reader.count(THINGS, None, exact=True) == 2
    await export.aclose()
    assert things.pool._permits._value == things.pool.pool_size
    assert (await things.exported(THINGS, Query())).count(b"\n") == 2


async def test_an_export_of_what_cannot_be_compared_is_refused(things: Reading) -> None:
    """A number beyond every integer finds nothing; a text that PostgreSQL can't have is an invalid query."""
    assert await things.exported(THINGS, Query(where=Compare("number", "eq", 10**30))) == b""
    with pytest.raises(InvalidQueryError):
        await things.exported(THINGS, Query(where=Compare("name", "eq", "\0")))


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_that_asks_can_change_nothing(things: Reading) -> None:
    """A statement that writes in a reading call is the code's mistake."""
    await things.add([{"name": "a"}])

    async def names(connection: Any) -> CallAnswer:
        found = (await connection.execute(select(ThingTable.name))).scalars().all()
        return CallAnswer(encode_json(found))

    async def change(connection: Any) -> CallAnswer:
        await connection.execute(text("DELETE FROM things"))
        return CallAnswer(b"")

    assert await things.reader.ask(names) == b'["a"]'
    with pytest.raises(MisuseError, match="only reads"):
        await things.reader.ask(change)
    assert repr(things.reader) == "PostgresReader(['listings', 'odds', 'things'])"
