"""The resources that a service under test serves: three, with every kind of field and policy."""

from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, Field

from hybridkit.codec import Timestamp
from hybridkit.resources import Call, Record, Resource
from hybridkit.resources._resource import AnyResource


class Kind(StrEnum):
    """The kinds of things."""

    PAPER = "paper"
    PEN = "pen"
    INK = "ink"


class Piece(BaseModel):
    """A document inside another one."""

    label: str
    weight: float = 0.0
    cost: Decimal | None = None


class Parcel(BaseModel):
    """A document with declared members."""

    width: int = 0
    pieces: list[Piece] = []
    cover: Piece | None = None


class NewThing(BaseModel):
    """The fields of a new thing, of every kind.

    Attributes:
        tag: a text of the test that made it, by which tests find their own things only.
        name: any text.
        code: a text that only one thing may have.
        place_id: the id of a place; a foreign key where the database has such.
        details: a document with any members.
        marks: a list; in an SQL database a JSON column, which no driver may take for an array.
        parcel: a document with declared members.
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
    """A thing."""

    is_active: bool = True


class ThingChanges(BaseModel):
    """The fields of a thing that an update may change."""

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
    """The fields of a new place, with its natural key."""

    id: str
    title: str


class Place(Record[str]):
    """A place."""

    title: str


class PlaceChanges(BaseModel):
    """The fields of a place that an update may change."""

    title: str | None = None


class NewLedger(BaseModel):
    """The fields of a new ledger, which is changed only by callers that have read it."""

    balance: int = 0


class Ledger(NewLedger, Record):
    """A ledger."""


class LedgerChanges(BaseModel):
    """The fields of a ledger that an update may change."""

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
        "marks",
        "is_active",
        "created_at",
        "details.size",
        "details.color",
    ),
    sortable=("name", "price", "quantity", "rank", "due_at", "created_at", "details.size"),
    audited=True,
    audit_hide=("code",),
)
"""Audited records with UUIDs as ids, a unique `code`, which their history hides, and hard deletes."""

PLACES: Final = Resource(
    "conformance_places",
    record=Place,
    create=NewPlace,
    update=PlaceChanges,
    filterable=("title",),
    sortable=("title",),
    soft_delete=True,
    audited=True,
)
"""Audited records with natural keys and soft deletes."""

LEDGERS: Final = Resource(
    "conformance_ledgers",
    record=Ledger,
    create=NewLedger,
    update=LedgerChanges,
    filterable=("balance",),
    require_match=True,
)
"""Records whose changes require `If-Match`."""

CONFORMANCE_RESOURCES: Final[tuple[AnyResource, ...]] = (THINGS, PLACES, LEDGERS)


class Slow(BaseModel):
    """The time for which to keep the database busy."""

    seconds: float


SLOW: Final = Call("slow", resource=THINGS, request=Slow, response=Slow, safe=True)
"""Keeps the database busy and returns its request: `SELECT pg_sleep(seconds)` in PostgreSQL."""
