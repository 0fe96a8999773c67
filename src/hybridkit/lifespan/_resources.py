"""Open what a process needs in order, and close it in reverse, whatever goes wrong in between.

```python
async with ServiceResources(start_budget_seconds=60, shutdown_seconds=30) as resources:
    redis = await resources.open("redis", lambda: connect_redis(url), provides=Redis, probe=probe_redis)
    resources.on_drain("jobs", jobs.drain)
    resources.started()
    await stop_requested.wait()
```

Start: each dependency is awaited with growing pauses until the start budget is used up; then one report names all that
is missing, and what was opened is closed again.

Stop, all of it within `shutdown_seconds`: readiness turns red, a load balancer gets time to see it, nothing new is
accepted, running work is finished, everything is closed in reverse, telemetry is flushed. A second signal (`hurry`)
skips to closing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from hybridkit._tasks import is_set_within
from hybridkit.errors import DeclarationError, OutcomeUnknownError, TemporaryError, UnavailableError
from hybridkit.lifespan._health import Health
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.lifespan")

type StopAction = Callable[[float], Awaitable[object]]
"""One step of stopping; its argument is the seconds that it may take."""

# What of `shutdown_seconds` is over at the end of each phase, at the latest.
WAIT_UNTIL: Final = 0.3
ACCEPT_UNTIL: Final = 0.5
DRAIN_UNTIL: Final = 0.8
CLOSE_UNTIL: Final = 0.93
FLUSH_UNTIL: Final = 1.0

CANCEL_GRACE_SECONDS: Final = 1.0
"""How long to wait for the end of a task that was cancelled, before it is left behind."""

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 3.0

# What a dependency that is still starting raises. Everything else is a mistake, and reported at once.
_NOT_YET: Final = (TemporaryError, OutcomeUnknownError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency[T]:
    """One thing to open.

    Attributes:
        name: the name for logs, the report and `/ready`.
        factory: makes a fresh async context manager for each try.
        provides: the type under which handlers ask for it; None offers it to none.
        probe: raises where it doesn't work; asked before it counts as open, and for readiness from then on.
    """

    name: str
    factory: Callable[[], AbstractAsyncContextManager[T]]
    provides: type[T] | None = None
    probe: Callable[[T], Awaitable[object]] | None = None


class ServiceResources:
    """The registry of what is open, by type, and the order in which it is closed.

    Args:
        start_budget_seconds: the time from entering until everything has to be open.
        shutdown_seconds: the time from the first step of stopping to the last.
        unready_seconds: how long to go on working after readiness has turned red, for load balancers.
        health: is told of every probe and of the stop; a new one by default.

    Attributes:
        health: the readiness of what is open.
    """

    def __init__(
        self,
        *,
        start_budget_seconds: float = 60.0,
        shutdown_seconds: float = 30.0,
        unready_seconds: float = 0.0,
        health: Health | None = None,
    ) -> None:
        self.health = health or Health()
        self._start_budget_seconds = start_budget_seconds
        self._shutdown_seconds = shutdown_seconds
        self._unready_seconds = unready_seconds
        self._providers: dict[type, object] = {}
        self._opened: list[_Owner[Any]] = []
        self._start_until = time.monotonic() + start_budget_seconds
        self._actions: dict[str, list[tuple[str, StopAction]]] = {
            "stop accepting": [],
            "drain": [],
            "flush": [],
        }
        self._stop_since: float | None = None
        self._announcing = asyncio.Lock()
        self._stopping = asyncio.Lock()
        self._is_stopped = False
        self._hurried = asyncio.Event()
        self._errors: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._start_until = time.monotonic() + self._start_budget_seconds
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._unready_seconds = 0.0  # it doesn't work any more: no use in taking work meanwhile
        await self.stop()

    # ── start ────────────────────────────────────────────────────────────────────────────────────

    @property
    def providers(self) -> Mapping[type, object]:
        """What handlers can ask for by type, as a live, read-only view."""
        return MappingProxyType(self._providers)

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """The errors of stopping; each was logged."""
        return tuple(self._errors)

    def provide[T](self, type_: type[T], value: T) -> None:
        """Offer a value that needs no closing.

        Raises:
            DeclarationError: the type has a provider already.
        """
        self._check_free(type_)
        self._providers[type_] = value

    async def open[T](
        self,
        name: str,
        factory: Callable[[], AbstractAsyncContextManager[T]],
        *,
        provides: type[T] | None = None,
        probe: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Enter a context manager, again and again until it succeeds, and keep it open until the stop.

        It is entered and left in a task of its own.

        Args:
            name: the name for logs, the report and `/ready`.
            factory: makes a fresh async context manager for each try.
            provides: the type under which handlers ask for it.
            probe: raises where it doesn't work; asked before it counts as open, and for readiness from then on.

        Raises:
            UnavailableError: it was not open when the start budget was used up; the message is the report.
            DeclarationError: the name or the type is taken.
            Exception: the context manager raised an error that waiting can't cure.
        """
        [value] = await self.open_together(
            Dependency(name=name, factory=factory, provides=provides, probe=probe)
        )
        opened: T = value
        return opened

    async def open_together(self, *dependencies: Dependency[Any]) -> tuple[Any, ...]:
        """Open several that don't need each other at once, as `open` does, and return their values in the order given.

        A dependency that can't be cured by waiting ends the waiting for the others.
        """
        if not dependencies:
            return ()
        self._check_all_free(dependencies)
        openings = [_Opening(dependency, until=self._start_until) for dependency in dependencies]
        tasks = [asyncio.create_task(self._open(opening)) for opening in openings]
        try:
            await _until_all_or_mistake(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # each rolls back what it has half opened
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
        for mistake in errors:
            if not isinstance(mistake, _NOT_YET):
                raise mistake
        if errors:
            raise UnavailableError(self._report(openings)) from errors[0]
        return tuple(task.result() for task in tasks)

    def started(self) -> None:
        """Declare that everything is open and serving: from now on the probes decide about readiness."""
        self.health.started()
        _log.info("started", open=[owner.name for owner in self._opened])

    async def _open(self, opening: "_Opening") -> Any:
        owner = await opening.run()
        dependency = opening.dependency
        # No await between here and the end: whoever cancels this finds it either opened and kept, or neither.
        self._opened.append(owner)
        if dependency.provides is not None:
            self._providers[dependency.provides] = owner.value
        if dependency.probe is not None:
            self.health.add(dependency.name, partial(owner.check, dependency.probe))
        _log.info("resource is open", resource=dependency.name)
        return owner.value

    def _check_all_free(self, dependencies: tuple[Dependency[Any], ...]) -> None:
        types: list[type] = []
        for dependency in dependencies:
            if (type_ := dependency.provides) is not None:
                self._check_free(type_)
                types.append(type_)
        names = [*(owner.name for owner in self._opened), *(dependency.name for dependency in dependencies)]
        if len(set(types)) < len(types) or len(set(names)) < len(names):
            raise DeclarationError(f"each name and each type can be opened once, among {', '.join(names)}")

    def _check_free(self, type_: type) -> None:
        if type_ in self._providers:
            raise DeclarationError(f"{type_.__qualname__} has a provider already")

    def _report(self, openings: "list[_Opening]") -> str:
        lines = [f"the start was given up: not everything came up within {self._start_budget_seconds:g} s"]
        lines += [f"{owner.name}: open" for owner in self._opened]
        lines += [f"{opening.dependency.name}: {opening.trouble}" for opening in openings if opening.trouble]
        return "\n  - ".join(lines)

    # ── stop ─────────────────────────────────────────────────────────────────────────────────────

    def on_stop_accepting(self, name: str, action: StopAction) -> None:
        """Register an action for when nothing new is to be taken: stop listening, polling, consuming."""
        self._actions["stop accepting"].append((name, action))

    def on_drain(self, name: str, action: StopAction) -> None:
        """Register an action that finishes running work."""
        self._actions["drain"].append((name, action))

    def on_flush(self, name: str, action: StopAction) -> None:
        """Register an action for the very end: send the logs, spans and reports that are still buffered."""
        self._actions["flush"].append((name, action))

    def hurry(self) -> None:
        """Stop waiting for anything, and close: the answer to a second signal."""
        self._hurried.set()

    async def announce(self) -> None:
        """Turn readiness red and wait for load balancers, as the first step of `stop` does."""
        async with self._announcing:
            if self._stop_since is not None:
                return
            self._stop_since = time.monotonic()
            self.health.drain()
            if self._unready_seconds > 0:
                wait_seconds = min(self._unready_seconds, self._shutdown_seconds * WAIT_UNTIL)
                _log.info("not ready any more, and waiting for that to be seen", seconds=wait_seconds)
                await is_set_within(self._hurried, seconds=wait_seconds)

    async def stop(self) -> None:
        """Stop in order, within `shutdown_seconds`; errors are logged and collected, and repeated calls do nothing."""
        async with self._stopping:
            if self._is_stopped:
                return
            await self.announce()
            self._is_stopped = True
            try:
                await self._run_actions("stop accepting", until=ACCEPT_UNTIL)
                await self._run_actions("drain", until=DRAIN_UNTIL)
            finally:
                await self._close_all()
                await self._run_actions("flush", until=FLUSH_UNTIL)

    def _seconds_left(self, until: float) -> float:
        since = time.monotonic() if self._stop_since is None else self._stop_since
        return max(since + self._shutdown_seconds * until - time.monotonic(), 0.0)

    async def _run_actions(self, phase: str, *, until: float) -> None:
        actions = self._actions[phase]
        may_skip = phase != "flush"
        if not actions or (may_skip and self._hurried.is_set()):
            return
        left = self._seconds_left(until)
        tasks = {
            asyncio.create_task(_call(action, left), name=f"hybridkit {phase} {name}"): name
            for name, action in actions
        }
        await _wait_all(list(tasks), left, unless=self._hurried if may_skip else asyncio.Event())
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            _log.warning("cancelled, because its time is over", phase=phase, action=tasks[task])
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished, timeout=CANCEL_GRACE_SECONDS)
        for task, name in tasks.items():
            self._note(f"{phase} of {name}", task)

    async def _close_all(self) -> None:
        while self._opened:
            # An equal share for each that is left: one that hangs must not take the time of the others.
            share = self._seconds_left(CLOSE_UNTIL) / len(self._opened)
            owner = self._opened.pop()
            await owner.close(max(share, 0.05))
            self._note(f"closing {owner.name}", owner.task)

    def _note(self, what: str, task: "asyncio.Future[Any]") -> None:
        if not task.done() or task.cancelled():
            self._errors.append(TimeoutError(f"{what} did not end in time"))
            _log.error("did not end in time", what=what)
        elif error := task.exception():
            self._errors.append(error)
            _log.error("failed while stopping", what=what, exc_info=error)

    def __repr__(self) -> str:
        names = ", ".join(owner.name for owner in self._opened)
        return (
            f"ServiceResources(open=[{names}], provides={[type_.__qualname__ for type_ in self._providers]})"
        )


