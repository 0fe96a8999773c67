"""Keys and fingerprints: equal for the same work, different for any other."""

from datetime import UTC, datetime
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.errors import MalformedPayloadError
from hybridkit.idempotency import claim_key, fingerprint
from hybridkit.idempotency._keys import check_key

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=150)


@pytest.mark.parametrize(
    "key", ["orders:order:42", "worker_service.mail:api-service:1f:g2", "http:anonymous:POST:/users%2F1"]
)
def test_a_key_of_context_entity_and_id_is_taken_as_it_is(key: str) -> None:
    """The id may have further colons."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "orders",
        "orders:order",
        "orders:order:",
        ":order:42",
        "orders::42",
        "a b:c:d",
        "a:b:c d",
        "a:b:é",
        "a:b:c\n",
    ],
)
def test_any_other_key_is_refused_with_the_way_out(key: str) -> None:
    """The message names the function that makes a key of anything."""
    with pytest.raises(ValueError, match="claim_key"):
        check_key(key)


def test_simple_parts_stay_readable() -> None:
    """People look for such keys in Redis."""
    assert (
        claim_key("worker_service.mail", "api_service", "1f-2e", 3)
        == "worker_service.mail:api_service:1f-2e:3"
    )


def test_foreign_characters_are_encoded() -> None:
    """A path and a space of a caller's can't change the form of a key."""
    assert (
        claim_key("http", "anonymous", "POST", "/users/1", "a b") == "http:anonymous:POST:%2Fusers%2F1:a%20b"
    )


@given(words, words, st.lists(words, max_size=3))
def test_any_parts_make_a_valid_key(context: str, entity: str, identity: list[str]) -> None:
    """Empty and endless parts too."""
    key = claim_key(context, entity, *identity)
    assert check_key(key) == key


@given(st.lists(words, min_size=3, max_size=4), st.lists(words, min_size=3, max_size=4))
def test_different_parts_make_different_keys(some: list[str], others: list[str]) -> None:
    """Encoding and shortening never make two pieces of work one."""
    assert (claim_key(*some) == claim_key(*others)) is (some == others)


class Order(BaseModel):
    number: int
    at: datetime


def test_the_order_of_members_does_not_count() -> None:
    """The order of a list does."""
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [1, 2]}) != fingerprint({"b": [2, 1]})


def test_a_model_and_its_json_form_are_the_same_payload() -> None:
    """A caller may send what another one has parsed."""
    order = Order(number=1, at=datetime(2025, 1, 15, tzinfo=UTC))
    assert fingerprint(order) == fingerprint({"number": 1, "at": "2025-01-15T00:00:00Z"})


def test_bytes_are_taken_as_they_are() -> None:
    """A body that differs in a space is another one."""
    assert fingerprint(b"{}") != fingerprint(b"{ }")


def test_scalars_have_a_fingerprint_too() -> None:
    """`1`, `"1"` and `true` are different payloads."""
    values: list[object] = [None, 1, "1", True, UUID(int=1), []]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_what_has_no_json_form_is_refused() -> None:
    """With the typed error."""
    with pytest.raises(MalformedPayloadError):
        fingerprint(object())


@given(st.text())
def test_a_part_of_a_key_is_percent_encoded_whatever_it_is(part: str) -> None:
    """Texts that take the short way have the form of all others."""
    assume(not any("\ud800" <= character <= "\udfff" for character in part))
    assume(0 < len(quote(part, safe="")) <= 300)
    assert claim_key("http", "ann", part) == f"http:ann:{quote(part, safe='')}"


def test_slashes_of_a_part_are_encoded() -> None:
    """A path is one part of an id."""
    assert claim_key("http", "ann", "/orders/7~a-b_c.d", "k") == "http:ann:%2Forders%2F7~a-b_c.d:k"
