"""What the bot says, in the languages it speaks. Imports no framework."""

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
    """Choose the closest language to a Telegram client's IETF tag: `ru-RU` is Russian, anything unknown English."""
    return "ru" if (code or "").lower().partition("-")[0] == "ru" else "en"


def welcome(name: str, language: Language) -> str:
    """Said once, when somebody has registered."""
    return _WELCOME[language].format(name=name)


def greeting(name: str, language: Language, *, is_registered: bool) -> str:
    """Write the answer to /start."""
    return (_KNOWN if is_registered else _STRANGER)[language].format(name=name)
