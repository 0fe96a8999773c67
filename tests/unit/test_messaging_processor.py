"""What becomes of a delivery: which copy goes where, in which order, and when the original is acknowledged."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest
from pamqp.commands import Basic
from structlog.contextvars import get_contextvars

from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.errors import (
    ClaimLostError,
    DeadlineExceededError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.events import Event, EventEnvelope
from hybridkit.idempotency import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
)
from hybridkit.idempotency._keys import fingerprint
from hybridkit.messaging._amqp._frames import DeliverMethod, encode_fields
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming import _delivery as delivery_module
from hybridkit.messaging._consuming import _execution as execution_module
from hybridkit.messaging._consuming import _processor as processor_module
from hybridkit.messaging._consuming._delivery import Delivery, Identity
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import Paused, PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.retry import Retry

pytestmark = pytest.mark.usefixtures("logs")

QUEUE = "tests.queue"


class Happened(Event, type="processor.happened", key="number"):
    number: int


class Unhandled(Event, type="processor.unhandled"):
    number: int


class Newer(Event, type="processor.newer", version=2):
    number: int


@dataclass
class Steps:
    """Everything that happened, in order, and the fakes that wrote it down."""

    log: list[str] = field(default_factory=list[str])
    copies: list[OutgoingMessage] = field(default_factory=list[OutgoingMessage])
    refusals: list[Exception] = field(default_factory=list[Exception])
    is_open: bool = True

    finished: set[Identity] = field(default_factory=set[Identity])

    # the channel
    def ack(self, tag: int, finished: Identity | None) -> None:
        if self.is_open:
            self.log.append(f"ack {tag}")
        elif finished is not None:
            self.finished.add(finished)

    def requeue(self, tag: int) -> None:
        self.log.append(f"requeue {tag}")

    def reject(self, tag: int) -> None:
        self.log.append(f"reject {tag}")

    def give_back(self) -> None:
        self.is_open = False
        self.log.append("given back")

    def was_finished(self, event: Identity) -> bool:
        return event in self.finished

    # the publisher
    async def forward(self, message: OutgoingMessage) -> None:
        if self.refusals:
            self.log.append("refused")
            raise self.refusals.pop(0)
        self.copies.append(message)
        self.log.append(f"copy to {message.exchange}")

    def renew_topology(self, *, reason: str) -> None:
        self.log.append("topology renewed")


class FakeGuard:
    """Answers what it is told to, and writes down what it is asked."""

    def __init__(self, steps: Steps, *answers: Begin | Exception, finish: Finish = Finish.OK) -> None:
        self.steps = steps
        self.answers = list(answers)
        self.keys: list[str] = []
        self.payloads: list[Any] = []
        self.lost = False
        self._finish = finish

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        self.keys.append(key)
        self.payloads.append(payload)
        answer = self.answers.pop(0) if self.answers else given(key)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def hold(self, acquired: Acquired) -> AsyncGenerator[None]:
        with bind(replace(current(), claim=Claim(acquired.key))):
            yield
        if self.lost:
            raise ClaimLostError("another holder")

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        self.steps.log.append(f"finish {outcome.name}")
        return self._finish


def given(key: str = "k:e:1") -> Acquired:
    return Acquired(key=key, token="t", fence=1, taken_over=False, guarded=True, fingerprint="f")


def delivery(
    steps: Steps, body: bytes, headers: dict[str, Any] | None = None, *, redelivered: bool = False
) -> Delivery:
    properties = Basic.Properties(headers=headers, message_type="processor.happened", app_id="tests")
    deliver = DeliverMethod(7, redelivered, "hk.events", "processor.happened")
    return Delivery(QUEUE, steps, IncomingMessage(deliver, cast("Any", properties).marshal(), body))


def envelope(message: Event | None = None) -> bytes:
    with bind(RequestContext(request_id="req-1", user_id="ann")):
        return EventEnvelope.wrap(message or Happened(number=1), service="tests").encode()


def processor(
    steps: Steps,
    handler: Callable[..., Awaitable[object]],
    *,
    retry: Retry | None = None,
    guard: FakeGuard | None = None,
    timeout_seconds: float = 5.0,
    gate: PauseGate | None = None,
    keyed: KeyedBacklog | None = None,
    parked: ParkedKeys | None = None,
) -> Processor:
    handlers = Handlers(QUEUE)
    handlers.add(Happened, handler, retry or Retry.immediate(attempts=1))
    return Processor(
        QUEUE,
        handlers,
        publisher=steps,
        providers={},
        guard=guard,
        timeout_seconds=timeout_seconds,
        gate=gate or PauseGate(QUEUE),
        keyed=keyed,
        parked=parked,
    )


async def succeed(event: Happened) -> None: ...


def failing(*errors: BaseException) -> Callable[[Happened], Awaitable[None]]:
    """A handler that raises these, one per run, and then succeeds."""
    left = list(errors)

    async def handle(event: Happened) -> None:
        if left:
            raise left.pop(0)

    return handle


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays are their upper bound, and pauses of the process itself take no time."""
    monkeypatch.setattr("random.random", lambda: 1.0)
    monkeypatch.setattr(Retry, "pauses", lambda _: itertools.repeat(0.0))


