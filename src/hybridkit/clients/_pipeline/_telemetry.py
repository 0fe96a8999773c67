"""Metrics and spans of the calls to one target, and a line in the log when its breaker opens or closes."""

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Span

from hybridkit.clients._pipeline._breaker import BreakerState
from hybridkit.clients._transports._base import Response
from hybridkit.observability import exemplar, get_logger, metrics, span

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue
    from prometheus_client import Histogram

_LEVELS: Final[dict[BreakerState, int]] = {"closed": 0, "half_open": 1, "open": 2}

_TIMING = re.compile(r"([a-z_]{1,32});dur=([0-9]{1,9}(?:\.[0-9]{1,6})?)")

_log = get_logger("hybridkit.clients")


class Telemetry:
    """The metrics and spans of one target; metrics with their labels are kept, as a lookup costs more than counting."""

    def __init__(self, target: str) -> None:
        self._target = target
        address, _, port = target.rpartition(":")
        self._server: Final[dict[str, AttributeValue]] = (
            {"server.address": address, "server.port": int(port)}
            if address and port.isdecimal()
            else {"server.address": target}
        )
        self._durations: dict[tuple[str, str], Histogram] = {}
        self.retries: Final = metrics.http_client_retries.labels(target)
        self.in_flight: Final = metrics.http_client_in_flight.labels(target)
        self.queued: Final = metrics.http_client_queued.labels(target)
        self._breaker = metrics.http_client_breaker_state.labels(target)

    def __repr__(self) -> str:
        return f"Telemetry({self._target!r})"

    def attempt(self, method: str, outcome: str, seconds: float) -> None:
        """Count an attempt that has ended."""
        child = self._durations.get((method, outcome))
        if child is None:
            child = metrics.http_client_duration.labels(self._target, method, outcome)
            self._durations[method, outcome] = child
        child.observe(seconds, exemplar())

    def span(self, method: str) -> AbstractContextManager[Span]:
        """Open the span of a call, all attempts together: https://opentelemetry.io/docs/specs/semconv/http/http-spans/."""
        attributes = {"http.request.method": method, **self._server}
        return span(f"{method} {self._target}", kind="client", attributes=attributes)

    def answered(self, response: Response, current: Span) -> None:
        """Note in the call's span what the answer says of itself: its status, and its `Server-Timing`."""
        if current.is_recording():
            current.set_attribute("http.response.status_code", response.status)
            for name, milliseconds in _TIMING.findall(response.headers.get("server-timing", "")):
                current.set_attribute(f"server_timing.{name}_seconds", float(milliseconds) / 1000)

    def breaker(self, state: BreakerState) -> None:
        """Note the breaker's new state."""
        self._breaker.set(_LEVELS[state])
        if state == "open":
            _log.warning("calls are held back, as too many have failed", target=self._target)
        elif state == "closed":
            _log.info("calls go through again", target=self._target)
