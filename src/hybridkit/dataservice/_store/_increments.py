"""Increments where a store adds in Python: the sum is a value that its field can hold, or is refused."""

from collections.abc import Iterator
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from hybridkit.codec import field_errors
from hybridkit.dataservice._store._annotations import alternatives
from hybridkit.dataservice._store._operations import Update, Upsert
from hybridkit.dataservice._store._refusals import not_a_number, pointer, set_and_incremented, validated
from hybridkit.errors import FieldProblem, InvalidRequestError

_EXACT: Final = Context(prec=400, traps=[Inexact, InvalidOperation, Overflow])
"""A sum is exact or refused; 400 digits are more than a float and 64 bits can differ by."""
_MAX_INTEGER: Final = 2**63


def incremented(operation: Update | Upsert, name: str, value: Any) -> Any:
    """Return the value of a field after its increment; no value counts as 0.

    Args:
        operation: has the amount.
        name: of the field.
        value: before the increment.

    Raises:
        InvalidRequestError: the field holds no numbers, or can't hold the sum.
    """
    if isinstance(operation, Update) and (name in operation.changes or name in operation.merges):
        raise set_and_incremented(operation, name)
    kinds = set(_numbers(operation.resource.record.model_fields[name].annotation))
    before = 0 if value is None else value
    if not kinds or isinstance(before, bool) or not isinstance(before, int | float | Decimal):
        raise not_a_number(operation, name)
    total = _sum(before, operation.increment[name], kinds)
    if total is None:
        at = f"{pointer(operation, 'increment')}/{name}"
        raise InvalidRequestError(
            "the sum is outside of what a number holds", errors=[FieldProblem(at, "out_of_range")]
        )
    _check_update(operation, name, total)
    return validated(operation, name, total, member="increment")


def _sum(before: float | Decimal, amount: float | Decimal, kinds: set[type]) -> int | float | Decimal | None:
    """Return the sum as one of these types of numbers, as exact as it can be; None where it is beyond them."""
    if float in kinds and not isinstance(before, Decimal) and not isinstance(amount, Decimal):
        return _integer_or_float(before, amount, kinds)
    try:
        total = _EXACT.add(Decimal(str(before)), Decimal(str(amount)))
    except ArithmeticError:
        return None
    if not total.is_finite():
        return None
    if Decimal in kinds:
        return total
    whole = int(total) if total == total.to_integral_value() else None
    if whole is None:
        return total
    return whole if -_MAX_INTEGER <= whole < _MAX_INTEGER else None


def _integer_or_float(before: float, amount: float, kinds: set[type]) -> int | float | None:
    if int in kinds and isinstance(before, int) and isinstance(amount, int):
        whole = before + amount
        return whole if -_MAX_INTEGER <= whole < _MAX_INTEGER else None
    try:
        total = float(before) + float(amount)
    except OverflowError:
        return None
    return total if abs(total) < float("inf") else None


def _check_update(operation: Update | Upsert, name: str, total: Any) -> None:
    """Check the sum against the model of an update, which could have set the field to it as well.

    Raises:
        InvalidRequestError: the sum breaks a constraint of the field; the error has a pointer to the increment.
    """
    try:
        operation.resource.update.model_validate({name: total})
    except ValidationError as error:
        at = pointer(operation, "increment")
        found = [
            FieldProblem(at + problem.pointer, problem.code, problem.message)
            for problem in field_errors(error)
            if problem.pointer == f"/{name}" or problem.pointer.startswith(f"/{name}/")
        ]
        if found:
            raise InvalidRequestError("the sum does not fit", errors=found) from None


def _numbers(annotation: Any) -> Iterator[type]:
    """Yield the types of numbers that a field with this annotation may hold; true and false are no numbers."""
    for kind in alternatives(annotation):
        if kind is Any or kind is object or isinstance(kind, TypeVar):
            yield from (int, float, Decimal)
        elif isinstance(kind, type) and not issubclass(kind, bool):
            yield from (number for number in (int, float, Decimal) if issubclass(kind, number))
