"""Streams of events in memory."""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from hybridkit.codec import encode_json, now
from hybridkit.contract import MAX_STREAM_PAGE, StreamSnapshot
from hybridkit.contract._operations import StreamEmission
from hybridkit.dataservice._store._kept_outcomes import kept_versions
from hybridkit.dataservice._store._protocol import AnswerSpace
from hybridkit.dataservice._store._streams import LogPosition, StreamAppend, StreamRead, recorded
from hybridkit.streams._stream import AnyStream

type Entry = dict[str, Any]


class _Snapshot(NamedTuple):
    version: int
    snapshot: StreamSnapshot


class MemoryStreams:
    """The streams of a store in memory.

    Args:
        streams: the kinds of streams.
        kept: returns what an idempotency key of a caller keeps, if it was used.

    Attributes:
        logs: the events of each kind of stream in the order in which they were appended, as readers get them.
        snapshots: the snapshots by the name and id of their stream.
    """

    def __init__(self, streams: Iterable[AnyStream], kept: Callable[[str, str], bytes | None]) -> None:
        self.logs: dict[str, list[Entry]] = {stream.name: [] for stream in streams}
        self.snapshots: dict[tuple[str, str], _Snapshot] = {}
        self._by_id: dict[tuple[str, str], list[Entry]] = {}
        self._kept = kept

    def __repr__(self) -> str:
        return f"MemoryStreams({sorted(self.logs)})"

    def append(self, append: StreamAppend, *, caller: str) -> tuple[int, Sequence[StreamEmission]]:
        """Append events, and return the version of the last one and what to publish.

        Raises:
            StaleVersionError: the stream has another version than the expected one.
        """
        name = (append.stream.name, append.id)
        entries = self._by_id.setdefault(name, [])
        if append.expected not in (None, len(entries)):
            raise append.stale(len(entries))
        log, moment = self.logs[append.stream.name], now()
        for event in append.events:
            entry = recorded(event, append, version=len(entries) + 1, recorded_at=moment, caller=caller)
            entry["position"] = str(LogPosition(1, len(log) + 1, len(log) + 1))
            log.append(entry)
            entries.append(entry)
        if append.snapshot is not None:
            self.snapshots[name] = _Snapshot(len(entries), append.snapshot)
        return len(entries), append.emissions(len(entries) - len(append.events))

    def mark(self) -> Any:
        """Return what `restore` needs to undo what comes after."""
        lengths = {name: len(log) for name, log in self.logs.items()}
        return lengths, dict(self.snapshots)

    def restore(self, mark: Any) -> None:
        """Undo all appends since a mark."""
        lengths, self.snapshots = mark
        for name, length in lengths.items():
            for entry in self.logs[name][length:]:
                self._by_id[name, entry["stream_id"]].pop()
            del self.logs[name][length:]

    async def read(self, stream: AnyStream, stream_id: str, wanted: StreamRead) -> bytes:
        """Return a page of a stream, with a snapshot in place of the events before it."""
        entries = self._by_id.get((stream.name, stream_id), [])
        end = len(entries) if wanted.up_to is None else min(wanted.up_to, len(entries))
        after, snapshot = wanted.after, self._snapshot(stream, stream_id, wanted, end, entries)
        if snapshot is not None:
            after = snapshot["version"]
        space = AnswerSpace()
        found = [encode_json(entry) for entry in entries[after : min(end, after + MAX_STREAM_PAGE)]]
        fitting: list[bytes] = list(takewhile(space.takes, found))
        kept = None if wanted.key is None else self._kept(wanted.caller, wanted.key)
        versions = () if kept is None else kept_versions(kept)
        return b'{"version":%d,"done":%b,"snapshot":%b,"events":[%b]}' % (
            len(entries),
            encode_json(versions[0] if versions else None),
            encode_json(snapshot),
            b",".join(fitting),
        )

    def _snapshot(
        self, stream: AnyStream, stream_id: str, wanted: StreamRead, end: int, entries: Sequence[Entry]
    ) -> dict[str, Any] | None:
        found = self.snapshots.get((stream.name, stream_id))
        if found is None or not wanted.after < found.version <= end:
            return None
        if found.snapshot.state_version != wanted.state_version:
            return None
        event_id = entries[found.version - 1]["event_id"]
        return {**found.snapshot.model_dump(), "version": found.version, "event_id": event_id}

    async def log(self, stream: AnyStream, *, after: LogPosition, types: Sequence[str], limit: int) -> bytes:
        """Return a page of the log; everything is committed in memory."""
        log = self.logs[stream.name]
        rest = log[after.position :]
        wanted = [entry for entry in rest if not types or entry["event_type"] in types]
        space = AnswerSpace()
        lines = list(takewhile(space.takes, map(encode_json, wanted[:limit])))
        has_more = len(lines) < len(wanted)
        last = wanted[len(lines) - 1] if has_more else log[-1] if log else None
        position = last["position"] if last is not None else str(after) if after.position else None
        return b'{"events":[%b],"position":%b,"has_more":%b}' % (
            b",".join(lines),
            encode_json(position),
            b"true" if has_more else b"false",
        )
