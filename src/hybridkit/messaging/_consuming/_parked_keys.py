"""Parked keys: the broker keeps them in a queue, so that every process that takes over knows them.

The queue `<consumer>.parked` is a log of marks. A mark says at which generation its key stops, and which event of the
key was the last to become a dead letter. A process that begins to consume reads the log to its end before it runs
anything. The mark is written before the dead letter, so no dead letter is overtaken.

The broker leaves a limited number of messages with a reader, so the log is kept short. While it is read, an entry is
acknowledged as soon as a newer one of the same key has come. At the end the reader writes a snapshot (a `fold` in the
entries), many marks in one message, and acknowledges all that it has read. All other entries in the log are newer than
the snapshot, or in it as well if its writer died in between. A process that has written many entries reads the log
again.

A key is free again when its last dead letter has been redriven and is done. Until then its redriven messages run, and
all others go to the end of the dead letters.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any, Final, cast

from aiormq.channel import Channel
from aiormq.exceptions import AMQPError

from hybridkit.codec import decode_object, encode_json
from hybridkit.errors import NotConnectedError, PayloadError
from hybridkit.ids import new_id
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._connection import OpenConnection
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.messaging._topology._declared import parked_queue

READ_SECONDS: Final = 20.0
"""The time for which the broker may deliver nothing before the end of the log."""
PREFETCH: Final = 65_535
"""The number of entries that a reader may have unacknowledged; AMQP counts them with 16 bits. Without a number the
broker takes 2,000."""
SNAPSHOT_AFTER: Final = 1_000
"""The number of entries of this process after which it reads the log again, and writes a snapshot."""
MARKS_PER_ENTRY: Final = 500
"""A snapshot has room for millions of keys before its parts fill the prefetch."""

type Forward = Callable[[OutgoingMessage], Awaitable[None]]
"""Publishes a message, confirmed."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A key that is parked.

    Attributes:
        generation: messages that were redriven more often than this run, all others don't.
        last: the id of the event that was the last of its key to become a dead letter.
    """

    generation: int
    last: str


class ParkedKeys:
    """The parked keys of one queue.

    Args:
        queue: the consumer's name.
    """

    def __init__(self, queue: str) -> None:
        self._queue = parked_queue(queue)
        self._marks: dict[str, Mark] = {}
        self._read_on: OpenChannel | None = None
        self._reading = asyncio.Lock()
        self._entries = 0  # of ours since the log was read
        self._unwritten: dict[str, Mark | None] = {}  # changes that the broker hasn't confirmed
        self._unread: dict[str, Mark | None] = {}  # changes that a reader may not find in the log

    def __repr__(self) -> str:
        return f"ParkedKeys({self._queue!r}, {len(self._marks)} keys)"

    def holds(self, key: str, generation: int) -> bool:
        """Return whether a message of this key goes to the dead letters instead of its handler."""
        mark = self._marks.get(key)
        return mark is not None and generation <= mark.generation

    def is_last(self, key: str, event_id: str) -> bool:
        """Return whether no dead letter of this key is left once this event is done."""
        mark = self._marks.get(key)
        return mark is not None and mark.last == event_id

    def park(self, key: str, event_id: str, generation: int) -> OutgoingMessage:
        """Park this key, and return the entry that keeps it parked; it has to be confirmed before the dead letter."""
        known = self._marks.get(key, Mark(generation, event_id))
        mark = Mark(max(known.generation, generation), event_id)
        self._change(key, mark)
        return self._entry({"key": key, "generation": mark.generation, "last": event_id})

    def free(self, key: str) -> OutgoingMessage:
        """Free this key, and return the entry that keeps it free."""
        self._change(key, None)
        return self._entry({"key": key})

    def written(self, key: str) -> None:
        """Note that the newest entry of this key is confirmed, or will never be."""
        self._unwritten.pop(key, None)
        if self._entries >= SNAPSHOT_AFTER:
            self.outdated()

    def outdated(self) -> None:
        """Read the log again before the next message: it has entries that aren't known here, or it is long."""
        self._read_on = None

    async def read(self, channel: OpenChannel, forward: Forward) -> None:
        """Read the log, once for each channel.

        Args:
            channel: the channel on which messages come now.
            forward: publishes a message, confirmed.

        Raises:
            NotConnectedError: the broker did not answer in time.
        """
        async with self._reading:
            if self._read_on is channel:
                return
            self._unread, self._entries = dict(self._unwritten), 0
            end = str(new_id())
            await forward(self._entry({"key": None, "end": end}))
            marks: dict[str, Mark | None] = {
                **await self._read(channel.connection, end, forward),
                **self._unread,
            }
            self._marks = {key: mark for key, mark in marks.items() if mark is not None}
            self._read_on = channel

    def _change(self, key: str, mark: Mark | None) -> None:
        if mark is None:
            self._marks.pop(key, None)
        else:
            self._marks[key] = mark
        self._unwritten[key] = self._unread[key] = mark
        self._entries += 1

    async def _read(self, connection: OpenConnection, end: str, forward: Forward) -> dict[str, Mark]:
        """Return the marks in the log up to that end, and replace them by a snapshot at the end of the log."""
        channel = await OpenChannel.open(connection)
        receiver, log = _LogReceiver(), _MarkLog()
        port = channel.open_port(receiver)
        try:
            await connection.ask(_consume(channel.raw, self._queue), name=f"reading {self._queue}")
            tag = 0
            while not log.has_ended(end):
                message = await receiver.next(self._queue)
                tag = message.method.tag
                if (superseded := log.add(tag, message.body)) is not None:
                    port.ack(superseded)
            await self._write(log.marks(), forward)
            port.ack(tag, multiple=True)
        except AMQPError as error:
            raise NotConnectedError(f"reading {self._queue}: {type(error).__name__}: {error}") from error
        finally:
            await asyncio.wait({channel.close()})
        return log.marks()

    async def _write(self, marks: Mapping[str, Mark], forward: Forward) -> None:
        """Append a snapshot; without marks there is none, and the log is empty once its entries are acknowledged."""
        fold = str(new_id())
        parts = list(batched(marks.items(), MARKS_PER_ENTRY))
        for number, part in enumerate(parts, start=1):
            told = [[key, mark.generation, mark.last] for key, mark in part]
            await forward(
                self._entry({"key": None, "fold": fold, "part": number, "of": len(parts), "marks": told})
            )

    def _entry(self, values: Mapping[str, Any]) -> OutgoingMessage:
        return OutgoingMessage("", self._queue, encode_json(values), {})


