"""The identity of a write: random outside a claim, the same on every run inside one."""

from typing import NamedTuple
from uuid import UUID

from hybridkit.context import current
from hybridkit.ids import derived_id, derived_key, new_id

__all__ = ["WriteIdentity", "identify"]


class WriteIdentity(NamedTuple):
    """What makes a repeated write the same write.

    Attributes:
        key: the `Idempotency-Key`, made once per logical call and kept over its retries.
        id: for the record that the write may create.
    """

    key: str
    id: UUID


def identify(step: str) -> WriteIdentity:
    """The identity of the next write of that name.

    Args:
        step: operation, resource and, where it is known, the target: `update users 1f0…`. Inside a claim equal ones
            are numbered in their order, so a rerun of the same code finds the same identities.
    """
    claim = current().claim
    if claim is None:
        return WriteIdentity(str(new_id()), new_id())
    numbered = claim.step(step)
    return WriteIdentity(derived_key(claim.key, numbered), derived_id(claim.key, numbered))
