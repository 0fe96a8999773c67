"""The saga of the documentation, whole: an order that reserves stock, charges, may need a person, and is shipped."""

from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.events import Command, Event
from hybridkit.sagas import Run, Saga


class OrderPlaced(Event, type="saga_test.order.placed", key="order_id"):
    """An order was placed."""

    order_id: UUID
    total: Decimal


class StockReserved(Event, type="saga_test.stock.reserved", key="order_id"):
    """The stock is reserved."""

    order_id: UUID


class StockRefused(Event, type="saga_test.stock.refused", key="order_id"):
    """There is no stock."""

    order_id: UUID


class StockReleased(Event, type="saga_test.stock.released", key="order_id"):
    """The stock is released."""

    order_id: UUID


class Charged(Event, type="saga_test.payment.charged", key="order_id"):
    """The money is there."""

    order_id: UUID


class ChargeRefused(Event, type="saga_test.payment.refused", key="order_id"):
    """The money is not to be had."""

    order_id: UUID


class Refunded(Event, type="saga_test.payment.refunded", key="order_id"):
    """The money is back."""

    order_id: UUID


class ApprovalAsked(Event, type="saga_test.approval.asked", key="order_id"):
    """A person has to look at it."""

    order_id: UUID


class OrderApproved(Event, type="saga_test.order.approved", key="order_id"):
    """A person has approved."""

    order_id: UUID
    by: str = ""


class OrderRejected(Event, type="saga_test.order.rejected", key="order_id"):
    """A person has refused."""

    order_id: UUID


class OrderCancelled(Event, type="saga_test.order.cancelled", key="order_id"):
    """The customer has cancelled."""

    order_id: UUID


class Shipped(Event, type="saga_test.order.shipped", key="order_id"):
    """It is on its way."""

    order_id: UUID


class ShipmentIsLate(Event, type="saga_test.shipment.late", key="order_id"):
    """It is not on its way yet."""

    order_id: UUID


class OrderFinished(Event, type="saga_test.order.finished", key="order_id"):
    """The saga has ended."""

    order_id: UUID
    status: str
    reason: str | None


class ReserveStock(Command, queue="saga_test.stock"):
    """Reserve."""

    order_id: UUID


class ReleaseStock(Command, queue="saga_test.stock"):
    """Release."""

    order_id: UUID


class Charge(Command, queue="saga_test.payments"):
    """Charge."""

    order_id: UUID
    amount: Decimal


class Refund(Command, queue="saga_test.payments"):
    """Refund."""

    order_id: UUID


class Ship(Command, queue="saga_test.shipping"):
    """Ship."""

    order_id: UUID


class Waiting(StrEnum):
    """What it waits for."""

    STOCK = "stock"
    PAYMENT = "payment"
    APPROVAL = "approval"
    SHIPMENT = "shipment"


class OrderData(BaseModel):
    """What it remembers."""

    total: Decimal


def order_saga(  # noqa: C901 - a declaration with its handlers
    name: str = "saga_test.place_order",
    *,
    client: type[PostgresDataClient] | type[MongoDataClient] = PostgresDataClient,
) -> Saga[OrderData]:
    """Declare the saga; each test may have its own, by its name."""
    place_order = Saga(
        name,
        data=OrderData,
        states=Waiting,
        key="order_id",
        deadline=timedelta(days=7),
        undone_by=(StockReleased, Refunded),
        client=client,
    )

    @place_order.starts(OrderPlaced)
    async def placed(event: OrderPlaced, saga: Run[OrderData]) -> None:
        saga.data = OrderData(total=event.total)
        saga.send(
            ReserveStock(order_id=event.order_id),
            undo=ReleaseStock(order_id=event.order_id),
            undone_by=StockReleased,
        )
        saga.wait(Waiting.STOCK, timeout=timedelta(minutes=15))

    @place_order.on(StockReserved, when=Waiting.STOCK)
    async def reserved(event: StockReserved, saga: Run[OrderData]) -> None:
        saga.send(
            Charge(order_id=event.order_id, amount=saga.data.total),
            undo=Refund(order_id=event.order_id),
            undone_by=Refunded,
        )
        saga.wait(Waiting.PAYMENT, timeout=timedelta(minutes=15))

    @place_order.on(Charged, when=Waiting.PAYMENT)
    async def charged(event: Charged, saga: Run[OrderData]) -> None:
        if saga.data.total < 1000:
            return ship(saga, event.order_id)
        saga.emit(ApprovalAsked(order_id=event.order_id))
        saga.wait(Waiting.APPROVAL, timeout=timedelta(days=2))
        return None

    @place_order.on(OrderApproved, when=Waiting.APPROVAL)
    async def approved(event: OrderApproved, saga: Run[OrderData]) -> None:
        ship(saga, event.order_id)

    def ship(saga: Run[OrderData], order_id: UUID) -> None:
        saga.send(Ship(order_id=order_id))
        saga.wait(Waiting.SHIPMENT, timeout=timedelta(days=1))

    @place_order.on(Shipped, when=Waiting.SHIPMENT)
    async def shipped(saga: Run[OrderData]) -> None:
        saga.done()

    @place_order.on(StockRefused, when=Waiting.STOCK)
    @place_order.on(ChargeRefused, when=Waiting.PAYMENT)
    @place_order.on(OrderRejected, when=Waiting.APPROVAL)
    @place_order.on(OrderCancelled, when=(Waiting.STOCK, Waiting.PAYMENT, Waiting.APPROVAL))
    async def refused(saga: Run[OrderData]) -> None:
        saga.fail(type(saga.event).__name__)

    @place_order.on_timeout(Waiting.SHIPMENT)
    async def late(saga: Run[OrderData]) -> None:
        saga.emit(ShipmentIsLate(order_id=saga.key))
        saga.wait(Waiting.SHIPMENT, timeout=timedelta(days=1))

    @place_order.on_end
    async def ended(saga: Run[OrderData]) -> None:
        saga.emit(OrderFinished(order_id=saga.key, status=saga.status, reason=saga.reason))

    return place_order
