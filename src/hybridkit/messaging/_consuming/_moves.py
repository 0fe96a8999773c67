"""Where a delivery goes: its copies for later and for the dead letters, and its acknowledgement after them."""

import asyncio
from enum import Enum, auto
from typing import Final, Protocol, assert_never

from hybridkit.errors import (
    HybridkitError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    TemporaryError,
    UnroutableError,
)
from hybridkit.messaging._amqp._headers import lean_headers
from hybridkit.messaging._amqp._waiting import Backoff
from hybridkit.messaging._consuming._delivery import Dead, Delivery, Done, Later, Verdict
from hybridkit.messaging._consuming._parking import ParkedKeys
from hybridkit.messaging._consuming._stalls import Stalls
from hybridkit.messaging._publishing._writer import Outgoing
from hybridkit.observability import fail_span, get_logger, metrics, printable

__all__ = ["FINISHED", "Copies", "Moves"]

FINISHED: Final = frozenset({"done", "duplicate"})
"""The outcomes after which an event's work needn't be done again. A copy that moved is the same event, and goes on."""


class _Move(Enum):
    """How moving a copy ended."""

    DONE = auto()
    """The broker has it."""

    REJECTED = auto()
    """There can't be one, so the broker moves the message itself, to the dead letters."""

    LOST = auto()
    """The original is no longer ours, and comes again anyway."""


_BURIED: Final = {_Move.DONE: "dead_lettered", _Move.REJECTED: "rejected", _Move.LOST: "requeued"}
_PUT_OFF: Final = {_Move.DONE: "retried", _Move.REJECTED: "rejected", _Move.LOST: "requeued"}

_log = get_logger(__name__)


class Copies(Protocol):
    """Where copies of messages are published; `RobustPublisher` has it."""

    async def forward(self, message: Outgoing) -> bool:
        """Publish a message as it is; raises where no queue takes it."""
        ...

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again."""
        ...


class Moves:
    """Settles the deliveries of one queue.

    Args:
        queue: the consumer's name.
        publisher: for copies.
        stalls: knows how long copies can't be published.
        parked: keys that stop when one of their messages is given up.
    """

    def __init__(
        self, queue: str, publisher: Copies, *, stalls: Stalls, parked: ParkedKeys | None = None
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._stalls = stalls
        self._parked = parked

    def __repr__(self) -> str:
        return f"Moves({self._queue!r})"

    async def settle(self, delivery: Delivery, verdict: Verdict, event_type: str) -> None:
        """Move a copy where it has to go, then acknowledge."""
        match verdict:
            case Dead():
                outcome = await self.bury(delivery, verdict, event_type)
            case Later():
                outcome = _PUT_OFF[await self._put_off(delivery, verdict, event_type)]
            case Done(outcome):
                pass
            case _:
                assert_never(verdict)
        delivery.ack(finished=outcome in FINISHED)
        _log.info("message settled", outcome=outcome)
        metrics.events_consumed.labels(self._queue, event_type, outcome).inc()

    async def bury(self, delivery: Delivery, dead: Dead, event_type: str) -> str:
        """Move a dead letter's copy, and in front of it the mark that parks its key; the outcome for the metrics."""
        _log.error("message dead-lettered", reason=dead.reason, attempts=dead.failures, exc_info=dead.error)
        fail_span(dead.error)
        metrics.events_dead_lettered.labels(self._queue, event_type, dead.reason).inc()
        if self._parked is not None and delivery.key is not None and delivery.event is not None:
            _, event_id, generation = delivery.event
            mark = self._parked.park(delivery.key, str(event_id), generation)
            moved = await self.write(delivery, delivery.key, mark, self._parked)
            if moved is not _Move.DONE:
                return _BURIED[moved]
        return _BURIED[await self._move(delivery, delivery.dead_letter(dead))]

    async def write(self, delivery: Delivery, key: str, mark: Outgoing, parked: ParkedKeys) -> _Move:
        """Have the log of parked keys say it."""
        try:
            return await self._move(delivery, mark)
        finally:
            parked.written(key)

    async def _put_off(self, delivery: Delivery, later: Later, event_type: str) -> _Move:
        self.count_retry(later, event_type)
        return await self._move(delivery, delivery.delayed(later))

    def count_retry(self, later: Later, event_type: str) -> None:
        """Say that it comes again."""
        error = printable(type(later.error).__name__) if later.error else "waiting"
        if later.error:
            fail_span(later.error)
        _log.info("message put off", delay_seconds=later.seconds, error=error)
        metrics.events_retried.labels(self._queue, event_type, error).inc()

    async def _move(self, delivery: Delivery, message: Outgoing) -> _Move:
        """Publish until the broker has the copy, or until it is certain that it can't have it."""
        backoff = Backoff(first_seconds=0.5)
        while delivery.is_ours:
            try:
                with self._stalls.trying(
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
                    return self._reject(delivery, error)
                _log.warning("copy published without most of its headers", error=str(error))
                message = lean
                continue
            except (TemporaryError, OutcomeUnknownError) as error:
                _log.warning("copy not published yet", exchange=message.exchange, error=str(error))
            except HybridkitError as error:
                return self._reject(delivery, error)
            else:
                return _Move.DONE
            await asyncio.sleep(backoff.next_seconds())
        return _Move.LOST

    def _reject(self, delivery: Delivery, error: HybridkitError) -> _Move:
        _log.error("message rejected without its reason", error=printable(error))
        delivery.reject()
        return _Move.REJECTED
