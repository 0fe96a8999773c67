"""Titles of problems: one table from a problem's code to a short text for people."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hybridkit.errors import HybridkitError

_INTERNAL: Final = "Internal server error"

TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ACCESS_DENIED": "Access denied",
        "ANSWER_TOO_LARGE": "Answer too large",
        "BAD_RESPONSE": _INTERNAL,
        "CROSS_SITE_REQUEST": "Cross-site request",
        "DEADLINE_EXCEEDED": "Deadline exceeded",
        "DEADLINE_PASSED": "Deadline passed",
        "ERROR": _INTERNAL,
        "FOREIGN_KEY_VIOLATION": "Broken reference",
        "IDEMPOTENCY_ANSWER_NOT_KEPT": "Answer not kept",
        "IDEMPOTENCY_IN_PROGRESS": "Request in progress",
        "IDEMPOTENCY_KEY_REQUIRED": "Idempotency-Key required",
        "IDEMPOTENCY_KEY_REUSED": "Idempotency key reused",
        "IDEMPOTENCY_STEP_REUSED": "Idempotency key reused",
        "INTERNAL": _INTERNAL,
        "INVALID_HEADER": "Invalid header",
        "INVALID_QUERY": "Invalid query",
        "KEY_REUSED": "Idempotency key reused",
        "LOCK_TIMEOUT": "Resource locked",
        "METHOD_NOT_ALLOWED": "Method not allowed",
        "MISUSE": _INTERNAL,
        "NOT_ACCEPTABLE": "Not acceptable",
        "NOT_FOUND": "Not found",
        "NOT_SUPPORTED": "Not supported",
        "NOT_YET": "Not yet possible",
        "OUTCOME_UNKNOWN": "Outcome unknown",
        "OVERLOADED": "Service overloaded",
        "PAGE_TOKEN_MISMATCH": "Page token of another query",  # nosec B105 - no password
        "PAYLOAD_TOO_LARGE": "Payload too large",
        "PRECONDITION_FAILED": "Version conflict",
        "PRECONDITION_REQUIRED": "Precondition required",
        "RATE_LIMITED": "Too many requests",
        "REJECTED": "Request rejected",
        "REQUEST_HEADER_FIELDS_TOO_LARGE": "Request header fields too large",
        "REQUIREMENT_NOT_MET": "Requirement not met",
        "RULE_VIOLATION": "Rule violation",
        "SERIALIZATION_FAILURE": "Conflict with another change",
        "SESSION_ENDED": "Session ended",
        "STEP_SHARED": _INTERNAL,
        "TEMPORARY": "Temporary failure",
        "TRANSACTIONS_UNAVAILABLE": "Not supported",
        "UNAUTHENTICATED": "Authentication required",
        "UNAVAILABLE": "Service unavailable",
        "UNIQUE_VIOLATION": "Value already taken",
        "UNROUTABLE": _INTERNAL,
        "UNSUPPORTED_MEDIA_TYPE": "Unsupported media type",
        "URI_TOO_LONG": "URI too long",
        "VALIDATION": "Invalid request",
    }
)
"""The English title of each code; catalogues translate them in the context `problem`."""


def title_of(error: HybridkitError) -> str:
    """Return the title of an error's problem; a class of an application's has the one of the class that it extends."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, HybridkitError)]
    return next(TITLES[kind.code] for kind in kinds if kind.code in TITLES)
