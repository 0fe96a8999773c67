"""Changes that a projection makes of events, folded so that each record is written as rarely as possible.

Everything here is a value: nothing is sent, and a fold of the same events gives the same operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from math import isfinite
from typing import Any, Final, Literal, assert_never

from pydantic import BaseModel, ValidationError

from hybridkit.codec import field_errors
from hybridkit.contract import CreateOperation, DeleteOperation, Operation, UpdateOperation, UpsertOperation
from hybridkit.contract._fields import changed_fields, fields_of, parse_id
from hybridkit.errors import InvalidRequestError
from hybridkit.resources import Resource
from hybridkit.resources._resource import AnyResource

MAX_CHANGES: Final = 99
"""The most changes of one transaction, whose hundredth operation is the position."""
_EXACT: Final = Context(prec=400, traps=[Inexact])

type Kind = Literal["create", "update", "upsert", "increment", "delete"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one record.

    Attributes:
        kind: the operation.
        resource: the collection.
        id: the record's id as text.
        data: JSON values by field: all of a create or upsert, the changed ones of an update, and of an increment those
            that a missing record begins with.
        amounts: the numbers that an increment adds, by field.
    """

    kind: Kind
    resource: AnyResource
    id: str
    data: Mapping[str, Any]
    amounts: Mapping[str, int | float | Decimal]

    def followed_by(self, later: "Change") -> "Change | None":
        """Return one change with the effect of this and a later one of the same record; None where there is none."""
        match self.kind, later.kind:
            case "increment", "increment":
                amounts = dict(self.amounts)
                for name, amount in later.amounts.items():
                    amounts[name] = _sum(amounts[name], amount) if name in amounts else amount
                return Change("increment", self.resource, self.id, self.data, amounts)
            case (("upsert" | "update"), "upsert"):
                return later
            case (("create" | "upsert" | "update"), "update"):
                return self._with(later.data)
            case _:
                return None

    def operation(self) -> Operation:
        """Return the operation of a transaction that makes the change."""
        name, data = self.resource.name, dict(self.data)
        match self.kind:
            case "create":
                return CreateOperation(resource=name, id=self.id, data=data)
            case "update":
                return UpdateOperation(resource=name, id=self.id, data=data)
            case "upsert":
                return UpsertOperation(resource=name, id=self.id, data=data)
            case "increment":
                return UpsertOperation(resource=name, id=self.id, data=data, increment=dict(self.amounts))
            case "delete":
                return DeleteOperation(resource=name, id=self.id)
            case _:
                assert_never(self.kind)

    def _with(self, changes: Mapping[str, Any]) -> "Change | None":
        # A patch of a document is no value, and a create takes only the fields of its model.
        if any(isinstance(value, dict) for value in changes.values()):
            return None
        if self.kind != "update" and not changes.keys() <= self.resource.create.model_fields.keys():
            return None
        return Change(self.kind, self.resource, self.id, {**self.data, **changes}, self.amounts)


