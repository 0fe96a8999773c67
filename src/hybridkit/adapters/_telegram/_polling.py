"""The polling of updates: each is forgotten only after its handler, and none blocks the others.

Telegram delivers the oldest hundred unconfirmed updates, and confirms all updates up to an offset at once. So one
handler that does not end would block the confirmation of everything behind it and, after a hundred updates, their
delivery. Before that, running updates are stored on a shelf in Redis, and Telegram may forget them. After a crash the
next process takes them from there.

The updates of a chat are handled in order.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Self

from aiogram import Bot
from aiogram.exceptions import AiogramError, TelegramUnauthorizedError

from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._reading import ask_for_updates, id_of, token_error
from hybridkit.adapters._telegram._running_updates import RunningUpdates, skip
from hybridkit.adapters._telegram._updates import UpdateLog
from hybridkit.coordination import Redis, Shelf
from hybridkit.errors import HybridkitError, UnavailableError
from hybridkit.observability import get_logger
from hybridkit.retry import UNLIMITED, Retry, asked_seconds

POLL_SECONDS: Final = 25
"""How long Telegram may wait for an update before it answers a call."""

BUSY_POLL_SECONDS: Final = 0.5
"""The interval of calls while handlers run: Telegram answers at once with their updates, which are unconfirmed."""

FULL_ANSWER: Final = 100
"""The most updates that Telegram delivers at once."""

MAX_UNCONFIRMED: Final = FULL_ANSWER // 2
"""How many updates may be unconfirmed before those that run are put on the shelf."""

MAX_RUNNING: Final = 1000
"""How many updates may run or wait for their chat before polling stops."""

SHELF_SECONDS: Final = 86_400
"""As long as Telegram keeps an update, and the guard its record of it."""

SHELF_CHECK_SECONDS: Final = 30.0
"""The interval of checks for updates that another process has left on the shelf."""

_BACKOFF: Final = Retry.exponential(first_seconds=0.5, cap_seconds=10.0, attempts=UNLIMITED)

_log = get_logger("hybridkit.bot")


class Polling:
    """Polls for updates, starts their handlers, and confirms those that have finished.

    Args:
        bot: the bot to poll with.
        updates: runs the handlers.
        redis: stores the updates that Telegram may forget while they run.
    """

    def __init__(self, bot: Bot, updates: UpdateRunner, redis: Redis) -> None:
        self._bot = bot
        self._updates = updates
        self._shelf = Shelf(redis, key=f"hk:bot:{bot.id}:updates", retention_seconds=SHELF_SECONDS)
        self._shelf_check_at = 0.0
        self._seen = UpdateLog()
        self._running = RunningUpdates(updates, bot)
        self._raw: dict[int, object] = {}
        self._without_id: list[object] = []
        self._leaving: set[int] = set()
        self._removing: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None]
        self._problem = ""

    def __repr__(self) -> str:
        return f"Polling({self._seen!r}, problem={self._problem!r})"

    async def __aenter__(self) -> Self:
        await self._take_from_shelf()  # first, as these are older than Telegram's
        self._polling = asyncio.create_task(self._poll(), name="hybridkit updates")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_accepting(0.0)
        await self._running.cancel()

    async def until(self, stopped: asyncio.Event) -> None:
        """Wait until an event is set.

        Raises:
            AccessDeniedError: Telegram does not accept the token any more.
        """
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({waiting, self._polling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stopped.is_set():
            await self._polling

    async def probe(self) -> None:
        """Check that Telegram has answered the last call, and that handlers end.

        Raises:
            UnavailableError: one of them is not so; the message says which.
        """
        if self._polling.done():
            raise UnavailableError("Telegram gives no updates: nobody asks any more")
        if self._problem:
            raise UnavailableError(f"Telegram gives no updates: {self._problem}")
        self._running.check_progress()

    async def stop_accepting(self, _: float) -> None:
        """Stop polling. Updates that have not begun, or wait for a retry, are delivered at the next start."""
        self._running.stopping.set()
        self._polling.cancel()
        await asyncio.wait({self._polling})

    async def drain(self, seconds: float) -> None:
        """Wait for the handlers, cancel those that take too long, and confirm the finished updates."""
        await self._running.drain(seconds)
        if self._seen.offset is not None:
            with suppress(AiogramError):  # they are delivered again, and the guard knows them
                await self._get_updates(timeout_seconds=0)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    async def _poll(self) -> None:
        pauses = _BACKOFF.pauses()
        while True:
            try:
                if time.monotonic() >= self._shelf_check_at:
                    with suppress(UnavailableError):  # next time
                        await self._take_from_shelf()
                await self._make_room()
                answer = await self._get_updates(timeout_seconds=0 if self._seen.unfinished else POLL_SECONDS)
            except TelegramUnauthorizedError:
                raise token_error() from None
            except Exception as error:  # noqa: BLE001  # an odd answer may raise anything, and the next may be good
                self._problem = str(error) if isinstance(error, HybridkitError) else type(error).__name__
                pause_seconds = max(asked_seconds(error), next(pauses))
                _log.warning("no updates", error=self._problem, again_in_seconds=round(pause_seconds, 1))
                await asyncio.sleep(pause_seconds)
                continue
            pauses, self._problem = _BACKOFF.pauses(), ""
            await self._start_handlers(answer)

    async def _get_updates(self, *, timeout_seconds: int) -> Sequence[object]:
        offset = self._seen.offset
        answer = await ask_for_updates(
            self._bot, offset=offset, timeout_seconds=timeout_seconds, types=self._updates.types
        )
        self._seen.confirmed(offset)
        return answer

    async def _start_handlers(self, answer: Sequence[object]) -> None:
        without_id = [raw for raw in answer if id_of(raw) is None]
        is_new = [self._begin(raw) for raw in answer if id_of(raw) is not None]
        for raw in without_id:
            if raw not in self._without_id:
                skip(raw)
                is_new.append(True)
        self._without_id = without_id
        if len(answer) >= FULL_ANSWER and not any(is_new):
            self._problem = f"{len(answer)} wait for their confirmation, and others come after these only"
            _log.warning("the bot stands still", reason=self._problem)
        tasks = map(self._running.task_of, self._seen.unfinished)
        if unfinished := [task for task in tasks if task is not None]:
            await asyncio.wait(unfinished, timeout=BUSY_POLL_SECONDS)
        elif answer and not any(is_new):
            await asyncio.sleep(BUSY_POLL_SECONDS)  # Telegram would answer at once with the same updates

    # ── room for others ──────────────────────────────────────────────────────────────────────────

    async def _make_room(self) -> None:
        if self._seen.unconfirmed_count > MAX_UNCONFIRMED and self._seen.unfinished:
            kept = {update_id: self._raw[update_id] for update_id in self._seen.unfinished}
            await self._shelf.put(kept)
            if finished := self._seen.mark_shelved(kept):
                await self._remove_from_shelf(*finished)
        while len(self._running) >= MAX_RUNNING:
            self._problem = f"{len(self._running)} are in hand, and not one ends"
            await asyncio.wait(self._running.tasks, return_when=asyncio.FIRST_COMPLETED)
            self._problem = ""

    async def _take_from_shelf(self) -> None:
        """Start the updates that a process which has ended has left on the shelf."""
        self._shelf_check_at = time.monotonic() + SHELF_CHECK_SECONDS
        for raw in await self._shelf.values():
            self._begin(raw, shelved=True)

    async def _remove_from_shelf(self, *update_ids: int) -> None:
        """Remove updates, in one command with all others that end meanwhile."""
        self._leaving.update(update_ids)
        if self._removing is None or self._removing.done():
            self._removing = asyncio.create_task(self._remove_leaving(), name="hybridkit shelf")
        await asyncio.shield(self._removing)

    async def _remove_leaving(self) -> None:
        while self._leaving:
            update_ids, self._leaving = self._leaving, set()
            with suppress(UnavailableError):  # it is taken from the shelf again, and the guard knows it
                await self._shelf.take_away(update_ids)

    # ── one update ───────────────────────────────────────────────────────────────────────────────

    def _begin(self, raw: object, *, shelved: bool = False) -> bool:
        update_id = id_of(raw)
        if update_id is None or not self._seen.begin(update_id, shelved=shelved):
            return False
        self._raw[update_id] = raw
        task = self._running.start(update_id, raw, around=partial(self._see_through, update_id))
        task.add_done_callback(lambda _: self._raw.pop(update_id))
        return True

    async def _see_through(self, update_id: int, handle: Callable[[], Awaitable[bool]]) -> bool:
        is_through = False
        try:
            is_through = await handle()
            if is_through and self._seen.is_shelved(update_id):
                await self._remove_from_shelf(update_id)
        finally:
            (self._seen.finish if is_through else self._seen.abandon)(update_id)
        return is_through
