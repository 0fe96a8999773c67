"""Errors after which nobody knows whether it happened: repeating it with the same identity is safe."""

from hybridkit.errors._root import HybridkitError


class OutcomeUnknownError(HybridkitError):
    """It may have happened or not; repeating it with the same identity (event id, idempotency key) is safe."""

    code = "OUTCOME_UNKNOWN"
    status = 504
    retryable = True


class DeadlineExceededError(OutcomeUnknownError):
    """The time ran out after a write was sent and before its answer came.

    Where nothing was begun, or nothing was to be changed, `DeadlinePassedError` is raised instead.
    """

    code = "DEADLINE_EXCEEDED"


class ClaimLostError(OutcomeUnknownError):
    """The lease of an idempotency claim ran out, and another holder has taken the work over."""


class LockLostError(OutcomeUnknownError):
    """Another holder has the lock, or Redis didn't answer in time to keep it; the block was cancelled in the middle."""
