"""The services that an order's saga asks: stock, payments and shipping, which answer by what their rows say."""

from uuid import UUID

from pydantic import BaseModel

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.errors import RejectedError, UniqueViolationError
from hybridkit.events import Event
from hybridkit.messaging import RobustConsumer
from hybridkit.resources import Record, Resource
from tests.helpers.order_saga import (
    Charge,
    Charged,
    ChargeRefused,
    Refund,
    Refunded,
    ReleaseStock,
    ReserveStock,
    Ship,
    Shipped,
    StockRefused,
    StockReleased,
    StockReserved,
)


class NewEntry(BaseModel):
    """What a service has done for an order."""

    status: str


class Entry(NewEntry, Record):
    """The row of an order: its id is that of the order."""


RESERVATIONS = Resource("reservations", record=Entry, create=NewEntry, update=NewEntry)
PAYMENTS = Resource("payments", record=Entry, create=NewEntry, update=NewEntry)
SHIPMENTS = Resource("shipments", record=Entry, create=NewEntry, update=NewEntry)

type Entries = Resource[Entry, NewEntry, NewEntry]
type Client = PostgresDataClient | MongoDataClient


async def do(  # noqa: PLR0917 - a table in one line
    client: Client, entries: Entries, order_id: UUID, status: str, done: Event, refused: Event
) -> None:
    """Do it once for an order, and say by the row whether it was done or taken back before."""
    try:
        async with client.transaction() as tx:
            tx.create(entries, NewEntry(status=status), id=order_id)
            tx.emit(done)
    except UniqueViolationError:
        row = await client.get(entries, order_id)
        async with client.transaction() as tx:
            tx.emit(done if row.status == status else refused)


async def undo(client: Client, entries: Entries, order_id: UUID, status: str, undone: Event) -> None:
    """Take it back, also before it was done, and leave the row that says so."""
    async with client.transaction() as tx:
        tx.upsert(entries, order_id, NewEntry(status=status))
        tx.emit(undone)


def order_services() -> list[RobustConsumer]:
    """Return the three consumers."""
    stock = RobustConsumer("saga_test.stock")
    payments = RobustConsumer("saga_test.payments")
    shipping = RobustConsumer("saga_test.shipping")

    @stock.on(ReserveStock)
    async def reserve(command: ReserveStock, postgres: PostgresDataClient) -> None:
        key = command.order_id
        done, refused = StockReserved(order_id=key), StockRefused(order_id=key)
        await do(postgres, RESERVATIONS, key, "reserved", done, refused)

    @stock.on(ReleaseStock)
    async def release(command: ReleaseStock, postgres: PostgresDataClient) -> None:
        key = command.order_id
        await undo(postgres, RESERVATIONS, key, "released", StockReleased(order_id=key))

    @payments.on(Charge)
    async def charge(command: Charge, postgres: PostgresDataClient) -> None:
        key = command.order_id
        done, refused = Charged(order_id=key), ChargeRefused(order_id=key)
        if command.amount == 14:
            raise RejectedError("nobody charges 14")
        if command.amount == 13:
            async with postgres.transaction() as tx:
                tx.emit(refused)
        else:
            await do(postgres, PAYMENTS, key, "charged", done, refused)

    @payments.on(Refund)
    async def refund(command: Refund, postgres: PostgresDataClient) -> None:
        await undo(postgres, PAYMENTS, command.order_id, "refunded", Refunded(order_id=command.order_id))

    @shipping.on(Ship)
    async def ship(command: Ship, postgres: PostgresDataClient) -> None:
        key = command.order_id
        await do(postgres, SHIPMENTS, key, "shipped", Shipped(order_id=key), Shipped(order_id=key))

    return [stock, payments, shipping]
