"""Fields and columns that don't go together: found when the table is declared."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, PlainSerializer, create_model, field_serializer
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import BIT, INET, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from hybridkit.codec import Timestamp
from hybridkit.dataservice import RecordColumns
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._column_fit import unfit_reason
from hybridkit.errors import DeclarationError
from hybridkit.resources import Record, Resource


class Address(BaseModel):
    city: str


class Size(StrEnum):
    SMALL = "small"


class Level(IntEnum):
    LOW = 1


class Joined(TypeDecorator[Any]):
    impl = Text
    cache_ok = True


def told(annotation: Any, kind: TypeEngine[Any]) -> str | None:
    return unfit_reason(create_model("Model", field=(annotation, ...)), "field", kind)


def on(annotation: Any, *kinds: TypeEngine[Any]) -> list[tuple[Any, TypeEngine[Any]]]:
    return [(annotation, kind) for kind in kinds]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        *on(Decimal, Text(), Integer(), BigInteger(), Boolean(), DateTime()),
        (Annotated[Decimal, Field(ge=0)], String(10)),
        *on(str, Integer(), Numeric(10, 2), Double(), Boolean()),
        (Size, SmallInteger()),
        (Literal["a", "b"], Integer()),
        *on(int, Text(), Boolean(), DateTime(timezone=True), Uuid()),
        (Level, Text()),
        *on(float, Integer(), Text()),
        *on(bool, Integer(), Text()),
        *((each, Text()) for each in (list[str], dict[str, Any], Address, set[int], tuple[int, ...])),
        (list[Address], Integer()),
        (UUID, BigInteger()),
        (datetime, Integer()),
        (timedelta, Integer()),
        (int | Decimal, Text()),
    ],
)
def test_what_can_not_work_is_named(annotation: Any, kind: TypeEngine[Any], *, optional: bool) -> None:
    """The reason names the column for every pair that can never fit, optional or not."""
    found = told(annotation | None if optional else annotation, kind)
    assert found is not None
    assert "the column field is" in found


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (Decimal, Numeric(12, 2)),
        (Decimal, Float()),  # what a float can't keep is refused when it is written
        (Decimal, JSONB()),
        (int, Numeric(20)),
        (int, Double()),
        (float, Numeric()),
        (int | str, Text()),
        (Any, Integer()),
        (object, Integer()),
        (Literal[1, 2], Integer()),
        (Level, SmallInteger()),
        (Size, Text()),
        (Size, Enum(Size)),
        (str, Enum("a", "b", name="letters")),
        (str, Uuid(as_uuid=False)),
        (str, BIT(3)),
        (str, INET()),
        (str, Date()),
        (UUID, Text()),
        (UUID, Uuid()),
        (bytes, Text()),
        (bool, Boolean()),
        (Timestamp, DateTime(timezone=True)),
        (datetime, DateTime()),
        (date, Date()),
        (time, Time()),
        (list[str], ARRAY(Text)),
        (list[str], Joined()),
        (list[Address], JSONB()),
        (Address, JSON()),
        (Annotated[list[str], PlainSerializer(",".join)], Text()),
    ],
)
def test_what_may_work_is_nobody_s_business(annotation: Any, kind: TypeEngine[Any]) -> None:
    """Pairs of which some value fits are accepted."""
    assert told(annotation, kind) is None
    assert told(annotation | None, kind) is None


def test_a_field_that_its_model_writes_may_be_anything() -> None:
    """A serializer of the field may turn it into what the column holds."""

    class Tagged(BaseModel):
        tags: list[str]

        @field_serializer("tags")
        def joined(self, tags: list[str]) -> str:
            return ",".join(tags)

    assert unfit_reason(Tagged, "tags", Text()) is None


class Base(DeclarativeBase):
    pass


class NewBook(BaseModel):
    price: Decimal
    pages: int


class Book(NewBook, Record):
    pass


class BookTable(RecordColumns, Base):
    __tablename__ = "books"
    price: Mapped[Any] = mapped_column(Text)
    pages: Mapped[Any] = mapped_column(Boolean)


def test_a_table_is_refused_with_all_its_misfits() -> None:
    """One error lists every field that does not fit."""
    resource = Resource("books", record=Book, create=NewBook, update=NewBook)
    with pytest.raises(DeclarationError, match=r"BookTable for Book: .*price .*Decimal; .*pages .*int"):
        ResourceTable(resource, BookTable)
