"""The rule book: what each operation does to a record that is live, hidden, or not there."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.dataservice._store._decisions import Removed, Unchanged, Written, decide
from hybridkit.dataservice._store._operations import (
    Assert,
    Create,
    Delete,
    Operation,
    Undelete,
    Update,
    Upsert,
)
from hybridkit.errors import (
    InvalidRequestError,
    NotFoundError,
    RejectedError,
    RequirementNotMetError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.resources import Filter, Record, Resource

ID: Final = UUID("1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc")
MOMENT: Final = datetime(2026, 1, 15, tzinfo=UTC)


class NewItem(BaseModel):
    name: str
    stock: int = 0
    details: dict[str, Any] = {}


class Item(NewItem, Record):
    is_active: bool = True


class ItemChanges(BaseModel):
    name: str | None = None
    stock: int | None = None
    details: dict[str, Any] | None = None


ITEMS = Resource("items", record=Item, create=NewItem, update=ItemChanges, filterable=("stock",))
SOFT = Resource("soft", record=Item, create=NewItem, update=ItemChanges, soft_delete=True)
IN_STOCK: Final = ITEMS["stock"] >= 1


@dataclass
class Stored:
    """A record of version 3 whose requirement holds or not as the test says."""

    is_hidden: bool = False
    holds: bool = True
    version: int = 3
    tag: str = '"3-a"'
    values: dict[str, Any] = field(
        default_factory=lambda: {"name": "ink", "stock": 2, "details": {"a": 1, "b": 2}}
    )

    def value(self, name: str) -> Any:
        return self.values[name]

    mergeable = value

    def meets(self, require: Filter) -> bool:
        assert require == IN_STOCK
        return self.holds


LIVE: Final = Stored()
HIDDEN: Final = Stored(is_hidden=True)
VALUES: Final = {"name": "pen"}
NEW: Final = {"id": ID, "version": 1, "created_at": MOMENT, "updated_at": MOMENT}
NEXT: Final = {"version": 4, "updated_at": MOMENT}


def create() -> Create:
    return Create(resource=ITEMS, id=ID, values=VALUES)


def upsert(**options: Any) -> Upsert:
    return Upsert(resource=ITEMS, id=ID, values=VALUES, **options)


def update(**options: Any) -> Update:
    return Update(resource=ITEMS, id=ID, **options)


@pytest.mark.parametrize("operation", [create(), upsert(), upsert(only="absent")], ids=repr)
def test_a_new_record_gets_the_defaults_that_no_create_names(operation: Operation) -> None:
    """Its id, version and times are the store's, whatever the caller sends."""
    decided = decide(operation, None, moment=MOMENT)
    assert decided == Written(given={"is_active": True, **VALUES}, computed=NEW)


@pytest.mark.parametrize("options", [{}, {"only": "present"}, {"if_match": '"3-a"'}], ids=repr)
def test_an_upsert_replaces_the_values_of_a_live_record(options: dict[str, Any]) -> None:
    """Fields that it doesn't name keep their values, as no default is given."""
    assert decide(upsert(**options), LIVE, moment=MOMENT) == Written(given=VALUES, computed=NEXT)


def test_an_update_computes_sums_and_merged_documents() -> None:
    """What it sets is given on as it came, for the store to look at."""
    operation = update(changes=VALUES, increment={"stock": -2}, merges={"details": {"a": None, "c": 3}})
    decided = decide(operation, LIVE, moment=MOMENT)
    assert decided == Written(given=VALUES, computed={"stock": 0, "details": {"b": 2, "c": 3}, **NEXT})


def test_a_requirement_is_looked_at_before_sums() -> None:
    """A sum that would not fit doesn't hide that the requirement fails."""
    operation = update(increment={"name": 1}, require=IN_STOCK)
    with pytest.raises(RequirementNotMetError, match="the requirement does not hold") as caught:
        decide(operation, Stored(holds=False), moment=MOMENT)
    assert caught.value.current == LIVE.tag
    assert [problem.code for problem in caught.value.errors] == ["requirement_not_met"]
    with pytest.raises(InvalidRequestError):
        decide(operation, LIVE, moment=MOMENT)


@pytest.mark.parametrize(("resource", "is_soft"), [(ITEMS, False), (SOFT, True)])
def test_a_delete_counts_a_version(resource: Resource[Any, Any, Any], *, is_soft: bool) -> None:
    """The ETag of the deleted state differs from all before, and whether it can come back is the resource's rule."""
    decided = decide(Delete(resource=resource, id=ID), LIVE, moment=MOMENT)
    assert decided == Removed(version=4, is_soft=is_soft)


def test_an_undelete_shows_a_hidden_record_and_leaves_a_live_one() -> None:
    """Only the first of two changes anything, so a repeated undelete makes no version."""
    operation = Undelete(resource=SOFT, id=ID, if_match='"3-a"')
    assert decide(operation, HIDDEN, moment=MOMENT) == Written(given={}, computed=NEXT)
    assert decide(operation, LIVE, moment=MOMENT) == Unchanged()


def test_an_assert_of_the_right_state_changes_nothing() -> None:
    """It needs a live record, in the state that it names."""
    assert decide(Assert(resource=ITEMS, id=ID, if_match='"3-a"'), LIVE, moment=MOMENT) == Unchanged()


@pytest.mark.parametrize(
    ("operation", "current", "refusal"),
    [
        (create(), LIVE, UniqueViolationError),
        (create(), HIDDEN, UniqueViolationError),
        (upsert(), HIDDEN, UniqueViolationError),
        (upsert(only="present"), HIDDEN, StaleVersionError),
        (upsert(only="present"), None, StaleVersionError),
        (upsert(only="absent"), LIVE, StaleVersionError),
        (upsert(if_match='"2-a"'), LIVE, StaleVersionError),
        (update(), None, NotFoundError),
        (update(), HIDDEN, NotFoundError),
        (update(if_match='"2-a"'), LIVE, StaleVersionError),
        (Delete(resource=ITEMS, id=ID), HIDDEN, NotFoundError),
        (Delete(resource=ITEMS, id=ID, if_match='"2-a"'), LIVE, StaleVersionError),
        (Assert(resource=ITEMS, id=ID), HIDDEN, NotFoundError),
        (Undelete(resource=SOFT, id=ID), None, NotFoundError),
        (Undelete(resource=SOFT, id=ID, if_match='"2-a"'), HIDDEN, StaleVersionError),
    ],
)
def test_operations_are_refused(
    operation: Operation, current: Stored | None, refusal: type[RejectedError]
) -> None:
    """Each refusal has the error that routes answer with 404, 409 or 412."""
    with pytest.raises(refusal):
        decide(operation, current, moment=MOMENT)
