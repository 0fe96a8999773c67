"""A message that was delivered, what can become of it, and its copies."""

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hybridkit.codec import format_timestamp, now
from hybridkit.messaging._channel import Lane
from hybridkit.messaging._frames import decode_properties
from hybridkit.messaging._headers import (
    ATTEMPT,
    ERROR,
    ERROR_TYPE,
    FAILED_AT,
    FIRST_FAILED_AT,
    GENERATION,
    QUEUE,
    REASON,
    STACK,
    VERSION_WAITS,
    copied_headers,
    read_count,
    read_text,
)
from hybridkit.messaging._port import Delivered
from hybridkit.messaging._topology import DEAD_LETTER_EXCHANGE, delay_route
from hybridkit.messaging._writer import Outgoing

__all__ = ["Dead", "Delivery", "Done", "Later", "RetryHere", "Verdict"]

MAX_ERROR_CHARS: Final = 1000
MAX_STACK_CHARS: Final = 8000


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to do but to acknowledge. `outcome` is for the metrics."""

    outcome: str = "done"


@dataclass(frozen=True, slots=True)
class RetryHere:
    """Again, after a pause that is too short for the broker."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Later:
    """A copy comes back after that time; with these headers, which count what has to be counted."""

    seconds: float
    error: BaseException | None = None
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up: a copy goes to the dead-letter queue."""

    reason: str
    error: BaseException
    failures: int


type Verdict = Done | Later | Dead
"""What becomes of a delivery."""


class Delivery:
    """A message from the broker, until it is acknowledged.

    Args:
        queue: the consumer's name.
        lane: the channel it came on, and on which alone it can be acknowledged.
        message: from its port.
    """

    def __init__(self, queue: str, lane: Lane, message: Delivered) -> None:
        self.queue = queue
        self.lane = lane
        self.body = message.body
        self.received_at = time.monotonic()
        self._tag = message.deliver.tag
        properties = decode_properties(message.properties)
        self.headers: Mapping[str, Any] = properties.headers or {}
        self._message_type = properties.message_type
        self._service = properties.app_id

    def __repr__(self) -> str:
        return f"Delivery({self.queue!r}, tag={self._tag}, failures={self.failures})"

    @property
    def failures(self) -> int:
        """How many runs of the handler have failed before this delivery."""
        return read_count(self.headers, ATTEMPT)

    @property
    def generation(self) -> int:
        """How often it was taken out of a dead-letter queue and sent again."""
        return read_count(self.headers, GENERATION)

    @property
    def version_waits(self) -> int:
        """How often it waited for a deployment that knows its version."""
        return read_count(self.headers, VERSION_WAITS)

    @property
    def is_ours(self) -> bool:
        """Whether it can still be acknowledged; otherwise the broker delivers it again, to whomever."""
        return self.lane.is_open

    def age_seconds(self) -> float:
        """How long we have had it; the broker's consumer timeout counts the same."""
        return time.monotonic() - self.received_at

    async def ack(self) -> None:
        """It is done with. Where its channel has closed there is nobody to tell: the broker delivers it again."""
        if self.lane.port is not None:
            self.lane.port.ack(self._tag)

    async def requeue(self) -> None:
        """Give it back at once; the broker counts that, and dead-letters it at the twentieth time."""
        if self.lane.port is not None:
            self.lane.port.requeue(self._tag)

    def delayed(self, later: Later) -> Outgoing:
        """The copy that comes back."""
        exchange, routing_key = delay_route(later.seconds, self.queue)
        return self._copy(exchange, routing_key, {QUEUE: self.queue, **later.headers})

    def failed(self, failures: int) -> dict[str, Any]:
        """The headers that count this many failures; none for none."""
        if not failures:
            return {}
        moment = format_timestamp(now())
        return {
            ATTEMPT: failures,
            FIRST_FAILED_AT: read_text(self.headers, FIRST_FAILED_AT) or moment,
            FAILED_AT: moment,
        }

    def dead_letter(self, dead: Dead) -> Outgoing:
        """The copy that waits for a person, with all that is known about the reason."""
        reason = {
            QUEUE: self.queue,
            REASON: dead.reason,
            ERROR_TYPE: f"{type(dead.error).__module__}.{type(dead.error).__qualname__}",
            ERROR: str(dead.error)[:MAX_ERROR_CHARS],
            STACK: "".join(traceback.format_exception(dead.error))[-MAX_STACK_CHARS:],
            FAILED_AT: format_timestamp(now()),
            **self.failed(dead.failures),
        }
        return self._copy(DEAD_LETTER_EXCHANGE, self.queue, reason)

    def _copy(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> Outgoing:
        return Outgoing(
            exchange=exchange,
            routing_key=routing_key,
            body=self.body,
            headers={**copied_headers(self.headers), **headers},
            message_type=self._message_type,
            service=self._service,
        )
