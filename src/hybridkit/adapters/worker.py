"""The background kind of process: consumers of events and commands, jobs that run by a schedule, and projections.

```python
analytics = RobustConsumer("worker_service.analytics", concurrency=32)

@analytics.on(UserCreated)
async def start_analytics(event: UserCreated, mongo: Mongo) -> None: ...

def main() -> None:
    run_worker(WorkerSettings, consumers=[analytics])       # until SIGTERM; exit code 0
```

Each event runs once, by the idempotency guard. On SIGTERM the worker takes nothing new, finishes what it has,
acknowledges it, and ends. `/health`, `/ready` and `/metrics` are on its management port.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from hybridkit.adapters._running import (
    Lifespan,
    StopSignals,
    open_application,
    open_resources,
    provided,
    run_process,
    start_consumers,
)
from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._runner import ProjectionRunner
from hybridkit.coordination import Redis
from hybridkit.errors import DeclarationError
from hybridkit.jobs import Jobs
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustConsumer
from hybridkit.settings import WorkerSettings
from hybridkit.streams import Projection

__all__ = ["run_worker", "worker_lifespan"]


def run_worker(
    settings_class: type[WorkerSettings],
    *,
    consumers: Sequence[RobustConsumer] = (),
    jobs: Jobs | None = None,
    projections: Sequence[Projection] = (),
    lifespan: Lifespan | None = None,
) -> None:
    """Consume events, run jobs and projections until SIGTERM, then finish what runs and return.

    A second signal ends what runs.

    Args:
        settings_class: the class of the settings, which are read once, now.
        consumers: the consumers to run. Their handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis`,
            `Context`, the settings, and what `lifespan` provides, by type.
        jobs: the jobs to run by their schedules; they may ask for the same, and for their `Slot`.
        projections: the projections to run. Their streams, records and positions are in the PostgreSQL data service. On
            several replicas one runs each, and another takes over when it stands still.
        lifespan: a context manager of the application, entered when the resources are open, and left when the handlers
            have ended. It may yield a mapping of types to values for handlers: `{Mailer: mailer}`.

    Raises:
        SystemExit: the settings are unusable, or the start failed; with code 1.
    """

    async def work(settings: WorkerSettings, stop: StopSignals) -> None:
        async with worker_lifespan(
            settings, consumers=consumers, jobs=jobs, projections=projections, lifespan=lifespan
        ) as resources:
            resources.started()
            stop.started(resources)
            await stop.asked.wait()

    run_process(settings_class, work)


@asynccontextmanager
async def worker_lifespan(
    settings: WorkerSettings,
    *,
    consumers: Sequence[RobustConsumer] = (),
    jobs: Jobs | None = None,
    projections: Sequence[Projection] = (),
    lifespan: Lifespan | None = None,
) -> AsyncGenerator[ServiceResources]:
    """Run consumers, jobs and projections inside the block, as `run_worker` does, for an application with a `main`.

    Call `resources.started()` to turn readiness green.

    Args:
        settings: the settings, which decide what is opened.
        consumers: the consumers to run.
        jobs: the jobs to run.
        projections: the projections to run.
        lifespan: as in `run_worker`.
    """
    async with open_resources("worker", settings) as resources:
        await open_application(resources, lifespan)
        await start_consumers(resources, consumers, providers=resources.providers)
        if jobs:
            await _start_jobs(resources, jobs, service=settings.service_name)
        if projections:
            await _start_projections(resources, projections)
        yield resources


async def _start_jobs(resources: ServiceResources, jobs: Jobs, *, service: str) -> None:
    redis = provided(resources, Redis)
    runner = await resources.open(
        "jobs", lambda: jobs.running(redis, service=service, providers=resources.providers)
    )
    resources.on_drain("jobs", lambda seconds: runner.drain(budget_seconds=seconds))
    for job in jobs:
        resources.health.add(f"job.{job.name}", partial(runner.probe, job.name))


async def _start_projections(resources: ServiceResources, projections: Sequence[Projection]) -> None:
    client = resources.providers.get(PostgresDataClient)
    if not isinstance(client, PostgresDataClient):
        raise DeclarationError(
            "projections are kept by the PostgreSQL data service: set POSTGRES_SERVICE_URL"
        )
    runner = await resources.open("projections", lambda: ProjectionRunner(projections, client))
    resources.on_drain("projections", lambda seconds: runner.drain(budget_seconds=seconds))
    for projection in projections:
        resources.health.add(f"projection.{projection.id}", partial(runner.probe, projection.id))
