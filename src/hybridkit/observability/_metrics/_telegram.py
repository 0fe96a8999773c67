"""Telegram."""

from hybridkit.observability._metrics._declare import WORK_SECONDS, counter, gauge, histogram


class TelegramMetrics:
    """Updates of a bot."""

    bot_update_duration = histogram(
        "hybridkit_bot_update_duration_seconds",
        "Time in the handlers of a Telegram update.",
        ("update_type", "outcome"),
        buckets=WORK_SECONDS,
    )
    bot_update_retries = counter(
        "hybridkit_bot_update_retries_total",
        "Handlers of Telegram updates that will run again, because what they met was temporary.",
        ("update_type",),
    )
    bot_updates_skipped = counter(
        "hybridkit_bot_updates_skipped_total",
        "Telegram updates that could not be read; usually the library is older than the Bot API.",
        ("update_type",),
    )
    bot_chat_wait = histogram(
        "hybridkit_bot_chat_wait_seconds",
        "Time for which a Telegram update has waited for another replica to finish its chat's previous one.",
        buckets=WORK_SECONDS,
    )
    bot_chat_takeovers = counter(
        "hybridkit_bot_chat_takeovers_total",
        "Chats that were taken over from a replica which had died or frozen.",
    )
    bot_webhook_requests = counter(
        "hybridkit_bot_webhook_requests_total",
        "Requests to the webhook.",
        ("outcome",),
    )
    bot_webhook_backlog = gauge(
        "hybridkit_bot_webhook_backlog_messages",
        "Updates that wait at Telegram for the webhook; Telegram is asked once a minute.",
        workers="livemax",
    )
    bot_message_duration = histogram(
        "hybridkit_bot_message_duration_seconds",
        "Time from the call that sends a message to Telegram's answer, waiting for Telegram's limits included.",
        buckets=WORK_SECONDS,
    )
    bot_messages_waiting = gauge(
        "hybridkit_bot_waiting_messages",
        "Messages that wait for their chat's turn, Telegram's limits, or Telegram's answer.",
        workers="livesum",
    )
    bot_messages_refused = counter(
        "hybridkit_bot_messages_refused_total",
        "Messages that Telegram refused with 429, as too many.",
    )
    bot_chats_blocked = counter(
        "hybridkit_bot_blocked_messages_total",
        "Messages to a chat that has blocked the bot.",
    )
