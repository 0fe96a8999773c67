"""Values of the fake Telegram: users, messages, the calls of a bot, and refusals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

type Params = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelegramUser:
    """A user who writes to the bot, in a private chat that has the user's id.

    Attributes:
        id: the id of the user, and of the chat.
        first_name: the name that others see.
        username: the name in `@username`; None for users without one.
        language_code: the IETF tag of the user's language, such as `en`, `ru` or `pt-br`; None for an unknown one.
    """

    id: int
    first_name: str = "Ada"
    username: str | None = None
    language_code: str | None = "en"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelegramButton:
    """A button under a message, or of the keyboard in place of the user's own.

    Attributes:
        text: the words on it.
        callback_data: the data that the bot gets when it is pressed; None for a button that does something else.
        url: the address that it opens; None for none.
    """

    text: str
    callback_data: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """A message that the bot has sent, as it is now.

    Attributes:
        message_id: the message's number, from 1.
        chat_id: the id of the chat; in a private chat that of the user.
        text: the text, or the caption.
        parameters: all parameters of the method call, as text; of a file its name.
        method: the method that has sent it, such as `sendPhoto`.
        file_id: the id of its file, for `FakeTelegram.files`; None without a file.
        is_deleted: whether the bot has deleted it.
    """

    message_id: int
    chat_id: int
    text: str
    parameters: Params = field(repr=False)
    method: str = "sendMessage"
    file_id: str | None = None
    is_deleted: bool = False

    @property
    def keyboard(self) -> Sequence[Sequence[TelegramButton]]:
        """The rows of buttons, of an inline or a reply keyboard; empty without one."""
        markup = json.loads(self.parameters.get("reply_markup") or "{}")
        rows: list[list[dict[str, Any] | str]] = markup.get("inline_keyboard") or markup.get("keyboard") or []
        return [[_button(each) for each in row] for row in rows]

    @property
    def has_inline_keyboard(self) -> bool:
        """Whether its buttons are under the message, so that pressing one sends no text."""
        return "inline_keyboard" in json.loads(self.parameters.get("reply_markup") or "{}")


def _button(shown: Mapping[str, Any] | str) -> TelegramButton:
    if isinstance(shown, str):
        return TelegramButton(text=shown)
    return TelegramButton(text=shown["text"], callback_data=shown.get("callback_data"), url=shown.get("url"))


class UploadedFile(NamedTuple):
    """A file of a call in the form `multipart/form-data`."""

    name: str
    content: bytes


class Call(NamedTuple):
    """A call of a method.

    Attributes:
        method: the name, as the bot wrote it.
        params: the parameters as text; of an uploaded file its name.
        files: the uploaded files, by the names of their form parts.
    """

    method: str
    params: Params
    files: Mapping[str, UploadedFile]


class RefusedError(Exception):
    """The refusal of a call, which is answered with `{"ok": false, …}`."""

    def __init__(self, status: int, description: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.retry_after_seconds = retry_after_seconds

    def answer(self) -> dict[str, Any]:
        """Return the JSON form of the refusal."""
        answer: dict[str, Any] = {"ok": False, "error_code": self.status, "description": self.description}
        if self.retry_after_seconds is not None:
            answer["parameters"] = {"retry_after": self.retry_after_seconds}
        return answer


def chat_id_of(params: Params, name: str = "chat_id") -> int:
    """Return the id of a call's chat.

    Raises:
        RefusedError: there is none, or it isn't a number.
    """
    text = params.get(name, "")
    if not text.removeprefix("-").isdecimal():
        raise RefusedError(400, "Bad Request: chat not found")
    return int(text)
