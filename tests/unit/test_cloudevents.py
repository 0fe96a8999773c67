"""CloudEvents 1.0 in both modes, and back."""

import base64
import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.codec import now
from hybridkit.context import RequestContext, bind
from hybridkit.errors import MalformedPayloadError, PayloadError
from hybridkit.events import Event, EventEnvelope
from hybridkit.events.cloudevents import (
    STRUCTURED_MEDIA_TYPE,
    decode_cloudevent,
    decode_message,
    is_cloudevent,
    to_binary,
    to_structured,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=255)


class ParcelSent(Event, type="parcel.sent", version=2):
    parcel_id: UUID
    weight_grams: int


def envelope(request_id: str = "req-1", user_id: str | None = None, causation_id: UUID | None = None) -> Any:
    event = ParcelSent(parcel_id=UUID("1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc"), weight_grams=5)
    with bind(RequestContext(request_id=request_id, user_id=user_id)):
        return EventEnvelope.wrap(event, service="shop", causation_id=causation_id)


@given(ids, st.none() | ids, st.none() | st.uuids())
def test_both_modes_read_back_as_the_same_envelope(
    request_id: str, user_id: str | None, causation_id: Any
) -> None:
    """Every member that an envelope has survives the way there and back, whatever its ids are."""
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
    """A reader that knows nothing of CloudEvents finds the bare data there."""
    headers, body = to_binary(envelope())
    assert headers["cloudEvents_type"] == "parcel.sent"
    assert orjson.loads(body) == {"parcel_id": "1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc", "weight_grams": 5}


def test_headers_with_the_other_legal_prefix_are_read() -> None:
    """The binding for AMQP allows `cloudEvents:` as well as `cloudEvents_`."""
    headers, body = to_binary(envelope())
    colons = {name.replace("_", ":"): value for name, value in headers.items()}
    assert decode_cloudevent(body, colons).data.weight_grams == 5


def test_an_event_from_outside_needs_no_request_id() -> None:
    """Its own id stands in, so that its work can be followed in the logs."""
    wire = orjson.loads(to_structured(envelope()))
    del wire["requestid"]
    assert decode_cloudevent(orjson.dumps(wire)).request_id == wire["id"]


def test_a_cloudevent_is_recognised_in_either_mode() -> None:
    """By its headers, by its members, or by its content type alone; a plain envelope and other bytes are none."""
    headers, body = to_binary(envelope())
    assert is_cloudevent(body, headers)
    assert is_cloudevent(to_structured(envelope()), {})
    assert is_cloudevent(b"", {}, content_type="application/cloudevents+json; charset=utf-8")
    assert not is_cloudevent(envelope().encode(), {}, content_type="application/json")
    assert not is_cloudevent(b"no json", {})


def test_a_message_that_is_no_cloudevent_is_read_as_an_envelope() -> None:
    """Its id is the event's, as no source gave it another one."""
    event = envelope()
    assert decode_message(event.encode(), {}) == event
    assert decode_message(event.encode(), {}).original_id == str(event.event_id)


@pytest.mark.parametrize("attribute", ["specversion", "id", "source", "type"])
def test_a_missing_attribute_is_named(attribute: str) -> None:
    """The error points at the attribute that the specification requires."""
    wire = orjson.loads(to_structured(envelope()))
    del wire[attribute]
    with pytest.raises(MalformedPayloadError) as caught:
        decode_cloudevent(orjson.dumps(wire))
    assert caught.value.errors[0].pointer == f"/{attribute}"


# ── what others leave out, or write in another way ───────────────────────────────────────────────


class PlantGrown(Event, type="plant.grown"):
    plant: str = "fern"
    height: int = 0


class PlantNamed(Event, type="plant.named"):
    """Its fields are called as an envelope's and a CloudEvent's are."""

    event_type: str
    specversion: str
    data: dict[str, int]


def foreign(**changes: object) -> dict[str, Any]:
    """An event from outside; None leaves an attribute out."""
    event: dict[str, object] = {
        "specversion": "1.0",
        "type": "plant.grown",
        "source": "/garden",
        "id": "order-17",
        "data": {"plant": "fig"},
    }
    return {name: value for name, value in (event | changes).items() if value is not None}


def in_headers(event: Mapping[str, Any], prefix: str = "cloudEvents_") -> dict[str, object]:
    return {f"{prefix}{name}": value for name, value in event.items() if name != "data"}


