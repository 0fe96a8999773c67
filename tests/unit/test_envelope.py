"""The envelope: exactly as on the wire, and never anything but the documented errors from bytes."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from hybridkit.codec import Timestamp, encode_json
from hybridkit.context import RequestContext, bind
from hybridkit.contract import Emission
from hybridkit.errors import (
    MalformedPayloadError,
    PayloadError,
    PayloadTooLargeError,
    UnknownEventTypeError,
    UnknownEventVersionError,
)
from hybridkit.events import Event, EventEnvelope, EventRegistry, decode_envelope, encode_message
from hybridkit.events.cloudevents import decode_cloudevent, to_binary, to_structured

EVENT_ID = UUID("1ef21d2f-1207-6660-8c4f-419efbd44d48")
WIRE = (
    b'{"event_type":"member.joined","event_id":"1ef21d2f-1207-6660-8c4f-419efbd44d48",'
    b'"timestamp":"2025-01-15T10:30:00Z","service":"api_service","request_id":"req-1","user_id":"user-1",'
    b'"data":{"user_id":"1ef21d2f-1207-6660-8c4f-419efbd44d48","email":"user@example.com","registration_source":"web"}}'
)


class MemberJoined(Event, type="member.joined", key="user_id"):
    user_id: UUID
    email: str
    registration_source: str


class MeterRead(Event, type="meter.read", version=2):
    value: float
    unit: str
    read_at: Timestamp
    serial: int = 0


@MeterRead.upcast(from_version=1)
def add_unit(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "unit": "kWh" if data["value"] >= 0 else "?"}


class Place(BaseModel):
    country: str = Field(alias="countryCode")


class ParcelSent(Event, type="parcel.sent"):
    parcel_id: str = Field(alias="parcelId")
    place: Place


def joined() -> MemberJoined:
    return MemberJoined(user_id=EVENT_ID, email="user@example.com", registration_source="web")


def test_the_wire_form_is_the_documented_one() -> None:
    """Byte for byte: the members, their order, and their scalars."""
    envelope = decode_envelope(WIRE)
    assert envelope.data == joined()
    assert envelope.timestamp == datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert envelope.encode() == WIRE


def test_an_alias_is_the_name_on_the_wire() -> None:
    """Written as it is read, also within: in the envelope, and in what a transaction emits."""
    sent = ParcelSent(parcelId="p1", place=Place(countryCode="DE"))
    body = EventEnvelope.wrap(sent, service="tests").encode()
    assert decode_envelope(body).data == sent
    data = {"parcelId": "p1", "place": {"countryCode": "DE"}}
    assert orjson.loads(body)["data"] == data
    assert Emission.of(sent, request_id="req-1", user_id=None).data == data


def test_wrapping_takes_request_and_user_from_the_context() -> None:
    """The event keeps its identity, and reading gives an equal envelope of the same class."""
    event = joined()
    with bind(RequestContext(request_id="req-9", user_id="user-9")):
        envelope = EventEnvelope.wrap(event, service="api_service", causation_id=EVENT_ID)
    assert (envelope.request_id, envelope.user_id, envelope.service) == ("req-9", "user-9", "api_service")
    assert (envelope.event_id, envelope.timestamp) == (event.event_id, event.timestamp)
    again = decode_envelope(envelope.encode())
    assert again == envelope
    assert type(again) is type(envelope)


def test_what_was_received_keeps_its_identity_when_it_is_told_on() -> None:
    """An event that a consumer publishes again is the same event."""
    received = decode_envelope(WIRE).data
    assert (received.event_id, received.timestamp) == (EVENT_ID, datetime(2025, 1, 15, 10, 30, tzinfo=UTC))


def test_members_of_a_later_release_are_ignored_and_the_user_may_be_absent() -> None:
    """What is written has the user in any case, as null."""
    wire = orjson.loads(WIRE)
    del wire["user_id"]
    wire["tenant"] = "t-1"
    wire["data"]["referrer"] = "x"
    envelope = decode_envelope(orjson.dumps(wire))
    assert envelope.user_id is None
    assert b'"user_id":null' in envelope.encode()


def test_any_order_and_white_space_reads_the_same() -> None:
    """Other writers order and indent as they like."""
    wire = orjson.loads(WIRE)
    body = orjson.dumps(dict(reversed(wire.items())), option=orjson.OPT_INDENT_2)
    assert decode_envelope(body) == decode_envelope(WIRE)


@pytest.mark.parametrize(
    "timestamp", ["2025-01-15T10:30:00.123456Z", "2025-01-15T12:30:00.123+02:00", "2025-01-15T10:30:00.123"]
)
def test_other_writers_timestamps_become_utc_milliseconds(timestamp: str) -> None:
    """Microseconds are cut, an offset is taken off, and a naive time is UTC."""
    envelope = decode_envelope(WIRE.replace(b"2025-01-15T10:30:00Z", timestamp.encode()))
    assert envelope.timestamp == datetime(2025, 1, 15, 10, 30, 0, 123_000, tzinfo=UTC)
    assert b'"timestamp":"2025-01-15T10:30:00.123Z"' in envelope.encode()


def meter(version: int | None, data: object) -> bytes:
    wire = {**orjson.loads(WIRE), "event_type": "meter.read", "data": data}
    if version is not None:
        wire["version"] = version
    return encode_json(wire)


def test_an_older_version_is_brought_up_to_date() -> None:
    """Version 1 is also what an absent version means."""
    for version in (1, None):
        envelope = decode_envelope(meter(version, {"value": 5, "read_at": "2025-01-15T10:30:00Z"}))
        assert envelope.data.unit == "kWh"
        assert envelope.version == 2
        assert orjson.loads(envelope.encode())["version"] == 2


def test_an_upcaster_that_fails_blames_the_payload() -> None:
    """An exception in it, or data that is no object, makes the message malformed."""
    with pytest.raises(MalformedPayloadError, match="from version 1 failed: KeyError"):
        decode_envelope(meter(1, {}))
    with pytest.raises(MalformedPayloadError, match="is not a JSON object"):
        decode_envelope(meter(1, []))


def test_a_newer_version_is_named_as_newer() -> None:
    """The consumer can tell a release that is late from an event that it forgot."""
    with pytest.raises(UnknownEventVersionError) as caught:
        decode_envelope(meter(3, {}))
    assert caught.value.newer


def test_an_unknown_type_is_named() -> None:
    """The error has the type as it came."""
    with pytest.raises(UnknownEventTypeError, match=r"'member\.left'"):
        decode_envelope(WIRE.replace(b"member.joined", b"member.left"))


def test_a_type_repeated_later_in_the_object_counts_as_json_readers_count_it() -> None:
    """The last member wins, so the fast way through the canonical form must not trust the first."""
    body = WIRE[:-1] + b',"event_type":"member.left"}'
    with pytest.raises(UnknownEventTypeError):
        decode_envelope(body)


@pytest.mark.parametrize("version", ["0", "-1", "1.0", '"1"', "true", "null", str(2**70)])
def test_a_version_is_a_whole_number_from_one(version: str) -> None:
    """A text, a boolean and a number with a point are none."""
    with pytest.raises(PayloadError):
        decode_envelope(WIRE[:-1] + f',"version":{version}}}'.encode())


@pytest.mark.parametrize("member", ["event_type", "event_id", "timestamp", "service", "request_id", "data"])
def test_a_missing_member_is_named(member: str) -> None:
    """The error points at the one that is missing, and at nothing else."""
    wire = orjson.loads(WIRE)
    del wire[member]
    with pytest.raises(MalformedPayloadError) as caught:
        decode_envelope(orjson.dumps(wire))
    assert [error.pointer for error in caught.value.errors] == [f"/{member}"]


@pytest.mark.parametrize("user_id", ["auth0|17", "Ünal Çelik", "", "a\nb", "a" * 256])
def test_the_user_of_a_foreign_event_is_kept_or_the_event_is_refused(user_id: str) -> None:
    """Without its user it would be somebody else's work."""
    body = orjson.dumps({**orjson.loads(WIRE), "user_id": user_id})
    if user_id in {"auth0|17", "Ünal Çelik"}:
        assert decode_envelope(body).user_id == user_id
        return
    with pytest.raises(MalformedPayloadError) as caught:
        decode_envelope(body)
    assert [error.pointer for error in caught.value.errors] == ["/user_id"]


