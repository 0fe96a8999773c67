"""From a delivery to its acknowledgement: read it, run its handler once, and decide where a failure leads.

The order is what loses nothing: the effect before the acknowledgement; a copy confirmed before its original is
acknowledged; a dead letter confirmed before the guard remembers that the event has failed. A crash between two of these
steps is a duplicate, and the guard and the derived keys make one effect of it.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, assert_never

from structlog.contextvars import bind_contextvars, bound_contextvars, reset_contextvars

from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    ClaimLostError,
    DeadlineExceededError,
    KeyReusedError,
    PayloadError,
    RejectedError,
    UnavailableError,
    UnknownEventTypeError,
    UnknownEventVersionError,
)
from hybridkit.events import EventEnvelope
from hybridkit.idempotency import (
    Acquired,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
)
from hybridkit.messaging._amqp._headers import VERSION_WAITS
from hybridkit.messaging._consuming._apart import run_apart
from hybridkit.messaging._consuming._delivery import Dead, Delivery, Done, Later, Verdict
from hybridkit.messaging._consuming._guard import Guard
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._moves import FINISHED, Copies, Moves
from hybridkit.messaging._consuming._order import ByKey
from hybridkit.messaging._consuming._parking import ParkedKeys
from hybridkit.messaging._consuming._pause import Gate
from hybridkit.messaging._consuming._stalls import GRACE_SECONDS, Stalls
from hybridkit.messaging._consuming._time_limits import Limits
from hybridkit.messaging._consuming._turns import Turns
from hybridkit.messaging._consuming._work import (
    Again,
    Hold,
    Meters,
    Work,
    claim_prefix,
    consumer_span,
    context_of,
    outcome_of,
    payload_of,
)
from hybridkit.messaging._publishing._writer import Outgoing
from hybridkit.observability import get_logger, metrics, printable
from hybridkit.retry import GiveUp, Pause, Retry, RetryAfter

__all__ = ["LOCAL_SECONDS", "Processor"]

LOCAL_SECONDS: Final = 0.8 * 1800
"""How long a message may be in our hands: 80 % of RabbitMQ's consumer timeout, which closes the channel.

https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
"""
MAX_REMEMBERED: Final = 10_000
SHORTEST_DELAY_SECONDS: Final = 1.0
"""Below it a retry waits here; the delay levels count whole seconds."""
HOLDER_WAIT_SECONDS: Final = 5.0
LONGEST_HOLDER_WAIT_SECONDS: Final = 60.0
VERSION_WAIT_SECONDS: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0)
"""The waits for a deployment that knows a newer version: a quarter of an hour in all, then it is a dead letter."""

MOST_TAKEOVERS_BESIDE: Final = 1
"""What was taken over more often runs alone. Once can be anything: a deployment, a machine that is gone."""

FAULTS: Final = Retry.exponential(attempts=5)
"""For what fails in here, and not in a handler; and where a policy of the application's own fails."""

_DONE: Final = Done()


_log = get_logger(__name__)


