"""The advisory locks of streams, taken before a transaction writes anything."""

from hybridkit.dataservice._postgres._keys import lock_number
from hybridkit.dataservice._store._streams import StreamAppend


def stream_lock(append: StreamAppend) -> int:
    """Return the number of the lock that appends to one stream take."""
    return lock_number("stream", append.stream.name, append.id)
