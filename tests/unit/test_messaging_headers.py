"""What a copy of a message carries on, and what is believed of a stranger's headers."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.encode import field_table

from hybridkit.messaging._amqp._headers import copied_headers, read_count, read_text
from tests.helpers.consuming import QUEUE, Steps, delivery, envelope


def test_notes_about_a_death_stay_behind() -> None:
    """A copy keeps no `x-death`: with it, it would vanish in the second delay level before RabbitMQ 4.0.1."""
    headers: dict[str, Any] = {
        "x-death": [{"queue": "hk.delay.L0"}],
        "x-first-death-queue": "a",
        "x-last-death-reason": "expired",
        "x-delivery-count": 3,
        "x-acquired-count": 4,
        "CC": ["b"],
        "BCC": ["c"],
        "x-request-id": "req-1",
        "hk_attempt": 2,
        "tenant": "acme",
    }
    assert copied_headers(headers) == {"x-request-id": "req-1", "hk_attempt": 2, "tenant": "acme"}


def test_values_that_can_be_read_but_not_written_stay_behind() -> None:
    """Values that can be decoded but not encoded are left out, as every attempt to copy the message would fail."""
    headers = {
        "bytes": b"\xff",
        "huge": 2**70,
        "float": 1e300,
        "deep": {"a": [b"\xff"]},
        "fine": Decimal("1.5"),
    }
    assert copied_headers(headers) == {"fine": Decimal("1.5")}


def test_a_copy_fits_into_one_frame_and_ours_come_first() -> None:
    """A copy's headers fit into one frame, our own first: a larger frame would close the connection."""
    headers = {"a": "x" * 60_000, "b": "y" * 60_000, "hk_attempt": 1, "x-request-id": "r" * 100, "z": 1}
    assert copied_headers(headers) == {
        name: headers[name] for name in ("a", "hk_attempt", "x-request-id", "z")
    }


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.datetimes(timezones=st.just(UTC))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=300), values, max_size=5))
def test_whatever_came_in_a_copy_can_be_sent(headers: dict[str, Any]) -> None:
    """The headers that a copy keeps can always be encoded, and fit into a frame of 128 KiB."""
    assert len(field_table(copied_headers(headers))) < 128 * 1024


@pytest.mark.parametrize(
    ("value", "count"), [(3, 3), (True, 0), (-1, 0), ("3", 0), (2**31, 0), (None, 0), ([1], 0)]
)
def test_a_count_is_a_count_or_nothing(value: object, count: int) -> None:
    """A count that is absent, negative, too large or no integer reads as 0."""
    assert read_count({"hk_attempt": value}, "hk_attempt") == count
    assert read_count({}, "hk_attempt") == 0


@pytest.mark.parametrize("value", [7, b"text", "x" * 257, datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_text_is_a_short_text_or_nothing(value: object) -> None:
    """A header that is no text, or has over 256 characters, reads as None."""
    assert read_text({"name": value}, "name") is None
    assert read_text({"name": "fine"}, "name") == "fine"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("headers", "failures", "generation"),
    [
        ({}, 0, 0),
        ({"hk_event_id": "1f1e"}, 0, 0),
        ({"hk_event_id": "1f1e", "hk_attempt": 3}, 3, 0),
        ({"hk_generation": 2}, 0, 2),
        ({"hk_event_id": "hk_event_id", "note": "hk_", "hk_attempt": 1}, 1, 0),
        ({"hk_event_id": "1f1e", "hk_reason": "failed", "hk_attempt": 3, "hk_queue": QUEUE}, 0, 1),
        ({"hk_reason": "failed", "hk_queue": "another"}, 0, 0),
    ],
)
def test_a_delivery_knows_its_counts(
    headers: dict[str, Any], failures: int, generation: int, order: int
) -> None:
    """Failures and redrives are read from the headers, wherever these stand and whatever else is there."""
    found = delivery(Steps(), envelope(), dict(list(headers.items())[::order]))
    assert (found.failures, found.generation) == (failures, generation)