def read(event: Mapping[str, Any]) -> EventEnvelope[Any]:
    """In every form that there is, which make no difference."""
    body, data = json.dumps(event).encode(), json.dumps(event.get("data", {})).encode()
    forms = [
        decode_cloudevent(body),
        decode_message(body, {}),
        decode_message(body, {}, content_type="Application/CloudEvents+JSON ; charset=utf-8"),
        *(
            decode_message(data, in_headers(event, prefix), content_type="application/json")
            for prefix in ("cloudEvents_", "cloudEvents:", "ce-", "ce_", "CE-", "cloudevents:")
            if "data_base64" not in event
        ),
    ]
    [first, *others] = [each.model_dump(exclude={"timestamp"}) for each in forms]
    assert all(each == first for each in others)
    assert len({each.original_id for each in forms}) == 1
    return forms[-1]


def test_a_time_is_not_needed() -> None:
    """It has happened when it is read, then."""
    before = now()
    assert before <= read(foreign()).timestamp <= now()
    assert read(foreign(time="2026-01-01T01:00:00.1234567+01:00")).timestamp == datetime(
        2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC
    )


@given(text.filter(bool), text.filter(bool))
def test_any_text_is_an_id_and_one_event_per_source_and_id(source: str, number: str) -> None:
    """Ids of other sources become ids of ours that never meet, and go back as they came."""
    event = read(foreign(id=number, source=source))
    assert event.event_id == read(foreign(id=number, source=source)).event_id
    assert event.original_id == number
    others = [foreign(id=number + "x", source=source), foreign(id=number, source=source + "x")]
    others += [foreign(id=source, source=number)] if source != number else []
    assert event.event_id not in {read(other).event_id for other in others}
    assert orjson.loads(to_structured(event))["id"] == number


def test_a_uuid_is_the_event_id_itself_in_its_canonical_form_alone() -> None:
    """Two ids that differ in case are two ids."""
    canonical = "1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc"
    assert str(read(foreign(id=canonical)).event_id) == canonical
    other_forms = [canonical.upper(), canonical.replace("-", ""), f"{{{canonical}}}", f"urn:uuid:{canonical}"]
    ids = {read(foreign(id=each)).event_id for each in [canonical, *other_forms]}
    assert len(ids) == 5


def test_data_may_be_base64_or_absent() -> None:
    """It is JSON in any case; what is not, and two forms of data at once, are refused."""
    encoded = base64.b64encode(b' {"plant": "fig", "height": 123456789012345678901234567890}').decode()
    assert read(foreign(data=None, data_base64=encoded)).data == PlantGrown(
        plant="fig", height=123456789012345678901234567890
    )
    assert read(foreign(data=None)).data == PlantGrown()
    for empty in (b"", b"null"):
        nothing = base64.b64encode(empty).decode()
        assert decode_message(empty, in_headers(foreign())).data == PlantGrown()
        assert (
            decode_cloudevent(json.dumps(foreign(data=None, data_base64=nothing)).encode()).data
            == PlantGrown()
        )
    for wrong in ("%", 17, base64.b64encode(b"<xml>").decode(), base64.b64encode(b"[1]").decode()):
        with pytest.raises(MalformedPayloadError):
            decode_cloudevent(json.dumps(foreign(data=None, data_base64=wrong)).encode())
    with pytest.raises(MalformedPayloadError) as caught:
        decode_cloudevent(json.dumps(foreign(data_base64=encoded)).encode())
    assert caught.value.errors[0].pointer == "/data_base64"


def test_the_names_of_headers_have_no_case_and_no_two_values() -> None:
    """As HTTP has them, from where a bridge may bring them."""
    headers = {name.title(): value for name, value in in_headers(foreign(), "ce-").items()}
    assert is_cloudevent(b"", headers)
    assert decode_message(b"", headers | {"ce-id": "order-17"}).original_id == "order-17"
    with pytest.raises(MalformedPayloadError) as caught:
        decode_message(b"", headers | {"ce-id": "order-18"})
    assert caught.value.errors[0].pointer == "/id"


def test_integers_over_64_bits_are_exact() -> None:
    """A height of 2^90 comes out as it went in."""
    assert read(foreign(data={"height": 2**90})).data.height == 2**90


def test_what_is_not_known_is_ignored() -> None:
    """Extensions, and a causation id that is no UUID, don't keep an event from being read."""
    event = foreign(
        subject="fig",
        dataschema="https://example.com/plant.json",
        datacontenttype="application/json",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        partitionkey="k",
        sequence=17,
        causationid="order-16",
    )
    assert read(event).data.plant == "fig"
    assert read(event).causation_id is None


