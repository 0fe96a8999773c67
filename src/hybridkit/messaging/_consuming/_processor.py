"""From a delivery to its acknowledgement, by phase: read it, run its handler, settle it.

`Runner` runs the handler and gives a verdict, and `Settlement` does what the verdict asks for. The order is what loses
nothing: the effect before the acknowledgement; a copy confirmed before its original is acknowledged; a dead letter
confirmed before the guard remembers that the event has failed. A crash between two of these steps is a duplicate, and
the guard and the derived keys make one effect of it.
"""

import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from structlog.contextvars import bind_contextvars, bound_contextvars

from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    PayloadError,
    RejectedError,
    UnknownEventTypeError,
    UnknownEventVersionError,
)
from hybridkit.events import EventEnvelope
from hybridkit.ids import uuid_octets
from hybridkit.messaging._amqp._headers import VERSION_WAITS
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._execution import (
    Execution,
    Meters,
    claim_prefix,
    consumer_span,
    context_of,
)
from hybridkit.messaging._consuming._guarded_runner import Guard
from hybridkit.messaging._consuming._handler_runner import FAULTS, Runner
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._settlement import CopyPublisher, Settlement
from hybridkit.messaging._consuming._stall_detector import StallDetector
from hybridkit.messaging._consuming._verdict import (
    SHORTEST_DELAY_SECONDS,
    DeadLettered,
    RetryLater,
    Settled,
    Verdict,
)
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.observability import get_logger, metrics, printable
from hybridkit.retry import RetryAfter

MAX_REMEMBERED: Final = 10_000
_DONE: Final = Settled.DONE


def _log_variable(name: str) -> ContextVar[Any]:
    """Return the variable in which structlog keeps a name that all log lines get: set by it, they cost half as much."""
    token = bind_contextvars(**{name: ""})[name]
    token.var.reset(token)
    return token.var


_CONSUMER: Final = _log_variable("consumer")
_EVENT_TYPE: Final = _log_variable("event_type")
_EVENT_ID: Final = _log_variable("event_id")

_log = get_logger(__name__)


