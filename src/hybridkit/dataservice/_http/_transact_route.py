"""The route `POST /v1:transact`: several operations and events in one transaction."""

from collections.abc import Mapping
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.contract import Transaction
from hybridkit.dataservice._http._bodies import RequestBodies, read_operations, read_transaction
from hybridkit.dataservice._http._callers import Access, Callers
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import ContractRequest, read_object, without_times
from hybridkit.dataservice._http._responses import BytesResponse, json_response, replay_headers
from hybridkit.dataservice._http._router import ContractRouter, Endpoint
from hybridkit.dataservice._http._streams._bodies import check_appendable, read_appends
from hybridkit.errors import NotSupportedError
from hybridkit.streams._stream import AnyStream

TRANSACT_PATH: Final = "/v1:transact"

_ACCESSES: Final[Mapping[str, tuple[Access, ...]]] = {
    "assert": ("read",),
    "create": ("create",),
    "update": ("update",),
    "upsert": ("create", "update"),
    "replace": ("update",),
    "delete": ("delete",),
    "append": ("append",),
}


class TransactRoute:
    """The route `POST /v1:transact`, the only one that reaches several resources.

    Args:
        bodies: the request bodies of each resource, by its name.
        streams: the kinds of streams, by their names.
    """

    def __init__(
        self, bodies: Mapping[str, RequestBodies], streams: Mapping[str, AnyStream] | None = None
    ) -> None:
        self._bodies = bodies
        self._streams = streams or {}

    def __repr__(self) -> str:
        return f"TransactRoute({sorted(self._bodies)})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the route; it checks by itself what the caller may do, operation by operation."""
        router.add(TRANSACT_PATH, "POST", Endpoint(self.transact, prefers=True))

    async def transact(self, request: ContractRequest) -> BytesResponse:
        """Do everything in the body, or nothing. A caller that may not learns nothing else about its request."""
        callers: Callers = request.app.state.callers
        callers.check_known(request.caller)
        body, members = await read_object(request)
        transaction = read_transaction(body, members)
        self._check_accesses(callers, request.caller, transaction)
        if (transaction.emit or transaction.cancel) and not request.app.state.can_emit:
            raise NotSupportedError("this data service has no broker, so nothing would publish the events")
        appends = read_appends(transaction, members, self._streams)
        check_appendable(request, appends.values())
        operations = read_operations(transaction, self._bodies)
        outcome = await perform(
            request,
            operations,
            appends=tuple(appends.values()),
            members=without_times(members),
            emit=transaction.emit,
            cancel=transaction.cancel,
            isolation=transaction.isolation,
        )
        headers = replay_headers(outcome)
        if request.preferences.minimal():
            return BytesResponse(204, b"", headers)
        records, versions = iter(outcome.results), iter(outcome.versions)
        results = [
            {"version": next(versions)} if index in appends else next(records).record
            for index in range(len(transaction.operations))
        ]
        return json_response(encode_json({"results": results}), headers=headers)

    def _check_accesses(self, callers: Callers, caller: str, transaction: Transaction) -> None:
        wanted: set[tuple[str, Access]] = {
            (operation.resource, access)
            for operation in transaction.operations
            for access in _ACCESSES[operation.op]
        }
        for name, access in sorted(wanted):
            if access == "append" and name in self._streams:
                callers.check(caller, self._streams[name], access)
            elif access != "append" and name in self._bodies:
                callers.check(caller, self._bodies[name].resource, access)
        for emission in transaction.emit:
            callers.check_emission(caller, emission)
