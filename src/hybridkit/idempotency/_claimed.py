"""The value of an `IdempotencyGuard.claim` block."""

from typing import Any

from hybridkit.codec import encode_json
from hybridkit.errors import MisuseError
from hybridkit.idempotency._answers import Completed

__all__ = ["Claimed"]


class Claimed:
    """A claim: the work is the block's to do, or `done` says that it was done before.

    Attributes:
        key: `context:entity:id`.
        body: the result as JSON: the stored one when `done` (None when it was too large to keep), else the one that
            `set_result` has left.
    """

    def __init__(self, key: str, *, before: Completed | None = None) -> None:
        self.key = key
        self.body: bytes | None = b"null" if before is None else before.body
        self._before = before
        self._looked = False

    @property
    def done(self) -> bool:
        """Whether the work was completed before: leave the block with `result` then."""
        self._looked = True
        return self._before is not None

    @property
    def result(self) -> Any:
        """The stored result, decoded, when `done`; None also when it was over 32 KiB and therefore not kept."""
        self._looked = True
        return None if self._before is None else self._before.result

    def set_result(self, value: Any) -> None:
        """Store a result when the block ends without an error; it is kept up to 32 KiB.

        Raises:
            MalformedPayloadError: the result has no JSON form.
            MisuseError: the work was done before, and has its result.
        """
        if self._before is not None:
            raise MisuseError("it was completed before and keeps its result; look at `done` first")
        self.body = encode_json(value)

    def check_looked(self) -> None:
        """Find the block that repeats finished work because it never asks.

        Raises:
            MisuseError: neither `done` nor `result` was read.
        """
        if not self._looked:
            raise MisuseError(
                "it was completed before, and the block ran without looking: begin it with"
                " `if claim.done: return claim.result`"
            )

    def __repr__(self) -> str:
        return f"Claimed({self.key!r}, done={self._before is not None})"
