"""Refusals of operations, in the same words whatever the database."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from hybridkit.codec import MAX_FIELD_ERRORS, field_errors
from hybridkit.dataservice._store._losses import losses
from hybridkit.dataservice._store._members import dumped
from hybridkit.dataservice._store._operations import Delete, Operation, Update, Upsert
from hybridkit.errors import (
    FieldProblem,
    ForeignKeyError,
    InvalidRequestError,
    NotFoundError,
    RequirementNotMetError,
    StaleVersionError,
    UniqueViolationError,
)


def not_found(operation: Operation) -> NotFoundError:
    """Return the refusal of an operation whose record is not there."""
    return NotFoundError(operation.says(f"{operation.resource.name} has no such record"))


def stale_version(operation: Operation, current: str | None) -> StaleVersionError:
    """Return the refusal of a condition on the record's state, which is `current`, or None where it is not there."""
    reason = "is not there" if current is None else "has changed, or was there already"
    code = "not_there" if current is None else "stale_version"
    return StaleVersionError(
        operation.says(f"the record {reason}"), current=current, errors=pointed(operation, (), code)
    )


def requirement_not_met(operation: Operation, current: str | None) -> RequirementNotMetError:
    """Return the refusal of an update whose `require` does not hold for the record, whose ETag is `current`."""
    problem = FieldProblem(pointer(operation, "require"), "requirement_not_met")
    return RequirementNotMetError(
        operation.says("the requirement does not hold"), current=current, errors=[problem]
    )


def hidden(operation: Operation) -> UniqueViolationError:
    """Return the refusal of an id whose record is hidden: an upsert neither replaces it nor brings it back."""
    return unique_violation(operation, ["id"], "a deleted record has this id; undelete it")


def left_out(operation: Operation) -> InvalidRequestError:
    """Return the refusal of a record that the database has passed over without an error, as a trigger can."""
    errors = pointed(operation, (), "refused")
    return InvalidRequestError(operation.says("the database has left the record out"), errors=errors)


def unique_violation(
    operation: Operation, fields: Sequence[str], message: str = "another record has this value"
) -> UniqueViolationError:
    """Return the refusal of values that another record has in fields where only one may have them."""
    return UniqueViolationError(
        operation.says(message), fields=fields, errors=pointed(operation, fields, "unique")
    )


def foreign_key_violation(operation: Operation, fields: Sequence[str] = ()) -> ForeignKeyError:
    """Return the refusal of fields that refer to no record, or of a delete of a record that others refer to."""
    if isinstance(operation, Delete):
        errors = pointed(operation, (), "foreign_key")
        return ForeignKeyError(operation.says("the record is still referred to"), errors=errors)
    message = "the record refers to one that is not there" if fields else "a reference would lead nowhere"
    return ForeignKeyError(operation.says(message), errors=pointed(operation, fields, "foreign_key"))


def not_a_number(operation: Operation, name: str) -> InvalidRequestError:
    """Return the refusal of an increment of a field that holds no number."""
    at = f"{pointer(operation, 'increment')}/{name}"
    return InvalidRequestError("only a number can grow", errors=[FieldProblem(at, "not_a_number")])


def set_and_incremented(operation: Operation, name: str) -> InvalidRequestError:
    """Return the refusal of an update that both sets and increments a field."""
    at = f"{pointer(operation, 'increment')}/{name}"
    return InvalidRequestError(
        "a field is either set or incremented", errors=[FieldProblem(at, "set_and_incremented")]
    )


def pointer(operation: Operation, member: str = "data") -> str:
    """Return the JSON pointer of a member of the operation; empty where the operation is the whole request."""
    return f"/{operation.label}/{member}" if operation.label else ""


def pointed(operation: Operation, fields: Sequence[str], code: str) -> Sequence[FieldProblem]:
    """Return a problem for each of the fields, or one of the whole operation where the fields aren't known."""
    if not fields and operation.label:
        return [FieldProblem(f"/{operation.label}", code)]
    return [FieldProblem(_field_pointer(operation, name), code) for name in fields]


def _field_pointer(operation: Operation, name: str) -> str:
    if name == "id" and operation.label:
        return f"/{operation.label}/id"
    is_increment = isinstance(operation, Update | Upsert) and name in operation.increment
    return f"{pointer(operation, 'increment' if is_increment else 'data')}/{name.replace('.', '/')}"


def validated(
    operation: Operation, name: str, value: Any, *, member: str = "data", bounds: bool = True
) -> Any:
    """Return the value in the form in which it is stored, if the record's field can hold it.

    Args:
        operation: for the message.
        name: of the field.
        value: to be stored, or a sum.
        member: of the operation that the value comes from, for pointers.
        bounds: whether the field's own constraints hold too, which a database's column doesn't have.

    Raises:
        InvalidRequestError: the field can't hold the value; the error has a pointer to every problem.
    """
    adapter = declared_type(operation, name, bounds=bounds)
    try:
        kept = adapter.validate_python(value)
        found = tuple(islice(losses(value, kept), MAX_FIELD_ERRORS))
    except ValidationError as error:
        found = field_errors(error)
    else:
        if not found:
            return dumped(adapter, kept)
    raise invalid_value(operation, name, found, member=member)


def declared_type(operation: Operation, name: str, *, bounds: bool = True) -> TypeAdapter[Any]:
    """Return the adapter for a field of the record, with or without the field's own constraints."""
    declared = operation.resource.record.model_fields[name]
    bounded = bounds and declared.metadata
    annotation: Any = Annotated[declared.annotation, *declared.metadata] if bounded else declared.annotation
    return TypeAdapter(annotation)


def invalid_value(
    operation: Operation, name: str, found: Sequence[FieldProblem], *, member: str = "data"
) -> InvalidRequestError:
    """Return the refusal of a value that its field can't hold, with a pointer to every problem."""
    at = f"{pointer(operation, member)}/{name}"
    problems = [FieldProblem(at + problem.pointer, problem.code, problem.message) for problem in found]
    return InvalidRequestError("the value does not fit after the change", errors=problems[:MAX_FIELD_ERRORS])
