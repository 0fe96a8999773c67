"""The bot's texts in its languages, without any framework."""

from typing import Literal

__all__ = ["Language", "greeting", "language_of", "welcome"]

Language = Literal["en", "ru"]

_WELCOME = {
    "en": "Welcome, {name}! Your account is ready.",
    "ru": "Добро пожаловать, {name}! Ваша учётная запись готова.",
}
_KNOWN = {
    "en": "Hello again, {name}!",
    "ru": "Снова здравствуйте, {name}!",
}
_STRANGER = {
    "en": "Hello, {name}! You are not registered yet.",
    "ru": "Здравствуйте, {name}! Вы ещё не зарегистрированы.",
}


def language_of(code: str | None) -> Language:
    """Return the closest language to a Telegram client's IETF tag: Russian for `ru-RU`, English for unknown ones."""
    return "ru" if (code or "").lower().partition("-")[0] == "ru" else "en"


def welcome(name: str, language: Language) -> str:
    """Return the message after a registration."""
    return _WELCOME[language].format(name=name)


def greeting(name: str, language: Language, *, is_registered: bool) -> str:
    """Return the answer to /start."""
    return (_KNOWN if is_registered else _STRANGER)[language].format(name=name)
