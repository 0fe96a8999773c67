"""Values and orders of the MongoDB store, where no request gets them by itself."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import bson
import orjson
import pytest
from bson.decimal128 import Decimal128
from bson.errors import InvalidDocument
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.dataservice._mongo._collection import DocumentCollection, ResourceCollection
from hybridkit.dataservice._mongo._ordering import Ordering
from hybridkit.dataservice._mongo._values import CODEC, from_bson, to_bson
from hybridkit.errors import PageTokenError
from hybridkit.resources import Query, Record, Resource


class NewPage(BaseModel):
    number: int


class Page(NewPage, Record):
    title: str = "untitled"
    note: str | None = "none yet"


PAGES = ResourceCollection(
    Resource("pages", record=Page, create=NewPage, update=NewPage, sortable=("number",)), DocumentCollection()
)


class Weight(Enum):
    LIGHT = Decimal("0.5")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Weight.LIGHT, Decimal128("0.5")),
        (date(2026, 1, 15), "2026-01-15"),
        (timedelta(seconds=3), "PT3S"),
        (b"\x00", b"\x00"),
        ({UUID(int=7): (1, Decimal(2))}, {"00000000-0000-0000-0000-000000000007": [1, Decimal128("2")]}),
        (
            datetime(2026, 1, 15, 12, 0, 0, 1999, tzinfo=UTC),
            datetime(2026, 1, 15, 12, 0, 0, 1000, tzinfo=UTC),
        ),
    ],
)
def test_what_bson_does_not_know_is_stored_as_json_has_it(value: object, stored: object) -> None:
    """Dates, durations and identifiers are texts, also as keys of objects; decimals and times have types of BSON."""
    assert to_bson(value) == stored


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$ref", "$id", "$db", "$oid", "$date", "a.b", "", "_id", "a"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    document=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), _JSON
    )
)
def test_any_json_is_read_as_it_was_written_or_refused(document: dict[str, Any]) -> None:
    """Keys that mean something to drivers and shells are keys."""
    try:
        stored = to_bson(document)
        read = bson.decode(bson.encode({"v": stored}, codec_options=CODEC), CODEC)["v"]
    except InvalidDocument:
        assert '"$db":null' in orjson.dumps(document).decode()
        return
    assert from_bson(read) == document
    assert orjson.dumps(from_bson(read)) == orjson.dumps(from_bson(stored))


def test_moments_come_back_in_utc_however_the_driver_gives_them() -> None:
    """A time without a zone is UTC, and one of another zone is converted."""
    east = datetime(2026, 1, 15, 14, tzinfo=timezone(timedelta(hours=2)))
    assert from_bson([datetime(2026, 1, 15, 12), east]) == [datetime(2026, 1, 15, 12, tzinfo=UTC)] * 2


def test_a_field_that_the_record_got_later_has_its_default() -> None:
    """A field that may be null can't tell that from null, which is not stored."""
    assert PAGES.value({"_id": "x"}, "title") == "untitled"
    assert PAGES.value({"_id": "x"}, "note") is None
    assert PAGES.value({"_id": "x"}, "number") is None
    assert repr(PAGES) == "ResourceCollection(Resource('pages', record=Page), 'pages')"


@pytest.mark.parametrize("position", [["1"], ["many", str(UUID(int=7))], [1, "no id"]])
def test_a_position_of_another_order_is_refused(position: list[Any]) -> None:
    """A token with too few values, or with something else than BSON, is no server error."""
    with pytest.raises(PageTokenError):
        Ordering(PAGES, Query(order=(("number", "asc"),))).after(position)
