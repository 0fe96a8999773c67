"""The sweep sends lost timers again, counts what lives, and forgets what has long ended; the consumer runs it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from hybridkit.errors import UnavailableError
from hybridkit.events import Command, EventEnvelope
from hybridkit.ids import new_id
from hybridkit.observability import metrics
from hybridkit.sagas import _sweep as sweeping
from hybridkit.sagas._messages import order_class, timer_class
from hybridkit.sagas._sweep import Sweep
from hybridkit.testing import SagaBench
from tests.helpers import until
from tests.helpers.order_saga import Charged, OrderPlaced, Shipped, StockReserved, order_saga

PLACE_ORDER = order_saga("saga_test.swept")


class Outgoing:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[Command] = []

    async def send(self, command: Command) -> None:
        """Keep a command."""
        self.sent.append(command)


async def started(bench: SagaBench) -> Any:
    """Begin a saga, and return its key."""
    key = new_id()
    await bench.tell(OrderPlaced(order_id=key, total=Decimal(50)))
    return key


def sweep_of(bench: SagaBench) -> tuple[Sweep, Outgoing]:
    """Return a sweep, and what it publishes."""
    outgoing = Outgoing()
    return Sweep(PLACE_ORDER, bench.client, cast("Any", outgoing)), outgoing


async def test_a_timer_that_is_overdue_is_sent_once_in_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id is the same for all replicas and for the next look, and another one five minutes later."""
    async with SagaBench(PLACE_ORDER) as bench:
        key = await started(bench)
        bench._due.clear()  # the timer is lost
        sweep, outgoing = sweep_of(bench)
        await bench.skip(minutes=16)
        assert await sweep.look() == 0
        await bench.skip(minutes=1)
        assert [await sweep.look(), await sweep.look()] == [1, 1]
        first, second = outgoing.sent
        assert first == timer_class(PLACE_ORDER.name)(saga_id=PLACE_ORDER.id_of(key), entry=1)
        assert first.event_id == second.event_id
        await bench.skip(minutes=5)
        monkeypatch.setattr(sweeping, "MAX_TIMERS", 1)
        await sweep.look()
        assert outgoing.sent[-1].event_id != first.event_id
        await bench.tell(first)
        assert bench.saga(key).reason == "timeout: stock"


async def test_what_lives_is_measured() -> None:
    """By state; what needs a person, what is overdue, and the age of the oldest."""
    async with SagaBench(PLACE_ORDER) as bench:
        sweep, _ = sweep_of(bench)
        await sweep.measure()
        assert metrics.saga_oldest.labels(PLACE_ORDER.name)._value.get() == 0
        await started(bench)
        await bench.tell(StockReserved(order_id=await started(bench)))
        bench._due.clear()
        await bench.skip(hours=1)
        await sweep.measure()
        name = PLACE_ORDER.name
        assert metrics.live_sagas.labels(name, "stock")._value.get() == 1
        assert metrics.live_sagas.labels(name, "payment")._value.get() == 1
        assert metrics.live_sagas.labels(name, "undoing")._value.get() == 0
        assert metrics.overdue_sagas.labels(name)._value.get() == 2
        assert metrics.failed_sagas.labels(name)._value.get() == 0
        assert metrics.saga_oldest.labels(name)._value.get() == 3600


async def test_a_row_is_forgotten_thirty_days_after_its_end() -> None:
    """And not before; one that lives stays."""
    async with SagaBench(PLACE_ORDER) as bench:
        sweep, _ = sweep_of(bench)
        ended = await started(bench)
        for event in (StockReserved, Charged, Shipped):
            await bench.tell(event(order_id=ended))
        bench._due.clear()
        living = await started(bench)
        bench._due.clear()
        await bench.skip(days=30)
        assert await sweep.forget() == 0
        await bench.skip(seconds=1)
        assert await sweep.forget() == 1
        assert [row.key for row in bench.sagas()] == [str(living)]


@pytest.mark.parametrize("error", [UnavailableError("down"), KeyError("a mistake")])
async def test_an_error_of_a_look_does_not_end_the_sweep(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The next minute looks again."""
    monkeypatch.setattr(sweeping, "SWEEP_SECONDS", 0.0)
    looks = 0

    async def look(_: Sweep) -> int:
        nonlocal looks
        looks += 1
        raise error

    monkeypatch.setattr(Sweep, "look", look)
    async with SagaBench(PLACE_ORDER) as bench:
        sweep, _ = sweep_of(bench)
        task = asyncio.create_task(sweep.run())
        await until(lambda: looks > 1)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_the_sweep_looks_measures_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round."""
    monkeypatch.setattr(sweeping, "SWEEP_SECONDS", 0.0)
    done: list[str] = []

    def noting(name: str) -> Callable[[Sweep], Any]:
        async def note(_: Sweep) -> int:
            done.append(name)
            return 0

        return note

    for name in ("look", "measure", "forget"):
        monkeypatch.setattr(Sweep, name, noting(name))
    async with SagaBench(PLACE_ORDER) as bench:
        sweep, _ = sweep_of(bench)
        task = asyncio.create_task(sweep.run())
        await until(lambda: len(done) >= 6)
        task.cancel()
        await asyncio.wait({task})
    assert done[:6] == ["look", "measure", "forget"] * 2


async def test_the_consumer_gives_the_engine_what_handlers_want() -> None:
    """Its handlers are the engine's deliveries; one for each message of the saga."""
    saga = order_saga("saga_test.consumed")
    consumer = saga.consumer
    assert consumer is saga.consumer
    assert await consumer.drain(budget_seconds=1)
    async with SagaBench(saga) as bench:
        key = new_id()
        handlers = {handler.message: handler for handler in consumer._handlers}
        envelope = EventEnvelope[Any].wrap(OrderPlaced(order_id=key, total=Decimal(5)), service="api_service")
        await handlers[OrderPlaced].run(envelope, {type(bench.client): bench.client})
        assert bench.saga(key).state == "stock"
        assert [entry.service for entry in bench.saga(key).history] == ["api_service"]


async def test_a_timer_or_order_of_another_saga_moves_nothing() -> None:
    """A row belongs to the saga that it names, whatever id a message has."""
    async with SagaBench(PLACE_ORDER) as bench:
        key = await started(bench)
        other = order_saga("saga_test.other")
        order = order_class(other.name)(saga_id=PLACE_ORDER.id_of(key), do="cancel", by="eve")
        handlers = {handler.message: handler for handler in other.consumer._handlers}
        envelope = EventEnvelope[Any].wrap(order, service="api_service")
        await handlers[type(order)].run(envelope, {type(bench.client): bench.client})
        assert bench.saga(key).status == "running"
        assert bench.saga(key).wake_at == bench.now + timedelta(minutes=15)
