"""Appends to streams on their way to HTTP: events with their identity, and the stream as it will be."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ValidationError

from hybridkit.clients._streams._snapshots import made_snapshot
from hybridkit.codec import decode_object, field_errors, now
from hybridkit.contract import MAX_APPENDED_EVENTS, MAX_EVENT_BYTES, Append, StreamEvent
from hybridkit.contract._operations import check_message_data
from hybridkit.errors import InvalidRequestError, PayloadTooLargeError
from hybridkit.events import Event, encode_data
from hybridkit.streams import Loaded, Stream

type StreamId = UUID | str | int
"""The id of a stream, of the type that the events' key has, or as text."""


class PlannedAppend[StateT: BaseModel](NamedTuple):
    """An append, ready to be sent.

    Attributes:
        id: the id of the stream.
        body: the append as it is sent.
        after: the stream as the append leaves it; None where the version before it isn't known.
    """

    id: str
    body: Append
    after: Loaded[StateT] | None


def plan_append[StateT: BaseModel](
    stream: Stream[StateT],
    loaded_or_id: Loaded[StateT] | StreamId,
    events: Sequence[Event],
    *,
    expected: int | None = None,
    id_of: Callable[[str], UUID] | None = None,
) -> PlannedAppend[StateT]:
    """Check events and plan their append.

    Args:
        stream: the kind of stream.
        loaded_or_id: a loaded stream has to have the version in which it was read; an id alone means any version.
        events: the events, in their order.
        expected: the version for an id; None for any.
        id_of: makes the id of an event that has none from a name that is the same on every run; None leaves it to the
            event.

    Raises:
        DeclarationError: the stream doesn't take a class of events.
        InvalidRequestError: there are none or more than 100 events, one belongs to another stream, or the id can't be
            one.
        PayloadTooLargeError: an event has more than 64 KiB.
        MalformedPayloadError: an event has no JSON form.
    """
    if not 1 <= len(events) <= MAX_APPENDED_EVENTS:
        raise InvalidRequestError(
            f"{stream.name}: an append has 1 to {MAX_APPENDED_EVENTS} events, not {len(events)}"
        )
    loaded = loaded_or_id if isinstance(loaded_or_id, Loaded) else None
    stream_id = stream.check_id(loaded_or_id if loaded is None else loaded.id)
    stream.check_events(stream_id, events)
    if id_of is not None:
        for index, event in enumerate(events):
            if not event.is_identified:
                event.identify_as(id_of(f"append {event.message_type}#{index}"), now())
    sent = tuple(_sent(stream.name, event) for event in events)
    after = snapshot = None
    if loaded is not None:
        after = Loaded(
            stream_id,
            stream.fold(events, state=loaded.state),
            loaded.version + len(events),
            loaded.snapshot_version,
        )
        snapshot = made_snapshot(stream, after, sent[-1].event_id)
        expected = loaded.version
    body = Append(expected_version=expected, events=sent, snapshot=snapshot)
    return PlannedAppend(stream_id, body, after)


def _sent(name: str, event: Event) -> StreamEvent:
    data = encode_data(event)
    check_message_data(data)
    if len(data) > MAX_EVENT_BYTES:
        raise PayloadTooLargeError(
            f"{name}: {event.message_type} has {len(data)} bytes, an event of a stream at most {MAX_EVENT_BYTES}",
            size_bytes=len(data),
            limit_bytes=MAX_EVENT_BYTES,
        )
    event_id, timestamp = event.identify()
    members: dict[str, Any] = {
        "event_type": event.message_type,
        "version": event.message_version,
        "event_id": event_id,
        "timestamp": timestamp,
        "data": decode_object(data),
    }
    try:
        return StreamEvent(**members)
    except ValidationError as error:
        raise InvalidRequestError(
            f"{event.message_type!r} can't be appended", errors=field_errors(error)
        ) from None