def test_problems_in_the_data_have_their_pointer_and_no_value() -> None:
    """The value may be a secret of a user."""
    with pytest.raises(MalformedPayloadError) as caught:
        decode_envelope(WIRE.replace(b'"email":"user@example.com"', b'"email":["CANARY"]'))
    assert caught.value.errors[0].pointer == "/data/email"
    assert "CANARY" not in str(caught.value)


def test_a_body_over_the_limit_is_refused_unread() -> None:
    """By default at 16 MiB, which is the broker's own limit."""
    with pytest.raises(PayloadTooLargeError):
        decode_envelope(WIRE, limit_bytes=len(WIRE) - 1)
    with pytest.raises(PayloadTooLargeError):
        decode_envelope(b" " * (16 * 1024 * 1024 + 1))


def test_data_without_a_json_form_is_refused_before_it_is_sent() -> None:
    """The error names the type, not the object."""

    class Opaque(Event, type="thing.opaque"):
        thing: Any

    with pytest.raises(MalformedPayloadError, match=r"'thing\.opaque' has no JSON form"):
        EventEnvelope.wrap(Opaque(thing=object()), service="s").encode()


def test_a_registry_of_ones_own_knows_only_its_types() -> None:
    """Types of the process's registry are unknown to it."""
    with pytest.raises(UnknownEventTypeError):
        decode_envelope(WIRE, registry=EventRegistry())


