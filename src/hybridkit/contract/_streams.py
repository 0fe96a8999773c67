"""Bodies that append to streams, and what a stream and a log are read as."""

from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from hybridkit.codec import Timestamp
from hybridkit.events._declaration import MAX_TYPE_LENGTH

MAX_APPENDED_EVENTS: Final = 100
"""The largest number of events in one append."""
MAX_EVENT_BYTES: Final = 64 * 1024
"""The largest data of one event of a stream, as JSON."""
MAX_SNAPSHOT_BYTES: Final = 256 * 1024
"""The largest state that is stored as a snapshot, as JSON; a larger one is computed from its events each time."""
MAX_STREAM_PAGE: Final = 1000
"""The largest number of events in one page of a stream or of a log."""
MAX_VERSION: Final = 2**31 - 1
_VISIBLE: Final = "^[!-~]+$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamEvent(_Strict):
    """An event to be appended.

    Attributes:
        event_type: the type, in visible ASCII.
        version: the version of the type.
        event_id: the event's id.
        timestamp: when the event was made.
        causation_id: the id of the event that it answers; None for none.
        data: the event's own fields.
    """

    event_type: str = Field(min_length=1, max_length=MAX_TYPE_LENGTH, pattern=_VISIBLE)
    version: int = Field(default=1, ge=1, le=MAX_VERSION)
    event_id: UUID
    timestamp: Timestamp
    causation_id: UUID | None = None
    data: dict[str, Any]


class StreamSnapshot(_Strict):
    """The state after the last of the appended events, for later readers.

    Attributes:
        state_version: the version of the state model.
        state: the state, JSON as text.
        digest: tells a reader whether the snapshot is the one that was stored, of that version of that stream.
    """

    state_version: int = Field(ge=1, le=MAX_VERSION)
    state: str = Field(max_length=MAX_SNAPSHOT_BYTES)
    digest: str = Field(min_length=1, max_length=128, pattern=_VISIBLE)


class Append(_Strict):
    """The body of `POST /v1/{stream}/{id}:append`.

    Attributes:
        expected_version: the version that the stream has to have, 0 for one without events; None for any.
        events: at most 100.
        snapshot: the state after them; only with an expected version.
    """

    expected_version: int | None = Field(default=None, ge=0, le=MAX_VERSION)
    events: tuple[StreamEvent, ...] = Field(min_length=1, max_length=MAX_APPENDED_EVENTS)
    snapshot: StreamSnapshot | None = None


class AppendResult(BaseModel):
    """The response to an append: the version of its last event."""

    version: int
