"""Whatever arrives in whatever order, a saga comes to an allowed end, and the books balance."""

from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridkit.events import Event
from hybridkit.sagas import SAGAS
from hybridkit.testing import FakeDataService, SagaBench
from tests.helpers.order_saga import (
    Charged,
    ChargeRefused,
    OrderApproved,
    OrderCancelled,
    OrderPlaced,
    OrderRejected,
    Refunded,
    Shipped,
    StockRefused,
    StockReleased,
    StockReserved,
    order_saga,
)
from tests.helpers.order_services import PAYMENTS, RESERVATIONS, SHIPMENTS, order_services

ORDER_ID = UUID(int=7)
PLACE_ORDER = order_saga("saga_test.permutations")
SERVICES = order_services()
DATA = FakeDataService([SAGAS, RESERVATIONS, PAYMENTS, SHIPMENTS])
PLACED = OrderPlaced(order_id=ORDER_ID, total=Decimal(5000))

type Step = Event | timedelta

steps = st.lists(
    st.sampled_from(
        [
            PLACED,
            OrderCancelled(order_id=ORDER_ID),
            OrderRejected(order_id=ORDER_ID),
            OrderApproved(order_id=ORDER_ID),
            StockRefused(order_id=ORDER_ID),
            StockReleased(order_id=ORDER_ID),
            StockReserved(order_id=ORDER_ID),
            Charged(order_id=ORDER_ID),
            ChargeRefused(order_id=ORDER_ID),
            Refunded(order_id=ORDER_ID),
            Shipped(order_id=ORDER_ID),
            timedelta(seconds=5),
            timedelta(hours=3),
        ]
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.integers(0, 100))
async def test_every_order_of_messages_comes_to_an_allowed_end(said: list[Step], seed: int) -> None:
    """Duplicates, early and late ones, and events that nobody has caused; the services answer beside them."""
    DATA.clear()
    async with SagaBench(PLACE_ORDER, participants=SERVICES, data=DATA, seed=seed) as bench:
        for step in [*said, PLACED]:
            if isinstance(step, Event):
                await bench.tell(step)
            else:
                await bench.skip(seconds=step.total_seconds())
        await bench.skip(days=10)
        row = bench.saga(ORDER_ID)
        assert row.status in {"done", "undone"}, row
        assert row.error is None
        assert row.steps == len(row.history)
        if row.status == "undone":
            entries = [DATA.record(resource, ORDER_ID) for resource in (RESERVATIONS, PAYMENTS)]
            assert {entry.status for entry in entries if entry} <= {"released", "refunded"}