class Processor:
    """Settles deliveries of one queue.

    Args:
        queue: the consumer's name.
        handlers: by type.
        publisher: for copies.
        providers: for the handlers' parameters.
        guard: lets each event run once.
        timeout_seconds: for one run of a handler.
        gate: shut when a handler or the guard says that a dependency is down.
        lines: where messages wait in order, if they have to; the delay levels keep none.
        parked: keys that stop when one of their messages is given up.
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
        gate: Gate,
        lines: ByKey | None = None,
        parked: ParkedKeys | None = None,
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._publisher = publisher
        self._providers = providers
        self._guard = guard
        self._timeout_seconds = timeout_seconds
        self._limits = Limits(seconds=timeout_seconds)
        self._gate = gate
        self._lines = lines
        self._parked = parked
        self._failures: dict[str, int] = {}  # of messages in order, which have no copy to count them
        self._age = metrics.event_age.labels(queue)
        self._meters: dict[str, Meters] = {}
        self.stalls = Stalls()
        self._moves = Moves(queue, publisher, stalls=self.stalls, parked=parked)
        self._logs_all = _log.is_enabled_for(logging.DEBUG)

    @property
    def overdue(self) -> int:
        """How many handlers don't end, although their time is up and they were cancelled."""
        return self._limits.overdue(seconds=GRACE_SECONDS)

    def __repr__(self) -> str:
        return f"Processor({self._queue!r}, guarded={self._guard is not None})"

    async def process(self, delivery: Delivery) -> None:
        """See one delivery through to its acknowledgement, or to the end of its channel."""
        try:
            envelope = delivery.read()
        except PayloadError as error:
            context = RequestContext.from_amqp_headers(delivery.headers)
            with bind(context), bound_contextvars(consumer=self._queue), consumer_span(delivery):
                await self._conclude(delivery, self._unreadable(delivery, error), "unknown")
            return
        event_id = str(envelope.event_id)
        context = context_of(envelope)
        names = {"consumer": self._queue, "event_type": envelope.event_type, "event_id": event_id}
        if (original_id := envelope.original_id) != event_id:
            names["original_id"] = printable(original_id)
        tokens = bind_contextvars(**names)
        try:
            with bind(context), consumer_span(delivery, event_id):
                await self._process(delivery, envelope, context, event_id)
        finally:
            reset_contextvars(**tokens)

    async def survive(self, delivery: Delivery, error: BaseException) -> None:
        """Count what nobody has foreseen as a failed attempt: its cause may pass, and if it stays that has an end."""
        _log.error("message not processed", consumer=self._queue, exc_info=error)
        if delivery.is_settled:
            return
        delivery.faults += 1
        failures = delivery.failures + delivery.faults
        decision = FAULTS.decide(error, attempt=failures, jitter=1.0)
        verdict: Verdict = Dead("unexpected", error, failures)
        if isinstance(decision, RetryAfter):
            verdict = Later(max(decision.seconds, SHORTEST_DELAY_SECONDS), error, delivery.failed(failures))
        try:
            await self._conclude(delivery, verdict, "unknown")
        except Exception as failure:  # noqa: BLE001 - the broker itself has to move it then
            _log.error("message rejected without its reason", consumer=self._queue, exc_info=failure)
            delivery.reject()

    async def _process(
        self, delivery: Delivery, envelope: EventEnvelope[Any], context: RequestContext, event_id: str
    ) -> None:
        """The same, for what could be read."""
        self._age.observe(max(time.time() - envelope.timestamp.timestamp(), 0.0))
        if delivery.identify(envelope.service, envelope.event_id):
            return await self._moves.settle(delivery, Done("duplicate"), envelope.event_type)
        handler = self._handlers.find(envelope.data)
        if handler is None:
            return await self._moves.settle(
                delivery, self._unhandled(delivery, envelope), envelope.event_type
            )
        key = claim_prefix(self._queue, envelope.service) + event_id
        meters = self._meters_of(envelope.event_type)
        work = Work(delivery, envelope, handler, key, context, meters, delivery.failures)
        if self._failures:
            work.failures = self._failures.pop(work.claim, work.failures)
        verdict = await (
            self._judge(work) if self._parked is None else self._judge_parked(work, self._parked)
        )
        if verdict is _DONE:
            delivery.ack(finished=True)
            meters.done.inc()
            if self._logs_all:
                _log.debug("message settled", outcome="done")
        elif verdict is not None:
            if self._lines is not None and isinstance(verdict, Later):
                self._remember(work)
            await self._conclude(delivery, verdict, envelope.event_type)
        return None

    async def _judge_parked(self, work: Work, parked: ParkedKeys) -> Verdict | None:
        """The same where keys are parked: what comes after a dead letter follows it, until the last of them is done."""
        key, event_id = work.delivery.key or "", str(work.envelope.event_id)
        if parked.holds(key, work.delivery.generation):
            behind = RejectedError("an event with the same key was given up before, and is not redriven yet")
            return Dead("key_parked", behind, work.failures)
        verdict = await self._judge(work)
        done = isinstance(verdict, Done) and verdict.outcome in FINISHED
        if done and parked.is_last(key, event_id) and not parked.holds(key, work.delivery.generation):
            _log.info("key freed", event_id=event_id)
            await self._moves.write(work.delivery, key, parked.free(key), parked)
        return verdict

    async def _judge(self, work: Work) -> Verdict | None:
        """Run the handler, here as often as its policy says so; None when everything stops first."""
        while True:
            if self._left_seconds(work.delivery) < 0:
                return Later(SHORTEST_DELAY_SECONDS, headers=work.delivery.failed(work.failures))
            verdict = await (self._once(work) if self._gate.is_open else self._after_pause(work))
            match verdict:
                case Hold(error):
                    self._gate.shut(error)
                case Again(seconds, error, failures):
                    work.failures = failures
                    if not self._waits_here(work, seconds):
                        return Later(seconds, error, work.delivery.failed(failures))
                    await asyncio.sleep(seconds)
                case _:
                    return verdict

    def _waits_here(self, work: Work, seconds: float) -> bool:
        """Whether the next run is near enough to wait for it in a handler's place."""
        soon = seconds < min(SHORTEST_DELAY_SECONDS, self._left_seconds(work.delivery))
        return soon and self._lines is None and not self._gate.is_stopped

    def _remember(self, work: Work) -> None:
        """Count the failures of a message that may go back to its queue as it is."""
        if work.failures:
            self._failures[work.claim] = work.failures
        if len(self._failures) > MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    async def _after_pause(self, work: Work) -> Verdict | Again | Hold | None:
        """One run when the gate is open again, or the run that finds out whether it can be opened."""
        delivery = work.delivery
        goes_on = await self._gate.turn(
            seconds=self._left_seconds(delivery), is_wanted=lambda: delivery.is_ours
        )
        if not delivery.is_ours:  # it comes again, and is no probe before
            if goes_on:
                self._gate.pass_on()
            return None
        if not goes_on:
            return None if self._gate.is_stopped else Again(SHORTEST_DELAY_SECONDS, None, work.failures)
        if self._gate.is_open:
            return await self._once(work)
        with self._gate.probing():
            verdict = await self._once(work)
            if not isinstance(verdict, Hold):
                self._gate.open()
        return verdict

    def _left_seconds(self, delivery: Delivery) -> float:
        """How long the message can still wait here before its handler has to begin."""
        return LOCAL_SECONDS - self._timeout_seconds - delivery.age_seconds()

    async def _once(self, work: Work) -> Verdict | Again | Hold:
        """One run, if the guard lets it."""
        if self._guard is None:
            return await self._run(work)
        turns = Turns.here()
        if turns.is_open:
            await turns.begin()
        else:
            with self.stalls.trying("a message runs alone, or waits for it, and all others wait"):
                await turns.begin()
        try:
            verdict = await self._claim(self._guard, work, most_takeovers=MOST_TAKEOVERS_BESIDE)
        finally:
            turns.end()
        if verdict is not None:
            return verdict
        _log.warning("message runs alone", reason="processes have died while they had it")
        async with AsyncExitStack() as stack:
            with self.stalls.trying("a message that has to run alone waits for the end of others"):
                is_alone = await stack.enter_async_context(turns.alone(seconds=self._timeout_seconds))
            verdict = await self._claim(self._guard, work) if is_alone else None
        return verdict or Again(HOLDER_WAIT_SECONDS, None, work.failures)

    async def _claim(
        self, guard: Guard, work: Work, *, most_takeovers: float = math.inf
    ) -> Verdict | Again | Hold | None:
        """One run, if the guard lets it; None for one that was taken over more often than that."""
        wait_seconds = HOLDER_WAIT_SECONDS if self._lines is None else 0.0  # in order, it rests outside
        try:
            answer = await guard.begin(work.claim, payload_of(work.delivery), wait_seconds=wait_seconds)
        except UnavailableError as error:
            return Hold(error)
        match answer:
            case Acquired(takeovers=takeovers) if takeovers > most_takeovers:
                await guard.finish(answer, Outcome.RELEASED)
                return None
            case Acquired():
                return await self._held(guard, answer, work)
            case Completed():
                return Done("duplicate")
            case Failed():
                if self._parked is not None:
                    self._parked.outdated()  # who gave it up has parked its key, maybe after it was read here
                return Done("duplicate")
            case InProgress(retry_after_ms):
                longest = LONGEST_HOLDER_WAIT_SECONDS if self._lines is None else SHORTEST_DELAY_SECONDS
                seconds = max(min(retry_after_ms / 1000, longest), SHORTEST_DELAY_SECONDS)
                return Again(seconds, None, work.failures)
            case Mismatch():
                reused = KeyReusedError(f"the event {work.envelope.event_id} came before with other data")
                return Dead("mismatch", reused, work.failures)
            case Exhausted():
                crashed = RejectedError(f"too many processes died on the event {work.envelope.event_id}")
                return Dead("takeovers", crashed, work.failures)
            case _:
                assert_never(answer)

    async def _held(self, guard: Guard, acquired: Acquired, work: Work) -> Verdict | Again | Hold:
        """One run by the holder of the claim, and the record of how it ended."""
        try:
            async with guard.hold(acquired):
                verdict = await self._run(work)
                if isinstance(verdict, Dead):
                    # Confirmed before the guard knows of it, and while the claim is still ours.
                    verdict = Done(await self._moves.bury(work.delivery, verdict, work.envelope.event_type))
        except ClaimLostError as error:
            return Again(HOLDER_WAIT_SECONDS, error, work.failures)
        except (asyncio.CancelledError, Exception):
            await guard.finish(acquired, Outcome.RELEASED)
            raise
        finish = await guard.finish(acquired, outcome_of(verdict))
        if finish is not Finish.OK:
            _log.warning("idempotency outcome not recorded", finish=finish.value)
        return verdict

    async def _run(self, work: Work) -> Verdict | Again | Hold:
        """One run of the handler, and what follows from it."""
        # Steps and ids derive from a claim without the generation: what a redriven event writes again is the same.
        context = RequestContext(
            request_id=work.context.request_id,
            user_id=work.context.user_id,
            deadline=time.monotonic() + self._timeout_seconds,
            claim=Claim(work.key),
        )
        began = time.perf_counter()
        limit = self._limits.one()
        error: BaseException | None
        try:
            with limit, bind(context):
                run = work.handler.run(work.envelope, self._providers)
                error = await run_apart(run, name=f"{self._queue} handler")
        except TimeoutError as expired:  # of the limit: what the handler raises is returned
            error = expired
        finally:
            work.meters.duration.observe(time.perf_counter() - began)
        if error is None:
            return _DONE
        if limit.expired:
            error = DeadlineExceededError(f"the handler took longer than {self._timeout_seconds:g} s")
        return self._failed(work, error)

    def _failed(self, work: Work, error: BaseException) -> Verdict | Again | Hold:
        attempt = work.failures + 1
        jitter = random.random()  # noqa: S311 - spreads retries, protects nothing
        try:
            decision = work.handler.retry.decide(error, attempt=attempt, jitter=jitter)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as broken:  # noqa: BLE001 - a policy, or a class in it, of the application's own
            _log.error("a retry policy failed", exc_info=broken)
            decision = FAULTS.decide(error, attempt=attempt, jitter=jitter)
        match decision:
            case GiveUp(reason):
                return Dead(reason, error, attempt)
            case Pause():
                return Hold(error)
            case RetryAfter(seconds):
                _log.warning("handler failed", attempt=attempt, retry_seconds=seconds, exc_info=error)
                return Again(seconds, error, attempt)
            case _:
                assert_never(decision)

    def _unhandled(self, delivery: Delivery, envelope: EventEnvelope[Any]) -> Dead:
        what = f"{envelope.event_type!r} version {envelope.version}"
        unknown = UnknownEventTypeError(
            f"{self._queue} has no handler for {what}", event_type=envelope.event_type
        )
        return Dead("unknown_type", unknown, delivery.failures)

    async def _conclude(self, delivery: Delivery, verdict: Verdict, event_type: str) -> None:
        """Settle it; or, in order, have it rest in its line instead of a delay level."""
        if self._lines is None or delivery.key is None or not isinstance(verdict, Later):
            await self._moves.settle(delivery, verdict, event_type)
        elif (left_seconds := self._left_seconds(delivery)) < 0:
            _log.warning("messages given back", reason="one waited for as long as the broker allows")
            delivery.give_back()
        elif delivery.is_ours:
            self._moves.count_retry(verdict, event_type)
            self._lines.rest(delivery.key, delivery, min(verdict.seconds, left_seconds))

    async def forward(self, message: Outgoing) -> bool:
        """Publish a message of our own, confirmed."""
        return await self._publisher.forward(message)

    def _unreadable(self, delivery: Delivery, error: PayloadError) -> Verdict:
        """What becomes of a message that this process can't read."""
        match error:
            case UnknownEventVersionError(newer=True) if (wait := self._version_wait(delivery)) is not None:
                seconds, waits = wait
                return Later(seconds, error, {VERSION_WAITS: waits})
            case UnknownEventVersionError():
                reason = "unknown_version"
            case UnknownEventTypeError():
                reason = "unknown_type"
            case _:
                reason = "malformed"
        return Dead(reason, error, delivery.failures)

    def _version_wait(self, delivery: Delivery) -> tuple[float, int] | None:
        """How long to wait for a deployment that knows the version, and how many waits that makes; None for no more."""
        if self._lines is None or delivery.key is None:
            waits = delivery.version_waits
            return (VERSION_WAIT_SECONDS[waits], waits + 1) if waits < len(VERSION_WAIT_SECONDS) else None
        longest = min(sum(VERSION_WAIT_SECONDS), LOCAL_SECONDS - self._timeout_seconds)
        left_seconds = longest - delivery.age_seconds()
        return (left_seconds, 1) if left_seconds > 0 else None

    def _meters_of(self, event_type: str) -> Meters:
        found = self._meters.get(event_type)
        if found is None:  # a type that has a handler, so there are few
            found = self._meters[event_type] = Meters(self._queue, event_type)
        return found
