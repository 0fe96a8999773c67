"""The pipeline's limits: deadlines, bulkhead, breaker, and streams within them."""

import asyncio
import time

import pytest

from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    NotFoundError,
    UnavailableError,
)
from hybridkit.retry import Retry
from tests.helpers.scripted_transport import (
    BARE_WRITE,
    OK,
    READ,
    REFUSED,
    Silence,
    Wire,
    failure,
    problem,
)

# ── deadlines ────────────────────────────────────────────────────────────────────────────────────


async def test_a_silent_service_holds_nobody_beyond_the_deadline() -> None:
    """The first attempt takes two thirds of the time, so another replica could still answer."""
    wire = Silence()
    started = time.monotonic()
    error = await failure(wire.pipeline(), READ)
    assert isinstance(error, DeadlinePassedError)
    assert 0.14 < time.monotonic() - started < 5
    first, *others = (request.timeout_seconds for request in wire.requests)
    assert first == pytest.approx(0.1)
    assert all(seconds <= 0.051 for seconds in others)


async def test_a_single_attempt_may_take_all_the_time() -> None:
    """A write without a key has the whole time for its only attempt."""
    wire = Silence()
    error = await failure(wire.pipeline(), BARE_WRITE)
    assert isinstance(error, DeadlineExceededError)
    assert len(wire.requests) == 1
    assert wire.requests[0].timeout_seconds > 0.1


async def test_the_contexts_deadline_is_never_exceeded() -> None:
    """Attempts get less time than the policy allows where the context has less."""
    wire = Silence()
    with bind(RequestContext().within(0.03)):
        error = await failure(wire.pipeline(ClientPolicy()), READ)
    assert isinstance(error, DeadlinePassedError)
    assert all(request.timeout_seconds <= 0.02 for request in wire.requests)


async def test_after_the_deadline_nothing_is_sent() -> None:
    """A call whose time is over before it begins reaches no transport."""
    wire = Wire(OK)
    with bind(RequestContext(deadline=time.monotonic() - 1)):
        error = await failure(wire.pipeline(), READ)
    assert isinstance(error, DeadlinePassedError)
    assert "was not sent" in str(error)
    assert wire.requests == []


async def test_the_service_is_told_a_little_less_time_than_there_is() -> None:
    """The service's own 504, which says that nothing was done, still arrives."""
    wire = Wire(OK)
    await wire.pipeline().run(READ)
    request = wire.requests[0]
    assert request.timeout_seconds == pytest.approx(2.0)
    assert request.headers["x-request-timeout"] == "1.900"
    assert request.connect_timeout_seconds == 0.3


async def test_a_cancelled_call_gives_its_permit_back() -> None:
    """The permit of a cancelled call is free, and its attempt is waited for on closing."""
    wire = Silence()
    pipeline = wire.pipeline(ClientPolicy(max_in_flight=1, max_queued=0))
    task = asyncio.create_task(pipeline.run(READ))
    await wire.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(DeadlinePassedError):
        await pipeline.run_once(READ, timeout_seconds=0.01)
    await pipeline.aclose()
    assert "waiting=0" in repr(pipeline)


# ── bulkhead and breaker ─────────────────────────────────────────────────────────────────────────


async def test_a_full_house_refuses_without_sending() -> None:
    """A call that finds neither permit nor queue is refused before the transport."""
    wire = Silence()
    pipeline = wire.pipeline(ClientPolicy(max_in_flight=1, max_queued=0))
    first = asyncio.create_task(pipeline.run(READ))
    await wire.asked.wait()
    error = await failure(pipeline, READ)
    assert type(error) is UnavailableError
    assert len(wire.requests) == 1
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_pause_holds_no_permit() -> None:
    """While one call waits for its second attempt, another one passes."""
    wire = Wire(problem(UnavailableError("busy")), OK)
    pipeline = wire.pipeline(ClientPolicy(max_in_flight=1, max_queued=0))
    passed: list[object] = []

    async def meanwhile(_: float) -> None:
        passed.append(await pipeline.run(READ))

    pipeline._sleep = meanwhile
    assert await pipeline.run(READ) is OK
    assert passed == [OK]


async def test_the_breaker_stops_calls_to_a_dead_service() -> None:
    """After twenty failures nothing is sent until the first probe, whose success lets calls through again."""
    wire = Wire(REFUSED)
    pipeline = wire.pipeline(ClientPolicy(retry=Retry.immediate(attempts=1)))
    for _ in range(20):
        await failure(pipeline, READ)
    error = await failure(pipeline, READ)
    assert "held back" in str(error)
    assert len(wire.requests) == 20
    wire.now += 5
    wire.then(OK)
    assert await pipeline.run(READ) is OK


async def test_short_deadlines_of_callers_open_no_breaker() -> None:
    """Attempts that had less than their usual time say nothing about the service."""
    wire = Silence()
    pipeline = wire.pipeline(ClientPolicy())
    for _ in range(25):
        with bind(RequestContext().within(0.001)):
            await failure(pipeline, READ)
    assert "closed" in repr(pipeline)


async def test_a_hung_service_opens_the_breaker() -> None:
    """Timeouts of attempts that had their usual time count as failures."""
    wire = Silence()
    policy = ClientPolicy(read_timeout_seconds=0.01, retry=Retry.immediate(attempts=1))
    pipeline = wire.pipeline(policy)
    calls = 0
    while "closed" in repr(pipeline) and calls < 100:
        await failure(pipeline, READ)
        calls += 1
    assert 20 <= calls < 100


async def test_a_probe_passes_by_the_breaker() -> None:
    """The readiness probe reaches the service while the breaker holds calls back."""
    wire = Wire(REFUSED)
    pipeline = wire.pipeline(ClientPolicy(retry=Retry.immediate(attempts=1)))
    for _ in range(20):
        await failure(pipeline, READ)
    wire.then(OK)
    assert await pipeline.run_once(READ, timeout_seconds=1) is OK


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_opened_like_any_call() -> None:
    """A stream is repeated until it opens, holds a permit until its block ends, and tells the service no deadline."""
    wire = Wire(problem(UnavailableError("busy")), OK)
    pipeline = wire.pipeline(ClientPolicy(max_in_flight=1, max_queued=0))
    async with pipeline.stream(READ) as answer:
        assert [chunk async for chunk in answer.chunks] == [b"{", b"}"]
        assert "calls are under way" in str(await failure(pipeline, READ))
    assert wire.open == 0
    assert all("x-request-timeout" not in request.headers for request in wire.requests)
    await pipeline.run(READ)


async def test_a_stream_that_does_not_open_says_why() -> None:
    """A refusal is raised on entering, and its connection is closed."""
    wire = Wire(problem(NotFoundError("gone")))
    with pytest.raises(NotFoundError):
        async with wire.pipeline().stream(READ):
            raise AssertionError
    assert wire.open == 0


async def test_a_stream_has_the_contexts_deadline() -> None:
    """The service is told all the time that there is, as the body takes longer than the first byte."""
    wire = Wire(OK)
    wire.now = time.monotonic()
    with bind(RequestContext().within(60)):
        async with wire.pipeline().stream(READ) as answer:
            wire.now += 100
            with pytest.raises(DeadlinePassedError, match="no further part"):
                await anext(answer.chunks)
    assert float(wire.requests[0].headers["x-request-timeout"]) == pytest.approx(60, abs=1)


async def test_a_stream_that_is_left_early_is_closed() -> None:
    """Leaving the block closes the connection with the rest of the body unread."""
    wire = Wire(OK)
    async with wire.pipeline().stream(READ) as answer:
        await anext(answer.chunks)
    assert wire.open == 0
