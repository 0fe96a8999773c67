"""Run the jobs of a process: look at what is due, begin it where no other replica has, and end it in order."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from hybridkit._tasks import TaskSet, is_set_within
from hybridkit.codec import format_timestamp
from hybridkit.context import RequestContext
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError, UnavailableError
from hybridkit.jobs._execution import Execution
from hybridkit.jobs._job import Job, Slot
from hybridkit.jobs._records import HeldRun, JobRecord, JobState, LastRun, new_token
from hybridkit.jobs._schedule import latest_slots
from hybridkit.observability import get_logger, metrics

POLL_SECONDS: Final = 1.0
"""The longest time between two looks: for requests, runs of replicas that died, and a clock that was set."""
LATE: Final = timedelta(seconds=60)
"""How late a slot may begin that is skipped when it is missed."""
MAX_MISSED: Final = 100
"""The most missed slots that are made up for."""
STRANGE_CLOCK: Final = timedelta(days=1)
"""How far the last slot may be ahead of the clock; beyond that, the clock was wrong, and not just set."""
_SOON: Final = timedelta(milliseconds=2)
_GIVE_BACK_SECONDS: Final = 1.0

_log = get_logger("hybridkit.jobs")


class JobRunner:
    """The jobs of one process, from entering the block to its end.

    Args:
        jobs: the jobs.
        redis: where the replicas agree.
        service: the name of the service.
        providers: the objects that jobs may ask for.

    Raises:
        DeclarationError: a job wants an object that no provider gives; all of them are named.
    """

    def __init__(
        self, jobs: Sequence[Job], redis: Redis, *, service: str, providers: Mapping[Any, object]
    ) -> None:
        _check_providers(jobs, providers)
        self._tracks = [
            _Track(job, JobRecord(redis, service=service, job=job.name), service, providers) for job in jobs
        ]
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._runs = TaskSet()
        self._loop: asyncio.Task[None] | None = None
        self._is_away = False

    def __repr__(self) -> str:
        return f"JobRunner({[track.job.name for track in self._tracks]}, running={len(self._runs)})"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._keep_looking(), name="hybridkit jobs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain(budget_seconds=_GIVE_BACK_SECONDS)

    def stop(self) -> None:
        """Begin no further run."""
        self._stopping.set()
        self._changed.set()

    async def drain(self, *, budget_seconds: float) -> bool:
        """Begin no further run, and wait for those that run; those that don't end in time are given back.

        A run that is given back is cancelled, and begun again by another replica.

        Args:
            budget_seconds: the time for all of it.

        Returns:
            Whether all runs ended in time.
        """
        self.stop()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=budget_seconds)
        # The end of the budget belongs to telling Redis that the runs are given back.
        reserved = min(_GIVE_BACK_SECONDS, budget_seconds / 2)
        if await self._runs.wait(seconds=budget_seconds - reserved):
            return True
        _log.warning("jobs don't end in time and are given back", running=len(self._runs))
        await self._runs.cancel(seconds=reserved)
        return False

    async def probe(self, name: str) -> str:
        """Return the last and the next run of a job in one sentence, for `/ready`.

        Raises:
            UnavailableError: no job begins any more, although nobody has stopped them.
        """
        if self._loop is None or (self._loop.done() and not self._stopping.is_set()):
            raise UnavailableError("no job begins any more")
        return next(track.summary for track in self._tracks if track.job.name == name)

    async def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            pauses = await asyncio.gather(*map(self._look, self._tracks), return_exceptions=True)
            self._note_errors([error for error in pauses if isinstance(error, BaseException)])
            pause = min([POLL_SECONDS, *(pause for pause in pauses if isinstance(pause, float))])
            # A run that has ended may have made room for its next slot.
            await is_set_within(self._changed, seconds=pause)
            if not self._stopping.is_set():
                self._changed.clear()

    async def _look(self, track: "_Track") -> float:
        """Begin what is due of a job, and return the seconds until the next look at it."""
        run, pause = await track.look()
        if run is not None:
            task = self._runs.start(track.run(run), name=f"hybridkit job {track.job.name}")
            task.add_done_callback(lambda _: self._changed.set())
        return pause

    def _note_errors(self, errors: Sequence[BaseException]) -> None:
        for error in errors:
            if not isinstance(error, UnavailableError):
                _log.error("looking for due jobs failed", exc_info=error)
        is_away = any(isinstance(error, UnavailableError) for error in errors)
        if is_away and not self._is_away:
            _log.warning("no job begins, as Redis does not answer", reason=str(errors[0]))
        elif self._is_away and not is_away:
            _log.info("Redis answers again")
        self._is_away = is_away


class _Track:
    """One job in this process: what was last seen of it, and its run."""

    def __init__(self, job: Job, record: JobRecord, service: str, providers: Mapping[Any, object]) -> None:
        self.job = job
        self.record = record
        self.is_running = False
        self._service = service
        self._providers = providers
        self._last: LastRun | None = None
        self._next: datetime | None = None
        # Kept until Redis has answered: a question whose reply was lost is repeated, and not doubled.
        self._token = new_token()

    @property
    def summary(self) -> str:
        """The last and the next run, for people."""
        coming = "next at an unknown time" if self._next is None else f"next {format_timestamp(self._next)}"
        if self.is_running:
            coming = f"running; {coming}"
        if self._last is None:
            return f"{coming}; not run yet"
        last = self._last
        reason = f" ({last.error})" if last.error else ""
        return f"{coming}; last {format_timestamp(last.slot)} {last.outcome}{reason} in {last.seconds:.1f} s"

    async def look(self) -> tuple[HeldRun | None, float]:
        """Begin what is due, and return it, or None, and the seconds until the next look."""
        state = await self.record.look()
        self._note(state)
        if self.is_running:
            return None, POLL_SECONDS
        if state.slot is not None:
            if state.is_running and state.token != self._token:
                return None, _seconds(state.lease_end - state.now)
            return await self._begin(state, state.slot, is_manual=state.is_manual), 0.0
        cursor = state.cursor
        if cursor is not None and cursor - state.now > STRANGE_CLOCK:
            _log.error("the clock of Redis was wrong: slots are counted from now on", job=self.job.name)
            cursor = None
        if cursor is None:
            await self.record.skip(state.cursor, to=state.now)
            return None, 0.0
        if state.requested_at is not None:
            return await self._begin(state, state.requested_at, is_manual=True), 0.0
        due = latest_slots(self.job.schedule, after=cursor, until=state.now, limit=MAX_MISSED)
        if not due:
            return None, self._seconds_until_next(state)
        return await self._begin_due(state, due)

    async def _begin_due(self, state: JobState, due: list[datetime]) -> tuple[HeldRun | None, float]:
        job = self.job
        starts = {slot: job.start_of(slot) for slot in due[: 1 if job.missed == "all" else None]}
        slot = max((slot for slot, start in starts.items() if start <= state.now), default=None)
        if slot is None:
            return None, _seconds(min(starts.values()) - state.now)
        settled = due.index(slot) + 1
        if job.missed == "skip" and state.now - starts[slot] > LATE:
            if await self.record.skip(state.cursor, to=slot):
                self._count_skipped(settled)
            return None, 0.0
        run = await self._begin(state, slot, is_manual=False)
        if run is not None:
            self._count_skipped(settled - 1)
        return run, 0.0

    async def _begin(self, state: JobState, slot: datetime, *, is_manual: bool) -> HeldRun | None:
        run = await self.record.begin(
            slot, is_manual=is_manual, cursor=state.cursor or slot, token=self._token
        )
        self._token = new_token()
        if run == "given_up":
            metrics.job_runs.labels(self.job.name, "given_up").inc()
            _log.error("a run is given up, as too many replicas have died on it", job=self.job.name)
            return None
        if run is not None:
            self.is_running = True
        return run

    async def run(self, run: HeldRun) -> None:
        """Run the job, and tell Redis how it ended."""
        job, record = self.job, self.record
        slot = Slot(job.name, run.slot, run.is_manual, run.taken_over, run.fence)
        execution = Execution(job, slot, service=self._service, providers=self._providers)
        running = metrics.job_in_flight.labels(job.name)
        running.inc()
        began = time.monotonic()
        try:
            await execution.run(record, run, settled=self._settled)
        finally:
            metrics.job_duration.labels(job.name).observe(time.monotonic() - began)
            running.dec()
            self.is_running = False

    async def _settled(self, run: HeldRun) -> datetime:
        """Count the slots that came during a run, and return the one up to which they are settled with it."""
        state = await self.record.look()
        cursor = run.cursor if state.cursor is None else state.cursor
        came = latest_slots(self.job.schedule, after=cursor, until=state.now, limit=MAX_MISSED)
        if run.is_manual or not came:
            return cursor
        metrics.job_slots_overlapped.labels(self.job.name).inc(len(came))
        if self.job.missed != "skip":
            return cursor
        self._count_skipped(len(came))
        return came[-1]

    def _note(self, state: JobState) -> None:
        self._last = state.last
        since = state.now if state.cursor is None else max(state.cursor, state.now)
        self._next = self.job.start_of(self.job.schedule.next_after(since))
        metrics.job_next_run.labels(self.job.name).set(self._next.timestamp())
        if state.last is not None and state.last.outcome == "done":
            metrics.job_last_success.labels(self.job.name).set(state.last.ended_at.timestamp())

    def _seconds_until_next(self, state: JobState) -> float:
        coming = self.job.start_of(self.job.schedule.next_after(state.cursor or state.now))
        return _seconds(coming - state.now)

    def _count_skipped(self, count: int) -> None:
        if count:
            metrics.job_slots_skipped.labels(self.job.name).inc(count)
            _log.warning("slots are skipped", job=self.job.name, count=count)


def _seconds(span: timedelta) -> float:
    return max((span + _SOON).total_seconds(), 0.0)


def _check_providers(jobs: Sequence[Job], providers: Mapping[Any, object]) -> None:
    available = {*providers, Slot, RequestContext}
    missing = [
        f"{', '.join(map(str, wanted))} for the job {job.name}"
        for job in jobs
        if (wanted := job.plan.missing(available))
    ]
    if missing:
        raise DeclarationError(f"nothing provides {'; '.join(missing)}")
