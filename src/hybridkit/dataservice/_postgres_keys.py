"""Idempotency keys in the database: one row per caller and key, in the transaction that it stands for.

A key in use is told by an advisory lock that is tried, never waited for, so no connection of the pool is held by a
call that waits for another. Only what was done is recorded; a refusal is computed again, as the world may have changed.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import func, insert, select

from hybridkit.codec import encode_json
from hybridkit.dataservice._in_flight import in_progress
from hybridkit.dataservice._keys import DERIVED_RETENTION, RETENTION, is_derived
from hybridkit.dataservice._operations import Outcome, Result, Write
from hybridkit.dataservice._postgres_columns import KEYS
from hybridkit.dataservice._postgres_database import Session
from hybridkit.dataservice._postgres_errors import constraint_of, database_error
from hybridkit.errors import ConflictError, HybridkitError

__all__ = ["claim_key", "lock_number", "record_key"]


async def claim_key(session: Session, write: Write) -> tuple[bytes, Outcome] | None:
    """Take the key until the end of the transaction; or what was done under it, and the fingerprint of that.

    Raises:
        InProgressError: another call has it now.
    """
    lock = func.pg_try_advisory_xact_lock(lock_number("key", write.caller, write.key))
    if not (await session.execute(select(lock)))[0][0]:
        raise in_progress()
    # A statement of its own: its snapshot is younger than the lock, so it sees what the former holder committed.
    found = await session.execute(
        select(KEYS.c.fingerprint, KEYS.c.results).where(
            KEYS.c.caller == write.caller, KEYS.c.key == write.key
        )
    )
    return (found[0][0], Outcome(_decode(found[0][1]), replayed=True)) if found else None


async def record_key(session: Session, write: Write, results: Sequence[Result]) -> None:
    """Record what was done; it becomes true with the commit."""
    retention = DERIVED_RETENTION if is_derived(write.key) else RETENTION
    await session.execute(
        insert(KEYS).values(
            caller=write.caller,
            key=write.key,
            fingerprint=write.fingerprint,
            results=_encode(results),
            expires_at=func.now() + retention,
        ),
        meaning=_key_error,
    )


def lock_number(*parts: str) -> int:
    """The number of the advisory lock for those words; two that share one only wait for each other."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _key_error(error: Exception) -> HybridkitError | None:
    """A snapshot older than the lock (above `read_committed`) doesn't show what the former holder committed."""
    if constraint_of(error) == KEYS.primary_key.name:
        return ConflictError("another call with this Idempotency-Key was faster", retry_after_seconds=0.1)
    return database_error(error)


def _encode(results: Sequence[Result]) -> bytes:
    return encode_json([[result.record, result.created] for result in results])


def _decode(stored: bytes) -> tuple[Result, ...]:
    pairs: list[tuple[dict[str, Any] | None, bool]] = orjson.loads(stored)
    return tuple(Result(record, created) for record, created in pairs)
