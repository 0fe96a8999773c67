"""What keeps connections and channels alive, and what bounds every wait for them, without a broker."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from structlog.testing import capture_logs

from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    AccessDeniedError,
    BlockedError,
    NotConnectedError,
    OutcomeUnknownError,
    TopologyError,
)
from hybridkit.messaging import BrokerConnection
from hybridkit.messaging import _channel as channel_module
from hybridkit.messaging import _connection as connection_module
from hybridkit.messaging import _writer as writer_module
from hybridkit.messaging._bounded import Background, Backoff, bounded
from hybridkit.messaging._channel import Lane, SupervisedChannel
from hybridkit.messaging._connection import Link
from hybridkit.messaging._writer import Outgoing, Writer

NEXT_SECONDS = Backoff.next_seconds


class FakeChannel:
    """An aiormq channel: open until it is closed, and publishing as it is told."""

    def __init__(self, publish: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self.ended = asyncio.Event()
        self.publish = publish
        self.goodbyes = 0

    @property
    def is_closed(self) -> bool:
        return self.ended.is_set()

    @property
    def closing(self) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.ended.wait())

    async def close(self, reason: object) -> None:
        self.goodbyes += 1
        self.ended.set()

    async def basic_publish(self, body: bytes, **_: object) -> None:
        if self.publish:
            await self.publish()


class FakeLink:
    """A connection that opens fake channels."""

    def __init__(self, *channels: FakeChannel) -> None:
        self.channels = list(channels)
        self.opened: list[FakeChannel] = []
        self.is_blocked = False
        self.unblocked = asyncio.Event()

    async def link(self) -> "FakeLink":
        return self

    async def writable(self) -> None:
        if self.is_blocked:
            await self.unblocked.wait()

    async def channel(self, *, confirms: bool) -> FakeChannel:
        self.opened.append(self.channels.pop(0) if self.channels else FakeChannel())
        return self.opened[-1]

    async def ask(self, work: Coroutine[Any, Any, Any], **_: object) -> Any:
        return await work

    @property
    def address(self) -> str:
        return "fake"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as written:
        yield written


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_seconds", lambda _: 0.0)


def supervised(link: FakeLink, **options: Any) -> SupervisedChannel:
    async def prepare(lane: Lane) -> None: ...

    arguments: dict[str, Any] = {"name": "fake", "confirms": False, "prepare": prepare, **options}
    return SupervisedChannel(cast("BrokerConnection", link), **arguments)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


@asynccontextmanager
async def started(channel: SupervisedChannel) -> AsyncGenerator[SupervisedChannel]:
    await channel.start()
    try:
        yield channel
    finally:
        await channel.stop()


# ── waiting within bounds ────────────────────────────────────────────────────────────────────────


async def test_a_call_that_takes_too_long_is_left_alone() -> None:
    """It is not cancelled, because that would leave its channel in doubt."""
    background, go_on, ended = Background(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        await go_on.wait()
        ended.set()

    with pytest.raises(TimeoutError, match=r"asking: no answer in 0\.01 s"):
        await bounded(call(), seconds=0.01, background=background, name="asking")
    assert "1 tasks" in repr(background)
    go_on.set()
    assert await background.wait(seconds=5)
    assert ended.is_set()


async def test_a_cancellation_out_of_the_library_is_a_lost_connection() -> None:
    """Nobody has cancelled anything; that is how aiormq tells."""

    async def call() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionError, match="ended meanwhile"):
        await bounded(call(), seconds=5, background=Background(), name="asking")


def test_pauses_grow_to_a_cap_and_start_again() -> None:
    backoff = Backoff(first_seconds=1, cap_seconds=4)
    for bound in (1, 2, 4, 4):
        assert bound / 4 <= NEXT_SECONDS(backoff) <= bound
    backoff.reset()
    assert repr(backoff) == "Backoff(bound_seconds=1)"


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_retired_channel_is_closed_when_nobody_needs_it() -> None:
    """An acknowledgement can only be sent on the channel that delivered."""
    channel = FakeChannel()
    lane = Lane(cast("Any", channel), cast("Link", FakeLink()), linger_seconds=None)
    with lane:
        lane.retire()
        lane.retire()
        await asyncio.sleep(0)
        assert lane.is_open
    await lane.close()
    assert channel.goodbyes == 1
    assert "is_open=False" in repr(lane)


async def test_a_retired_channel_does_not_wait_for_ever() -> None:
    channel = FakeChannel()
    lane = Lane(cast("Any", channel), cast("Link", FakeLink()), linger_seconds=0.01)
    with lane:
        lane.retire()
        async with asyncio.timeout(5):
            await channel.ended.wait()


# ── supervision ──────────────────────────────────────────────────────────────────────────────────


async def test_a_channel_that_closes_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "STABLE_SECONDS", 0.0)
    link = FakeLink()
    async with started(supervised(link)) as channel:
        first = await channel.lane()
        link.opened[0].ended.set()
        assert channel.current is None
        assert await channel.lane() is not first
        assert "is_open=True" in repr(channel)


async def test_a_channel_is_retired_once() -> None:
    link = FakeLink()
    async with started(supervised(link)) as channel:
        first = await channel.lane()
        channel.retire(first, reason="doubt")
        channel.retire(first, reason="doubt")
        await until(lambda: channel.current not in {first, None})
        assert len(link.opened) == 2


async def test_what_was_never_started_can_be_stopped() -> None:
    assert await supervised(FakeLink()).stop() is None


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (ChannelPreconditionFailed("inequivalent arg"), TopologyError),
        (ChannelLockedResource("exclusive"), TopologyError),
        (ChannelAccessRefused("no"), AccessDeniedError),
    ],
)
async def test_a_refusal_is_named_at_the_start(refusal: AMQPError, error: type[Exception]) -> None:
    async def prepare(lane: Lane) -> None:
        raise refusal

    with pytest.raises(error, match="fake"):
        await supervised(FakeLink(), prepare=prepare).start()


async def test_a_passing_trouble_is_tried_again() -> None:
    """Also what nobody has thought of: after the start nothing ends the supervision."""
    troubles: list[Exception] = [ChannelNotFoundEntity("no exchange"), AMQPError("strange")]

    async def prepare(lane: Lane) -> None:
        if troubles:
            raise troubles.pop()

    link = FakeLink()
    async with started(supervised(link, prepare=prepare)) as channel:
        assert len(link.opened) == 3
        troubles.append(LookupError("a bug"))
        link.opened[-1].ended.set()
        await channel.lane()
        assert len(link.opened) == 5


async def test_a_start_ends_with_the_context() -> None:
    async def prepare(lane: Lane) -> None:
        raise ChannelNotFoundEntity("no exchange")

    with bind(RequestContext().within(0.05)), pytest.raises(NotConnectedError, match="no exchange"):
        await supervised(FakeLink(), prepare=prepare).start()


async def test_a_probe_that_fails_replaces_the_channel() -> None:
    answers: list[Exception | None] = [None, OSError("gone")]

    async def probe(lane: Lane) -> None:
        if answers and (error := answers.pop(0)):
            raise error

    link = FakeLink()
    async with started(supervised(link, probe=probe, probe_seconds=0.001)):
        await until(lambda: len(link.opened) == 2)


# ── connections ──────────────────────────────────────────────────────────────────────────────────


def test_the_heartbeat_in_the_url_wins() -> None:
    url = "amqp://127.0.0.1/"
    assert BrokerConnection(url, name="tests")._url.query["heartbeat"] == "10"
    assert BrokerConnection(f"{url}?heartbeat=3", name="tests")._url.query["heartbeat"] == "3"


def test_the_port_is_the_schemes_where_none_is_given() -> None:
    assert BrokerConnection("amqps://broker/vhost", name="tests").address == "broker:5671/vhost"


async def test_a_connection_that_was_never_entered_can_be_left() -> None:
    await BrokerConnection("amqp://127.0.0.1/", name="tests").__aexit__(None, None, None)


async def test_nobody_listens() -> None:
    with bind(RequestContext().within(0.2)), pytest.raises(NotConnectedError, match="Connect call failed"):
        await BrokerConnection("amqp://127.0.0.1:1/", name="tests").__aenter__()


class FakeConnection:
    """An aiormq connection that is open until it ends."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.readable = asyncio.Event()
        self.readable.set()

    async def ready(self) -> None:
        await self.readable.wait()

    @property
    def closing(self) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.ended.wait())

    async def channel(self, **_: object) -> None:
        raise AMQPError("no channel")

    async def close(self, reason: object) -> None:
        raise ConnectionError("gone already")


