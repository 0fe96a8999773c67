"""The headers of messages: their names, and which of them a copy of a message keeps.

A reader can do without all of them: the body decides.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

from pamqp.encode import encode_table_value

EVENT_ID: Final = "hk_event_id"
"""The event's id; AMQP's own `message_id` is different for every attempt to publish."""
ATTEMPT: Final = "hk_attempt"
"""The number of handler runs that have failed so far."""
VERSION_WAITS: Final = "hk_version_waits"
"""How often the message was delayed because its version was not known yet, or its handler missed something."""
GENERATION: Final = "hk_generation"
"""How often the message was taken out of a dead-letter queue and sent again."""
QUEUE: Final = "hk_queue"
"""The consumer's queue from which a retry or dead letter comes."""
REASON: Final = "hk_reason"
ERROR_TYPE: Final = "hk_error_type"
ERROR: Final = "hk_error"
STACK: Final = "hk_stack"
FIRST_FAILED_AT: Final = "hk_first_failed_at"
FAILED_AT: Final = "hk_failed_at"

# They belong to the failure and not to the event.
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
    """Return the headers that a copy of a message keeps.

    Left out are the broker's headers about dead-lettering, values that can't be encoded again, and what goes beyond
    64 KiB.
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
    """Return the headers of a dead letter that runs again: the next generation, and nothing about its failure."""
    return {**event_headers(headers), GENERATION: min(read_count(headers, GENERATION) + 1, MAX_COUNT)}


def event_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of the event itself, without those that a consumer adds for its own retries and redrives."""
    return {
        name: value for name, value in headers.items() if name not in _OF_THE_FAILURE and name != GENERATION
    }


def lean_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the headers that say why and how often an event failed, cut short: for small frames."""
    kept = _OF_THE_FAILURE - {STACK} | {EVENT_ID, GENERATION}
    return {
        name: value[:MAX_LEAN_CHARS] if isinstance(value, str) else value
        for name, value in headers.items()
        if name in kept
    }


def read_count(headers: Mapping[str, Any], name: str) -> int:
    """Return a count from a header; 0 where it is absent or no count."""
    value = headers.get(name)
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0


def read_text(headers: Mapping[str, Any], name: str) -> str | None:
    """Return a text of at most 256 characters from a header; None where it is absent or something else."""
    value = headers.get(name)
    return value if isinstance(value, str) and len(value) <= 256 else None


def _ours_first(item: tuple[str, Any]) -> bool:
    return not item[0].startswith(("hk_", "x-request-id", "x-user-id", "traceparent", "tracestate"))


def _encoded_bytes(name: str, value: Any) -> int:
    """Return the encoded size in bytes; more than fits for a value that can be decoded but not encoded."""
    try:
        return len(name.encode()) + 1 + len(encode_table_value(value))
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error):
        return MAX_COPIED_BYTES + 1
