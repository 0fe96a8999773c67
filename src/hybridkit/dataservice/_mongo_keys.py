"""Idempotency keys on a database without transactions over several documents.

A single document is all that changes at once. So the outcome of a write stands in the document that it wrote, under the
key, and becomes true with it. A collection of claims says, before anything is written, which request a key belongs to;
outcomes move there when a document has collected many of them, and only then leave the document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pymongo import IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure

from hybridkit.codec import encode_json, now
from hybridkit.dataservice._keys import DERIVED_RETENTION, RETENTION, is_derived
from hybridkit.dataservice._mongo_errors import is_duplicate
from hybridkit.dataservice._operations import Outcome, Result, Write

__all__ = ["EMBEDDED_KEYS", "KEYS_COLLECTION", "Keys", "Recorded", "embedded", "entry_for"]

KEYS_COLLECTION: Final = "hk_keys"
EMBEDDED_KEYS: Final = 20
"""How many outcomes stay in a document; older ones move to the claims."""
MAX_RESULT_BYTES: Final = 16 * 1024
"""A larger result isn't kept twice: its replay answers with the record as it is then."""

type Stored = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of a key.

    Attributes:
        fingerprint: of the request that it belongs to.
        outcome: what was done; None where that is not known, or too large to be kept.
        done: it was done.
    """

    fingerprint: bytes
    outcome: Outcome | None
    done: bool


class Keys:
    """The claims of one database.

    Args:
        collection: where they are.
    """

    def __init__(self, collection: AsyncCollection[dict[str, Any]]) -> None:
        self._collection = collection

    def __repr__(self) -> str:
        return f"Keys({self._collection.full_name!r})"

    async def prepare(self) -> None:
        """Create the index by which the server deletes expired claims."""
        await self._collection.create_indexes(
            [IndexModel("expires_at", name="expires_at", expireAfterSeconds=0)]
        )

    async def claim(self, write: Write) -> Recorded | None:
        """Say that the key belongs to this request; what is known of it where it was claimed before."""
        claimed = {
            "_id": key_id(write),
            "fingerprint": write.fingerprint.hex(),
            "expires_at": now() + (DERIVED_RETENTION if is_derived(write.key) else RETENTION),
        }
        try:
            await self._collection.insert_one(claimed)
        except OperationFailure as error:
            if not is_duplicate(error):
                raise
            return await self.recorded(write)
        return None

    async def recorded(self, write: Write) -> Recorded | None:
        """What the claims know of the key."""
        found = await self._collection.find_one({"_id": key_id(write)})
        return None if found is None else _recorded(found)

    async def forget(self, write: Write) -> None:
        """Give up a claim under which nothing was done: only what was done is remembered."""
        await self._collection.delete_one(
            {"_id": key_id(write), "fingerprint": write.fingerprint.hex(), "done": None}
        )

    async def take_over(self, entries: Sequence[Stored]) -> None:
        """Record outcomes that are about to leave their document."""
        for entry in entries:
            known = {name: entry[name] for name in ("fingerprint", "expires_at", "results") if name in entry}
            await self._collection.update_one(
                {"_id": entry["key"]}, {"$set": {**known, "done": True}}, upsert=True
            )


def key_id(write: Write) -> str:
    """The key as it is stored; a caller's name has no space in it."""
    return f"{write.caller} {write.key}"


def embedded(hidden: Stored, write: Write) -> Recorded | None:
    """What the document itself knows of the key."""
    wanted = key_id(write)
    return next((_recorded(entry) for entry in hidden.get("keys", ()) if entry["key"] == wanted), None)


def entry_for(write: Write, result: Result) -> dict[str, Any]:
    """The outcome as it stands in the document that it is about."""
    retention = DERIVED_RETENTION if is_derived(write.key) else RETENTION
    results = encode_json([[result.record, result.created]])
    kept = {"results": results.decode()} if len(results) <= MAX_RESULT_BYTES else {}
    return {
        "key": key_id(write),
        "fingerprint": write.fingerprint.hex(),
        "expires_at": now() + retention,
        "done": True,
        **kept,
    }


def _recorded(entry: Stored) -> Recorded:
    results = entry.get("results")
    outcome = None
    if results is not None:
        pairs: list[tuple[dict[str, Any] | None, bool]] = orjson.loads(results)
        outcome = Outcome(tuple(Result(record, created) for record, created in pairs), replayed=True)
    return Recorded(bytes.fromhex(entry["fingerprint"]), outcome, bool(entry.get("done")))
