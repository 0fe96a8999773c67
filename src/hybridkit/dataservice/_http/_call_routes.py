"""The routes of the calls that a service declares itself."""

from typing import Any

from hybridkit.dataservice._http._bodies import closed, validate
from hybridkit.dataservice._http._own_calls import CallContext, CallHandler, run_call
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import ContractRequest, read_object
from hybridkit.dataservice._http._responses import BytesResponse, json_response, replay_headers
from hybridkit.dataservice._http._router import ContractRouter, Endpoint
from hybridkit.dataservice._store._operations import CallAnswer
from hybridkit.resources._resource import AnyCall


class CallRoute:
    """The route `POST /v1/{resource}:{call}`.

    Args:
        call: the declaration.
        handler: the function that answers the call.
    """

    def __init__(self, call: AnyCall, handler: CallHandler) -> None:
        self.call = call
        self.request_model = closed(call.request)
        self._handler = handler

    def __repr__(self) -> str:
        return f"CallRoute({self.call.path})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the route, for callers that may make the call."""
        if self.call.safe:
            endpoint = Endpoint(self.ask, call=self.call)
        else:
            endpoint = Endpoint(self.change, call=self.call, prefers=True)
        router.add(self.call.path, "POST", endpoint)

    async def ask(self, request: ContractRequest) -> BytesResponse:
        """Answer a safe call, without a key."""
        body, _ = await read_object(request)
        model = validate(self.request_model, body)

        async def work(database: Any) -> CallAnswer:
            context = CallContext(database, caller=request.caller, can_emit=False)
            return await run_call(self.call, self._handler, model, context)

        return json_response(await request.store.ask(work))

    async def change(self, request: ContractRequest) -> BytesResponse:
        """Answer a call that changes something, once per key."""
        body, members = await read_object(request)
        model = validate(self.request_model, body)
        can_emit: bool = request.app.state.can_emit

        async def work(database: Any) -> CallAnswer:
            context = CallContext(database, caller=request.caller, can_emit=can_emit)
            return await run_call(self.call, self._handler, model, context)

        outcome = await perform(request, (), members=members, call=work)
        headers = replay_headers(outcome)
        if request.preferences.minimal():
            return BytesResponse(204, b"", headers)
        return json_response(outcome.answer, headers=headers)
