"""Each type of field in the column that the guide has for it: what a client writes is what it reads."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Integer,
    Interval,
    Numeric,
    String,
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
from hybridkit.errors import RequirementNotMetError
from hybridkit.ids import new_id
from hybridkit.resources import Record, Resource
from hybridkit.settings import PostgresUrl, SecretUrl, ServiceSettings


class Size(StrEnum):
    SMALL = "s"
    LARGE = "l"


OWNER = UUID("1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc")


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


class NewShelf(BaseModel):
    tags: list[str] = ["a", "b,c"]
    names: list[str] = ["anna", "berta"]
    numbers: list[int] = [1, 2]
    owners: list[UUID] = [OWNER]
    days: list[date] = [date(2026, 1, 2)]
    moments: list[Timestamp] = [datetime(2026, 1, 2, tzinfo=UTC)]
    sizes: list[Size] = [Size.SMALL]
    native_sizes: list[Size] = [Size.LARGE]
    prices: list[Decimal] = [Decimal("10.50")]
    loose: list[int | str] = [1, "a"]
    plain: list[str] = ["a"]
    hidden: list[str] | None = None


class Shelf(NewShelf, Record):
    pass


SHELVES = Resource(
    "shelves", record=Shelf, create=NewShelf, update=NewShelf, filterable=tuple(NewShelf.model_fields)
)


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


class ShelfTable(RecordColumns, Base):
    __tablename__ = "shelves"
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    names: Mapped[list[str]] = mapped_column(ARRAY(String(20)))
    numbers: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    owners: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    days: Mapped[list[date]] = mapped_column(ARRAY(Date))
    moments: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)))
    sizes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    native_sizes: Mapped[list[Size]] = mapped_column(
        ARRAY(Enum(Size, values_callable=lambda members: [member.value for member in members]))
    )
    prices: Mapped[list[Decimal]] = mapped_column(ARRAY(Numeric(12, 2)))
    loose: Mapped[list[Any]] = mapped_column(JSONB)
    plain: Mapped[list[str]] = mapped_column(JSON)
    hidden: Mapped[list[str] | None] = mapped_column(ARRAY(Text))


class Settings(ServiceSettings):
    service_name: str = "column_types"
    database_url: PostgresUrl


@asynccontextmanager
async def serving(postgres_url: str) -> AsyncGenerator[PostgresDataClient]:
    """A client of a data service with both tables."""
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    app = create_data_service(Settings, {PARCELS: ParcelTable, SHELVES: ShelfTable})
    app.state.settings = Settings(database_url=SecretUrl(postgres_url))
    async with (
        app.router.lifespan_context(app),
        PostgresDataClient("http://data.test", service="tests", transport=httpx.ASGITransport(app)) as client,
    ):
        yield client


async def test_each_type_comes_back_as_it_went(postgres_url: str) -> None:
    """A create, a read and a replace return the value of every column type unchanged."""
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
    async with serving(postgres_url) as client:
        made = await client.create(PARCELS, new)
        read = await client.get(PARCELS, made.id)
        replaced = await client.replace(PARCELS, read, new)
    for record in (made, read, replaced):
        assert record.model_dump(include=set(NewParcel.model_fields)) == new.model_dump()


async def test_filters_look_into_lists_of_every_type(postgres_url: str) -> None:
    """In arrays and in JSON alike: what the list has is found, what it lacks is not, and no value is neither."""
    lacking: dict[str, Any] = {
        "tags": "z",
        "names": "z",
        "numbers": 7,
        "owners": new_id(),
        "days": date(2020, 1, 1),
        "moments": datetime(2020, 1, 1, tzinfo=UTC),
        "sizes": Size.LARGE,
        "native_sizes": Size.SMALL,
        "prices": Decimal("10.51"),
        "loose": "1",
        "plain": "z",
    }
    async with serving(postgres_url) as client:
        shelf = await client.create(SHELVES, NewShelf())
        for name, missing in lacking.items():
            present, field = getattr(shelf, name), SHELVES[name]
            for where, is_found in (
                (field.contains(present), True),
                (field.contains(present[:1]), True),
                (field.contains([*present, missing]), False),
                (field.contains([]), True),
                (field.overlaps([missing, present[0]]), True),
                (field.overlaps([missing]), False),
                (field.overlaps([]), False),
                (~field.contains([missing]), True),
                (~field.overlaps(present), False),
            ):
                found = [each.id async for each in client.find(SHELVES).where(where)]
                assert found == [shelf.id] * is_found, (name, where)
        for where in (SHELVES["hidden"].contains([]), ~SHELVES["hidden"].overlaps(["a"])):
            assert [each async for each in client.find(SHELVES).where(where)] == []
        await change_if_tagged(client, shelf, "a", NewShelf(tags=["q"]))
        with pytest.raises(RequirementNotMetError):
            await change_if_tagged(client, shelf, "a", NewShelf())


async def change_if_tagged(client: PostgresDataClient, shelf: Shelf, tag: str, changes: NewShelf) -> None:
    async with client.transaction() as tx:
        tx.update(SHELVES, shelf.id, changes, require=SHELVES["tags"].contains([tag]))
