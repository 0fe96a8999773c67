"""Snapshots of a stream's state: a cache, of which whatever doesn't fit is ignored."""

import hashlib
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ValidationError

from hybridkit.contract import StreamSnapshot
from hybridkit.contract._streams import MAX_SNAPSHOT_BYTES
from hybridkit.observability import metrics
from hybridkit.streams import Loaded, Stream
from hybridkit.streams._stream import AnyStream

DIGEST_BYTES: Final = 16


class FoundSnapshot(BaseModel):
    """A snapshot as the data service returns it.

    Attributes:
        version: of the stream whose state it is.
        state_version: of the state model.
        state: JSON as text.
        digest: of all of it, as it was stored.
        event_id: the id of the stream's event with that version now.
    """

    version: int
    state_version: int
    state: str
    digest: str
    event_id: UUID | None


def made_snapshot[StateT: BaseModel](
    stream: Stream[StateT], loaded: Loaded[StateT], last_event_id: UUID
) -> StreamSnapshot | None:
    """Return the snapshot to store with an append, None where it isn't time for one or the state is too large.

    It is time when `snapshot_every` events have come since the snapshot that was read, so a snapshot that was ignored
    is replaced by the next append.

    Args:
        stream: the kind of stream.
        loaded: the stream as the append leaves it.
        last_event_id: the id of the last appended event.
    """
    every = stream.snapshot_every
    if every is None or loaded.version - loaded.snapshot_version < every:
        return None
    state = loaded.state.model_dump_json(by_alias=True, round_trip=True)
    if len(state.encode()) > MAX_SNAPSHOT_BYTES:
        metrics.stream_snapshots.labels(stream.name, "too_large").inc()
        return None
    metrics.stream_snapshots.labels(stream.name, "written").inc()
    digest = _digest(stream, loaded.id, loaded.version, last_event_id, state)
    return StreamSnapshot(state_version=stream.state_version, state=state, digest=digest)


def used_snapshot[StateT: BaseModel](
    stream: Stream[StateT], stream_id: str, found: FoundSnapshot
) -> Loaded[StateT] | None:
    """Return the state in a snapshot; None where it is another one than was stored for that version of the stream.

    Args:
        stream: the kind of stream.
        stream_id: the id of the stream.
        found: the snapshot.
    """
    loaded: Loaded[StateT] | None = None
    digest = _digest(stream, stream_id, found.version, found.event_id, found.state)
    if found.state_version == stream.state_version and found.digest == digest:
        try:
            state = stream.state.model_validate_json(found.state)
            loaded = Loaded(stream_id, state, found.version, found.version)
        except ValidationError:  # the model has changed, and its version hasn't
            loaded = None
    metrics.stream_snapshots.labels(stream.name, "ignored" if loaded is None else "used").inc()
    return loaded


def _digest(stream: AnyStream, stream_id: str, version: int, event_id: UUID | None, state: str) -> str:
    parts = (stream.name, stream_id, str(version), str(stream.state_version), str(event_id), state)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        octets = part.encode()
        digest.update(len(octets).to_bytes(8, "big") + octets)
    return digest.hexdigest()
