"""The Telegram bot, which answers people and welcomes registered users."""

from examples.bot_service.api import dispatcher
from examples.bot_service.application import welcomes
from hybridkit.adapters.aiogram import run_bot
from hybridkit.settings import BotSettings

__all__ = ["Settings", "main"]


class Settings(BotSettings):
    """The settings, read from the environment when the bot starts."""

    service_name: str = "bot_service"


def main() -> None:
    """Poll and consume until SIGTERM."""
    run_bot(dispatcher, Settings, consumers=[welcomes])


if __name__ == "__main__":
    main()
