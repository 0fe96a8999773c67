"""A replica of the bot in the proof of its queues: each update is an entry in a ledger in Redis."""

import asyncio
import os
from typing import Any, cast

from aiogram import Dispatcher
from aiogram.types import Message

from hybridkit.adapters._telegram import _queued_updates
from hybridkit.adapters._telegram._chat_turns import ChatTurns
from hybridkit.adapters.aiogram import run_bot
from hybridkit.adapters.dependencies import Redis
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.settings import BotSettings

DONE = "ledger:done"
RUNS = "ledger:runs"
BY_REPLICA = "ledger:replicas"
CHAT = "ledger:chat:"

# As a data service does it: the write has an identity, and a second one changes nothing.
_BOOK = """
redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
redis.call('HINCRBY', KEYS[3], ARGV[3], 1)
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then
    redis.call('RPUSH', KEYS[4], ARGV[2])
end
return 1
"""

dispatcher = Dispatcher()


@dispatcher.message()
async def book(message: Message, redis: Redis, settings: BotSettings) -> None:
    """Book the message's number in its chat."""
    keys = [DONE, RUNS, BY_REPLICA, f"{CHAT}{message.chat.id}"]
    replica = str(settings.management_port)
    await redis.eval(_BOOK, len(keys), *keys, f"{message.chat.id}:{message.text}", f"{message.text}", replica)
    await asyncio.sleep(0.01)  # the kill strikes here, when the effect is there and the update not done


def main() -> None:
    """Run until SIGTERM; the short form of the proof has shorter leases, so that a death costs less time."""
    lease_seconds = float(os.environ["LEASE_SECONDS"])
    for holder in (ChatTurns, IdempotencyGuard):
        defaults = cast("dict[str, Any]", holder.__init__.__kwdefaults__)
        defaults["lease_seconds"] = lease_seconds
    poller_seconds = min(lease_seconds, _queued_updates.POLLER_LEASE_SECONDS)
    setattr(_queued_updates, "POLLER_LEASE_SECONDS", poller_seconds)  # noqa: B010  # it is final elsewhere
    run_bot(dispatcher, BotSettings)


if __name__ == "__main__":
    main()
