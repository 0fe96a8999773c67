"""A consumer is ready only as long as messages move: each state in which it can stand still, one by one."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from hybridkit.adapters._running import probe_consumer, start_consumers
from hybridkit.errors import (
    DeclarationError,
    HybridkitError,
    NackedError,
    NotConnectedError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.events import Event, EventEnvelope
from hybridkit.messaging import RobustConsumer
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming import _handler_runner as runner_module
from hybridkit.messaging._consuming import _stall_detector as stall_module
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._isolation import HandlerLock
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._consuming._stall_detector import StallDetector
from hybridkit.messaging._consuming._subscription import Subscription
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry
from tests.helpers import until
from tests.helpers.offline_consumer import Memory

QUEUE = "tests.readiness"


class Looked(Event, type="readiness.looked", key="number"):
    number: int = 0


class Bench:
    """A consumer of two handlers whose channel is up; the broker takes copies as long as `refusal` is None."""

    def __init__(
        self,
        handle: Callable[[], Awaitable[object]],
        *,
        parks: bool = False,
        guard: Any = None,
        timeout_seconds: float = 0.01,
    ) -> None:
        self.refusal: HybridkitError | None = None
        self.settled = 0
        self.is_open = True
        self.gate = PauseGate(QUEUE)
        handlers = Handlers(QUEUE)

        async def run(_: Looked) -> None:
            await handle()

        handlers.add(Looked, run, Retry.immediate(attempts=1))
        parked = ParkedKeys(QUEUE) if parks else None
        keyed = KeyedBacklog() if parks else None
        options: Any = {"gate": self.gate, "keyed": keyed, "parked": parked}
        self.processor = Processor(
            QUEUE,
            handlers,
            publisher=cast("Any", self),
            providers={},
            guard=guard,
            timeout_seconds=timeout_seconds,
            **options,
        )
        nowhere = cast("Any", None)
        self.run = Subscription(QUEUE, handlers, nowhere, self.processor, concurrency=2, **options)
        self.open_channel = cast("Any", SimpleNamespace(retired=asyncio.Event()))
        self.channel = SimpleNamespace(current=self.open_channel, is_kept=True)
        self.run._channel = cast("Any", self.channel)
        self.run._open_channel = self.open_channel
        self.run._workers.start()
        self.consumer = RobustConsumer(QUEUE)
        self.consumer._run = self.run

    def put(self, count: int = 1) -> None:
        for number in range(count):
            body = EventEnvelope.wrap(Looked(number=number), service="tests").encode()
            self.run._take(
                Delivery(QUEUE, self, IncomingMessage(DeliverMethod(1, False, "", ""), b"\0\0", body))
            )

    def ack(self, *_: object) -> None:
        self.settled += 1

    def give_back(self) -> None:
        self.settled += 1

    async def forward(self, _: OutgoingMessage) -> None:
        if self.refusal is not None:
            raise self.refusal

    def renew_topology(self, *, reason: str) -> None: ...

    requeue = reject = was_finished = cast("Any", None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out grace times and pauses."""
    monkeypatch.setattr(stall_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(runner_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr("hybridkit.messaging._consuming._subscription.UNEXPECTED_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(Retry, "pauses", lambda _: itertools.repeat(0.001))
    with capture_logs():
        yield


async def done() -> None: ...


async def fail() -> None:
    raise ValueError("no")


async def test_a_consumer_that_works_is_ready() -> None:
    """A consumer is ready before, during and after its work, and so is its health probe."""
    bench = Bench(done)
    assert bench.consumer.is_ready
    bench.put(5)
    await until(lambda: bench.settled == 5)
    assert bench.consumer.is_ready
    await probe_consumer(bench.consumer)


@pytest.mark.parametrize(
    "stop",
    [
        lambda bench: setattr(bench.channel, "current", None),
        lambda bench: bench.open_channel.retired.set(),
        lambda bench: setattr(bench.channel, "is_kept", False),
        lambda bench: bench.gate.shut(UnavailableError("down")),
        lambda bench: bench.gate.stop(),
        lambda bench: bench.run._workers._dispatcher.cancel(),
        lambda bench: setattr(bench.consumer, "_run", None),
    ],
    ids=["no channel", "retired", "kept by nobody", "paused", "draining", "taken by nobody", "not started"],
)
async def test_a_consumer_that_takes_nothing_is_not_ready(stop: Callable[[Bench], object]) -> None:
    """Each way to stop taking deliveries turns readiness and the health probe red."""
    bench = Bench(done)
    stop(bench)
    await until(lambda: not bench.consumer.is_ready)
    with pytest.raises(UnavailableError):
        await probe_consumer(bench.consumer)
    bench.gate.stop()


@pytest.mark.parametrize(
    "refusal",
    [NackedError("full"), NotConnectedError("away"), UnroutableError("nobody", exchange="", routing_key="")],
    ids=lambda error: type(error).__name__,
)
async def test_a_consumer_whose_dead_letters_nobody_takes_is_not_ready(refusal: HybridkitError) -> None:
    """A consumer whose dead letters aren't confirmed isn't ready until one of them is."""
    bench = Bench(fail)
    bench.refusal = refusal
    bench.put(3)
    await until(lambda: bench.consumer.stalled)
    assert bench.consumer.stalled == "a copy for hk.dlx is not published"
    assert not bench.consumer.is_ready
    with pytest.raises(UnavailableError, match=r"a copy for hk\.dlx"):
        await probe_consumer(bench.consumer)
    bench.refusal = None
    await until(lambda: bench.settled == 3)
    assert bench.consumer.is_ready


async def test_a_consumer_that_can_not_know_its_parked_keys_is_not_ready() -> None:
    """A log of parked keys that can't be read is a stall that is named."""
    bench = Bench(done, parks=True)
    bench.refusal = NotConnectedError("away")
    bench.put()
    await until(lambda: bench.settled)
    assert not bench.consumer.is_ready
    assert bench.consumer.stalled == "the log of parked keys is not read"


async def test_a_consumer_whose_handlers_never_end_is_not_ready() -> None:
    """A consumer isn't ready when all its handlers ignore their time limit, and is while one place is left."""
    goes_on = asyncio.Event()

    async def never_end() -> None:
        while not goes_on.is_set():
            try:
                await goes_on.wait()
            except asyncio.CancelledError:
                continue

    bench = Bench(never_end)
    bench.put()
    await until(lambda: bench.processor.overdue == 1)
    assert bench.consumer.is_ready
    bench.put(2)
    await until(lambda: not bench.consumer.is_ready)
    assert bench.run.in_flight == 3
    assert "doesn't end" in (bench.consumer.stalled or "")
    goes_on.set()
    await until(lambda: bench.settled == 3)
    assert bench.consumer.is_ready


async def test_a_consumer_that_has_no_room_and_runs_nothing_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A consumer whose whole prefetch waits for a retry isn't ready, unless a handler runs."""
    monkeypatch.setattr("hybridkit.messaging._consuming._subscription.GRACE_SECONDS", 0.0)
    inbox = SimpleNamespace(has_room=True)
    goes_on = asyncio.Event()
    bench = Bench(goes_on.wait, timeout_seconds=60)
    bench.run._consumer_channels = [cast("Any", inbox)]
    assert bench.consumer.is_ready
    inbox.has_room = False
    with pytest.raises(UnavailableError, match="all that the broker lets it have waits"):
        await probe_consumer(bench.consumer)
    bench.put()
    await until(lambda: len(bench.run._workers))
    assert bench.consumer.is_ready
    goes_on.set()
    await until(lambda: bench.settled)


@pytest.mark.parametrize("waits_for", ["to be alone", "one that is alone"])
async def test_a_consumer_whose_messages_wait_for_a_turn_is_not_ready(waits_for: str) -> None:
    """A consumer isn't ready while messages wait for one that has to run alone."""
    lock = HandlerLock.of_loop()
    takeovers = 2 if waits_for == "to be alone" else 0
    bench = Bench(done, guard=Memory(takeovers=takeovers), timeout_seconds=60)
    async with AsyncExitStack() as stack:
        if takeovers:
            await lock.acquire_shared()
            stack.callback(lock.release_shared)
        else:
            await stack.enter_async_context(lock.exclusive(wait_seconds=1))
        bench.put()
        await until(lambda: bench.consumer.stalled)
        assert "alone" in (bench.consumer.stalled or "")
        assert not bench.consumer.is_ready
    await until(lambda: bench.settled)
    assert bench.consumer.is_ready


def test_a_stall_is_what_fails_for_long_and_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall begins after the grace time of failures, and ends with a success or when nothing tries any more."""
    monkeypatch.setattr(stall_module, "GRACE_SECONDS", 10.0)
    now = 0.0
    stalls = StallDetector(clock=lambda: now)

    def tried(*, goes_well: bool) -> str | None:
        with suppress(ZeroDivisionError), stalls.attempt("a thing"):
            assert 1 / goes_well
        return stalls.reason

    assert tried(goes_well=False) is None
    now = 11.0
    assert tried(goes_well=False) == "a thing"
    assert repr(stalls) == "StallDetector(a thing)"
    now = 12.0
    assert tried(goes_well=True) is None
    assert tried(goes_well=False) is None
    now = 30.0
    assert tried(goes_well=False) == "a thing"
    now = 100.0
    assert stalls.reason is None  # nobody tries it any more
    assert tried(goes_well=False) is None
    now = 111.0
    assert tried(goes_well=False) == "a thing"


async def test_two_consumers_of_one_name_are_refused_before_either_starts() -> None:
    """Two consumers of one name are refused before anything connects."""
    consumers = [RobustConsumer(QUEUE), RobustConsumer(QUEUE)]
    with pytest.raises(DeclarationError, match=r"2 consumers are named 'tests\.readiness'"):
        await start_consumers(cast("Any", None), consumers, providers={})
