"""Tags: a name that several entries have, by which all of them become invalid at once.

Nobody keeps lists of entries. An entry has the epoch of the cache in which its load began; a tag has a record of the
epoch in which it was invalidated last, which outlives every entry with the tag. An entry whose tag has no record was
separated from it by an eviction, and counts as invalid.
"""

import asyncio
from collections.abc import Sequence

from hybridkit.coordination._cache._entries import Entries
from hybridkit.coordination._cache._keys import key_part
from hybridkit.coordination._cache._scripts import ADVANCE, TAG


class Tags:
    """The clock of one cache and the records of its tags.

    Args:
        entries: runs the scripts.
        prefix: the prefix of the keys.
        kept_ms: the time for which a record is kept, in milliseconds: longer than any entry.
    """

    def __init__(self, entries: Entries, *, prefix: str, kept_ms: int) -> None:
        self._entries = entries
        self._prefix = prefix
        self._kept_ms = kept_ms

    def __repr__(self) -> str:
        return f"Tags({self._prefix!r})"

    async def advance(self) -> bytes:
        """Begin a new epoch, and return it.

        Raises:
            UnavailableError: Redis did not reply.
        """
        epoch: bytes = await self._entries.run(ADVANCE, f"{self._prefix}#clock", self._kept_ms)
        return epoch

    async def are_valid(self, tags: Sequence[str], *, epoch: bytes) -> bool:
        """Return whether none of the tags was invalidated after the epoch.

        Raises:
            UnavailableError: Redis did not reply.
        """
        known = await asyncio.gather(*(self._entries.execute("GET", self.key(tag)) for tag in tags))
        return all(record is not None and int(record) <= int(epoch) for record in known)

    async def use(self, tags: Sequence[str], *, epoch: bytes) -> bool:
        """Keep the records for a new entry, and return whether none of the tags was invalidated after its epoch.

        Raises:
            UnavailableError: Redis did not reply.
        """
        asked = (self._entries.run(TAG, self.key(tag), epoch, self._kept_ms, "USE") for tag in tags)
        return all(int(record) <= int(epoch) for record in await asyncio.gather(*asked))

    async def invalidate(self, tag: str) -> None:
        """Make every entry with the tag invalid whose load began before now.

        Raises:
            UnavailableError: Redis did not reply.
        """
        epoch = await self.advance()
        await self._entries.run(TAG, self.key(tag), epoch, self._kept_ms, "INVALIDATE")

    def key(self, tag: str) -> str:
        """Return the key of a tag's record."""
        return self._prefix + key_part(tag)
