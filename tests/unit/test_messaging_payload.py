"""The bytes by which the guard tells an event from another with its id."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.codec import canonical_json, decode_json
from hybridkit.events import Event
from hybridkit.events.cloudevents import to_structured
from hybridkit.messaging._consuming._guarded_runner import payload_of
from tests.helpers.consuming import Steps, delivery, wire


class Free(Event, type="payload.free"):
    number: int = 0


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_the_payload_is_canonical_whichever_way_it_was_read(data: dict[str, Any]) -> None:
    """A delivery that was read before its payload is asked for has the payload of one that was not."""
    body = wire(event_type="payload.free", data={**data, "number": 1})
    expected = decode_json(body)["data"]
    was_read, was_not = delivery(Steps(), body), delivery(Steps(), body)
    was_read.read()
    assert payload_of(was_read) == payload_of(was_not) == canonical_json(["payload.free", 1, expected])


@pytest.mark.parametrize(
    "number", ["18446744073709551616", "-9223372036854775809", "1e3", "0.1", "1" + "0" * 300]
)
def test_a_number_counts_with_all_of_its_digits(number: str) -> None:
    """Also an integer beyond 64 bits, of which a quick reader would make a fraction."""
    body = wire(event_type="payload.free", data={"number": 1, "other": 1}).replace(
        b'"other":1', b'"other":' + number.encode()
    )
    was_read = delivery(Steps(), body)
    was_read.read()
    assert payload_of(was_read) == canonical_json(["payload.free", 1, decode_json(body)["data"]])


def test_a_cloudevent_has_the_payload_of_its_envelope() -> None:
    """An event in another form, under another time, is the same work."""
    body = wire(event_type="payload.free", data={"number": 3})
    plain = delivery(Steps(), body)
    form = delivery(Steps(), to_structured(plain.read()))
    form.read()
    assert form.members is None
    assert payload_of(form) == payload_of(plain) == orjson.dumps(["payload.free", 1, {"number": 3}])