async def test_done_then_acknowledged(steps: Steps) -> None:
    seen: list[tuple[int, str, str | None]] = []

    async def handle(event: Happened, whole: EventEnvelope[Happened], context: RequestContext) -> None:
        assert whole.data is event
        seen.append((event.number, context.request_id, context.user_id))
        assert current() == context
        steps.log.append("handled")

    await processor(steps, handle).process(delivery(steps, envelope()))
    assert steps.log == ["handled", "ack 7"]
    assert seen == [(1, "req-1", "ann")]


async def test_a_strangers_message_without_headers_is_handled(steps: Steps) -> None:
    """The body decides; a request id that could forge a line is replaced, unknown members are ignored."""
    ids: list[str] = []
    users: list[str | None] = []

    async def handle(event: Happened, context: RequestContext) -> None:
        ids.append(context.request_id)
        users.append(context.user_id)

    body = orjson.dumps(
        {
            "event_type": "processor.happened",
            "event_id": str(uuid4()),
            "timestamp": "2026-01-01T00:00:00+01:00",
            "service": "php",
            "request_id": "two\nlines",
            "user_id": "auth0|Ünal Çelik",
            "data": {"number": 1},
            "extra": True,
        }
    )
    await processor(steps, handle).process(delivery(steps, body))
    assert steps.log == ["ack 7"]
    assert ids[0].count("-") == 4
    assert users == ["auth0|Ünal Çelik"]


async def test_the_handler_has_a_deadline_and_a_claim(steps: Steps) -> None:
    """Also without a guard: what a redelivered event writes again has the same ids and keys."""
    claims: list[str] = []

    async def handle(event: Happened, context: RequestContext) -> None:
        assert context.claim is not None
        claims.append(context.claim.key)
        remaining = context.remaining_seconds()
        assert remaining is not None
        assert 0 < remaining <= 5

    event = Happened(number=1)
    for _ in range(2):
        await processor(steps, handle).process(delivery(steps, envelope(event)))
    assert claims == [f"{QUEUE}:tests:{event.event_id}"] * 2


async def test_a_short_retry_waits_here(steps: Steps) -> None:
    handler = failing(OSError("once"), OSError("twice"))
    await processor(steps, handler, retry=Retry.immediate(attempts=3)).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]


async def test_a_longer_retry_is_a_copy_that_is_confirmed_first(steps: Steps) -> None:
    retry = Retry.exponential(first_seconds=4, attempts=3)
    headers = {"x-request-id": "req-1", "x-death": [{"count": 1}], "tenant": "acme"}
    await processor(steps, failing(OSError()), retry=retry).process(delivery(steps, envelope(), headers))
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    copy = steps.copies[0]
    assert copy.routing_key.endswith(f"1.0.0.{QUEUE}")
    assert (copy.message_type, copy.service) == ("processor.happened", "tests")
    first_failed_at = copy.headers["hk_first_failed_at"]
    assert copy.headers == {
        "x-request-id": "req-1",
        "tenant": "acme",
        "hk_queue": QUEUE,
        "hk_attempt": 1,
        "hk_first_failed_at": first_failed_at,
        "hk_failed_at": first_failed_at,
    }


async def test_attempts_are_counted_over_all_copies(steps: Steps) -> None:
    """The third failure of three allowed is the last; the first one's time stays."""
    retry = Retry.exponential(first_seconds=4, attempts=3)
    headers = {"hk_attempt": 2, "hk_first_failed_at": "2026-01-01T00:00:00Z"}
    await processor(steps, failing(OSError("gone")), retry=retry).process(
        delivery(steps, envelope(), headers)
    )
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    dead = steps.copies[0]
    assert dead.routing_key == QUEUE
    assert dead.headers["hk_reason"] == "exhausted"
    assert dead.headers["hk_attempt"] == 3
    assert dead.headers["hk_first_failed_at"] == "2026-01-01T00:00:00Z"
    assert dead.headers["hk_error_type"] == "builtins.OSError"
    assert dead.headers["hk_error"] == "gone"
    assert "in handle" in dead.headers["hk_stack"]


async def test_short_retries_count_for_the_copy(steps: Steps) -> None:
    """A failure here, and the next one goes to the broker with both."""
    retry = Retry.exponential(first_seconds=0.001, cap_seconds=2, attempts=20)
    headers = {"hk_attempt": 9}
    await processor(steps, failing(*[OSError()] * 3), retry=retry).process(
        delivery(steps, envelope(), headers)
    )
    assert steps.copies[0].headers["hk_attempt"] == 11


