"""Each type of field in the column that the guide has for it: what a client writes is what it reads."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import httpx
from pydantic import BaseModel
from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Integer,
    Interval,
    Numeric,
    Text,
    Time,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.clients import PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.ids import new_id
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Size(StrEnum):
    SMALL = "s"
    LARGE = "l"


class Address(BaseModel):
    city: str
    since: Timestamp


class NewParcel(BaseModel):
    title: str
    is_sent: bool
    pieces: int
    weight: float
    price: Decimal
    sent_at: Timestamp
    sent_on: date
    sent_from: time
    took: timedelta
    owner: UUID
    size: Size
    native_size: Size
    address: Address
    stops: list[Address]
    extra: dict[str, Any]
    tags: list[str]
    numbers: list[int]


class Parcel(NewParcel, Record):
    pass


PARCELS = Resource("parcels", record=Parcel, create=NewParcel, update=NewParcel)


class Base(DeclarativeBase):
    pass


class ParcelTable(RecordColumns, Base):
    __tablename__ = "parcels"
    title: Mapped[str] = mapped_column(Text)
    is_sent: Mapped[bool] = mapped_column(Boolean)
    pieces: Mapped[int] = mapped_column(BigInteger)
    weight: Mapped[float] = mapped_column(Double)
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    sent_on: Mapped[date] = mapped_column(Date)
    sent_from: Mapped[time] = mapped_column(Time)
    took: Mapped[timedelta] = mapped_column(Interval)
    owner: Mapped[UUID] = mapped_column(Uuid)
    size: Mapped[str] = mapped_column(Text)
    native_size: Mapped[Size] = mapped_column(
        Enum(Size, values_callable=lambda members: [member.value for member in members])
    )
    address: Mapped[dict[str, Any]] = mapped_column(JSONB)
    stops: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    extra: Mapped[dict[str, Any]] = mapped_column(JSONB)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    numbers: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class Settings(ServiceSettings):
    service_name: str = "column_types"
    database_url: PostgresUrl


async def test_each_type_comes_back_as_it_went(postgres_url: str) -> None:
    """A create, a read and a replace return the value of every column type unchanged."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {PARCELS: ParcelTable})
    app.state.settings = Settings(database_url=SecretUrl(postgres_url))
    home = Address(city="Oslo", since=datetime(2020, 1, 2, tzinfo=UTC))
    new = NewParcel(
        title="books",
        is_sent=True,
        pieces=2**40,
        weight=0.1,
        price=Decimal("12.50"),
        sent_at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        sent_on=date(2026, 1, 2),
        sent_from=time(9, 30),
        took=timedelta(hours=30, seconds=1),
        owner=new_id(),
        size=Size.SMALL,
        native_size=Size.LARGE,
        address=home,
        stops=[home, home],
        extra={"any": [1, {"thing": None}]},
        tags=["a", "b,c"],
        numbers=[1, 2],
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        PostgresDataClient("http://data.test", service="tests", transport=transport) as client,
    ):
        made = await client.create(PARCELS, new)
        read = await client.get(PARCELS, made.id)
        replaced = await client.replace(PARCELS, read, new)
    for record in (made, read, replaced):
        assert record.model_dump(include=set(NewParcel.model_fields)) == new.model_dump()
