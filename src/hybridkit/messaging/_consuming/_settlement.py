"""Settlement: publish the copy that a verdict asks for, then acknowledge the delivery.

The order is what loses nothing: a copy is confirmed before its original is acknowledged, and the mark that parks a key
before the dead letter. A crash between two of these steps leaves a duplicate, never a gap.
"""

import asyncio
from typing import Final, Protocol, assert_never

from hybridkit.errors import (
    HybridkitError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    TemporaryError,
    UnroutableError,
)
from hybridkit.messaging._amqp._headers import lean_headers
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._stall_detector import StallDetector
from hybridkit.messaging._consuming._verdict import DeadLettered, RetryLater, Settled, Verdict
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.observability import fail_span, get_logger, metrics, printable, report_error
from hybridkit.retry import UNLIMITED, Retry

REPUBLISHING: Final = Retry.exponential(first_seconds=0.5, cap_seconds=10.0, attempts=UNLIMITED)

_log = get_logger(__name__)


class CopyPublisher(Protocol):
    """Publishes copies of messages; the publisher's `Writer` is one."""

    async def forward(self, message: OutgoingMessage) -> None:
        """Publish a message as it is; raises where no queue takes it."""
        ...

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again."""
        ...


class Settlement:
    """Settles the deliveries of one queue.

    Args:
        queue: the consumer's name.
        publisher: for copies.
        stalls: learns for how long copies can't be published.
        timeout_seconds: the time that a run of a handler may take.
        keyed: where the queue is in order, the backlog in which a retry waits instead of in a delay level.
        parked: keys that stop when one of their messages is given up.
    """

    def __init__(
        self,
        queue: str,
        publisher: CopyPublisher,
        *,
        stalls: StallDetector,
        timeout_seconds: float,
        keyed: KeyedBacklog | None = None,
        parked: ParkedKeys | None = None,
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._stalls = stalls
        self._timeout_seconds = timeout_seconds
        self._keyed = keyed
        self._parked = parked

    def __repr__(self) -> str:
        return f"Settlement({self._queue!r})"

    async def settle(self, delivery: Delivery, verdict: Verdict, event_type: str) -> None:
        """Publish the copy that the verdict asks for, acknowledge the delivery, and count how it ended.

        Args:
            delivery: the message.
            verdict: what follows from its run.
            event_type: for the metrics.
        """
        match verdict:
            case Settled():
                settled = verdict
            case DeadLettered():
                settled = await self.dead_letter(delivery, verdict, event_type)
            case RetryLater():
                if self._keyed is not None and delivery.key is not None:
                    return self._retry_in_order(self._keyed, delivery.key, delivery, verdict, event_type)
                self._count_retry(verdict, event_type)
                settled = await self._publish(delivery, delivery.delayed(verdict)) or Settled.RETRIED
            case _:
                assert_never(verdict)
        # After the copy, also of a rejected or requeued message, where it does nothing: a tag is settled once.
        delivery.ack(finished=settled.is_finished)
        _log.info("message settled", outcome=settled.value)
        metrics.events_consumed.labels(self._queue, event_type, settled.value).inc()
        return None

    async def dead_letter(self, delivery: Delivery, dead: DeadLettered, event_type: str) -> Settled:
        """Publish the copy for the dead letters, and before it the mark that parks its key; acknowledge nothing."""
        _log.error("message dead-lettered", reason=dead.reason, attempts=dead.failures, exc_info=dead.error)
        report_error(dead.error)
        metrics.events_dead_lettered.labels(self._queue, event_type, dead.reason).inc()
        if self._parked is not None and delivery.key is not None and delivery.event is not None:
            _, event_id, generation = delivery.event
            mark = self._parked.park(delivery.key, str(event_id), generation)
            # The other way round, a crash in between would let the key's successors run.
            unpublished = await self._publish_mark(delivery, delivery.key, mark, self._parked)
            if unpublished is not None:
                return unpublished
        # First, and confirmed: the other way round, a crash in between would leave a saga that waits for its timeout.
        report = delivery.failure_report(dead)
        untold = None if report is None else await self._tell(delivery, report)
        return untold or await self._publish(delivery, delivery.dead_letter(dead)) or Settled.DEAD_LETTERED

    async def _tell(self, delivery: Delivery, report: OutgoingMessage) -> Settled | None:
        """Publish the news of a command's end until the broker has it, or the saga can't be told.

        Returns:
            None when the delivery goes on; otherwise it is requeued with its channel.
        """
        pauses = REPUBLISHING.pauses()
        while delivery.is_ours:
            try:
                with self._stalls.attempt(f"news for {report.routing_key} is not published"):
                    await self._publisher.forward(report)
            except (TemporaryError, OutcomeUnknownError) as error:
                _log.warning("news of a command's end not published yet", error=str(error))
            except (
                HybridkitError
            ) as error:  # its queue is gone, or the broker refuses it: nobody waits for it
                _log.warning(
                    "no saga is told of its command's end", queue=report.routing_key, error=str(error)
                )
                return None
            else:
                return None
            await asyncio.sleep(next(pauses))
        return Settled.REQUEUED

    async def free(self, delivery: Delivery, key: str, parked: ParkedKeys) -> None:
        """Free a parked key, here and in the log of parked keys."""
        await self._publish_mark(delivery, key, parked.free(key), parked)

    async def _publish_mark(
        self, delivery: Delivery, key: str, mark: OutgoingMessage, parked: ParkedKeys
    ) -> Settled | None:
        try:
            return await self._publish(delivery, mark)
        finally:
            # Also without a confirm: the message comes again then, and makes the mark anew.
            parked.written(key)

    def _retry_in_order(
        self, keyed: KeyedBacklog, key: str, delivery: Delivery, later: RetryLater, event_type: str
    ) -> None:
        """Keep a message that has to wait, in front of those of its key; in a delay level they would overtake it."""
        if (left_seconds := delivery.left_seconds(self._timeout_seconds)) < 0:
            _log.warning("messages given back", reason="one waited for as long as the broker allows")
            delivery.give_back()
        elif delivery.is_ours:
            self._count_retry(later, event_type)
            keyed.retry_later(key, delivery, min(later.seconds, left_seconds))

    def _count_retry(self, later: RetryLater, event_type: str) -> None:
        error = printable(type(later.error).__name__) if later.error else later.waits_for
        if later.error:
            fail_span(later.error)
        _log.info("message put off", delay_seconds=later.seconds, error=error)
        metrics.events_retried.labels(self._queue, event_type, error).inc()

    async def _publish(self, delivery: Delivery, message: OutgoingMessage) -> Settled | None:
        """Publish a message until the broker has it, or can't have it.

        Returns:
            None when the broker has it; otherwise the end of the delivery: rejected, or requeued with its channel.
        """
        pauses = REPUBLISHING.pauses()
        while (
            delivery.is_ours
        ):  # once its channel has closed, the original comes again, and a copy would be a twin
            try:
                with self._stalls.attempt(
                    f"a copy for {message.exchange or message.routing_key} is not published"
                ):
                    await self._publisher.forward(message)
            except UnroutableError as error:
                if message.exchange:
                    self._publisher.renew_topology(reason=str(error))
                else:  # a queue of the consumer's own is gone; subscribing declares it
                    delivery.give_back()
            except PayloadTooLargeError as error:
                lean = message._replace(headers=lean_headers(message.headers))
                if lean == message:
                    return _reject(delivery, error)
                _log.warning("copy published without most of its headers", error=str(error))
                message = lean
                continue
            except (TemporaryError, OutcomeUnknownError) as error:
                _log.warning("copy not published yet", exchange=message.exchange, error=str(error))
            except HybridkitError as error:
                return _reject(delivery, error)
            else:
                return None
            await asyncio.sleep(next(pauses))
        return Settled.REQUEUED


def _reject(delivery: Delivery, error: HybridkitError) -> Settled:
    _log.error("message rejected without its reason", error=printable(error))
    delivery.reject()
    return Settled.REJECTED
