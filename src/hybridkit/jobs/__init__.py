"""Run functions by a schedule, once over all replicas of a worker; and long work: in threads, with its progress.

```python
jobs = Jobs()

@jobs.every(minutes=1)
async def refresh_rates(rates: RatesClient) -> None: ...

@jobs.cron("0 3 * * *", time_zone="Europe/Berlin", missed="once")
async def remove_old_sessions(slot: Slot, postgres: Postgres) -> None: ...

def main() -> None:
    run_worker(WorkerSettings, jobs=jobs)
```
"""

from hybridkit.jobs._blocking import drain_blocking, run_blocking
from hybridkit.jobs._cron import Cron
from hybridkit.jobs._job import Job, Missed, Slot
from hybridkit.jobs._jobs import Jobs
from hybridkit.jobs._progress import Progress, ProgressState
from hybridkit.jobs._runner import JobRunner

__all__ = [
    "Cron",
    "Job",
    "JobRunner",
    "Jobs",
    "Missed",
    "Progress",
    "ProgressState",
    "Slot",
    "drain_blocking",
    "run_blocking",
]
