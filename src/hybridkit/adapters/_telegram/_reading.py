"""Reading what Telegram delivers, one update at a time: one that can't be read must not take the others with it.

A library knows the Bot API of the day it was released. Asked for a list of its own `Update`s, it refuses the whole
answer for one message of a later kind, and is given the same answer again, for ever.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

from aiogram import Bot
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.methods import TelegramMethod
from aiogram.types import Update

__all__ = ["AskForUpdates", "chat_of", "id_of", "read_update", "type_of"]

UNKNOWN: Final = "unknown"
_TYPES: Final = frozenset(Update.model_fields) - {"update_id"}
_TYPE_SYNTAX: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class AskForUpdates(TelegramMethod[Any]):
    """As aiogram's `GetUpdates`, but the answer stays JSON."""

    __returning__: ClassVar[Any] = Any
    __api_method__: ClassVar[str] = "getUpdates"

    offset: int | None
    timeout: int
    allowed_updates: list[str]


def id_of(raw: object) -> int | None:
    """The number of an update; None for something that isn't one."""
    update_id = cast("Mapping[str, object]", raw).get("update_id") if isinstance(raw, Mapping) else None
    if not isinstance(update_id, int) or isinstance(update_id, bool):
        return None
    # A negative one would make an offset that has another meaning: forget all but the last ones.
    return update_id if update_id >= 0 else None


def type_of(raw: object) -> tuple[str, bool]:
    """What kind of update it says to be, and whether the library knows that kind."""
    names = list(cast("Mapping[str, Any]", raw)) if isinstance(raw, Mapping) else []
    known = next((name for name in names if name in _TYPES), None)
    if known is not None:
        return known, True
    named = (name for name in names if name != "update_id" and _TYPE_SYNTAX.fullmatch(str(name)))
    return next(named, UNKNOWN), False


def read_update(raw: object, bot: Bot) -> Update | None:
    """The update; None when this library can't read it."""
    if not type_of(raw)[1]:
        return None
    try:
        update = Update.model_validate(raw, context={"bot": bot})
        _ = update.event_type  # a kind that is named and null has none
    except Exception:  # noqa: BLE001  # the validators of a hundred models: whatever they raise, it can't be read
        return None
    return update


def chat_of(update: Update) -> object:
    """What updates that follow each other have in common: their chat, or the user; None where they have neither."""
    context = UserContextMiddleware.resolve_event_context(update)
    return context.chat_id or context.user_id
