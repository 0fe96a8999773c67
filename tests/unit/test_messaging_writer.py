"""Publishes on their way: numbered as the broker numbers them, and each with an end."""

import asyncio
import time
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pamqp.frame
import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader

from hybridkit import Event
from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    BlockedError,
    DeadlinePassedError,
    HybridkitError,
    MalformedPayloadError,
    NackedError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnroutableError,
)
from hybridkit.messaging import Receipt, RobustPublisher
from hybridkit.messaging._amqp._frames import frame_template
from hybridkit.messaging._amqp._socket import FrameProtocol
from hybridkit.messaging._publishing import _confirms as confirms_module
from hybridkit.messaging._publishing import _publisher as publisher_module
from hybridkit.messaging._publishing import _writer as writer_module
from hybridkit.messaging._publishing._writer import OutgoingMessage, Writer
from hybridkit.observability import metrics
from tests.helpers import until

pytestmark = pytest.mark.usefixtures("logs")


class Forgettable(Event, type="writer.forgettable"):
    text: str = ""


class Broker(asyncio.Transport):
    """The broker's end of a connection: decodes what is published, and sends the frames that a test gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Any] = []
        self.protocol = FrameProtocol(asyncio.StreamReader(), asyncio.get_running_loop())
        self.protocol.connection_made(self)
        self.channel = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        octets = bytes(data)
        while octets:
            size, _, frame = pamqp.frame.unmarshal(octets)
            self.received.append(frame)
            octets = octets[size:]

    def says(self, *frames: object, channel: int | None = None) -> None:
        number = self.channel if channel is None else channel
        self.protocol.data_received(
            b"".join(pamqp.frame.marshal(cast("Any", each), number) for each in frames)
        )

    def returns(self, number: int) -> None:
        """Return the publish of that number, as no queue takes it."""
        headers = [frame for frame in self.received if isinstance(frame, ContentHeader)]
        self.says(
            Basic.Return(312, "NO_ROUTE", "hk.events", "a.b"),
            ContentHeader(0, 2, headers[number - 1].properties),
            ContentBody(b"{}"),
            Basic.Ack(number),
        )

    @property
    def published(self) -> int:
        return sum(isinstance(frame, Basic.Publish) for frame in self.received)

    # What a `SupervisedChannel` asks of connections:

    address = "fake"

    @property
    def is_blocked(self) -> bool:
        return not self.protocol.unblocked.is_set()

    async def opened(self) -> "Broker":
        return self

    async def writable(self) -> None:
        await self.protocol.unblocked.wait()

    async def open_channel(self, *, confirms: bool) -> Any:
        self.channel += 1
        ended = asyncio.Event()

        async def close(_: object) -> None:
            ended.set()

        class FakeChannel:
            number = self.channel
            end = ended.set
            closing = property(lambda _: asyncio.ensure_future(ended.wait()))
            is_closed = property(lambda _: ended.is_set())

        fake = FakeChannel()
        cast("Any", fake).close = close
        return fake

    def port(self, channel: Any, receiver: Any) -> Any:
        return self.protocol.open_port(channel.number, receiver)

    async def ask(self, work: Any, **_: object) -> Any:
        return await work


class FakeConnection:
    """The broker as a connection, whose `channel` is a method."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.channel = broker.open_channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


MESSAGE = OutgoingMessage(exchange="hk.events", routing_key="a.b", body=b"{}", headers={})


@asynccontextmanager
async def writing(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Writer, Broker]]:
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(writer_module, "declare", nothing)
    monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 0.05)
    broker = Broker()
    connected = FakeConnection(broker)

    async def itself() -> FakeConnection:
        return connected

    connection = SimpleNamespace(opened=itself, address="fake", is_blocked=False)
    writer = Writer(cast("Any", connection), name="fake")
    await writer.start()
    try:
        yield writer, broker
    finally:
        await writer.stop()


def submit(writer: Writer, *, seconds: float = 5.0) -> asyncio.Future[bool]:
    return writer.submit(MESSAGE, deadline=time.monotonic() + seconds).confirmation


def error_of(answer: asyncio.Future[bool]) -> HybridkitError | None:
    return cast("HybridkitError | None", answer.exception())


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


