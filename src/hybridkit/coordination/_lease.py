"""Keep a lease while a block runs, and stop the block when the lease is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, cast

from hybridkit.errors import HybridkitError, UnavailableError

SAFE_PART: Final = 0.9
"""The part of a lease after which it counts as lost without news from Redis: the rest is for the last question and for
stopping.
"""


class LeaseKeeper:
    """A block that renews its lease every third of it.

    When another holder has the lease, the block is cancelled and leaves with an error (the same bookkeeping as in
    `asyncio.timeout`, so that a cancellation from outside stays one). A block that ends within a third of the lease
    costs a timer and no task.

    Args:
        renew: extends the lease; False when another holder has it, `UnavailableError` when Redis doesn't answer.
        lease_seconds: how long a lease lasts from its renewal.
        may_outlive: whether the block goes on when the lease could not be renewed in time; for work that two holders
            may do at once without harm.
        error_of_loss: makes the block's error from the reason of the loss.
        since: when the lease was asked for, by the clock; None for now. A block that would begin after its end, because
            the process was frozen in between, begins only if it can be renewed.
        clock: gives seconds that never go back; for tests.
    """

    def __init__(
        self,
        renew: Callable[[], Awaitable[bool]],
        *,
        lease_seconds: float,
        may_outlive: bool,
        error_of_loss: Callable[[str], HybridkitError],
        since: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._lease_seconds = lease_seconds
        self._may_outlive = may_outlive
        self._error_of_loss = error_of_loss
        self._clock = clock
        self._since = since
        self._lost: str | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to renew.

        Raises:
            HybridkitError: the lease was over before the block could begin; the error is that of `error_of_loss`.
        """
        safe_until = self._safe_from(self._clock() if self._since is None else self._since)
        # A process that was frozen since it asked may find its lease over: another holder may be at work already.
        if self._clock() >= safe_until:
            safe_until = await self._ask(safe_until)
            if self._lost is not None:
                raise self._error_of_loss(self._lost)
        self._body = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._body.cancelling()
        self._timer = asyncio.get_running_loop().call_later(
            self._pause_seconds(safe_until), self._start_renewing, safe_until
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
        if self._lost is None:
            return
        # The block may have ended just before the cancellation that `_keep` has sent could reach it.
        left_with = error or await _pending_cancellation()
        if self._body.uncancel() > self._cancelling:  # someone else cancels this task as well
            if error is None and left_with is not None:
                raise left_with
            return
        if left_with is None or isinstance(left_with, asyncio.CancelledError):
            raise self._error_of_loss(self._lost) from left_with

    def _start_renewing(self, safe_until: float) -> None:
        self._renewing = asyncio.create_task(self._keep(safe_until), name="hybridkit lease")

    async def _keep(self, safe_until: float) -> None:
        safe_until = await self._ask(safe_until)
        while self._lost is None:
            await asyncio.sleep(self._pause_seconds(safe_until))
            if self._body.done():  # it has ended without leaving the block
                return
            safe_until = await self._ask(safe_until)
        self._body.cancel()

    async def _ask(self, safe_until: float) -> float:
        """Renew the lease once, and return the time until which it is safe then."""
        asked_at = self._clock()
        try:
            if await self._renew():
                # From the question, not the answer: Redis extends the lease at some moment in between.
                return self._safe_from(asked_at)
            self._lost = "another holder has taken it over"
        except UnavailableError:
            if not self._may_outlive and self._clock() >= safe_until:
                self._lost = "its lease could not be renewed in time, because Redis does not answer"
        return safe_until

    def _safe_from(self, moment: float) -> float:
        return moment + self._lease_seconds * SAFE_PART

    def _pause_seconds(self, safe_until: float) -> float:
        third = self._lease_seconds / 3
        return third if self._may_outlive else min(third, max(safe_until - self._clock(), 0.0))

    def __repr__(self) -> str:
        return f"LeaseKeeper(lease_seconds={self._lease_seconds}, lost={self._lost!r})"


async def _pending_cancellation() -> asyncio.CancelledError | None:
    """Absorb the cancellation that the task was sent after its last await, if any: it would hit later otherwise."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as pending:
        return pending
    return None
