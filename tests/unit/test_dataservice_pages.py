"""Page tokens: bound to their query, not to be made up."""

import string
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.dataservice._http._page_tokens import read_token, write_token
from hybridkit.dataservice._store._etags import State
from hybridkit.errors import PageTokenError
from hybridkit.resources import Compare, Query, Record, Resource

KEY = b"k" * 32


class NewItem(BaseModel):
    name: str


class Item(NewItem, Record):
    pass


ITEMS = Resource(
    "items", record=Item, create=NewItem, update=NewItem, filterable=("name",), sortable=("name",)
)
QUERY = Query(where=Compare("name", "eq", "a"), order=(("name", "asc"),))


def read(token: str, query: Query = QUERY, key: bytes = KEY) -> Any:
    again = Query(where=query.where, order=query.order, select=("name",), page_size=7, page_token=token)
    return read_token(ITEMS, again, key=key)


def test_a_position_comes_back_whatever_the_page_size_and_selection() -> None:
    """Both may change between two pages; the values come back in their JSON form."""
    moment = datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    position = [None, 1, "ä", moment, Decimal("1.50"), UUID(int=1)]
    assert read(write_token(ITEMS, QUERY, position, key=KEY)) == [
        None,
        1,
        "ä",
        "2026-01-01T00:00:00.123456+00:00",
        "1.50",
        str(UUID(int=1)),
    ]


def test_no_token_is_the_beginning() -> None:
    """A query without one has no position."""
    assert read_token(ITEMS, QUERY, key=KEY) is None


def test_another_key_or_order_refuses_it() -> None:
    """A token of another service or query would begin at a wrong record."""
    token = write_token(ITEMS, QUERY, ["a"], key=KEY)
    with pytest.raises(PageTokenError):
        read(token, key=b"x" * 32)
    with pytest.raises(PageTokenError):
        read(token, Query(where=QUERY.where, order=(("name", "desc"),)))


@given(st.text() | st.binary().map(lambda data: data.hex()))
def test_nothing_but_a_token_is_a_token(text: str) -> None:
    """Any other text is refused, not an error of the service."""
    with pytest.raises(PageTokenError):
        read(text)


@given(
    st.integers(min_value=0), st.sampled_from("=!\n\r\t *.,~\u00e9"), st.integers(min_value=1, max_value=3)
)
def test_a_token_with_more_in_it_is_none(position: int, odd: str, times: int) -> None:
    """A token has one form: neither padding, line feeds nor what base64 has no place for are looked over."""
    token = write_token(ITEMS, QUERY, [str(uuid4())], key=KEY)
    at = position % (len(token) + 1)
    with pytest.raises(PageTokenError):
        read(token[:at] + odd * times + token[at:])


@pytest.mark.parametrize("length", range(12))
def test_the_last_character_of_a_token_counts_in_full(length: int) -> None:
    """Its bits beyond the last byte are checked too."""
    token = write_token(ITEMS, QUERY, ["a" * length], key=KEY)
    assert read(token) == ["a" * length]
    for character in string.ascii_letters + string.digits + "-_":
        if character != token[-1]:
            with pytest.raises(PageTokenError):
                read(token[:-1] + character)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_token_is_none(position: int, value: int) -> None:
    """One flipped bit anywhere is noticed."""
    from base64 import urlsafe_b64decode, urlsafe_b64encode

    token = write_token(ITEMS, QUERY, [str(uuid4())], key=KEY)
    raw = bytearray(urlsafe_b64decode(token + "=="))
    raw[position % len(raw)] ^= value or 1
    with pytest.raises(PageTokenError):
        read(urlsafe_b64encode(raw).decode().rstrip("="))


@given(st.integers(min_value=1, max_value=10**17), st.integers(min_value=0, max_value=2**62))
def test_a_tag_says_its_state(version: int, incarnation: int) -> None:
    """Version and incarnation can be read back from it."""
    state = State(version, incarnation)
    assert State.of(state.tag) == state


@pytest.mark.parametrize("tag", ["", '""', '"0-1"', '"1-G"', '"1-1', '"01-1"', '"1-11111111111111111"'])
def test_a_tag_that_no_record_can_have_is_none(tag: str) -> None:
    """It matches no state, instead of being an error."""
    assert State.of(tag) is None
