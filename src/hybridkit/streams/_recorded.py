"""Events as a data service has recorded them."""

from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from hybridkit.events import Event
from hybridkit.events._envelope import read_data


class RecordedEvent(BaseModel):
    """An event of a stream with the place and the circumstances in which it was recorded.

    Attributes:
        stream_id: the id of its stream.
        version: its number in the stream, from 1.
        position: its place in the log of all streams of the kind; the log of a later read goes on behind it. None in a
            read of one stream.
        event_id: the event's identity.
        event_type: the type, such as `account.deposited`.
        event_version: the version of the type when it was appended.
        timestamp: when the event was made, by the clock of the service that appended it.
        recorded_at: when the transaction that appended it began, by the clock of the database.
        caller: the service that appended it.
        request_id: the request that caused it.
        user_id: the user on whose behalf it happened; None for none.
        causation_id: the id of the event that it answers; None for none.
        redacted_at: when personal data was removed from it; None for an event that is whole.
        data: the event's fields as they are stored, of `event_version`.
    """

    model_config = ConfigDict(frozen=True)

    stream_id: str
    version: int
    position: str | None = None
    event_id: UUID
    event_type: str
    event_version: int = 1
    # Plain datetimes: the service writes UTC to the millisecond, and checking that costs as much as all the rest.
    timestamp: datetime
    recorded_at: datetime
    caller: str
    request_id: str
    user_id: str | None = None
    causation_id: UUID | None = None
    redacted_at: datetime | None = None
    data: dict[str, Any]

    @cached_property
    def event(self) -> Event:
        """The event itself, brought to the newest version that this process knows.

        Raises:
            UnknownEventTypeError: this process has no such type.
            UnknownEventVersionError: this process has no such version, as it was appended by newer code.
            MalformedPayloadError: the data doesn't fit the class.
        """
        event = cast("Event", read_data(self.event_type, self.event_version, self.data))
        event.identify_as(self.event_id, self.timestamp)
        return event


class LogPage(NamedTuple):
    """Some events of all streams of a kind, in the order of the log.

    Attributes:
        events: at most 1,000.
        position: the place behind the last of them, from which the next page is read; None for an empty log.
        has_more: whether more events are there now. False means to wait a little before the next page.
    """

    events: tuple[RecordedEvent, ...]
    position: str | None
    has_more: bool
