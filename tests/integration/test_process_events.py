"""Events of a process's start, health and stop: published to whoever subscribes, and never in the way."""

import asyncio

from structlog.testing import capture_logs

from hybridkit.adapters._process_events import ProcessEvents
from hybridkit.adapters.worker import worker_lifespan
from hybridkit.errors import UnavailableError
from hybridkit.events import registry
from hybridkit.events.process import HealthDegraded, HealthRestored, ServiceStarted, ServiceStopping
from hybridkit.lifespan import Health
from hybridkit.messaging import RobustConsumer, RobustPublisher
from hybridkit.settings import SecretUrl, WorkerSettings
from tests.helpers import until

type Told = list[ServiceStarted | ServiceStopping | HealthDegraded | HealthRestored]


def listener(told: Told) -> RobustConsumer:
    """Return a consumer of another service that notes what it is told."""
    consumer = RobustConsumer("operations.told")

    @consumer.on(ServiceStarted)
    async def started(event: ServiceStarted) -> None:
        told.append(event)

    @consumer.on(HealthDegraded)
    async def degraded(event: HealthDegraded) -> None:
        told.append(event)

    @consumer.on(HealthRestored)
    async def restored(event: HealthRestored) -> None:
        told.append(event)

    @consumer.on(ServiceStopping)
    async def stopping(event: ServiceStopping) -> None:
        told.append(event)

    return consumer


def settings(name: str, redis_url: str, rabbitmq_url: str, *, process_events: bool) -> WorkerSettings:
    return WorkerSettings(
        service_name=name,
        environment="test",
        management_port=0,
        redis_url=SecretUrl(redis_url),
        rabbitmq_url=SecretUrl(rabbitmq_url),
        process_events=process_events,
        service_version="1.2.3",
    )


async def test_a_process_tells_of_its_start_its_health_and_its_stop(
    redis_url: str, rabbitmq_url: str
) -> None:
    """In this order, by typed events, to a consumer of another service."""
    told: Told = []
    faults = ["the disk is full"]

    async def probe() -> None:
        if faults:
            raise UnavailableError(faults[0])

    operations = settings("operations", redis_url, rabbitmq_url, process_events=False)
    worker = settings("worker", redis_url, rabbitmq_url, process_events=True)
    async with worker_lifespan(operations, consumers=[listener(told)]):
        async with worker_lifespan(worker, consumers=[]) as resources:
            resources.started()
            await until(lambda: len(told) == 1)
            resources.health.add("disk", probe)
            await resources.health.readiness()
            await until(lambda: len(told) == 2)
            faults.clear()
            resources.health.remove("disk")
            resources.health.add("disk", probe)  # asks again at once
            await resources.health.readiness()
            await until(lambda: len(told) == 3)
        await until(lambda: len(told) == 4)
    started, degraded, restored, stopping = told
    assert isinstance(started, ServiceStarted)
    assert (started.service, started.version) == ("worker", "1.2.3")
    assert isinstance(degraded, HealthDegraded)
    assert degraded.reasons == {"disk": "UnavailableError: the disk is full"}
    assert isinstance(restored, HealthRestored)
    assert restored.degraded_seconds >= 0
    assert isinstance(stopping, ServiceStopping)
    assert {each.instance for each in told} == {started.instance}


async def test_nothing_is_told_unless_it_is_asked_for(redis_url: str, rabbitmq_url: str) -> None:
    """A service that starts for the first time has no event that it did not declare."""
    quiet = settings("worker", redis_url, rabbitmq_url, process_events=False)
    told: Told = []
    operations = settings("operations", redis_url, rabbitmq_url, process_events=False)
    async with worker_lifespan(operations, consumers=[listener(told)]) as resources:
        async with worker_lifespan(quiet, consumers=[]) as started:
            started.started()
        # Whatever the quiet one had published would have been delivered before this.
        publisher = resources.providers[RobustPublisher]
        assert isinstance(publisher, RobustPublisher)
        await publisher.publish(ServiceStopping(service="last", instance="last"))
        await until(lambda: told)
    assert [event.service for event in told] == ["last"]


async def test_a_broker_that_is_away_holds_up_neither_start_nor_stop() -> None:
    """The event is lost, and a line of the log says so."""
    publisher = RobustPublisher("amqp://127.0.0.1:9/", service="worker")
    health = Health()
    told = settings("worker", "redis://127.0.0.1:9", "amqp://127.0.0.1:9/", process_events=True)
    with capture_logs() as logs:
        async with ProcessEvents(publisher, told, health):
            health.started()
            health.drain()
    lost = [line for line in logs if line["event"] == "event dropped"]
    assert [line["event_type"] for line in lost] == ["service.started", "service.stopping"]


async def test_health_is_looked_at_where_nobody_asks() -> None:
    """A service without an orchestrator tells too that it is not ready any more."""
    asked = asyncio.Event()
    health = Health()

    async def probe() -> None:
        asked.set()

    health.add("disk", probe)
    told = settings("worker", "redis://127.0.0.1:9", "amqp://127.0.0.1:9/", process_events=True)
    publisher = RobustPublisher("amqp://127.0.0.1:9/", service="worker")
    async with ProcessEvents(publisher, told, health, look_seconds=0.01):
        await asyncio.wait_for(asked.wait(), 60)


def test_the_events_are_declared_with_a_schema() -> None:
    """So AsyncAPI describes them once the module is imported."""
    types = {message.message_type for message in registry}
    assert types >= {"service.started", "service.stopping", "health.degraded", "health.restored"}
