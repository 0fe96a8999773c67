"""Liveness and readiness of a process, from probes of its dependencies, and a small server for them.

```python
health = Health()
health.add("redis", lambda: probe_redis(redis))
health.started()
async with HealthServer(health, port=9003):
    ...
```

`/health` answers 200 while the event loop runs. `/ready` probes the dependencies: 200 when all of them work; 503 while
one does not, before the start is complete, and once the process is told to stop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal, Self

from hybridkit._header_fields import Fields
from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit.codec import encode_json
from hybridkit.errors import DeclarationError, HybridkitError
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.health")

type Probe = Callable[[], Awaitable[object]]
"""Returns when the dependency works and raises when it doesn't. A returned string is shown as the detail."""

type RenderMetrics = Callable[[str], tuple[bytes, str]]
"""Returns the body and its content type, given the request's `Accept` header."""

MAX_REQUEST_BYTES: Final = 8 * 1024
REQUEST_TIMEOUT_SECONDS: Final = 5.0
_MAX_DETAIL_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class DependencyState:
    """The result of one probe.

    Attributes:
        up: whether the dependency works.
        detail: the reason where it doesn't: the message of hybridkit's errors, and only the class of others. Where it
            works, the string that its probe has returned.
        seconds: the duration of the probe.
    """

    up: bool
    detail: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the process can take work, and why not.

    Attributes:
        status: `ready`, `starting`, `not_ready` (a dependency is down) or `draining` (told to stop).
        dependencies: the result of each probe by the dependency's name.
    """

    status: Literal["ready", "starting", "not_ready", "draining"]
    dependencies: Mapping[str, DependencyState]

    @property
    def is_ready(self) -> bool:
        """Whether the status is `ready`."""
        return self.status == "ready"

    @property
    def status_code(self) -> int:
        """The HTTP status of `/ready`: 200 or 503."""
        return HTTPStatus.OK if self.is_ready else HTTPStatus.SERVICE_UNAVAILABLE

    def to_dict(self) -> dict[str, Any]:
        """Return the body of `/ready`."""
        return {
            "status": self.status,
            "dependencies": {name: _state_to_dict(state) for name, state in self.dependencies.items()},
        }


class Health:
    """The health of a process: its probes, its start and its end.

    Args:
        timeout_seconds: the longest time for one probe, in seconds.
        cache_seconds: the time for which results are reused, in seconds; concurrent requests share one round of probes.
        clock: a monotonic clock in seconds; for tests.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 1.0,
        cache_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._probes: dict[str, Probe] = {}
        self._hanging: dict[str, asyncio.Task[object]] = {}
        self._states: dict[str, DependencyState] = {}
        self._fresh_until = -1.0
        self._round: asyncio.Task[None] | None = None
        self._is_started = False
        self._is_draining = False
        self._is_alive: Callable[[], bool] = lambda: True
        self._listeners: list[Callable[[Readiness], None]] = []
        self._last_told: str = "starting"

    def watch(self, is_alive: Callable[[], bool]) -> None:
        """Make liveness depend on this, as a rule on `Watchdog.is_alive`; otherwise an answer is taken for life."""
        self._is_alive = is_alive

    def on_change(self, listener: Callable[[Readiness], None]) -> None:
        """Call a function at each change of the status: when the start is complete, after probes, and at the stop."""
        self._listeners.append(listener)

    def add(self, name: str, probe: Probe) -> None:
        """Make readiness depend on this probe.

        Args:
            name: the name of the dependency in `/ready`.
            probe: called at most once per `cache_seconds`; cancelled after `timeout_seconds`.

        Raises:
            DeclarationError: another probe has the name.
        """
        if name in self._probes:
            raise DeclarationError(f"there is a probe named {name!r} already")
        self._probes[name] = probe
        self._fresh_until = -1.0

    def remove(self, name: str) -> None:
        """Remove a dependency, for example because it was closed; unknown names are ignored."""
        self._probes.pop(name, None)
        self._states.pop(name, None)

    def started(self) -> None:
        """Mark the start as complete: from now on the probes decide."""
        self._is_started = True
        self._tell_change()

    def drain(self) -> None:
        """Mark the process as stopping: it is no longer ready, whatever the probes say."""
        self._is_draining = True
        self._tell_change()

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """Return the HTTP status of `/health`, 200 or 503, and its body."""
        if self._is_alive():
            return HTTPStatus.OK, {"status": "alive"}
        return HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stalled"}

    async def readiness(self) -> Readiness:
        """Run all probes concurrently, or return the last results while they are fresh."""
        if self._clock() >= self._fresh_until:
            if self._round is None:
                self._round = asyncio.create_task(self._ask_all(), name="hybridkit health probes")
                self._round.add_done_callback(self._end_round)
            # Shielded: a caller that is cancelled must not cancel the round for the others.
            await asyncio.shield(self._round)
        return self._current()

    def _current(self) -> Readiness:
        return Readiness(self._status(), dict(self._states))

    def _tell_change(self) -> None:
        current = self._current()
        if current.status != self._last_told:
            self._last_told = current.status
            for listener in self._listeners:
                listener(current)

    def _status(self) -> Literal["ready", "starting", "not_ready", "draining"]:
        if self._is_draining:
            return "draining"
        if not self._is_started:
            return "starting"
        return "ready" if all(state.up for state in self._states.values()) else "not_ready"

    async def _ask_all(self) -> None:
        asked = dict(self._probes)
        found = await asyncio.gather(*(self._ask(name, probe) for name, probe in asked.items()))
        for name, state in zip(asked, found, strict=True):
            if name in self._probes:
                self._note(name, state)
        self._fresh_until = self._clock() + self._cache_seconds
        self._tell_change()

    async def _ask(self, name: str, probe: Probe) -> DependencyState:
        if name in self._hanging:
            return DependencyState(up=False, detail="an earlier probe still hangs", seconds=0.0)
        since = self._clock()
        task = asyncio.create_task(_call(probe), name=f"hybridkit probe {name}")
        # Unlike wait_for(), wait() returns in time also when the probe doesn't end on a cancellation.
        await asyncio.wait({task}, timeout=self._timeout_seconds)
        up = False
        if task.done():
            up, detail = _finding(task)
        else:
            detail = f"no answer within {self._timeout_seconds} s"
            self._hanging[name] = task
            task.add_done_callback(lambda done: self._forget(name, done))
            task.cancel()
        return DependencyState(up=up, detail=detail, seconds=self._clock() - since)

    def _note(self, name: str, state: DependencyState) -> None:
        before = self._states.get(name)
        self._states[name] = state
        if not state.up and (before is None or before.up):
            _log.warning("dependency is down", dependency=name, reason=state.detail)
        elif state.up and before is not None and not before.up:
            _log.info("dependency is up again", dependency=name)

    def _forget(self, name: str, task: asyncio.Task[object]) -> None:
        del self._hanging[name]
        _finding(task)  # retrieves its error, or asyncio would complain that nobody did

    def _end_round(self, _task: asyncio.Task[None]) -> None:
        self._round = None

    def __repr__(self) -> str:
        return f"Health({self._status()}, probes={sorted(self._probes)})"