# ── nothing but PayloadError, whatever the bytes are ─────────────────────────────────────────────


@pytest.mark.parametrize("event_type", ["member.joined", "meter.read", "free.said"])
@pytest.mark.parametrize(
    "timestamp",
    [
        "9999-12-31T23:59:59.123456-12:00",
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00.000001+12:00",
        "0001-01-01T00:00:00+00:01",
        "2026-06-30T23:59:60Z",
        "2026-01-01T00:00:00+24:00",
        "0000-00-00T00:00:00Z",
        "NaN",
        "",
        10**30,
        1e300,
        -(10**18),
        True,
        [],
    ],
)
def test_a_timestamp_that_is_no_moment_in_utc_is_malformed(event_type: str, timestamp: object) -> None:
    """However old the version is, and however the envelope is laid out."""
    data = {"value": 1, "read_at": "2025-01-15T10:30:00Z", "said": 1, "at": "2025-01-15T10:30:00Z"}
    wire: dict[str, Any] = {**orjson.loads(WIRE), "event_type": event_type, "timestamp": timestamp}
    wire["data"] |= data
    for body in (encode_json(wire), json.dumps(wire, indent=1).encode()):
        with pytest.raises(MalformedPayloadError) as caught:
            decode_envelope(body)
        assert [error.pointer for error in caught.value.errors] == ["/timestamp"]
    wire |= {"timestamp": "2025-01-15T10:30:00Z", "event_type": "free.said"}
    wire["data"]["at"] = timestamp
    with pytest.raises(MalformedPayloadError):
        decode_envelope(encode_json(wire))


@pytest.mark.parametrize(
    "timestamp", [0, 1736937000, 1736937000123, 1.5, "1736937000", "1.5", "-62135596800"], ids=repr
)
def test_a_timestamp_is_no_number(timestamp: object) -> None:
    """Seconds or milliseconds: readers would guess, and not all alike."""
    wire = {**orjson.loads(WIRE), "timestamp": timestamp}
    with pytest.raises(MalformedPayloadError) as caught:
        decode_envelope(encode_json(wire))
    assert [error.pointer for error in caught.value.errors] == ["/timestamp"]
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "member.joined",
        "time": timestamp,
        "data": wire["data"],
    }
    with pytest.raises(MalformedPayloadError):
        decode_cloudevent(encode_json(event))


