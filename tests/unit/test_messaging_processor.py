"""From a delivery to its acknowledgement: what is read, what the handler gets, and what is logged."""

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest
from structlog.contextvars import get_contextvars

from hybridkit.context import RequestContext, current
from hybridkit.errors import NotYetError
from hybridkit.events import Event, EventEnvelope
from hybridkit.messaging._consuming import _execution as execution_module
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._publishing import _telemetry as telemetry_module
from hybridkit.retry import Retry
from tests.helpers.consuming import (
    QUEUE,
    FakeGuard,
    Happened,
    Steps,
    delivery,
    envelope,
    failing,
    processor,
    succeed,
    wire,
)

pytestmark = pytest.mark.usefixtures("logs", "instant_retries")


class Unhandled(Event, type="processor.unhandled"):
    number: int


class Newer(Event, type="processor.newer", version=2):
    number: int


async def test_done_then_acknowledged(steps: Steps) -> None:
    """The handler gets the event, its envelope and its context; the acknowledgement comes after its end."""
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
    """A CloudEvent with a time, and an event of ours, carry no time of their first reading."""
    body, _ = cloud_event(time="2026-01-01T00:00:00Z")
    await processor(steps, failing(ValueError())).process(delivery(steps, body))
    await processor(steps, failing(ValueError())).process(delivery(steps, envelope()))
    assert len(steps.copies) == 2
    assert not any("hk_first_read_at" in copy.headers for copy in steps.copies)


async def test_the_log_has_both_ids_of_a_cloud_event(
    steps: Steps, logs: list[MutableMapping[str, Any]]
) -> None:
    """Log lines have the derived id, and the one that its source gave it where that is another."""
    names: list[dict[str, Any]] = []

    async def note(event: Happened) -> None:
        names.append(get_contextvars())

    await processor(steps, note).process(delivery(steps, cloud_event()[0]))
    await processor(steps, note).process(delivery(steps, envelope()))
    assert names[0]["original_id"] == "order-18" != names[0]["event_id"]
    assert "original_id" not in names[1]


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
    """The copy has the body unchanged and the request id, and counts no attempt."""
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


async def test_an_event_that_came_too_early_waits_and_counts_no_attempt(steps: Steps) -> None:
    """Its handler runs after each of eight waits, whatever its policy; then it is dead with the error's reason."""
    runs = 0

    async def handle(event: Happened) -> None:
        nonlocal runs
        runs += 1
        raise NotYetError("the order is not there", reason="order_missing")

    headers: dict[str, Any] = {"hk_attempt": 2}
    for _ in range(8):
        await processor(steps, handle, retry=Retry.immediate(attempts=1)).process(
            delivery(steps, envelope(), headers)
        )
        headers = dict(steps.copies[-1].headers)
    assert (headers["hk_version_waits"], headers["hk_attempt"]) == (8, 2)
    assert {copy.exchange.rpartition(".")[0] for copy in steps.copies} == {"hk.delay"}
    await processor(steps, handle).process(delivery(steps, envelope(), headers))
    dead = steps.copies[-1].headers
    assert (dead["hk_reason"], dead["hk_attempt"], runs) == ("order_missing", 2, 9)
    assert dead["hk_error_type"] == "hybridkit.errors.NotYetError"


async def test_an_event_that_came_too_early_gives_its_claim_back(steps: Steps) -> None:
    """Another replica may run it after the wait."""
    guard = FakeGuard(steps)
    early = failing(NotYetError("not there"))
    await processor(steps, early, guard=guard).process(delivery(steps, envelope()))
    assert steps.log == ["finish RELEASED", f"copy to {steps.copies[0].exchange}", "ack 7"]
    assert steps.copies[0].exchange.startswith("hk.delay.")


def test_the_waits_in_front_of_a_key_grow_and_end(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as long as all before it, up to 300 s; together they are a quarter of an hour."""
    seconds = 0.0
    first = delivery(steps, envelope())
    monkeypatch.setattr(first, "age_seconds", lambda: seconds)
    waits: list[float] = []
    while wait := first.next_wait_in_order(5.0, waits_for="order_missing"):
        waits.append(wait.seconds)
        seconds += wait.seconds
    assert waits == [5, 5, 10, 20, 40, 80, 160, 300, 295]
    assert sum(waits) == 915


async def test_an_event_that_came_too_early_waits_in_front_of_its_key(steps: Steps) -> None:
    """In order nothing of its key overtakes it, and there is no copy."""
    keyed = KeyedBacklog()
    early = delivery(steps, envelope())
    early.read()
    keyed.put(early)
    assert await keyed.get() is early
    failure = failing(NotYetError("not there"))
    await processor(steps, failure, keyed=keyed).process(early)
    assert (steps.log, early.key, len(keyed)) == ([], "1", 1)


async def test_a_message_that_went_well_is_worth_a_line_for_debugging_only(
    steps: Steps, logs: list[MutableMapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the level is off, not even the event is built."""
    quiet = processor(steps, succeed)
    monkeypatch.setattr(quiet, "_logs_all", False)
    await processor(steps, succeed).process(delivery(steps, envelope()))
    await quiet.process(delivery(steps, envelope()))
    assert [(line["event"], line["log_level"]) for line in logs] == [("message settled", "debug")]


async def test_a_span_is_in_the_producers_trace_and_linked(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something records; of the headers nothing is decoded otherwise."""
    spans: list[tuple[str, Any]] = []

    def span(name: str, **options: Any) -> AbstractContextManager[None]:
        spans.append((name, options))
        return nullcontext()

    monkeypatch.setattr(execution_module, "is_tracing", lambda: True)
    monkeypatch.setattr(telemetry_module, "span", span)
    headers = {"traceparent": "00-1-2-3", "number": 5}
    await processor(steps, succeed).process(delivery(steps, envelope(), headers))
    [(name, options)] = spans
    assert name == f"process hk.events:processor.happened:{QUEUE}"
    assert options["linked"] == options["parent"] == {"traceparent": "00-1-2-3"}
    assert options["attributes"]["messaging.destination.name"] == f"hk.events:processor.happened:{QUEUE}"


def test_reprs_say_where(steps: Steps) -> None:
    """The queue is in the reprs of processor, runner and delivery."""
    whole = processor(steps, succeed)
    shown: Sequence[object] = [whole, whole._runner, delivery(steps, b"")]
    assert all(QUEUE in repr(each) for each in shown)
