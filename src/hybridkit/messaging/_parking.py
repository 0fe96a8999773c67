"""Which keys are parked: known to every process that takes over, because the broker keeps it.

The queue `<consumer>.parked` is a short log of marks: this key stops at that generation, and that event is the last of
it among the dead letters. Whoever begins to consume reads the log to its end before anything else, keeps the newest
mark of each key, and removes the rest. The log is written before the dead letter, so no dead letter is overtaken.

A key is free again when its last dead letter has been redriven and is done. Until then what was redriven runs, and
whatever else comes goes to the end of the dead letters.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hybridkit.codec import decode_object, encode_json
from hybridkit.errors import NotConnectedError, PayloadError
from hybridkit.ids import new_id
from hybridkit.messaging._channel import Lane
from hybridkit.messaging._connection import Link
from hybridkit.messaging._port import Delivered, Port
from hybridkit.messaging._topology import parked_queue
from hybridkit.messaging._writer import Outgoing

__all__ = ["Mark", "ParkedKeys"]

READ_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A key that is parked.

    Attributes:
        generation: what was redriven more often than this runs.
        last: the id of the event that came last to the dead letters.
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
        self._read_on: Lane | None = None
        self._reading = asyncio.Lock()

    def __repr__(self) -> str:
        return f"ParkedKeys({self._queue!r}, {len(self._marks)} keys)"

    def holds(self, key: str, generation: int) -> bool:
        """Whether a message of that key goes to the dead letters instead of its handler."""
        mark = self._marks.get(key)
        return mark is not None and generation <= mark.generation

    def is_last(self, key: str, event_id: str) -> bool:
        """Whether nothing of that key is among the dead letters once this event is done."""
        mark = self._marks.get(key)
        return mark is not None and mark.last == event_id

    def park(self, key: str, event_id: str, generation: int) -> Outgoing:
        """Hold this key, and the message that says so for good; it has to be confirmed before the dead letter."""
        known = self._marks.get(key, Mark(generation, event_id))
        mark = self._marks[key] = Mark(max(known.generation, generation), event_id)
        return self._entry(key, {"generation": mark.generation, "last": event_id})

    def free(self, key: str) -> Outgoing:
        """Let this key go, and the message that says so for good."""
        self._marks.pop(key, None)
        return self._entry(key, {})

    def outdated(self) -> None:
        """Read the log again before the next message: another process has written something that isn't known here."""
        self._read_on = None

    async def read(self, lane: Lane, forward: Callable[[Outgoing], Awaitable[bool]]) -> None:
        """Know what the log says; once for each channel.

        Args:
            lane: the channel that messages come on now.
            forward: publishes a message, confirmed.

        Raises:
            NotConnectedError: the broker did not answer in time.
        """
        async with self._reading:
            if self._read_on is lane:
                return
            end = str(new_id())
            await forward(self._entry(None, {"end": end}))
            self._marks = await lane.link.ask(
                self._read(lane.link, end), name=f"reading {self._queue}", seconds=2 * READ_SECONDS
            )
            self._read_on = lane

    async def _read(self, link: Link, end: str) -> dict[str, Mark]:
        channel = await link.channel(confirms=False)
        log = _Log(end)
        port = link.port(channel, log)
        try:
            await channel.basic_consume(self._queue, _nothing)
            async with asyncio.timeout(READ_SECONDS):
                await log.complete.wait()
            log.compact(port)
        except TimeoutError:
            raise NotConnectedError(f"{self._queue} was not read in {READ_SECONDS:g} s") from None
        finally:
            port.close("read")
            await channel.close()
        if log.is_cut:
            raise NotConnectedError(f"the channel that reads {self._queue} was closed")
        return log.marks

    def _entry(self, key: str | None, values: Mapping[str, Any]) -> Outgoing:
        return Outgoing("", self._queue, encode_json({"key": key, **values}), {})


class _Log:
    """Collects the entries up to one's own; the `Receiver` of a port."""

    def __init__(self, end: str) -> None:
        self.marks: dict[str, Mark] = {}
        self.complete = asyncio.Event()
        self.is_cut = False
        self._end = end
        self._tags: dict[str, int] = {}  # of the newest mark of each key
        self._superseded: list[int] = []

    def delivered(self, message: Delivered, /) -> None:
        """Take an entry; what came after the own one is left for the next reader."""
        if self.complete.is_set():
            return
        tag = message.deliver.tag
        try:
            entry = decode_object(message.body)
        except PayloadError:
            entry = {}
        match entry:
            case {"key": str(key), "generation": int(generation), "last": str(last)}:
                self._forget(key)
                self.marks[key], self._tags[key] = Mark(generation, last), tag
                return
            case {"key": str(key)}:
                self._forget(key)
            case {"end": self._end}:
                self.complete.set()
            case _:
                pass
        self._superseded.append(tag)

    def compact(self, port: Port) -> None:
        """Remove what says nothing any more; the rest goes back with the channel."""
        for tag in self._superseded:
            port.ack(tag)

    def _forget(self, key: str) -> None:
        if self.marks.pop(key, None) is not None:
            self._superseded.append(self._tags.pop(key))

    def closed(self, reason: str) -> None:
        """The connection was lost before the end."""
        del reason
        if not self.complete.is_set():
            self.is_cut = True
            self.complete.set()

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published here."""

    def returned(self, properties: bytes) -> None:
        """Nothing is published here."""


async def _nothing(_: object) -> None:
    """For aiormq, which never sees a delivery."""