class Processor:
    """Sees the deliveries of one queue through to their end.

    Args:
        queue: the consumer's name.
        handlers: by type.
        publisher: for copies.
        providers: for the handlers' parameters.
        guard: lets each event run once.
        timeout_seconds: the time that a run of a handler may take.
        gate: shut when a handler or the guard says that a dependency is down.
        keyed: the backlog in which messages wait in order, if they have to; the delay levels keep no order.
        parked: keys that stop when one of their messages is given up.
    """

    def __init__(
        self,
        queue: str,
        handlers: Handlers,
        *,
        publisher: CopyPublisher,
        providers: Mapping[Any, object],
        guard: Guard | None,
        timeout_seconds: float,
        gate: PauseGate,
        keyed: KeyedBacklog | None = None,
        parked: ParkedKeys | None = None,
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._publisher = publisher
        self._is_guarded = guard is not None
        self._timeout_seconds = timeout_seconds
        self._in_order = keyed is not None
        self._parked = parked
        self._failures: dict[str, int] = {}  # of messages in order, which have no copy to count them
        self._age = metrics.event_age.labels(queue)
        self._meters: dict[str, Meters] = {}
        self.stalls = StallDetector()
        self._settlement = Settlement(
            queue,
            publisher,
            stalls=self.stalls,
            timeout_seconds=timeout_seconds,
            keyed=keyed,
            parked=parked,
        )
        self._runner = Runner(
            queue,
            providers=providers,
            timeout_seconds=timeout_seconds,
            gate=gate,
            guard=guard,
            settlement=self._settlement,
            stalls=self.stalls,
            in_order=self._in_order,
            parked=parked,
        )
        self._logs_all = _log.is_enabled_for(logging.DEBUG)

    @property
    def overdue(self) -> int:
        """The number of handlers that don't end, although their time is up and they were cancelled."""
        return self._runner.overdue

    def __repr__(self) -> str:
        return f"Processor({self._queue!r}, guarded={self._is_guarded})"

    async def process(self, delivery: Delivery) -> None:
        """See one delivery through to its acknowledgement, or to the end of its channel.

        A cancelled delivery is left unsettled: `Subscription` gives it back.
        """
        try:
            envelope = delivery.read()
        except PayloadError as error:
            context = RequestContext.from_amqp_headers(delivery.headers)
            with bind(context), bound_contextvars(consumer=self._queue), consumer_span(delivery):
                await self._settlement.settle(delivery, self._unreadable(delivery, error), "unknown")
            return
        event_id = uuid_octets(envelope.event_id).decode()
        context = context_of(envelope)
        tokens = (
            _CONSUMER.set(self._queue),
            _EVENT_TYPE.set(envelope.event_type),
            _EVENT_ID.set(event_id),
        )
        try:
            with bind(context), consumer_span(delivery, event_id):
                if delivery.members is None and (original_id := envelope.original_id) != event_id:
                    with bound_contextvars(original_id=printable(original_id)):
                        await self._process(delivery, envelope, context, event_id)
                else:
                    await self._process(delivery, envelope, context, event_id)
        finally:
            for token in tokens:
                token.var.reset(token)

    async def settle_unexpected(self, delivery: Delivery, error: BaseException) -> None:
        """Count an error that nothing else has caught as a failed attempt: its cause may pass, and attempts end."""
        _log.error("message not processed", consumer=self._queue, exc_info=error)
        if delivery.is_settled:
            return
        delivery.faults += 1
        failures = delivery.failures + delivery.faults
        decision = FAULTS.decide(error, attempt=failures, jitter=1.0)
        verdict: Verdict = DeadLettered("unexpected", error, failures)
        if isinstance(decision, RetryAfter):
            seconds = max(decision.seconds, SHORTEST_DELAY_SECONDS)
            verdict = RetryLater(seconds, error, delivery.failed(failures))
        try:
            await self._settlement.settle(delivery, verdict, "unknown")
        except Exception as failure:  # noqa: BLE001 - the broker itself has to move it then
            _log.error("message rejected without its reason", consumer=self._queue, exc_info=failure)
            delivery.reject()

    async def forward(self, message: OutgoingMessage) -> None:
        """Publish a message of the consumer's own, confirmed."""
        await self._publisher.forward(message)

    async def _process(
        self, delivery: Delivery, envelope: EventEnvelope[Any], context: RequestContext, event_id: str
    ) -> None:
        """See a delivery through that could be read."""
        self._age.observe(max(time.time() - envelope.timestamp.timestamp(), 0.0))
        event_type = envelope.event_type
        if delivery.identify(envelope.service, envelope.event_id):
            return await self._settlement.settle(delivery, Settled.DUPLICATE, event_type)
        handler = self._handlers.find(envelope.data)
        if handler is None:
            return await self._settlement.settle(delivery, self._unhandled(delivery, envelope), event_type)
        key = claim_prefix(self._queue, envelope.service) + event_id
        meters = self._meters_of(event_type)
        execution = Execution(delivery, envelope, handler, key, context, meters, delivery.failures)
        if self._failures:
            execution.failures = self._failures.pop(execution.claim, execution.failures)
        verdict = await (
            self._runner.run(execution)
            if self._parked is None
            else self._run_unless_parked(execution, self._parked)
        )
        if verdict is _DONE:  # what nearly all messages end with: no copy, so nothing to wait for
            delivery.ack(finished=True)
            meters.done.inc()
            if self._logs_all:
                _log.debug("message settled", outcome="done")
        elif verdict is not None:
            if self._in_order and isinstance(verdict, RetryLater):
                self._remember(execution)
            await self._settlement.settle(delivery, verdict, event_type)
        return None

    async def _run_unless_parked(self, execution: Execution, parked: ParkedKeys) -> Verdict | None:
        """Run a message whose key may be parked: it then follows the dead letter, until the last of these is done."""
        delivery, event_id = execution.delivery, str(execution.envelope.event_id)
        key = delivery.key or ""
        if parked.holds(key, delivery.generation):
            behind = RejectedError("an event with the same key was given up before, and is not redriven yet")
            return DeadLettered("key_parked", behind, execution.failures)
        verdict = await self._runner.run(execution)
        is_finished = isinstance(verdict, Settled) and verdict.is_finished
        # Asked again after the run: the log of parked keys may have been read meanwhile, with a newer mark in it.
        if is_finished and parked.is_last(key, event_id) and not parked.holds(key, delivery.generation):
            _log.info("key freed", event_id=event_id)
            await self._settlement.free(delivery, key, parked)
        return verdict

    def _remember(self, execution: Execution) -> None:
        """Count the failures of a message that may go back to its queue as it is."""
        if execution.failures:
            self._failures[execution.claim] = execution.failures
        if len(self._failures) > MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def _unhandled(self, delivery: Delivery, envelope: EventEnvelope[Any]) -> DeadLettered:
        event = f"{envelope.event_type!r} version {envelope.version}"
        unknown = UnknownEventTypeError(
            f"{self._queue} has no handler for {event}", event_type=envelope.event_type
        )
        return DeadLettered("unknown_type", unknown, delivery.failures)

    def _unreadable(self, delivery: Delivery, error: PayloadError) -> Verdict:
        """Give the verdict on a message that this process can't read."""
        match error:
            case UnknownEventVersionError(newer=True) if wait := self._wait_for_version(delivery, error):
                return wait
            case UnknownEventVersionError():
                reason = "unknown_version"
            case UnknownEventTypeError():
                reason = "unknown_type"
            case _:
                reason = "malformed"
        return DeadLettered(reason, error, delivery.failures)

    def _wait_for_version(self, delivery: Delivery, error: PayloadError) -> RetryLater | None:
        """Return the next wait for a deployment that knows the version; None to give up.

        In order the message waits once for all of that time, in front of its key, as it would be another process that
        knows the version; otherwise in one delay level after another.
        """
        if not self._in_order or delivery.key is None:
            wait = delivery.next_wait()
            return wait and RetryLater(wait.seconds, error, wait.headers)
        left_seconds = delivery.left_wait_seconds(self._timeout_seconds)
        return RetryLater(left_seconds, error, {VERSION_WAITS: 1}) if left_seconds > 0 else None

    def _meters_of(self, event_type: str) -> Meters:
        found = self._meters.get(event_type)
        if found is None:  # a type that has a handler, so there are few
            found = self._meters[event_type] = Meters(self._queue, event_type)
        return found
