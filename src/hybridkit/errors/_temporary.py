"""Errors that pass: nothing was done, and the same call can succeed later."""

import re
from typing import Final

from hybridkit.errors._root import HybridkitError

_REASON: Final = re.compile("[a-z][a-z0-9_]{0,63}")


class TemporaryError(HybridkitError):
    """Nothing was done; the same call can succeed later."""

    code = "TEMPORARY"
    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(TemporaryError):
    """A service, database or broker is down, starting, or too busy to take the call."""

    code = "UNAVAILABLE"


class NotConnectedError(UnavailableError):
    """There is no connection to the broker, so nothing was sent."""


class BlockedError(UnavailableError):
    """The broker has stopped reading from publishers (`connection.blocked`: a memory or disk alarm)."""


class ServerStartError(UnavailableError):
    """A local server for development and tests did not become ready; the end of its log is in the message."""


class OverloadedError(UnavailableError):
    """The service is alive, but every connection of its pool stayed taken for too long."""

    code = "OVERLOADED"


class RateLimitedError(TemporaryError):
    """Too many requests."""

    code = "RATE_LIMITED"
    status = 429


class ConflictError(TemporaryError):
    """The database chose another transaction (SQLSTATE 40001, 40P01)."""

    code = "SERIALIZATION_FAILURE"
    status = 409


class LockTimeoutError(ConflictError):
    """Another transaction held a lock for too long (SQLSTATE 55P03), or another holder a `Lock` of Redis."""

    code = "LOCK_TIMEOUT"


class InProgressError(TemporaryError):
    """Another call with the same idempotency key has not finished."""

    code = "IDEMPOTENCY_IN_PROGRESS"
    status = 409


class DeadlinePassedError(TemporaryError):
    """The time was over before anything was begun or sent, or during a read, which changes nothing.

    The same call with more time can succeed.
    """

    code = "DEADLINE_PASSED"
    status = 504


class NotYetError(TemporaryError):
    """The work can't be done yet, as something else has to happen first: an event that has overtaken another one.

    A consumer makes the message wait as it does for an event of a newer version: eight times, 5 to 300 s, a quarter of
    an hour in all. No attempt is counted, whatever the handler's policy. After that it is a dead letter.

    Args:
        message: what is missing.
        reason: a word for the dead letter's reason and for the metrics, such as `order_missing`: lower-case letters,
            digits and underscores, 64 at most.

    Raises:
        ValueError: the reason is no such word.
    """

    code = "NOT_YET"

    def __init__(
        self, message: str, *, reason: str = "not_yet", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        if not _REASON.fullmatch(reason):
            raise ValueError("a reason is a word of lower-case letters, digits and underscores, 64 at most")
        self.reason = reason


class NackedError(TemporaryError):
    """The broker answered a publish with `basic.nack`: it does not have the message."""