class FakeSockets:
    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def fake() -> tuple[FakeConnection, FakeSockets, Link]:
    connection, sockets = FakeConnection(), FakeSockets()
    return connection, sockets, Link(cast("Any", connection), cast("Any", sockets), Background())


async def test_a_silent_broker_loses_its_connection(fake: tuple[FakeConnection, FakeSockets, Link]) -> None:
    _, sockets, link = fake
    with pytest.raises(NotConnectedError, match="no answer"):
        await link.ask(asyncio.sleep(60), name="asking", seconds=0.01)
    assert sockets.aborted
    assert "Link(" in repr(link)


async def test_a_call_that_fails_costs_nobody_the_connection(
    fake: tuple[FakeConnection, FakeSockets, Link],
) -> None:
    """Its channel had closed meanwhile; other consumers share the connection."""
    _, sockets, link = fake

    async def call() -> None:
        raise ChannelInvalidStateError("closed")

    with pytest.raises(NotConnectedError, match="asking: closed"):
        await link.ask(call(), name="asking")
    with pytest.raises(NotConnectedError, match="no channel"):
        await link.channel(confirms=True)
    assert not sockets.aborted


async def test_a_blocked_connection_is_waited_for_until_it_is_lost(
    fake: tuple[FakeConnection, FakeSockets, Link],
) -> None:
    connection, _, link = fake
    before = link.is_blocked
    connection.readable.clear()
    assert (before, link.is_blocked) == (False, True)
    waiting = asyncio.create_task(link.writable())
    await asyncio.sleep(0)
    assert not waiting.done()
    connection.ended.set()
    await waiting