async def test_an_endless_error_text_is_cut(steps: Steps) -> None:
    await processor(steps, failing(OSError("x" * 100_000))).process(delivery(steps, envelope()))
    assert len(steps.copies[0].headers["hk_error"]) == 1000
    assert len(steps.copies[0].headers["hk_stack"]) == 8000


def cloud_event(**attributes: object) -> tuple[bytes, dict[str, Any]]:
    event = {
        "specversion": "1.0",
        "type": "processor.happened",
        "source": "/shop",
        "id": "order-18",
    } | attributes
    return orjson.dumps({**event, "data": {"number": 1}}), {
        f"cloudEvents_{name}": value for name, value in event.items()
    }


@pytest.mark.parametrize("is_binary", [False, True])
async def test_every_attempt_at_a_cloud_event_without_a_time_sees_the_same(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, *, is_binary: bool
) -> None:
    """The first reading says when it happened: for the retry, the dead letter, and after a redrive."""
    clock = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(9))
    monkeypatch.setattr("hybridkit.events.cloudevents.now", lambda: next(clock))
    seen: list[datetime] = []

    async def fail(envelope: EventEnvelope[Happened]) -> None:
        seen.append(envelope.timestamp)
        raise TimeoutError

    structured, headers = cloud_event()
    body = b'{"number": 1}' if is_binary else structured
    retry = Retry.exponential(attempts=2, first_seconds=30)
    first = delivery(steps, body, headers if is_binary else None)
    await processor(steps, fail, retry=retry).process(first)
    [delayed] = steps.copies
    await processor(steps, fail, retry=retry).process(delivery(steps, body, dict(delayed.headers)))
    dead = steps.copies[-1]
    await processor(steps, fail, retry=retry).process(delivery(steps, body, dict(dead.headers)))
    assert (dead.exchange, seen) == ("hk.dlx", [datetime(2026, 1, 1, tzinfo=UTC)] * 3)


async def test_a_time_of_its_own_is_no_business_of_a_copy(steps: Steps) -> None:
    body, _ = cloud_event(time="2026-01-01T00:00:00Z")
    await processor(steps, failing(ValueError())).process(delivery(steps, body))
    await processor(steps, failing(ValueError())).process(delivery(steps, envelope()))
    assert len(steps.copies) == 2
    assert not any("hk_first_read_at" in copy.headers for copy in steps.copies)


async def test_the_log_has_both_ids_of_a_cloud_event(
    steps: Steps, logs: list[MutableMapping[str, Any]]
) -> None:
    names: list[dict[str, Any]] = []

    async def note(event: Happened) -> None:
        names.append(get_contextvars())

    await processor(steps, note).process(delivery(steps, cloud_event()[0]))
    await processor(steps, note).process(delivery(steps, envelope()))
    assert names[0]["original_id"] == "order-18" != names[0]["event_id"]
    assert "original_id" not in names[1]


async def test_a_permanent_error_is_dead_at_once(steps: Steps) -> None:
    retry = Retry.exponential(attempts=9).never(ValueError)
    await processor(steps, failing(ValueError()), retry=retry).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == "permanent"


async def test_a_pause_counts_no_attempt(steps: Steps) -> None:
    """Nor does it make a copy: the message waits here, and is the probe that finds the dependency back."""
    gate = PauseGate(QUEUE)
    states: list[Paused | None] = []
    gate.changed = lambda: states.append(gate.paused)
    retry = Retry.immediate(attempts=1).pause_on(UnavailableError)
    handler = failing(UnavailableError("down"), UnavailableError("still down"))
    await processor(steps, handler, retry=retry, gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]
    assert [state and state.reason for state in states] == ["UnavailableError: down", None]


async def test_a_pause_that_takes_too_long_is_a_copy_that_counts_no_attempt(steps: Steps) -> None:
    """Before the broker would close the channel."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60))
    held = delivery(steps, envelope(), {"hk_attempt": 4})
    held.received_at -= delivery_module.MAX_UNACKED_SECONDS - 5.001
    await processor(steps, succeed, gate=gate, timeout_seconds=5).process(held)
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 4
    gate.stop()


async def test_a_pause_ends_with_the_consumer(steps: Steps) -> None:
    """What waits is left unacknowledged, and goes back to the queue with the channel."""
    gate = PauseGate(QUEUE)
    gate.shut(OSError())
    task = asyncio.create_task(processor(steps, succeed, gate=gate).process(delivery(steps, envelope())))
    gate.stop()
    await task
    assert steps.log == []


async def test_all_go_on_when_the_gate_is_opened(steps: Steps) -> None:
    """The first one that comes through opens it for the others."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60))
    same = processor(steps, succeed, gate=gate)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(same.process(delivery(steps, envelope())))
        await asyncio.sleep(0)
        gate.open()
    assert steps.log == ["ack 7"] * 3


