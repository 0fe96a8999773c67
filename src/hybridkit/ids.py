"""Identifiers: time-ordered UUIDs for what is new, derived UUIDs for what may be made again.

A record, an event and a request get a UUID of version 6 (RFC 9562, section 5.6): it sorts by creation time, so indexes
stay dense, and two services never need to ask anyone for a number. Inside a claim, where a crash means that the same
code runs again, the id is derived from the claim and the step instead (version 8, section 5.8): the rerun makes the
same record and the same event.
"""

import hashlib
import os
from threading import Lock
from uuid import UUID

import uuid6

__all__ = ["derived_id", "derived_key", "new_id", "new_request_id"]

_NODE_BITS = (1 << 48) - 1
DERIVED_KEY_PREFIX = "hkd_"

_lock = Lock()


def new_id() -> UUID:
    """A UUIDv6, greater than every one made before it in this process, from any thread."""
    noise = int.from_bytes(
        os.urandom(8)
    )  # one call instead of the library's two: this is made for every event
    with _lock:
        made = uuid6.uuid6(node=noise & _NODE_BITS, clock_seq=noise >> 48)
    return UUID(int=made.int)


def new_request_id() -> str:
    """A request id for a request that arrived without one."""
    return str(new_id())


def derived_id(claim_key: str, step: str) -> UUID:
    """The UUIDv8 that this step of this claim always gets.

    Args:
        claim_key: the idempotency key of the claim, as `context:entity:id`.
        step: what is being made, unique within the claim.
    """
    octets = bytearray(_digest(claim_key, step)[:16])
    octets[6] = (octets[6] & 0x0F) | 0x80
    octets[8] = (octets[8] & 0x3F) | 0x80
    return UUID(bytes=bytes(octets))


def derived_key(claim_key: str, step: str) -> str:
    """The `Idempotency-Key` that this step of this claim always sends: 68 characters, prefix `hkd_`."""
    return DERIVED_KEY_PREFIX + _digest(claim_key, step).hex()


def _digest(*parts: str) -> bytes:
    """SHA-256 over length-prefixed parts, so that no two lists of parts share their bytes."""
    digest = hashlib.sha256()
    for part in parts:
        octets = part.encode()
        digest.update(len(octets).to_bytes(8, "big"))
        digest.update(octets)
    return digest.digest()
