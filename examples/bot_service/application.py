"""The bot's reactions to events."""

from aiogram import Bot

from examples.bot_service.domain import welcome
from examples.contracts.users import USERS, UserCreated
from hybridkit.adapters.dependencies import Postgres
from hybridkit.messaging import RobustConsumer
from hybridkit.observability import get_logger
from hybridkit.retry import Retry

__all__ = ["welcomes"]

log = get_logger(__name__)
welcomes = RobustConsumer("bot_service.welcomes", concurrency=8)


@welcomes.on(UserCreated, retry=Retry.exponential(first_seconds=1, cap_seconds=300, attempts=8))
async def send_welcome(event: UserCreated, postgres: Postgres, bot: Bot) -> None:
    """Welcome a new user who has given their Telegram account."""
    user = await postgres.get(USERS, event.user_id)
    if user.telegram_id is not None:
        await bot.send_message(user.telegram_id, welcome(user.name, user.language))
        log.info("welcome sent", language=user.language)
