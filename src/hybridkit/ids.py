"""Make identifiers: time-ordered UUIDs for new things, derived UUIDs for things that may be made again.

A record, an event and a request get a UUID of version 6 (RFC 9562, section 5.6): it sorts by creation time, so indexes
stay dense, and two services never need to ask anyone for a number. Inside a claim, where a crash means that the same
code runs again, the id is derived from the claim and the step instead (version 8, section 5.8): the rerun makes the
same record and the same event.
"""

import hashlib
import os
import random
import time
from threading import Lock
from uuid import UUID

import orjson
import uuid6

__all__ = ["derived_id", "derived_key", "new_id", "new_request_id", "uuid_octets"]

DERIVED_KEY_PREFIX = "hkd_"
ORDERED_KEY_PREFIX = "hkd_n_"
SHORT_KEY_PREFIX = "hks_"

_TICKS_TO_1970 = 0x01B21DD213814000  # of 100 ns, from the Gregorian reform: where the time of a UUID begins
_VERSION_6_VARIANT_1 = 6 << 76 | 0b10 << 62
_NOISE_BITS = (1 << 62) - 1  # clock sequence and node

_lock = Lock()
_last_ticks = 0


def new_id() -> UUID:
    """Make a UUIDv6 that is greater than every one made before it in this process, from any thread."""
    return UUID(int=_new_number(int.from_bytes(os.urandom(8)) & _NOISE_BITS))


def new_request_id() -> str:
    """Make a request id for a request that arrived without one."""
    # It is no secret, and each request without an id needs one: this costs a third of `str(new_id())`.
    digits = f"{_new_number(random.getrandbits(62)):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _new_number(noise: int) -> int:
    # `uuid6.uuid6()` makes the same in three times the time, and each event, record and request needs one.
    global _last_ticks  # noqa: PLW0603 - the last one made, which is the point
    with _lock:
        ticks = _last_ticks = max(time.time_ns() // 100 + _TICKS_TO_1970, _last_ticks + 1)
    return ticks >> 12 << 80 | (ticks & 0xFFF) << 64 | _VERSION_6_VARIANT_1 | noise


def derived_id(claim_key: str, step: str) -> UUID:
    """Derive the UUIDv8 that belongs to a step of a claim: the same on every run.

    Args:
        claim_key: the idempotency key of the claim, as `context:entity:id`.
        step: the name of what is being made, unique within the claim.
    """
    return UUID(int=uuid6.UUID(int=int.from_bytes(_digest(claim_key, step)[:16]), version=8).int)


def derived_key(claim_key: str, step: str, *, by_order: bool = False, short_lived: bool = False) -> str:
    """Derive the `Idempotency-Key` of a step of a claim, the same on every run: up to 70 characters.

    Args:
        claim_key: as for `derived_id`.
        step: as for `derived_id`.
        by_order: whether only its order tells the step from equal ones, so that another content may be another item.
            The prefix is `hkd_n_` then, and `hkd_` for a step with a target or a name.
        short_lived: whether a data service keeps the key for 72 hours instead of 30 days, as what was written tells a
            later rerun that it was done. The prefix is `hks_` then.
    """
    prefix = SHORT_KEY_PREFIX if short_lived else ORDERED_KEY_PREFIX if by_order else DERIVED_KEY_PREFIX
    return prefix + _digest(claim_key, step).hex()


def uuid_octets(value: UUID) -> bytes:
    """Return the canonical text of a UUID in ASCII."""
    # Four times as fast as `str`, for what is in every message.
    return orjson.dumps(value)[1:-1] if type(value) is UUID else str(value).encode()


def _digest(*parts: str) -> bytes:
    """Hash length-prefixed parts with SHA-256, so that no two lists of parts share their bytes."""
    digest = hashlib.sha256()
    for part in parts:
        octets = part.encode()
        digest.update(len(octets).to_bytes(8, "big"))
        digest.update(octets)
    return digest.digest()
