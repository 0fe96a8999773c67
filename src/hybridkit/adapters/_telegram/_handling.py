"""The handling of one update: once, in its own context, with retries, and with an answer when it is given up."""

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final, cast

from aiogram import Bot, Dispatcher
from aiogram.dispatcher.event.bases import UNHANDLED, CancelHandler, SkipHandler
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.methods import TelegramMethod
from aiogram.types import ErrorEvent, TelegramObject, Update

from hybridkit._tasks import TaskSet, is_set_within, run_isolated
from hybridkit.adapters._telegram._chat_turns import ChatTurns
from hybridkit.adapters._telegram._failures import answer_failure, is_temporary
from hybridkit.adapters._telegram._reading import chat_of
from hybridkit.adapters._telegram._sender import BotBlockedError
from hybridkit.adapters.localization import Localization
from hybridkit.context import RequestContext, bind, current
from hybridkit.errors import ClaimLostError, LockLostError, UnavailableError
from hybridkit.idempotency import Acquired, Completed, IdempotencyGuard, InProgress, Outcome, claim_key
from hybridkit.messaging._consuming._isolation import HandlerLock
from hybridkit.observability import exemplar, get_logger, metrics, report_error, root_span
from hybridkit.retry import Retry, RetryAfter

HANDLER_SECONDS: Final = 300.0
"""The default time limit of an update's handlers; the chat's next update waits for them."""

RETRY: Final = Retry.exponential(first_seconds=0.5, cap_seconds=10.0, attempts=8)
"""Retries for about half a minute, which is a restart's time, and a user's patience."""

LONGEST_PAUSE_SECONDS: Final = 300.0
"""The longest `retry_after` that an update waits for; with a longer one it is given up, as its user is gone by then."""

CANCELLED_SECONDS: Final = 5.0
"""How long a cancelled handler may take to end before its chat goes on without it."""

MAX_SHARED_TAKEOVERS: Final = 1
"""An update with more takeovers runs alone, as in a consumer: if it kills the process, no others are affected."""
ALONE_SECONDS: Final = 5.0
"""How long such an update waits for others, and they for it; some handlers never end."""

CLAIM_WAIT_SECONDS: Final = 5.0
REDIS_PAUSE_SECONDS: Final = 0.5

_WITHOUT_ANSWER: Final = frozenset({"done", "unhandled", "blocked"})
"""The outcomes after which nobody waits for the answer to a failure."""

_log = get_logger("hybridkit.bot")


class _TooLongError(Exception):
    """The handlers did not end within their time limit."""


class _OwnCancellationError(Exception):
    """The handlers were cancelled by themselves or by what they waited for."""


_will_retry: ContextVar[bool] = ContextVar("hybridkit_bot_comes_again", default=False)
"""Whether the current update would be retried."""


