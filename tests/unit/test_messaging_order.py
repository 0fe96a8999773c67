"""Lines: one message of each key at a time, whatever closes, waits or can't be read."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from pamqp.commands import Basic

from hybridkit.errors import DeclarationError, NotConnectedError
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._consumer import Order, RobustConsumer
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog, key_of
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._subscription import Subscription


class Moved(Event, type="lines.moved", version=2, key="account"):
    account: int
    number: int = 0


class Plain(Event, type="lines.plain"):
    number: int = 0


class Task(Command, queue="lines_tasks"):
    number: int = 0


class Channel:
    """As much of a channel as a delivery asks."""

    is_open = True


def delivery(message: Event | Command | bytes, *, tag: int = 1, channel: Channel | None = None) -> Delivery:
    body = message if isinstance(message, bytes) else EventEnvelope.wrap(message, service="tests").encode()
    properties = cast("Any", Basic.Properties()).marshal()
    deliver = DeliverMethod(tag, False, "hk.events", "lines.moved")
    return Delivery(
        "tests.lines", cast("Any", channel or Channel()), IncomingMessage(deliver, properties, body)
    )


def wire(**changes: object) -> bytes:
    known: dict[str, Any] = orjson.loads(EventEnvelope.wrap(Moved(account=7), service="tests").encode())
    return orjson.dumps({**known, **changes})


async def ready(backlog: KeyedBacklog) -> list[Delivery]:
    """All that may run now."""
    found: list[Delivery] = []
    while True:
        getting = asyncio.create_task(backlog.get())
        for _ in range(10):  # what comes in is read one by one
            await asyncio.sleep(0)
        if not getting.done():
            getting.cancel()
            return found
        found.append(getting.result())


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0.001)


async def test_one_of_each_key_is_given_out() -> None:
    """A message behind another of its key is ready when that one is done, and its key is forgotten after the last."""
    backlog = KeyedBacklog()
    first, second, other = (delivery(Moved(account=account)) for account in (1, 1, 2))
    for each in (first, second, other):
        backlog.put(each)
    assert len(backlog) == 3
    assert await ready(backlog) == [first, other]
    backlog.done(other)
    backlog.done(first)
    assert await ready(backlog) == [second]
    backlog.done(second)
    assert repr(backlog) == "KeyedBacklog(0 deliveries, 0 keys)"


async def test_whoever_waits_for_one_gets_the_next() -> None:
    """A `get` on an empty backlog returns the next delivery that comes."""
    backlog = KeyedBacklog()
    getting = asyncio.create_task(backlog.get())
    await asyncio.sleep(0)
    first = delivery(Moved(account=1))
    backlog.put(first)
    assert await getting is first


async def test_what_waits_for_its_next_run_keeps_its_key_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a message waits for its next run, its successors wait behind it."""
    backlog, timers = KeyedBacklog(), list[partial[object]]()
    monkeypatch.setattr(
        asyncio.get_running_loop(), "call_later", lambda _, call, *given: timers.append(partial(call, *given))
    )
    first, second = delivery(Moved(account=1)), delivery(Moved(account=1))
    backlog.put(first)
    backlog.put(second)
    assert await ready(backlog) == [first]
    backlog.retry_later("1", first, 60)
    backlog.done(first)
    assert len(backlog) == 2
    assert await ready(backlog) == []
    timers.pop()()
    assert await ready(backlog) == [first]
    backlog.done(first)
    assert await ready(backlog) == [second]


async def test_what_comes_again_ends_the_rest_of_its_closed_channel() -> None:
    """The broker has delivered it once more, behind its own older self."""
    backlog, closed = KeyedBacklog(), Channel()
    old, behind = delivery(Moved(account=1), channel=closed), delivery(Moved(account=1), channel=closed)
    backlog.put(old)
    backlog.put(behind)
    assert await ready(backlog) == [old]
    backlog.retry_later("1", old, 60)
    backlog.done(old)
    closed.is_open = False
    again = delivery(Moved(account=1))
    backlog.put(again)
    assert await ready(backlog) == [again]
    backlog.put(following := delivery(Moved(account=1)))
    assert await ready(backlog) == []
    backlog.done(again)
    assert await ready(backlog) == [following]


class Odd(Event, type="lines.odd", key="account"):
    account: Any

    @property
    def ordering_key(self) -> str:
        return str({"known": 1}[self.account])


@pytest.mark.parametrize(
    "odd",
    [
        wire(timestamp="9999-12-31T23:59:59.123456-12:00"),
        wire(timestamp="0001-01-01T00:00:00.000001+12:00"),
        wire(version=3, data=[1]),
        wire(event_type="lines.odd", version=1, data={"account": "unknown"}),
        b"\xff",
        b"[" * 100_000,
        b"",
    ],
)
async def test_what_can_not_be_read_disturbs_nobody(odd: bytes) -> None:
    """It is taken from the socket unread, and runs out of order; the messages before and after it keep theirs."""
    backlog = KeyedBacklog()
    for each in (delivery(Moved(account=1)), delivery(odd, tag=2), delivery(Moved(account=1), tag=3)):
        backlog.put(each)
    assert [each._tag for each in await ready(backlog)] == [1, 2]
    assert len(backlog) == 1


