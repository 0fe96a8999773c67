"""What travels with a call: who asks, for how long, in which trace, for the how manieth time."""

from typing import Final

from opentelemetry import propagate

from hybridkit.context import REQUEST_TIMEOUT_HEADER, RequestContext
from hybridkit.contract import CALLER_HEADER

__all__ = ["RETRY_COUNT_HEADER", "attempt_headers", "call_headers"]

RETRY_COUNT_HEADER: Final = "x-retry-count"


def call_headers(context: RequestContext, *, service: str) -> dict[str, str]:
    """What is the same on every attempt: request, user, caller, trace."""
    headers = context.to_amqp_headers()  # the ids; over HTTP the deadline is the attempt's own
    headers[CALLER_HEADER] = service
    propagate.inject(headers)
    return headers


def attempt_headers(*, timeout_seconds: float | None, retries: int) -> dict[str, str]:
    """What each attempt says of itself: the seconds it has, if they are limited, and how many came before."""
    headers = {RETRY_COUNT_HEADER: str(retries)}
    if timeout_seconds is not None:
        headers[REQUEST_TIMEOUT_HEADER] = f"{timeout_seconds:.3f}"
    return headers