class _MarkLog:
    """The marks that the entries of the log make, in their order."""

    def __init__(self) -> None:
        self._changes: dict[str, Mark | None] = {}  # of single entries; None frees
        self._tags: dict[str, int] = {}  # of the newest entry of each key
        self._snapshot: dict[str, Mark] = {}  # in the newest complete snapshot
        self._fold = ""
        self._parts: list[Mapping[str, Mark]] = []  # of a snapshot that isn't complete yet
        self._end = ""
        self._end_tag: int | None = None

    def has_ended(self, end: str) -> bool:
        """Return whether the newest end of the log is this one."""
        return self._end == end

    def marks(self) -> dict[str, Mark]:
        """Return the marks of the keys that are parked, by key."""
        marks: dict[str, Mark | None] = {**self._snapshot, **self._changes}
        return {key: mark for key, mark in marks.items() if mark is not None}

    def add(self, tag: int, body: bytes) -> int | None:
        """Add one entry, and return the tag of the older one that it supersedes, or its own if it is unreadable."""
        try:
            entry = decode_object(body)
        except PayloadError:
            return tag
        match entry:
            case {"key": str(key), "generation": int(generation), "last": str(last)}:
                return self._change(key, Mark(generation, last), tag)
            case {"key": str(key), **rest} if not rest:
                return self._change(key, None, tag)
            case {"end": str(end)}:
                superseded, self._end_tag, self._end = self._end_tag, tag, end
                return superseded
            case {"fold": str(fold), "part": int(part), "of": int(parts)}:
                self._add_part(fold, part, parts, entry.get("marks"))
            case _:
                return tag
        return None

    def _change(self, key: str, mark: Mark | None, tag: int) -> int | None:
        superseded, self._tags[key], self._changes[key] = self._tags.get(key), tag, mark
        return superseded

    def _add_part(self, fold: str, part: int, parts: int, marks: Any) -> None:
        if part == 1:
            self._fold, self._parts = fold, []
        if fold != self._fold or part != len(self._parts) + 1:
            return
        self._parts.append(dict(_read_marks(marks)))
        if part == parts:
            self._snapshot = {key: mark for each in self._parts for key, mark in each.items()}


def _read_marks(marks: Any) -> Iterator[tuple[str, Mark]]:
    for each in cast("list[Any]", marks) if isinstance(marks, list) else ():
        match each:
            case [str(key), int(generation), str(last)]:
                yield key, Mark(generation, last)
            case _:
                pass


class _LogReceiver:
    """Keeps the entries that are delivered, in their order; the `Receiver` of a port."""

    def __init__(self) -> None:
        self._messages: deque[IncomingMessage] = deque()
        self._changed = asyncio.Event()
        self._closed = ""

    async def next(self, queue: str) -> IncomingMessage:
        """Return the next entry.

        Raises:
            NotConnectedError: no entry came in 20 s, or the channel was closed.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                while not self._messages and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NotConnectedError(f"{queue} was not read in {READ_SECONDS:g} s") from None
        if self._closed:
            raise NotConnectedError(f"the channel that reads {queue} was closed: {self._closed}")
        return self._messages.popleft()

    def delivered(self, message: IncomingMessage, /) -> None:
        """Keep the entry."""
        self._messages.append(message)
        self._changed.set()

    def closed(self, reason: str) -> None:
        """End `next`: no more entries come, and none can be acknowledged."""
        self._closed = reason
        self._changed.set()

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Ignore it: nothing is published on this channel."""

    def returned(self, properties: bytes) -> None:
        """Ignore it: nothing is published on this channel."""


async def _consume(channel: Channel, queue: str) -> None:
    await channel.basic_qos(prefetch_count=PREFETCH)
    await channel.basic_consume(queue, _nothing)


async def _nothing(_: object) -> None:
    """Do nothing: aiormq wants a callback, but deliveries go to the port."""
