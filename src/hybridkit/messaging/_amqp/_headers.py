"""Message headers: what we send, and what may be taken over from a message that came in.

Whoever reads a message can do without all of them: the body decides.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

from pamqp.encode import encode_table_value

__all__ = [
    "ATTEMPT",
    "ERROR",
    "ERROR_TYPE",
    "EVENT_ID",
    "FAILED_AT",
    "FIRST_FAILED_AT",
    "GENERATION",
    "QUEUE",
    "REASON",
    "STACK",
    "VERSION_WAITS",
    "copied_headers",
    "event_headers",
    "lean_headers",
    "read_count",
    "read_text",
    "redriven_headers",
]

EVENT_ID: Final = "hk_event_id"
"""The event's identity; AMQP's own `message_id` is another one for every attempt to publish."""
ATTEMPT: Final = "hk_attempt"
"""How many runs of a handler have failed so far."""
VERSION_WAITS: Final = "hk_version_waits"
"""How often the message was put off because its version is not known here yet."""
GENERATION: Final = "hk_generation"
"""How often the message was taken out of a dead-letter queue and sent again."""
QUEUE: Final = "hk_queue"
"""The consumer's queue that a retry or dead letter comes from."""
REASON: Final = "hk_reason"
ERROR_TYPE: Final = "hk_error_type"
ERROR: Final = "hk_error"
STACK: Final = "hk_stack"
FIRST_FAILED_AT: Final = "hk_first_failed_at"
FAILED_AT: Final = "hk_failed_at"

# What belongs to the failure and not to the event.
_OF_THE_FAILURE: Final = frozenset(
    {ATTEMPT, ERROR, ERROR_TYPE, FAILED_AT, FIRST_FAILED_AT, QUEUE, REASON, STACK, VERSION_WAITS}
)

MAX_COUNT: Final = 2**31 - 1

# The header frame of a message is one frame, at most 128 KiB by default; a message whose copy has more would close
# the connection each time it is retried. https://www.rabbitmq.com/docs/configure#config-items
MAX_COPIED_BYTES: Final = 64 * 1024

MAX_LEAN_CHARS: Final = 256

# A copy that keeps them vanishes in the second delay level before RabbitMQ 4.0.1 (cycle detection reads them), and
# CC and BCC would send it to more queues.
_NOT_COPIED: Final = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"})
_NOT_COPIED_PREFIXES: Final = ("x-first-death-", "x-last-death-")


def copied_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers that a copy of this message carries on.

    Left out are the broker's notes about its death, values that can't be written again, and what goes beyond 64 KiB.
    """
    copied: dict[str, Any] = {}
    left = MAX_COPIED_BYTES
    for name, value in sorted(headers.items(), key=_ours_first):
        if name in _NOT_COPIED or name.startswith(_NOT_COPIED_PREFIXES):
            continue
        size = _encoded_bytes(name, value)
        if size <= left:
            copied[name] = value
            left -= size
    return copied


def redriven_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a dead letter that runs again: one generation on, and without what belongs to its failure."""
    return {**event_headers(headers), GENERATION: min(read_count(headers, GENERATION) + 1, MAX_COUNT)}


def event_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the event itself: without what a consumer has added when it failed, and how often it ran again there."""
    return {
        name: value for name, value in headers.items() if name not in _OF_THE_FAILURE and name != GENERATION
    }


def lean_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ours that say why and how often, cut short: for a broker whose frames hold no more."""
    kept = _OF_THE_FAILURE - {STACK} | {EVENT_ID, GENERATION}
    return {
        name: value[:MAX_LEAN_CHARS] if isinstance(value, str) else value
        for name, value in headers.items()
        if name in kept
    }


def read_count(headers: Mapping[str, Any], name: str) -> int:
    """A count from a header; 0 where it is absent or nonsense."""
    value = headers.get(name)
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0


def read_text(headers: Mapping[str, Any], name: str) -> str | None:
    """A short text from a header; None where it is absent or nonsense."""
    value = headers.get(name)
    return value if isinstance(value, str) and len(value) <= 256 else None


def _ours_first(item: tuple[str, Any]) -> bool:
    return not item[0].startswith(("hk_", "x-request-id", "x-user-id", "traceparent", "tracestate"))


def _encoded_bytes(name: str, value: Any) -> int:
    """The size on the wire; more than fits for a value that AMQP can be read from but not written to."""
    try:
        return len(name.encode()) + 1 + len(encode_table_value(value))
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error):
        return MAX_COPIED_BYTES + 1
