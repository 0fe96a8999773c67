"""`hybridkit jobs`: show the jobs of a service with their last and next runs, and have one run now."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._common import (
    JsonOption,
    checked_url,
    find_instances,
    one_line,
    print_json,
    print_table,
    run,
)
from hybridkit.codec import format_timestamp
from hybridkit.coordination import connect_redis
from hybridkit.jobs import Job, Jobs
from hybridkit.jobs._records import JobRecord, JobState, LastRun
from hybridkit.jobs._schedule import BySetting
from hybridkit.settings import RedisUrl

app = typer.Typer()

_TIMEOUT_SECONDS: Final = 2.0


def _checked_url(value: str) -> str:
    return checked_url(value, RedisUrl)


ModuleArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODULE[:NAME]",
        help="The module that declares the jobs, as it is imported from here: worker_service.main, or"
        " worker_service.main:jobs.",
    ),
]
RedisOption = Annotated[
    str,
    typer.Option(
        "--redis-url",
        envvar="REDIS_URL",
        callback=_checked_url,
        metavar="URL",
        help="redis://:password@host:6379/0: the worker's. As an option its password is seen by whoever lists"
        " processes.",
    ),
]
ServiceOption = Annotated[
    str,
    typer.Option("--service", envvar="SERVICE_NAME", help="The worker's service name, as its settings say."),
]


@app.command("list")
def list_(
    module: ModuleArgument, *, redis_url: RedisOption, service: ServiceOption, as_json: JsonOption = False
) -> None:
    """Show each job with its schedule, its last and its next run; change nothing.

    Exit code 1 when the last run of a job has not succeeded.
    """
    jobs = _jobs_in(module)
    states = run(_states(jobs, redis_url, service))
    if as_json:
        print_json([_document(job, state) for job, state in zip(jobs, states, strict=True)])
    else:
        headers = ("JOB", "SCHEDULE", "NEXT", "LAST", "OUTCOME", "SECONDS", "NOW")
        print_table([_row(*each) for each in zip(jobs, states, strict=True)], headers=headers)
    if any(state.last is not None and state.last.outcome != "done" for state in states):
        raise typer.Exit(1)


@app.command("run")
def run_(
    module: ModuleArgument,
    name: Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")],
    *,
    redis_url: RedisOption,
    service: ServiceOption,
    take_seconds: Annotated[
        float, typer.Option("--take", min=0, help="The seconds within which a worker has to begin.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Have a worker of the service run a job now, and wait for its end.

    The run has a claim as each slot has: it begins on one replica when the run before has ended, and is taken over from
    a replica that dies. The schedule goes on beside it. Exit code 1 when it has failed, or when no worker has begun it.
    """
    job = next((job for job in _jobs_in(module) if job.name == name), None)
    if job is None:
        known = ", ".join(job.name for job in _jobs_in(module))
        raise typer.BadParameter(f"there is no job {name!r} in {module}; there are {known}", param_hint="JOB")
    last = run(_run_now(job, redis_url, service, take_seconds=take_seconds))
    if as_json:
        print_json(_run_document(last))
    else:
        reason = f" ({last.error})" if last.error else ""
        typer.echo(f"{job.name}: {last.outcome}{reason} in {last.seconds:.1f} s")
    raise typer.Exit(0 if last.outcome == "done" else 1)


def _jobs_in(module: str) -> list[Job]:
    return [job for jobs in find_instances([module], Jobs) for job in jobs]


async def _states(jobs: list[Job], redis_url: str, service: str) -> list[JobState]:
    async with connect_redis(redis_url, timeout_seconds=_TIMEOUT_SECONDS) as redis:
        records = [JobRecord(redis, service=service, job=job.name) for job in jobs]
        return list(await asyncio.gather(*(record.look() for record in records)))


async def _run_now(job: Job, redis_url: str, service: str, *, take_seconds: float) -> LastRun:
    async with connect_redis(redis_url, timeout_seconds=_TIMEOUT_SECONDS) as redis:
        return await JobRecord(redis, service=service, job=job.name).run_now(take_seconds=take_seconds)


# ── printing ─────────────────────────────────────────────────────────────────────────────────────


def _next_slot(job: Job, state: JobState) -> datetime | None:
    if isinstance(job.schedule, BySetting):
        return None
    since = state.now if state.cursor is None else max(state.cursor, state.now)
    return job.start_of(job.schedule.next_after(since))


def _row(job: Job, state: JobState) -> tuple[object, ...]:
    slot = _next_slot(job, state)
    coming = "-" if slot is None else format_timestamp(slot)
    now = "running" if state.is_running else "to be taken over" if state.slot else "-"
    if state.last is None:
        return (job.name, one_line(job.schedule), coming, "-", "-", "-", now)
    last = state.last
    outcome = f"{last.outcome} ({last.error})" if last.error else last.outcome
    seconds = f"{last.seconds:.1f}"
    return (
        job.name,
        one_line(job.schedule),
        coming,
        format_timestamp(last.slot),
        one_line(outcome),
        seconds,
        now,
    )


def _document(job: Job, state: JobState) -> dict[str, Any]:
    return {
        "job": job.name,
        "schedule": str(job.schedule),
        "missed": job.missed,
        "next": _next_slot(job, state),
        "running": state.slot if state.is_running else None,
        "last": None if state.last is None else _run_document(state.last),
    }


def _run_document(last: LastRun) -> dict[str, Any]:
    return {
        "slot": last.slot,
        "begun_at": last.begun_at,
        "ended_at": last.ended_at,
        "seconds": last.seconds,
        "outcome": last.outcome,
        "error": last.error or None,
    }