class HealthServer:
    """The server of a management port: `GET /health`, `/ready`, `/metrics` and, for development, `/debug/stacks`.

    A connection carries one request, of at most 8 KiB, and ends after 5 s.

    Args:
        health: the health of the process.
        port: the port to listen on; 0 takes a free one.
        host: the address to listen on; a container needs `0.0.0.0`.
        metrics: renders the metrics, such as `observability.render_metrics`; without it `/metrics` is not found.
        stacks: renders what every thread and task does now; without it `/debug/stacks` is not found.
        is_shared: whether the other workers of an application listen there too; each answers for itself.

    Attributes:
        port: the port that it listens on, once entered.
    """

    def __init__(
        self,
        health: Health,
        *,
        port: int,
        host: str = "127.0.0.1",
        metrics: RenderMetrics | None = None,
        stacks: Callable[[], str] | None = None,
        is_shared: bool = False,
    ) -> None:
        self.port = port
        self._is_shared = is_shared
        self._health = health
        self._host = host
        self._metrics = metrics
        self._stacks = stacks
        self._server = HttpServer(
            self._answer,
            refuse=lambda status, _: _response(status),
            name="hybridkit health connection",
            limits=HttpLimits(
                head_bytes=MAX_REQUEST_BYTES, body_bytes=0, exchange_seconds=REQUEST_TIMEOUT_SECONDS
            ),
        )

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the port is taken, or may not be used.
        """
        self.port = await self._server.listen(self._host, self.port, is_shared=self._is_shared)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if request.method != "GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        path = request.target.partition("?")[0]
        if path == "/health":
            return _json_response(*self._health.liveness())
        if path == "/ready":
            readiness = await self._health.readiness()
            return _json_response(readiness.status_code, readiness.to_dict())
        if path == "/metrics" and self._metrics is not None:
            return _metrics_response(self._metrics, Fields(request.headers).listed("accept") or "")
        if path == "/debug/stacks" and self._stacks is not None:
            return _response(HTTPStatus.OK, self._stacks().encode(errors="replace"))
        return _response(HTTPStatus.NOT_FOUND)

    def __repr__(self) -> str:
        return f"HealthServer({self._host}:{self.port}, {self._health!r})"


async def _call(probe: Probe) -> object:
    return await probe()


def _finding(task: asyncio.Task[object]) -> tuple[bool, str | None]:
    """Return whether a finished probe found its dependency working, and the detail."""
    if task.cancelled():
        return False, "the probe was cancelled"
    error = task.exception()
    if error is None:
        remark = task.result()
        return True, remark[:_MAX_DETAIL_CHARS] if isinstance(remark, str) else None
    # The messages of other libraries may have a URL with a password.
    words = f": {error}" if isinstance(error, HybridkitError) else ""
    return False, f"{type(error).__name__}{words}"[:_MAX_DETAIL_CHARS]


def _state_to_dict(state: DependencyState) -> dict[str, Any]:
    detail = {} if state.detail is None else {"detail": state.detail}
    return {"status": "up" if state.up else "down", "seconds": round(state.seconds, 4), **detail}


def _metrics_response(metrics: RenderMetrics, accept: str) -> HttpResponse:
    try:
        body, content_type = metrics(accept)
    except Exception:  # noqa: BLE001 - of a collector; the other paths still answer
        _log.exception("the metrics can't be collected")
        return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
    return _response(HTTPStatus.OK, body, content_type=content_type)


def _json_response(status: int, body: Mapping[str, Any]) -> HttpResponse:
    return _response(status, encode_json(body), content_type="application/json")


def _response(
    status: int, body: bytes = b"", *, content_type: str = "text/plain; charset=utf-8"
) -> HttpResponse:
    headers = [
        (b"content-type", content_type.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    return HttpResponse(status, headers, body)
