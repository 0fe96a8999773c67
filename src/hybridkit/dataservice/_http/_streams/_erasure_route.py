"""The route `POST /v1:forget`: erase the personal data of one person."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from hybridkit._personal import personal_fields
from hybridkit.codec import encode_json, validate_json
from hybridkit.context import current
from hybridkit.contract import Emission
from hybridkit.contract._erasure import Forget, Forgotten
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import ContractRequest, read_object
from hybridkit.dataservice._http._responses import BytesResponse, json_response
from hybridkit.dataservice._http._router import ContractRouter, Endpoint
from hybridkit.dataservice._http._streams._history import erase_entries, erase_history
from hybridkit.dataservice._store._erasure import (
    Erased,
    ErasureStep,
    HistoryStep,
    RecordStep,
    erasure_steps,
)
from hybridkit.dataservice._store._protocol import Store
from hybridkit.errors import FieldProblem, InvalidRequestError
from hybridkit.observability import get_logger
from hybridkit.resources._resource import AnyResource
from hybridkit.streams._stream import AnyStream

if TYPE_CHECKING:
    from hybridkit.dataservice._http._callers import Callers

FORGET_PATH: Final = "/v1:forget"
_FORGET: Final = TypeAdapter(Forget)

_log = get_logger("hybridkit.dataservice")


class ErasureRoute:
    """The route `POST /v1:forget`, which needs a grant of its own.

    Args:
        resources: the resources of the data service.
        streams: its kinds of streams.
        saga_data: the data models of its sagas, by their names.
    """

    def __init__(
        self,
        resources: Iterable[AnyResource],
        streams: Iterable[AnyStream],
        saga_data: Mapping[str, type[BaseModel]],
    ) -> None:
        self._resources = list(resources)
        self._streams = list(streams)
        self._saga_data = saga_data

    def __repr__(self) -> str:
        return f"ErasureRoute({self._resources})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the route; it checks by itself what the caller may do."""
        router.add(FORGET_PATH, "POST", Endpoint(self.forget))

    async def forget(self, request: ContractRequest) -> BytesResponse:
        """Erase one batch; with the last one `subject.forgotten` is emitted."""
        callers: Callers = request.app.state.callers
        callers.check_forget(request.caller)
        body, members = await read_object(request)
        wanted = validate_json(_FORGET, body, what="the person to forget", strict=True)
        person = _canonical(wanted.id)
        steps = self._steps(wanted.subject)
        index, after = _place(wanted.after, len(steps))
        erased = await _erase(request.store, steps[index], person, after=after, dry_run=wanted.dry_run)
        following = f"{index}:{erased.after}" if erased.after is not None else f"{index + 1}:"
        is_last = erased.after is None and index + 1 == len(steps)
        announces = is_last and not wanted.dry_run and request.app.state.can_emit
        if announces:
            emission = _forgotten(wanted.subject, person)
            await perform(request, (), members=members, emit=(emission,))
        if is_last and not wanted.dry_run:
            _log.info("a person is forgotten", subject=wanted.subject, caller=request.caller)
        answer = Forgotten(rows=dict(erased.rows), next=None if is_last else following, announced=announces)
        return json_response(encode_json(answer.model_dump()))

    def _steps(self, subject: str) -> Sequence[ErasureStep | HistoryStep]:
        known = {each.subject for model in self._models() for each in personal_fields(model)}
        if subject not in known:
            raise InvalidRequestError(
                f"no field is marked with Personal({subject!r}); there are {', '.join(sorted(known)) or 'no marks'}",
                errors=[FieldProblem("/subject", "unknown_subject")],
            )
        return erasure_steps(subject, self._resources, self._streams, self._saga_data)

    def _models(self) -> Iterable[type[BaseModel]]:
        yield from (resource.record for resource in self._resources)
        yield from (event for stream in self._streams for event in stream.events)
        yield from self._saga_data.values()


async def _erase(
    store: Store, step: ErasureStep | HistoryStep, person: str, *, after: str, dry_run: bool
) -> Erased:
    """Erase one batch of a step, with the history of its records."""
    if isinstance(step, HistoryStep):
        return Erased({}) if dry_run else await erase_history(store, step, person)
    erased = await store.erase(step, person, after=after, dry_run=dry_run)
    if not dry_run and isinstance(step, RecordStep) and step.resource.audited:
        history = await erase_entries(store, step, erased.ids)
        return erased._replace(rows={**erased.rows, **history.rows})
    return erased


def _canonical(person: str) -> str:
    """Return an id as JSON has it: a UUID in lower case, anything else as it is."""
    try:
        return str(UUID(person))
    except ValueError:
        return person


def _place(after: str | None, steps: int) -> tuple[int, str]:
    if after is None:
        return 0, ""
    number, colon, rest = after.partition(":")
    if not (colon and number.isascii() and number.isdecimal() and len(number) < 6 and int(number) < steps):
        raise InvalidRequestError(
            "`after` is none of this service; begin anew without it",
            errors=[FieldProblem("/after", "unknown_place")],
        )
    return int(number), rest


def _forgotten(subject: str, person: str) -> Emission:
    # Imported here, as the import puts the event into the registry.
    from hybridkit.events.erasure import SubjectForgotten  # noqa: PLC0415

    context = current()
    event = SubjectForgotten(subject=subject, id=person)
    return Emission.of(event, request_id=context.request_id, user_id=context.user_id)
