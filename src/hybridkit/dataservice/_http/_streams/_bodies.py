"""The bodies of appends to streams, validated."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from hybridkit.codec import encode_json, validate_json
from hybridkit.context import current
from hybridkit.contract import MAX_EVENT_BYTES, Append, AppendOperation, Transaction
from hybridkit.dataservice._http._requests import ContractRequest
from hybridkit.dataservice._store._streams import StreamAppend, Streams
from hybridkit.errors import FieldProblem, InvalidRequestError, NotSupportedError
from hybridkit.observability import trace_headers
from hybridkit.streams._stream import AnyStream

_APPEND: Final = TypeAdapter(Append)


def read_append(stream: AnyStream, stream_id: str, body: bytes, members: Mapping[str, Any]) -> StreamAppend:
    """Read the body of `:append`.

    Args:
        stream: the kind of stream.
        stream_id: the id in the URL.
        body: the body as it came.
        members: the same, with the numbers as they were written.

    Raises:
        MalformedPayloadError: the body is no append.
        InvalidRequestError: an event belongs to another stream or is too large, the id can't be one, or a snapshot
            comes without an expected version.
    """
    append = validate_json(_APPEND, body, what="the append", strict=True)
    return _checked(stream, stream_id, append, members["events"], at="")


def read_appends(
    transaction: Transaction, members: Mapping[str, Any], streams: Mapping[str, AnyStream]
) -> dict[int, StreamAppend]:
    """Read the appends of a transaction, by their places among its operations.

    Args:
        transaction: the transaction as it was sent.
        members: the members of its body, with the numbers as they were written.
        streams: the kinds of streams, by their names.

    Raises:
        InvalidRequestError: there is no such stream, two appends are to one stream, or `read_append` would raise it.
    """
    found: dict[int, StreamAppend] = {}
    written: list[Mapping[str, Any]] = members.get("operations") or []
    for index, operation in enumerate(transaction.operations):
        if not isinstance(operation, AppendOperation):
            continue
        at = f"operations/{index}"
        stream = streams.get(operation.resource)
        if stream is None:
            raise InvalidRequestError(
                f"{at}: there is no such stream", errors=[FieldProblem(f"/{at}/resource", "unknown_resource")]
            )
        append = _checked(stream, operation.id, operation, written[index]["events"], at=at)
        if any(other.stream is stream and other.id == append.id for other in found.values()):
            raise InvalidRequestError(
                f"{at}: another operation appends to this stream; put all events into one",
                errors=[FieldProblem(f"/{at}/id", "appended_twice")],
            )
        found[index] = append
    return found


def check_appendable(request: ContractRequest, appends: Collection[StreamAppend]) -> None:
    """Refuse an append that the data service can't keep, or whose events nothing would publish.

    Raises:
        NotSupportedError: the database keeps no streams; or the stream is declared with `publish=True`, and the data
            service has no broker.
    """
    if appends:
        streams_of(request)
    for append in appends:
        if append.stream.publish and not request.app.state.can_emit:
            raise NotSupportedError(
                f"this data service has no broker, so nothing would publish the events of {append.stream.name};"
                " declare the stream with publish=False where that is right"
            )


def streams_of(request: ContractRequest) -> Streams:
    """Return the streams of the store.

    Raises:
        NotSupportedError: the database keeps none.
    """
    streams = request.store.streams
    if streams is None:
        raise NotSupportedError("this data service keeps no streams of events; they need PostgreSQL")
    return streams


def _checked(
    stream: AnyStream, stream_id: str, append: Append, written: list[Mapping[str, Any]], *, at: str
) -> StreamAppend:
    place = f"/{at}" if at else ""
    if append.snapshot is not None and append.expected_version is None:
        raise InvalidRequestError(
            "a snapshot belongs to a version: say which one is expected",
            errors=[FieldProblem(f"{place}/snapshot", "unexpected")],
        )
    for index, (event, sent) in enumerate(zip(append.events, written, strict=True)):
        pointer = f"{place}/events/{index}/data"
        if len(encode_json(sent["data"])) > MAX_EVENT_BYTES:
            raise InvalidRequestError(
                f"{stream.name}: an event has at most {MAX_EVENT_BYTES} bytes of data",
                errors=[FieldProblem(pointer, "too_long")],
            )
        key = event.data.get(stream.key, stream_id)
        if str(key) != stream_id:
            raise InvalidRequestError(
                f"{stream.name}: the event belongs to another stream, as its {stream.key} says",
                errors=[FieldProblem(f"{pointer}/{stream.key}", "another_stream")],
            )
    exact = [
        event.model_copy(update={"data": sent["data"]})
        for event, sent in zip(append.events, written, strict=True)
    ]
    context = current()
    return StreamAppend(
        stream=stream,
        id=stream.check_id(stream_id),
        expected=append.expected_version,
        events=tuple(exact),
        snapshot=append.snapshot,
        request_id=context.request_id,
        user_id=context.user_id,
        trace=dict(trace_headers()),
        label=at,
    )
