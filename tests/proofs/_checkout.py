"""The application of the crash-point proof: `python -m tests.proofs._checkout postgres | mongo` serves its data.

One handler does what handlers do: it creates a record, changes a shared one by its own value, creates a document, and
publishes an event. None of the four is protected by anything but the claim that the handler runs under.
"""

import sys
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped

from hybridkit.adapters.fastapi import run_api
from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.dataservice import DocumentCollection, RecordColumns, create_data_service
from hybridkit.events import Event
from hybridkit.messaging import RobustPublisher
from hybridkit.resources import Record, Resource
from hybridkit.settings import MongoSettings, PostgresSettings

STOCK_IDS = [UUID(int=number) for number in range(1, 9)]
"""The records that all handlers change."""


class OrderPlaced(Event, type="crash_proof.placed", version=1, key="number"):
    """The event that is handled."""

    number: int


class OrderConfirmed(Event, type="crash_proof.confirmed", version=1, key="number"):
    """The event that the handler publishes."""

    number: int


class NewOrder(BaseModel):
    """The first write of a handler."""

    number: int


class Order(NewOrder, Record):
    """A row for each handled event."""


class NewStock(BaseModel):
    """What was sold of a product."""

    sold: int = 0


class Stock(NewStock, Record):
    """A row that many handlers change."""


class StockChanges(BaseModel):
    """The second write of a handler."""

    sold: int


class NewReceipt(BaseModel):
    """The third write of a handler."""

    number: int


class Receipt(NewReceipt, Record):
    """A document for each handled event."""


ORDERS = Resource("orders", record=Order, create=NewOrder, update=NewOrder, filterable=("number",))
STOCKS = Resource("stocks", record=Stock, create=NewStock, update=StockChanges)
RECEIPTS = Resource("receipts", record=Receipt, create=NewReceipt, update=NewReceipt, filterable=("number",))


class Base(DeclarativeBase):
    """The tables of the PostgreSQL data service."""


class OrderTable(RecordColumns, Base):
    """The table `orders`."""

    __tablename__ = "orders"

    number: Mapped[int]


class StockTable(RecordColumns, Base):
    """The table `stocks`."""

    __tablename__ = "stocks"

    sold: Mapped[int]


async def check_out(
    event: OrderPlaced, *, postgres: PostgresDataClient, mongo: MongoDataClient, publisher: RobustPublisher
) -> None:
    """Handle one event: three writes over HTTP, and one event."""
    await postgres.create(ORDERS, NewOrder(number=event.number))
    await postgres.modify(
        STOCKS, STOCK_IDS[event.number % len(STOCK_IDS)], lambda stock: StockChanges(sold=stock.sold + 1)
    )
    await mongo.create(RECEIPTS, NewReceipt(number=event.number))
    await publisher.publish(OrderConfirmed(number=event.number))


class PostgresProofSettings(PostgresSettings):
    """The settings of the PostgreSQL data service."""

    service_name: str = "db_postgres_service"


class MongoProofSettings(MongoSettings):
    """The settings of the MongoDB data service."""

    service_name: str = "db_mongo_service"


if __name__ == "__main__":
    if sys.argv[1] == "postgres":
        run_api(create_data_service(PostgresProofSettings, {ORDERS: OrderTable, STOCKS: StockTable}))
    else:
        run_api(create_data_service(MongoProofSettings, {RECEIPTS: DocumentCollection()}))
