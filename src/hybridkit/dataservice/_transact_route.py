"""`POST /v1:transact`: several operations and events, one transaction."""

from collections.abc import Mapping, Sequence
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.contract import Transaction
from hybridkit.dataservice._answers import Answer, json_answer, replay_headers
from hybridkit.dataservice._bodies import Bodies, read_transaction
from hybridkit.dataservice._callers import Access, Callers
from hybridkit.dataservice._dispatch import ContractRoute, Endpoint
from hybridkit.dataservice._operations import (
    AnyResource,
    Assert,
    Create,
    Delete,
    Operation,
    Undelete,
    Update,
    Upsert,
)
from hybridkit.dataservice._requests import ContractRequest, read_object, without_times
from hybridkit.dataservice._writing import perform
from hybridkit.errors import NotSupportedError

__all__ = ["TRANSACT_PATH", "TransactRoute"]

TRANSACT_PATH: Final = "/v1:transact"

_ACCESSES: Final[Mapping[type[Operation], tuple[Access, ...]]] = {
    Assert: ("read",),
    Create: ("create",),
    Update: ("update",),
    Upsert: ("create", "update"),
    Delete: ("delete",),
    Undelete: ("delete",),
}


class TransactRoute:
    """The one route that reaches several resources.

    Args:
        bodies: by name of the resource.
    """

    def __init__(self, bodies: Mapping[str, Bodies]) -> None:
        self._bodies = bodies

    def __repr__(self) -> str:
        return f"TransactRoute({sorted(self._bodies)})"

    def add_to(self, route: ContractRoute) -> None:
        """Have it answered there. What the caller may do is checked operation by operation."""
        route.add(TRANSACT_PATH, "POST", Endpoint(self.transact))

    async def transact(self, request: ContractRequest) -> Answer:
        """Everything in the body, or nothing."""
        body, members = await read_object(request)
        transaction, operations = read_transaction(body, self._bodies)
        _check_accesses(request, transaction, operations)
        outcome = await perform(
            request,
            operations,
            members=without_times(members),
            emit=transaction.emit,
            isolation=transaction.isolation,
        )
        headers = replay_headers(outcome)
        if request.preferences.minimal():
            return Answer(204, b"", headers)
        results = [result.record for result in outcome.results]
        return json_answer(encode_json({"results": results}), headers=headers)


def _check_accesses(
    request: ContractRequest, transaction: Transaction, operations: Sequence[Operation]
) -> None:
    callers: Callers = request.app.state.callers
    wanted: set[tuple[AnyResource, Access]] = {
        (operation.resource, access) for operation in operations for access in _ACCESSES[type(operation)]
    }
    for resource, access in wanted:
        callers.check(request.caller, resource, access)
    if transaction.emit:
        callers.check(request.caller, None, "emit")
        if not request.app.state.can_emit:
            raise NotSupportedError("this data service has no broker, so nothing would publish the events")
