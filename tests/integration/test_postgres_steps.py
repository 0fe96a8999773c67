"""What a reader sees can be asked for, and what lies between is compared, whatever SQL has put into the column."""

import operator
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    REAL,
    BigInteger,
    Date,
    DateTime,
    Double,
    Integer,
    Numeric,
    SmallInteger,
    Time,
    TypeDecorator,
)
from sqlalchemy.types import TypeEngine

from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._filters import Arguments
from hybridkit.dataservice._postgres._types._steps import steps_of

FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MILLISECOND, MICROSECOND = timedelta(milliseconds=1), timedelta(microseconds=1)

type Column = tuple[TypeEngine[Any], str, list[tuple[str, Any]], list[Any]]
"""A type, its name in SQL, what SQL keeps with what is shown of it, and what is asked for besides."""

WHOLE: list[Any] = [0, -1, 1.5, Decimal("-0.5"), 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, Decimal("1e400")]
MOMENTS: list[tuple[str, Any]] = [
    ("-infinity", FIRST),
    ("0044-03-15 00:00:00+00 BC", FIRST),
    ("0001-01-01 00:00:00+00", FIRST),
    ("2026-01-01 12:00:00+00", NOON),
    ("2026-01-01 12:00:00.0009+00", NOON),
    ("2026-01-01 12:00:00.001999+00", NOON + MILLISECOND),
    ("10000-01-01 00:00:00+00", LAST),
    ("infinity", LAST),
]
ASKED_MOMENTS: list[Any] = [
    NOON - MICROSECOND,
    NOON + MICROSECOND,
    FIRST + MICROSECOND,
    LAST - MILLISECOND,
    LAST + MICROSECOND,
]
FLOATS: list[tuple[str, Any]] = [("0.1", 0.1), ("-2.5", -2.5), ("1e30", 1e30)]
DECIMALS: list[tuple[str, Any]] = [("0.10", Decimal("0.1")), ("-7", Decimal(-7)), ("1e100", Decimal("1e100"))]

COLUMNS: list[Column] = [
    (SmallInteger(), "smallint", [("1", 1), ("-32768", -32768)], WHOLE),
    (Integer(), "integer", [("1", 1), ("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)], WHOLE),
    (BigInteger(), "bigint", [("1", 1), (str(-(2**63)), -(2**63)), (str(2**63 - 1), 2**63 - 1)], WHOLE),
    (Double(), "double precision", FLOATS, [0, 10**400, -(10**400), Decimal("1e-400"), 0.3]),
    (REAL(), "real", [("-2.5", -2.5), ("1", 1.0)], [0, 1e39, -1e39, 10**400]),
    (
        Numeric(),
        "numeric",
        DECIMALS,
        [0, Decimal("0.3"), Decimal("1e140000"), Decimal("-1e140000"), Decimal("1e-20000")],
    ),
    (Numeric(12, 2), "numeric(12, 2)", DECIMALS[:2], [Decimal("0.101"), 10**30, Decimal("-1e-20000")]),
    (Numeric(asdecimal=False), "numeric", [("0.1234567890123456789", 0.12345678901234568)], [0, 1, 10**400]),
    (DateTime(timezone=True), "timestamptz", MOMENTS, ASKED_MOMENTS),
    (DateTime(), "timestamp", [(text.replace("+00", ""), shown) for text, shown in MOMENTS], ASKED_MOMENTS),
    (
        Date(),
        "date",
        [
            ("-infinity", date.min),
            ("0044-03-15 BC", date.min),
            ("2026-01-01", date(2026, 1, 1)),
            ("infinity", date.max),
        ],
        [date(2025, 12, 31), date(9999, 12, 30)],
    ),
    (
        Time(),
        "time",
        [("00:00", time.min), ("12:00:00.000001", time(12, 0, 0, 1)), ("24:00", time.max)],
        [time(12)],
    ),
]
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Any]:
    connection = await connect(
        postgres_url, timeout_seconds=10, command_seconds=30, application_name="the test"
    )
    await connection.execute("SET timezone = 'Asia/Tokyo'")  # means nothing
    yield connection
    await connection.close()


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column[1]}, {column[0]!r}")
async def test_what_is_asked_for_is_compared_with_what_is_shown(database: Any, column: Column) -> None:
    """Every operator is right for values of the column, between them and beyond them, and NULL for no value."""
    kind, name, kept, more = column
    shown = [value for _, value in kept]
    rows = ", ".join(f"({n}, CAST('{text}' AS {name}))" for n, (text, _) in enumerate(kept))
    source = f"(VALUES {rows}, (-1, CAST(NULL AS {name}))) AS kept(n, x)"
    questions = [(word, asked) for asked in (*shown, *more) for word in OPERATORS]
    questions += [("in", (asked, more[0])) for asked in (*shown, *more)]
    wrong: list[object] = []
    for word, asked in questions:
        steps, arguments = steps_of(kind, asked[0] if word == "in" else asked), Arguments()
        assert steps is not None
        condition = steps.compared("kept.x", word, asked, arguments.add)
        found = await database.fetch(f"SELECT n, {condition} AS holds FROM {source}", *arguments.values)
        compare: Callable[[Any, Any], Any] = OPERATORS.get(word, _is_in)
        expected = {n: compare(value, asked) for n, value in enumerate(shown)} | {-1: None}
        if {row["n"]: row["holds"] for row in found} != expected:
            wrong.append((word, asked, condition))
    assert wrong == []


def _is_in(value: Any, asked: Any) -> bool:
    return value in asked


class Own(TypeDecorator[int]):
    """A type of somebody else's making."""

    impl = Integer
    cache_ok = True


@pytest.mark.parametrize(
    ("kind", "value"), [(Own(), 1), (Integer(), True), (Integer(), "1"), (DateTime(), 1), (Date(), NOON)]
)
def test_what_is_no_value_of_the_column_is_left_to_it(kind: TypeEngine[Any], value: Any) -> None:
    """A value of another type, or of a custom type, is compared as it is."""
    assert steps_of(kind, value) is None
