"""The records of jobs in Redis: what happened, what is due, and whose turn it is."""

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from hybridkit.coordination import Redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.errors import UnavailableError
from hybridkit.jobs._schedule import EPOCH
from hybridkit.jobs._scripts import BEGIN, FINISH, GIVE_BACK, LOOK, RENEW, REQUEST, SKIP, WITHDRAW

type Outcome = Literal["done", "failed", "timed_out", "given_up"]

KEPT_MS: Final = 400 * 86_400_000
"""How long a record is kept after its last use: a job that runs once a year finds its last slot."""
LEASE_SECONDS: Final = 30.0
"""How long the run of a replica that has died is its own; then another one takes over."""
MAX_TAKEOVERS: Final = 5
"""How many holders of a run may die before it is given up: a run that kills its process must not kill all."""
_LOOK_SECONDS: Final = 0.2
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last run of a job that has ended, on any replica.

    Attributes:
        slot: the moment of the schedule; of a run that was asked for, the time of that.
        begun_at: when its first holder began.
        ended_at: when it ended.
        outcome: `done`, `failed`, `timed_out`, or `given_up` (too many replicas died on it).
        error: the class of the error, or an empty text.
    """

    slot: datetime
    begun_at: datetime
    ended_at: datetime
    outcome: Outcome
    error: str

    @property
    def seconds(self) -> float:
        """The time from its first beginning to its end."""
        return (self.ended_at - self.begun_at).total_seconds()


@dataclass(frozen=True, slots=True)
class JobState:
    """What Redis knows of a job.

    Attributes:
        now: the time of Redis's clock.
        cursor: the last slot that was begun or skipped; None for a job that was never seen.
        slot: the slot of the run that has not ended; None without one.
        is_manual: whether that run was asked for by a person.
        token: of the last holder; None before the first.
        lease_end: when that run may be taken over.
        requested_at: when a run was asked for that nobody has begun; None without one.
        last: the last run that has ended; None before the first.
    """

    now: datetime
    cursor: datetime | None
    slot: datetime | None
    is_manual: bool
    token: str | None
    lease_end: datetime
    requested_at: datetime | None
    last: LastRun | None

    @property
    def is_running(self) -> bool:
        """Whether a replica runs it now, as far as its lease tells."""
        return self.slot is not None and self.lease_end > self.now


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that this process has begun or taken over.

    Attributes:
        slot: its slot.
        is_manual: whether it was asked for by a person.
        token: identifies this holder.
        fence: greater than that of every earlier holder.
        taken_over: whether an earlier holder has died or has given it back.
        asked_at: the `time.monotonic()` of the question: the lease is not older than that.
        cursor: the job's cursor as the run began.
    """

    slot: datetime
    is_manual: bool
    token: str
    fence: int
    taken_over: bool
    asked_at: float
    cursor: datetime