class _Opening:
    """The attempts to open one dependency."""

    def __init__(self, dependency: Dependency[Any], *, until: float) -> None:
        self.dependency = dependency
        self.trouble = ""
        self._until = until

    async def run(self) -> "_Owner[Any]":
        """Return the opened dependency, or raise the error of the last attempt."""
        tries = AsyncRetrying(
            sleep=asyncio.sleep,
            retry=retry_if_exception_type(_NOT_YET),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
            stop=stop_before_delay(max(self._until - time.monotonic(), 0.0)),
            reraise=True,
        )
        return await tries(self._try)

    async def _try(self) -> "_Owner[Any]":
        owner = _Owner(self.dependency)
        try:
            await owner.open(max(self._until - time.monotonic(), 0.0))
        except Exception as error:
            self._note(error)
            raise
        self.trouble = ""
        return owner

    def _note(self, error: Exception) -> None:
        if isinstance(error, _NoAnswerError):
            # Why an earlier try failed says more than that the time was over.
            self.trouble = self.trouble or str(error)
            return
        if not self.trouble:
            _log.info("waiting for a resource", resource=self.dependency.name, reason=repr(error))
        self.trouble = f"{type(error).__name__}: {error}"


class _NoAnswerError(UnavailableError):
    """Opening took longer than the budget."""


