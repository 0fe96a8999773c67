"""The background kind of process: consumers of events and commands.

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
    """Consume until SIGTERM, then finish what runs and return. A second signal ends what still runs.

    Args:
        settings_class: the class of the settings, which are read once, now.
        consumers: the consumers to run. Their handlers may ask for `Postgres`, `Mongo`, `Publisher`, `Redis`,
            `Context`, the settings, and what `lifespan` provides, by type.
        lifespan: a context manager of the application, entered when the resources are open, and left when the handlers
            have ended. It may yield a mapping of types to values for handlers: `{Mailer: mailer}`.

    Raises:
        SystemExit: the settings are unusable, or the start failed; with code 1.
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
    """Run consumers inside the block, as `run_worker` does, for an application with its own `main`.

    Call `resources.started()` to turn readiness green.

    Args:
        settings: the settings, which decide what is opened.
        consumers: the consumers to run.
        lifespan: as in `run_worker`.
    """
    async with open_resources("worker", settings) as resources:
        await open_application(resources, lifespan)
        await start_consumers(resources, consumers, providers=resources.providers)
        yield resources
