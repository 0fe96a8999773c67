"""The common part of all writes: the idempotency key, the request's fingerprint, and the caller's preferences."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from hybridkit.contract import Emission
from hybridkit.dataservice._http._requests import ContractRequest, fingerprint, key_of
from hybridkit.dataservice._store._operations import Assert, CallWork, Operation, Outcome, Write
from hybridkit.dataservice._store._streams import StreamAppend
from hybridkit.errors import FieldProblem, InvalidRequestError


async def perform(
    request: ContractRequest,
    operations: Sequence[Operation],
    *,
    members: Mapping[str, Any] | None,
    appends: Sequence[StreamAppend] = (),
    call: CallWork | None = None,
    emit: tuple[Emission, ...] = (),
    cancel: tuple[UUID, ...] = (),
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed",
) -> Outcome:
    """Have the store do the operations once per key, or only try them where the caller prefers `tx=rollback`.

    Args:
        request: the request; it tells the caller, the key and the preferences.
        operations: the operations, in the order of the request.
        members: the body's members; with method and path they tell whether a repeated key repeats the request.
        appends: appends to streams, in the same transaction.
        call: the work of a service's own call, instead of operations.
        emit: the events and commands for the outbox.
        cancel: ids of earlier events that are not to be published.
        isolation: the isolation level of the transaction.

    Raises:
        InvalidRequestError: the operations touch more records than `max-affected` allows, or `max-affected` comes
            with a call, which can't count them; nothing was done.
        HybridkitError: `Store.write` raised it.
    """
    preferences = request.preferences
    limit = preferences.max_affected()
    if call is None:
        _check_affected(operations, limit, appends=len(appends))
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
        appends=tuple(appends),
        call=call,
        emit=emit,
        cancel=cancel,
        isolation=isolation,
        minimal=call is None and preferences.minimal(),
        dry_run=preferences.rolled_back(),
    )
    return await request.store.write(write)


def _check_affected(operations: Sequence[Operation], limit: int | None, *, appends: int) -> None:
    if limit is None:
        return
    affected = appends + sum(1 for operation in operations if not isinstance(operation, Assert))
    if affected > limit:
        raise InvalidRequestError(
            f"this would touch {affected} records, and max-affected allows {limit}",
            errors=[FieldProblem("", "max_affected")],
        )
