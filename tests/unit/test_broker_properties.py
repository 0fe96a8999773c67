"""A message's properties are cut and joined without changing what the publisher chose."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, header

from hybridkit.dev._broker import _properties as fields
from hybridkit.dev._broker._properties import Properties

TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32, allow_nan=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(TEXT, VALUES, max_size=5)


def encoded(**options: Any) -> bytes:
    return header.ContentHeader(properties=commands.Basic.Properties(**options)).marshal()[12:]


def decoded(raw: bytes) -> commands.Basic.Properties:
    content = header.ContentHeader()
    content.unmarshal(b"\0\x3c" + b"\0" * 10 + raw)
    return content.properties


@given(headers=HEADERS, message_id=TEXT, expiration=TEXT, priority=st.integers(0, 255))
def test_a_copy_changes_only_what_is_asked(
    headers: dict[str, Any], message_id: str, expiration: str, priority: int
) -> None:
    """Headers are added, one property is left out, and all others are equal."""
    raw = encoded(
        headers=headers, message_id=message_id, expiration=expiration, priority=priority, app_id="app"
    )
    properties = Properties(raw)
    copy = properties.with_headers(
        {**properties.headers, "mine": fields.long_string("ä")}, without="expiration"
    )
    read = decoded(copy.raw)
    assert read.headers == {**headers, "mine": "ä"}
    assert (read.message_id or "", read.priority, read.app_id, read.expiration) == (
        message_id,
        priority,
        "app",
        None,
    )


def test_values_are_those_that_pamqp_reads() -> None:
    """pamqp decodes the encoded numbers, texts, times, lists and tables."""
    entries = {
        "number": fields.long_integer(-(2**40)),
        "text": fields.long_string("ä"),
        "time": fields.timestamp(0),
        "list": fields.array(fields.long_string("a"), fields.table({"b": fields.long_integer(1)})),
    }
    read = decoded(Properties(encoded()).with_headers(entries).raw).headers
    assert read == {
        "number": -(2**40),
        "text": "ä",
        "time": datetime(1970, 1, 1, tzinfo=UTC),
        "list": ["a", {"b": 1}],
    }


def test_without_headers_there_is_no_table() -> None:
    """A copy with no headers does not have the property at all."""
    assert Properties(encoded(headers={"a": 1})).with_headers({}).raw == encoded()


def test_what_is_absent_is_none() -> None:
    """This holds for a property and for a header."""
    properties = Properties(encoded(headers={"a": 1}))
    assert properties.text("expiration") is None
    assert (properties.header("a"), properties.header("b")) == (1, None)


@given(raw=st.binary(max_size=60))
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    """Random bytes raise ValueError or are joined again unchanged."""
    try:
        properties = Properties(raw)
    except ValueError:
        return
    assert Properties(properties.with_headers(properties.headers).raw).headers == properties.headers


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\0\1",
        b"\x20\0\0\0\0\3\1aZ",
        b"\x20\0\0\0\0\x0b\1aF\0\0\0\5\1bS\0",
        b"\x20\0\0\0\0\7\1aA\0\0\0\1Z",
    ],
)
def test_tables_are_checked_to_their_depth(raw: bytes) -> None:
    """A malformed table within a table is refused before it reaches a consumer."""
    with pytest.raises(ValueError, match=r"."):
        Properties(raw)