def test_headers_have_the_types_that_their_writer_chose() -> None:
    """Numbers, bytes, times and booleans of AMQP are read as the texts they stand for."""
    headers = in_headers(foreign()) | {
        "cloudEvents_id": 17,
        "cloudEvents_source": b"/garden",
        "cloudEvents_time": datetime(2026, 1, 1, tzinfo=UTC),
        "cloudEvents_userid": True,
        "cloudEvents_other": {"a": 1.5},
    }
    event = decode_message(b'{"plant": "fig"}', headers)
    assert event.event_id == read(foreign(id="17")).event_id
    assert (event.timestamp, event.user_id) == (datetime(2026, 1, 1, tzinfo=UTC), "true")
    with pytest.raises(MalformedPayloadError) as caught:
        decode_message(b"{}", headers | {"cloudEvents_id": 1.5})
    assert caught.value.errors[0].pointer == "/id"


@pytest.mark.parametrize(
    ("requestid", "request_id"),
    [
        (7, "7"),
        ("r-1", "r-1"),
        ("a\nb", "e-1"),
        ("x" * 300, "e-1"),
        ("", "e-1"),
        (True, "e-1"),
        (None, "e-1"),
    ],
    ids=ascii,
)
def test_extensions_may_be_integers_and_odd_request_ids_are_left_out(requestid: Any, request_id: str) -> None:
    """Other people's software has its own idea of them, and an event is worth more."""
    attributes = {"specversion": "1.0", "id": "e-1", "source": "/s", "type": "parcel.sent", "dataversion": 2}
    data = {"parcel_id": "1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc", "weight_grams": 5}
    extensions = {"requestid": requestid, "userid": 42}
    structured = decode_cloudevent(orjson.dumps({**attributes, **extensions, "data": data}))
    assert (structured.request_id, structured.user_id) == (request_id, "42")
    if requestid is not True:
        headers = {f"ce-{name}": value for name, value in {**attributes, **extensions, "time": None}.items()}
        binary = decode_cloudevent(orjson.dumps(data), headers)
        assert (binary.request_id, binary.user_id) == (request_id, "42")


@pytest.mark.parametrize(
    "content_type",
    ["application/cloudevents-batch+json", "application/cloudevents+avro", "application/cloudevents"],
)
def test_a_batch_and_other_formats_are_refused_by_name(content_type: str) -> None:
    """The error says that events have to be sent one by one."""
    with pytest.raises(MalformedPayloadError, match="one by one"):
        decode_message(b"[]", {}, content_type=content_type)


@pytest.mark.parametrize(
    "changes", [{"id": ""}, {"id": 17}, {"source": ""}, {"type": None}, {"specversion": "0.3"}]
)
def test_what_the_specification_requires_is_required(changes: dict[str, object]) -> None:
    """An empty or wrong attribute is named as a missing one is."""
    with pytest.raises(MalformedPayloadError) as caught:
        decode_cloudevent(json.dumps(foreign(**changes)).encode())
    assert [error.pointer for error in caught.value.errors] == [f"/{next(iter(changes))}"]


def test_the_headers_are_asked_before_the_data() -> None:
    """Data may have members of any name: an envelope's, or a CloudEvent's."""
    event = PlantNamed(event_type="parcel.sent", specversion="1.0", data={"a": 1})
    wrapped = EventEnvelope.wrap(event, service="shop")
    headers, body = to_binary(wrapped)
    assert decode_message(body, headers) == wrapped
    assert decode_message(wrapped.encode(), {}) == wrapped
    assert decode_message(to_structured(wrapped), {}, content_type=STRUCTURED_MEDIA_TYPE) == wrapped
    assert decode_message(to_structured(wrapped), {}) == wrapped
    assert not is_cloudevent(wrapped.encode(), {})


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
    """Nothing but `PayloadError` comes out of bytes that are no event."""
    with pytest.raises(PayloadError):
        decode_cloudevent(body, headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [*foreign(), "time", "data_base64", "requestid", "userid", "causationid", "dataversion"]
        ),
        json_values,
    )
)
def test_attributes_of_any_type_give_an_event_or_the_documented_error(changes: dict[str, Any]) -> None:
    """In both modes, every attribute may be any JSON value."""
    event = {**foreign(), **changes}
    headers = in_headers(event)
    for body, asked in ((json.dumps(event).encode(), {}), (b"{}", headers)):
        with contextlib.suppress(PayloadError):
            decode_message(body, asked)
