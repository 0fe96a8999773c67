"""The pipeline's decisions, with a transport that follows a script and a clock that sleeping moves."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._transports._base import Response
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    ConflictError,
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    InProgressError,
    MisuseError,
    NotFoundError,
    OutcomeUnknownError,
    ResponseError,
    UnavailableError,
)
from hybridkit.observability import render_metrics
from hybridkit.retry import Retry
from hybridkit.testing._isolation import unique_name
from tests.helpers.scripted_transport import (
    BARE_WRITE,
    CUT,
    OK,
    READ,
    REFUSED,
    WRITE,
    Step,
    Wire,
    failure,
    problem,
)

# ── retries ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_read_is_tried_three_times_with_full_jitter() -> None:
    """The error is the last attempt's with a note of their number, and each attempt says how many came before."""
    refused = UnavailableError("nobody listens")
    wire = Wire(refused)
    error = await failure(wire.pipeline(), READ)
    assert error is refused
    assert error.__notes__ == ["given up after 3 attempts"]
    assert wire.slept == [0.025, 0.05]
    assert [request.headers["x-retry-count"] for request in wire.requests] == ["0", "1", "2"]


async def test_a_503_and_then_a_200_is_a_success() -> None:
    """The caller notices nothing of a first attempt that was refused for a moment."""
    wire = Wire(problem(UnavailableError("starting")), OK)
    assert await wire.pipeline().run(READ) is OK


async def test_a_keyed_write_is_repeated_with_its_key() -> None:
    """After a lost answer the same key lets the service answer again."""
    wire = Wire(CUT, problem(InProgressError("still running")), OK)
    assert await wire.pipeline().run(WRITE) is OK
    assert [request.headers["idempotency-key"] for request in wire.requests] == ['"k-1"'] * 3
    assert len({request.headers["x-request-id"] for request in wire.requests}) == 1


async def test_a_write_without_a_key_is_only_repeated_when_it_was_never_sent() -> None:
    """A refused connection is tried again, a lost answer is not."""
    wire = Wire(REFUSED, CUT)
    error = await failure(wire.pipeline(), BARE_WRITE)
    assert error is CUT
    assert len(wire.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        problem(NotFoundError("gone")),
        problem(ConflictError("deadlock"), retryable=False),
        problem(NotFoundError("gone"), retryable=True),
        Response(status=500, headers={}, body=b"<html>"),
        ResponseError("too large", response_status=200),
    ],
)
async def test_what_cannot_get_better_is_not_repeated(answer: Step) -> None:
    """Refusals and garbage end the call with the first attempt."""
    wire = Wire(answer)
    await failure(wire.pipeline(), READ)
    assert len(wire.requests) == 1


async def test_retry_after_is_honoured() -> None:
    """The next attempt comes after the time that the service says, plus jitter."""
    wire = Wire(problem(UnavailableError("busy", retry_after_seconds=1.0)), OK)
    await wire.pipeline().run(READ)
    assert wire.slept == [1.025]


async def test_a_retry_after_beyond_the_deadline_is_told_to_the_caller() -> None:
    """The call ends at once instead of waiting in vain."""
    wire = Wire(problem(UnavailableError("busy", retry_after_seconds=60.0)), OK)
    error = await failure(wire.pipeline(), READ)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_seconds == 60
    assert wire.slept == []


async def test_no_attempt_that_cannot_end_in_time() -> None:
    """With 1.1 s left no attempt is made at a service whose answers take 1.9 s."""
    wire = Wire(OK)
    pipeline = wire.pipeline()
    wire.then(wire.later(1.9))
    for _ in range(50):
        await pipeline.run(READ)
    wire.requests.clear()
    wire.then(wire.later(1.9, problem(UnavailableError("busy"))), OK)
    assert isinstance(await failure(pipeline, READ), UnavailableError)
    assert len(wire.requests) == 1


async def test_a_dead_service_sees_a_fifth_more_calls() -> None:
    """A thousand failing calls cost at most two hundred retries, plus ten, without any help of the breaker."""
    wire = Wire(problem(ConflictError("deadlock")))
    pipeline = wire.pipeline()
    for _ in range(1000):
        await failure(pipeline, READ)
    assert len(wire.requests) <= 1000 * 1.2 + 10


async def test_a_policy_that_would_pause_gives_up() -> None:
    """An error that pauses a consumer ends a single call."""
    policy = ClientPolicy(retry=Retry.immediate(attempts=3).pause_on(UnavailableError))
    wire = Wire(REFUSED)
    await failure(wire.pipeline(policy), READ)
    assert len(wire.requests) == 1


# ── honest errors ────────────────────────────────────────────────────────────────────────────────


async def test_a_lost_answer_to_a_read_is_only_unavailable() -> None:
    """A read changes nothing, so its outcome can't be unknown."""
    error = await failure(Wire(CUT).pipeline(), READ)
    assert type(error) is UnavailableError
    assert error.__cause__ is CUT


async def test_a_lost_answer_to_a_write_stays_unknown() -> None:
    """A later refusal doesn't hide that the first attempt may have done it."""
    error = await failure(Wire(CUT, REFUSED).pipeline(), WRITE)
    assert type(error) is OutcomeUnknownError
    assert error.__cause__ is REFUSED


