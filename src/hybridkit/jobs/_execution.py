"""One run of a job: its lease, its attempts, its time limit, and its end."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from hybridkit._tasks import run_isolated
from hybridkit.codec import format_timestamp
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.coordination._lease import LeaseKeeper
from hybridkit.errors import ClaimLostError, DeadlineExceededError, UnavailableError
from hybridkit.idempotency import claim_key
from hybridkit.jobs._job import Job, Slot
from hybridkit.jobs._records import LEASE_SECONDS, HeldRun, JobRecord, Outcome
from hybridkit.observability import fail_span, get_logger, metrics, report_error, root_span
from hybridkit.retry import GiveUp, RetryAfter

SHORTEST_PAUSE_SECONDS: Final = 1.0
"""The time until the next attempt after an error that says that a dependency is down."""
_AWAY_SECONDS: Final = 0.5

_log = get_logger("hybridkit.jobs")


class Execution:
    """A run of a job in this process.

    Args:
        job: the job.
        slot: what the job gets about the run.
        service: the name of the service.
        providers: the objects that jobs may ask for.
    """

    def __init__(self, job: Job, slot: Slot, *, service: str, providers: Mapping[Any, object]) -> None:
        self._job = job
        self._slot = slot
        self._providers = providers
        # The same when another replica runs the slot again, and so are the keys of what the job writes.
        self._key = claim_key("job", service, job.name, slot.scheduled_at.isoformat())

    async def run(
        self, record: JobRecord, run: HeldRun, *, settled: Callable[[HeldRun], Awaitable[datetime]]
    ) -> None:
        """Run the job while its lease is renewed, and record its end.

        A cancellation gives the run back; a lost lease ends it without a record, as another replica has it.

        Args:
            record: of the job.
            run: the run that was begun.
            settled: returns the slot up to which all are settled when the run has ended.
        """
        job, slot = self._job, self._slot
        context = RequestContext().within(job.timeout_seconds)
        attributes = {"hybridkit.job": job.name, "hybridkit.slot": slot.scheduled_at.isoformat()}
        with bind(context), root_span(f"job {job.name}", attributes=attributes):
            began = time.monotonic()
            about: dict[str, Any] = {"job": job.name, "slot": format_timestamp(slot.scheduled_at)}
            _log.info("job begins", **about, fence=slot.fence, taken_over=slot.taken_over)
            lease = LeaseKeeper(
                partial(record.renew, run),
                lease_seconds=LEASE_SECONDS,
                may_outlive=False,
                error_of_loss=lambda reason: ClaimLostError(
                    f"the run of the job {job.name} is lost: {reason}"
                ),
                since=run.asked_at,
            )
            try:
                async with lease:
                    outcome, error = await self._attempts(context)
                seconds = round(time.monotonic() - began, 3)
                if error is None:
                    _log.info("job is done", **about, seconds=seconds)
                else:
                    report_error(error)
                    _log.error("job failed", **about, seconds=seconds, exc_info=error)
                is_ours = await _recorded(record, run, outcome, error, settled)
            except ClaimLostError as lost:
                is_ours, outcome = False, "failed"
                fail_span(lost)
            except asyncio.CancelledError:
                self._count("given_back")
                _log.warning("job is given back", **about)
                await _given_back(record, run)
                raise
            if is_ours:
                self._count(outcome)
            else:
                self._count("lost")
                _log.error("another replica has taken the job over", **about)

    async def _attempts(self, context: RequestContext) -> tuple[Outcome, BaseException | None]:
        """Run the function until it succeeds, its policy gives up, or the time is over."""
        job, attempt = self._job, 1
        arguments = job.plan.arguments({**self._providers, Slot: self._slot, RequestContext: context})
        try:
            async with asyncio.timeout(job.timeout_seconds):
                while (error := await self._attempt(context, arguments)) is not None:
                    match job.retry.decide(error, attempt=attempt, jitter=random.random()):  # noqa: S311 - spreads retries
                        case GiveUp():
                            return "failed", error
                        case RetryAfter(seconds):
                            attempt += 1
                        case _:  # a pause, which counts as no attempt
                            seconds = max(job.retry.bound_seconds(attempt), SHORTEST_PAUSE_SECONDS)
                    metrics.job_retries.labels(job.name).inc()
                    _log.warning(
                        "job will be tried again",
                        job=job.name,
                        attempt=attempt,
                        seconds=round(seconds, 3),
                        exc_info=error,
                    )
                    await asyncio.sleep(seconds)
        except TimeoutError:
            return "timed_out", DeadlineExceededError(f"the job took longer than {job.timeout_seconds:g} s")
        return "done", None

    async def _attempt(self, context: RequestContext, arguments: Mapping[str, Any]) -> BaseException | None:
        # A claim of its own for each attempt, as its steps are numbered from the beginning.
        claimed = context.claimed(Claim(self._key), deadline=context.deadline)
        arguments = {name: claimed if value is context else value for name, value in arguments.items()}
        with bind(claimed):
            return await run_isolated(
                _called(self._job.function, arguments), name=f"hybridkit job {self._job.name}"
            )

    def _count(self, outcome: str) -> None:
        metrics.job_runs.labels(self._job.name, outcome).inc()


async def _called(function: Callable[..., Awaitable[object]], arguments: Mapping[str, Any]) -> None:
    await function(**arguments)


async def _recorded(
    record: JobRecord,
    run: HeldRun,
    outcome: Outcome,
    error: BaseException | None,
    settled: Callable[[HeldRun], Awaitable[datetime]],
) -> bool:
    """Record the end of a run, again and again while Redis doesn't answer, and return whether it was still ours."""
    name = "" if error is None else type(error).__qualname__
    while True:
        try:
            return await record.finish(run, outcome, name, cursor=await settled(run))
        except UnavailableError:
            await asyncio.sleep(_AWAY_SECONDS)


async def _given_back(record: JobRecord, run: HeldRun) -> None:
    """Give a run back; a replica that can't, as Redis doesn't answer, leaves it to the end of the lease."""
    try:
        await record.give_back(run)
    except UnavailableError as error:
        _log.warning("the job could not be given back; its lease has to end", reason=str(error))