class FreeSaid(Event, type="free.said"):
    said: Any
    at: Timestamp | None = None


class Picky(Event, type="picky.event"):
    value: Any

    @field_validator("value")
    @classmethod
    def _careless(cls, value: Any) -> Any:
        return {"known": 1}[value] if isinstance(value, str) else value + 1


def said(value: str, event_type: str = "free.said") -> bytes:
    return (
        WIRE.replace(b"member.joined", event_type.encode())[:-2].replace(
            b'"data":{', b'"data":{"said":%s,"value":%s,' % (value.encode(), value.encode())
        )
        + b"}}"
    )


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "[" * 300 + "]" * 300]
)
@pytest.mark.parametrize("space", ["", " ", "\n\t "])
def test_what_is_no_json_is_malformed_in_every_layout(number: str, space: str) -> None:
    """Also in a member that no reader wants."""
    body = said(number).replace(b":", b":" + space.encode()).replace(b",", b"," + space.encode())
    with pytest.raises(MalformedPayloadError):
        decode_envelope(body)
    with pytest.raises(MalformedPayloadError):  # also where nobody reads it
        decode_envelope(WIRE[:-1] + f',"more":{space}{number}}}'.encode())


@given(st.integers(-(10**300), 10**300))
def test_an_integer_arrives_as_it_was_sent(number: int) -> None:
    """Through an upcaster too, to the last of 300 digits."""
    assert decode_envelope(EventEnvelope.wrap(FreeSaid(said=[number]), service="s").encode()).data.said == [
        number
    ]
    upcasted = decode_envelope(meter(1, {"value": 1, "read_at": "2025-01-15T10:30:00Z", "serial": number}))
    assert upcasted.data.serial == number


@pytest.mark.parametrize("value", ['"unknown"', "[]", "{}", "null", '"known"', "1"])
def test_a_declaration_that_fails_over_its_data_blames_the_payload(value: str) -> None:
    """A validator's `KeyError` or `TypeError` is no reason to try the message again."""
    body = said(value, "picky.event")
    if value in {'"known"', "1"}:
        assert decode_envelope(body).data.value in {1, 2}
        return
    with pytest.raises(MalformedPayloadError, match=r"can't be read: (KeyError|TypeError)"):
        decode_envelope(body)


@given(st.binary(max_size=400))
def test_random_bytes_give_the_documented_error(body: bytes) -> None:
    """Nothing but `PayloadError` comes out."""
    with pytest.raises(PayloadError):
        decode_envelope(body)


@given(st.data())
def test_a_mutated_envelope_gives_an_envelope_or_the_documented_error(data: st.DataObject) -> None:
    """Bytes flipped, cut, doubled and inserted, from both the fast and the slow way in."""
    body = bytearray(data.draw(st.sampled_from([WIRE, meter(1, {"value": 1}), meter(2, {"unit": "x"})])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip" if at < len(body):
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[at : at + data.draw(st.integers(1, 30))]
            case "double":
                body[at:at] = body[at : at + 40]
            case _:
                body[at:at] = data.draw(
                    st.sampled_from([b"[" * 2_000, b'{"a":' * 400, b"\xff", b"\\ud800", b"1e999"])
                )
    try:
        envelope = decode_envelope(bytes(body))
    except PayloadError:
        return
    decode_envelope(envelope.encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*orjson.loads(WIRE), "version", "causation_id"]), json_values),
    st.sampled_from(["member.joined", "meter.read"]),
)
def test_valid_json_of_the_wrong_shape_gives_the_documented_error(
    members: dict[str, Any], event_type: str
) -> None:
    """Each member may be any JSON value."""
    wire = {**orjson.loads(WIRE), "event_type": event_type, **members}
    try:
        body = orjson.dumps(wire)
    except TypeError:  # surrogates and huge integers have no JSON form
        return
    try:
        decode_envelope(body)
    except PayloadError:
        return


text = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=255)


