"""Runs under an idempotency guard: claim the event, run its handler as the holder, record how it ended."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Protocol, assert_never, cast

from hybridkit.codec import canonical_json
from hybridkit.errors import ClaimLostError, KeyReusedError, RejectedError, UnavailableError
from hybridkit.idempotency import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
)
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._execution import Execution
from hybridkit.messaging._consuming._isolation import HandlerLock
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._settlement import Settlement
from hybridkit.messaging._consuming._stall_detector import StallDetector
from hybridkit.messaging._consuming._verdict import (
    SHORTEST_DELAY_SECONDS,
    DeadLettered,
    RetryHere,
    RunResult,
    Settled,
    WaitForDependency,
)
from hybridkit.observability import get_logger

HOLDER_WAIT_SECONDS: Final = 5.0
LONGEST_HOLDER_WAIT_SECONDS: Final = 60.0
MOST_TAKEOVERS_BESIDE: Final = 1
"""An event that was taken over more often runs alone. Once can be anything: a deployment, a machine that is gone."""

type Run = Callable[[Execution], Coroutine[Any, Any, RunResult]]
"""One run of a handler."""

_log = get_logger(__name__)


class Guard(Protocol):
    """Lets one piece of work run once per key."""

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        """Ask for the claim of a key, and wait for so long while another process holds it."""
        ...

    def hold(self, acquired: Acquired, *, bound: bool = True) -> AbstractAsyncContextManager[None]:
        """Run the block as the holder of the claim, with the lease renewed, and the claim in the context if `bound`."""
        ...

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        """Record how the work ended."""
        ...


class GuardedRunner:
    """Runs a handler only while its event's claim is ours.

    Args:
        guard: keeps the claims.
        run: runs the handler.
        settlement: publishes dead letters.
        stalls: learns what waits for a run that has to be alone.
        timeout_seconds: the time that a run of a handler may take.
        in_order: whether a message waits in its key's backlog, and not here, for another holder of its claim.
        parked: the parked keys, where keys are parked.
    """

    def __init__(
        self,
        guard: Guard,
        run: Run,
        *,
        settlement: Settlement,
        stalls: StallDetector,
        timeout_seconds: float,
        in_order: bool,
        parked: ParkedKeys | None,
    ) -> None:
        self._guard = guard
        self._run = run
        self._settlement = settlement
        self._stalls = stalls
        self._timeout_seconds = timeout_seconds
        self._in_order = in_order
        self._parked = parked
        self._lock: HandlerLock | None = None  # that of the loop in which it runs first, and always

    async def run(self, execution: Execution) -> RunResult:
        """Run the handler once, if the guard lets it: beside others, or alone where processes have died on it."""
        if self._lock is None:
            self._lock = HandlerLock.of_loop()
        lock = self._lock
        if lock.is_free:
            lock.enter_shared()
        else:
            with self._stalls.attempt("a message runs alone, or waits for it, and all others wait"):
                await lock.acquire_shared()
        try:
            result = await self._claim(execution, most_takeovers=MOST_TAKEOVERS_BESIDE)
        finally:
            lock.release_shared()
        if result is not None:
            return result
        _log.warning("message runs alone", reason="processes have died while they had it")
        async with AsyncExitStack() as stack:
            with self._stalls.attempt("a message that has to run alone waits for the end of others"):
                is_alone = await stack.enter_async_context(lock.exclusive(wait_seconds=self._timeout_seconds))
            result = await self._claim(execution) if is_alone else None
        return result or RetryHere(HOLDER_WAIT_SECONDS, None, execution.failures)

    async def _claim(self, execution: Execution, *, most_takeovers: float = math.inf) -> RunResult | None:
        """Run the handler once, if the guard lets it; None for an event that was taken over more often than that."""
        wait_seconds = 0.0 if self._in_order else HOLDER_WAIT_SECONDS
        try:
            answer = await self._guard.begin(
                execution.claim, payload_of(execution.delivery), wait_seconds=wait_seconds
            )
        except UnavailableError as error:
            return WaitForDependency(error)
        if isinstance(answer, Acquired):  # as nearly always; class patterns cost more
            if answer.takeovers <= most_takeovers:
                return await self._run_as_holder(answer, execution)
            await self._guard.finish(answer, Outcome.RELEASED)
            return None
        match answer:
            case Completed():
                return Settled.DUPLICATE
            case Failed():
                if self._parked is not None:
                    self._parked.outdated()  # who gave it up has parked its key, maybe after it was read here
                return Settled.DUPLICATE
            case InProgress(retry_after_ms):
                longest = SHORTEST_DELAY_SECONDS if self._in_order else LONGEST_HOLDER_WAIT_SECONDS
                seconds = max(min(retry_after_ms / 1000, longest), SHORTEST_DELAY_SECONDS)
                return RetryHere(seconds, None, execution.failures)
            case Mismatch():
                reused = KeyReusedError(
                    f"the event {execution.envelope.event_id} came before with other data"
                )
                return DeadLettered("mismatch", reused, execution.failures)
            case Exhausted():
                crashed = RejectedError(f"too many processes died on the event {execution.envelope.event_id}")
                return DeadLettered("takeovers", crashed, execution.failures)
            case _:
                assert_never(answer)

    async def _run_as_holder(self, acquired: Acquired, execution: Execution) -> RunResult:
        """Run the handler once, and record how it ended."""
        try:
            async with self._guard.hold(acquired, bound=False):  # each run binds its own
                result = await self._run(execution)
                if isinstance(result, DeadLettered):
                    # Confirmed before the guard knows of it, and while the claim is still ours. The other way round, a
                    # crash in between would lose the message: the guard has it as failed, and there is no copy.
                    result = await self._settlement.dead_letter(
                        execution.delivery, result, execution.envelope.event_type
                    )
        except ClaimLostError as error:
            return RetryHere(HOLDER_WAIT_SECONDS, error, execution.failures)
        except (asyncio.CancelledError, Exception):
            await self._guard.finish(acquired, Outcome.RELEASED)
            raise
        outcome = result.guard_outcome if isinstance(result, Settled) else Outcome.RELEASED
        finish = await self._guard.finish(acquired, outcome)
        if finish is not Finish.OK:
            _log.warning("idempotency outcome not recorded", finish=finish.value)
        return result


def payload_of(delivery: Delivery) -> bytes:
    """Return the bytes by which the guard tells an event from another with its id.

    They are of the message as it was sent, because upcasters change with the next deployment.
    """
    wire = delivery.members
    if wire is None or not _is_flat(wire.get("data")):
        wire = delivery.wire()
    # The canonical form that the guard would make of the list itself, without reading and writing it twice for that.
    return canonical_json([wire["event_type"], wire.get("version", 1), wire.get("data")])


def _is_flat(data: object) -> bool:
    """Return whether data was read to its last digit: without fractions, which integers over 64 bits become as well."""
    return type(data) is dict and _EXACT.issuperset(map(type, cast("dict[str, object]", data).values()))


_EXACT: Final = frozenset({bool, int, str, type(None)})