async def test_a_goodbye_that_fails_is_no_error(fake: tuple[FakeConnection, FakeSockets, Link]) -> None:
    _, sockets, link = fake
    await link.close()
    assert sockets.aborted


async def test_a_connection_that_drops_at_once_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that lasted makes the pauses short again; a mistake of ours ends nothing."""
    resets = 0

    def count(_: object) -> None:
        nonlocal resets
        resets += 1

    connections = [FakeConnection(), FakeConnection()]
    first, second = (
        Link(cast("Any", each), cast("Any", FakeSockets()), Background()) for each in connections
    )
    links: list[Link | Exception] = [first, LookupError("a bug"), second]

    async def open_link(*_: object, **__: object) -> Link:
        link = links.pop(0)
        if isinstance(link, Exception):
            raise link
        return link

    monkeypatch.setattr(Backoff, "reset", count)
    monkeypatch.setattr(Link, "open", open_link)
    broker = BrokerConnection("amqp://127.0.0.1/", name="tests")
    waiting = asyncio.create_task(broker.link())
    await asyncio.sleep(0)
    async with broker:
        assert await waiting is first
        connections[0].ended.set()
        await until(lambda: not links)
        assert resets == 0
        monkeypatch.setattr(connection_module, "STABLE_SECONDS", 0.0)
        await broker.link()
        links.append(Link(cast("Any", FakeConnection()), cast("Any", FakeSockets()), Background()))
        connections[1].ended.set()
        await until(lambda: not links)
        assert resets == 1


# ── the writer ───────────────────────────────────────────────────────────────────────────────────

MESSAGE = Outgoing(exchange="hk.events", routing_key="a.b", body=b"{}", headers={})


@asynccontextmanager
async def writing(link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Writer]:
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(writer_module, "declare", nothing)
    monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 0.05)
    writer = Writer(cast("BrokerConnection", link), name="fake")
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


async def test_a_writer_that_was_never_started_can_be_stopped() -> None:
    writer = Writer(cast("BrokerConnection", FakeLink()), name="fake")
    await writer.stop()
    assert not writer.is_ready


async def test_a_channel_that_closed_before_the_write_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent on it, so the next channel is taken."""
    first = FakeChannel()

    async def refuse() -> None:
        first.ended.set()
        raise ChannelInvalidStateError

    first.publish = refuse
    async with writing(FakeLink(first), monkeypatch) as writer:
        assert await writer.write(MESSAGE)
        assert writer.is_ready


async def test_beyond_the_window_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 1)
    go_on = asyncio.Event()
    channel = FakeChannel(publish=lambda: cast("Coroutine[Any, Any, None]", go_on.wait()))
    async with writing(FakeLink(channel), monkeypatch) as writer:
        first = asyncio.create_task(writer.write(MESSAGE))
        await until(lambda: "unanswered=1" in repr(writer))
        with bind(RequestContext().within(0.01)), pytest.raises(BlockedError, match="1 unanswered publishes"):
            await writer.write(MESSAGE)
        go_on.set()
        assert await first


async def test_what_has_no_answer_when_the_writer_stops_stays_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel = FakeChannel(publish=lambda: asyncio.sleep(60))
    async with writing(FakeLink(channel), monkeypatch) as writer:
        task = asyncio.create_task(writer.write(MESSAGE))
        await asyncio.sleep(0)
    with pytest.raises(OutcomeUnknownError):
        await task


async def test_a_slow_answer_is_no_reason_to_change_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the oldest has waited for five seconds, and not while an alarm explains it."""
    channel = FakeChannel(publish=lambda: asyncio.sleep(60))
    link = FakeLink(channel)
    async with writing(link, monkeypatch) as writer:
        for patience, blocked, retired in ((5.0, False, False), (0.0, True, False), (0.0, False, True)):
            monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", patience)
            task = asyncio.create_task(writer.write(MESSAGE))
            await until(lambda: "unanswered=1" in repr(writer))
            link.is_blocked = blocked
            writer._suspect(cast("Any", next(iter(writer._unanswered)).lane))
            link.is_blocked = False
            lane = next(iter(writer._unanswered)).lane
            assert lane
            assert lane.retired.is_set() == retired
            task.cancel()


async def test_the_topology_is_declared_again_on_a_new_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink()
    async with writing(link, monkeypatch) as writer:
        writer.renew_topology(reason="a binding is gone")
        assert await writer.write(MESSAGE)
        await until(lambda: len(link.opened) == 2)
        link.opened[-1].ended.set()
        writer.renew_topology(reason="there is no channel anyway")