async def test_many_go_out_in_one_write_and_each_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirms in any order, alone or with `multiple`, reach their publishes; a return means that no queue took it."""
    async with writing(monkeypatch) as (writer, broker):
        answers = [submit(writer) for _ in range(6)]
        assert broker.published == 0
        await until(lambda: broker.published == 6)
        broker.says(Basic.Ack(3), Basic.Nack(5))
        broker.returns(2)
        broker.says(Basic.Ack(4, multiple=True), Basic.Ack(6))
        assert [await answers[number] for number in (0, 1, 2, 3, 5)] == [True, False, True, True, True]
        assert isinstance(error_of(answers[4]), NackedError)
        assert "unconfirmed=0" in repr(writer)


async def test_an_answer_to_nothing_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirms of tags that are unknown or settled, and returns of other messages, change nothing."""
    async with writing(monkeypatch) as (writer, broker):
        answer = submit(writer)
        await until(lambda: broker.published == 1)
        broker.says(Basic.Ack(7), Basic.Ack(0, multiple=True))
        others = [submit(writer), submit(writer)]
        await until(lambda: broker.published == 3)
        broker.says(Basic.Ack(2), Basic.Ack(2), Basic.Ack(3))
        assert all([await other for other in others])
        broker.says(
            Basic.Return(312, "NO_ROUTE", "", "a.b"),
            ContentHeader(0, 0, Basic.Properties(message_id="a stranger's")),
        )
        assert not answer.done()
        broker.says(Basic.Ack(1), Basic.Ack(1))
        assert await answer


