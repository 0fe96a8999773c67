"""Events in which processes tell of themselves, published by those with `PROCESS_EVENTS=true`.

```python
from hybridkit.events.process import HealthDegraded

@operations.on(HealthDegraded)
async def tell(event: HealthDegraded, pager: Pager) -> None:
    await pager.warn(f"{event.service} on {event.instance}: {event.reasons}")
```

They are hints, not facts that are kept: one is lost where RabbitMQ does not answer, and a process that is killed tells
nothing. Alerts belong to metrics. The declarations enter the registry with the import of this module.
"""

from hybridkit.events._declaration import Event


class ServiceStarted(Event, type="service.started", key="instance"):
    """A process is complete and takes work.

    Attributes:
        service: the name of the service.
        instance: the process: its host's name and its process id.
        version: `SERVICE_VERSION` of its settings.
    """

    service: str
    instance: str
    version: str = ""


class ServiceStopping(Event, type="service.stopping", key="instance"):
    """A process was told to stop, and takes no more work.

    Attributes:
        service: the name of the service.
        instance: the process: its host's name and its process id.
    """

    service: str
    instance: str


class HealthDegraded(Event, type="health.degraded", key="instance"):
    """A process is not ready any more.

    Attributes:
        service: the name of the service.
        instance: the process: its host's name and its process id.
        reasons: the dependencies that are down, and why, as `/ready` says.
    """

    service: str
    instance: str
    reasons: dict[str, str]


class HealthRestored(Event, type="health.restored", key="instance"):
    """A process that was not ready is ready again.

    Attributes:
        service: the name of the service.
        instance: the process: its host's name and its process id.
        degraded_seconds: for how long it was not.
    """

    service: str
    instance: str
    degraded_seconds: float
