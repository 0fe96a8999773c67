"""Nothing is named in the documentation that isn't there: modules, functions, settings, error codes, column types."""

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
import sqlalchemy
from opentelemetry.sdk import environment_variables as of_opentelemetry
from pydantic import BaseModel, create_model
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, mapped_column

import hybridkit.settings
from hybridkit._cli._manifest import FILE_NAME
from hybridkit.codec import Timestamp
from hybridkit.dataservice import RecordColumns
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.errors import DeclarationError
from hybridkit.resources import Record, Resource
from hybridkit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs" / "adr"  # of their day
PAGES = [
    page for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if page.parent != DECISIONS
]
FIELDS = {
    name.upper()
    for value in vars(hybridkit.settings).values()
    if isinstance(value, type) and issubclass(value, ServiceSettings)
    for name in value.model_fields
}
WORDS = {
    word for path in ROOT.glob("src/**/*.py") for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text())
}
ELSEWHERE = {*HTTPStatus.__members__, *vars(of_opentelemetry)}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def missing_names(text: str) -> Iterator[str]:
    """The dotted names of hybridkit that lead nowhere."""
    for name in sorted(set(re.findall(r"(?<![\w./@:-])hybridkit(?:\.\w+)+(?![\w/])", text))):
        if name != FILE_NAME and not _resolves(name):
            yield name


def _resolves(name: str) -> bool:
    parts = name.split(".")
    found: Any = import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(".".join(parts[:number]))
            except ImportError:
                fields = getattr(found, "model_fields", {}) | getattr(found, "__annotations__", {})
                return number == len(parts) and part in fields
    return True


def missing_settings(text: str) -> Iterator[str]:
    """The variables and codes that neither a settings class nor the source has."""
    for word in sorted(set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", text))):
        own = f"{word.lower()}: " in text  # a field of a settings class that the page declares
        if not own and word not in FIELDS | WORDS | ELSEWHERE:
            yield word


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_a_page_names_exists(page: Path) -> None:
    """Every `hybridkit.x.y`, and every variable and code in capitals."""
    assert [*missing_names(page.read_text()), *missing_settings(page.read_text())] == []


def test_names_that_do_not_exist_are_found_out() -> None:
    """The check itself can fail."""
    text = (
        "`hybridkit.flows`, hybridkit.testing.Stack, `hybridkit.testing.Stack.fly`, `REDIS_URL`, `SAGA_URL=x`"
    )
    assert [*missing_names(text)] == ["hybridkit.flows", "hybridkit.testing.Stack.fly"]
    assert [*missing_settings(text)] == ["SAGA_URL"]


# ── column types ─────────────────────────────────────────────────────────────────────────────────


class Size(StrEnum):
    SMALL = "s"


class Address(BaseModel):
    city: str


PAGE = (ROOT / "docs/reference/column-types.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)
TYPES: dict[str, Any] = {
    **vars(sqlalchemy),
    "JSONB": postgresql.JSONB,
    "ARRAY": postgresql.ARRAY,
    "Size": Size,
}
FIELD_TYPES: dict[str, Any] = {
    each.__name__: each for each in (date, time, timedelta, datetime, Decimal, UUID, Size, Address)
} | {"Timestamp": Timestamp, "Literal": Literal, "Any": Any}


def declared(field: Any, column: Any) -> ResourceTable:
    class Base(DeclarativeBase):
        pass

    fields: dict[str, Any] = {"value": (field, ...)}
    create = create_model("NewThing", **fields)
    record: Any = create_model("Thing", __base__=(create, Record))
    things: Any = Resource("things", record=record, create=create, update=create)
    table: Any = type(
        "ThingTable", (RecordColumns, Base), {"__tablename__": "things", "value": mapped_column(column)}
    )
    return ResourceTable(things, table)


@pytest.mark.parametrize(("field", "column"), ROWS)
def test_a_field_fits_the_column_that_the_page_has_for_it(field: str, column: str) -> None:
    """Both columns of the table are code."""
    declared(eval(field, FIELD_TYPES), eval(column, TYPES))


def test_the_page_has_the_types_that_people_ask_for() -> None:
    """List, Decimal, enum and nested model, which a test sends through every operation elsewhere."""
    fields = [field for field, _ in ROWS]
    assert len(ROWS) > 15
    assert {"Decimal", "Size", "Address", "list[Address]", "list[str]", "dict[str, Any]"} <= {*fields}
    with pytest.raises(DeclarationError):
        declared(Decimal, sqlalchemy.Text())
