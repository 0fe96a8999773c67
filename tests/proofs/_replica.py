"""A replica of the data service whose relays are tested: `python -m tests.proofs._replica`.

It reads `DATABASE_URL`, `RABBITMQ_URL` and `PORT`, and is an ordinary data service of one resource.
"""

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped

from hybridkit.adapters.fastapi import run_api
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresSettings


class NewSale(BaseModel):
    """Sold, and told in an event with the same id.

    Attributes:
        key: the event's; empty where it has none.
        place: its number among the events of one transaction.
    """

    key: str
    place: int


class Sale(NewSale, Record):
    """A row of the proof."""


class Base(DeclarativeBase):
    """The service's one table."""


class SaleTable(RecordColumns, Base):
    """The table `sales`."""

    __tablename__ = "sales"

    key: Mapped[str]
    place: Mapped[int]


SALES = Resource("sales", record=Sale, create=NewSale, update=NewSale)


class Settings(PostgresSettings):
    """The settings, read from the environment."""

    service_name: str = "proof_service"


if __name__ == "__main__":
    run_api(create_data_service(Settings, {SALES: SaleTable}))
