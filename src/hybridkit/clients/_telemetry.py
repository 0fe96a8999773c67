"""How a target looks from here: its metrics, and a line in the log whenever its breaker changes its state."""

from typing import TYPE_CHECKING, Final

from hybridkit.clients._breaker import BreakerState
from hybridkit.observability import get_logger, metrics

if TYPE_CHECKING:
    from prometheus_client import Histogram

__all__ = ["Telemetry"]

_LEVELS: Final[dict[BreakerState, int]] = {"closed": 0, "half_open": 1, "open": 2}

_log = get_logger("hybridkit.clients")


class Telemetry:
    """The metrics of one target. Their children are kept, as looking them up costs more than counting."""

    def __init__(self, target: str) -> None:
        self._target = target
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
        child.observe(seconds)

    def breaker(self, state: BreakerState) -> None:
        """Note the breaker's new state."""
        self._breaker.set(_LEVELS[state])
        if state == "open":
            _log.warning("calls are held back, as too many have failed", target=self._target)
        elif state == "closed":
            _log.info("calls go through again", target=self._target)
