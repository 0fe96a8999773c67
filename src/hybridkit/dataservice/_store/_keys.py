"""Idempotency keys, whatever the database: retention, repeated requests, counters."""

from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import KeyReusedError, StepReusedError
from hybridkit.ids import DERIVED_KEY_PREFIX, ORDERED_KEY_PREFIX, SHORT_KEY_PREFIX
from hybridkit.observability import get_logger, metrics

if TYPE_CHECKING:
    from prometheus_client import Counter

RETENTION: Final = timedelta(hours=72)
DERIVED_RETENTION: Final = timedelta(days=30)
"""The time in which a dead letter may be redriven: its handler makes the same keys again."""

_log = get_logger("hybridkit.dataservice")


def is_derived(key: str) -> bool:
    """Return whether the key was derived from a claim and a step, so that a rerun of a half-done handler repeats it."""
    return key.startswith((DERIVED_KEY_PREFIX, SHORT_KEY_PREFIX))


def retention_of(key: str) -> timedelta:
    """Return how long a key is kept after its write."""
    return DERIVED_RETENTION if key.startswith(DERIVED_KEY_PREFIX) else RETENTION


def replayed(write: Write, fingerprint: bytes, outcome: Outcome) -> Outcome:
    """Return what was done under the key before, as the outcome of a request that repeats it.

    Raises:
        KeyReusedError: `check_repeated` raised it.
    """
    check_repeated(write, fingerprint)
    if fingerprint == write.fingerprint:
        count("replayed")
    return outcome if outcome.replayed else replace(outcome, replayed=True)


def check_repeated(write: Write, fingerprint: bytes) -> None:
    """Refuse another request under a key that its caller made, or that was derived from an order alone.

    Under any other derived key it is logged and passes.

    Raises:
        KeyReusedError: the key was used for another request, and its caller made the key.
        StepReusedError: the key was used for another request, and only its order tells its step from equal ones.
    """
    if fingerprint == write.fingerprint:
        return
    if not is_derived(write.key):
        count("mismatch")
        raise KeyReusedError("this Idempotency-Key was used for another request; make one key per call")
    if write.key.startswith(ORDERED_KEY_PREFIX):
        count("mismatch")
        raise StepReusedError(
            "a rerun asks for something else under this step than the run before; it may be another item of a loop:"
            " name each write with step=, or take its values from the event and not from the clock"
        )
    # The rerun of a half-done handler must be able to go on, even where it now asks for something else.
    count("diverged")
    _log.warning(
        "a rerun asks for something else than the run before, and gets what that one did; does the handler read what"
        " its own first step changed? Where the two are different writes, name each with step=",
        caller=write.caller,
        key=write.key,
    )


def count(outcome: str) -> None:
    """Count a write by its outcome: `acquired`, `replayed`, `in_progress`, `mismatch` or `diverged`."""
    _counter(outcome).inc()


@lru_cache(maxsize=16)
def _counter(outcome: str) -> "Counter":
    """Return the counter of an outcome; cached, as the look-up costs as much as the counting."""
    return metrics.idempotency_outcomes.labels("data_service", outcome)
