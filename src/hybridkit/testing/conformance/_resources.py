"""What a service serves so that the suite can be run on it: three resources with every kind of field and policy."""

from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, Field

from hybridkit.codec import Timestamp
from hybridkit.resources import Call, Record, Resource
from hybridkit.resources._resource import AnyResource


class Kind(StrEnum):
    """A closed set of words."""

    PAPER = "paper"
    PEN = "pen"
    INK = "ink"


class Piece(BaseModel):
    """A document in a document."""

    label: str
    weight: float = 0.0
    cost: Decimal | None = None


class Parcel(BaseModel):
    """A document of a declared form."""

    width: int = 0
    pieces: list[Piece] = []
    cover: Piece | None = None


class NewThing(BaseModel):
    """Every kind of field.

    Attributes:
        tag: the test that made it, so that tests don't see each other's.
        name: any text.
        code: unique; where foreign keys are, nothing refers to it.
        place_id: of a place; a foreign key where the database has such.
        details: a document of any form.
        marks: a list; in an SQL database a JSON column too, which no driver may take for an array.
        parcel: a document of a declared form.
    """

    tag: str
    name: str = ""
    code: str | None = None
    kind: Kind = Kind.PEN
    price: Decimal | None = None
    quantity: int = 0
    weight: float | None = None
    rank: int | None = None
    due_at: Timestamp | None = None
    owner_id: UUID | None = None
    place_id: str | None = None
    details: dict[str, Any] | None = None
    marks: list[Any] | None = None
    parcel: Parcel | None = None


class Thing(NewThing, Record):
    """As it is kept."""

    is_active: bool = True


class ThingChanges(BaseModel):
    """What may change."""

    name: str | None = Field(default=None, max_length=100)
    code: str | None = None
    kind: Kind | None = None
    price: Decimal | None = None
    quantity: int | None = None
    weight: float | None = None
    rank: int | None = None
    due_at: Timestamp | None = None
    details: dict[str, Any] | None = None
    marks: list[Any] | None = None
    parcel: Parcel | None = None
    is_active: bool | None = None


class NewPlace(BaseModel):
    """A record with a natural key."""

    id: str
    title: str


class Place(Record[str]):
    """As it is kept."""

    title: str


class PlaceChanges(BaseModel):
    """What may change."""

    title: str | None = None


class NewLedger(BaseModel):
    """A record that is only changed by who has read it."""

    balance: int = 0


class Ledger(NewLedger, Record):
    """As it is kept."""


class LedgerChanges(BaseModel):
    """What may change."""

    balance: int | None = None


THINGS: Final = Resource(
    "conformance_things",
    record=Thing,
    create=NewThing,
    update=ThingChanges,
    filterable=(
        "tag",
        "name",
        "code",
        "kind",
        "price",
        "quantity",
        "weight",
        "rank",
        "due_at",
        "owner_id",
        "is_active",
        "created_at",
        "details.size",
        "details.color",
    ),
    sortable=("name", "price", "quantity", "rank", "due_at", "created_at", "details.size"),
)
"""A unique `code`, UUIDs as ids, deleted for good."""

PLACES: Final = Resource(
    "conformance_places",
    record=Place,
    create=NewPlace,
    update=PlaceChanges,
    filterable=("title",),
    sortable=("title",),
    soft_delete=True,
)
"""Natural keys, only hidden when deleted."""

LEDGERS: Final = Resource(
    "conformance_ledgers",
    record=Ledger,
    create=NewLedger,
    update=LedgerChanges,
    filterable=("balance",),
    require_match=True,
)
"""Changes need `If-Match`."""

CONFORMANCE_RESOURCES: Final[tuple[AnyResource, ...]] = (THINGS, PLACES, LEDGERS)


class Slow(BaseModel):
    """How long to keep the database busy."""

    seconds: float


SLOW: Final = Call("slow", resource=THINGS, request=Slow, response=Slow, safe=True)
"""Keeps the database busy for that long and answers what it was asked: `SELECT pg_sleep(seconds)` in PostgreSQL."""