@pytest.mark.parametrize("opened", [False, True], ids=["probe", "opened"])
async def test_what_comes_again_anyway_does_not_run_after_a_pause(steps: Steps, *, opened: bool) -> None:
    """Its channel has closed meanwhile."""
    gate = PauseGate(QUEUE)
    gate.shut(UnavailableError("down", retry_after_seconds=60 if opened else None))
    task = asyncio.create_task(processor(steps, succeed, gate=gate).process(delivery(steps, envelope())))
    await asyncio.sleep(0)
    steps.is_open = False
    if opened:
        gate.open()
    await task
    assert steps.finished == set()
    gate.stop()


async def test_a_retry_that_the_end_of_the_consumer_meets_is_counted(steps: Steps) -> None:
    """The next process gets a copy that knows of the failure."""
    gate = PauseGate(QUEUE)

    async def handle(event: Happened) -> None:
        gate.stop()
        raise OSError

    await processor(steps, handle, retry=Retry.immediate(), gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 1


async def test_any_other_failure_shows_that_the_dependency_is_back(steps: Steps) -> None:
    gate = PauseGate(QUEUE)
    gate.shut(OSError())
    await processor(steps, failing(ValueError()), gate=gate).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert gate.is_open


async def test_a_handler_that_takes_too_long_has_failed(steps: Steps) -> None:
    async def handle(event: Happened) -> None:
        await asyncio.sleep(60)

    await processor(steps, handle, timeout_seconds=0.01).process(delivery(steps, envelope()))
    assert steps.copies[0].headers["hk_error_type"].endswith(DeadlineExceededError.__name__)
    assert "longer than 0.01 s" in steps.copies[0].headers["hk_error"]


async def test_a_timeout_of_the_handlers_own_is_its_own(steps: Steps) -> None:
    await processor(steps, failing(TimeoutError("mine"))).process(delivery(steps, envelope()))
    assert steps.copies[0].headers["hk_error"] == "mine"


async def test_a_library_that_cancels_itself_is_a_failure(steps: Steps) -> None:
    """Nobody asked for it: aiormq does it when its connection drops."""
    await processor(steps, failing(asyncio.CancelledError("stray"))).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]


async def test_a_cancelled_handler_settles_nothing(steps: Steps) -> None:
    """The message stays unacknowledged, and the guard lets the next one begin at once."""
    running = asyncio.Event()

    async def handle(event: Happened) -> None:
        running.set()
        await asyncio.sleep(60)

    guard = FakeGuard(steps)
    task = asyncio.create_task(processor(steps, handle, guard=guard).process(delivery(steps, envelope())))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.log == ["finish RELEASED"]


