"""What keeps connections and channels alive, and what bounds every wait for them, without a broker."""

import asyncio
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import repeat
from types import SimpleNamespace
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

from hybridkit._tasks import TaskSet
from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    AccessDeniedError,
    MisuseError,
    NotConnectedError,
    TopologyError,
)
from hybridkit.messaging import BrokerConnection
from hybridkit.messaging._amqp import _supervision as supervision_module
from hybridkit.messaging._amqp._affinity import LoopAffinity
from hybridkit.messaging._amqp._channel import OpenChannel, SupervisedChannel
from hybridkit.messaging._amqp._connection import OpenConnection
from hybridkit.messaging._amqp._port import Port
from hybridkit.messaging._amqp._waiting import bounded
from hybridkit.retry import Retry
from tests.helpers import until

pytestmark = pytest.mark.usefixtures("logs")


class FakeChannel:
    """An aiormq channel: open until it is closed."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
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


class FakeConnections:
    """A connection that opens fake channels."""

    def __init__(self, *channels: FakeChannel) -> None:
        self.channels = list(channels)
        self.channels_opened: list[FakeChannel] = []

    async def opened(self) -> "FakeConnections":
        return self

    async def writable(self) -> None: ...

    async def channel(self, *, confirms: bool) -> FakeChannel:
        self.channels_opened.append(self.channels.pop(0) if self.channels else FakeChannel())
        return self.channels_opened[-1]

    async def ask(self, work: Coroutine[Any, Any, Any], **_: object) -> Any:
        return await work

    @property
    def address(self) -> str:
        return "fake"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision_module, "REOPEN", Retry.immediate(attempts=sys.maxsize))


def supervised(connections: FakeConnections, **options: Any) -> SupervisedChannel:
    async def prepare(open_channel: OpenChannel) -> None: ...

    arguments: dict[str, Any] = {"name": "fake", "confirms": False, "prepare": prepare, **options}
    return SupervisedChannel(cast("BrokerConnection", connections), **arguments)


@asynccontextmanager
async def started(channel: SupervisedChannel) -> AsyncGenerator[SupervisedChannel]:
    await channel.start()
    try:
        yield channel
    finally:
        await channel.stop()


# ── waiting within bounds ────────────────────────────────────────────────────────────────────────


async def test_a_call_that_takes_too_long_is_left_alone() -> None:
    """A call that times out goes on, because cancelling it would leave its channel in doubt."""
    tasks, go_on, ended = TaskSet(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        await go_on.wait()
        ended.set()

    with pytest.raises(TimeoutError, match=r"asking: no answer in 0\.01 s"):
        await bounded(call(), seconds=0.01, tasks=tasks, name="asking")
    assert len(tasks) == 1
    go_on.set()
    assert await tasks.wait(seconds=5)
    assert ended.is_set()


async def test_a_cancellation_out_of_the_library_is_a_lost_connection() -> None:
    """A `CancelledError` that aiormq raises by itself becomes a `ConnectionError`."""

    async def call() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionError, match="ended meanwhile"):
        await bounded(call(), seconds=5, tasks=TaskSet(), name="asking")


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_retired_channel_is_closed_when_nobody_needs_it() -> None:
    """A retired channel stays open for its users: an acknowledgement can only be sent on the channel that delivered."""
    channel = FakeChannel()
    open_channel = OpenChannel(
        cast("Any", channel), cast("OpenConnection", FakeConnections()), linger_seconds=None
    )
    with open_channel:
        open_channel.retire()
        open_channel.retire()
        await asyncio.sleep(0)
        assert open_channel.is_open
    await open_channel.close()
    assert channel.goodbyes == 1
    assert "is_open=False" in repr(open_channel)


async def test_a_channel_that_is_being_closed_sends_nothing_more() -> None:
    """A channel that is being closed sends nothing more: frames after a `channel.close` would be a protocol error."""
    channel, ended = FakeChannel(), list[str]()

    class Sink:
        def closed(self, reason: str) -> None:
            ended.append(reason)

    class Ports(FakeConnections):
        def port(self, channel: object, receiver: Any) -> Port:
            return Port(cast("Any", SimpleNamespace(release=lambda _: None)), 1, receiver)

    open_channel = OpenChannel(cast("Any", channel), cast("OpenConnection", Ports()), linger_seconds=None)
    open_channel.open_port(cast("Any", Sink()))
    open_channel.close()
    assert (ended, open_channel.is_open, channel.goodbyes) == (["closed by us"], False, 0)
    await open_channel.close()
    assert channel.goodbyes == 1


async def test_a_retired_channel_does_not_wait_for_ever() -> None:
    """A retired channel that is still in use is closed after its `linger_seconds`."""
    channel = FakeChannel()
    open_channel = OpenChannel(
        cast("Any", channel), cast("OpenConnection", FakeConnections()), linger_seconds=0.01
    )
    with open_channel:
        open_channel.retire()
        async with asyncio.timeout(60):
            await channel.ended.wait()


# ── supervision ──────────────────────────────────────────────────────────────────────────────────


async def test_a_channel_that_closes_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a channel is closed there is no current one, and `opened` waits for the next."""
    monkeypatch.setattr(supervision_module, "STABLE_SECONDS", 0.0)
    connections = FakeConnections()
    async with started(supervised(connections)) as channel:
        first = await channel.opened()
        connections.channels_opened[0].ended.set()
        assert channel.current is None
        assert await channel.opened() is not first
        assert "is_open=True" in repr(channel)


