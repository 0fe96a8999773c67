"""Jobs that run by a schedule, and long work."""

from typing import Final

from hybridkit.observability._metrics._declare import counter, gauge, histogram

_JOB_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)


class JobMetrics:
    """Runs of jobs and their slots, long work, and calls in threads."""

    job_runs = counter(
        "hybridkit_job_runs_total", "Runs of jobs in this process, by how they ended.", ("job", "outcome")
    )
    job_duration = histogram(
        "hybridkit_job_duration_seconds",
        "Time of a job's run in this process, with its retries.",
        ("job",),
        buckets=_JOB_SECONDS,
    )
    job_retries = counter(
        "hybridkit_job_retries_total", "Further attempts within the runs of a job.", ("job",)
    )
    job_in_flight = gauge(
        "hybridkit_job_in_flight_runs", "Runs of a job that have not ended.", ("job",), workers="livesum"
    )
    job_slots_overlapped = counter(
        "hybridkit_job_slots_overlapped_total",
        "Slots that came while the run before had not ended.",
        ("job",),
    )
    job_slots_skipped = counter(
        "hybridkit_job_slots_skipped_total",
        "Slots that were missed and are not run, 100 at a time at most.",
        ("job",),
    )
    job_last_success = gauge(
        "hybridkit_job_last_success_timestamp_seconds",
        "The time at which a job has last succeeded, on any replica.",
        ("job",),
        workers="livemax",
    )
    job_next_run = gauge(
        "hybridkit_job_next_run_timestamp_seconds",
        "The time of a job's next slot.",
        ("job",),
        workers="livemax",
    )
    work_items = counter(
        "hybridkit_work_items_total", "Items of long work that are done, as `Progress` was told.", ("work",)
    )
    work_progress = gauge(
        "hybridkit_work_progress_ratio",
        "The part of long work that is done, from 0 to 1.",
        ("work",),
        workers="livemax",
    )
    blocking_in_flight = gauge(
        "hybridkit_blocking_in_flight_calls", "Calls of `run_blocking` that have a thread.", workers="livesum"
    )
    blocking_queued = gauge(
        "hybridkit_blocking_queued_calls",
        "Calls of `run_blocking` that wait for a thread.",
        workers="livesum",
    )
    blocking_refused = counter(
        "hybridkit_blocking_refused_total", "Calls of `run_blocking` that were refused, as too many wait."
    )
