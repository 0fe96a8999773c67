"""The answers of the guard: closed sets of frozen values, made for `match`."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hybridkit.codec import decode_json

__all__ = [
    "Acquired",
    "Begin",
    "Completed",
    "Exhausted",
    "Failed",
    "Finish",
    "InProgress",
    "Mismatch",
    "Outcome",
    "RedisDown",
]


class RedisDown(StrEnum):
    """The behaviour of a guard while Redis doesn't answer."""

    DURABLE = "durable"
    """Run anyway: every effect is a write through a data service, where the derived keys still protect it."""

    EXTERNAL = "external"
    """Refuse: the effect leaves the system (mail, Telegram, payment), so nothing else would stop a second one."""

    STRICT = "strict"
    """Refuse, and ask Redis every time, even when it was down a moment ago."""


class Outcome(StrEnum):
    """How a piece of work ended."""

    COMPLETED = "C"
    """The work is done. Every later call gets the stored result."""

    FAILED = "F"
    """The work is given up for good, for example dead-lettered. Every later call is told so."""

    RELEASED = "R"
    """The work is not done; the next call may run it at once."""

    FORGOTTEN = "X"
    """The work was not even begun, as for a request that is refused before it: as if the key had never been asked for.
    """


class Finish(StrEnum):
    """The answer to `IdempotencyGuard.finish`."""

    OK = "OK"
    """The outcome is recorded."""

    ALREADY = "ALREADY"
    """This holder had finished before, and nothing changed: the answer to a repeated call."""

    LOST = "LOST"
    """Another holder has taken the work over; nothing was recorded."""

    GONE = "GONE"
    """There was no record to release: Redis has lost it, or it expired."""

    RECREATED = "RECREATED"
    """There was no record any more; a new one has the outcome."""

    UNRECORDED = "UNRECORDED"
    """Redis did not answer. What was done stays done; the record, if any, says `in progress` until its lease ends, or
    until Redis answers again: the outcome is sent once more in the background.
    """


@dataclass(frozen=True, slots=True)
class Acquired:
    """The work is this caller's: run it, renew it, finish it. Hand this value back for the last two.

    Attributes:
        key: the claim's key, `context:entity:id`.
        token: identifies the holder; unique for each call of `begin`.
        fence: counts the acquisitions of this key, from 1. A later holder has a greater one. 0 when unguarded.
        taken_over: whether an earlier holder's lease ran out: it crashed, or it is frozen.
        guarded: False when Redis did not answer and the guard continues without it (`RedisDown.DURABLE`).
        fingerprint: the fingerprint of the payload.
        takeovers: how many holders of this key have ended in that way so far.
        asked_at: the `time.monotonic()` of the question; the lease is not older than that. None when unguarded.
    """

    key: str
    token: str
    fence: int
    taken_over: bool
    guarded: bool
    fingerprint: str
    takeovers: int = 0
    asked_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another holder does the work now.

    Attributes:
        retry_after_ms: the time until its lease ends, unless it renews.
    """

    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The work was done before.

    Attributes:
        body: the stored result as JSON; None when it was over the limit and therefore not kept.
    """

    body: bytes | None

    @property
    def result(self) -> Any:
        """The stored result, decoded; None also when it was not kept."""
        return None if self.body is None else decode_json(self.body)


@dataclass(frozen=True, slots=True)
class Failed:
    """The work was given up for good before.

    Attributes:
        body: the stored reason as JSON; None when it was over the limit.
    """

    body: bytes | None

    @property
    def result(self) -> Any:
        """The stored reason, decoded; None also when it was not kept."""
        return None if self.body is None else decode_json(self.body)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key is known with another payload: a mistake of the caller."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Too many holders have died on this work: it is given up rather than run once more."""


type Begin = Acquired | InProgress | Completed | Failed | Mismatch | Exhausted