def test_a_version_in_a_cloud_event_that_is_not_known_here_has_no_key() -> None:
    """Its body is the data alone, and may be anything."""
    headers = {"cloudEvents_specversion": "1.0", "cloudEvents_type": "lines.moved", "cloudEvents_id": "1"}
    headers |= {"cloudEvents_source": "s", "cloudEvents_dataversion": "9"}
    properties = cast("Any", Basic).Properties(headers=headers).marshal()
    deliver = DeliverMethod(1, False, "hk.events", "lines.moved")
    assert (
        key_of(Delivery("tests.lines", cast("Any", Channel()), IncomingMessage(deliver, properties, b"[1]")))
        is None
    )


async def test_nobody_wakes_after_the_end() -> None:
    """After `stop`, the end of a wait makes no message ready."""
    backlog = KeyedBacklog()
    first, other = delivery(Moved(account=1)), delivery(Moved(account=2))
    backlog.put(first)
    backlog.put(other)
    assert await ready(backlog) == [first, other]
    backlog.retry_later("1", first, 0)
    backlog.done(first)
    backlog.stop()
    await settle()
    assert await ready(backlog) == []


async def test_what_has_no_key_waits_behind_nothing() -> None:
    """Unreadable messages are ready at once, beside each other."""
    backlog = KeyedBacklog()
    unreadable = [delivery(b"no json") for _ in range(3)]
    for each in unreadable:
        backlog.put(each)
    assert await ready(backlog) == unreadable
    for each in unreadable:
        backlog.done(each)
    assert len(backlog) == 0


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (Moved(account=7), "7"),
        (Plain(), None),
        (Task(), None),
        (b"", None),
        (wire(event_type="nobody.knows"), None),
        (wire(version=3), "7"),
        (wire(version=3, data={"account": "8", "currency": "EUR"}), "8"),
        (wire(version=3, data={"currency": "EUR"}), None),
        (wire(version=3, data=[]), None),
        (wire(event_type="lines.plain", version=3), None),
        (wire(event_type="command.task", version=3), None),
    ],
    ids=[
        "keyed",
        "plain",
        "command",
        "empty",
        "unknown",
        "newer",
        "newer text",
        "newer without",
        "newer array",
        "newer plain",
        "newer command",
    ],
)
def test_the_key_is_read_wherever_it_can_be(body: Event | Command | bytes, key: str | None) -> None:
    """A newer version that is unknown here has the key in the same member; a command has none."""
    assert key_of(delivery(body)) == key


@pytest.mark.parametrize("message", [Plain, Task])
def test_a_consumer_in_order_wants_a_key(message: type[Event]) -> None:
    """A handler for an event without a key is refused where it is registered, and one with a key is not."""
    consumer = RobustConsumer("lines_tasks", order=Order.SKIP)
    with pytest.raises(DeclarationError, match=f"{message.__name__} has no key"):
        consumer.on(message)(_nothing)
    consumer.on(Moved)(_nothing)


def test_a_consumer_in_order_holds_more_messages() -> None:
    """Its prefetch is 30 messages per handler, so 65,535 allow 2,184 handlers."""
    with pytest.raises(DeclarationError, match="from 1 to 2184"):
        RobustConsumer("tests.lines", order=Order.SKIP, concurrency=2185)


async def _nothing() -> None: ...


def subscription(*, keyed: KeyedBacklog | None) -> Subscription:
    """One that is never started; nothing of it reaches a broker."""
    nowhere = cast("Any", None)
    return Subscription(
        "tests.lines",
        Handlers("tests.lines"),
        nowhere,
        nowhere,
        PauseGate("tests.lines"),
        concurrency=1,
        keyed=keyed,
    )


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_a_cancelled_message_is_put_back_alone_only_where_nothing_is_in_order(*, ordered: bool) -> None:
    """In order it goes back with all others, so that none of them overtakes it."""
    requeued: list[int] = []
    given_back: list[bool] = []
    origin = SimpleNamespace(is_open=True, requeue=requeued.append, give_back=lambda: given_back.append(True))
    run = subscription(keyed=KeyedBacklog() if ordered else None)
    run._processor = cast("Any", SimpleNamespace(process=_cancel))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run._handle(delivery(Moved(account=1), tag=3, channel=cast("Any", origin))))
    assert (requeued, given_back) == (([], [True]) if ordered else ([3], []))


async def test_a_late_answer_of_an_older_channel_changes_nothing() -> None:
    """Meanwhile another one consumes."""
    run = subscription(keyed=None)
    open_channel = cast("Any", SimpleNamespace(raw=SimpleNamespace(basic_qos=_done, basic_consume=_done)))
    await run._consume(open_channel, 1)
    assert run._consuming == 0
    run._open_channel = open_channel
    await run._consume(open_channel, 1)
    assert run._consuming == 1


async def test_a_channel_that_can_not_be_adjusted_is_replaced() -> None:
    """To a pause, or to the end of one."""

    async def ask(work: Coroutine[Any, Any, None], *, name: str) -> None:
        work.close()
        raise NotConnectedError(f"{name}: no answer")

    retired: list[str] = []
    run = subscription(keyed=None)
    open_channel = cast("Any", SimpleNamespace(connection=SimpleNamespace(ask=ask)))
    run._channel = cast(
        "Any", SimpleNamespace(current=open_channel, retire=lambda _, *, reason: retired.append(reason))
    )
    await run._adjust()
    assert retired == ["its consumer was not adjusted: adjusting tests.lines: no answer"]


async def _cancel(_: Delivery) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def _done(*_: object, **__: object) -> None: ...
