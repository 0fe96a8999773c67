"""Verdicts: the ways in which a handler's run can end, and what follows for its delivery."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from hybridkit.idempotency import Outcome

SHORTEST_DELAY_SECONDS: Final = 1.0
"""The delay levels count whole seconds, so a retry that is due earlier waits in the process."""


class Settled(Enum):
    """Nothing is left to do but to acknowledge. The value is the label in the metrics and in the log."""

    DONE = "done"
    """The handler has returned."""

    DUPLICATE = "duplicate"
    """The event was finished before it was delivered this time."""

    DEAD_LETTERED = "dead_lettered"
    """A copy is among the dead letters."""

    RETRIED = "retried"
    """A copy comes back after a delay."""

    REJECTED = "rejected"
    """There can be no copy; the broker moves the message itself, to the dead letters."""

    REQUEUED = "requeued"
    """The channel has closed, so the broker delivers the message again."""

    @property
    def is_finished(self) -> bool:
        """Whether the event needs no further run. A copy is the same event, and it still has to run."""
        return self is Settled.DONE or self is Settled.DUPLICATE

    @property
    def guard_outcome(self) -> Outcome:
        """The outcome that the idempotency guard records for the claim."""
        if self is Settled.DONE:
            return Outcome.COMPLETED
        return Outcome.FAILED if self is Settled.DEAD_LETTERED else Outcome.RELEASED


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A copy of the message comes back after a delay.

    Attributes:
        seconds: the delay.
        error: the failure; None for a message that only waits.
        headers: those of the copy that count failures or waits.
        waits_for: a word for the metrics about a message that only waits.
    """

    seconds: float
    error: BaseException | None = None
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    waits_for: str = "waiting"


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """The message is given up: a copy goes to the dead-letter queue.

    Attributes:
        reason: a word for the copy's headers and for the metrics.
        error: the failure that ended it.
        failures: the number of runs that failed.
    """

    reason: str
    error: BaseException
    failures: int


@dataclass(frozen=True, slots=True)
class RetryHere:
    """The handler runs once more after a wait: after an error, or while another process holds the claim.

    Attributes:
        seconds: the wait.
        error: the failure; None where nothing has failed.
        failures: the number of runs that failed so far.
    """

    seconds: float
    error: BaseException | None
    failures: int


@dataclass(frozen=True, slots=True)
class WaitForDependency:
    """The handler runs once more when the dependency is back; no attempt is counted."""

    error: BaseException


type Verdict = Settled | RetryLater | DeadLettered
"""The end of a delivery."""

type RunResult = Verdict | RetryHere | WaitForDependency
"""The end of one run of a handler: a verdict, or a reason to run it once more."""
