"""The socket that two sides share: who gets which frame, and what our own frames say."""

import asyncio
import contextlib
import struct
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection, Exchange
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from hybridkit.context import RequestContext
from hybridkit.errors import PayloadError
from hybridkit.messaging._amqp._frames import (
    HEARTBEAT_FRAME,
    PROPERTIES_AT,
    DeliverMethod,
    decode_properties,
    encode_fields,
    encode_table,
    frame_template,
    message_parts,
)
from hybridkit.messaging._amqp._lenient_properties import decode_leniently
from hybridkit.messaging._amqp._port import IncomingMessage, Port
from hybridkit.messaging._amqp._socket import FrameProtocol, SocketFactory
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._keyed_backlog import key_of
from hybridkit.messaging._consuming._verdict import DeadLettered, RetryLater

pytestmark = pytest.mark.usefixtures("logs")

CHANNEL = 7


class FakeReceiver:
    """A receiver that notes its calls."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        self.told.append((tag, multiple, accepted))

    def returned(self, properties: bytes) -> None:
        self.told.append(decode_properties(properties).message_id)

    def delivered(self, message: IncomingMessage, /) -> None:
        self.told.append(message)

    def closed(self, reason: str) -> None:
        self.told.append(reason)


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


class FakeConnection:
    """A connection with one port, and the bytes that aiormq would read from it."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.protocol = FrameProtocol(self.reader, asyncio.get_running_loop())
        self.transport = FakeTransport()
        self.protocol.connection_made(self.transport)
        self.protocol._alive_at = float("inf")  # no heartbeats but where they are what is tested
        self.receiver = FakeReceiver()
        self.port = self.protocol.open_port(CHANNEL, self.receiver)

    def hears(self, *frames: object, channel: int = CHANNEL) -> None:
        self.protocol.data_received(
            b"".join(pamqp.frame.marshal(cast("Any", each), channel) for each in frames)
        )

    def passed_on(self) -> bytes:
        return bytes(cast("Any", self.reader)._buffer)


def delivery(body: bytes, *parts: bytes) -> list[object]:
    deliver = Basic.Deliver("tag", 5, redelivered=True, exchange="hk.events", routing_key="a.b")
    properties = Basic.Properties(headers={"hk_attempt": 2}, message_type="a.b")
    return [
        deliver,
        ContentHeader(0, len(body), properties),
        *(ContentBody(part) for part in parts or (body,)),
    ]


# ── who gets what ────────────────────────────────────────────────────────────────────────────────


async def test_a_message_comes_through_the_port() -> None:
    """A delivery in several body frames reaches the receiver as one message, and aiormq sees none of its frames."""
    connection = FakeConnection()
    connection.hears(*delivery(b"hello world", b"hello ", b"world"))
    [message] = connection.receiver.told
    assert isinstance(message, IncomingMessage)
    assert (message.method, message.body) == ((5, True, "hk.events", "a.b"), b"hello world")
    assert decode_properties(message.properties).headers == {"hk_attempt": 2}
    assert connection.passed_on() == b""


async def test_an_empty_message_has_no_body_frame() -> None:
    """A message of 0 bytes is complete with its content header."""
    connection = FakeConnection()
    connection.hears(*delivery(b"")[:2])
    assert [cast("IncomingMessage", each).body for each in connection.receiver.told] == [b""]


async def test_answers_to_publishes_come_through_the_port() -> None:
    """A return and its confirms reach the receiver in the broker's order."""
    connection = FakeConnection()
    connection.hears(
        Basic.Return(312, "NO_ROUTE", "hk.events", "a.b"),
        ContentHeader(0, 2, Basic.Properties(message_id="unwanted")),
        ContentBody(b"{}"),
        Basic.Ack(3, multiple=True),
        Basic.Nack(4, multiple=False),
    )
    assert connection.receiver.told == ["unwanted", (3, True, True), (4, False, False)]


async def test_the_control_plane_gets_everything_else() -> None:
    """All other frames, of channels with and without a port, go to aiormq in their order."""
    connection = FakeConnection()
    frames: list[tuple[Any, int]] = [
        (Exchange.DeclareOk(), CHANNEL),
        (Basic.ConsumeOk("tag"), CHANNEL),
        (Basic.Cancel("tag"), CHANNEL),
        (Heartbeat(), 0),
        (Channel.OpenOk(), 9),
    ]
    for frame, channel in frames:
        connection.hears(frame, channel=channel)
    assert connection.passed_on() == b"".join(
        pamqp.frame.marshal(frame, channel) for frame, channel in frames
    )
    assert connection.receiver.told == []


