"""Run a delivery's handler within its time, as often as its policy says, and give a verdict.

A handler that is cancelled because the process stops has none: the cancellation goes on to `Subscription`, which gives
the delivery back to its queue. One that cancels itself has failed, as by any other error.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, assert_never

from hybridkit._tasks import run_isolated
from hybridkit.context import Claim, bind
from hybridkit.errors import DeadlineExceededError, NotYetError
from hybridkit.messaging._consuming._execution import Execution, attempt_number
from hybridkit.messaging._consuming._guarded_runner import Guard, GuardedRunner
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import PauseGate
from hybridkit.messaging._consuming._run_timeouts import RunTimeouts
from hybridkit.messaging._consuming._settlement import Settlement
from hybridkit.messaging._consuming._stall_detector import GRACE_SECONDS, StallDetector
from hybridkit.messaging._consuming._verdict import (
    SHORTEST_DELAY_SECONDS,
    DeadLettered,
    RetryHere,
    RetryLater,
    RunResult,
    Settled,
    Verdict,
    WaitForDependency,
)
from hybridkit.observability import exemplar, get_logger
from hybridkit.retry import GiveUp, Pause, Retry, RetryAfter

FAULTS: Final = Retry.exponential(attempts=5)
"""The policy for a failure outside of a handler, and for one where an application's own policy fails."""

_log = get_logger(__name__)


