"""Both brokers handle handshake, frames and errors alike, as seen from a plain socket."""

import socket
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pamqp import base, commands, frame, header, heartbeat

PROTOCOL = b"AMQP\x00\x00\x09\x01"
CAPABILITIES = {
    "authentication_failure_close": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
}
OPEN = commands.Channel.Open()


class Wire:
    """A client that sends whatever it is told to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.virtual_host = unquote(parts.path[1:]) or "/"
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=20)
        self.version = ""
        self._rest = b""

    def send(self, *frames: Any, channel: int = 1) -> None:
        for each in frames:
            self.socket.sendall(each if isinstance(each, bytes) else frame.marshal(each, channel))

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._rest += data
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def receive(self) -> Any:
        """The next frame but heartbeats."""
        while True:
            head = self.read(7)
            received = frame.unmarshal(head + self.read(struct.unpack(">BHI", head)[2] + 1))[2]
            if not isinstance(received, heartbeat.Heartbeat):
                return received

    def ask(self, *frames: Any) -> Any:
        self.send(*frames)
        return self.receive()

    def log_in(
        self, mechanism: str = "PLAIN", response: str = "\0guest\0guest", /, **capabilities: bool
    ) -> Any:
        self.send(PROTOCOL)
        start = self.receive()
        assert isinstance(start, commands.Connection.Start)
        self.version = str(start.server_properties["version"])
        assert {"PLAIN", "AMQPLAIN"} <= set(start.mechanisms.split())
        properties: Any = {"capabilities": CAPABILITIES | capabilities}
        reply = commands.Connection.StartOk(properties, mechanism, response, "en_US")
        self.send(reply, channel=0)
        return self.receive()

    def connect(self, *, frame_max: int = 131072, heartbeat_seconds: int = 0, **capabilities: bool) -> None:
        assert isinstance(self.log_in(**capabilities), commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(2047, frame_max, heartbeat_seconds), channel=0)
        self.send(commands.Connection.Open(self.virtual_host), channel=0)
        assert isinstance(self.receive(), commands.Connection.OpenOk)

    def is_closed(self) -> bool:
        try:
            while True:
                self.read(1)
        except EOFError:
            return True


@contextmanager
def wire_to(url: str) -> Generator[Wire]:
    wire = Wire(url)
    with wire.socket:
        yield wire


@pytest.fixture
def wire(amqp_url: str) -> Iterator[Wire]:
    """Connected, with channel 1 open."""
    with wire_to(amqp_url) as wire:
        wire.connect()
        assert isinstance(wire.ask(OPEN), commands.Channel.OpenOk)
        yield wire


def raw(kind: int, payload: bytes, *, channel: int = 1, end: bytes = b"\xce") -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


def content_header(size: int, *, class_id: int = 60, properties: bytes = b"\0\0") -> bytes:
    return raw(2, struct.pack(">HHQ", class_id, 0, size) + properties)


# ── handshake ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("greeting", [b"HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n"])
def test_another_protocol_is_answered_with_the_one_that_is_spoken(amqp_url: str, greeting: bytes) -> None:
    """Then the connection is closed; RabbitMQ 4 names AMQP 1.0."""
    with wire_to(amqp_url) as wire:
        wire.send(greeting)
        assert wire.read(8)[:4] == b"AMQP"
        assert wire.is_closed()


def test_a_wrong_password_is_refused(amqp_url: str) -> None:
    """Clients with the capability get a 403, and others a closed connection."""
    with wire_to(amqp_url) as wire:
        close = wire.log_in("PLAIN", "\0guest\0wrong")
        assert isinstance(close, commands.Connection.Close)
        assert close.reply_code == 403
        assert "Login was refused using authentication mechanism PLAIN" in close.reply_text
    with wire_to(amqp_url) as wire, pytest.raises(EOFError):
        wire.log_in("PLAIN", "\0guest\0wrong", authentication_failure_close=False)


def test_amqplain(amqp_url: str) -> None:
    """Its credentials are a field table without a length."""
    with wire_to(amqp_url) as wire:
        table = b"\5LOGINS\0\0\0\5guest\10PASSWORDS\0\0\0\5guest"
        assert isinstance(wire.log_in("AMQPLAIN", table.decode()), commands.Connection.Tune)


def test_goodbye(wire: Wire) -> None:
    """`connection.close` is answered."""
    wire.send(commands.Connection.Close(200, "goodbye", 0, 0), channel=0)
    assert isinstance(wire.receive(), commands.Connection.CloseOk)


def test_the_secret_can_be_renewed(wire: Wire) -> None:
    """`connection.update-secret` is answered."""
    wire.send(commands.Connection.UpdateSecret("guest", "renewed"), channel=0)
    assert isinstance(wire.receive(), commands.Connection.UpdateSecretOk)


def test_no_frame_is_larger_than_agreed(amqp_url: str) -> None:
    """Bodies are split accordingly, whoever has published them."""
    with wire_to(amqp_url) as wire:
        wire.connect(frame_max=8192)
        wire.ask(OPEN)
        wire.ask(commands.Queue.Declare(queue="queue", durable=True))
        body = b"x" * 10_000
        pieces = [raw(3, body[:8184]), raw(3, body[8184:])]
        wire.send(commands.Basic.Publish(routing_key="queue"), content_header(len(body)), *pieces)
        assert isinstance(wire.ask(commands.Basic.Get(queue="queue")), commands.Basic.GetOk)
        assert isinstance(wire.receive(), header.ContentHeader)
        assert [len(wire.receive().value) for _ in range(2)] == [8184, 1816]


def test_heartbeats_go_both_ways(amqp_url: str) -> None:
    """The broker sends them, and drops a client that does not."""
    with wire_to(amqp_url) as wire:
        wire.connect(heartbeat_seconds=1)
        assert wire.read(8) == frame.marshal(heartbeat.Heartbeat(), 0)
        assert wire.is_closed()


# ── errors ───────────────────────────────────────────────────────────────────────────────────────

PUBLISH = commands.Basic.Publish(routing_key="queue")
MISTAKES: dict[str, tuple[list[Any], int, str]] = {
    "a channel that isn't open": (
        [frame.marshal(commands.Basic.Qos(), 7)],
        504,
        "expected 'channel.open'",
    ),
    "a channel that is": ([OPEN], 504, "second 'channel.open' seen"),
    "a wrong end of frame": ([raw(1, b"\0\x32\0\x0a", end=b"\0")], 501, "invalid_frame_end_marker"),
    "an unknown type": ([raw(9, b"abc")], 501, "unknown_frame"),
    "a frame that is too large": ([struct.pack(">BHI", 1, 1, 200_000)], 501, "frame_too_large"),
    "half a method": ([raw(1, b"\0")], 501, "unknown_frame"),
    "half of its arguments": ([raw(1, b"\0\x32\0\x0a\0")], 501, "cannot decode"),
    "a header without a publish": ([content_header(1)], 505, "expected method frame"),
    "a body without a publish": ([raw(3, b"abc")], 505, "expected method frame"),
    "a method in mid publish": ([PUBLISH, commands.Basic.Qos()], 505, "expected content header for class 60"),
    "a body before its header": ([PUBLISH, raw(3, b"abc")], 505, "expected content header for class 60"),
    "a header of another class": ([PUBLISH, content_header(1, class_id=50)], 505, "got one for class 50"),
    "a body that is too long": (
        [PUBLISH, content_header(1), raw(3, b"abc")],
        501,
        "exceeds remaining content size",
    ),
    "an answer without a question": ([commands.Basic.GetEmpty()], 503, "unimplemented method"),
    "a heartbeat on a channel": ([raw(8, b"")], 505, "type 8"),
    "a method on channel 0": ([raw(1, b"\0\x3c\0\x0a" + b"\0" * 7, channel=0)], 504, "unexpected method"),
    "immediate": (
        [commands.Basic.Publish(routing_key="queue", immediate=True), content_header(0)],
        540,
        "immediate",
    ),
    "prefetch by size": ([commands.Basic.Qos(prefetch_size=1)], 540, "prefetch_size!=0 (1)"),
    "an inactive channel": ([commands.Channel.Flow(active=False)], 540, "active=false"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_that_no_connection_survives(wire: Wire, amqp_url: str, mistake: str) -> None:
    """The client gets the reason, and the broker goes on for others."""
    frames, code, text = MISTAKES[mistake]
    if mistake == "a body that is too long" and wire.version.startswith("3.10"):
        pytest.skip("RabbitMQ 3.10 doesn't answer that at all")
    close = wire.ask(*frames)
    assert isinstance(close, commands.Connection.Close), close
    assert close.reply_code == code
    assert text in close.reply_text
    wire.send(commands.Connection.CloseOk(), channel=0)
    with wire_to(amqp_url) as another:
        another.connect()


@pytest.mark.parametrize(
    "properties", [b"\xff\xff", b"\x20\x00\0\0\0\x05abcde", b"\x80\x00\xff", b"\x20\x00\0\0\0\x03\x01aZ"]
)
def test_properties_that_are_none_end_the_connection(wire: Wire, properties: bytes) -> None:
    """RabbitMQ says 541, and the development broker 502."""
    close = wire.ask(PUBLISH, content_header(1, properties=properties), raw(3, b"a"))
    assert isinstance(close, commands.Connection.Close)
    assert close.reply_code in (541, 502)


def test_a_consumer_tag_is_used_once(wire: Wire) -> None:
    """A second use ends the connection with 530."""
    wire.ask(commands.Queue.Declare(queue="queue", durable=True))
    consume = commands.Basic.Consume(queue="queue", consumer_tag="tag")
    assert isinstance(wire.ask(consume), commands.Basic.ConsumeOk)
    close = wire.ask(consume)
    assert (close.reply_code, close.reply_text) == (530, "NOT_ALLOWED - attempt to reuse consumer tag 'tag'")


def test_what_follows_a_refused_method_is_ignored(wire: Wire) -> None:
    """After the client's answer the channel number is free again."""
    close = wire.ask(commands.Queue.Declare(queue="nowhere", passive=True), *[PUBLISH, content_header(0)] * 3)
    assert isinstance(close, commands.Channel.Close)
    assert (close.reply_code, close.class_id, close.method_id) == (404, 50, 10)
    wire.send(commands.Queue.Declare(queue="late", durable=True))
    wire.send(commands.Channel.CloseOk())
    assert isinstance(wire.ask(OPEN), commands.Channel.OpenOk)
    close = wire.ask(commands.Queue.Declare(queue="late", passive=True))
    assert isinstance(close, commands.Channel.Close)


