"""The failure of an attempt: the error for the caller, and what retry and breaker need to know."""

from typing import Final, NamedTuple

from pydantic import TypeAdapter

from hybridkit.clients._transports._base import Response
from hybridkit.codec import validate_json
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem
from hybridkit.errors import (
    AccessDeniedError,
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    MalformedPayloadError,
    OutcomeUnknownError,
    RateLimitedError,
    ResponseError,
    TemporaryError,
    UnavailableError,
)
from hybridkit.retry import retry_after_seconds

MAX_RETRY_AFTER_SECONDS: Final = 3600.0
SHOWN_CHARACTERS: Final = 80

_PROBLEM = TypeAdapter(Problem)


class Failure(NamedTuple):
    """The failure of one attempt.

    Attributes:
        error: the error for the caller, if no later attempt succeeds.
        retryable: whether the target leaves room for another attempt.
        counts: whether the breaker counts it as the target's fault; None if it tells nothing about the target.
        sent: whether something may have reached the target.
    """

    error: HybridkitError
    retryable: bool
    counts: bool | None
    sent: bool = True


def failure_from(response: Response, *, what: str, safe: bool) -> Failure | None:
    """Return the failure that an answer reports, None for a success.

    Args:
        response: the answer.
        what: the name of the request in the error's message.
        safe: whether the request changes nothing, so that its outcome can't be unknown.
    """
    if 200 <= response.status < 300:
        return None
    problem = _problem_in(response)
    if problem is None:
        error = _error_without_problem(response, what=what, safe=safe)
        return Failure(error, error.retryable, counts=response.status in {502, 503, 504})
    error = problem.to_error()
    if safe and isinstance(error, DeadlineExceededError):
        error = DeadlinePassedError(str(error))
    if isinstance(error, TemporaryError):
        said = _clamped(retry_after_seconds(error.retry_after_seconds))
        error.retry_after_seconds = _retry_after(response) if said is None else said
    own_504 = response.status == 504 and not isinstance(error, DeadlineExceededError | DeadlinePassedError)
    return Failure(error, problem.retryable, counts=response.status in {502, 503} or own_504)


def _problem_in(response: Response) -> Problem | None:
    if response.headers.get("content-type", "").partition(";")[0].strip().lower() != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return validate_json(_PROBLEM, response.body, what="the problem")
    except MalformedPayloadError:
        return None


def _error_without_problem(response: Response, *, what: str, safe: bool) -> HybridkitError:
    """Return the error of an answer that no service of ours gives: a proxy's, another server's, or a crash."""
    said = f"{what}: answered {response.status} without a problem document"
    match response.status:
        case 429:
            return RateLimitedError(said, retry_after_seconds=_retry_after(response))
        case 503:
            return UnavailableError(said, retry_after_seconds=_retry_after(response))
        case 502 | 504 if safe:
            return UnavailableError(said)
        case 502 | 504:
            return OutcomeUnknownError(f"{said}; the write behind it may have happened")
        case 401 | 403:
            return AccessDeniedError(said)
        case _:
            return ResponseError(
                f"{said}; it begins with {_beginning(response)}",
                response_status=response.status,
            )


def _beginning(response: Response) -> str:
    content_type = response.headers.get("content-type", "no content type")
    return f"{content_type!s:.40} {response.body[:SHOWN_CHARACTERS].decode('utf-8', 'replace')!r}"


def _retry_after(response: Response) -> float | None:
    """Return the seconds of `Retry-After`, a number or a date (RFC 9110, section 10.2.3), between 0 and an hour."""
    return _clamped(retry_after_seconds(response.headers.get("retry-after")))


def _clamped(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