class _Owner[T]:
    """One entered context manager, in a task that enters it, keeps it, and leaves it.

    One task does all three, because cancel scopes and task groups inside it belong to the task that made them.
    """

    def __init__(self, dependency: Dependency[T]) -> None:
        self.name = dependency.name
        self._dependency = dependency
        self._open: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"hybridkit resource {self.name}")

    @property
    def value(self) -> T:
        """The value that the context manager gave."""
        return self._open.result()

    async def open(self, timeout_seconds: float) -> None:
        """Wait until it is open; otherwise nothing of it is left."""
        either: list[asyncio.Future[Any]] = [self.task, self._open]
        try:
            await asyncio.wait(either, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        if self._open.done():
            return
        if self.task.done():
            self.task.result()
        await self._abandon()
        raise _NoAnswerError(f"it did not open within {timeout_seconds:.1f} s")

    async def check(self, probe: Callable[[T], Awaitable[object]]) -> object:
        """Ask the probe whether it is still open and works, and return the probe's answer."""
        if self.task.done():
            raise UnavailableError(f"{self.name} has ended by itself")
        return await probe(self.value)

    async def close(self, timeout_seconds: float) -> None:
        """Leave the context manager; the task's result says how that went."""
        self._closing.set()
        await asyncio.wait({self.task}, timeout=timeout_seconds)
        if not self.task.done():
            await self._abandon()

    async def _abandon(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=CANCEL_GRACE_SECONDS)

    async def _run(self) -> None:
        async with self._dependency.factory() as value:
            if self._dependency.probe is not None:
                await self._dependency.probe(value)
            self._open.set_result(value)
            await self._closing.wait()


async def _until_all_or_mistake(tasks: "list[asyncio.Task[Any]]") -> None:
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, _NOT_YET):
                return


async def _wait_all(
    tasks: "list[asyncio.Task[Any]]", timeout_seconds: float, *, unless: asyncio.Event
) -> None:
    everything = asyncio.ensure_future(asyncio.wait(tasks))
    stopped = asyncio.ensure_future(unless.wait())
    try:
        await asyncio.wait(
            {everything, stopped}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        everything.cancel()
        stopped.cancel()


async def _call(action: StopAction, seconds: float) -> object:
    return await action(seconds)