class UpdateRunner:
    """Runs the handlers of each update once, in a context of its own.

    Args:
        dispatcher: the dispatcher with the handlers.
        bot: the bot that has received the updates.
        guard: knows which updates have run.
        turns: knows which replica handles a chat.
        failure_texts: the answers to users whose update is given up, by language.
        handler_seconds: the time limit of an update's handlers.
        retry: the policy for temporary errors.
        localization: the languages for users; by default hybridkit's own.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        bot: Bot,
        guard: IdempotencyGuard,
        turns: ChatTurns,
        *,
        failure_texts: Mapping[str, str],
        handler_seconds: float = HANDLER_SECONDS,
        retry: Retry = RETRY,
        localization: Localization | None = None,
    ) -> None:
        self.types = dispatcher.resolve_used_update_types()
        self._dispatcher = dispatcher
        self._bot = bot
        self._guard = guard
        self._turns = turns
        self._failure_texts = failure_texts
        self._handler_seconds = handler_seconds
        self._retry = retry
        self._localization = localization or Localization()
        self._abandoned = TaskSet()

    def __repr__(self) -> str:
        return f"UpdateRunner({self.types}, handler_seconds={self._handler_seconds})"

    async def run(self, update: Update, stopping: asyncio.Event, *, turn_seconds: float = math.inf) -> bool:
        """Handle an update, and return False when it was not, so that it has to be delivered again.

        Only cancellation is raised: an update that is given up is logged, answered and finished.

        Args:
            update: the update.
            stopping: set at the stop, which comes before updates that have not begun or wait for a retry.
            turn_seconds: how long to wait for another replica that handles the update's chat.
        """
        started = time.perf_counter()
        user = UserContextMiddleware.resolve_event_context(update).user
        speaking = self._localization.speaking(None if user is None else user.language_code)
        with bind(RequestContext()), speaking, _span_of(update):
            outcome = await self._run_in_turn(update, stopping, turn_seconds)
            if outcome is None:
                return False
            seconds = time.perf_counter() - started
            metrics.bot_update_duration.labels(update.event_type, outcome).observe(seconds, exemplar())
            _log.info(
                f"update {update.event_type} {outcome}",
                **{"telegram.update_id": update.update_id, "duration_ms": round(seconds * 1000, 1)},
            )
            return True

    async def _run_in_turn(self, update: Update, stopping: asyncio.Event, turn_seconds: float) -> str | None:
        """Handle an update while no replica handles another one of its chat, retries included."""
        chat = chat_of(update)
        if chat is None:
            return await self._claim_and_run(update, stopping)
        while not stopping.is_set():
            turn = self._turns.hold(
                self._bot.id, chat, update_id=update.update_id, stopping=stopping, wait_seconds=turn_seconds
            )
            try:
                async with turn as is_held:
                    return await self._claim_and_run(update, stopping) if is_held else None
            except LockLostError as lost:
                _log.warning("another replica has the chat now", reason=str(lost))
            except UnavailableError as error:
                _log.warning("an update waits for Redis", reason=str(error))
                await is_set_within(stopping, seconds=REDIS_PAUSE_SECONDS)
        return None

    async def _claim_and_run(self, update: Update, stopping: asyncio.Event) -> str | None:
        most_takeovers: float = MAX_SHARED_TAKEOVERS
        while not stopping.is_set():
            async with self._turn(alone=most_takeovers == math.inf):
                acquired = await self._claim(update.update_id)
                if acquired is None:
                    return "duplicate"
                if not isinstance(acquired, Acquired):
                    continue
                if acquired.takeovers > most_takeovers:
                    _log.warning("an update runs alone", reason="processes have died while they had it")
                    await self._guard.finish(acquired, Outcome.RELEASED)
                    most_takeovers = math.inf
                    continue
                try:
                    return await self._run_claimed(acquired, update, stopping)
                except ClaimLostError as lost:
                    _log.warning("an update has another holder now", reason=str(lost))
        return None

    async def _run_claimed(self, acquired: Acquired, update: Update, stopping: asyncio.Event) -> str | None:
        """Handle an update under a claim, and return its outcome, or None when the stop came first."""
        recorded = Outcome.RELEASED
        try:
            async with self._guard.hold(acquired):
                outcome = await self._run_with_retries(update, stopping)
            if outcome is not None:
                recorded = Outcome.COMPLETED if outcome in _WITHOUT_ANSWER else Outcome.FAILED
        finally:
            await self._guard.finish(acquired, recorded)
        if recorded is Outcome.FAILED:
            await answer_failure(self._bot, update, self._failure_texts, request_id=current().request_id)
        return outcome

    @asynccontextmanager
    async def _turn(self, *, alone: bool) -> AsyncGenerator[None]:
        """Run the block beside other handlers, or alone as far as others end in time."""
        lock = HandlerLock.of_loop()
        if alone:
            async with lock.exclusive(wait_seconds=ALONE_SECONDS, max_hold_seconds=ALONE_SECONDS):
                yield
            return
        await lock.acquire_shared()
        try:
            yield
        finally:
            lock.release_shared()

    async def _claim(self, update_id: int) -> Acquired | InProgress | UnavailableError | None:
        """Return the claim of an update, None when it has run, or another value when it has to be tried again."""
        key = claim_key("telegram", str(self._bot.id), update_id)
        try:
            answer = await self._guard.begin(key, update_id, wait_seconds=CLAIM_WAIT_SECONDS)
        except UnavailableError as error:
            _log.warning("an update waits for Redis", reason=str(error))
            await asyncio.sleep(REDIS_PAUSE_SECONDS)
            return error
        match answer:
            case Acquired() | InProgress():
                return answer
            case Completed():
                return None
            case refused:
                _log.warning("an update is not run again", reason=type(refused).__name__)
                return None

    async def _run_with_retries(self, update: Update, stopping: asyncio.Event) -> str | None:
        """Return `done`, `unhandled`, `blocked` or why the update was given up, or None when the stop came first."""
        number = 0
        while True:
            number += 1
            is_last = number >= self._retry.attempts
            ended = await self._attempt(update, is_last=is_last)
            if isinstance(ended, bool):
                return "done" if ended else "unhandled"
            if isinstance(ended, BotBlockedError) and ended.chat_id == chat_of(update):
                return "blocked"
            seconds = None if is_last else self._pause_seconds(ended, number)
            if seconds is None:
                _log.exception("an update's handler failed", exc_info=ended)
                report_error(ended)
                return _why_given_up(ended)
            metrics.bot_update_retries.labels(update.event_type).inc()
            _log.warning(
                "an update is handled again later",
                error=type(ended).__name__,
                attempt=number,
                in_seconds=round(seconds, 1),
            )
            if await is_set_within(stopping, seconds=seconds):
                return None

    def _pause_seconds(self, error: BaseException, number: int) -> float | None:
        if not is_temporary(error):
            return None
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 # nosec B311  # spreads the load, no secret
        decision = self._retry.decide(error, attempt=number, jitter=jitter)
        if not isinstance(decision, RetryAfter) or decision.seconds > LONGEST_PAUSE_SECONDS:
            return None
        return decision.seconds

    async def _attempt(self, update: Update, *, is_last: bool) -> bool | BaseException:
        """Return whether the update has a handler, or the error that its handlers raised."""
        handled = False

        async def feed() -> None:
            nonlocal handled
            handled = await self._feed(update)

        token = _will_retry.set(not is_last)
        try:
            # In a task of its own: a handler that cancels its task ends neither this one nor its chat.
            running = asyncio.create_task(run_isolated(feed(), name=f"hybridkit handlers {update.update_id}"))
        finally:
            _will_retry.reset(token)
        if not await self._has_ended(running):
            return _TooLongError(f"not ended within {self._handler_seconds:g} s")
        match running.result():
            case None:
                return handled
            case SkipHandler() | CancelHandler():
                return False
            case asyncio.CancelledError():
                return _OwnCancellationError("cancelled by itself or by what it waited for")
            case error:
                return error

    async def _has_ended(self, running: "asyncio.Task[Any]") -> bool:
        """Return whether the handlers end within their time limit; cancel them otherwise."""
        try:
            if (await asyncio.wait({running}, timeout=self._handler_seconds))[0]:
                return True
            running.cancel()
            if not (await asyncio.wait({running}, timeout=CANCELLED_SECONDS))[0]:
                _log.error("a handler does not let itself be cancelled, and its chat goes on without it")
                self._abandoned.keep(running)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait({running}, timeout=CANCELLED_SECONDS)
            if running.done() and not running.cancelled() and running.result() is None:
                return True  # it has ended already, and must not run again
            raise
        return False

    async def _feed(self, update: Update) -> bool:
        result = await self._dispatcher.feed_update(self._bot, update)
        if isinstance(
            result, TelegramMethod
        ):  # the handler has returned a method: `return message.answer(…)`
            await self._bot(cast("TelegramMethod[Any]", result))
        return result is not UNHANDLED


def _span_of(update: Update) -> AbstractContextManager[object]:
    attributes: dict[str, str | int] = {
        "telegram.update.id": update.update_id,
        "telegram.update.type": update.event_type,
    }
    return root_span(f"update {update.event_type}", kind="consumer", attributes=attributes)


def _why_given_up(error: BaseException) -> str:
    if isinstance(error, _TooLongError):
        return "too_long"
    return "given_up" if is_temporary(error) else "error"


class TemporaryErrors:
    """Hides temporary errors from the error handlers until the last attempt, so that they are retried."""

    @contextmanager
    def around(self, dispatcher: Dispatcher) -> Generator[None]:
        """Register with a dispatcher inside the block."""
        dispatcher.errors.outer_middleware.register(self)
        try:
            yield
        finally:
            dispatcher.errors.outer_middleware.unregister(self)

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        if _will_retry.get() and isinstance(event, ErrorEvent) and is_temporary(event.exception):
            raise event.exception
        return await handler(event, data)