async def test_a_channel_is_retired_once() -> None:
    """Retiring a channel a second time opens no further one."""
    connections = FakeConnections()
    async with started(supervised(connections)) as channel:
        first = await channel.opened()
        channel.retire(first, reason="doubt")
        channel.retire(first, reason="doubt")
        await until(lambda: channel.current not in {first, None})
        assert len(connections.channels_opened) == 2


async def test_what_was_never_started_can_be_stopped() -> None:
    """Stopping a channel that was never started returns None."""
    assert await supervised(FakeConnections()).stop() is None


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (ChannelPreconditionFailed("inequivalent arg"), TopologyError),
        (ChannelLockedResource("exclusive"), TopologyError),
        (ChannelAccessRefused("no"), AccessDeniedError),
    ],
)
async def test_a_refusal_is_named_at_the_start(refusal: AMQPError, error: type[Exception]) -> None:
    """What the broker refuses at the first preparation ends the start with a typed error and the channel's name."""

    async def prepare(open_channel: OpenChannel) -> None:
        raise refusal

    with pytest.raises(error, match="fake"):
        await supervised(FakeConnections(), prepare=prepare).start()


async def test_a_passing_trouble_is_tried_again() -> None:
    """Temporary errors are tried again, and after the start no error at all ends the supervision."""
    troubles: list[Exception] = [ChannelNotFoundEntity("no exchange"), AMQPError("strange")]

    async def prepare(open_channel: OpenChannel) -> None:
        if troubles:
            raise troubles.pop()

    connections = FakeConnections()
    async with started(supervised(connections, prepare=prepare)) as channel:
        assert len(connections.channels_opened) == 3
        troubles.append(LookupError("a bug"))
        connections.channels_opened[-1].ended.set()
        await channel.opened()
        assert len(connections.channels_opened) == 5


async def test_a_start_ends_with_the_context() -> None:
    """A start that only fails in ways that may pass ends at the context's deadline, with the last reason."""

    async def prepare(open_channel: OpenChannel) -> None:
        raise ChannelNotFoundEntity("no exchange")

    with bind(RequestContext().within(0.05)), pytest.raises(NotConnectedError, match="no exchange"):
        await supervised(FakeConnections(), prepare=prepare).start()


async def test_a_probe_that_fails_replaces_the_channel() -> None:
    """A probe that succeeds keeps the channel, and one that raises retires it."""
    answers: list[Exception | None] = [None, OSError("gone")]

    async def probe(open_channel: OpenChannel) -> None:
        if answers and (error := answers.pop(0)):
            raise error

    connections = FakeConnections()
    async with started(supervised(connections, probe=probe, probe_seconds=0.001)):
        await until(lambda: len(connections.channels_opened) == 2)


# ── connections ──────────────────────────────────────────────────────────────────────────────────


def test_the_heartbeat_in_the_url_wins() -> None:
    """The heartbeat is 10 s unless the URL has one."""
    url = "amqp://127.0.0.1/"
    assert BrokerConnection(url, name="tests")._urls[0].query["heartbeat"] == "10"
    assert BrokerConnection(f"{url}?heartbeat=3", name="tests")._urls[0].query["heartbeat"] == "3"


