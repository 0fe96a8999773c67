"""Keep idempotency keys in the database: one row per caller and key, written in the transaction that it protects.

A key in use is recognized by an advisory lock that is tried, never waited for, so a call that waits for another one
uses no connection of the pool. Only finished writes are recorded; a refusal is computed again, as the data may have
changed.

One statement asks for the lock and the row, and its snapshot may be older than the lock: then it doesn't show what the
former holder of the lock has committed. That is no danger, as the row can't be written twice; the call that loses such
a race undoes its work and finds the row when it looks again.
"""

import hashlib
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._columns import KEYS
from hybridkit.dataservice._postgres._driver._errors import constraint_of, database_error
from hybridkit.dataservice._postgres._driver._pool import Pool, Session
from hybridkit.dataservice._store._audit import author_of
from hybridkit.dataservice._store._in_flight import in_progress
from hybridkit.dataservice._store._kept_outcomes import encode_outcome
from hybridkit.dataservice._store._keys import retention_of
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import ConflictError, HybridkitError

type Recorded = tuple[bytes, bytes]
"""The fingerprint of the call that a key was used for, and its outcome, encoded."""

_CLAIM: Final = (
    "SELECT pg_try_advisory_xact_lock($1) AS is_free, set_config('hk.who', $4, true), fingerprint, results"
    " FROM (VALUES (true)) AS always LEFT JOIN hk_keys ON caller = $2 AND key = $3"
)
_LOOK_UP: Final = "SELECT fingerprint, results FROM hk_keys WHERE caller = $1 AND key = $2"
_RECORD: Final = (
    "INSERT INTO hk_keys (caller, key, fingerprint, results, expires_at)"
    " VALUES ($1, $2, $3, $4, now() + CAST($5 AS interval))"
)


async def claim_key(session: Session, write: Write) -> Recorded | None:
    """Lock the key until the end of the transaction, or return what was recorded under it.

    The same statement tells the transaction's triggers who makes the write.

    Raises:
        InProgressError: another call has the key now.
    """
    [row] = await session.fetch(_CLAIM, key_lock(write), write.caller, write.key, author_text(write))
    if row["results"] is not None:
        return row["fingerprint"], row["results"]
    if not row["is_free"]:
        raise in_progress()
    return None


async def look_up_key(pool: Pool, write: Write) -> Recorded | None:
    """Return what was recorded under the key, if anything."""
    rows = await pool.fetch(_LOOK_UP, write.caller, write.key)
    return (rows[0]["fingerprint"], rows[0]["results"]) if rows else None


async def record_key(session: Session, write: Write, outcome: Outcome) -> None:
    """Record the outcome under the key, as part of the transaction.

    Raises:
        ConflictError: another call with this key was faster.
    """
    kept = encode_outcome(write, outcome)
    await session.fetch(
        _RECORD,
        write.caller,
        write.key,
        write.fingerprint,
        kept,
        retention_of(write.key),
        translate=_key_error,
    )


def author_text(write: Write) -> str:
    """Return who makes the write, for the trigger of the audit trail, which reads it from `hk.who`."""
    return encode_json(author_of(write)).decode()


def key_lock(write: Write) -> int:
    """Return the advisory lock of the write's key."""
    return lock_number("key", write.caller, write.key)


def lock_number(*parts: str) -> int:
    """Return the number of the advisory lock for these words; two that share one only wait for each other."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _key_error(error: Exception) -> HybridkitError | None:
    if constraint_of(error) == KEYS.primary_key.name:
        return ConflictError("another call with this Idempotency-Key was faster", retry_after_seconds=0.1)
    return database_error(error)