@pytest.mark.parametrize("error", [ValueError("no"), struct.error("no"), IndexError("no")])
async def test_a_receiver_that_fails_over_one_message_takes_nothing_from_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """A receiver that raises over a message, return or confirm is logged, and everything after it is still received."""
    connection = FakeConnection()
    told = connection.receiver.told

    def fail(*_: object, **__: object) -> None:
        told.append("failed")
        raise error

    for name in ("delivered", "returned", "settled"):
        monkeypatch.setattr(connection.receiver, name, fail)
    unwanted = [Basic.Return(312, "", "", ""), ContentHeader(0, 1, Basic.Properties()), ContentBody(b"1")]
    connection.hears(*delivery(b"one"), *unwanted, Basic.Ack(1))
    monkeypatch.undo()
    connection.hears(*delivery(b"two"))
    assert told[:3] == ["failed"] * 3
    assert cast("IncomingMessage", told[3]).body == b"two"
    assert not connection.transport.aborted
    assert len([entry for entry in logs if entry["log_level"] == "error"]) == 3


async def test_what_is_on_its_way_to_a_closed_port_is_dropped() -> None:
    """Messages for a closed port never reach aiormq, which would close the connection over odd properties."""
    connection = FakeConnection()
    deliver, header, body = (pamqp.frame.marshal(cast("Any", each), CHANNEL) for each in delivery(b"one"))
    connection.protocol.data_received(deliver)
    connection.port.close("closed by us")
    far = struct.pack(">HHQHQ", 60, 0, 3, 0x0040, 2**63 - 1)
    odd = struct.pack(">BHI", 2, CHANNEL, len(far)) + far + b"\xce"
    with pytest.raises(PAMQPException):
        pamqp.frame.unmarshal(odd)
    unwanted = [Basic.Return(312, "", "", ""), Basic.Ack(1), Basic.Nack(2)]
    connection.protocol.data_received(odd + body + deliver + header + body)
    connection.hears(*unwanted)
    assert connection.receiver.told == ["closed by us"]
    assert connection.passed_on() == b""
    connection.hears(Channel.CloseOk())
    assert connection.passed_on() == pamqp.frame.marshal(Channel.CloseOk(), CHANNEL)
    again = FakeReceiver()
    connection.protocol.open_port(CHANNEL, again)  # the number is used again
    connection.hears(*delivery(b"two"))
    assert [cast("IncomingMessage", each).body for each in again.told] == [b"two"]


@given(
    st.binary(max_size=300) | st.just(b"{}"),
    st.binary(max_size=200)
    | st.dictionaries(
        st.text(max_size=20)
        | st.sampled_from(["x-request-id", "cloudEvents_specversion", "x-death", "hk_attempt"]),
        st.text(max_size=20) | st.integers(-(2**31), 2**31) | st.booleans() | st.just("1.0"),
        max_size=5,
    ).map(
        lambda headers: cast(
            "Any", Basic.Properties(headers=cast("Any", headers), content_type="application/cloudevents+json")
        ).marshal()
    ),
)
def test_no_bytes_of_a_message_are_too_odd_to_be_dealt_with(body: bytes, properties: bytes) -> None:
    """Any properties and body can be read or refused as a payload, and copied either way."""
    message = Delivery(
        "q", cast("Any", None), IncomingMessage(DeliverMethod(1, False, "", ""), properties, body)
    )
    with contextlib.suppress(PayloadError):
        message.read()
    assert isinstance(message.failures + message.generation + message.version_waits, int)
    assert key_of(message) is None
    RequestContext.from_amqp_headers(message.headers)
    for copy in (
        message.delayed(RetryLater(5.0)),
        message.dead_letter(DeadLettered("malformed", ValueError("no"), 1)),
    ):
        encode_fields(copy.headers)
        assert copy.content_type == (message._properties.content_type or "application/json")