def test_the_port_is_the_schemes_where_none_is_given() -> None:
    """An `amqps` URL without a port has 5671, and the address shows it."""
    assert BrokerConnection("amqps://broker/vhost", name="tests").address == "broker:5671/vhost"


async def test_a_connection_that_was_never_entered_can_be_left() -> None:
    """Leaving a connection that was never entered does nothing."""
    await BrokerConnection("amqp://127.0.0.1/", name="tests").__aexit__(None, None, None)


def test_each_of_several_brokers_is_an_address() -> None:
    """Each host of a URL becomes an address, with the URL's user, virtual host and options."""
    broker = BrokerConnection("amqp://u:p%40@a:1,b,[::1]:5/v%2Fw?heartbeat=3", name="tests")
    assert broker.address == "a:1,b:5672,::1:5/v/w"
    assert [str(url) for url in broker._urls] == [
        f"amqp://u:p%40@{host}/v%2Fw?heartbeat=3" for host in ("a:1", "b", "[::1]:5")
    ]


async def test_nobody_listens() -> None:
    """A start against a closed port ends at the deadline with the operating system's reason."""
    with bind(RequestContext().within(0.2)), pytest.raises(NotConnectedError, match="Connect call failed"):
        await BrokerConnection("amqp://127.0.0.1:1/", name="tests").__aenter__()


class FakeConnection:
    """An aiormq connection that is open until it ends."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    @property
    def closing(self) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.ended.wait())

    async def channel(self, **_: object) -> None:
        raise AMQPError("no channel")

    async def close(self, reason: object) -> None:
        raise ConnectionError("gone already")


class FakeProtocol:
    def __init__(self) -> None:
        self.aborted = False
        self.unblocked = asyncio.Event()
        self.unblocked.set()

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def fake() -> tuple[FakeConnection, FakeProtocol, OpenConnection]:
    connection, protocol = FakeConnection(), FakeProtocol()
    return connection, protocol, OpenConnection(cast("Any", connection), cast("Any", protocol), TaskSet())


async def test_a_silent_broker_loses_its_connection(
    fake: tuple[FakeConnection, FakeProtocol, OpenConnection],
) -> None:
    """A broker that doesn't reply to a method in time loses its connection."""
    _, protocol, open_connection = fake
    with pytest.raises(NotConnectedError, match="no answer"):
        await open_connection.ask(asyncio.sleep(60), name="asking", seconds=0.01)
    assert protocol.aborted
    assert "OpenConnection(" in repr(open_connection)


async def test_a_call_that_fails_costs_nobody_the_connection(
    fake: tuple[FakeConnection, FakeProtocol, OpenConnection],
) -> None:
    """A call on a channel that has closed fails alone: other consumers share the connection."""
    _, protocol, open_connection = fake

    async def call() -> None:
        raise ChannelInvalidStateError("closed")

    with pytest.raises(NotConnectedError, match="asking: closed"):
        await open_connection.ask(call(), name="asking")
    with pytest.raises(NotConnectedError, match="no channel"):
        await open_connection.channel(confirms=True)
    assert not protocol.aborted


async def test_a_blocked_connection_is_waited_for_until_it_is_lost(
    fake: tuple[FakeConnection, FakeProtocol, OpenConnection],
) -> None:
    """Waiting for a blocked connection also ends when the connection does."""
    connection, protocol, open_connection = fake
    before = open_connection.is_blocked
    protocol.unblocked.clear()
    assert (before, open_connection.is_blocked) == (False, True)
    waiting = asyncio.create_task(open_connection.writable())
    await asyncio.sleep(0)
    assert not waiting.done()
    connection.ended.set()
    await waiting


async def test_a_goodbye_that_fails_is_no_error(
    fake: tuple[FakeConnection, FakeProtocol, OpenConnection],
) -> None:
    """Closing a connection whose `connection.close` fails drops it without an error."""
    _, protocol, open_connection = fake
    await open_connection.close()
    assert protocol.aborted


