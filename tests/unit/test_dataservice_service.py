"""What a declaration must fit, and what a service without a broker or a database says."""

import asyncio
import sys
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import literal
from sqlalchemy.dialects.postgresql import INET
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from hybridkit import dataservice
from hybridkit.dataservice import RecordColumns, create_data_service
from hybridkit.dataservice._housekeeping import Housekeeping
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._postgres._filters import Arguments, Ordering, condition
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.errors import (
    DeclarationError,
    InvalidQueryError,
    InvalidRequestError,
    MissingExtraError,
    PageTokenError,
    UnavailableError,
)
from hybridkit.resources import Compare, Query, Record, Resource
from hybridkit.settings import PostgresUrl, ServiceSettings


class Settings(ServiceSettings):
    service_name: str = "db_postgres_service"
    database_url: PostgresUrl


class NewItem(BaseModel):
    name: str


class Item(NewItem, Record):
    address: str = "127.0.0.1"


class Base(DeclarativeBase):
    pass


class ItemTable(RecordColumns, Base):
    __tablename__ = "items"
    name: Mapped[str]
    address: Mapped[str] = mapped_column(INET)


class NamelessTable(RecordColumns, Base):
    __tablename__ = "nameless"


ITEMS = Resource("items", record=Item, create=NewItem, update=NewItem)


def test_every_field_of_a_record_needs_a_column() -> None:
    """The declaration is refused with the names of the missing columns."""
    with pytest.raises(DeclarationError, match="NamelessTable has no column for name, address of Item"):
        create_data_service(Settings, {ITEMS: NamelessTable})


def test_an_expression_is_no_column() -> None:
    """No write could set it, and no statement on the table has its name."""

    class ExpressionTable(RecordColumns, Base):
        __tablename__ = "expressions"
        name: Mapped[str]
        address = column_property(literal("here"))

    with pytest.raises(DeclarationError, match="ExpressionTable has no column for address of Item"):
        create_data_service(Settings, {ITEMS: ExpressionTable})


def test_a_soft_delete_needs_its_column() -> None:
    """A resource with `soft_delete` is refused on a table without `deleted_at`."""
    hidden = Resource("items", record=Item, create=NewItem, update=NewItem, soft_delete=True)
    with pytest.raises(DeclarationError, match="ItemTable has no column deleted_at"):
        create_data_service(Settings, {hidden: ItemTable})


def test_two_resources_have_two_names() -> None:
    """One path can't serve two resources."""

    class OtherItem(Item):
        pass

    others = Resource("items", record=OtherItem, create=NewItem, update=NewItem)
    with pytest.raises(DeclarationError, match="two resources are called 'items'"):
        create_data_service(Settings, {ITEMS: ItemTable, others: ItemTable})


def test_a_service_without_a_database_url_is_none() -> None:
    """Settings without `database_url` are refused at the declaration."""
    with pytest.raises(DeclarationError, match="no database_url"):
        create_data_service(ServiceSettings, {ITEMS: ItemTable})


def test_settings_are_not_read_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application can be made, and its document shown, without an environment."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = create_data_service(Settings, {ITEMS: ItemTable}, title="Items")
    assert app.title == "Items"


