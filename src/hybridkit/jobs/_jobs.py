"""Declare jobs: functions that run by a schedule, once over all replicas."""

import inspect
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, get_args

from hybridkit._injection import plan_injection
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError
from hybridkit.jobs._cron import Cron
from hybridkit.jobs._job import Job, Missed
from hybridkit.jobs._runner import JobRunner
from hybridkit.jobs._schedule import BySetting, Every, Schedule
from hybridkit.retry import Retry
from hybridkit.settings import ServiceSettings

MAX_JITTER_SECONDS: Final = 86_400.0
MAX_TIMEOUT_SECONDS: Final = 7 * 86_400.0
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,99}")


class Jobs:
    """The jobs of a service; declared at import, run by a worker: `run_worker(…, jobs=jobs)`.

    ```python
    jobs = Jobs()

    @jobs.cron("0 3 * * *", time_zone="Europe/Berlin")
    async def remove_old_sessions(slot: Slot, postgres: Postgres) -> None: ...
    ```

    Each slot of a job is run by one replica, and a job is never run by two at the same time. When a replica dies in the
    middle, another one runs the slot again, at most 30 s later; writes through the data services have the same
    idempotency keys then, so they have one effect. Everything else that a job does may happen twice.

    Parameters are injected by their annotation: `Slot`, `RequestContext`, and what the worker provides.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Job] = {}
        self._zones: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Jobs({list(self._by_name)})"

    def __iter__(self) -> Iterator[Job]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> Job:
        return self._by_name[name]

    def every[FunctionT: Callable[..., Awaitable[object]]](
        self,
        *,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: int = 0,
        setting: str | None = None,
        name: str | None = None,
        missed: Missed = "once",
        jitter_seconds: float = 0.0,
        timeout_seconds: float = 3600.0,
        retry: Retry | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a function to run once in a period, as a decorator; the function stays as it is.

        Slots are counted from the beginning of 1970 in UTC, so every replica has the same: `minutes=5` is at :00, :05,
        :10. For a time of day use `cron`.

        Args:
            days: of the period; the four are added up, to a second at least.
            hours: of the period.
            minutes: of the period.
            seconds: of the period.
            setting: the field of the worker's settings that has the period, a `timedelta`, in place of the four.
            name: the name in Redis, logs and metrics; by default the function's.
            missed: what becomes of slots that came while no replica was there or the run before had not ended: `once`
                runs the last of them, `all` each of the last 100, oldest first, and `skip` none that is late by more
                than a minute.
            jitter_seconds: delays each slot by a time between 0 and this, so that jobs of one schedule don't begin all
                at once.
            timeout_seconds: the time of a run, with its retries; then it is cancelled and counts as failed.
            retry: the policy for failures; by default three attempts, a second or two apart.

        Raises:
            DeclarationError: a value is out of its range, the name is taken, or the function can't be a job.
        """
        period = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if setting is not None and period:
            raise DeclarationError(f"the period of a job is the setting {setting!r} or {period}, not both")
        schedule: Schedule = Every(period) if setting is None else BySetting(setting)
        return self._registering(
            schedule,
            name=name,
            missed=missed,
            jitter_seconds=jitter_seconds,
            timeout_seconds=timeout_seconds,
            retry=retry,
        )

    def cron[FunctionT: Callable[..., Awaitable[object]]](
        self,
        expression: str | None = None,
        *,
        setting: str | None = None,
        time_zone: str = "UTC",
        name: str | None = None,
        missed: Missed = "once",
        jitter_seconds: float = 0.0,
        timeout_seconds: float = 3600.0,
        retry: Retry | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register a function to run by a cron expression, as a decorator; the function stays as it is.

        When the clocks change, a job with a fixed time of day runs on that day once: at the end of the gap, or the
        first time. A job whose minute or hour begins with `*` goes by what the clock shows.

        Args:
            expression: `minute hour day-of-month month day-of-week`, as in crontab(5).
            setting: the field of the worker's settings that has the expression, as text or as a `Cron`, in its place.
            time_zone: the zone of the expression, such as `Europe/Berlin`; not of a `Cron`, which has one.
            name: as in `every`, and so are the other arguments.
            missed: what becomes of slots that could not be begun in time.
            jitter_seconds: the longest delay of a slot.
            timeout_seconds: the time of a run, with its retries.
            retry: the policy for failures.

        Raises:
            DeclarationError: the expression can't be read, or as in `every`.
        """
        if (expression is None) is (setting is None):
            raise DeclarationError(
                "a job by cron needs an expression, or setting= with the field that has it"
            )
        zone = _checked_zone(time_zone)
        schedule: Schedule = (
            BySetting(setting) if expression is None and setting else Cron(expression or "", time_zone=zone)
        )
        return self._registering(
            schedule,
            name=name,
            missed=missed,
            jitter_seconds=jitter_seconds,
            timeout_seconds=timeout_seconds,
            retry=retry,
            time_zone=zone,
        )

    @asynccontextmanager
    async def running(
        self, redis: Redis, *, service: str, providers: Mapping[Any, object] | None = None
    ) -> AsyncGenerator[JobRunner]:
        """Run the jobs inside the block, as a worker does; what still runs at its end is cancelled and given back.

        Args:
            redis: a client from `connect_redis`, where the replicas agree on whose turn it is.
            service: the name of the service, so that services don't share jobs.
            providers: the objects that jobs may ask for, by their annotation.

        Raises:
            DeclarationError: a job wants an object that no provider gives; all of them are named. Or its schedule is a
                setting that is missing or can't be read.
        """
        given = providers or {}
        jobs = [scheduled(job, given, time_zone=self._zones[job.name]) for job in self]
        runner = JobRunner(jobs, redis, service=service, providers=given)
        async with runner:
            yield runner

    def _registering[FunctionT: Callable[..., Awaitable[object]]](
        self,
        schedule: Schedule,
        *,
        name: str | None,
        missed: Missed,
        jitter_seconds: float,
        timeout_seconds: float,
        retry: Retry | None,
        time_zone: str = "UTC",
    ) -> Callable[[FunctionT], FunctionT]:
        def register(function: FunctionT) -> FunctionT:
            _check_function(function)
            job = Job(
                name=name or str(getattr(function, "__name__", "")),
                function=function,
                schedule=schedule,
                missed=missed,
                jitter_seconds=jitter_seconds,
                timeout_seconds=timeout_seconds,
                retry=retry or Retry.exponential(attempts=3),
                plan=plan_injection(function),
            )
            _check_options(job)
            if job.name in self._by_name:
                raise DeclarationError(
                    f"there are two jobs named {job.name!r}: give one of them another `name`"
                )
            self._by_name[job.name] = job
            self._zones[job.name] = time_zone
            return function

        return register


def scheduled(job: Job, providers: Mapping[Any, object], *, time_zone: str) -> Job:
    """Return a job with its schedule, also where a setting has it.

    Args:
        job: the job as it is declared.
        providers: the objects of the worker, of which one is its settings.
        time_zone: the zone of an expression.

    Raises:
        DeclarationError: there are no settings, or the setting is no schedule.
    """
    if not isinstance(job.schedule, BySetting):
        return job
    settings = next((each for each in providers.values() if isinstance(each, ServiceSettings)), None)
    match found := job.schedule.read_from(settings):
        case timedelta():
            return replace(job, schedule=Every(found))
        case Cron():
            return replace(job, schedule=found)
        case str():
            return replace(job, schedule=Cron(found, time_zone=time_zone))
        case _:
            raise DeclarationError(
                f"the job {job.name!r}: the setting {job.schedule.name} is a timedelta, a Cron or its text, not"
                f" {found!r}"
            )


def _checked_zone(time_zone: str) -> str:
    """Refuse a zone that is not known, also where the expression comes later."""
    return Cron("0 0 * * *", time_zone=time_zone).time_zone


def _check_function(function: Callable[..., object]) -> None:
    if not inspect.iscoroutinefunction(function):
        raise DeclarationError(
            f"the job {getattr(function, '__qualname__', repr(function))} must be `async def`; what blocks is called"
            " by `await run_blocking(...)` in it"
        )


def _check_options(job: Job) -> None:
    where = f"the job {job.name!r}"
    if not _NAME.fullmatch(job.name):
        raise DeclarationError(f"{where} needs a `name` in snake_case, of at most 100 characters")
    if job.missed not in get_args(Missed.__value__):
        raise DeclarationError(f"{where}: missed is 'skip', 'once' or 'all', not {job.missed!r}")
    if not 0 <= job.jitter_seconds <= MAX_JITTER_SECONDS:
        raise DeclarationError(f"{where}: jitter_seconds is from 0 to a day, not {job.jitter_seconds}")
    if not 0 < job.timeout_seconds <= MAX_TIMEOUT_SECONDS:
        raise DeclarationError(f"{where}: timeout_seconds is up to a week, not {job.timeout_seconds}")