@given(cut=st.lists(st.integers(1, 60), max_size=12))
def test_frames_come_in_any_pieces(cut: list[int]) -> None:
    """Messages are complete wherever the network cuts the bytes."""

    async def run() -> None:
        connection = FakeConnection()
        octets = b"".join(
            pamqp.frame.marshal(cast("Any", each), CHANNEL)
            for each in [*delivery(b"hello"), Exchange.DeclareOk(), Basic.Ack(1, multiple=False)]
        )
        for size in cut:
            connection.protocol.data_received(octets[:size])
            octets = octets[size:]
        connection.protocol.data_received(octets)
        assert [type(each).__name__ for each in connection.receiver.told] == ["IncomingMessage", "tuple"]
        assert connection.passed_on() == pamqp.frame.marshal(Exchange.DeclareOk(), CHANNEL)

    asyncio.run(run())


async def test_messages_count_as_a_sign_of_life() -> None:
    """aiormq gets heartbeats while messages come in, which it doesn't see itself."""
    connection = FakeConnection()
    connection.protocol._alive_at = 0.0
    connection.hears(Basic.Ack(1, multiple=False))
    connection.hears(Basic.Ack(2, multiple=False))
    assert connection.passed_on() == HEARTBEAT_FRAME


async def test_another_protocol_is_left_to_those_who_have_words_for_it() -> None:
    """Bytes of another protocol go to aiormq unchanged, for its error message."""
    connection = FakeConnection()
    connection.protocol.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    connection.protocol.data_received(b"\x01 more")
    assert connection.passed_on() == b"HTTP/1.1 400 Bad Request\r\n\x01 more"


@pytest.mark.parametrize(
    "payload", [b"\x00\x3c\x00\x50\x00", b"\x00\x3c\x00\x3c\xff"], ids=["ack", "deliver"]
)
async def test_a_broken_frame_ends_the_connection(
    payload: bytes, logs: list[MutableMapping[str, Any]]
) -> None:
    """A frame that is too short for its method is logged and drops the connection."""
    connection = FakeConnection()
    connection.protocol.data_received(struct.pack(">BHI", 1, CHANNEL, len(payload)) + payload + b"\xce")
    assert connection.transport.aborted
    assert [entry["event"] for entry in logs] == ["broker sent a malformed frame"]


# ── what happens to the connection ───────────────────────────────────────────────────────────────


async def test_a_channel_that_the_broker_closes_is_closed_at_once() -> None:
    """A `channel.close` closes the port before aiormq replies: a frame after `close-ok` would end the connection."""
    connection = FakeConnection()
    connection.hears(Channel.Close(404, "NOT_FOUND - no exchange", 60, 40), Basic.Ack(1, multiple=False))
    connection.port.ack(5)
    assert connection.receiver.told == ["404 NOT_FOUND - no exchange"]
    assert connection.transport.written == b""
    assert "is_open=False" in repr(connection.port)
    connection.port.close("again")
    assert len(connection.receiver.told) == 1


async def test_a_lost_connection_closes_its_ports() -> None:
    """The end of the connection closes every port with its reason, and aiormq's reader hears of it too."""
    connection = FakeConnection()
    other = FakeReceiver()
    connection.protocol.open_port(8, other)
    connection.protocol.connection_lost(OSError("reset"))
    assert connection.receiver.told == other.told == ["connection lost: reset"]
    assert connection.reader.exception() is not None


async def test_a_port_that_was_replaced_does_not_take_the_other_along() -> None:
    """Closing a port leaves alone the newer one with the same channel number."""
    connection = FakeConnection()
    receiver = FakeReceiver()
    connection.protocol.open_port(CHANNEL, receiver)
    connection.port.close("late")
    connection.hears(Basic.Ack(1, multiple=False))
    assert receiver.told == [(1, False, True)]


async def test_an_alarm_and_a_full_buffer_are_told_apart_from_the_end_of_both() -> None:
    """The owner is told that it can write when both the alarm and the full buffer have ended."""
    connection = FakeConnection()
    told: list[str] = []
    connection.protocol.on_writable = lambda: told.append("writable")
    connection.hears(Connection.Blocked("low on memory"), channel=0)
    connection.protocol.pause_writing()
    assert (connection.protocol.is_writable, connection.protocol.unblocked.is_set()) == (False, False)
    connection.hears(Connection.Unblocked(), channel=0)
    assert (connection.protocol.is_writable, told) == (False, [])
    connection.protocol.resume_writing()
    assert (connection.protocol.is_writable, told) == (True, ["writable"])
    connection.protocol.on_writable = None
    connection.hears(Connection.Unblocked(), channel=0)
    assert "is_writable=True" in repr(connection.protocol)