def test_models_of_one_name_are_told_apart_in_the_document() -> None:
    """Two resources may each have a `NewItem`."""

    def other_item() -> type[BaseModel]:
        class NewItem(BaseModel):
            title: str

        return NewItem

    other = other_item()

    class Other(Record):
        title: str

    class OtherTable(RecordColumns, Base):
        __tablename__ = "others"
        title: Mapped[str]

    others = Resource("others", record=Other, create=other, update=other)
    document = create_data_service(Settings, {ITEMS: ItemTable, others: OtherTable}).openapi()
    schemas = document["components"]["schemas"]
    for path, field in (("/v1/items", "name"), ("/v1/others", "title")):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in schemas[body["$ref"].rpartition("/")[2]]["properties"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """Names that are loaded late don't hide a misspelt one."""
    with pytest.raises(AttributeError, match="nothing"):
        _ = dataservice.nothing


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that needs SQLAlchemy says which extra brings it."""
    monkeypatch.setitem(sys.modules, "hybridkit.dataservice._postgres._columns", None)
    with pytest.raises(MissingExtraError, match=r"hybridkit\[postgres\]"):
        _ = dataservice.RecordColumns


def test_a_column_of_an_unusual_type_takes_values_as_they_are() -> None:
    """A type without a Python type is left to the driver."""
    table = ResourceTable(ITEMS, ItemTable)
    assert table.python_type("address") is None
    assert table.bind("address", "10.0.0.1") == "10.0.0.1"
    assert "items" in repr(table)
    assert "name" in repr(table.view(("name",)))


@pytest.mark.parametrize("position", [[], ["a", "b", "c"], [3, str(UUID(int=1))]])
def test_a_position_of_another_order_is_refused(position: list[Any]) -> None:
    """A token may be older than the column's present type."""
    ordering = Ordering(ResourceTable(ITEMS, ItemTable), Query(order=(("created_at", "asc"),)))
    with pytest.raises(PageTokenError):
        ordering.after(position, Arguments())


def test_a_position_in_a_column_of_an_unusual_type_is_taken_as_it_is() -> None:
    """The position is bound as text and cast by PostgreSQL."""
    ordering = Ordering(ResourceTable(ITEMS, ItemTable), Query(order=(("address", "asc"),)))
    arguments = Arguments()
    assert "AS INET" in ordering.after(["10.0.0.1", str(UUID(int=1))], arguments)
    assert arguments.values == ["10.0.0.1", str(UUID(int=1))]


def test_a_value_that_its_column_cannot_hold_is_a_bad_query() -> None:
    """The record may say text where the table says number."""
    with pytest.raises(InvalidQueryError):
        condition(ResourceTable(ITEMS, ItemTable), Compare("version", "eq", "many"))


def test_a_value_that_a_column_cannot_hold_is_pointed_at() -> None:
    """The error's pointer leads to the field in the request."""
    with pytest.raises(InvalidRequestError) as refused:
        ResourceTable(ITEMS, ItemTable).bind("version", "many", at="/data")
    assert refused.value.errors[0].pointer == "/data/version"


def test_a_create_that_names_no_id_gets_the_one_of_its_call() -> None:
    """A null id counts as none."""
    bodies, default_id = RequestBodies(ITEMS), UUID(int=7)
    for body in (b'{"name": "a"}', b'{"name": "a", "id": null}'):
        assert bodies.create(body, default_id=default_id).id == default_id
    assert "items" in repr(bodies)


def test_a_natural_key_has_to_be_named() -> None:
    """No default id exists for a text; in an upsert the path names it."""

    class Owner(Record[str]):
        title: str

    class NewOwner(BaseModel):
        title: str

    bodies = RequestBodies(Resource("owners", record=Owner, create=NewOwner, update=NewOwner))
    with pytest.raises(InvalidRequestError, match="/id"):
        bodies.create(b'{"title": "A"}', default_id=UUID(int=7))
    assert bodies.create(b'{"title": "A", "id": "a"}', default_id=UUID(int=7)).id == "a"
    upsert = bodies.upsert("a", b'{"title": "A"}')
    assert upsert.values == {"title": "A"}


class FullStore:
    """Has more to delete than one batch holds, and fails once."""

    def __init__(self) -> None:
        self.batches: list[int | Exception] = [1000, UnavailableError("away"), 3, 0]
        self.emptied = asyncio.Event()

    async def clean(self) -> int:
        batch = self.batches.pop(0) if self.batches else 0
        if not self.batches:
            self.emptied.set()
        if isinstance(batch, Exception):
            raise batch
        return batch


async def test_housekeeping_goes_on_until_nothing_is_left() -> None:
    """A failed batch is only a pause."""
    store: Any = FullStore()
    async with Housekeeping(store, pause_seconds=0.001) as housekeeping, asyncio.timeout(60):
        await store.emptied.wait()
        assert "Housekeeping(" in repr(housekeeping)
