"""The routes of one kind of stream: append to a stream, read a stream, read the log of all of them."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hybridkit.codec import field_errors
from hybridkit.contract import IDEMPOTENCY_KEY_HEADER, MAX_STREAM_PAGE
from hybridkit.contract._streams import MAX_VERSION
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import ContractRequest, key_of, read_object, without_event_times
from hybridkit.dataservice._http._responses import BytesResponse, json_response, replay_headers
from hybridkit.dataservice._http._router import ContractRouter, Endpoint
from hybridkit.dataservice._http._streams._bodies import check_appendable, read_append, streams_of
from hybridkit.dataservice._store._streams import LogPosition, StreamRead
from hybridkit.errors import InvalidQueryError
from hybridkit.streams._stream import AnyStream

MAX_TYPES: Final = 100

type _Text = Annotated[str, StringConstraints(max_length=8192)]


class _StreamQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: int = Field(default=0, ge=0, le=MAX_VERSION)
    up_to: int | None = Field(default=None, ge=0, le=MAX_VERSION)
    state_version: int | None = Field(default=None, ge=1, le=MAX_VERSION)


class _LogQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    after: _Text = ""
    types: _Text = ""
    page_size: int = Field(default=MAX_STREAM_PAGE, ge=1, le=MAX_STREAM_PAGE)


class StreamRoutes:
    """The routes of one kind of stream.

    Args:
        stream: the declaration.
    """

    def __init__(self, stream: AnyStream) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"StreamRoutes({self._stream!r})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the routes."""
        stream = self._stream
        read = Endpoint(self.read, stream, ("read",), takes_query=True)
        append = Endpoint(self.append, stream, ("append",), prefers=True)
        router.add_stream(stream, read=read, append=append)
        router.add(stream.path, "GET", Endpoint(self.log, stream, ("read",), takes_query=True))

    async def append(self, request: ContractRequest) -> BytesResponse:
        """Answer `POST` of `{id}:append` with the version of the last event."""
        body, members = await read_object(request)
        append = read_append(self._stream, request.record_id, body, members)
        check_appendable(request, (append,))
        outcome = await perform(request, (), appends=(append,), members=without_event_times(members))
        [version] = outcome.versions
        return json_response(b'{"version":%d}' % version, headers=replay_headers(outcome))

    async def read(self, request: ContractRequest) -> BytesResponse:
        """Answer `GET` of a stream with a snapshot, where one is asked for and there, and a page of its events."""
        stream_id = self._stream.check_id(request.record_id)
        query = _query(_StreamQuery, request)
        has_key = request.fields.single(IDEMPOTENCY_KEY_HEADER) is not None
        wanted = StreamRead(
            after=query.after,
            up_to=query.up_to,
            state_version=query.state_version,
            caller=request.caller,
            key=key_of(request) if has_key else None,
        )
        return json_response(await streams_of(request).read(self._stream, stream_id, wanted))

    async def log(self, request: ContractRequest) -> BytesResponse:
        """Answer `GET` of the collection with a page of the log."""
        query = _query(_LogQuery, request)
        try:
            after = LogPosition.parse(query.after) if query.after else LogPosition()
        except ValueError as error:
            raise InvalidQueryError(
                f"{error}: use the one of the page before, as it is", pointer="/after"
            ) from None
        types = query.types.split(",") if query.types else []
        if len(types) > MAX_TYPES:
            raise InvalidQueryError(f"the log is read by at most {MAX_TYPES} types", pointer="/types")
        return json_response(
            await streams_of(request).log(self._stream, after=after, types=types, limit=query.page_size)
        )


def _query[QueryT: BaseModel](model: type[QueryT], request: ContractRequest) -> QueryT:
    """Read the parameters in the URL.

    Raises:
        InvalidQueryError: a parameter is unknown, twice there, or out of range.
    """
    items = request.query_params.multi_items()
    params = dict(items)
    try:
        if len(params) < len(items):
            raise InvalidQueryError("each parameter is given once")
        return model.model_validate_strings(params)
    except ValidationError as error:
        [problem, *_] = field_errors(error)
        raise InvalidQueryError(
            f"the parameter {problem.pointer} does not fit: {problem.message}", pointer=problem.pointer
        ) from None
