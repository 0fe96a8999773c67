"""Updates of Telegram: polled, read, handled, and tried again."""
