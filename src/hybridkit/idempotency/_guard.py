"""The guard: a piece of work runs once, however often it is asked for.

`begin` asks for the work, `hold` keeps its lease while it runs, `finish` records how it ended; a consumer uses these
three. `claim` puts them together for everyone else.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, lru_cache, partial, wraps
from typing import Any, Final, get_type_hints

from prometheus_client import Counter
from pydantic import TypeAdapter
from redis.asyncio import Redis

from hybridkit.codec import encode_json, validate_json
from hybridkit.coordination._lease import LeaseKeeper
from hybridkit.errors import ClaimLostError, DeclarationError, MisuseError, UnavailableError
from hybridkit.idempotency._answers import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
    RedisDown,
)
from hybridkit.idempotency._attempt import Attempt, error_for, refuse_lost
from hybridkit.idempotency._claimed import Claimed
from hybridkit.idempotency._held import Held, bound_to
from hybridkit.idempotency._keys import check_key, fingerprint
from hybridkit.idempotency._records import COOLDOWN_SECONDS, Records, unavailable
from hybridkit.idempotency._scripts import BEGIN, FINISH, RENEW
from hybridkit.idempotency._unsettled import Unsettled
from hybridkit.observability import metrics

__all__ = ["MAX_RESULT_BYTES", "IdempotencyGuard"]

MAX_RESULT_BYTES: Final = 32 * 1024
"""The largest result that is kept; without it, the record only says that the work is done."""

_POLL_SECONDS: Final = 0.05
_FINISHES: Final = {finish.value.encode(): finish for finish in Finish}
_OUTCOMES: Final = {
    InProgress: "in_progress",
    Completed: "completed",
    Failed: "failed",
    Mismatch: "mismatch",
    Exhausted: "exhausted",
}


class IdempotencyGuard:
    """One record per key in Redis: it has the holder and the end of its lease, or the outcome.

    The guarantee: effectively once for writes through a data service; at least once for everything else (a mail sent
    just before a crash may be sent again).

    Args:
        redis: a client from `connect_redis`; the guard doesn't close it.
        when_down: the behaviour while Redis doesn't answer.
        lease_seconds: how long a holder may go without renewing before another takes over.
        retention_seconds: how long an outcome is remembered. It has to be longer than the work can come back: at
            least twice the retry policy's total delay.
        max_takeovers: how many holders may die before the work is given up.
        key_prefix: the prefix of every key in Redis.

    Raises:
        DeclarationError: the lease is not shorter than the retention, or a number is out of its range.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        when_down: RedisDown = RedisDown.DURABLE,
        lease_seconds: float = 30.0,
        retention_seconds: float = 86_400.0,
        max_takeovers: int = 5,
        key_prefix: str = "hk:claim:",
    ) -> None:
        if not 0 < lease_seconds < retention_seconds:
            raise DeclarationError(
                f"0 < lease_seconds < retention_seconds must hold, not {lease_seconds} and {retention_seconds}"
            )
        if max_takeovers < 0:
            raise DeclarationError(f"max_takeovers must not be negative, as {max_takeovers} is")
        self._when_down = when_down
        self._lease_ms = max(round(lease_seconds * 1000), 1)
        self._retention_ms = max(round(retention_seconds * 1000), 1)
        self._max_takeovers = max_takeovers
        self._records = Records(redis, key_prefix=key_prefix)
        self._unsettled = Unsettled(self._records)

    # ── for everyone ─────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def claim(self, key: str, payload: Any, *, wait_seconds: float = 0.5) -> AsyncGenerator[Claimed]:
        """Run the block once per key; `done` says that the work was completed before and must not be repeated.

        The block runs with `hybridkit.context` bound to the claim. An error, or a cancellation, releases the key for
        the next try.

        Args:
            key: `context:entity:id`.
            payload: the values that make it the same request: anything with a JSON form, or bytes.
            wait_seconds: how long to wait for another holder.

        Raises:
            InProgressError: another holder still does the work.
            KeyReusedError: the key came back with another payload.
            RejectedError: the work failed for good before, or too many holders died on it.
            ClaimLostError: another holder has taken over; the block was cancelled.
            UnavailableError: Redis is down, and `when_down` refuses.
            MisuseError: the block ended without looking at `done`, although the work was done.
        """
        match await self.begin(key, payload, wait_seconds=wait_seconds):
            case Acquired() as acquired:
                claimed = Claimed(key)
                try:
                    async with self.hold(acquired):
                        yield claimed
                except BaseException:
                    await self._finish(acquired, Outcome.RELEASED)
                    raise
                if await self._finish(acquired, Outcome.COMPLETED, claimed.body) is Finish.LOST:
                    refuse_lost(acquired)
            case Completed(body):
                claimed = Claimed(key, before=Completed(body))
                with bound_to(key):  # whoever forgets to look at `done` still writes the same rows
                    yield claimed
                claimed.check_looked()
            case refused:
                raise error_for(refused)

    def idempotent[**P, T](
        self, *, key: Callable[P, str], payload: Callable[P, Any], wait_seconds: float = 0.5
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Decorate a function with `claim`: a repeated call gets the stored result, read as the annotated return type.

        Args:
            key: makes the key from the function's arguments.
            payload: makes the payload from the function's arguments.
            wait_seconds: how long to wait for another holder.
        """

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
            @wraps(function)
            async def once(*args: P.args, **kwargs: P.kwargs) -> T:
                adapter = _result_adapter(function)
                name = key(*args, **kwargs)
                async with self.claim(name, payload(*args, **kwargs), wait_seconds=wait_seconds) as claim:
                    if claim.done:
                        before: T = _read(claim, adapter)
                        return before
                    result = await function(*args, **kwargs)
                    claim.set_result(result)
                    return result

            return once

        return decorate

    # ── for the HTTP edge ────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def attempt(self) -> AsyncGenerator[Attempt]:
        """Open a block that asks for a key somewhere inside, and may have finished long before it ends.

        The lease is renewed from `Attempt.begin` to `Attempt.finish`, which other tasks may call than the block's.
        Work that was begun and not finished is released at the end.

        Raises:
            ClaimLostError: another holder has taken over, or Redis did not answer for a whole lease, as for `hold`; the
                block was cancelled.
        """
        attempt = Attempt(self)
        try:
            async with self._lease(attempt.renew):
                yield attempt
        finally:
            await attempt.give_back()

    # ── for the consumer ─────────────────────────────────────────────────────────────────────────

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        """Ask for the work.

        A caller that is cancelled while it asks leaves nothing behind: what it got is released.

        Args:
            key: `context:entity:id`; `claim_key` makes one from parts that others choose.
            payload: the values that make it the same work; for an event its type, version and data, without timestamp
                and request id.
            wait_seconds: how long to wait for another holder before answering `InProgress`.

        Raises:
            UnavailableError: Redis is down, and `when_down` refuses.
            ValueError: the key has another form.
            MalformedPayloadError: the payload has no JSON form.
        """
        check_key(key)
        printed = fingerprint(payload)
        # Reseeded in each forked process, and no secret: whoever can write to Redis needs no token.
        token = f"{random.getrandbits(96):024x}"
        asked_at = time.monotonic()
        give_up_at = asked_at + wait_seconds
        while True:
            answer = await self._ask_to_begin(key, token, printed, asked_at)
            if not isinstance(answer, InProgress) or (asked_at := time.monotonic()) >= give_up_at:
                _counter(key.partition(":")[0], _outcome_name(answer)).inc()
                return answer
            pause_seconds = _POLL_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - spreads the waiting, no secret
            await asyncio.sleep(min(pause_seconds, give_up_at - asked_at))
            asked_at = time.monotonic()

    def hold(self, acquired: Acquired, *, bound: bool = True) -> AbstractAsyncContextManager[None]:
        """Run the block as the holder: the context carries the claim, and the lease is renewed every third of it.

        Doesn't finish: call `finish` after the block.

        Args:
            acquired: the answer of `begin`.
            bound: whether to bind the context; False where the block binds one of its own.

        Raises:
            ClaimLostError: another holder has taken over, or (unless `RedisDown.DURABLE`) Redis did not answer for a
                whole lease; the block was cancelled.
        """
        lease = self._lease(partial(self.renew, acquired), since=acquired.asked_at)
        return Held(lease, acquired.key if bound else None)

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        """Record how the work ended. Redis being down is an answer here, not an error: see `Finish.UNRECORDED`.

        An outcome that Redis doesn't confirm is sent again until it does, as long as this process lives. It is recorded
        even when the caller is cancelled meanwhile.

        Args:
            acquired: the answer of `begin`.
            outcome: completed, failed for good, released for another try, or forgotten.
            result: anything with a JSON form, kept up to 32 KiB; not for a release.

        Raises:
            MalformedPayloadError: the result has no JSON form; nothing was recorded.
        """
        body = None
        if outcome in (Outcome.COMPLETED, Outcome.FAILED):
            body = b"null" if result is None else encode_json(result)
        return await self._finish(acquired, outcome, body)

    async def renew(self, acquired: Acquired) -> bool:
        """Extend the lease from now, and return False when another holder has it. `hold` does it by itself.

        Raises:
            UnavailableError: Redis did not answer.
        """
        answer = await self._records.ask(
            RENEW,
            acquired.key,
            acquired.token,
            self._lease_ms,
            self._retention_ms,
            acquired.fingerprint,
            max(acquired.fence, 1),
        )
        return bool(answer != b"LOST")

    def __repr__(self) -> str:
        return (
            f"IdempotencyGuard(when_down={self._when_down.value!r}, lease_seconds={self._lease_ms / 1000},"
            f" retention_seconds={self._retention_ms / 1000}, records={self._records!r})"
        )

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    async def _ask_to_begin(self, key: str, token: str, printed: str, asked_at: float) -> Begin:
        is_strict = self._when_down is RedisDown.STRICT
        if self._records.are_away and not is_strict:
            return self._without_redis(key, token, printed)
        try:
            reply = await self._records.start(
                BEGIN,
                key,
                token,
                printed,
                self._lease_ms,
                self._retention_ms,
                self._max_takeovers,
                even_if_away=is_strict,
            )
        except UnavailableError as error:
            if self._when_down is not RedisDown.DURABLE:
                # The script may have run, and its answer be lost: the key would belong to a caller that is refused.
                self._forget(key, token, printed)
            return self._without_redis(key, token, printed, unavailable(error))
        except asyncio.CancelledError:
            # Here too, the script runs or has run. Redis gets the commands in their order.
            self._forget(key, token, printed)
            raise
        match reply:
            case [b"ACQUIRED" | b"TAKEN_OVER" as how, fence, takeovers]:
                return Acquired(key, token, fence, how == b"TAKEN_OVER", True, printed, takeovers, asked_at)
            case [b"IN_PROGRESS", left_ms]:
                return InProgress(left_ms)
            case [b"COMPLETED", body]:
                return Completed(body)
            case [b"FAILED", body]:
                return Failed(body)
            case [b"MISMATCH"]:
                return Mismatch()
            case _:
                return Exhausted()

    def _without_redis(
        self, key: str, token: str, printed: str, error: UnavailableError | None = None
    ) -> Acquired:
        if self._when_down is RedisDown.DURABLE:
            return Acquired(
                key=key, token=token, fence=0, taken_over=False, guarded=False, fingerprint=printed
            )
        _counter(key.partition(":")[0], "unavailable").inc()
        raise error or UnavailableError(
            "the idempotency guard refuses work: Redis did not answer a moment ago",
            retry_after_seconds=COOLDOWN_SECONDS,
        )

    def _forget(self, key: str, token: str, printed: str) -> None:
        self._unsettled.add(key, token, Outcome.FORGOTTEN.value, self._retention_ms, printed, 1)

    async def _finish(self, acquired: Acquired, outcome: Outcome, body: bytes | None = None) -> Finish:
        kept = () if body is None or len(body) > MAX_RESULT_BYTES else (body,)
        fence = acquired.fence or 1
        arguments = (acquired.token, outcome.value, self._retention_ms, acquired.fingerprint, fence, *kept)
        try:
            # Where only the record stands between a mail and its twin, it is worth a timeout to write it. A durable
            # guard doesn't make the caller wait for a Redis that is away: the writes are protected by derived keys.
            is_patient = self._when_down is not RedisDown.DURABLE
            answer = await self._records.start(FINISH, acquired.key, *arguments, even_if_away=is_patient)
        except UnavailableError as error:
            unavailable(error)
            self._unsettled.add(acquired.key, *arguments)
            return Finish.UNRECORDED
        except asyncio.CancelledError:  # the answer is not known; a second one changes nothing
            self._unsettled.add(acquired.key, *arguments)
            raise
        return _FINISHES[answer]

    def _lease(self, renew: Callable[[], Awaitable[bool]], *, since: float | None = None) -> LeaseKeeper:
        return LeaseKeeper(
            renew,
            since=since,
            lease_seconds=self._lease_ms / 1000,
            may_outlive=self._when_down is RedisDown.DURABLE,
            error_of_loss=lambda reason: ClaimLostError(f"the claim is lost: {reason}"),
        )


@cache
def _counter(scope: str, outcome: str) -> Counter:
    return metrics.idempotency_outcomes.labels(scope, outcome)


def _outcome_name(answer: Begin) -> str:
    if isinstance(answer, Acquired):
        if not answer.guarded:
            return "unguarded"
        return "taken_over" if answer.taken_over else "acquired"
    return _OUTCOMES[type(answer)]


@lru_cache
def _result_adapter(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(function).get("return", Any))


def _read(claim: Claimed, adapter: TypeAdapter[Any]) -> Any:
    if claim.body is None:
        raise MisuseError(
            f"it was completed before, but its result had more than {MAX_RESULT_BYTES} bytes and was not kept:"
            " return less, or use claim() and read the result again"
        )
    return validate_json(adapter, claim.body, what="the stored result")
