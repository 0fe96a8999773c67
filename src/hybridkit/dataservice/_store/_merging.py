"""Documents after a merge patch: as their field declares them, except for what others have stored in them before.

SQL, or another owner of the database, may have stored what no write of this service would: members that the model
doesn't have, values of other types. A patch of something else is not refused for them, and leaves them as they are.
"""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from hybridkit.codec import field_errors
from hybridkit.dataservice._store._losses import losses
from hybridkit.dataservice._store._members import dumped, with_others
from hybridkit.dataservice._store._operations import Update, merge_patch
from hybridkit.dataservice._store._refusals import declared_type, invalid_value
from hybridkit.errors import FieldProblem


def merged(operation: Update, name: str, document: Any) -> Any:
    """Return a field's document after the operation's merge patch.

    Args:
        operation: has the patch.
        name: of the field.
        document: before the patch.

    Raises:
        InvalidRequestError: the patch has made problems; the error has a pointer to each.
    """
    value = merge_patch(document, operation.merges[name])
    adapter = declared_type(operation, name)
    kept, problems = _read(adapter, value)
    if not problems:
        return dumped(adapter, kept)
    _, before = _read(adapter, document)
    known = {(problem.pointer, problem.code) for problem in before}
    if made := [problem for problem in problems if (problem.pointer, problem.code) not in known]:
        raise invalid_value(operation, name, made)
    return value if kept is None else with_others(dumped(adapter, kept), value, kept)


def _read(adapter: TypeAdapter[Any], value: Any) -> tuple[Any, tuple[FieldProblem, ...]]:
    """Return the value as the type reads it, or None where it doesn't, and the problems of the value."""
    try:
        kept = adapter.validate_python(value)
    except ValidationError as error:
        return None, field_errors(error)
    return kept, tuple(losses(value, kept))
