"""Why a store refuses an operation, in the same words whatever the database."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from hybridkit.codec import MAX_FIELD_ERRORS, field_errors
from hybridkit.dataservice._store._losses import losses
from hybridkit.dataservice._store._members import dumped
from hybridkit.dataservice._store._operations import Delete, Operation, Update
from hybridkit.errors import (
    FieldProblem,
    ForeignKeyError,
    InvalidRequestError,
    NotFoundError,
    StaleVersionError,
    UniqueViolationError,
)


def not_found(operation: Operation) -> NotFoundError:
    """The record is not there."""
    return NotFoundError(operation.says(f"{operation.resource.name} has no such record"))


def stale_version(operation: Operation, current: str | None) -> StaleVersionError:
    """The record is in another state, or there although it should not be; `current` is None where it is not there."""
    reason = "is not there" if current is None else "has changed, or was there already"
    return StaleVersionError(operation.says(f"the record {reason}"), current=current)


def requirement_failed(operation: Operation, current: str | None) -> StaleVersionError:
    """Return the refusal of an update whose `require` does not hold for the record, whose ETag is `current`."""
    return StaleVersionError(operation.says("the requirement does not hold"), current=current)


def hidden(operation: Operation) -> UniqueViolationError:
    """The id belongs to a record that a soft delete has hidden: neither is it replaced, nor brought back unseen."""
    return unique_violation(operation, ["id"], "a deleted record has this id; undelete it")


def left_out(operation: Operation) -> InvalidRequestError:
    """The database has passed the record over, as a trigger or a rule can, and says no more."""
    errors = pointed(operation, (), "refused")
    return InvalidRequestError(operation.says("the database has left the record out"), errors=errors)


def unique_violation(
    operation: Operation, fields: Sequence[str], message: str = "another record has this value"
) -> UniqueViolationError:
    """Another record has the values of those fields, which only one may have."""
    return UniqueViolationError(
        operation.says(message), fields=fields, errors=pointed(operation, fields, "unique")
    )


def foreign_key_violation(operation: Operation, fields: Sequence[str] = ()) -> ForeignKeyError:
    """Those fields refer to a record that isn't there; or without fields, the record itself is referred to."""
    if isinstance(operation, Delete):
        return ForeignKeyError(operation.says("the record is still referred to"))
    message = "the record refers to one that is not there" if fields else "a reference would lead nowhere"
    return ForeignKeyError(operation.says(message), errors=pointed(operation, fields, "foreign_key"))


def not_a_number(operation: Operation, name: str) -> InvalidRequestError:
    """An increment of something else."""
    at = f"{pointer(operation, 'increment')}/{name}"
    return InvalidRequestError("only a number can grow", errors=[FieldProblem(at, "not_a_number")])


def set_and_incremented(operation: Operation, name: str) -> InvalidRequestError:
    """Two answers to what a field should be."""
    at = f"{pointer(operation, 'increment')}/{name}"
    return InvalidRequestError(
        "a field is either set or incremented", errors=[FieldProblem(at, "set_and_incremented")]
    )


def pointer(operation: Operation, member: str = "data") -> str:
    """Where a member of the operation stands in the request."""
    return f"/{operation.label}/{member}" if operation.label else ""


def pointed(operation: Operation, fields: Sequence[str], code: str) -> Sequence[FieldProblem]:
    """A problem of those fields of the operation, or of the whole operation where nobody knows of which."""
    if not fields and operation.label:
        return [FieldProblem(f"/{operation.label}", code)]
    return [FieldProblem(_field_pointer(operation, name), code) for name in fields]


def _field_pointer(operation: Operation, name: str) -> str:
    if name == "id" and operation.label:
        return f"/{operation.label}/id"
    is_increment = isinstance(operation, Update) and name in operation.increment
    return f"{pointer(operation, 'increment' if is_increment else 'data')}/{name.replace('.', '/')}"


def validated(
    operation: Operation, name: str, value: Any, *, member: str = "data", bounds: bool = True
) -> Any:
    """The value, if it is what the record declares.

    Args:
        operation: for the message.
        name: of the field.
        value: to be stored, or a sum.
        member: of the operation, which says where the value comes from.
        bounds: hold it to those of the record's field too, which a database's column doesn't have.

    Raises:
        InvalidRequestError: with a pointer to every problem.
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
    """What the record declares for that field, with or without the bounds that stand at the field itself."""
    declared = operation.resource.record.model_fields[name]
    bounded = bounds and declared.metadata
    annotation: Any = Annotated[declared.annotation, *declared.metadata] if bounded else declared.annotation
    return TypeAdapter(annotation)


def invalid_value(
    operation: Operation, name: str, found: Sequence[FieldProblem], *, member: str = "data"
) -> InvalidRequestError:
    """A value that its field doesn't have, with a pointer to every problem."""
    at = f"{pointer(operation, member)}/{name}"
    problems = [FieldProblem(at + problem.pointer, problem.code, problem.message) for problem in found]
    return InvalidRequestError("the value does not fit after the change", errors=problems[:MAX_FIELD_ERRORS])
