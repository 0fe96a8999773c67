"""Whatever a client sends, the broker answers or closes, and goes on."""

import asyncio
import logging
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame

from hybridkit.dev import DevelopmentBroker
from hybridkit.dev._broker._connection import Connection
from hybridkit.dev._broker._fault_plan import FaultPlan

GREETING = b"AMQP\x00\x00\x09\x01" + b"".join(
    frame.marshal(method, channel)
    for method, channel in [
        (commands.Connection.StartOk(mechanism="PLAIN", response="\0me\0me", locale="en_US"), 0),
        (commands.Connection.TuneOk(0, 131072, 0), 0),
        (commands.Connection.Open("/"), 0),
        (commands.Channel.Open(), 1),
        (commands.Confirm.Select(), 1),
        (commands.Queue.Declare(queue="queue", durable=True), 1),
        (commands.Basic.Consume(queue="queue", consumer_tag="tag"), 1),
    ]
)
METHODS = st.sampled_from(sorted(commands.INDEX_MAPPING))
CHANNELS = st.sampled_from([0, 1, 1, 1, 2])


class Socket(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        """Nothing is read from here."""

    def resume_reading(self) -> None:
        """Nor here."""


def a_frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method_frames() -> st.SearchStrategy[bytes]:
    arguments = st.binary(max_size=20) | st.just(b"\0" * 20) | st.just(b"\0\0\5queue\0\0\0\0\0\0")
    payloads = st.builds(lambda index, rest: struct.pack(">I", index) + rest, METHODS, arguments)
    return st.builds(a_frame, st.just(1), CHANNELS, payloads)


def publishes() -> st.SearchStrategy[bytes]:
    """Whole ones, with any properties."""

    def build(key: str, properties: bytes, body: bytes) -> bytes:
        publish = frame.marshal(commands.Basic.Publish(routing_key=key, mandatory=True), 1)
        content = struct.pack(">HHQ", 60, 0, len(body)) + properties
        return publish + a_frame(2, 1, content) + a_frame(3, 1, body)

    return st.builds(build, st.sampled_from(["queue", "x"]), st.binary(max_size=12), st.binary(max_size=9))


FRAMES = st.builds(a_frame, st.sampled_from([1, 2, 3, 8, 9]), CHANNELS, st.binary(max_size=20))
INPUT = st.lists(method_frames() | publishes() | FRAMES | st.binary(max_size=20), max_size=8).map(b"".join)


class Errors(logging.Handler):
    """What the broker logs when it was its own fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def feed(data: bytes, *, step: int) -> Socket:
    """What the broker answers; in pieces of that size. It must not have failed."""

    async def run() -> Socket:
        broker, socket = DevelopmentBroker(), Socket()
        connection = Connection(broker, FaultPlan())
        connection.connection_made(socket)
        for at in range(0, len(data), step):
            if not socket.is_closed:
                connection.data_received(data[at : at + step])
        connection.connection_lost(None)
        assert broker.connections == []
        broker.virtual_host("/").close()
        return socket

    errors, log = Errors(), logging.getLogger("hybridkit.dev")
    log.addHandler(errors)
    try:
        socket = asyncio.run(run())
    finally:
        log.removeHandler(errors)
    assert errors.records == []
    return socket


@settings(max_examples=60)
@given(data=INPUT, step=st.integers(1, 200))
def test_a_client_can_send_anything(data: bytes, step: int) -> None:
    """Whatever the input, the broker's output consists of whole frames."""
    rest = feed(GREETING + data, step=step).written
    while rest:
        size, _, _ = frame.unmarshal(rest)
        rest = rest[size:]


@settings(max_examples=60)
@given(data=st.binary(max_size=100))
def test_before_the_handshake_too(data: bytes) -> None:
    """Random bytes in place of the handshake end the connection at most."""
    feed(data, step=10)
    feed(b"AMQP\x00\x00\x09\x01" + data, step=10)


def test_frames_may_come_in_any_pieces() -> None:
    """Byte by byte or all at once, the answers are the same."""
    data = GREETING + frame.marshal(commands.Basic.Qos(), 1)
    assert feed(data, step=1).written == feed(data, step=10_000).written != b""
