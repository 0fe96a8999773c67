"""The updates that run or wait in this process: those of a chat in order, different chats concurrently."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from aiogram import Bot
from aiogram.types import Update

from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._reading import UNKNOWN, chat_of, id_of, read_update, type_of
from hybridkit.errors import UnavailableError
from hybridkit.observability import get_logger, metrics

STALLED_SECONDS: Final = 30.0
"""How long no handler may end, while many chats wait, before the bot counts as stalled."""

STALLED_CHATS: Final = 10
"""How many chats have to wait for that; fewer may have slow handlers, such as uploads."""

MAX_FAULTS: Final = 5
"""How many unexpected errors outside of its handlers an update may cause before it is dropped."""

CANCEL_SECONDS: Final = 1.0

_log = get_logger("hybridkit.bot")


class RunningUpdates:
    """Starts the handlers of updates, each behind the previous update of its chat.

    Args:
        updates: runs the handlers.
        bot: the bot that has received the updates.

    Attributes:
        stopping: set at the stop: updates that have not begun, or wait for a retry, are not run any more.
    """

    def __init__(self, updates: UpdateRunner, bot: Bot) -> None:
        self.stopping = asyncio.Event()
        self._updates = updates
        self._bot = bot
        self._tasks: dict[int, asyncio.Task[bool]] = {}
        self._last_of_chat: dict[object, asyncio.Task[bool]] = {}
        self._faults: dict[int, int] = {}
        self._progress_at = time.monotonic()

    def __repr__(self) -> str:
        return f"RunningUpdates({len(self)} updates of {len(self._last_of_chat)} chats)"

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def tasks(self) -> Collection[asyncio.Task[bool]]:
        """The tasks of all updates."""
        return self._tasks.values()

    def task_of(self, update_id: int) -> asyncio.Task[bool] | None:
        """Return the task of an update that runs or waits."""
        return self._tasks.get(update_id)

    def start(
        self,
        update_id: int,
        raw: object,
        *,
        around: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]] | None = None,
    ) -> asyncio.Task[bool]:
        """Start an update, and return its task, whose result says whether the update is finished.

        Args:
            update_id: the id of the update, which must not be running.
            raw: the update in the Bot API's form; it is finished at once when the library can't parse it.
            around: is awaited with a function that handles the update, before the chat's next update begins.
        """
        update = read_update(raw, self._bot)
        chat = None if update is None else chat_of(update)
        task = asyncio.create_task(
            self._run(update, self._last_of_chat.get(chat), around), name=f"hybridkit update {update_id}"
        )
        if update is None:
            skip(raw)
        if chat is not None:
            self._last_of_chat[chat] = task
        if not self._tasks:
            self._progress_at = time.monotonic()
        self._tasks[update_id] = task

        def end(ended: asyncio.Task[bool]) -> None:
            del self._tasks[update_id]
            self._progress_at = time.monotonic()
            if self._last_of_chat.get(chat) is ended:
                del self._last_of_chat[chat]

        task.add_done_callback(end)
        return task

    async def handle(self, update: Update, *, turn_seconds: float = math.inf) -> bool:
        """Handle an update now, and return whether it is finished, also after too many unexpected errors.

        Args:
            update: the update.
            turn_seconds: how long to wait for another replica that handles the update's chat.
        """
        try:
            return await self._updates.run(update, self.stopping, turn_seconds=turn_seconds)
        except Exception as error:  # noqa: BLE001  # unexpected, so it may be temporary or not
            faults = self._faults[update.update_id] = self._faults.get(update.update_id, 0) + 1
            _log.exception("an update was not handled", exc_info=error, faults=faults)
            if faults < MAX_FAULTS:
                return False
            del self._faults[update.update_id]
            return True

    def check_progress(self) -> None:
        """Check that handlers end.

        Raises:
            UnavailableError: many chats wait, and no handler has ended for some time.
        """
        stalled_seconds = time.monotonic() - self._progress_at
        if len(self._last_of_chat) >= STALLED_CHATS and stalled_seconds > STALLED_SECONDS:
            raise UnavailableError(
                f"{len(self._last_of_chat)} chats wait, and no handler has ended for {stalled_seconds:.0f} s"
            )

    async def drain(self, seconds: float) -> None:
        """Wait for the handlers, and cancel those that take too long."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=max(seconds - 2 * CANCEL_SECONDS, 0.0))
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel the handlers that run, and wait a moment for their end."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=CANCEL_SECONDS)

    async def _run(
        self,
        update: Update | None,
        before: "asyncio.Task[bool] | None",
        around: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]] | None,
    ) -> bool:
        async def handle() -> bool:
            if before is not None:
                await asyncio.wait({before})
            return update is None or await self.handle(update)

        return await (handle() if around is None else around(handle))


def skip(raw: Any) -> None:
    """Log and count an update that can't be read."""
    update_type, is_known = type_of(raw)
    metrics.bot_updates_skipped.labels(update_type if is_known else UNKNOWN).inc()
    _log.warning(
        "an update can't be read and is skipped: is there a newer aiogram?",
        **{"telegram.update_id": id_of(raw), "telegram.update_type": update_type},
    )