async def test_a_connection_that_drops_at_once_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a connection that lasted makes the pauses short again, and an unforeseen error ends nothing."""
    begun: list[str] = []

    class Counted:
        """A policy that notes when its pauses begin."""

        def pauses(self) -> Iterator[float]:
            begun.append("pauses")
            return repeat(0.0)

    connections = [FakeConnection(), FakeConnection()]
    first, second = (
        OpenConnection(cast("Any", each), cast("Any", FakeProtocol()), TaskSet()) for each in connections
    )
    open_connections: list[OpenConnection | Exception] = [first, LookupError("a bug"), second]

    async def open_one(*_: object, **__: object) -> OpenConnection:
        open_connection = open_connections.pop(0)
        if isinstance(open_connection, Exception):
            raise open_connection
        return open_connection

    monkeypatch.setattr(supervision_module, "REOPEN", Counted())
    monkeypatch.setattr(OpenConnection, "open", open_one)
    broker = BrokerConnection("amqp://127.0.0.1/", name="tests")
    waiting = asyncio.create_task(broker.opened())
    await asyncio.sleep(0)
    async with broker:
        assert await waiting is first
        connections[0].ended.set()
        await until(lambda: not open_connections)
        assert len(begun) == 1
        monkeypatch.setattr(supervision_module, "STABLE_SECONDS", 0.0)
        await broker.opened()
        open_connections.append(
            OpenConnection(cast("Any", FakeConnection()), cast("Any", FakeProtocol()), TaskSet())
        )
        connections[1].ended.set()
        await until(lambda: not open_connections)
        assert len(begun) == 2


class Hosts:
    """A connection to several hosts, each of which connects or fails as told for its port."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **errors: Exception | None) -> None:
        self.tried: list[int] = []

        async def open_one(url: Any, **_: object) -> OpenConnection:
            self.tried.append(url.port)
            error = errors[f"port{url.port}"]
            if error is not None:
                raise error
            return OpenConnection(cast("Any", FakeConnection()), cast("Any", FakeProtocol()), TaskSet())

        monkeypatch.setattr(OpenConnection, "open", open_one)
        ports = ",".join(f"127.0.0.1:{name.removeprefix('port')}" for name in errors)
        self.connection = BrokerConnection(f"amqps://{ports}/", name="tests")


def _expired() -> Exception:
    error = NotConnectedError("certificate has expired")
    error.__cause__ = ssl.SSLCertVerificationError("certificate has expired")
    return error


HOPELESS: Mapping[str, Callable[[], Exception]] = {
    "an expired certificate": _expired,
    "a refused password": lambda: AccessDeniedError("refused"),
}


@pytest.mark.parametrize("why", HOPELESS)
async def test_all_hosts_are_tried_before_one_of_them_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A refusal of one host doesn't end the start: its certificate or its users may differ from the others'."""
    hosts = Hosts(monkeypatch, port1=HOPELESS[why](), port2=HOPELESS[why](), port3=None)
    async with hosts.connection as connection:
        assert connection.is_ready
    assert hosts.tried == [1, 2, 3]


@pytest.mark.parametrize("why", HOPELESS)
async def test_hosts_that_all_refuse_end_the_start(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Where every host refuses in a way that can't pass, the start ends after one round."""
    hosts = Hosts(monkeypatch, port1=HOPELESS[why](), port2=HOPELESS[why]())
    with pytest.raises((NotConnectedError, AccessDeniedError), match=r"certificate has expired|refused"):
        await hosts.connection.__aenter__()
    assert hosts.tried == [1, 2]


async def test_a_host_that_may_come_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One host that may come back is enough to go on until the deadline."""
    hosts = Hosts(monkeypatch, port1=_expired(), port2=NotConnectedError("away"))
    with (
        bind(RequestContext().within(0.05)),
        pytest.raises(NotConnectedError, match="no connection to the broker"),
    ):
        await hosts.connection.__aenter__()
    assert len(hosts.tried) > 2


# ── elsewhere ────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_opened_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork, another event loop or a thread without one, the check raises a `MisuseError` that says which."""
    affinity = LoopAffinity()
    affinity.check("the publisher")

    async def elsewhere() -> None:
        with pytest.raises(MisuseError, match="the publisher was opened in another event loop"):
            affinity.check("the publisher")

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    with pytest.raises(MisuseError, match="in a thread without one"):
        await asyncio.to_thread(affinity.check, "the publisher")
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(MisuseError, match="before this process was forked"):
        affinity.check("the publisher")
    assert "LoopAffinity(process=" in repr(affinity)


async def test_a_connection_of_another_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another event loop that asks for the open connection gets a `MisuseError` instead of waiting for ever."""
    hosts = Hosts(monkeypatch, port1=None)

    async def elsewhere() -> None:
        with pytest.raises(
            MisuseError, match="the broker connection 'tests' was opened in another event loop"
        ):
            await hosts.connection.opened()

    async with hosts.connection:
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