async def test_a_message_that_waited_too_long_here_goes_round_again(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would close the channel in the middle of the handler."""
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
    await processor(steps, succeed, timeout_seconds=2).process(delivery(steps, envelope(), {"hk_attempt": 4}))
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 4


async def test_a_retry_with_no_time_left_here_goes_to_the_broker(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = asyncio.Event()

    async def handle(event: Happened) -> None:
        monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
        handled.set()
        raise OSError

    await processor(steps, handle, retry=Retry.immediate()).process(delivery(steps, envelope()))
    assert handled.is_set()
    assert steps.log == ["copy to hk.delay.L0", "ack 7"]


@pytest.mark.parametrize("redelivered", [True, False], ids=["redelivered", "published again"])
async def test_finished_work_whose_acknowledgement_was_lost_is_not_done_again(
    steps: Steps, redelivered: bool
) -> None:
    """Only where the broker says that we had this message before."""
    body = envelope()
    steps.is_open = False
    await processor(steps, succeed).process(delivery(steps, body))
    assert len(steps.finished) == 1
    steps.is_open = True

    async def handle(event: Happened) -> None:
        steps.log.append("again")

    await processor(steps, handle).process(delivery(steps, body, redelivered=redelivered))
    assert steps.log == (["ack 7"] if redelivered else ["again", "ack 7"])


async def test_what_moved_on_as_a_copy_is_not_finished(steps: Steps) -> None:
    """The copy is the same event: it must not be taken for the one that was here."""

    async def handle(event: Happened) -> None:
        raise OSError

    async def forward(message: OutgoingMessage) -> None:
        steps.is_open = False

    steps.forward = forward  # type: ignore[method-assign]
    await processor(steps, handle, retry=Retry.exponential(first_seconds=9)).process(
        delivery(steps, envelope())
    )
    assert steps.finished == set()


# ── what can't be read ───────────────────────────────────────────────────────────────────────────


def wire(**changes: object) -> bytes:
    known: dict[str, Any] = orjson.loads(envelope())
    return orjson.dumps({**known, **changes})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "malformed"),
        (b"\xff\x00", "malformed"),
        (b"[]", "malformed"),
        (wire(data={"number": "x"}), "malformed"),
        (wire(event_type="nobody.knows"), "unknown_type"),
        (wire(event_type="processor.newer", version=1), "unknown_version"),
        (envelope(Unhandled(number=1)), "unknown_type"),
        (b" " * (16 * 1024 * 1024 + 1), "malformed"),
    ],
    ids=["empty", "bytes", "array", "data", "type", "version", "handler", "size"],
)
async def test_what_can_not_be_read_is_dead_with_the_reason(steps: Steps, body: bytes, reason: str) -> None:
    await processor(steps, succeed).process(delivery(steps, body, {"x-request-id": "req-9"}))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    copy = steps.copies[0]
    assert copy.body == body
    assert copy.headers["hk_reason"] == reason
    assert copy.headers["x-request-id"] == "req-9"
    assert "hk_attempt" not in copy.headers


async def test_a_newer_version_waits_for_the_deployment_first(steps: Steps) -> None:
    """Producers deploy first. It waits eight times, a quarter of an hour in all, and counts no attempt."""
    body = wire(version=2)
    waits = 0
    for _ in range(8):
        await processor(steps, succeed).process(delivery(steps, body, {"hk_version_waits": waits}))
        waits = steps.copies[-1].headers["hk_version_waits"]
    assert waits == 8
    assert {copy.exchange.rpartition(".")[0] for copy in steps.copies} == {"hk.delay"}
    await processor(steps, succeed).process(delivery(steps, body, {"hk_version_waits": waits}))
    assert steps.copies[-1].headers["hk_reason"] == "unknown_version"


# ── copies that the broker doesn't take ──────────────────────────────────────────────────────────


async def test_a_copy_is_published_until_the_broker_has_it(steps: Steps) -> None:
    """The original stays unacknowledged meanwhile; a missing delay level is declared again."""
    unroutable = UnroutableError("nobody", exchange="hk.dlx", routing_key="q")
    steps.refusals = [NotConnectedError("away"), unroutable]
    await processor(steps, failing(OSError())).process(delivery(steps, envelope()))
    assert steps.log == ["refused", "refused", "topology renewed", "copy to hk.dlx", "ack 7"]


async def test_a_message_whose_copy_is_too_large_for_the_broker_is_rejected(steps: Steps) -> None:
    """It has a lower limit by now. Others on the same channel don't know their fate, and are published again."""
    too_large = PayloadTooLargeError("too large", size_bytes=10, limit_bytes=9)
    steps.refusals = [OutcomeUnknownError("the channel closed"), too_large, too_large]
    await processor(steps, failing(OSError())).process(delivery(steps, envelope()))
    assert steps.log == ["refused", "refused", "refused", "reject 7", "ack 7"]


@pytest.mark.parametrize("attempts", [1, 2], ids=["dead letter", "retry"])
async def test_a_copy_whose_headers_fit_into_no_frame_goes_without_most_of_them(
    steps: Steps, attempts: int
) -> None:
    """A broker with a small `frame_max` still learns why it is a dead letter, and how often it was tried."""
    steps.refusals = [PayloadTooLargeError("too large", size_bytes=9000, limit_bytes=8000)]
    moved = delivery(steps, envelope(), {"tenant": "x" * 9000, "hk_generation": 2})
    retry = Retry.exponential(first_seconds=9, attempts=attempts)
    await processor(steps, failing(OSError("no " * 300)), retry=retry).process(moved)
    headers = steps.copies[0].headers
    assert (steps.log[0], steps.log[-1]) == ("refused", "ack 7")
    assert (headers["hk_attempt"], headers["hk_generation"], headers["hk_queue"]) == (1, 2, QUEUE)
    assert not headers.keys() & {"tenant", "hk_stack"}
    assert len(encode_fields(headers)) < 2000
    if attempts == 1:
        assert headers["hk_reason"] == "exhausted"


async def test_no_copy_is_made_of_a_message_that_comes_again_anyway(steps: Steps) -> None:
    """Its channel has closed, so the broker delivers it again."""

    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    for retry in (Retry.immediate(attempts=1), Retry.exponential(first_seconds=9)):
        await processor(steps, handle, retry=retry).process(delivery(steps, envelope()))
    assert steps.log == []


# ── in order ─────────────────────────────────────────────────────────────────────────────────────


async def in_order(
    steps: Steps, body: bytes, handler: Any = succeed, **options: Any
) -> tuple[KeyedBacklog, Delivery]:
    """One run of a message in the line of its key."""
    lines = KeyedBacklog()
    lines.put(delivery(steps, body))
    first = await lines.get()
    await processor(steps, handler, keyed=lines, **options).process(first)
    lines.done(first)
    return lines, first


async def test_in_order_a_retry_rests_in_its_line(steps: Steps) -> None:
    lines, _ = await in_order(
        steps, envelope(), failing(OSError()), retry=Retry.exponential(first_seconds=30)
    )
    assert steps.log == []
    assert len(lines) == 1
    lines.stop()


async def test_in_order_failures_are_remembered(steps: Steps) -> None:
    """Also when the message comes again on another channel: there is no copy that could count them."""
    lines = KeyedBacklog()
    same = processor(steps, failing(*[OSError()] * 3), retry=Retry.exponential(attempts=3), keyed=lines)
    body = envelope()
    for _ in range(3):
        lines.put(delivery(steps, body))
        run = await lines.get()
        await same.process(run)
        lines.stop()
        lines = same._settlement._keyed = KeyedBacklog()
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_attempt"] == 3
    assert same._failures == {}


async def test_in_order_not_everything_is_remembered(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten: it has been gone for long, or begins its attempts anew."""
    monkeypatch.setattr(processor_module, "MAX_REMEMBERED", 1)
    lines = KeyedBacklog()
    same = processor(steps, failing(*[OSError()] * 2), retry=Retry.exponential(attempts=3), keyed=lines)
    first, second = Happened(number=1), Happened(number=2)
    for event in (first, second):
        lines.put(delivery(steps, envelope(event)))
        await same.process(await lines.get())
    lines.stop()
    assert list(same._failures) == [f"{QUEUE}:tests:{second.event_id}:0"]


@pytest.mark.parametrize("answer", [InProgress(20_000), InProgress(10)], ids=["running", "nearly done"])
async def test_in_order_another_holder_is_waited_for_here(steps: Steps, answer: Begin) -> None:
    lines, _ = await in_order(steps, envelope(), guard=FakeGuard(steps, answer))
    assert steps.log == []
    assert len(lines) == 1
    lines.stop()


async def test_in_order_what_waited_too_long_gives_all_back(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "MAX_UNACKED_SECONDS", 1.0)
    lines, first = await in_order(steps, envelope())
    assert steps.log == ["given back"]
    assert len(lines) == 0
    assert not first.is_ours


async def test_in_order_what_comes_again_anyway_holds_nobody(steps: Steps) -> None:
    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    lines, _ = await in_order(steps, envelope(), handle, retry=Retry.exponential(first_seconds=30))
    assert len(lines) == 0


async def test_in_order_a_newer_version_holds_its_key(steps: Steps) -> None:
    """Until a process that knows it takes over, or a quarter of an hour."""
    lines, first = await in_order(steps, wire(version=2))
    assert steps.log == []
    assert len(lines) == 1
    lines.stop()
    first.received_at -= 915
    await processor(steps, succeed, keyed=lines).process(first)
    assert steps.copies[0].headers["hk_reason"] == "unknown_version"


async def test_in_order_what_has_no_key_waits_in_a_delay_level(steps: Steps) -> None:
    """Nothing says whom it would hold up."""
    body = wire(version=2, data={})
    lines, _ = await in_order(steps, body)
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    assert len(lines) == 0


# ── parked keys ──────────────────────────────────────────────────────────────────────────────────


async def parking(steps: Steps, parked: ParkedKeys, *messages: bytes, **options: Any) -> None:
    """Messages one after another, as far as their key lets them."""
    lines = KeyedBacklog()
    same = processor(steps, options.pop("handler", succeed), keyed=lines, parked=parked, **options)
    for body in messages:
        lines.put(delivery(steps, body, options.get("headers")))
        run = await lines.get()
        await same.process(run)
        lines.done(run)


async def test_a_key_is_marked_before_its_dead_letter(steps: Steps) -> None:
    """A crash in between parks a key whose message comes again; the other way round its successors would run."""
    parked, first = ParkedKeys(QUEUE), Happened(number=1)
    await parking(steps, parked, envelope(first), handler=failing(OSError()))
    assert steps.log == ["copy to ", "copy to hk.dlx", "ack 7"]
    mark = orjson.loads(steps.copies[0].body)
    assert steps.copies[0].routing_key == f"{QUEUE}.parked"
    assert mark == {"key": "1", "generation": 0, "last": str(first.event_id)}


async def test_what_comes_after_a_parked_one_follows_it(steps: Steps) -> None:
    parked, third = ParkedKeys(QUEUE), Happened(number=1)
    bodies = [envelope(Happened(number=1)), envelope(Happened(number=2)), envelope(third)]
    await parking(steps, parked, *bodies, handler=failing(OSError()))
    dead = [copy for copy in steps.copies if copy.exchange]
    assert [copy.headers["hk_reason"] for copy in dead] == ["exhausted", "key_parked"]
    assert parked.is_last("1", str(third.event_id))
    assert not parked.holds("2", 0)


async def test_a_mark_that_nobody_took_buries_nothing(steps: Steps) -> None:
    """The queue of marks is gone; subscribing again declares it."""
    steps.refusals = [UnroutableError("gone", exchange="", routing_key="q")]
    await parking(steps, ParkedKeys(QUEUE), envelope(), handler=failing(OSError()))
    assert steps.log == ["refused", "given back"]


async def test_what_was_given_up_elsewhere_has_parked_its_key(steps: Steps) -> None:
    """By a process that was thought dead: what is known here may be older."""
    parked = ParkedKeys(QUEUE)
    open_channel = parked._read_on = cast("Any", object())
    await parking(steps, parked, envelope(), guard=FakeGuard(steps, Completed(None)))
    assert parked._read_on is open_channel
    await parking(steps, parked, envelope(), guard=FakeGuard(steps, Failed(None)))
    assert parked._read_on is None


async def test_what_can_not_be_read_parks_nothing(steps: Steps) -> None:
    await parking(steps, ParkedKeys(QUEUE), wire(data={"number": "x"}))
    assert steps.log == ["copy to hk.dlx", "ack 7"]


# ── the guard ────────────────────────────────────────────────────────────────────────────────────


async def test_the_outcome_is_recorded_before_the_acknowledgement(steps: Steps) -> None:
    guard = FakeGuard(steps)
    event = Happened(number=3)
    await processor(steps, succeed, guard=guard).process(
        delivery(steps, envelope(event), {"hk_generation": 2})
    )
    assert steps.log == ["finish COMPLETED", "ack 7"]
    assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:2"]
    assert [fingerprint(payload) for payload in guard.payloads] == [
        fingerprint(["processor.happened", 1, {"number": 3}])
    ]


async def test_a_redriven_event_derives_what_it_derived_before(steps: Steps) -> None:
    """The guard's key has the generation, so that it runs; the claim has not, so that it writes the same."""
    claims: list[Claim | None] = []

    async def handle(event: Happened, context: RequestContext) -> None:
        claims.append(context.claim)

    body = envelope()
    guard = FakeGuard(steps)
    for generation in (0, 1):
        await processor(steps, handle, guard=guard).process(
            delivery(steps, body, {"hk_generation": generation})
        )
    assert guard.keys[0] != guard.keys[1]
    assert claims[0] == claims[1]


@pytest.mark.parametrize("fails", [False, True], ids=["done", "fails again"])
async def test_a_dead_letter_that_was_moved_back_is_a_redriven_one(steps: Steps, *, fails: bool) -> None:
    """By a shovel, with all its headers: it runs, with all its attempts ahead, and can be moved again."""
    headers = {
        "hk_reason": "exhausted",
        "hk_attempt": 3,
        "hk_error": "x",
        "hk_queue": QUEUE,
        "tenant": "acme",
    }
    event = Happened(number=3)
    for generation in (1, 2):
        guard = FakeGuard(steps)
        handler = failing(*[OSError()] * 9) if fails else succeed
        moved = delivery(steps, envelope(event), headers | {"hk_generation": generation - 1})
        await processor(steps, handler, retry=Retry.exponential(attempts=2), guard=guard).process(moved)
        assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:{generation}"]
        if fails:
            copy = steps.copies.pop().headers
            assert (copy["hk_generation"], copy["hk_attempt"], copy["tenant"]) == (generation, 1, "acme")
            assert not copy.keys() & {"hk_reason", "hk_error"}


@pytest.mark.parametrize("last", [2**31 - 2, 2**31 - 1])
def test_a_generation_has_an_end_and_does_not_begin_anew(steps: Steps, last: int) -> None:
    moved = delivery(steps, envelope(), {"hk_reason": "exhausted", "hk_generation": last})
    assert moved.generation == 2**31 - 1


async def test_a_dead_letter_of_another_consumer_is_the_event_itself(steps: Steps) -> None:
    """Moved here, or published to all: its attempts and generations there are none of this consumer's."""
    event = Happened(number=3)
    headers = {
        "hk_reason": "exhausted",
        "hk_attempt": 3,
        "hk_queue": "tests.other",
        "hk_generation": 2,
        "tenant": "acme",
    }
    guard = FakeGuard(steps)
    moved = delivery(steps, envelope(event), headers)
    await processor(steps, failing(OSError()), retry=Retry.exponential(attempts=2), guard=guard).process(
        moved
    )
    assert guard.keys == [f"{QUEUE}:tests:{event.event_id}:0"]
    copy = steps.copies.pop().headers
    assert (copy["hk_attempt"], copy["tenant"], copy["hk_queue"]) == (1, "acme", QUEUE)
    assert not copy.keys() & {"hk_reason", "hk_generation"}


@pytest.mark.parametrize("answer", [Completed(None), Failed(None)], ids=["completed", "failed"])
async def test_what_was_finished_before_is_acknowledged(steps: Steps, answer: Begin) -> None:
    async def handle(event: Happened) -> None:
        pytest.fail("it runs again")

    await processor(steps, handle, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == ["ack 7"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Mismatch(), "mismatch"), (Exhausted(), "takeovers")],
    ids=["mismatch", "exhausted"],
)
async def test_what_must_not_run_is_dead(steps: Steps, answer: Begin, reason: str) -> None:
    await processor(steps, succeed, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "ack 7"]
    assert steps.copies[0].headers["hk_reason"] == reason


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (InProgress(20_000), "hk.delay.L4"),
        (InProgress(10), "hk.delay.L0"),
        (InProgress(10**9), "hk.delay.L5"),
    ],
    ids=["running", "nearly done", "endless"],
)
async def test_waiting_counts_no_attempt(steps: Steps, answer: Begin, level: str) -> None:
    await processor(steps, succeed, guard=FakeGuard(steps, answer)).process(delivery(steps, envelope()))
    assert steps.log == [f"copy to {level}", "ack 7"]
    assert "hk_attempt" not in steps.copies[0].headers