@given(
    st.builds(MemberJoined, user_id=st.uuids(), email=text, registration_source=text),
    text.filter(bool),
    ids,
    st.none() | ids,
    st.none() | st.uuids(),
)
def test_every_envelope_reads_back_as_it_was_written(
    event: MemberJoined, service: str, request_id: str, user_id: str | None, causation_id: UUID | None
) -> None:
    """In any order of its members."""
    with bind(RequestContext(request_id=request_id, user_id=user_id)):
        envelope = EventEnvelope.wrap(event, service=service, causation_id=causation_id)
    assert decode_envelope(envelope.encode()) == envelope
    shuffled = orjson.dumps(dict(reversed(orjson.loads(envelope.encode()).items())))
    assert decode_envelope(shuffled) == envelope


# ── whatever is published can be read ────────────────────────────────────────────────────────────


class Said(Event, type="anything.said"):
    what: Any = None


class Measured(Event, type="value.measured"):
    value: float = 0.0
    place: str = Field(default="here", serialization_alias="where", validation_alias="place")
    positive: int = Field(default=1, gt=0)


class Hidden(Event, type="hidden.thing"):
    secret: str = Field(exclude=True)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


UNREADABLE = {
    "a number beyond a double": Said(what=2 * 10**308),
    "a long number in a list": Said(what=["x" * 40, {"n": -(10**1000)}]),
    "too many levels": Said(what=nested(199)),
    "no number": Measured(value=float("nan")),
    "an infinite number": Measured(value=float("-inf")),
    "a field that is left out": Hidden(secret="x"),
    "a value that was never checked": Measured.model_construct(value=1.0, place="", positive=-1),
    "a value that its validator fails over": Picky.model_construct(value="unknown"),
}


@pytest.mark.parametrize("event", UNREADABLE.values(), ids=UNREADABLE)
def test_what_no_consumer_could_read_is_refused_where_it_is_published_or_emitted(event: Event) -> None:
    """Otherwise it is a dead letter of somebody else's."""
    envelope = EventEnvelope.wrap(event, service="s")
    for write in (
        lambda: encode_message(event, service="s", context=RequestContext()),
        envelope.encode,
        lambda: to_binary(envelope),
        lambda: to_structured(envelope),
        lambda: Emission.of(event, request_id="r", user_id=None),
    ):
        with pytest.raises(MalformedPayloadError):
            write()


@pytest.mark.parametrize(
    "what",
    [10**308, -(2**64), "9" * 5000, [{}] * 300, "[{" * 300, nested(198), 1e308],
    ids=["long number", "64 bits", "digits", "many objects", "brackets", "levels", "double"],
)
def test_what_only_looks_unreadable_is_published(what: Any) -> None:
    """The limits are those of the reader, and no tighter."""
    event = Said(what=what)
    emission = Emission.of(event, request_id="r", user_id=None)
    assert emission.data == {"what": what}
    read = decode_envelope(encode_message(event, service="s", context=RequestContext()))
    assert read.data == event


@given(st.integers(0, 400), st.integers(290, 330), st.sampled_from("179"))
def test_a_long_number_is_found_wherever_it_stands(before: int, digits: int, first: str) -> None:
    """Whatever is before it, what a publisher lets through a consumer can read."""
    event = Said(what=["x" * before, int(first + "9" * (digits - 1))])
    try:
        body = encode_message(event, service="s", context=RequestContext())
    except MalformedPayloadError:
        assert digits >= 309
    else:
        assert decode_envelope(body).data == event


class Blob(Event, type="blob.kept"):
    raw: bytes


def test_bytes_that_are_no_text_have_no_json_form() -> None:
    """An event that JSON can't hold is refused where it is encoded, before anything is sent."""
    with pytest.raises(MalformedPayloadError, match="no JSON form"):
        encode_message(Blob(raw=b"\xff"), service="users", context=RequestContext())


def test_a_service_name_that_is_no_unicode_has_no_json_form() -> None:
    """Also where it is not the data that can't be written."""
    with pytest.raises(MalformedPayloadError, match="no JSON form"):
        encode_message(Blob(raw=b"x"), service="\ud800", context=RequestContext())