class Runner:
    """Gives a verdict on one execution after another.

    Args:
        queue: the consumer's name.
        providers: for the handlers' parameters.
        timeout_seconds: the time that a run of a handler may take.
        gate: shut when a handler or the guard says that a dependency is down.
        guard: lets each event run once; None for no guard.
        settlement: publishes dead letters while the claim is held.
        stalls: learns what runs wait for.
        in_order: whether a message waits in its key's backlog, and not here, for its next run.
        parked: the parked keys, where keys are parked.
    """

    def __init__(
        self,
        queue: str,
        *,
        providers: Mapping[Any, object],
        timeout_seconds: float,
        gate: PauseGate,
        guard: Guard | None,
        settlement: Settlement,
        stalls: StallDetector,
        in_order: bool,
        parked: ParkedKeys | None,
    ) -> None:
        self._queue = queue
        self._providers = providers
        self._timeout_seconds = timeout_seconds
        self._timeouts = RunTimeouts(seconds=timeout_seconds)
        self._gate = gate
        self._in_order = in_order
        self._run_once = self._run_handler
        if guard is not None:
            self._run_once = GuardedRunner(
                guard,
                self._run_handler,
                settlement=settlement,
                stalls=stalls,
                timeout_seconds=timeout_seconds,
                in_order=in_order,
                parked=parked,
            ).run

    def __repr__(self) -> str:
        return f"Runner({self._queue!r}, timeout_seconds={self._timeout_seconds:g})"

    @property
    def overdue(self) -> int:
        """The number of handlers that don't end, although their time is up and they were cancelled."""
        return self._timeouts.overdue(seconds=GRACE_SECONDS)

    async def run(self, execution: Execution) -> Verdict | None:
        """Run the handler, in this process as often as its policy says.

        A cancellation of the caller's task reaches the handler and is raised here when the handler has ended: there is
        no verdict then, and the delivery stays unsettled.

        Returns:
            The verdict; None where the delivery is left as it is, as its channel has closed or the consumer stops.
        """
        while True:
            if execution.delivery.left_seconds(self._timeout_seconds) < 0:
                failed = execution.delivery.failed(execution.failures)
                return RetryLater(SHORTEST_DELAY_SECONDS, headers=failed)
            result = await (
                self._run_once(execution) if self._gate.is_open else self._run_after_pause(execution)
            )
            match result:
                case WaitForDependency(error):
                    self._gate.shut(error)
                case RetryHere(seconds, error, failures):
                    execution.failures = failures
                    if not self._waits_here(execution, seconds):
                        return RetryLater(seconds, error, execution.delivery.failed(failures))
                    await asyncio.sleep(seconds)
                case _:
                    return result

    def _waits_here(self, execution: Execution, seconds: float) -> bool:
        """Whether the next run is near enough to wait for it in a handler's place."""
        left_seconds = execution.delivery.left_seconds(self._timeout_seconds)
        is_soon = seconds < min(SHORTEST_DELAY_SECONDS, left_seconds)
        return is_soon and not self._in_order and not self._gate.is_stopped

    async def _run_after_pause(self, execution: Execution) -> RunResult | None:
        """Run the handler once when the gate is open again, or as the probe that finds out whether it can be opened."""
        delivery = execution.delivery
        goes_on = await self._gate.turn(
            seconds=delivery.left_seconds(self._timeout_seconds), is_wanted=lambda: delivery.is_ours
        )
        if not delivery.is_ours:  # it comes again, and is no probe before
            # Chosen as the probe, it has to hand that on: the gate waits for a probe to end, and would stay shut.
            if goes_on:
                self._gate.pass_on()
            return None
        if not goes_on:
            again = RetryHere(SHORTEST_DELAY_SECONDS, None, execution.failures)
            return None if self._gate.is_stopped else again
        if self._gate.is_open:
            return await self._run_once(execution)
        with self._gate.probing():
            result = await self._run_once(execution)
            if not isinstance(result, WaitForDependency):
                self._gate.open()
        return result

    async def _run_handler(self, execution: Execution) -> RunResult:
        """Run the handler once, within its time."""
        # Steps and ids derive from a claim without the generation: what a redriven event writes again is the same.
        deadline = time.monotonic() + self._timeout_seconds
        context = execution.context.claimed(Claim(execution.key), deadline=deadline)
        attempt_number.set(execution.failures + 1)
        began = time.perf_counter()
        timeout = self._timeouts.one()
        error: BaseException | None
        try:
            with timeout, bind(context):
                run = execution.handler.run(execution.envelope, self._providers)
                error = await run_isolated(run, name=f"{self._queue} handler")
        except TimeoutError as expired:  # ours: what the handler raises is returned
            error = expired
        finally:
            execution.meters.duration.observe(time.perf_counter() - began, exemplar())
        if error is None:
            return Settled.DONE
        if timeout.expired:
            # Whatever it raised on its way out, the cause is its timeout.
            error = DeadlineExceededError(f"the handler took longer than {self._timeout_seconds:g} s")
        return self._after_failure(execution, error)

    def _not_yet(self, execution: Execution, error: NotYetError) -> RunResult:
        """Have the message wait for what its handler misses, or give it up after the last wait."""
        delivery = execution.delivery
        if self._in_order and delivery.key is not None:
            wait = delivery.next_wait_in_order(self._timeout_seconds, waits_for=error.reason)
        else:
            wait = delivery.next_wait(waits_for=error.reason)
        if wait is None:
            return DeadLettered(error.reason, error, execution.failures)
        return replace(wait, headers={**delivery.failed(execution.failures), **wait.headers})

    def _after_failure(self, execution: Execution, error: BaseException) -> RunResult:
        """Ask the handler's policy what follows from its failure, unless the handler says that it has to wait."""
        if isinstance(error, NotYetError):
            return self._not_yet(execution, error)
        attempt = execution.failures + 1
        jitter = random.random()  # noqa: S311 - spreads retries, protects nothing
        try:
            decision = execution.handler.retry.decide(error, attempt=attempt, jitter=jitter)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as broken:  # noqa: BLE001 - a policy, or a class in it, of the application's own
            _log.error("a retry policy failed", exc_info=broken)
            decision = FAULTS.decide(error, attempt=attempt, jitter=jitter)
        match decision:
            case GiveUp(reason):
                return DeadLettered(reason, error, attempt)
            case Pause():
                return WaitForDependency(error)
            case RetryAfter(seconds):
                _log.warning("handler failed", attempt=attempt, retry_seconds=seconds, exc_info=error)
                return RetryHere(seconds, error, attempt)
            case _:
                assert_never(decision)