async def test_a_socket_that_was_never_opened_can_be_used_by_mistake() -> None:
    """Writing to or dropping a socket that was never opened does nothing."""
    sockets = SocketFactory()
    sockets.abort()
    protocol = FrameProtocol(asyncio.StreamReader(), asyncio.get_running_loop())
    protocol.write(b"nothing")
    protocol.abort()
    assert repr(sockets) == "SocketFactory(None)"


async def test_tls_is_asked_for_where_the_url_says_so() -> None:
    """An `amqps` URL is connected with its own certificates, or not at all."""

    class NoCertificates:
        async def get_context(self) -> None:
            raise FileNotFoundError("ca.pem")

    with pytest.raises(FileNotFoundError):
        await SocketFactory().create(URL("amqps://127.0.0.1:1/"), ssl_context_provider=NoCertificates())


# ── what our frames say ──────────────────────────────────────────────────────────────────────────


def frames_in(octets: bytes) -> list[Any]:
    found = []
    while octets:
        size, channel, frame = pamqp.frame.unmarshal(octets)
        assert channel == CHANNEL
        found.append(frame)
        octets = octets[size:]
    return found


def message(body: bytes, *, headers: dict[str, Any] | None = None, frame_max: int = 4096) -> bytes:
    parts = message_parts(
        frame_template("hk.events", "user.créée", "user.created", "api_service"),
        encode_table(encode_fields(headers or {})),
        body,
        message_id=b"prefix.1f",
        channel=CHANNEL,
        frame_max=frame_max,
    )
    return b"".join(parts)


def test_a_publish_is_what_pamqp_reads() -> None:
    """A publish encoded by hand decodes by pamqp to the same mandatory, persistent message."""
    headers = {"hk_event_id": "1f1e", "x-user-id": "ü", "hk_attempt": 3, "nested": {"a": [1, None, True]}}
    publish, header, body = frames_in(message(b'{"a":1}', headers=headers))
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == (
        "hk.events",
        "user.créée",
        True,
        False,
    )
    properties = header.properties
    assert header.body_size == 7
    assert properties.headers == headers
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert (properties.message_id, properties.message_type, properties.app_id) == (
        "prefix.1f",
        "user.created",
        "api_service",
    )
    assert body.value == b'{"a":1}'


def test_type_and_publisher_may_be_left_out() -> None:
    """Without a type and a service, the message has no such properties."""
    parts = message_parts(
        frame_template("", "queue", None, None),
        encode_table(b""),
        b"{}",
        message_id=b"1",
        channel=CHANNEL,
        frame_max=4096,
    )
    _, header, _ = frames_in(b"".join(parts))
    assert (header.properties.message_type, header.properties.app_id) == (None, None)


@pytest.mark.parametrize(("size", "frames"), [(0, 0), (1, 1), (4088, 1), (4089, 2), (3 * 4088, 3)])
def test_a_body_is_cut_into_frames_that_the_broker_takes(size: int, frames: int) -> None:
    """A body gets as many frames of at most `frame_max` as it needs, and none if it is empty."""
    parts = frames_in(message(b"x" * size))[2:]
    assert len(parts) == frames
    assert b"".join(part.value for part in parts) == b"x" * size


VALUES = st.one_of(st.text(max_size=40), st.integers(-(2**31), 2**31), st.booleans(), st.none())


@given(st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=6))
def test_headers_are_what_pamqp_reads(headers: dict[str, Any]) -> None:
    """Headers of every type that AMQP carries decode by pamqp to the same values."""
    _, header, _ = frames_in(message(b"{}", headers=headers))
    assert header.properties.headers == headers


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "\ud800"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    """A routing key or header name over 255 bytes, or without a UTF-8 form, raises a ValueError."""
    with pytest.raises(ValueError, match=r"255 bytes|surrogates"):
        frame_template("hk.events", name, None, None)
    with pytest.raises(ValueError, match=r"255 bytes|surrogates"):
        encode_fields({name: "value"})


