"""What every write has in common: its key, what makes its repetition the same, and what the caller prefers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hybridkit.contract import Emission
from hybridkit.dataservice._http._requests import ContractRequest, fingerprint, key_of
from hybridkit.dataservice._store._operations import Assert, CallWork, Operation, Outcome, Write
from hybridkit.errors import FieldProblem, InvalidRequestError


async def perform(
    request: ContractRequest,
    operations: Sequence[Operation],
    *,
    members: Mapping[str, Any] | None,
    call: CallWork | None = None,
    emit: tuple[Emission, ...] = (),
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed",
) -> Outcome:
    """Have the store do all of it once, or only try it where the caller prefers `tx=rollback`.

    Args:
        request: of which come caller, key and preferences.
        operations: in their order.
        members: of the body; with method and path they tell whether a repeated key repeats the request.
        call: a service's own call, instead of operations.
        emit: events and commands for the outbox.
        isolation: of the transaction.

    Raises:
        InvalidRequestError: more records than `max-affected` allows, or a call, which can't tell; nothing was done.
        HybridkitError: as `Store.write`.
    """
    preferences = request.preferences
    limit = preferences.max_affected()
    if call is None:
        _check_affected(operations, limit)
    elif limit is not None:  # ignored, it would be a limit that doesn't hold
        raise InvalidRequestError(
            "nobody counts what a service's own call touches; leave max-affected out",
            errors=[FieldProblem("", "max_affected")],
        )
    write = Write(
        caller=request.caller,
        key=key_of(request),
        fingerprint=fingerprint(request, members),
        operations=tuple(operations),
        call=call,
        emit=emit,
        isolation=isolation,
        dry_run=preferences.rolled_back(),
    )
    return await request.store.write(write)


def _check_affected(operations: Sequence[Operation], limit: int | None) -> None:
    if limit is None:
        return
    affected = sum(1 for operation in operations if not isinstance(operation, Assert))
    if affected > limit:
        raise InvalidRequestError(
            f"this would touch {affected} records, and max-affected allows {limit}",
            errors=[FieldProblem("", "max_affected")],
        )