async def test_a_guard_that_refuses_pauses_the_consumer(steps: Steps) -> None:
    """Redis is down, and nothing may run without it; the message waits here."""
    guard = FakeGuard(steps, UnavailableError("redis is down"))
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish COMPLETED", "ack 7"]


async def test_the_claim_is_released_before_a_pause(steps: Steps) -> None:
    retry = Retry.immediate(attempts=1).pause_on(OSError)
    guard = FakeGuard(steps)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "finish COMPLETED", "ack 7"]


async def test_the_claim_is_released_before_a_retry(steps: Steps) -> None:
    guard = FakeGuard(steps)
    retry = Retry.exponential(first_seconds=4)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "copy to hk.delay.L2", "ack 7"]


async def test_a_short_retry_begins_again(steps: Steps) -> None:
    """A run that follows numbers its steps from the start."""
    guard = FakeGuard(steps)
    retry = Retry.immediate(attempts=2)
    await processor(steps, failing(OSError()), retry=retry, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", "finish COMPLETED", "ack 7"]


async def test_a_dead_letter_is_confirmed_before_the_guard_knows(steps: Steps) -> None:
    """The other way round, a crash in between would lose the event: the guard says failed, and nobody has it."""
    guard = FakeGuard(steps)
    await processor(steps, failing(OSError()), guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.dlx", "finish FAILED", "ack 7"]


async def test_a_dead_letter_that_nobody_took_has_not_failed(steps: Steps) -> None:
    async def handle(event: Happened) -> None:
        steps.is_open = False
        raise OSError

    await processor(steps, handle, guard=FakeGuard(steps)).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED"]


async def test_a_lost_claim_waits_for_the_other_holder(steps: Steps) -> None:
    guard = FakeGuard(steps)
    guard.lost = True
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["copy to hk.delay.L2", "ack 7"]
    assert "hk_attempt" not in steps.copies[0].headers


async def test_an_outcome_that_redis_did_not_take_is_no_reason_to_run_again(steps: Steps) -> None:
    guard = FakeGuard(steps, finish=Finish.UNRECORDED)
    await processor(steps, succeed, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish COMPLETED", "ack 7"]


async def test_a_message_that_went_well_is_worth_a_line_for_debugging_only(
    steps: Steps, logs: list[MutableMapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = processor(steps, succeed)
    monkeypatch.setattr(quiet, "_logs_all", False)
    await processor(steps, succeed).process(delivery(steps, envelope()))
    await quiet.process(delivery(steps, envelope()))
    assert [(line["event"], line["log_level"]) for line in logs] == [("message settled", "debug")]


async def test_a_span_is_linked_to_the_producers(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something records; of the headers nothing is decoded otherwise."""
    spans: list[tuple[str, Any]] = []

    def span(name: str, **options: Any) -> AbstractContextManager[None]:
        spans.append((name, options))
        return nullcontext()

    monkeypatch.setattr(execution_module, "is_tracing", lambda: True)
    monkeypatch.setattr(execution_module, "span", span)
    headers = {"traceparent": "00-1-2-3", "number": 5}
    await processor(steps, succeed).process(delivery(steps, envelope(), headers))
    [(name, options)] = spans
    assert name == f"process hk.events:processor.happened:{QUEUE}"
    assert options["linked"] == {"traceparent": "00-1-2-3"}
    assert options["attributes"]["messaging.destination.name"] == f"hk.events:processor.happened:{QUEUE}"


def test_reprs_say_where(steps: Steps) -> None:
    shown: Sequence[object] = [processor(steps, succeed), delivery(steps, b"")]
    assert all(QUEUE in repr(each) for each in shown)