class Changes:
    """The changes that one event makes, which a projection's handler gets as its second argument.

    They are made in one transaction with the projection's position, so that each event counts once.
    """

    def __init__(self) -> None:
        self._made: list[Change] = []

    def __repr__(self) -> str:
        return f"Changes({len(self._made)})"

    @property
    def made(self) -> Sequence[Change]:
        """The changes so far, in their order."""
        return self._made

    def increment[CreateT: BaseModel](
        self,
        resource: Resource[Any, CreateT, Any],
        id: object,
        new: CreateT | None = None,
        /,
        **amounts: float | Decimal,
    ) -> None:
        """Add to numbers of a record, and create the record where it is missing.

        Args:
            resource: the kind of record.
            id: the record's id.
            new: the fields that a missing record begins with, before the numbers are added; by default those of the
                resource's create model, with 0 for a number that has no default.
            amounts: the number to add, by field; a negative one to subtract.

        Raises:
            InvalidRequestError: a field is no number that an update may change, an amount is not one that the field can
                have, the create model wants more than the numbers, or the id is none of that resource.
        """
        if not amounts:
            raise InvalidRequestError(f"{resource.name}: an increment names its fields: balance=amount")
        added = {name: _amount(resource, name, amount) for name, amount in amounts.items()}
        data = _beginning(resource, frozenset(added)) if new is None else fields_of(new)
        self._add("increment", resource, id, data, added)

    def create[CreateT: BaseModel](
        self, resource: Resource[Any, CreateT, Any], id: object, data: CreateT
    ) -> None:
        """Create a record, which may not exist yet.

        Args:
            resource: the kind of record.
            id: the record's id, one of the event's values, so that it is the same each time the event is read.
            data: its fields.

        Raises:
            InvalidRequestError: the id is none of that resource.
        """
        self._add("create", resource, id, fields_of(data))

    def update[UpdateT: BaseModel](
        self, resource: Resource[Any, Any, UpdateT], id: object, changes: UpdateT
    ) -> None:
        """Set the fields that are set in `changes` of a record, which has to exist.

        Raises:
            InvalidRequestError: the id is none of that resource.
        """
        self._add("update", resource, id, changed_fields(changes))

    def upsert[CreateT: BaseModel](
        self, resource: Resource[Any, CreateT, Any], id: object, data: CreateT
    ) -> None:
        """Create a record, or replace all its fields where it exists.

        Raises:
            InvalidRequestError: the id is none of that resource.
        """
        self._add("upsert", resource, id, fields_of(data))

    def delete(self, resource: AnyResource, id: object) -> None:
        """Remove a record, which has to exist.

        Raises:
            InvalidRequestError: the id is none of that resource.
        """
        self._add("delete", resource, id, {})

    def _add(
        self,
        kind: Kind,
        resource: AnyResource,
        id: object,
        data: Mapping[str, Any],
        amounts: Mapping[str, int | float | Decimal] | None = None,
    ) -> None:
        if len(self._made) == MAX_CHANGES:
            raise InvalidRequestError(
                f"the event makes more than {MAX_CHANGES} changes, which don't fit into one transaction with the"
                " position; append several events instead"
            )
        self._made.append(Change(kind, resource, str(parse_id(resource, id)), data, amounts or {}))


class Fold:
    """The changes of several events in the fewest operations: at most 99, each about another record where it can be."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._places: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"Fold({len(self._changes)} changes)"

    @property
    def changes(self) -> Sequence[Change]:
        """The folded changes, in an order with the same effect as that of the events."""
        return self._changes

    def take(self, changes: Sequence[Change]) -> bool:
        """Add the changes of one event, all of them or, where they would be more than 99, none.

        Returns:
            Whether they were added.
        """
        folded, places = self._changes, self._places
        if len(folded) + len(changes) > MAX_CHANGES:
            folded, places = folded.copy(), places.copy()
        for change in changes:
            record = change.resource.name, change.id
            place = places.get(record)
            both = None if place is None else folded[place].followed_by(change)
            if place is not None and both is not None:
                folded[place] = both
            else:
                places[record] = len(folded)
                folded.append(change)
        if len(folded) > MAX_CHANGES:
            return False
        self._changes, self._places = folded, places
        return True


def _amount(resource: AnyResource, name: str, amount: float | Decimal) -> int | float | Decimal:
    """Return an amount as the type of number that the field has, so that sums are as exact as the field.

    Raises:
        InvalidRequestError: the field has no numbers, or none of this kind.
    """
    kind = resource.number_of(name)
    if kind is None:
        raise InvalidRequestError(f"{resource.name}.{name} is no number that an update may change")
    if isinstance(amount, bool) or not isfinite(amount):
        raise InvalidRequestError(
            f"{resource.name}.{name} is incremented by {amount}, which is no finite number"
        )
    if kind is Decimal:
        return amount if isinstance(amount, Decimal) else Decimal(str(amount))
    if kind is int and amount != int(amount):
        raise InvalidRequestError(f"{resource.name}.{name} is an integer, and is incremented by {amount}")
    return int(amount) if kind is int else float(amount)


def _sum(before: float | Decimal, amount: float | Decimal) -> int | float | Decimal:
    if isinstance(before, Decimal) and isinstance(amount, Decimal):
        return _EXACT.add(before, amount)
    return before + amount  # type: ignore[operator]  # amounts of one field have one type


@lru_cache(maxsize=1024)
def _beginning(resource: AnyResource, names: frozenset[str]) -> Mapping[str, Any]:
    """Return the fields of a record that an increment creates: the defaults, and 0 for the numbers without one."""
    fields = resource.create.model_fields
    zeros = {fields[name].alias or name: 0 for name in names if name in fields and fields[name].is_required()}
    try:
        return fields_of(resource.create.model_validate(zeros))
    except ValidationError as error:
        raise InvalidRequestError(
            f"{resource.create.__name__} has more required fields than the numbers; pass what a missing record of"
            f" {resource.name} begins with: increment(resource, id, {resource.create.__name__}(...), ...)",
            errors=field_errors(error),
        ) from None
