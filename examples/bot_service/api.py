"""The commands that people can send to the bot."""

from aiogram import Dispatcher
from aiogram.filters import CommandStart
from aiogram.types import Message

from examples.bot_service.domain import greeting, language_of
from examples.contracts.users import USERS
from hybridkit.adapters.dependencies import Postgres

__all__ = ["dispatcher"]

dispatcher = Dispatcher()


@dispatcher.message(CommandStart())
async def start(message: Message, postgres: Postgres) -> None:
    """Greet the user by their registered name, or by Telegram's."""
    sender = message.from_user
    if sender is None:
        return  # a channel's post: nobody to greet
    user = await postgres.find(USERS).where(USERS["telegram_id"] == sender.id).first()
    if user is None:
        text = greeting(sender.first_name, language_of(sender.language_code), is_registered=False)
    else:
        text = greeting(user.name, user.language, is_registered=True)
    await message.answer(text)