async def test_a_return_that_is_not_of_ours_is_ignored(
    monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """A returned message whose properties contain our id's prefix without a number is logged and ignored."""
    async with writing(monkeypatch) as (writer, broker):
        sent = submit(writer)
        await until(lambda: broker.published == 1)
        confirms = cast("Any", writer._confirms)
        for odd in (b"", b"\xff", b"\x05" + confirms._prefix, b"\xff" + confirms._prefix + b"xyz"):
            confirms.returned(odd)
        broker.says(Basic.Ack(1))
        assert await sent
    assert [entry["event"] for entry in logs].count("a returned message is not one of ours") == 2


async def test_a_caller_that_leaves_shifts_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 2: a cancelled publish keeps its number if it was written, and is not written otherwise."""
    async with writing(monkeypatch) as (writer, broker):
        unsent = submit(writer)
        unsent.cancel()
        first, second = submit(writer), submit(writer)
        await until(lambda: broker.published == 2)
        first.cancel()
        broker.says(Basic.Ack(1), Basic.Nack(2))
        await until(second.done)
        assert isinstance(error_of(second), NackedError)


async def test_beyond_the_window_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message beyond the window is written when a confirm makes room."""
    monkeypatch.setattr(confirms_module, "WINDOW", 2)
    async with writing(monkeypatch) as (writer, broker):
        answers = [submit(writer) for _ in range(3)]
        await until(lambda: broker.published == 2)
        assert writer.waiting == 1
        broker.says(Basic.Ack(1))
        await until(lambda: broker.published == 3)
        broker.says(Basic.Ack(3, multiple=True))
        assert all([await answer for answer in answers])


async def test_the_window_counts_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is full at its bytes although it has room for more messages."""
    monkeypatch.setattr(confirms_module, "WINDOW_BYTES", 3)
    async with writing(monkeypatch) as (writer, broker):
        answers = [submit(writer) for _ in range(3)]
        await until(lambda: broker.published == 2)
        broker.says(Basic.Ack(2, multiple=True))
        await until(lambda: broker.published == 3)
        broker.says(Basic.Ack(3))
        assert all([await answer for answer in answers])


# ── what no broker takes ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("frame_max", [4096, 131_072])
async def test_headers_that_fit_into_no_frame_are_refused_and_harm_nobody(
    monkeypatch: pytest.MonkeyPatch, frame_max: int
) -> None:
    """Headers larger than a frame fail their own publish only; sent, they would end the connection again and again."""
    async with writing(monkeypatch) as (writer, broker):
        broker.protocol.frame_max = frame_max
        too_large = MESSAGE._replace(headers={"x-user-id": "u" * frame_max})
        refused = writer.submit(too_large, deadline=None).confirmation
        sent = submit(writer)
        await until(lambda: broker.published == 1)
        error = error_of(refused)
        assert isinstance(error, PayloadTooLargeError)
        assert error.limit_bytes == frame_max - 8
        broker.says(Basic.Ack(1))
        assert await sent
        largest = frame_max - 8 - (error.size_bytes - frame_max)
        fits = writer.submit(
            MESSAGE._replace(headers={"x-user-id": "u" * largest}), deadline=None
        ).confirmation
        await until(lambda: broker.published == 2)
        broker.says(Basic.Ack(2))
        assert await fits


async def test_a_message_that_is_too_large_for_the_broker_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The publish whose size closed the channel gets `PayloadTooLargeError`, the others an unknown outcome."""
    async with writing(monkeypatch) as (writer, broker):
        large = writer.submit(MESSAGE._replace(body=b"x" * 500), deadline=None).confirmation
        other = submit(writer)
        await until(lambda: broker.published == 2)
        said = "PRECONDITION_FAILED - message size 500 is larger than configured max size 400"
        broker.says(Channel.Close(406, said, 60, 40))
        error = error_of(large)
        assert isinstance(error, PayloadTooLargeError)
        assert (error.size_bytes, error.limit_bytes) == (500, 400)
        assert isinstance(error_of(other), OutcomeUnknownError)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_channel_that_closes_leaves_what_was_sent_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed channel fails what was written with `OutcomeUnknownError`; what was not goes over the next channel."""
    async with writing(monkeypatch) as (writer, broker):
        sent = submit(writer)
        await until(lambda: broker.published == 1)
        broker.says(Channel.Close(404, "NOT_FOUND - no exchange", 60, 40))
        unsent = submit(writer)
        assert "404 NOT_FOUND" in str(error_of(sent))
        assert isinstance(error_of(sent), OutcomeUnknownError)
        cast("Any", writer._confirms).channel.raw.end()
        await until(lambda: broker.published == 2)
        broker.says(Basic.Ack(1))
        assert await unsent


async def test_a_missing_answer_is_unknown_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each publish fails at its own deadline, in whatever order they began, and a late confirm changes nothing."""
    async with writing(monkeypatch) as (writer, broker):
        later, earlier, latest = submit(writer), submit(writer, seconds=0.01), submit(writer, seconds=6.0)
        await until(earlier.done)
        assert isinstance(error_of(earlier), OutcomeUnknownError)
        assert not later.done()
        assert not latest.done()
        broker.says(Basic.Ack(3, multiple=True))
        assert await later
        assert await latest


async def test_during_an_alarm_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """During an alarm a publish fails at its deadline with `BlockedError`; the others are sent when the alarm ends."""
    async with writing(monkeypatch) as (writer, broker):
        broker.says(Connection.Blocked("low on memory"), channel=0)
        short, patient = submit(writer, seconds=0.01), submit(writer)
        await until(short.done)
        assert isinstance(error_of(short), BlockedError)
        assert (broker.published, writer.waiting) == (0, 1)
        broker.says(Connection.Unblocked(), channel=0)
        await until(lambda: broker.published == 1)
        broker.says(Basic.Ack(1))
        assert await patient


async def test_without_a_channel_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish without a channel waits until its deadline, and fails with `NotConnectedError`."""
    async with writing(monkeypatch) as (writer, broker):
        writer._ready(None)
        answer = submit(writer, seconds=0.5)
        await until(answer.done)
        assert isinstance(error_of(answer), NotConnectedError)
        assert broker.published == 0


async def test_a_slow_answer_is_no_reason_to_change_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel is retired when a confirm is missing for five seconds, and not while an alarm explains it."""
    async with writing(monkeypatch) as (writer, broker):
        submit(writer)
        await until(lambda: broker.published == 1)
        confirms = writer._confirms
        assert confirms is not None
        for patience, blocked, retired in ((5.0, False, False), (0.0, True, False), (0.0, False, True)):
            monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", patience)
            if blocked:
                broker.protocol.unblocked.clear()
            late = submit(writer, seconds=0.001)
            await until(late.done)
            broker.protocol.unblocked.set()
            assert confirms.channel.retired.is_set() == retired


async def test_what_has_no_answer_when_the_writer_stops_is_named(
    monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """Stopping fails what was written as unknown, also on retired channels, and what was not as not sent."""
    async with writing(monkeypatch) as (writer, broker):
        doubtful = submit(writer)
        await until(lambda: broker.published == 1)
        writer.renew_topology(reason="a binding is gone")
        await until(lambda: broker.channel == 2 and writer._confirms is not None)
        sent = submit(writer)
        await until(lambda: broker.published == 2)
        broker.says(Connection.Blocked("low on memory"), channel=0)
        unsent = submit(writer)
    assert [type(error_of(answer)) for answer in (doubtful, sent, unsent)] == [
        OutcomeUnknownError,
        OutcomeUnknownError,
        BlockedError,
    ]
    assert ("publishes unanswered", 3) in [(entry["event"], entry.get("count")) for entry in logs]


async def test_a_writer_that_is_not_open_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that was never started can be stopped, isn't ready, and refuses to publish."""
    writer = Writer(cast("Any", SimpleNamespace(address="fake", is_blocked=False)), name="fake")
    await writer.stop()
    writer.renew_topology(reason="there is no channel anyway")
    assert not writer.is_ready
    with pytest.raises(NotConnectedError, match="not open"):
        submit(writer)


async def test_what_can_not_be_sent_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passed deadline and names or headers that AMQP can't carry raise before anything waits."""
    async with writing(monkeypatch) as (writer, _):
        with pytest.raises(DeadlinePassedError):
            submit(writer, seconds=-1)
        for message in (MESSAGE._replace(headers={"a": object()}), MESSAGE._replace(routing_key="x" * 256)):
            with pytest.raises(MalformedPayloadError, match="AMQP can't carry"):
                writer.submit(message, deadline=None)
        assert writer.waiting == 0


async def test_a_retired_channel_is_kept_for_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retired channel stays open until its last publish is confirmed."""
    async with writing(monkeypatch) as (writer, broker):
        answer = submit(writer)
        await until(lambda: broker.published == 1)
        open_channel = cast("Any", writer._confirms).channel
        writer.renew_topology(reason="a binding is gone")
        await until(lambda: broker.channel == 2)
        assert open_channel.is_open
        broker.says(Basic.Ack(1), channel=1)
        assert await answer
        await until(lambda: not open_channel.is_open)


# ── fire and forget ──────────────────────────────────────────────────────────────────────────────


def published(outcome: str) -> float:
    count: float = cast("Any", metrics.events_published.labels("writer.forgettable", outcome))._value.get()
    return count


@asynccontextmanager
async def publishing(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[RobustPublisher, Broker]]:
    async with writing(monkeypatch) as (writer, broker):
        publisher = RobustPublisher("amqp://127.0.0.1/", service="tests")
        publisher._writer = writer
        yield publisher, broker


async def test_nobody_waits_but_everything_is_counted(
    monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """`publish_nowait` counts each outcome: confirmed, unrouted, nacked, and dropped because too many wait."""
    outcomes = ("confirmed", "unrouted", NackedError.code, BlockedError.code)
    before = [published(outcome) for outcome in outcomes]
    async with publishing(monkeypatch) as (publisher, broker):
        for _ in range(3):
            publisher.publish_nowait(Forgettable())
        await until(lambda: broker.published == 3)
        broker.says(Basic.Ack(1), Basic.Nack(3))
        broker.returns(2)
        monkeypatch.setattr(publisher_module, "MAX_WAITING", 0)
        publisher.publish_nowait(Forgettable())
        await asyncio.sleep(0)
        assert broker.published == 3
    assert [published(outcome) - was for outcome, was in zip(outcomes, before, strict=True)] == [1, 1, 1, 1]
    assert [entry["event"] for entry in logs].count("event dropped") == 3


async def test_without_a_connection_it_is_dropped(logs: list[MutableMapping[str, Any]]) -> None:
    """`publish_nowait` without a connection logs and counts the event instead of raising."""
    before = published(NotConnectedError.code)
    RobustPublisher("amqp://127.0.0.1/", service="tests").publish_nowait(Forgettable())
    assert published(NotConnectedError.code) == before + 1
    assert [entry["event"] for entry in logs] == ["event dropped"]


async def test_what_never_could_be_published_is_the_callers_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """`publish_nowait` raises for an event that is too large."""
    async with publishing(monkeypatch) as (publisher, _):
        monkeypatch.setattr(publisher_module, "MAX_MESSAGE_BYTES", 100)
        with pytest.raises(PayloadTooLargeError):
            publisher.publish_nowait(Forgettable(text="x" * 100))


async def test_a_publish_that_is_cancelled_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish whose caller is cancelled has the outcome `cancelled` in the metrics."""
    before = published("cancelled")
    async with publishing(monkeypatch) as (publisher, broker):
        waiting = asyncio.create_task(publisher.publish(Forgettable()))
        await until(lambda: broker.published == 1)
        waiting.cancel()
        await asyncio.wait({waiting})
        broker.says(Basic.Ack(1))
    assert published("cancelled") == before + 1


async def test_each_of_many_that_can_not_be_sent_has_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch a closed channel or a passed deadline is the error of each event that it concerns."""
    async with publishing(monkeypatch) as (publisher, broker):
        many = asyncio.create_task(publisher.publish_many([Forgettable(), Forgettable()]))
        await until(lambda: broker.published == 2)
        broker.says(Basic.Ack(1), Channel.Close(406, "PRECONDITION_FAILED", 60, 40))
        first, second = await many
        assert isinstance(first, Receipt)
        assert isinstance(second, OutcomeUnknownError)
        with bind(RequestContext().within(-1)):
            answers = await publisher.publish_many([Forgettable()])
        assert [type(answer) for answer in answers] == [DeadlinePassedError]


async def test_a_caller_of_many_that_leaves_shifts_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the caller of a batch was cancelled, its events keep their numbers, and the next batch its own receipts."""
    async with publishing(monkeypatch) as (publisher, broker):
        leaving = asyncio.create_task(publisher.publish_many([Forgettable(), Forgettable()]))
        await until(lambda: broker.published == 2)
        leaving.cancel()
        await asyncio.wait({leaving})
        assert leaving.cancelled()
        staying = asyncio.create_task(publisher.publish_many([Forgettable(), Forgettable()]))
        await until(lambda: broker.published == 4)
        broker.says(Basic.Nack(3), Basic.Ack(2, multiple=True))
        broker.returns(4)
        answers = await staying
    assert [type(answer) for answer in answers] == [NackedError, UnroutableError]


async def test_the_stop_waits_for_the_confirms_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is under way when the writer stops gets the confirms that still come."""
    async with publishing(monkeypatch) as (publisher, broker):
        monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 60)
        many = asyncio.create_task(publisher.publish_many([Forgettable(), Forgettable()]))
        await until(lambda: broker.published == 2)
        stopping = asyncio.create_task(publisher._writer.stop())
        await until(lambda: not publisher._writer._is_open)
        broker.says(Basic.Ack(2, multiple=True))
        answers = await many
        await stopping
    assert [type(answer) for answer in answers] == [Receipt, Receipt]


async def test_each_of_many_has_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that has no JSON form doesn't keep the others of its batch from being published."""
    async with publishing(monkeypatch) as (publisher, broker):
        many = asyncio.create_task(publisher.publish_many([Forgettable(text="\ud800"), Forgettable()]))
        await until(lambda: broker.published == 1)
        broker.says(Basic.Ack(1))
        answers = await many
    assert [type(answer) for answer in answers] == [MalformedPayloadError, Receipt]


async def test_the_first_outcome_of_a_batch_stays() -> None:
    """A confirm that comes after the deadline changes neither the error nor the number of missing outcomes."""
    batch = confirms_module.Batch(2)
    template = frame_template("hk.events", "a.b", None, None)
    late, other = (confirms_module.BatchedPublish(template, b"", b"", 0.0, batch) for _ in range(2))
    error = OutcomeUnknownError("no answer")
    late.fail(error)
    late.confirm(routed=True)
    assert late.outcome is error
    assert repr(batch) == "Batch(missing=1)"
    assert not other.ended.done()
    other.confirm(routed=False)
    assert other.outcome is False
    assert batch.ended.done()


async def test_no_events_have_no_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing an empty list sends nothing and returns an empty list."""
    async with publishing(monkeypatch) as (publisher, broker):
        assert await publisher.publish_many([]) == []
        assert broker.published == 0
