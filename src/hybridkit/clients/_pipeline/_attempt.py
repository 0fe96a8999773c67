"""A call's intent, the plan for its attempts, and the errors of an attempt that failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridkit.clients._pipeline._failures import Failure
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    OutcomeUnknownError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """The request of a call, apart from how often it has to be sent.

    Attributes:
        method: the HTTP method, in upper case.
        path: path and query, percent-encoded, from `/` on.
        headers: the headers of this call alone, by lower-case names.
        body: JSON, or empty.
        key: the idempotency key of a write.
        safe: whether it changes nothing, so that it can be repeated and its outcome can't be unknown.
        idempotent: whether done twice is the same as done once, so that it can be repeated without a key.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    key: str | None = None
    safe: bool = False
    idempotent: bool = False


@dataclass(slots=True, kw_only=True)
class CallPlan:
    """An intent under way, with its limits; not frozen, as that would double the cost of making one.

    Attributes:
        intent: the request.
        name: method, target and path, for messages; the query may hold what a log shouldn't.
        headers: the headers that all attempts have in common.
        deadline: the end of the whole call, by the pipeline's clock.
        attempt_seconds: the most that one attempt may take.
        enough_seconds: the timeout of an attempt with less says more about the caller's hurry than about the target.
        repeatable: whether it may be sent again although it may have arrived.
        streamed: whether the answer's body is read piece by piece, after the attempt.
        body_deadline: the time by which such a body has to be there; None for no limit.
    """

    intent: Intent
    name: str
    headers: dict[str, str]
    deadline: float
    attempt_seconds: float
    enough_seconds: float
    repeatable: bool
    streamed: bool
    body_deadline: float | None


def refused(refusal: HybridkitError) -> Failure:
    """Return the failure of an attempt that ended before anything was sent, and not by the target's fault."""
    return Failure(refusal, retryable=False, counts=None, sent=False)


def late(call: CallPlan, message: str) -> HybridkitError:
    """Return the error of a call whose time ran out after it was sent: where it is safe, nothing can have happened."""
    return DeadlinePassedError(message) if call.intent.safe else DeadlineExceededError(message)


def lost_answer(call: CallPlan, lost: OutcomeUnknownError) -> HybridkitError:
    """Return what a lost answer means for the call: where the call is safe, nothing can have happened."""
    if not call.intent.safe:
        return lost
    error = UnavailableError(str(lost))
    error.__cause__ = lost
    return error