class JobRecord:
    """The record of one job.

    Args:
        redis: a client from `connect_redis`.
        service: the name of the service, so that services don't share jobs.
        job: the job's name.
    """

    def __init__(self, redis: Redis, *, service: str, job: str) -> None:
        self._redis = multiplexer_of(redis)
        self._service, self._job = service, job
        self._keys = [f"hk:job:{service}:{job}"]

    def __repr__(self) -> str:
        return f"JobRecord({self._keys[0]!r})"

    async def look(self) -> JobState:
        """Read the record, and Redis's clock.

        Raises:
            UnavailableError: Redis does not answer, as for all methods.
        """
        now, cursor, slot, manual, token, lease_end, requested, *last = await self._redis.run(
            LOOK, self._keys
        )
        return JobState(
            now=_moment(now),
            cursor=None if cursor is None else _moment(cursor),
            slot=None if slot is None else _moment(slot),
            is_manual=manual is not None,
            token=None if token is None else token.decode(),
            lease_end=_moment(lease_end or 0),
            requested_at=None if requested is None else _moment(requested),
            last=_last_run(*last),
        )

    async def skip(self, seen: datetime | None, *, to: datetime) -> bool:
        """Move the cursor to a slot, and return whether no other replica was faster."""
        return bool(await self._redis.run(SKIP, self._keys, _number(seen), _number(to), KEPT_MS))

    async def begin(
        self, slot: datetime, *, is_manual: bool, cursor: datetime, token: str
    ) -> HeldRun | Literal["given_up"] | None:
        """Ask for a run; None where another replica has it, or was faster.

        Args:
            slot: the slot, or the time at which the run was asked for.
            is_manual: whether it was asked for by a person.
            cursor: the cursor as seen.
            token: identifies the caller; the same for every try, as a reply may be lost.
        """
        asked_at = time.monotonic()
        arguments = (token, _number(slot), int(is_manual), _number(cursor))
        reply = await self._redis.run(
            BEGIN, self._keys, *arguments, round(LEASE_SECONDS * 1000), KEPT_MS, MAX_TAKEOVERS
        )
        match reply:
            case [b"BEGUN" | b"TAKEN_OVER" as how, fence]:
                at = cursor if is_manual else max(cursor, slot)
                return HeldRun(slot, is_manual, token, fence, how == b"TAKEN_OVER", asked_at, at)
            case [b"GIVEN_UP"]:
                return "given_up"
            case _:
                return None

    async def renew(self, run: HeldRun) -> bool:
        """Extend the lease, and return False where another replica has the run."""
        arguments = (run.token, _number(run.slot), round(LEASE_SECONDS * 1000), KEPT_MS, _number(run.cursor))
        return bool(await self._redis.run(RENEW, self._keys, *arguments, int(run.is_manual)))

    async def finish(self, run: HeldRun, outcome: Outcome, error: str, *, cursor: datetime) -> bool:
        """Record the end of a run, and return False where another replica had taken it over.

        Args:
            run: the run.
            outcome: how it ended.
            error: the class of the error, or an empty text.
            cursor: the slot up to which all are settled now.
        """
        arguments = (run.token, _number(run.slot), outcome, error, KEPT_MS, _number(run.cursor))
        return bool(await self._redis.run(FINISH, self._keys, *arguments, _number(cursor), even_if_away=True))

    async def give_back(self, run: HeldRun) -> None:
        """Let another replica begin the run again at once."""
        await self._redis.run(GIVE_BACK, self._keys, run.token, _number(run.slot), even_if_away=True)

    async def request(self) -> datetime:
        """Ask for a run now, and return the time of the request, which is the run's slot."""
        return _moment(await self._redis.run(REQUEST, self._keys, new_token(), KEPT_MS))

    async def run_now(self, *, take_seconds: float) -> LastRun:
        """Have a worker run the job now, and return how it has ended.

        Args:
            take_seconds: the seconds within which a worker has to begin.

        Raises:
            UnavailableError: no worker has begun, or Redis does not answer.
        """
        asked = await self.request()
        give_up_at = time.monotonic() + take_seconds
        try:
            while True:
                state = await self.look()
                if state.last is not None and state.last.slot == asked:
                    return state.last
                waits = state.requested_at == asked and state.slot is None
                if waits and time.monotonic() >= give_up_at and await self.withdraw(asked):
                    raise UnavailableError(
                        f"no worker of {self._service} has begun {self._job} within {take_seconds:g} s: is one running,"
                        " with this Redis and this service name?"
                    )
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await self.withdraw(asked)

    async def withdraw(self, requested_at: datetime) -> bool:
        """Take a request back, and return whether nobody had begun it."""
        return bool(await self._redis.run(WITHDRAW, self._keys, _number(requested_at)))


def new_token() -> str:
    """Make a name for a holder. It is no secret: whoever can write to Redis needs none."""
    return f"{random.getrandbits(96):024x}"


def _moment(milliseconds: bytes | int | str) -> datetime:
    return EPOCH + int(milliseconds) * _MILLISECOND


def _number(moment: datetime | None) -> str:
    return "" if moment is None else str((moment.astimezone(UTC) - EPOCH) // _MILLISECOND)


def _last_run(slot: Any, begun: Any, ended: Any, outcome: Any, error: Any) -> LastRun | None:
    if slot is None:
        return None
    return LastRun(_moment(slot), _moment(begun), _moment(ended), outcome.decode(), error.decode())
