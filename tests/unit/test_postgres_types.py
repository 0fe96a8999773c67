"""Columns' types as parameters: nothing is cut, and what isn't known to be one value isn't taken for one."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import BIT, CITEXT, DOMAIN, INT4RANGE, JSONB, TIMESTAMP
from sqlalchemy.types import TypeEngine

from hybridkit.dataservice._postgres._types._parameters import (
    DIALECT,
    document_depth,
    is_scalar,
    parameter_type,
)
from hybridkit.dataservice._postgres._types._values import check_limits, fitted, in_texts, is_kept


class Code(TypeDecorator[str]):
    impl = String(5)
    cache_ok = True


class Doc(TypeDecorator[Any]):
    impl = JSONB
    cache_ok = True


@pytest.mark.parametrize(
    ("kind", "sql"),
    [
        (String(5), "TEXT"),
        (ARRAY(String(5)), "TEXT[]"),
        (ARRAY(String(5), dimensions=2), "TEXT[][]"),
        (Code(), "TEXT"),
        (ARRAY(Code()), "TEXT[]"),
        (DOMAIN("code", String(5)), "TEXT"),
        (BIT(3), "BIT VARYING"),
        (String().with_variant(ARRAY(String(5)), "postgresql"), "TEXT[]"),
        (JSON().with_variant(JSONB(), "postgresql"), "JSONB"),
        (CITEXT(), "CITEXT"),
        (Interval(), "INTERVAL"),
        (Numeric(10, 2), "NUMERIC(10, 2)"),
    ],
    ids=repr,
)
def test_a_cast_to_the_type_of_a_parameter_cuts_nothing_off(kind: TypeEngine[Any], sql: str) -> None:
    """Lengths are left out, so that a value that is too long is refused and not shortened."""
    assert parameter_type(kind).compile(dialect=DIALECT) == sql


def test_only_known_types_are_taken_for_one_value() -> None:
    """Arrays, documents, ranges and custom types can't be elements of an array."""
    known: list[TypeEngine[Any]] = [Integer(), Text(), Interval(), Numeric(), DOMAIN("d", Integer)]
    assert all(is_scalar(kind) for kind in known)
    others: list[TypeEngine[Any]] = [ARRAY(Integer), JSONB(), INT4RANGE(), Code(), DOMAIN("d", JSONB)]
    assert not any(is_scalar(kind) for kind in others)


def test_documents_go_as_texts_however_deep_their_array_is() -> None:
    """Each document of an array becomes the text of its JSON."""
    assert [document_depth(kind) for kind in (JSON(), ARRAY(JSONB), ARRAY(JSONB, dimensions=2), Doc())] == [
        0, 1, 2, None
    ]  # fmt: skip
    assert in_texts(JSONB(), [1, ["a"]]) == '[1,["a"]]'
    assert in_texts(ARRAY(JSONB), [[1], None]) == ["[1]", None]
    assert in_texts(ARRAY(JSONB, dimensions=2), [[[1]], [{}]]) == [["[1]"], ["{}"]]
    assert in_texts(ARRAY(Integer), [1]) == [1]


def test_the_elements_of_an_array_are_fitted_as_values_of_a_column_are() -> None:
    """Texts become numbers and times lose what the column doesn't keep."""
    assert fitted(ARRAY(Integer), ("1", None)) == [1, None]
    at = datetime(2026, 1, 1, microsecond=1999, tzinfo=UTC)
    assert fitted(ARRAY(TIMESTAMP()), [at]) == [datetime(2026, 1, 1, microsecond=1000)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ARRAY(Integer), "12"),
        (ARRAY(Integer), ["a"]),
        (ARRAY(Integer), [[], []]),
        (ARRAY(Integer), [[1], [2, 3]]),
        (ARRAY(Integer), [[[1]], [2]]),
        (ARRAY(JSONB, dimensions=2), [1]),
        (Numeric(), Decimal("1e131072")),
        (Numeric(), Decimal("-1e131072")),
        (Numeric(), Decimal("1e-16384")),
        (Numeric(), Decimal("NaN")),
    ],
    ids=repr,
)
def test_what_can_not_be_held_is_refused(kind: TypeEngine[Any], value: object) -> None:
    """A value that the column would change or fail on says what the column holds."""
    with pytest.raises(ValueError, match=r"hold|length|JSON|int"):
        fitted(kind, value)


@pytest.mark.parametrize("amount", ["1.555", "0.001", "-2.0050001", "1e-3"])
def test_digits_that_a_column_would_round_away_are_refused(amount: str) -> None:
    """PostgreSQL would round the value silently."""
    with pytest.raises(ValueError, match="2 digits behind the point"):
        check_limits(Numeric(10, 2), Decimal(amount))


@pytest.mark.parametrize("amount", ["1.55", "1.5500", "0.0000", "1e3", "-99999999.99", "0"])
def test_zeros_at_the_end_are_no_digits(amount: str) -> None:
    """A decimal with more zeros than the column's scale fits."""
    check_limits(Numeric(10, 2), Decimal(amount))


@pytest.mark.parametrize("kind", [JSON(), JSONB(), ARRAY(JSONB)])
@pytest.mark.parametrize("document", ["a\0", ["\0"], {"a": [{"b": "\0"}]}, {"\0": 1}])
def test_a_document_with_a_nul_is_refused(kind: TypeEngine[Any], document: Any) -> None:
    """U+0000 in a key or text of a document has no form in PostgreSQL."""
    with pytest.raises(ValueError, match="without U\\+0000"):
        fitted(kind, [document] if isinstance(kind, ARRAY) else document)


def test_a_backslash_is_no_nul() -> None:
    """A text that looks like the escape of U+0000 is only a text."""
    assert fitted(JSONB(), ["\\u0000"]) == ["\\u0000"]


KEPT_KINDS: list[TypeEngine[Any]] = [
    Text(),
    String(3),
    CHAR(3),
    SmallInteger(),
    Integer(),
    BigInteger(),
    Boolean(),
    Uuid(),
    Uuid(as_uuid=False),
    Numeric(4, 2),
    Numeric(4),
    Numeric(),
    Float(4, asdecimal=True),
    Enum("abc", "b", name="letters"),
    LargeBinary(),
    JSON(),
    Code(),
    ARRAY(Text()),
]


@given(
    kind=st.sampled_from(KEPT_KINDS),
    value=st.one_of(
        st.text(max_size=5),
        st.sampled_from(["\0", "abc", "a ", "abcd"]),
        st.integers(-(2**65), 2**65),
        st.sampled_from([2**15, -(2**15), 2**31, -(2**31) - 1, 2**63]),
        st.booleans(),
        st.uuids(),
        st.decimals(places=2, min_value=-200, max_value=200),
        st.decimals(),
        st.sampled_from([Decimal("99.99"), Decimal(100), Decimal("1E+1"), Decimal("0.000"), Decimal("-0.1")]),
        st.floats(),
        st.binary(max_size=3),
        st.none(),
    ),
)
def test_a_value_that_is_kept_as_it_is_fits(kind: TypeEngine[Any], value: object) -> None:
    """A value that skips the conversion is one that the conversion would take and leave as it is."""
    if is_kept(kind, value):
        assert fitted(kind, value) is value
        check_limits(kind, value)
