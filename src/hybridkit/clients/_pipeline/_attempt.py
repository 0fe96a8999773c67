"""One call: what it wants, and what its attempts share."""

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
    """What a call wants, apart from how often it has to be sent.

    Attributes:
        method: upper case.
        path: with its query, percent-encoded, from `/` on.
        headers: of this call alone.
        body: JSON, or empty.
        key: the idempotency key of a write.
        safe: changes nothing, so it can be repeated and its outcome can't be unknown.
        idempotent: done twice it is the same as done once, so it can be repeated without a key.
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
    """An intent under way. Not frozen, as that would double what it costs to make one.

    Attributes:
        name: method, target and path, for messages; the query may hold what a log shouldn't.
        headers: those of each attempt, as far as they are the same.
        deadline: by the pipeline's clock.
        attempt_seconds: what one attempt may take at most.
        enough_seconds: an attempt with less had a caller in a hurry, so its timeout tells nothing about the target.
        repeatable: whether it may be sent again although it may have arrived.
        streamed: whether the body is read piece by piece, after the attempt.
        body_deadline: until when such a body has to be there; None for no limit.
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
    """An attempt that ended before anything was sent, and not by the target's fault."""
    return Failure(refusal, retryable=False, counts=None, sent=False)


def late(call: CallPlan, message: str) -> HybridkitError:
    """Return the error of a call whose time ran out after it was sent: where it is safe, nothing can have happened."""
    return DeadlinePassedError(message) if call.intent.safe else DeadlineExceededError(message)


def lost_answer(call: CallPlan, lost: OutcomeUnknownError) -> HybridkitError:
    """What that means for the call: where it is safe, nothing can have happened."""
    if not call.intent.safe:
        return lost
    error = UnavailableError(str(lost))
    error.__cause__ = lost
    return error
