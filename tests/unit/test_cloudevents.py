"""CloudEvents 1.0 in both modes, and back."""

from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.cloudevents import decode_cloudevent, is_cloudevent, to_binary, to_structured
from hybridkit.context import RequestContext, bind
from hybridkit.envelope import EventEnvelope
from hybridkit.errors import MalformedPayloadError, PayloadError
from hybridkit.events import Event

text = st.text(st.characters(exclude_categories=["Cs"]))


class ParcelSent(Event, type="parcel.sent", version=2):
    parcel_id: UUID
    weight_grams: int


def envelope(request_id: str = "req-1", user_id: str | None = None, causation_id: UUID | None = None) -> Any:
    event = ParcelSent(parcel_id=UUID("1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc"), weight_grams=5)
    with bind(RequestContext(request_id=request_id, user_id=user_id)):
        return EventEnvelope.wrap(event, service="shop", causation_id=causation_id)


@given(text, st.none() | text, st.none() | st.uuids())
def test_both_modes_read_back_as_the_same_envelope(
    request_id: str, user_id: str | None, causation_id: Any
) -> None:
    original = envelope(request_id, user_id, causation_id)
    assert decode_cloudevent(to_structured(original)) == original
    headers, body = to_binary(original)
    assert decode_cloudevent(body, headers) == original


def test_the_structured_form_has_the_specifications_names() -> None:
    """Attribute names are lower-case letters and digits."""
    wire = orjson.loads(to_structured(envelope(user_id="user-1")))
    assert wire["specversion"] == "1.0"
    assert (wire["type"], wire["source"], wire["requestid"], wire["userid"]) == (
        "parcel.sent",
        "shop",
        "req-1",
        "user-1",
    )
    assert wire["dataversion"] == 2
    assert wire["data"]["weight_grams"] == 5
    assert all(name.isalnum() and name.islower() for name in wire)


def test_the_binary_form_leaves_the_data_alone_in_the_body() -> None:
    headers, body = to_binary(envelope())
    assert headers["cloudEvents_type"] == "parcel.sent"
    assert orjson.loads(body) == {"parcel_id": "1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc", "weight_grams": 5}


def test_headers_with_the_other_legal_prefix_are_read() -> None:
    headers, body = to_binary(envelope())
    colons = {name.replace("_", ":"): value for name, value in headers.items()}
    assert decode_cloudevent(body, colons).data.weight_grams == 5


def test_an_event_from_outside_needs_no_request_id() -> None:
    wire = orjson.loads(to_structured(envelope()))
    del wire["requestid"]
    assert decode_cloudevent(orjson.dumps(wire)).request_id == wire["id"]


def test_a_cloudevent_is_recognised_in_either_mode() -> None:
    headers, body = to_binary(envelope())
    assert is_cloudevent(body, headers)
    assert is_cloudevent(to_structured(envelope()), {})
    assert is_cloudevent(b"", {}, content_type="application/cloudevents+json; charset=utf-8")
    assert not is_cloudevent(envelope().encode(), {}, content_type="application/json")


@pytest.mark.parametrize("attribute", ["specversion", "id", "source", "type"])
def test_a_missing_attribute_is_named(attribute: str) -> None:
    wire = orjson.loads(to_structured(envelope()))
    del wire[attribute]
    with pytest.raises(MalformedPayloadError) as caught:
        decode_cloudevent(orjson.dumps(wire))
    assert caught.value.errors[0].pointer == f"/{attribute}"


@given(
    st.binary() | st.just(b"{}"),
    st.dictionaries(
        st.sampled_from(
            ["cloudEvents_id", "cloudEvents_type", "cloudEvents:source", "cloudEvents_specversion"]
        ),
        text | st.integers() | st.binary() | st.just("1.0") | st.just("parcel.sent"),
    ),
)
def test_hostile_bytes_and_headers_give_the_documented_error(body: bytes, headers: dict[str, object]) -> None:
    with pytest.raises(PayloadError):
        decode_cloudevent(body, headers)
