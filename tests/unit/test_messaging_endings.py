"""However a message ends, its place is free again, it is counted, and nothing of its key overtakes it."""

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Never
from uuid import uuid4

import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from hybridkit.errors import MalformedPayloadError
from hybridkit.events import EventEnvelope
from hybridkit.events.cloudevents import decode_body
from hybridkit.idempotency import Outcome
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._delivery import Delivery, Identity
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry
from tests.helpers import until
from tests.helpers.offline_consumer import QUEUE, Ended, Memory, OfflineConsumer, Run


class Odd(BaseException):
    """What a library written in Rust raises when it panics."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Retry, "pauses", lambda _: itertools.repeat(0.0))
    with capture_logs():
        yield


# ── what a handler can do ────────────────────────────────────────────────────────────────────────


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def be_cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.sleep(60)


async def fail_in_a_group(error: BaseException) -> None:
    async def fail() -> Never:
        await asyncio.sleep(0)
        raise error

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


async def fail(error: BaseException, *, late: bool = False) -> None:
    if late:
        await asyncio.sleep(0)
    raise error


ENDINGS: Mapping[str, Callable[[], Awaitable[object]]] = {
    "an error": lambda: fail(ValueError("no")),
    "no exception": lambda: fail(Odd()),
    "no exception, later": lambda: fail(Odd("panicked"), late=True),
    "a group of them": lambda: fail(BaseExceptionGroup("several", [Odd(), ValueError()])),
    "a task group": lambda: fail_in_a_group(Odd()),
    "GeneratorExit": lambda: fail(GeneratorExit()),
    "GeneratorExit, later": lambda: fail(GeneratorExit(), late=True),
    "StopIteration": lambda: fail(StopIteration()),
    "StopAsyncIteration": lambda: fail(StopAsyncIteration()),
    "CancelledError": lambda: fail(asyncio.CancelledError()),
    "CancelledError, later": lambda: fail(asyncio.CancelledError(), late=True),
    "cancels itself": cancel_itself,
    "is cancelled": be_cancelled,
}


@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_whatever_ends_a_handler_is_a_failed_attempt(
    ending: str, *, ordered: bool, guarded: bool
) -> None:
    """More of them than places: each is a dead letter, the next of its key comes after it, and all others run."""

    async def run(number: int) -> None:
        if number <= 6:
            await ENDINGS[ending]()

    guard = Memory() if guarded else None
    offline = OfflineConsumer(run, ordered=ordered, guard=guard)
    for number in range(1, 13):
        offline.put(number, key=str(number % 6))
    await offline.settle(*range(1, 13))
    assert set(offline.settled.values()) == {"ack"}
    assert set(offline.runs.values()) == {1}
    assert sorted(offline.done) == list(range(7, 13))
    assert {number: copy.headers["hk_reason"] for number, copy in offline.copies.items()} == dict.fromkeys(
        range(1, 7), "exhausted"
    )
    if guard is not None:
        assert sorted(guard.outcomes) == [Outcome.COMPLETED] * 6 + [Outcome.FAILED] * 6


async def test_a_cancelled_handler_is_tried_again_as_often_as_its_policy_says() -> None:
    """A cancellation that no caller asked for counts as a failed attempt."""
    offline = OfflineConsumer(
        lambda number: be_cancelled() if offline.runs[number] < 3 else fail(ValueError()), attempts=3
    )
    offline.put(1)
    await offline.settle(1)
    assert offline.runs == {1: 3}
    assert offline.copies[1].headers["hk_attempt"] == 3
    assert offline.copies[1].headers["hk_error_type"] == "builtins.ValueError"


async def test_a_handler_that_is_done_is_done() -> None:
    """Also if somebody has cancelled its task too late."""

    async def run(_: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    offline = OfflineConsumer(run)
    offline.put(1)
    await offline.settle(1)
    assert (offline.done, offline.copies) == ([1], {})


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_the_end_of_a_drain_is_no_failure(*, ordered: bool) -> None:
    """What didn't end in time goes back as it is: by itself where nothing is in order, else with its channel."""

    async def run(number: int) -> None:
        del number
        await asyncio.sleep(60)

    offline = OfflineConsumer(run, ordered=ordered, guard=(guard := Memory()))
    offline.consumer._workers.start()
    offline.put(1, key="a")
    offline.put(2, key="a")
    await until(lambda: len(offline.runs) == (1 if ordered else 2))
    offline.consumer._draining = True
    await offline.consumer._workers.stop()
    await offline.consumer._workers.cancel(seconds=10)
    assert offline.settled == ({} if ordered else {1: "requeue", 2: "requeue"})
    assert offline.copies == {}
    assert offline.is_open
    assert set(guard.outcomes) == {Outcome.RELEASED}


