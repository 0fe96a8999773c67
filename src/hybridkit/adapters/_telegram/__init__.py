"""Updates of Telegram: polling, parsing, handling and retries."""
