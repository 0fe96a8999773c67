"""Parsing of updates one by one, so that one that can't be parsed does not affect the others.

A library knows the Bot API of the day of its release. If it parsed the whole list, it would refuse all of it for one
message of a later kind, and would be given the same list again forever.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, cast

from aiogram import Bot
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.methods import TelegramMethod
from aiogram.types import Update

from hybridkit.errors import AccessDeniedError, UnavailableError

UNKNOWN: Final = "unknown"
_TYPES: Final = frozenset(Update.model_fields) - {"update_id"}
_TYPE_SYNTAX: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class AskForUpdates(TelegramMethod[Any]):
    """aiogram's `GetUpdates`, with an answer that stays JSON."""

    __returning__: ClassVar[Any] = Any
    __api_method__: ClassVar[str] = "getUpdates"

    offset: int | None
    timeout: int
    allowed_updates: list[str]


async def ask_for_updates(
    bot: Bot, *, offset: int | None, timeout_seconds: int, types: Sequence[str]
) -> list[object]:
    """Ask Telegram for updates, and return them as JSON values.

    Args:
        bot: the bot to ask as.
        offset: confirms all updates below it; None confirms nothing.
        timeout_seconds: how long Telegram may wait for an update.
        types: the types of updates.

    Raises:
        AiogramError: Telegram does not answer, or refuses.
        UnavailableError: the answer is no list.
    """
    ask = AskForUpdates(offset=offset, timeout=timeout_seconds, allowed_updates=list(types))
    # Telegram's own time, and some for the network. Aiogram accepts whole seconds only.
    answer: object = await bot(ask, request_timeout=timeout_seconds + 15)
    if not isinstance(answer, list):
        raise UnavailableError("what Telegram has answered is no list of updates")
    return cast("list[object]", answer)


def id_of(raw: object) -> int | None:
    """Return the id of an update, or None for something without a valid one."""
    update_id = cast("Mapping[str, object]", raw).get("update_id") if isinstance(raw, Mapping) else None
    if not isinstance(update_id, int) or isinstance(update_id, bool):
        return None
    # A negative offset has another meaning: forget all but the last updates.
    return update_id if update_id >= 0 else None


def type_of(raw: object) -> tuple[str, bool]:
    """Return the type that an update claims to have, and whether the library knows it."""
    names = list(cast("Mapping[str, Any]", raw)) if isinstance(raw, Mapping) else []
    known = next((name for name in names if name in _TYPES), None)
    if known is not None:
        return known, True
    named = (name for name in names if name != "update_id" and _TYPE_SYNTAX.fullmatch(str(name)))
    return next(named, UNKNOWN), False


def read_update(raw: object, bot: Bot) -> Update | None:
    """Return the parsed update, or None when the library can't parse it."""
    if not type_of(raw)[1]:
        return None
    try:
        update = Update.model_validate(raw, context={"bot": bot})
        _ = update.event_type  # raises when the member of the type is null
    except Exception:  # noqa: BLE001  # the validators of a hundred models may raise anything
        return None
    return update


def chat_of(update: Update) -> object:
    """Return what updates that are handled in order have in common: their chat, or else the user or poll, or None."""
    context = UserContextMiddleware.resolve_event_context(update)
    key = context.chat_id or context.user_id
    return f"poll {update.poll.id}" if key is None and update.poll is not None else key


def token_error() -> AccessDeniedError:
    """Return the error for a 401 of Telegram's."""
    return AccessDeniedError("Telegram does not know BOT_TOKEN: set the one that @BotFather gave")