async def test_acknowledgements_are_what_pamqp_reads() -> None:
    """Acks and nacks encoded by hand decode by pamqp with their tags and bits."""
    connection = FakeConnection()
    connection.port.ack(3)
    connection.port.ack(9, multiple=True)
    connection.port.requeue(12)
    first, second, third = frames_in(bytes(connection.transport.written))
    assert (first.name, first.delivery_tag, first.multiple) == ("Basic.Ack", 3, False)
    assert (second.delivery_tag, second.multiple) == (9, True)
    assert (third.name, third.delivery_tag, third.multiple, third.requeue) == ("Basic.Nack", 12, False, True)


@given(flags=st.integers(0, 2**16 - 1), properties=st.binary(max_size=60))
def test_no_properties_are_unreadable(flags: int, properties: bytes) -> None:
    """Any bytes as properties can be decoded: pamqp's error would end the connection at each delivery."""
    octets = flags.to_bytes(2, "big") + properties
    assert isinstance(decode_properties(octets), Basic.Properties)


def encoded(properties: Basic.Properties) -> bytes:
    """Encode properties as a port receives them."""
    return pamqp.frame.marshal(ContentHeader(0, 5, properties), 1)[7 + PROPERTIES_AT : -1]


FAR: Final = struct.pack(">Q", 2**63)
"""A time that Python has no `datetime` for."""
NEAR: Final = datetime(2026, 1, 15, tzinfo=UTC)
IN_PLACE: Final = struct.pack(">Q", int(NEAR.timestamp()))


def test_properties_that_can_not_be_decoded_are_none() -> None:
    """A timestamp beyond the calendar reads as None instead of an error."""
    assert decode_properties(encoded(Basic.Properties(priority=3))).priority == 3
    assert decode_properties(struct.pack(">H", 0x0040) + FAR).timestamp is None


def test_one_property_that_can_not_be_decoded_costs_no_other() -> None:
    """A timestamp that can't be decoded leaves content type, headers and all other properties intact."""
    whole = Basic.Properties(
        content_type="application/json",
        headers={"hk_attempt": 2, "request_id": "r"},
        delivery_mode=2,
        message_id="m",
        timestamp=NEAR,
        message_type="a.b",
        app_id="svc",
    )
    read = decode_properties(encoded(whole).replace(IN_PLACE, FAR))
    assert read.timestamp is None
    assert dict(read) == {**dict(whole), "timestamp": None}
    not_utf8 = decode_properties(encoded(whole).replace(b"\x01m", b"\x01\xff"))
    assert dict(not_utf8) == {**dict(whole), "message_id": None}


@pytest.mark.parametrize("where", ["first", "last", "in a table", "in a list"])
def test_one_header_that_can_not_be_decoded_costs_no_other(where: str) -> None:
    """A header that can't be decoded, also within a table or list, is left out alone."""
    odd: Any = {"in a table": {"x": NEAR}, "in a list": [1, NEAR]}.get(where, NEAR)
    others: dict[str, Any] = {"hk_attempt": 2, "list": [1, "a"], "table": {"t": NEAR.replace(year=2000)}, "text": "ä",
                              "yes": True, "none": None, "float": 1.5, "big": 2**40}  # fmt: skip
    headers = {"odd": odd, **others} if where == "first" else {**others, "odd": odd}
    octets = encoded(Basic.Properties(content_type="c", headers=headers, message_id="m"))
    read = decode_properties(octets.replace(IN_PLACE, FAR))
    assert (read.headers, read.content_type, read.message_id) == (others, "c", "m")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
header_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
)


@given(st.dictionaries(texts, header_values, max_size=5))
def test_what_is_read_one_by_one_is_what_is_read_at_once(headers: dict[str, Any]) -> None:
    """The lenient decoder agrees with pamqp's wherever pamqp can decode everything."""
    octets = encoded(Basic.Properties(headers=headers, message_id="m", priority=1))
    assert dict(decode_leniently(octets)) == dict(decode_properties(octets))


def test_reprs_say_where() -> None:
    """A port's repr names its channel."""
    assert repr(Port(cast("Any", None), 3, FakeReceiver())) == "Port(channel=3, is_open=True)"
