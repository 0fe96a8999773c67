"""The way of a call: as many attempts as it takes, within one deadline.

`total deadline → retry → budget → breaker → bulkhead → attempt timeout → transport`

Waiting for a permit of the bulkhead counts against the deadline; a pause between attempts holds no permit. Only what
can be repeated is repeated: reads, keyed writes, and whatever was never sent.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final

from hybridkit.clients._pipeline._attempt import CallPlan, Intent, late, lost_answer, refused
from hybridkit.clients._pipeline._breaker import Breaker, BreakerState
from hybridkit.clients._pipeline._bulkhead import Bulkhead
from hybridkit.clients._pipeline._deadline import Deadlines
from hybridkit.clients._pipeline._failures import Failure, failure_from
from hybridkit.clients._pipeline._headers import Headers
from hybridkit.clients._pipeline._policy import ClientPolicy
from hybridkit.clients._pipeline._retry_budget import RetryBudget
from hybridkit.clients._pipeline._telemetry import Telemetry
from hybridkit.clients._transports._base import (
    EndsWhenCancelled,
    Request,
    Response,
    StreamedResponse,
    Transport,
    read_body,
    refuse_compressed,
)
from hybridkit.clients._transports._heads import NOT_MODIFIED
from hybridkit.context import current
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    OutcomeUnknownError,
    ResponseError,
    TemporaryError,
    UnavailableError,
)
from hybridkit.observability import is_tracing
from hybridkit.retry import RetryAfter

ATTEMPT_SHARE: Final = 2 / 3
"""The share of the call's time that one attempt has, so that a replica that hangs leaves time for another."""
ANSWER_SHARE: Final = 0.95
"""The share of the attempt's time that the service is told: it can still answer that its time ran out."""
ENOUGH_SHARE: Final = 0.9
"""The share of an attempt's usual time from which on its timeout counts against the target."""
SMOOTHING: Final = 0.1
"""The weight of the latest answer in the typical duration of one."""


