"""The background kind of process: consumers of events and commands, and nothing else.

```python
analytics = RobustConsumer("worker_service.analytics", concurrency=32)

@analytics.on(UserCreated)
async def start_analytics(event: UserCreated, mongo: Mongo) -> None: ...

def main() -> None:
    run_worker(WorkerSettings, consumers=[analytics])       # until SIGTERM; exit code 0
```

Each event runs once (the idempotency guard is always there). On SIGTERM the worker takes nothing new, finishes what it
has, acknowledges, and ends. `/health`, `/ready` and `/metrics` are on the port of the settings.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from hybridkit.adapters._running import (
    Lifespan,
    StopSignals,
    open_application,
    open_resources,
    run_process,
    start_consumers,
)
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustConsumer
from hybridkit.settings import WorkerSettings

__all__ = ["run_worker", "worker_lifespan"]


def run_worker(
    settings_class: type[WorkerSettings],
    *,
    consumers: Sequence[RobustConsumer],
    lifespan: Lifespan | None = None,
) -> None:
    """Consume until SIGTERM, then finish what runs and return. A second signal gives up what still runs.

    Args:
        settings_class: read once, now.
        consumers: what to run; their handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis`, `Context`, the
            settings, and what `lifespan` provides, by type.
        lifespan: a context manager of the application's own, entered when the resources are open and left when the
            handlers have ended. It may yield a mapping of types to what handlers get for them: `{Mailer: mailer}`.

    Raises:
        SystemExit: with code 1, when the settings are unusable or the start failed.
    """

    async def work(settings: WorkerSettings, stop: StopSignals) -> None:
        async with worker_lifespan(settings, consumers=consumers, lifespan=lifespan) as resources:
            resources.started()
            stop.started(resources)
            await stop.asked.wait()

    run_process(settings_class, work)


@asynccontextmanager
async def worker_lifespan(
    settings: WorkerSettings, *, consumers: Sequence[RobustConsumer], lifespan: Lifespan | None = None
) -> AsyncGenerator[ServiceResources]:
    """What `run_worker` runs, for those who have a `main` of their own: inside the block the consumers consume.

    Call `resources.started()` to turn readiness green.

    Args:
        settings: where everything is.
        consumers: what to run.
        lifespan: as in `run_worker`.
    """
    async with open_resources("worker", settings) as resources:
        await open_application(resources, lifespan)
        await start_consumers(resources, consumers, providers=resources.providers)
        yield resources
