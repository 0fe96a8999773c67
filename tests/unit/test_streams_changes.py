"""The folding of a projection's changes."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.codec import encode_json
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Record, Resource
from hybridkit.streams import Changes
from hybridkit.streams._changes import MAX_CHANGES, Fold

ACCOUNT = UUID(int=1)


class NewBalance(BaseModel):
    owner: str = ""
    balance: Decimal
    count: int = 0
    ratio: float = 0.0
    details: dict[str, Any] = {}


class Balance(NewBalance, Record):
    pass


class BalanceChanges(BaseModel):
    owner: str = ""
    balance: Decimal = Decimal(0)
    count: int = 0
    ratio: float = 0.0
    details: dict[str, Any] = {}


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record[str]):
    count: int = 0


class NoteChanges(BaseModel):
    text: str = ""
    count: int = 0


BALANCES = Resource("balances", record=Balance, create=NewBalance, update=BalanceChanges)
NOTES = Resource("notes", record=Note, create=NewNote, update=NoteChanges)


def operations(*events: Changes) -> list[dict[str, Any]]:
    fold = Fold()
    for event in events:
        assert fold.take(event.made)
    made = [change.operation() for change in fold.changes]
    return [{"op": each.op, **each.model_dump(exclude_defaults=True)} for each in made]


def changes(*steps: tuple[Any, ...], **amounts: Any) -> Changes:
    to = Changes()
    for name, *arguments in steps:
        getattr(to, name)(*arguments, **amounts)
    return to


def test_increments_of_a_record_become_one() -> None:
    """Increments of the same record are added up, exactly, and create it where it is missing."""
    first = changes(("increment", BALANCES, ACCOUNT), balance=Decimal("0.1"))
    second = changes(("increment", BALANCES, ACCOUNT), balance=0.2, count=1)
    assert operations(first, second) == [
        {
            "op": "upsert",
            "resource": "balances",
            "id": str(ACCOUNT),
            "data": {"owner": "", "balance": "0", "count": 0, "ratio": 0.0, "details": {}},
            "increment": {"balance": "0.3", "count": 1},
        }
    ]


def test_a_missing_record_begins_with_what_the_handler_gives() -> None:
    """The record that an increment creates has the fields that the first handler gave."""
    to = Changes()
    to.increment(BALANCES, ACCOUNT, NewBalance(owner="Ann", balance=Decimal(0)), count=2)
    assert operations(to)[0]["data"]["owner"] == "Ann"


@pytest.mark.parametrize(
    ("resource", "amounts"),
    [
        (BALANCES, {}),
        (BALANCES, {"owner": 1}),
        (BALANCES, {"absent": 1}),
        (BALANCES, {"count": 1.5}),
        (BALANCES, {"balance": float("nan")}),
        (BALANCES, {"balance": True}),
        (NOTES, {"count": 1}),
    ],
    ids=["none", "text", "absent", "fraction", "nan", "bool", "needs_new"],
)
def test_an_increment_that_cannot_be_is_refused(resource: Any, amounts: dict[str, Any]) -> None:
    """What no field can be incremented by is refused when the handler says it, not when it is sent."""
    with pytest.raises(InvalidRequestError):
        Changes().increment(resource, ACCOUNT if resource is BALANCES else "n1", **amounts)


def test_an_id_of_another_kind_is_refused() -> None:
    """An id that the resource can't have is refused in the handler."""
    with pytest.raises(InvalidRequestError, match="is no id of a Balance"):
        Changes().delete(BALANCES, "not a uuid")


def test_the_last_of_some_writes_counts() -> None:
    """Upserts replace what was before; updates are put into what they follow."""
    upserts = changes(("upsert", NOTES, "a", NewNote(text="1")), ("upsert", NOTES, "a", NewNote(text="2")))
    updates = changes(
        ("update", NOTES, "b", NoteChanges(text="1")), ("update", NOTES, "b", NoteChanges(count=2))
    )
    created = changes(
        ("create", NOTES, "c", NewNote(text="1")), ("update", NOTES, "c", NoteChanges(text="2"))
    )
    assert operations(upserts, updates, created) == [
        {"op": "upsert", "resource": "notes", "id": "a", "data": {"text": "2"}},
        {"op": "update", "resource": "notes", "id": "b", "data": {"text": "1", "count": 2}},
        {"op": "create", "resource": "notes", "id": "c", "data": {"text": "2"}},
    ]


def test_what_has_no_common_form_stays_apart() -> None:
    """Changes that can't be one operation are made one after another, in their order."""
    fields = changes(("create", NOTES, "a", NewNote(text="1")), ("update", NOTES, "a", NoteChanges(count=2)))
    documents = changes(
        ("update", BALANCES, ACCOUNT, BalanceChanges(details={"a": 1})),
        ("update", BALANCES, ACCOUNT, BalanceChanges(details={"b": 1})),
    )
    deleted = changes(("delete", NOTES, "b"), ("upsert", NOTES, "b", NewNote(text="1")))
    found = [each["op"] for each in (operations(fields) + operations(documents) + operations(deleted))]
    assert found == ["create", "update", "update", "update", "delete", "upsert"]


def test_a_fold_takes_an_event_as_a_whole_or_not_at_all() -> None:
    """The event that would be the hundredth change leaves nothing of it behind, and smaller ones still fit."""
    fold = Fold()
    for number in range(MAX_CHANGES - 1):
        assert fold.take(changes(("upsert", NOTES, f"n{number}", NewNote(text=""))).made)
    two = changes(("upsert", NOTES, "x", NewNote(text="")), ("upsert", NOTES, "y", NewNote(text="")))
    assert not fold.take(two.made)
    assert len(fold.changes) == MAX_CHANGES - 1
    again = changes(("upsert", NOTES, "n0", NewNote(text="2")), ("upsert", NOTES, "z", NewNote(text="")))
    assert fold.take(again.made)
    assert [change.id for change in fold.changes][-1] == "z"


def test_an_event_with_too_many_changes_is_refused() -> None:
    """An event whose changes don't fit into one transaction is refused in its handler."""
    to = Changes()
    for number in range(MAX_CHANGES):
        to.delete(NOTES, f"n{number}")
    with pytest.raises(InvalidRequestError, match="more than 99 changes"):
        to.delete(NOTES, "one more")


def test_sums_of_decimals_are_exact() -> None:
    """Increments of a decimal are added up without losing a digit."""
    fold = Fold()
    for amount in (Decimal("900000000000.25"), Decimal("0.0000000001")):
        to = Changes()
        to.increment(BALANCES, ACCOUNT, balance=amount)
        assert fold.take(to.made)
    [change] = fold.changes
    assert change.amounts == {"balance": Decimal("900000000000.2500000001")}
    assert b'"900000000000.2500000001"' in encode_json(change.operation())