async def test_a_passed_deadline_hides_no_doubt() -> None:
    """After a lost answer a second attempt that was too late says nothing of the first."""
    wire = Wire(CUT, problem(DeadlinePassedError("too late to begin"), retryable=False))
    error = await failure(wire.pipeline(), WRITE)
    assert type(error) is DeadlineExceededError
    assert "an earlier attempt may have been carried out" in str(error)


async def test_a_definite_answer_ends_the_doubt() -> None:
    """A refusal under the same key means that no earlier attempt was carried out."""
    error = await failure(Wire(CUT, problem(NotFoundError("gone"))).pipeline(), WRITE)
    assert type(error) is NotFoundError


async def test_what_a_transport_should_not_raise_passes_through() -> None:
    """An exception that is a bug is neither counted, nor repeated, nor hidden."""
    wire = Wire(KeyError("bug"))
    pipeline = wire.pipeline()
    for _ in range(30):
        with pytest.raises(KeyError):
            await pipeline.run(READ)
    assert "closed" in repr(pipeline)


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────


async def test_the_context_travels_with_the_call() -> None:
    """Request id, user and calling service are headers of the request, and the URL is below the base URL."""
    wire = Wire(OK)
    context = RequestContext(request_id="req-1", user_id="user-1", claim=Claim("a:b:c"))
    with bind(context):
        await wire.pipeline().run(WRITE)
    request = wire.requests[0]
    assert request.url == "http://users:8001/v1/users"
    assert request.headers["x-request-id"] == "req-1"
    assert request.headers["x-user-id"] == "user-1"
    assert request.headers["x-service-name"] == "api_service"
    assert request.headers["accept-encoding"] == "identity"
    assert str(request) == "POST http://users:8001/v1/users"


async def test_the_trace_travels_with_the_call() -> None:
    """The W3C header of the active span is among the headers."""
    from opentelemetry import trace

    span = trace.NonRecordingSpan(
        trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    wire = Wire(OK)
    with trace.use_span(span):
        await wire.pipeline().run(READ)
    assert wire.requests[0].headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


async def test_a_key_that_cannot_be_a_header_is_refused() -> None:
    """A line break in an idempotency key never reaches the headers."""
    with pytest.raises(HybridkitError):
        await Wire(OK).pipeline().run(replace(WRITE, key="a\nb"))


async def test_misuse_is_not_repeated() -> None:
    """What the transport refuses to send at all is sent once."""
    wire = Wire(MisuseError("a header that can't be sent"))
    assert isinstance(await failure(wire.pipeline(), READ), MisuseError)
    assert len(wire.requests) == 1


async def test_every_attempt_asks_for_its_authorization() -> None:
    """A second attempt has a new token, as the first may have run out."""
    wire = Wire(REFUSED, OK)
    await wire.pipeline().run(READ)
    assert [request.headers["authorization"] for request in wire.requests] == ["Bearer 0", "Bearer 1"]


async def test_other_peoples_services_are_told_nothing_of_ours() -> None:
    """Neither caller, user, request, trace nor deadline is among the headers."""
    wire = Wire(OK)
    pipeline = Pipeline(
        wire,
        base_url="http://weather",
        target="weather",
        service="api_service",
        policy=ClientPolicy(),
        internal=False,
    )
    with bind(RequestContext(user_id="user-1").within(60)):
        await pipeline.run(READ)
    assert wire.requests[0].headers == {"accept": "application/json", "accept-encoding": "identity"}


async def test_what_is_idempotent_by_itself_needs_no_key() -> None:
    """A PUT that is declared idempotent is repeated after a lost answer."""
    wire = Wire(CUT, OK)
    assert await wire.pipeline().run(replace(BARE_WRITE, method="PUT", idempotent=True)) is OK


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


def sample(name: str, **labels: str) -> float:
    """That metric as a scrape shows it."""
    body, _ = render_metrics()
    lines = [line for line in body.decode().splitlines() if line.startswith(name)]
    for family in text_string_to_metric_families("\n".join(lines)):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return one.value
    raise AssertionError(name)


async def test_attempts_and_retries_are_counted() -> None:
    """Each attempt is counted by its outcome, and the gauges are back at zero."""
    wire = Wire(problem(UnavailableError("busy")), OK)
    target = unique_name()
    await wire.pipeline(target=target).run(READ)
    name = "hybridkit_http_client_duration_seconds_count"
    assert sample(name, target=target, method="GET", outcome="UNAVAILABLE") == 1
    assert sample(name, target=target, method="GET", outcome="success") == 1
    assert sample("hybridkit_http_client_retries_total", target=target) == 1
    assert sample("hybridkit_http_client_in_flight_requests", target=target) == 0
    assert sample("hybridkit_http_client_queued_requests", target=target) == 0


async def test_the_breakers_state_is_a_metric() -> None:
    """The gauge is 0 while closed, 1 half open, 2 open."""
    wire = Wire(REFUSED)
    target = unique_name()
    pipeline = wire.pipeline(ClientPolicy(retry=Retry.immediate(attempts=1)), target=target)
    states = [sample("hybridkit_http_client_breaker_state", target=target)]
    for _ in range(20):
        await failure(pipeline, READ)
    states.append(sample("hybridkit_http_client_breaker_state", target=target))
    assert pipeline.breaker_state == "open"
    wire.now += 5

    def look() -> Response:
        states.append(sample("hybridkit_http_client_breaker_state", target=target))
        return OK

    wire.then(look)
    await pipeline.run(READ)
    states.append(sample("hybridkit_http_client_breaker_state", target=target))
    assert states == [0, 2, 1, 0]
