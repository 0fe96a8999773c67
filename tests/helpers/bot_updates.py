"""One update of each type that Telegram has, in the Bot API's JSON form, and what it is handled in order with."""

from typing import Any

from aiogram import Dispatcher
from aiogram.types import TelegramObject

CHAT, USER = -100, 7

_chat: dict[str, Any] = {"id": CHAT, "type": "supergroup", "title": "Readers"}
_channel: dict[str, Any] = {"id": CHAT, "type": "channel", "title": "News"}
_user: dict[str, Any] = {"id": USER, "is_bot": False, "first_name": "Ada"}
_message: dict[str, Any] = {"message_id": 1, "date": 1, "chat": _chat, "from": _user, "text": "hello"}
_post: dict[str, Any] = {"message_id": 1, "date": 1, "chat": _channel, "text": "news"}
_member: dict[str, Any] = {"status": "member", "user": _user}
_left: dict[str, Any] = {"status": "left", "user": _user}
_member_change: dict[str, Any] = {
    "chat": _chat,
    "from": _user,
    "date": 1,
    "old_chat_member": _left,
    "new_chat_member": _member,
}
_premium: dict[str, Any] = {"source": "premium", "user": _user}
_address = {
    "country_code": "GE",
    "state": "",
    "city": "Tbilisi",
    "street_line1": "Rustaveli 1",
    "street_line2": "",
    "post_code": "0108",
}

UPDATES: dict[str, tuple[dict[str, Any], object]] = {
    "message": (_message, CHAT),
    "edited_message": (_message | {"edit_date": 2}, CHAT),
    "channel_post": (_post, CHAT),
    "edited_channel_post": (_post | {"edit_date": 2}, CHAT),
    "business_connection": (
        {"id": "b1", "user": _user, "user_chat_id": USER, "date": 1, "is_enabled": True},
        USER,
    ),
    "business_message": (_message | {"business_connection_id": "b1"}, CHAT),
    "edited_business_message": (_message | {"business_connection_id": "b1", "edit_date": 2}, CHAT),
    "deleted_business_messages": (
        {"business_connection_id": "b1", "chat": _chat, "message_ids": [1, 2]},
        CHAT,
    ),
    "guest_message": (_message, CHAT),
    "message_reaction": (
        {
            "chat": _chat,
            "message_id": 1,
            "user": _user,
            "date": 1,
            "old_reaction": [],
            "new_reaction": [{"type": "emoji", "emoji": "👍"}],
        },
        CHAT,
    ),
    "message_reaction_count": (
        {
            "chat": _channel,
            "message_id": 1,
            "date": 1,
            "reactions": [{"type": {"type": "emoji", "emoji": "👍"}, "total_count": 3}],
        },
        CHAT,
    ),
    "inline_query": ({"id": "1", "from": _user, "query": "book", "offset": ""}, USER),
    "chosen_inline_result": ({"result_id": "1", "from": _user, "query": "book"}, USER),
    "callback_query": (
        {"id": "1", "from": _user, "chat_instance": "1", "data": "yes", "message": _message},
        CHAT,
    ),
    "shipping_query": (
        {"id": "1", "from": _user, "invoice_payload": "order 1", "shipping_address": _address},
        USER,
    ),
    "pre_checkout_query": (
        {"id": "1", "from": _user, "currency": "GEL", "total_amount": 100, "invoice_payload": "order 1"},
        USER,
    ),
    "purchased_paid_media": ({"from": _user, "paid_media_payload": "picture 1"}, USER),
    "poll": (
        {
            "id": "p1",
            "question": "When?",
            "options": [{"text": "now", "voter_count": 1, "persistent_id": "o1"}],
            "total_voter_count": 1,
            "is_closed": False,
            "is_anonymous": True,
            "type": "regular",
            "allows_multiple_answers": False,
            "allows_revoting": True,
            "members_only": False,
        },
        "poll p1",
    ),
    "poll_answer": (
        {"poll_id": "p1", "user": _user, "option_ids": [0], "option_persistent_ids": ["o1"]},
        USER,
    ),
    "my_chat_member": (_member_change, CHAT),
    "chat_member": (_member_change, CHAT),
    "chat_join_request": ({"chat": _chat, "from": _user, "user_chat_id": USER, "date": 1}, CHAT),
    "chat_boost": (
        {
            "chat": _channel,
            "boost": {"boost_id": "1", "add_date": 1, "expiration_date": 2, "source": _premium},
        },
        CHAT,
    ),
    "removed_chat_boost": (
        {"chat": _channel, "boost_id": "1", "remove_date": 2, "source": _premium},
        CHAT,
    ),
    "managed_bot": ({"user": _user, "bot": {"id": 9, "is_bot": True, "first_name": "Theirs"}}, USER),
    "subscription": ({"user": _user, "invoice_payload": "order 1", "state": "active"}, USER),
    "stopped_message_generation": ({"chat": _chat, "draft_id": 1}, CHAT),
}
"""By type: the update without its id, and its key."""


def noting_dispatcher(seen: list[str]) -> Dispatcher:
    """Return a dispatcher with a handler for each type, which notes the type."""
    made = Dispatcher()
    for name in UPDATES:

        async def note(_: TelegramObject, name: str = name) -> None:
            seen.append(name)

        made.observers[name].register(note)
    return made
