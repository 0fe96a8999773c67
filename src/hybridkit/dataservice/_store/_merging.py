"""A document after a merge patch: what its field declares, but for what others have stored in it before.

SQL, or another owner of the database, may have put there what no write of ours would: members that the model doesn't
have, values of other types. Who patches something else is not refused for it, and leaves it as it is.
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
    """The document in that field after the operation's patch of it.

    Args:
        operation: has the patch.
        name: of the field.
        document: as it is.

    Raises:
        InvalidRequestError: with a pointer to every problem that the patch has made.
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
    """What the type makes of it, None where it makes nothing; and what is wrong with it."""
    try:
        kept = adapter.validate_python(value)
    except ValidationError as error:
        return None, field_errors(error)
    return kept, tuple(losses(value, kept))
