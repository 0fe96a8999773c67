"""hybridkit's publisher and consumer with their whole topology on the development broker."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest
from structlog.testing import capture_logs

from hybridkit.context import RequestContext, bind
from hybridkit.dev import BrokerFaults, DevelopmentBroker
from hybridkit.errors import NackedError, NotConnectedError, OutcomeUnknownError, UnroutableError
from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.retry import Retry
from tests.helpers import until


class Noticed(Event, type="broker.noticed"):
    number: int


class Unwanted(Event, type="broker.unwanted"):
    number: int


@pytest.fixture
async def broker() -> AsyncGenerator[DevelopmentBroker]:
    with capture_logs():
        async with DevelopmentBroker() as broker:
            yield broker


@pytest.fixture
async def publisher(broker: DevelopmentBroker) -> AsyncGenerator[RobustPublisher]:
    async with RobustPublisher(broker.url, service="tests") as publisher:
        yield publisher


@pytest.fixture
async def connection(broker: DevelopmentBroker) -> AsyncGenerator[BrokerConnection]:
    async with BrokerConnection(broker.url, name="tests") as connection:
        yield connection


class Notes:
    """A consumer that notes what it has handled, and fails as often as it is told."""

    def __init__(self, *, failures: int = 0, retry: Retry | None = None) -> None:
        self.numbers: list[int] = []
        self.consumer = RobustConsumer("notes", concurrency=4)
        self._failures = failures
        self.consumer.on(Noticed, retry=retry)(self.note)

    async def note(self, event: Noticed) -> None:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("not yet")
        self.numbers.append(event.number)


async def test_events_arrive(
    broker: DevelopmentBroker, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """They are confirmed, routed, handled and acknowledged."""
    notes = Notes()
    async with notes.consumer.running(connection, publisher=publisher):
        await asyncio.gather(*(publisher.publish(Noticed(number=n)) for n in range(100)))
        await until(lambda: sorted(notes.numbers) == list(range(100)))
        await until(lambda: broker.queues()["notes"].unacknowledged == 0)
    with pytest.raises(UnroutableError):
        await publisher.publish(Unwanted(number=1))


async def test_a_failing_handler_gets_its_retries_over_the_delay_levels(
    publisher: RobustPublisher, connection: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is handled again twice, a second apart."""
    monkeypatch.setattr("random.random", lambda: 1.0)
    notes = Notes(failures=2, retry=Retry.exponential(first_seconds=1, cap_seconds=1, attempts=3))
    async with notes.consumer.running(connection, publisher=publisher):
        await publisher.publish(Noticed(number=1))
        await until(lambda: notes.numbers == [1])


async def test_what_fails_for_good_is_a_dead_letter(
    broker: DevelopmentBroker, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """It is in the consumer's dead-letter queue."""
    notes = Notes(failures=2, retry=Retry.immediate(attempts=2))
    async with notes.consumer.running(connection, publisher=publisher):
        await publisher.publish(Noticed(number=1))
        await until(lambda: broker.queues()["notes.dlq"].ready == 1)
    assert notes.numbers == []


async def test_faults_have_their_errors(
    broker: DevelopmentBroker, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """Each error says what is known about the message."""
    async with Notes().consumer.running(connection, publisher=publisher):
        broker.faults.nack_publishes(1)
        with pytest.raises(NackedError):
            await publisher.publish(Noticed(number=1))
        broker.faults.drop_confirms(1)
        with bind(RequestContext().within(0.3)), pytest.raises(OutcomeUnknownError):
            await publisher.publish(Noticed(number=2))
        await publisher.publish(Noticed(number=3))


async def insist(publisher: RobustPublisher, event: Event) -> None:
    """Publish as soon as the publisher is connected again."""
    while True:
        try:
            await publisher.publish(event)
        except (NotConnectedError, OutcomeUnknownError):
            await asyncio.sleep(0.01)
        else:
            return


FAULTS: dict[str, Callable[[BrokerFaults], int]] = {
    "cancel": lambda faults: faults.cancel_consumers("notes"),
    "channel": lambda faults: faults.close_channels(queue="notes"),
    "connection": lambda faults: faults.close_connections(),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_consumer_heals(
    broker: DevelopmentBroker, publisher: RobustPublisher, connection: BrokerConnection, fault: str
) -> None:
    """After the fault it handles newly published events."""
    notes = Notes()
    async with notes.consumer.running(connection, publisher=publisher):
        assert FAULTS[fault](broker.faults)
        async with asyncio.timeout(60):
            await insist(publisher, Noticed(number=1))
        await until(lambda: set(notes.numbers) == {1})
