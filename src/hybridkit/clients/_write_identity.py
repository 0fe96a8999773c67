"""The identity of a write: random outside a claim, the same on every run inside one."""

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from hybridkit.context import current
from hybridkit.errors import InvalidRequestError
from hybridkit.ids import derived_id, derived_key, new_id


class WriteIdentity(NamedTuple):
    """The key and the id by which a repeated write is the same write.

    Attributes:
        key: the `Idempotency-Key`, made once per logical call and kept over its retries.
        id: the id of the record that the write may create.
    """

    key: str
    id: UUID


class BatchIdentity(NamedTuple):
    """The key and the ids by which a repeated batch is the same batch.

    Attributes:
        key: the `Idempotency-Key` of the whole batch.
        id_at: gives the id of the record that the write may create at that position.
    """

    key: str
    id_at: Callable[[int], UUID]


def identify(name: str, step: str | None = None) -> WriteIdentity:
    """Return the identity of the next write of that name.

    Args:
        name: operation, resource and, where it is known, the target: `update users 1f0…`.
        step: the caller's name for this write. Inside a claim equal names and steps are numbered in their order, so a
            rerun of the same code finds the same identities; where the order can change, the step tells them apart.

    Raises:
        InvalidRequestError: the step is no Unicode text.
    """
    claim = current().claim
    if claim is None:
        return WriteIdentity(str(new_id()), new_id())
    numbered = claim.step(_with_step(name, step))
    return WriteIdentity(derived_key(claim.key, numbered), derived_id(claim.key, numbered))


def identify_batch(name: str, step: str | None = None) -> BatchIdentity:
    """Return the identity of the next batch of that name, with an id for each record; otherwise as `identify`."""
    claim = current().claim
    if claim is None:
        return BatchIdentity(str(new_id()), _random_id)
    claim_key, numbered = claim.key, claim.step(_with_step(name, step))

    def id_at(index: int) -> UUID:
        return derived_id(claim_key, f"{numbered} {index}")

    return BatchIdentity(derived_key(claim_key, numbered), id_at)


def _random_id(_: int) -> UUID:
    return new_id()


def _with_step(name: str, step: str | None) -> str:
    if step is None:
        return name
    try:
        step.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("a step's name can't hold half a surrogate pair") from None
    return f"{name} {step}"
