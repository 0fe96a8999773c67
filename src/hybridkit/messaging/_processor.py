"""From a delivery to its acknowledgement: read it, run its handler once, and move a copy where a failure leads.

The order is what loses nothing: the effect before the acknowledgement; a copy confirmed before its original is
acknowledged; a dead letter confirmed before the guard remembers that the event has failed. A crash between two of these
steps is a duplicate, and the guard and the derived keys make one effect of it.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, assert_never

from structlog.contextvars import bound_contextvars

from hybridkit.codec import decode_object, now
from hybridkit.context import REQUEST_ID_HEADER, USER_ID_HEADER, Claim, RequestContext, bind, current
from hybridkit.envelope import EventEnvelope, decode_envelope
from hybridkit.errors import (
    ClaimLostError,
    DeadlineExceededError,
    HybridkitError,
    KeyReusedError,
    PayloadError,
    RejectedError,
    UnavailableError,
    UnknownEventTypeError,
    UnknownEventVersionError,
    UnroutableError,
)
from hybridkit.idempotency import (
    Acquired,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
    claim_key,
)
from hybridkit.messaging._bounded import Backoff, is_cancelled
from hybridkit.messaging._delivery import Dead, Delivery, Done, Later, RetryHere, Verdict
from hybridkit.messaging._guard import Guard
from hybridkit.messaging._handlers import Handler, Handlers
from hybridkit.messaging._headers import VERSION_WAITS
from hybridkit.messaging._writer import Outgoing
from hybridkit.observability import get_logger, metrics, span
from hybridkit.retry import GiveUp, Pause, RetryAfter

__all__ = ["LOCAL_SECONDS", "Copies", "Processor"]

LOCAL_SECONDS: Final = 0.8 * 1800
"""How long a message may be in our hands: 80 % of RabbitMQ's consumer timeout, which closes the channel.

https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
"""
SHORTEST_DELAY_SECONDS: Final = 1.0
"""Below it a retry waits here; the delay levels count whole seconds."""
PAUSE_SECONDS: Final = 15.0
HOLDER_WAIT_SECONDS: Final = 5.0
LONGEST_HOLDER_WAIT_SECONDS: Final = 60.0
VERSION_WAIT_SECONDS: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0)
"""The waits for a deployment that knows a newer version: a quarter of an hour in all, then it is a dead letter."""

FINISHED: Final = frozenset({"done", "duplicate"})
"""The outcomes after which an event's work needn't be done again. A copy that moved is the same event, and goes on."""

_log = get_logger(__name__)


class Copies(Protocol):
    """Where copies of messages are published; `RobustPublisher` has it."""

    async def forward(self, message: Outgoing) -> bool:
        """Publish a message as it is; raises where no queue takes it."""
        ...

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again."""
        ...


@dataclass(slots=True, eq=False)
class _Work:
    """A delivery that could be read and has a handler."""

    delivery: Delivery
    envelope: EventEnvelope[Any]
    handler: Handler
    failures: int


