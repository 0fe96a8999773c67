"""The headers of a call: who asks, for how long, in which trace, and how many attempts came before.

They go to our own services; others get only the headers that HTTP itself needs.
"""

from collections.abc import Callable
from typing import Final

from hybridkit.clients._pipeline._attempt import CallPlan, Intent
from hybridkit.clients._pipeline._texts import checked_headers
from hybridkit.context import (
    REQUEST_ID_HEADER,
    REQUEST_TIMEOUT_HEADER,
    USER_ID_HEADER,
    RequestContext,
    to_http,
)
from hybridkit.contract import CALLER_HEADER, IDEMPOTENCY_KEY_HEADER, quote_key
from hybridkit.observability import trace_headers

RETRY_COUNT_HEADER: Final = "x-retry-count"


class Headers:
    """Makes the headers of one client's calls.

    Args:
        service: the name of the calling service.
        internal: whether the target is one of our own services.
        authorization: gives the value of the `Authorization` header; called for each attempt.
    """

    def __init__(self, *, service: str, internal: bool, authorization: Callable[[], str] | None) -> None:
        self._internal = internal
        self._authorization = authorization
        self._fixed = {"accept": "application/json", "accept-encoding": "identity"}
        if internal:
            self._fixed[CALLER_HEADER] = service

    def __repr__(self) -> str:
        return f"Headers(internal={self._internal})"

    def of_call(self, intent: Intent, context: RequestContext) -> dict[str, str]:
        """Return the headers that are the same on every attempt: request, user, caller, trace.

        Raises:
            InvalidRequestError: a header, or the idempotency key, can't be sent.
        """
        headers = self._fixed.copy()
        if self._internal:
            headers.update(_of_context(context))
            headers.update(trace_headers())
        headers.update(checked_headers(intent.headers))
        if intent.key is not None:
            headers[IDEMPOTENCY_KEY_HEADER] = quote_key(intent.key)
        return headers

    def of_attempt(self, call: CallPlan, *, timeout_seconds: float | None, retries: int) -> dict[str, str]:
        """Return the call's headers with those of one attempt: the seconds that it has, and how many came before it."""
        headers = call.headers.copy()
        if self._internal:
            headers[RETRY_COUNT_HEADER] = str(retries)
            if timeout_seconds is not None:
                headers[REQUEST_TIMEOUT_HEADER] = f"{timeout_seconds:.3f}"
        if self._authorization is not None:
            headers.update(checked_headers({"authorization": self._authorization()}))
        return headers


def _of_context(context: RequestContext) -> dict[str, str]:
    headers = {REQUEST_ID_HEADER: to_http(context.request_id)}
    if context.user_id is not None:
        headers[USER_ID_HEADER] = to_http(context.user_id)
    return headers