class Pipeline:
    """Sends requests to one target; it doesn't own the transport.

    Args:
        transport: sends single attempts.
        base_url: scheme, host, port and a path before `/v1`, without a slash at the end.
        target: the name of the target in errors and metrics.
        service: the name of the calling service.
        policy: the limits.
        authorization: gives the value of the `Authorization` header; called for each attempt.
        internal: whether the target is one of our own services, which are told who asks, in which request and trace,
            and for how long.
        clock: gives monotonic seconds, by the same clock as the context's deadline.
        sleep: waits between attempts.
        jitter: gives a number from 0 up to 1.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        base_url: str,
        target: str,
        service: str,
        policy: ClientPolicy,
        authorization: Callable[[], str] | None = None,
        internal: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._base_url = base_url
        self._target = target
        self._policy = policy
        self._headers = Headers(service=service, internal=internal, authorization=authorization)
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._budget = RetryBudget()
        self._telemetry = Telemetry(target)
        self._breaker = Breaker(target, clock=clock, on_change=self._telemetry.breaker)
        self._bulkhead = Bulkhead(
            target,
            permits=policy.max_in_flight,
            queue=policy.max_queued,
            on_queue=self._telemetry.queued.inc,
        )
        self._deadlines = Deadlines(in_place=isinstance(transport, EndsWhenCancelled))
        self._typical_seconds = 0.0

    def __repr__(self) -> str:
        return f"Pipeline({self._target!r}, {self._breaker!r}, {self._budget!r}, {self._bulkhead!r})"

    @property
    def breaker_state(self) -> BreakerState:
        """`closed` while calls go through, `open` while they are held back, `half_open` if the next one is a probe."""
        return self._breaker.state

    async def run(self, intent: Intent) -> Response:
        """Return the successful answer to a request.

        Raises:
            DeadlinePassedError: the time ran out before anything was sent, or during a read.
            DeadlineExceededError: the time ran out after a write was sent.
            OutcomeUnknownError: a write was sent, and nobody can tell what became of it.
            UnavailableError: the target doesn't answer, the breaker holds calls back, or too many calls wait for it.
            ResponseError: the target answers outside the contract.
            HybridkitError: the target refuses; the class is the one that its problem document names.
        """
        if not is_tracing():
            return await self._repeat(self._begin(intent), self._attempt)
        with self._telemetry.span(intent.method) as span:
            response = await self._repeat(self._begin(intent), self._attempt)
            self._telemetry.answered(response, span)
            return response

    @asynccontextmanager
    async def stream(self, intent: Intent) -> AsyncGenerator[StreamedResponse]:
        """Open the stream of a successful answer's body; it holds a permit inside the `async with` block.

        Until the headers are there it is a call like any other: repeated where possible, within the usual time. Then
        the body may be of any size and take any time in all, as long as each chunk comes within the policy's
        `read_timeout_seconds`; the time that the reader takes between two chunks doesn't count. The deadline of the
        context, where there is one, ends all of it, and only then is the service told a deadline.

        Where the body is cut, the chunks raise `UnavailableError` if the request is safe, else `OutcomeUnknownError`;
        where one comes too late, `DeadlinePassedError` or `DeadlineExceededError`.

        Raises:
            HybridkitError: as `run`.
        """
        call = self._begin(intent, streamed=True)
        async with AsyncExitStack() as stack:
            answer = await self._repeat(call, partial(self._open, stack))
            async with aclosing(self._chunks(call, answer.chunks)) as chunks:
                yield StreamedResponse(status=answer.status, headers=answer.headers, chunks=chunks)

    async def run_once(self, intent: Intent, *, timeout_seconds: float) -> Response:
        """Return the answer to a single attempt past breaker and bulkhead: to see how the target is right now."""
        call = self._begin(intent, only_seconds=timeout_seconds)
        outcome = await self._send_once(call, 1, self._whole)
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    async def aclose(self) -> None:
        """Wait up to a second for attempts that were given up and have not ended."""
        await self._deadlines.aclose()

    async def _repeat[T](self, call: CallPlan, send: Callable[[CallPlan, int], Awaitable[T | Failure]]) -> T:
        self._budget.deposit()
        in_doubt = False
        attempt = 1
        while isinstance(outcome := await send(call, attempt), Failure):
            pause_seconds = self._pause(outcome, call, attempt)
            if pause_seconds is None:
                raise self._final_error(outcome.error, attempt, in_doubt=in_doubt)
            # A later refusal says nothing of an earlier attempt whose answer was lost.
            in_doubt = in_doubt or (
                outcome.sent and not call.intent.safe and isinstance(outcome.error, OutcomeUnknownError)
            )
            await self._sleep(pause_seconds)
            self._telemetry.retries.inc()
            attempt += 1
        return outcome

    def _begin(
        self, intent: Intent, *, only_seconds: float | None = None, streamed: bool = False
    ) -> CallPlan:
        policy = self._policy
        context = current()
        repeatable = intent.safe or intent.key is not None or intent.idempotent
        if only_seconds is None:
            usual = policy.read_timeout_seconds if intent.safe else policy.write_timeout_seconds
            share = ATTEMPT_SHARE if repeatable and policy.retry.attempts > 1 else 1.0
        else:
            usual, share = only_seconds, 1.0
        remaining = context.remaining_seconds()
        total = usual if remaining is None else min(usual, remaining)
        return CallPlan(
            intent=intent,
            name=f"{intent.method} {self._target}{intent.path.partition('?')[0]}",
            headers=self._headers.of_call(intent, context),
            deadline=self._clock() + total,
            attempt_seconds=total * share,
            enough_seconds=usual * share * ENOUGH_SHARE,
            repeatable=repeatable,
            streamed=streamed,
            body_deadline=context.deadline,
        )

    async def _attempt(self, call: CallPlan, attempt: int) -> Response | Failure:
        try:
            ticket = self._breaker.enter()
        except UnavailableError as refusal:
            return refused(refusal)
        failed: bool | None = (
            None  # and so it stays where the caller cancels: that tells nothing about the target
        )
        try:
            async with self._bulkhead.permit(timeout_seconds=self._left(call)):
                outcome = await self._send_once(call, attempt, self._whole)
            failed = outcome.counts if isinstance(outcome, Failure) else False
        except (UnavailableError, DeadlinePassedError) as refusal:  # no permit: what is sent never raises
            return refused(refusal)
        else:
            return outcome
        finally:
            self._breaker.leave(ticket, failed=failed)

    async def _open(self, stack: AsyncExitStack, call: CallPlan, attempt: int) -> StreamedResponse | Failure:
        """As `_attempt`, but leave the body to be read; the stack takes over its permit and connection."""
        try:
            ticket = self._breaker.enter()
        except UnavailableError as refusal:
            return refused(refusal)
        failed: bool | None = None
        try:
            async with AsyncExitStack() as kept:
                await kept.enter_async_context(self._bulkhead.permit(timeout_seconds=self._left(call)))
                outcome = await self._send_once(call, attempt, partial(self._head, kept))
                if isinstance(outcome, StreamedResponse):  # else permit and connection are given back here
                    await stack.enter_async_context(kept.pop_all())
            failed = outcome.counts if isinstance(outcome, Failure) else False
        except (UnavailableError, DeadlinePassedError) as refusal:
            return refused(refusal)
        else:
            return outcome
        finally:
            self._breaker.leave(ticket, failed=failed)

    async def _whole(self, call: CallPlan, request: Request) -> Response | Failure:
        response = await self._transport.send(request)
        if response.status == NOT_MODIFIED and "if-none-match" in call.intent.headers:
            return response
        return failure_from(response, what=call.name, safe=call.intent.safe) or response

    async def _head(
        self, kept: AsyncExitStack, call: CallPlan, request: Request
    ) -> StreamedResponse | Failure:
        """Return a success with its body left to be read, and a failure of anything else."""
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        async with AsyncExitStack() as opening:
            answer = await opening.enter_async_context(self._transport.stream(request))
            refuse_compressed(request, status=answer.status, headers=answer.headers)
            if not 200 <= answer.status < 300:
                body = await read_body(
                    answer.chunks, request=request, status=answer.status, headers=answer.headers
                )
                whole = Response(status=answer.status, headers=answer.headers, body=body)
                failure = failure_from(whole, what=call.name, safe=call.intent.safe)
                if failure is not None:
                    return failure
            if task is not None and task.cancelling() > cancellations:
                raise asyncio.CancelledError  # given up meanwhile: nobody would close it
            kept.push_async_exit(opening.pop_all())
            return answer

    async def _chunks(self, call: CallPlan, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        while True:
            seconds = self._policy.read_timeout_seconds
            if call.body_deadline is not None:
                seconds = min(seconds, call.body_deadline - self._clock())
            try:
                chunk = await self._deadlines.run(_next(chunks), timeout_seconds=seconds)
            except TimeoutError:
                raise late(call, f"{call.name}: no further part of the body within {seconds:.3f} s") from None
            except OutcomeUnknownError as cut:
                self._breaker.note_failure()
                raise lost_answer(call, cut) from cut
            if chunk is None:
                return
            yield chunk

    async def _send_once[T](
        self,
        call: CallPlan,
        attempt: int,
        send: Callable[[CallPlan, Request], Coroutine[Any, Any, T | Failure]],
    ) -> T | Failure:
        """Send one attempt; expected errors come back as values, so that the breaker sees them all."""
        seconds = min(self._left(call), call.attempt_seconds)
        if seconds <= 0:
            passed = DeadlinePassedError(f"{call.name}: the deadline had passed; this attempt was not sent")
            return Failure(passed, retryable=False, counts=None, sent=False)
        started = self._clock()
        self._telemetry.in_flight.inc()
        try:
            outcome = await self._outcome(
                call, send(call, self._request(call, attempt, seconds)), seconds=seconds
            )
        finally:
            self._telemetry.in_flight.dec()
        taken_seconds = self._clock() - started
        if isinstance(outcome, Failure):
            result = outcome.error.code
        else:
            result = "success"
            self._typical_seconds += (taken_seconds - self._typical_seconds) * SMOOTHING
        self._telemetry.attempt(call.intent.method, result, taken_seconds)
        return outcome

    async def _outcome[T](
        self, call: CallPlan, sending: Coroutine[Any, Any, T | Failure], *, seconds: float
    ) -> T | Failure:
        try:
            return await self._deadlines.run(sending, timeout_seconds=seconds)
        except TimeoutError:
            error = late(call, f"{call.name}: no whole answer within {seconds:.3f} s")
            return Failure(error, retryable=True, counts=True if seconds >= call.enough_seconds else None)
        except UnavailableError as unsent:
            return Failure(unsent, retryable=True, counts=True, sent=False)
        except OutcomeUnknownError as lost:
            return Failure(lost_answer(call, lost), retryable=True, counts=True)
        except ResponseError as garbage:
            return Failure(garbage, retryable=False, counts=False)

    def _request(self, call: CallPlan, attempt: int, seconds: float) -> Request:
        told_seconds: float | None = seconds * ANSWER_SHARE
        if call.streamed:  # the body may take longer than the attempt
            told_seconds = None if call.body_deadline is None else call.body_deadline - self._clock()
        return Request(
            method=call.intent.method,
            url=self._base_url + call.intent.path,
            headers=self._headers.of_attempt(call, timeout_seconds=told_seconds, retries=attempt - 1),
            body=call.intent.body,
            timeout_seconds=seconds,
            connect_timeout_seconds=min(self._policy.connect_timeout_seconds, seconds),
            max_response_bytes=self._policy.max_response_bytes,
        )

    def _pause(self, failure: Failure, call: CallPlan, attempt: int) -> float | None:
        """Return the seconds to wait before the next attempt, None for no further attempt."""
        if not failure.retryable or (failure.sent and not call.repeatable):
            return None
        decision = self._policy.retry.decide(failure.error, attempt=attempt, jitter=self._jitter())
        if not isinstance(decision, RetryAfter):
            return None
        # An attempt that can't end in time would only be load; the budget pays for none of those.
        if decision.seconds + self._typical_seconds >= self._left(call) or not self._budget.withdraw():
            return None
        return decision.seconds

    def _final_error(self, error: HybridkitError, attempts: int, *, in_doubt: bool) -> HybridkitError:
        """Return the last attempt's error, unless it would hide that an earlier attempt may have been carried out."""
        if in_doubt and isinstance(error, TemporaryError):
            kind = DeadlineExceededError if isinstance(error, DeadlinePassedError) else OutcomeUnknownError
            doubt = kind(f"an earlier attempt may have been carried out; the last one: {error}")
            doubt.__cause__ = error
            error = doubt
        if attempts > 1:
            error.add_note(f"given up after {attempts} attempts")
        return error

    def _left(self, call: CallPlan) -> float:
        return call.deadline - self._clock()


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