class Processor:
    """Settles deliveries of one queue.

    Args:
        queue: the consumer's name.
        handlers: by type.
        publisher: for copies.
        providers: for the handlers' parameters.
        guard: lets each event run once.
        timeout_seconds: for one run of a handler.
    """

    def __init__(
        self,
        queue: str,
        handlers: Handlers,
        *,
        publisher: Copies,
        providers: Mapping[Any, object],
        guard: Guard | None,
        timeout_seconds: float,
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._publisher = publisher
        self._providers = providers
        self._guard = guard
        self._timeout_seconds = timeout_seconds

    def __repr__(self) -> str:
        return f"Processor({self._queue!r}, guarded={self._guard is not None})"

    async def process(self, delivery: Delivery) -> None:
        """See one delivery through to its acknowledgement, or to the end of its channel."""
        try:
            envelope = decode_envelope(delivery.body)
        except PayloadError as error:
            context = RequestContext.from_amqp_headers(delivery.headers)
            with bind(context), bound_contextvars(consumer=self._queue):
                await self._settle(delivery, _unreadable(delivery, error), "unknown")
            return
        event_type, event_id = envelope.event_type, str(envelope.event_id)
        with (
            bind(_context_of(envelope)),
            bound_contextvars(consumer=self._queue, event_type=event_type, event_id=event_id),
            span(f"{event_type} process", kind="consumer", linked=_texts(delivery.headers)),
        ):
            age_seconds = (now() - envelope.timestamp).total_seconds()
            metrics.event_age.labels(self._queue).observe(max(age_seconds, 0.0))
            known = delivery.identify(envelope.service, envelope.event_id)
            verdict = Done("duplicate") if known else await self._judge(delivery, envelope)
            await self._settle(delivery, verdict, event_type)

    async def _judge(self, delivery: Delivery, envelope: EventEnvelope[Any]) -> Verdict:
        """Run the handler, here as often as its policy says so."""
        handler = self._handlers.find(envelope.data)
        if handler is None:
            what = f"{envelope.event_type!r} version {envelope.version}"
            unknown = UnknownEventTypeError(
                f"{self._queue} has no handler for {what}", event_type=envelope.event_type
            )
            return Dead("unknown_type", unknown, delivery.failures)
        work = _Work(delivery, envelope, handler, delivery.failures)
        while True:
            if delivery.age_seconds() + self._timeout_seconds > LOCAL_SECONDS:
                return Later(SHORTEST_DELAY_SECONDS, headers=delivery.failed(work.failures))
            verdict = await self._once(work)
            if not isinstance(verdict, RetryHere):
                return verdict
            work.failures += 1
            await asyncio.sleep(verdict.seconds)

    async def _once(self, work: _Work) -> Verdict | RetryHere:
        """One run, if the guard lets it."""
        identity = (self._queue, work.envelope.service, work.envelope.event_id)
        # Steps and ids derive from a claim without the generation: what a redriven event writes again is the same.
        claim = Claim(claim_key(*identity))
        if self._guard is None:
            return await self._run(work, claim)
        key = claim_key(*identity, work.delivery.generation)
        payload = _payload(work.delivery.body)
        try:
            answer = await self._guard.begin(key, payload, wait_seconds=HOLDER_WAIT_SECONDS)
        except UnavailableError as error:
            return Later(_jittered(PAUSE_SECONDS), error)
        match answer:
            case Acquired():
                return await self._held(self._guard, answer, work, claim)
            case Completed() | Failed():
                return Done("duplicate")
            case InProgress(retry_after_ms):
                seconds = min(retry_after_ms / 1000, LONGEST_HOLDER_WAIT_SECONDS)
                return Later(max(seconds, SHORTEST_DELAY_SECONDS))
            case Mismatch():
                reused = KeyReusedError(f"the event {work.envelope.event_id} came before with other data")
                return Dead("mismatch", reused, work.failures)
            case Exhausted():
                crashed = RejectedError(f"too many processes died on the event {work.envelope.event_id}")
                return Dead("takeovers", crashed, work.failures)
            case _:
                assert_never(answer)

    async def _held(self, guard: Guard, acquired: Acquired, work: _Work, claim: Claim) -> Verdict | RetryHere:
        """One run by the holder of the claim, and the record of how it ended."""
        try:
            async with guard.hold(acquired):
                verdict = await self._run(work, claim)
                if isinstance(verdict, Dead):
                    # Confirmed before the guard knows of it, and while the claim is still ours.
                    buried = await self._bury(work.delivery, verdict, work.envelope.event_type)
                    verdict = Done("dead_lettered" if buried else "requeued")
        except ClaimLostError as error:
            return Later(HOLDER_WAIT_SECONDS, error)
        except asyncio.CancelledError:
            await guard.finish(acquired, Outcome.RELEASED)
            raise
        finish = await guard.finish(acquired, _outcome_of(verdict))
        if finish is not Finish.OK:
            _log.warning("idempotency outcome not recorded", finish=finish.value)
        return verdict

    async def _run(self, work: _Work, claim: Claim) -> Verdict | RetryHere:
        """One run of the handler, and what follows from it."""
        context = replace(current(), claim=claim).within(self._timeout_seconds)
        began = time.perf_counter()
        limit = asyncio.timeout(self._timeout_seconds)
        try:
            async with limit:
                with bind(context):
                    await work.handler.run(work.envelope, self._providers)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            return self._failed(work, error)  # a library that gave up without being asked
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is for its retry policy to judge
            if limit.expired():
                late = DeadlineExceededError(f"the handler took longer than {self._timeout_seconds:g} s")
                return self._failed(work, late)
            return self._failed(work, error)
        finally:
            metrics.handler_duration.labels(self._queue, work.envelope.event_type).observe(
                time.perf_counter() - began
            )
        return Done()

    def _failed(self, work: _Work, error: BaseException) -> Verdict | RetryHere:
        attempt = work.failures + 1
        jitter = random.random()  # noqa: S311 - spreads retries, protects nothing
        decision = work.handler.retry.decide(error, attempt=attempt, jitter=jitter)
        match decision:
            case GiveUp(reason):
                return Dead(reason, error, attempt)
            case Pause():
                return Later(_jittered(PAUSE_SECONDS), error)
            case RetryAfter(seconds):
                _log.warning("handler failed", attempt=attempt, retry_seconds=seconds, exc_info=error)
                spent_seconds = work.delivery.age_seconds() + seconds + self._timeout_seconds
                if seconds < SHORTEST_DELAY_SECONDS and spent_seconds < LOCAL_SECONDS:
                    return RetryHere(seconds)
                return Later(seconds, error, work.delivery.failed(attempt))
            case _:
                assert_never(decision)

    async def _settle(self, delivery: Delivery, verdict: Verdict, event_type: str) -> None:
        """Move a copy where it has to go, then acknowledge."""
        match verdict:
            case Dead():
                outcome = "dead_lettered" if await self._bury(delivery, verdict, event_type) else "requeued"
            case Later():
                outcome = "retried" if await self._put_off(delivery, verdict, event_type) else "requeued"
            case Done(outcome):
                pass
            case _:
                assert_never(verdict)
        delivery.ack(finished=outcome in FINISHED)
        _log.info("message settled", outcome=outcome)
        metrics.events_consumed.labels(self._queue, event_type, outcome).inc()

    async def _bury(self, delivery: Delivery, dead: Dead, event_type: str) -> bool:
        _log.error("message dead-lettered", reason=dead.reason, attempts=dead.failures, exc_info=dead.error)
        metrics.events_dead_lettered.labels(self._queue, event_type, dead.reason).inc()
        return await self._move(delivery, delivery.dead_letter(dead))

    async def _put_off(self, delivery: Delivery, later: Later, event_type: str) -> bool:
        error = type(later.error).__name__ if later.error else "waiting"
        _log.info("message put off", delay_seconds=later.seconds, error=error)
        metrics.events_retried.labels(self._queue, event_type, error).inc()
        return await self._move(delivery, delivery.delayed(later))

    async def _move(self, delivery: Delivery, message: Outgoing) -> bool:
        """Publish until the broker has the copy; False when the original is no longer ours and comes again anyway."""
        backoff = Backoff(first_seconds=0.5)
        while delivery.is_ours:
            try:
                return await self._publisher.forward(message)
            except UnroutableError as error:
                self._publisher.renew_topology(reason=str(error))
            except HybridkitError as error:
                _log.warning("copy not published yet", exchange=message.exchange, error=str(error))
            await asyncio.sleep(backoff.next_seconds())
        return False


def _outcome_of(verdict: Verdict | RetryHere) -> Outcome:
    """What the guard is told about a run."""
    match verdict:
        case Done("done"):
            return Outcome.COMPLETED
        case Done("dead_lettered"):
            return Outcome.FAILED
        case _:
            return Outcome.RELEASED


def _unreadable(delivery: Delivery, error: PayloadError) -> Verdict:
    """What becomes of a message that this process can't read."""
    match error:
        case UnknownEventVersionError(newer=True) if delivery.version_waits < len(VERSION_WAIT_SECONDS):
            waits = delivery.version_waits
            return Later(VERSION_WAIT_SECONDS[waits], error, {VERSION_WAITS: waits + 1})
        case UnknownEventVersionError():
            reason = "unknown_version"
        case UnknownEventTypeError():
            reason = "unknown_type"
        case _:
            reason = "malformed"
    return Dead(reason, error, delivery.failures)


def _context_of(envelope: EventEnvelope[Any]) -> RequestContext:
    """Who asked, as the envelope says; ids outside the syntax are not taken over."""
    headers = {REQUEST_ID_HEADER: envelope.request_id, USER_ID_HEADER: envelope.user_id}
    return RequestContext.from_amqp_headers(headers)


def _payload(body: bytes) -> list[Any]:
    """What makes it the same event: as it was sent, because upcasters change with the next deployment."""
    wire = decode_object(body)
    return [wire.get("event_type"), wire.get("version", 1), wire.get("data")]


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - spreads retries, protects nothing
