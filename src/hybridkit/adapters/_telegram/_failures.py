"""The failures of handlers: which are temporary, and the answer to a user whose update is given up."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiogram import Bot
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.exceptions import (
    AiogramError,
    TelegramBadRequest,
    TelegramEntityTooLarge,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.types import CallbackQuery, Message, PreCheckoutQuery, ShippingQuery, Update

from hybridkit.coordination import REDIS_IS_AWAY
from hybridkit.coordination._failover import is_refused_for_now
from hybridkit.errors import DeclarationError, HybridkitError, StaleVersionError
from hybridkit.observability import get_logger

FAILURE_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "en": "Sorry, that didn't work. Please try again later."
        " If it happens again, report it with this number: {request_id}",
        "ru": "Не получилось, извините. Попробуйте, пожалуйста, позже."  # noqa: RUF001  # Russian
        " Если это повторится, сообщите нам номер: {request_id}",
    }
)
"""The answer to a user whose update is given up, by language."""

MAX_ALERT_CHARACTERS: Final = 200
"""Telegram's limit for the answer to a button."""

_TEMPORARY: Final = (
    TelegramRetryAfter,
    TelegramNetworkError,
    TelegramServerError,
    ConnectionError,
    TimeoutError,
    *REDIS_IS_AWAY,
)

_log = get_logger("hybridkit.bot")


def is_temporary(error: BaseException) -> bool:
    """Return whether a later attempt can succeed, as nobody has made a mistake."""
    match error:
        case StaleVersionError():  # the next run reads the record again
            return True
        case HybridkitError():
            return error.retryable
        case BaseExceptionGroup():
            return all(map(is_temporary, error.exceptions))
        case TelegramEntityTooLarge():  # a network error in aiogram, but permanent
            return False
        case _:
            # Errors of Redis also come from aiogram's storage, which has a client of its own.
            return isinstance(error, _TEMPORARY) or is_refused_for_now(error)


def check_texts(texts: Mapping[str, str]) -> None:
    """Refuse texts that can't be formatted.

    Raises:
        DeclarationError: a text can't be formatted; the message names its language.
    """
    for language, text in texts.items():
        try:
            text.format(request_id="")
        except (LookupError, ValueError, AttributeError) as error:
            raise DeclarationError(
                f"the failure text for {language!r} can't be filled in ({type(error).__name__}: {error}):"
                " {request_id} is all it may name, and other braces are doubled"
            ) from error


async def answer_failure(bot: Bot, update: Update, texts: Mapping[str, str], *, request_id: str) -> None:
    """Tell the user of an update that it has failed, if there is one who waits; once, and without retries."""
    user = UserContextMiddleware.resolve_event_context(update).user
    if user is None or user.is_bot or not texts:
        return
    text = _text_for(texts, user.language_code).format(request_id=request_id)
    try:
        await _answer(bot, update, text)
    except (AiogramError, OSError) as error:
        _log.warning("a person could not be told of a failure", error=type(error).__name__)


async def _answer(bot: Bot, update: Update, text: str) -> None:
    event = update.event
    match event:
        # Not in a channel or a business chat, where the answer would be in the owner's name.
        case Message() if update.event_type in {"message", "edited_message"}:
            await bot(event.answer(text, parse_mode=None))
        case CallbackQuery():
            try:
                await bot(event.answer(text[:MAX_ALERT_CHARACTERS], show_alert=True))
            except TelegramBadRequest:  # Telegram accepts such an answer for some seconds only
                await bot.send_message(event.from_user.id, text, parse_mode=None)
        case PreCheckoutQuery() | ShippingQuery():
            await bot(event.answer(ok=False, error_message=text))
        case _:
            pass


def _text_for(texts: Mapping[str, str], language_code: str | None) -> str:
    """Return the text of a language, or else the English or the first one."""
    language = (language_code or "").lower().partition("-")[0]
    return texts.get(language) or texts.get("en") or next(iter(texts.values()))
