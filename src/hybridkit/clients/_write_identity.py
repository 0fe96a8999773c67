"""The identity of a write: random outside a claim, the same on every run and every try inside one."""

import asyncio
import hashlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self
from uuid import UUID
from weakref import ReferenceType, ref

from hybridkit.codec import encode_json
from hybridkit.context import RunningTask, Step, current
from hybridkit.errors import InvalidRequestError, MisuseError
from hybridkit.ids import derived_id, derived_key, new_id


class WriteStep:
    """The identity by which a repeated write is the same write; its block lasts as long as the write is tried.

    Attributes:
        key: the `Idempotency-Key`, made once per logical call and kept over its retries.
    """

    __slots__ = ("_claim_key", "_step", "key")

    def __init__(self, claim_key: str = "", step: Step | None = None, *, by_order: bool = False) -> None:
        self._claim_key = claim_key
        self._step = step
        self.key = str(new_id()) if step is None else derived_key(claim_key, step.name, by_order=by_order)

    def __repr__(self) -> str:
        return f"WriteStep({self.key!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._step is not None:
            self._step.__exit__(kind, error, trace)

    @property
    def is_derived(self) -> bool:
        """Whether a rerun of the same work finds the same identity."""
        return self._step is not None

    def id_of(self, part: str = "") -> UUID:
        """Return the id of something that the write makes.

        Args:
            part: the name of what is made; empty where the write makes one thing.
        """
        if self._step is None:
            return new_id()
        return derived_id(self._claim_key, f"{self._step.name} {part}" if part else self._step.name)


def begin_write(
    name: str, *, method: str, step: str | None = None, content: object = None, by_order: bool = False
) -> WriteStep:
    """Begin the next write of that name, as the first line of a `with` block around all of its attempts.

    Args:
        name: the operation, the resource and, where it is known, the target: `update users 1f0…`.
        method: the method of the client, for the error.
        step: the caller's name for this write. Inside a claim equal names and steps are numbered in their order, so a
            rerun of the same code finds the same identities; where the order can change, the step tells them apart.
        content: the arguments of the write: after an open outcome the same ones are a further try of the same step.
        by_order: whether the write has no target, so that without a step only its order tells it from equal ones.

    Raises:
        SharedStepError: another task of the claim writes the same, without a step of its own.
        InvalidRequestError: the step is no Unicode text.
    """
    claim = current().claim
    if claim is None:
        return WriteStep()
    begun = claim.begin(with_step(name, step), running_task(), method=method, content=content)
    return WriteStep(claim.key, begun, by_order=by_order and step is None)


def running_task() -> ReferenceType[RunningTask]:
    """Return the reference to the current task, always the same object for one task.

    Raises:
        MisuseError: the code runs in no task, so nothing is known of the order of its writes.
    """
    task: RunningTask | None = asyncio.current_task()
    if task is None:
        raise MisuseError("the writes of a claim are made in a task")
    return ref(task)


def digest_of(targets: Iterable[object]) -> str:
    """Return a short name for many targets, whose order doesn't matter: each is JSON-able."""
    return hashlib.sha256(b",".join(sorted(map(encode_json, targets)))).hexdigest()[:32]


def with_step(name: str, step: str | None) -> str:
    """Return the name of a write with the caller's name for it.

    Raises:
        InvalidRequestError: the step is no Unicode text.
    """
    if step is None:
        return name
    try:
        step.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("a step's name can't hold half a surrogate pair") from None
    return f"{name} {step}"