async def test_nothing_overtakes_a_message_whose_whole_task_was_cancelled() -> None:
    """By somebody who cancels every task that he finds: everything of the channel goes back, in its order."""

    async def run(number: int) -> None:
        if number == 1:
            await asyncio.sleep(60)

    offline = OfflineConsumer(run, ordered=True)
    offline.consumer._workers.start()
    offline.put(1, key="a")
    offline.put(2, key="a")
    await until(lambda: offline.runs)
    for task in offline.consumer._workers._tasks:
        task.cancel()
    await until(lambda: not offline.consumer.in_flight)
    assert not offline.is_open
    assert (offline.runs, offline.settled) == ({1: 1}, {})


@pytest.mark.parametrize("bad", [False, True], ids=["readable", "unreadable"])
async def test_a_copy_whose_task_is_cancelled_goes_back(
    *, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is a copy of: nothing stays in hand that nobody works on."""
    moving = asyncio.Event()
    offline = OfflineConsumer(
        lambda _: fail(ValueError()), guard=None if bad else Memory(RuntimeError("bug"))
    )

    async def forward(_: OutgoingMessage) -> None:
        moving.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(offline, "forward", forward)
    offline.consumer._workers.start()
    offline.put_body(1, b"{") if bad else offline.put(1)
    await moving.wait()
    await offline.consumer._workers.cancel(seconds=10)
    assert offline.settled == {1: "requeue"}


async def test_a_process_that_is_told_to_end_does() -> None:
    """Whatever a handler raises is caught, but for what ends the process."""
    for error in (SystemExit(3), KeyboardInterrupt()):
        offline = OfflineConsumer(functools.partial(_raise, error))
        body = EventEnvelope.wrap(Ended(key="a", number=1), service="tests").encode()
        delivery = Delivery(QUEUE, offline, IncomingMessage(DeliverMethod(1, False, "", ""), b"\0\0", body))
        with pytest.raises(type(error)):
            await offline.consumer._handle(delivery)
        assert offline.settled == {}


async def _raise(error: BaseException, _: int) -> None:
    raise error


@pytest.mark.parametrize(("takeovers", "together"), [(0, 2), (1, 2), (2, 1), (4, 1)])
async def test_what_may_have_killed_processes_runs_alone(takeovers: int, together: int) -> None:
    """So that the next death takes none of its neighbours along."""
    running = most = 0

    async def run(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _turn in range(20):
            await asyncio.sleep(0)
        running -= 1

    offline = OfflineConsumer(run, guard=(guard := Memory(takeovers=takeovers)))
    for number in range(1, 7):
        offline.put(number)
    await offline.settle(*range(1, 7))
    assert sorted(offline.done) == list(range(1, 7))
    assert most == together
    assert guard.outcomes.count(Outcome.COMPLETED) == 6
    assert guard.outcomes.count(Outcome.RELEASED) == (6 if together == 1 else 0)


# ── what nobody has foreseen ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [RuntimeError("bug"), Odd(), asyncio.CancelledError()], ids=repr)
async def test_a_mistake_of_our_own_is_counted_in_the_copy(error: BaseException) -> None:
    """Its cause may pass, so the message comes again later, with one attempt more."""
    offline = OfflineConsumer(_nothing, guard=Memory(error))
    offline.put(1, headers={"hk_attempt": 2})
    await offline.settle(1)
    copy = offline.copies[1]
    assert copy.exchange.startswith("hk.delay.L")
    assert copy.headers["hk_attempt"] == 3


@pytest.mark.parametrize("error", [RuntimeError("bug"), MalformedPayloadError("never")], ids=repr)
async def test_a_mistake_of_our_own_has_an_end(error: Exception) -> None:
    """At the fifth failure the message is a dead letter, whatever class the error has."""
    offline = OfflineConsumer(_nothing, guard=Memory(error))
    offline.put(1, headers={"hk_attempt": 4})
    await offline.settle(1)
    assert offline.copies[1].headers["hk_reason"] == "unexpected"
    assert offline.copies[1].headers["hk_attempt"] == 5
    assert offline.done == []


async def test_in_order_a_mistake_of_our_own_holds_its_key_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is counted here, as there is no copy; other keys go on, and so does its own after it."""
    monkeypatch.setattr("hybridkit.messaging._consuming._processor.SHORTEST_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(
        "hybridkit.messaging._consuming._processor.FAULTS", Retry(attempts=5, first_seconds=0, cap_seconds=0)
    )
    offline = OfflineConsumer(_nothing, ordered=True)
    process, failed = offline.processor.process, []

    async def trip(delivery: Delivery) -> None:
        if offline._numbers[delivery.body] == 1:
            failed.append(len(offline.done))
            raise RuntimeError("bug")
        await process(delivery)

    monkeypatch.setattr(offline.processor, "process", trip)
    for number, key in ((1, "a"), (2, "a"), (3, "b")):
        offline.put(number, key=key)
    await offline.settle(1, 2, 3)
    assert len(failed) == 5
    assert offline.copies[1].headers["hk_reason"] == "unexpected"
    assert offline.done == [3, 2]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("place", ["reading", "its key"])
@pytest.mark.parametrize("error", [ValueError(), Odd(), GeneratorExit(), asyncio.CancelledError()], ids=repr)
async def test_whatever_a_declaration_raises_ends_with_its_message(
    error: BaseException, place: str, *, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its validators and upcasters are the application's code, as is the form of a key; others go on."""

    def read(body: bytes, headers: Mapping[str, object]) -> Any:
        if offline._numbers[body] == 1:
            raise error
        return decode_body(body, headers)

    def key_of(event: Ended) -> str:
        if event.number == 1:
            raise error
        return event.key

    if place == "reading":
        monkeypatch.setattr("hybridkit.messaging._consuming._delivery.decode_body", read)
    else:
        monkeypatch.setattr(Ended, "ordering_key", property(key_of))
    offline = OfflineConsumer(_nothing, ordered=ordered)
    offline.put(1)
    offline.put(2)
    await offline.settle(1, 2)
    assert sorted(offline.done) == ([2] if place == "reading" else [1, 2])
    reasons = {number: copy.headers["hk_reason"] for number, copy in offline.copies.items()}
    assert reasons == ({1: "malformed"} if place == "reading" else {})


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize(
    "run", [lambda _: fail(ValueError()), lambda _: asyncio.sleep(0)], ids=["bad", "good"]
)
async def test_logs_that_can_not_be_written_hold_no_message(run: Run, *, ordered: bool) -> None:
    """An application's logging that raises neither keeps nor loses a message."""

    def broken(*_: object) -> Never:
        raise RuntimeError("a processor of the application's own")

    configured = structlog.get_config()
    try:
        structlog.configure(processors=[broken])
        offline = OfflineConsumer(run, ordered=ordered, guard=Memory(RuntimeError("bug")))
        for number in range(1, 7):
            offline.put(number)
        await offline.settle(*range(1, 7))
    finally:
        structlog.configure(**configured)
    assert set(offline.settled.values()) == {"ack"}


@pytest.mark.parametrize("error", [ValueError(), Odd(), GeneratorExit(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("attempt", [1, 5])
async def test_a_retry_policy_that_fails_gives_up_in_the_end(
    error: BaseException, attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the application's own class, or have an error class in it that can't be asked."""

    class Broken(type):
        def __instancecheck__(cls, _: object) -> bool:
            raise error

    class NeverError(Exception, metaclass=Broken): ...

    monkeypatch.setattr(Retry, "immediate", lambda attempts: Retry(attempts=attempts).never(NeverError))
    monkeypatch.setattr("random.random", lambda: 1.0)
    offline = OfflineConsumer(lambda _: fail(OSError()), guard=(guard := Memory()))
    offline.put(1, headers={"hk_attempt": attempt - 1})
    await offline.settle(1)
    headers = offline.copies[1].headers
    assert (headers["hk_attempt"], headers.get("hk_reason")) == (
        attempt,
        "exhausted" if attempt == 5 else None,
    )
    assert guard.outcomes == [Outcome.FAILED if attempt == 5 else Outcome.RELEASED]


async def test_what_can_not_be_concluded_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker dead-letters it by itself then."""
    offline = OfflineConsumer(_nothing, guard=Memory(RuntimeError("bug")))
    monkeypatch.setattr(offline, "forward", _break)
    offline.put(1)
    await offline.settle(1)
    assert offline.settled == {1: "reject"}


async def test_a_mistake_after_the_end_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acknowledged message makes no copy, although an error follows."""
    offline = OfflineConsumer(_nothing)
    ack = offline.ack

    def fails(tag: int, finished: Identity | None) -> None:
        ack(tag, finished)
        raise RuntimeError("a logger of the application's own")

    monkeypatch.setattr(offline, "ack", fails)
    offline.put(1)
    await offline.settle(1)
    assert offline.copies == {}


async def _nothing(_: int) -> None: ...


async def _break(_: OutgoingMessage) -> None:
    raise RuntimeError("broken")


# ── what can't be published or read ──────────────────────────────────────────────────────────────


class SilentError(Exception):
    def __str__(self) -> str:
        raise self.args[0]


@pytest.mark.parametrize(
    "error",
    [ValueError("\ud83d"), *(SilentError(it) for it in (RuntimeError(), Odd(), GeneratorExit()))],
    ids=["half an emoji", "no words", "panics", "closes"],
)
@pytest.mark.parametrize("attempts", [1, 2], ids=["at once", "after a retry"])
async def test_an_error_whose_words_nobody_can_write_is_a_dead_letter(
    error: Exception, attempts: int
) -> None:
    """Its handler runs as often as its policy says, and no more."""
    offline = OfflineConsumer(lambda _: fail(error), guard=(guard := Memory()), attempts=attempts)
    offline.put(1)
    await offline.settle(1)
    assert offline.settled == {1: "ack"}
    assert offline.runs == {1: attempts}
    assert offline.copies[1].headers["hk_reason"] == "exhausted"
    assert guard.outcomes[-1] is Outcome.FAILED


async def test_a_copy_that_can_never_be_published_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker moves the message itself. The guard keeps no end of it, so that it runs when it is sent back."""

    async def refuse(_: OutgoingMessage) -> None:
        raise MalformedPayloadError("AMQP can't carry it")

    offline = OfflineConsumer(lambda _: fail(ValueError()), guard=(guard := Memory()))
    monkeypatch.setattr(offline, "forward", refuse)
    offline.put(1)
    await offline.settle(1)
    assert offline.settled == {1: "reject"}
    assert guard.outcomes == [Outcome.RELEASED]


@pytest.mark.parametrize(
    "value",
    ["1e400", "-1e400", "1" * 400, "-" + "9" * 40, "[" * 180 + "]" * 180, '{"a":' * 150 + "1" + "}" * 150],
    ids=["1e400", "-1e400", "400 digits", "40 digits", "180 levels", "150 objects"],
)
@pytest.mark.parametrize("place", ["data", "envelope"])
async def test_whatever_can_be_read_ends(value: str, place: str) -> None:
    """It runs, or it is a dead letter; it doesn't come again and again."""
    known = {
        "event_type": "endings.ended",
        "event_id": str(uuid4()),
        "timestamp": "2026-01-01T00:00:00Z",
        "service": "tests",
        "data": {"key": "a", "number": 1},
    }
    (known["data"] if place == "data" else known)["free"] = "VALUE"  # type: ignore[index]
    offline = OfflineConsumer(_nothing, guard=Memory())
    offline.put_body(1, orjson.dumps(known).replace(b'"VALUE"', value.encode()))
    await offline.settle(1)
    assert offline.settled == {1: "ack"}
    assert offline.done == [1] or offline.copies[1].exchange == "hk.dlx"
