"""Updates by webhook: each request is answered when its handlers are through, so Telegram repeats what failed."""

import asyncio
from contextlib import AsyncExitStack
from typing import Final, Self

from aiogram import Bot

from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._running_updates import RunningUpdates
from hybridkit.adapters._telegram._webhook_server import ANSWER_SECONDS, WebhookServer
from hybridkit.errors import UnavailableError
from hybridkit.settings import BotSettings

MAX_RUNNING: Final = 1000
"""How many updates may run or wait for their chat before Telegram has to send others again."""

RESPONSE_SECONDS: Final = 1.0
"""How long the responses may take that are written when the handlers have ended."""


class Webhook:
    """Starts the handlers of the updates that Telegram sends.

    An update that Telegram repeats while its handlers still run is not run again: the request waits for them.

    Args:
        bot: the bot.
        updates: runs the handlers.
        settings: say where to listen, and the public URL.
    """

    def __init__(self, bot: Bot, updates: UpdateRunner, settings: BotSettings) -> None:
        self.server = WebhookServer(bot, settings, updates.types, self._accept)
        self._running = RunningUpdates(updates, bot)
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"Webhook({self.server!r}, {self._running!r})"

    async def __aenter__(self) -> Self:
        """Listen and set the webhook; raises as `WebhookServer` does."""
        await self._stack.enter_async_context(self.server)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.stopping.set()
        await self._running.cancel()
        await self._stack.aclose()

    async def until(self, stopped: asyncio.Event) -> None:
        """Wait until an event is set; raises as `WebhookServer.until` does."""
        await self.server.until(stopped)

    async def probe(self) -> None:
        """Check that Telegram sends updates here, that handlers end, and that there is room for more.

        Raises:
            UnavailableError: one of them is not so; the message says which.
        """
        self.server.check()
        self._running.check_progress()
        if len(self._running) >= MAX_RUNNING:
            raise UnavailableError(
                f"{len(self._running)} updates are in hand: Telegram has to send others again"
            )

    async def stop_accepting(self, _: float) -> None:
        """Stop listening. Telegram repeats what has not begun, or waits for a retry."""
        self._running.stopping.set()
        self.server.stop_accepting()

    async def drain(self, seconds: float) -> None:
        """Wait for the handlers and their responses, and cancel those that take too long."""
        await self._running.drain(seconds - RESPONSE_SECONDS)
        await self.server.drain(RESPONSE_SECONDS)

    async def _accept(self, update_id: int, raw: object) -> bool:
        task = self._running.task_of(update_id)
        if task is None:
            if len(self._running) >= MAX_RUNNING:
                return False
            task = self._running.start(update_id, raw)
        # The handlers go on when this request ends before them.
        done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
        return bool(done) and not task.cancelled() and task.result()
