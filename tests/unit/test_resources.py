"""Declarations of resources and calls: what they accept, and what contradicts itself."""

from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, ValidationError

from hybridkit.errors import DeclarationError
from hybridkit.resources import Call, Record, Resource

type Price = Annotated[Decimal, Field(max_digits=6, decimal_places=2)]


class NewBook(BaseModel):
    title: str
    pages: int | None = None


class Book(NewBook, Record):
    pass


class Country(Record[str]):
    name: str


class CountryName(BaseModel):
    name: str


BOOKS = Resource("books", record=Book, create=NewBook, update=NewBook, filterable=("title", "pages"))
COUNTRIES = Resource("countries", record=Country, create=CountryName, update=CountryName)


def test_a_resource_is_a_value() -> None:
    """Two equal declarations are one key of a dictionary."""
    again = Resource("books", record=Book, create=NewBook, update=NewBook, filterable=("title", "pages"))
    assert again == BOOKS
    assert {BOOKS: 1}[again] == 1
    assert BOOKS.path == "/v1/books"
    assert repr(BOOKS) == "Resource('books', record=Book)"


def test_ids_are_uuids_unless_the_record_says_otherwise() -> None:
    """A UUID may have capitals; a natural key is taken as it is."""
    assert BOOKS.parse_id("1F1E544B-A8E6-6CD0-B9F6-F62D3C05B3BC") == UUID(
        "1f1e544b-a8e6-6cd0-b9f6-f62d3c05b3bc"
    )
    assert COUNTRIES.parse_id("fr") == "fr"
    with pytest.raises(ValidationError):
        BOOKS.parse_id("fr")


def test_an_optional_field_is_filtered_by_its_type_without_null() -> None:
    """Text is read as the number that the field may hold."""
    assert (BOOKS["pages"] == "12").value == 12


@pytest.mark.parametrize("name", ["Books", "book-list", "", "1books", "b" * 64])
def test_a_name_is_snake_case(name: str) -> None:
    """A name that can't be a path segment of the contract is refused when it is declared."""
    with pytest.raises(DeclarationError, match="snake_case"):
        Resource(name, record=Book, create=NewBook, update=NewBook)


@pytest.mark.parametrize("field", ["select", "order", "or", "and", "not", "page_size", "page_token"])
def test_a_field_that_the_query_grammar_reserves_is_refused(field: str) -> None:
    """A filter on such a field could not be told from an option of the query."""
    record: Any = type("Clash", (Record,), {"__annotations__": {field: str}, "__module__": __name__})
    with pytest.raises(DeclarationError, match=f"reserves '{field}'"):
        Resource("clashes", record=record, create=NewBook, update=NewBook)


def test_fields_that_the_record_does_not_have_are_refused() -> None:
    """Filters, orders and the models of writes may only name fields of the record."""
    with pytest.raises(DeclarationError, match="Book has no field 'author'"):
        Resource("books", record=Book, create=NewBook, update=NewBook, filterable=("author",))
    with pytest.raises(DeclarationError, match="Book has no field 'author'"):
        Resource("books", record=Book, create=NewBook, update=NewBook, sortable=("author",))
    with pytest.raises(DeclarationError, match=r"CountryName\.name is not in Book"):
        Resource("books", record=Book, create=CountryName, update=NewBook)


def test_a_call_has_its_path_below_its_resource() -> None:
    """A colon separates the resource from the name of the call."""
    lend = Call("lend", resource=BOOKS, request=CountryName, response=Book)
    assert lend.path == "/v1/books:lend"


@pytest.mark.parametrize("name", ["query", "batch_get", "Lend"])
def test_a_call_cannot_take_the_contracts_own_names(name: str) -> None:
    """Nor can a call have a name that is no snake_case."""
    with pytest.raises(DeclarationError, match="not reserved"):
        Call(name, resource=BOOKS, request=CountryName, response=Book)


def test_a_record_has_decimals_with_and_without_limits() -> None:
    """Limited digits can be declared, as of `numeric(6, 2)`; what SQL may put into any `numeric` can be read."""

    class Priced(Record):
        price: Price | None = None
        prices: dict[str, list[Annotated[Decimal, Field(decimal_places=2)]]]
        rate: Decimal

    system = {"id": UUID(int=1), "version": 1, "created_at": 0, "updated_at": 0, "etag": ""}
    found = Priced.model_validate({**system, "price": "1.50", "prices": {"a": ["2.50"]}, "rate": "NaN"})
    assert (found.price, found.prices, found.rate.is_nan()) == (
        Decimal("1.50"),
        {"a": [Decimal("2.50")]},
        True,
    )
    with pytest.raises(ValidationError):
        Priced.model_validate({**system, "price": "NaN", "prices": {}, "rate": 1})