def test_without_the_capability_nobody_is_told_of_a_deleted_queue(amqp_url: str) -> None:
    """Such a client gets no `basic.cancel`."""
    with wire_to(amqp_url) as wire:
        wire.connect(consumer_cancel_notify=False)
        wire.ask(OPEN)
        wire.ask(commands.Queue.Declare(queue="queue", durable=True))
        wire.ask(commands.Basic.Consume(queue="queue"))
        assert isinstance(wire.ask(commands.Queue.Delete(queue="queue")), commands.Queue.DeleteOk)
        assert isinstance(wire.ask(commands.Basic.Qos()), commands.Basic.QosOk)


def test_nowait_gets_no_answer(wire: Wire) -> None:
    """The next answer belongs to the next method."""
    quiet: list[base.Frame] = [
        commands.Exchange.Declare(exchange="exchange", nowait=True),
        commands.Queue.Declare(queue="queue", durable=True, nowait=True),
        commands.Queue.Bind(queue="queue", exchange="exchange", routing_key="key", nowait=True),
        commands.Basic.Consume(queue="queue", consumer_tag="tag", nowait=True),
        commands.Basic.Cancel(consumer_tag="tag", nowait=True),
        commands.Queue.Purge(queue="queue", nowait=True),
        commands.Confirm.Select(nowait=True),
    ]
    assert isinstance(wire.ask(*quiet, commands.Basic.Qos()), commands.Basic.QosOk)
    assert isinstance(wire.ask(PUBLISH, content_header(0)), commands.Basic.Ack)


def test_return_before_confirm(wire: Wire) -> None:
    """This order also holds for an empty body."""
    wire.ask(commands.Confirm.Select())
    publish = commands.Basic.Publish(routing_key="nowhere", mandatory=True)
    returned = wire.ask(publish, content_header(0))
    assert isinstance(returned, commands.Basic.Return)
    assert (returned.reply_code, returned.reply_text, returned.routing_key) == (312, "NO_ROUTE", "nowhere")
    assert isinstance(wire.receive(), header.ContentHeader)
    assert isinstance(wire.receive(), commands.Basic.Ack)


def test_publishes_that_fail_are_not_confirmed(wire: Wire) -> None:
    """The publishes before them are."""
    wire.ask(commands.Confirm.Select())
    nowhere = commands.Basic.Publish(exchange="nowhere", routing_key="key")
    wire.send(PUBLISH, content_header(0), nowhere, content_header(0))
    answers = [wire.receive() for _ in range(2)]
    assert [type(answer) for answer in answers] == [commands.Basic.Ack, commands.Channel.Close]
