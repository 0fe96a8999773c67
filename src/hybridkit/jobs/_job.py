"""A job as it is declared, and what it gets about its run."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hybridkit._injection import InjectionPlan
from hybridkit.jobs._schedule import Schedule, jitter_of
from hybridkit.retry import Retry

type Missed = Literal["skip", "once", "all"]


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    Attributes:
        name: its name in Redis, logs and metrics.
        function: the function.
        schedule: the rule of its slots.
        missed: what becomes of slots that could not be begun in time.
        jitter_seconds: the longest delay of a slot.
        timeout_seconds: the time of a run, with its retries.
        retry: the policy for its failures.
        plan: the parameters of the function.
    """

    name: str
    function: Callable[..., Awaitable[object]]
    schedule: Schedule
    missed: Missed
    jitter_seconds: float
    timeout_seconds: float
    retry: Retry
    plan: InjectionPlan

    def start_of(self, slot: datetime) -> datetime:
        """Return the moment at which a slot is to begin: its own, and its share of the jitter."""
        return slot + jitter_of(self.name, slot, seconds=self.jitter_seconds)


@dataclass(frozen=True, slots=True)
class Slot:
    """The run that a job has been begun for; a job asks for it by `slot: Slot`.

    Attributes:
        job: the job's name.
        scheduled_at: the moment of the schedule, in UTC; the same when another replica runs the slot again. Of a run
            that a person asked for, the time of that.
        is_manual: whether a person has asked for it by `hybridkit jobs run`.
        taken_over: whether another replica has begun it before, and died or gave it back.
        fence: a number that grows with each replica that begins a run. Store it with what the job writes elsewhere, and
            refuse a smaller one: that comes from a replica which lost the run and doesn't know it yet.
    """

    job: str
    scheduled_at: datetime
    is_manual: bool
    taken_over: bool
    fence: int
