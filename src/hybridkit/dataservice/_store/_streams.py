"""Streams as a store sees them: appends that are part of a write, and reads of one stream or of the whole log."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, Self

from hybridkit.contract import StreamEvent, StreamSnapshot
from hybridkit.contract._operations import StreamEmission
from hybridkit.errors import ConflictError, StaleVersionError
from hybridkit.streams._stream import AnyStream


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamAppend:
    """Events to be appended to one stream.

    Attributes:
        stream: the kind of stream.
        id: the id of the stream.
        expected: the version that the stream has to have; None for any.
        events: the events, in their order.
        snapshot: the state after them, if it is to be stored.
        request_id: the request that causes them.
        user_id: the user on whose behalf it is made.
        trace: `traceparent` and `tracestate` of the request.
        label: the place of the append in the request, for messages: `operations/3`; empty for a single one.
    """

    stream: AnyStream
    id: str
    expected: int | None
    events: tuple[StreamEvent, ...]
    snapshot: StreamSnapshot | None = None
    request_id: str
    user_id: str | None = None
    trace: dict[str, str] = field(default_factory=dict[str, str])
    label: str = ""

    def emissions(self, version: int | None) -> list[StreamEmission]:
        """Return what to publish of the append: nothing, or each event in the order of its stream.

        Args:
            version: of the stream before the append.
        """
        if not self.stream.publish or version is None:
            return []
        return [
            StreamEmission.model_construct(
                event_type=event.event_type,
                version=event.version,
                event_id=event.event_id,
                timestamp=event.timestamp,
                key=self.id,
                queue=None,
                not_before=None,
                request_id=self.request_id,
                user_id=self.user_id,
                traceparent=self.trace.get("traceparent"),
                tracestate=self.trace.get("tracestate"),
                data=event.data,
                stream_version=number,
            )
            for number, event in enumerate(self.events, version + 1)
        ]

    def stale(self, current: int) -> StaleVersionError:
        """Return the refusal of an append to a stream that has another version."""
        message = f"{self.stream.name}: the stream has version {current}, not {self.expected}"
        return StaleVersionError(f"{self.label}: {message}" if self.label else message, current=str(current))

    def overtaken(self) -> ConflictError:
        """Return the refusal of an append to any version that another one has overtaken; it is tried again."""
        return ConflictError(f"{self.stream.name}: another append to the stream came first")


_POSITION: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,18})-([0-9]{1,18})")


class LogPosition(NamedTuple):
    """A place in the log, behind an event.

    Attributes:
        epoch: counts the clusters that the database has been restored into, as each begins its numbers anew.
        xid: the transaction that appended the event.
        position: the event's number.
    """

    epoch: int = 0
    xid: int = 0
    position: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}-{self.xid}-{self.position}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a position as `str` writes it.

        Raises:
            ValueError: the text is no position.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError("no position of a log")
        return cls(*map(int, found.groups()))


class StreamRead(NamedTuple):
    """The part of a stream to read.

    Attributes:
        after: the version behind which to begin.
        up_to: the version at which to end; None for the last one.
        state_version: of the snapshot to begin with instead, where there is one; None for events only.
        caller: the service that reads.
        key: the idempotency key of an append that the caller may have done before; None for none.
    """

    after: int = 0
    up_to: int | None = None
    state_version: int | None = None
    caller: str = ""
    key: str | None = None


class Streams(Protocol):
    """The streams of a store; appends are part of `Store.write`."""

    async def read(self, stream: AnyStream, stream_id: str, wanted: StreamRead) -> bytes:
        """Return a page of a stream as the JSON of the response, with a snapshot in place of the events before it."""
        ...

    async def log(self, stream: AnyStream, *, after: LogPosition, types: Sequence[str], limit: int) -> bytes:
        """Return a page of the log as the JSON of the response: events behind which no earlier one can appear any more.

        Args:
            stream: the kind of stream.
            after: the position behind which to begin.
            types: the types of the events to return; empty for all.
            limit: the largest number of events.
        """
        ...


def recorded(
    event: StreamEvent, append: StreamAppend, *, version: int, recorded_at: Any, caller: str
) -> dict[str, Any]:
    """Return an event as readers get it, ready for `codec.encode_json`."""
    return {
        "stream_id": append.id,
        "version": version,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "event_version": event.version,
        "timestamp": event.timestamp,
        "recorded_at": recorded_at,
        "caller": caller,
        "request_id": append.request_id,
        "user_id": append.user_id,
        "causation_id": event.causation_id,
        "redacted_at": None,
        "data": event.data,
    }
