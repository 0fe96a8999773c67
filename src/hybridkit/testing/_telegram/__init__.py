"""A fake Telegram: the Bot API for one bot, over real HTTP, controlled by its test."""
