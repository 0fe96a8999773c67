"""The chats: the messages that the bot sends, edits and deletes, its files, and who has blocked it."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from hybridkit.testing._telegram._records import (
    Call,
    Params,
    RefusedError,
    SentMessage,
    TelegramButton,
    chat_id_of,
)

MAX_TEXT_CHARACTERS: Final = 4096
MAX_CAPTION_CHARACTERS: Final = 1024
MAX_DOWNLOAD_BYTES: Final = 20 * 1024 * 1024
"""The largest file that the Bot API lets a bot download: https://core.telegram.org/bots/api#getfile."""

_MEDIA: Final = {
    "sendanimation": "animation",
    "sendaudio": "audio",
    "senddocument": "document",
    "sendphoto": "photo",
    "sendsticker": "sticker",
    "sendvideo": "video",
    "sendvideonote": "video_note",
    "sendvoice": "voice",
}
_PLAIN: Final = frozenset({"sendcontact", "senddice", "sendinvoice", "sendlocation", "sendpoll", "sendvenue"})


class Chats:
    """All chats of the bot.

    Args:
        me: the bot, as `getMe` returns it.
        changed: is called after each change.
    """

    def __init__(self, me: Mapping[str, Any], changed: Callable[[], None]) -> None:
        self.messages: list[SentMessage] = []
        self.files: dict[str, bytes] = {}
        self.blocked: set[int] = set()
        self._me = me
        self._changed = changed
        self.methods: dict[str, Callable[[Call], Any]] = {
            "sendmessage": self._send_message,
            "sendmediagroup": self._send_media_group,
            "copymessage": self._copy_message,
            "forwardmessage": self._forward_message,
            "editmessagetext": lambda call: self._edit(call, text=call.params.get("text", "")),
            "editmessagecaption": lambda call: self._edit(call, text=call.params.get("caption", "")),
            "editmessagereplymarkup": self._edit,
            "editmessagemedia": self._edit,
            "deletemessage": self._delete_message,
            "deletemessages": self._delete_messages,
            "sendchataction": self._reach,
            "getchat": self._get_chat,
            "getfile": self._get_file,
        }
        self.methods |= dict.fromkeys(_MEDIA, self._send_media) | dict.fromkeys(_PLAIN, self._send_plain)

    def __repr__(self) -> str:
        return f"Chats({len(self.messages)} messages, {len(self.files)} files)"

    def add_file(self, content: bytes) -> str:
        """Store a file, and return its id."""
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = content
        return file_id

    def download(self, path: str) -> bytes:
        """Return the content of a file by the path that `getFile` has given.

        Raises:
            RefusedError: there is no such file.
        """
        content = self.files.get(path.removeprefix("files/"))
        if content is None:
            raise RefusedError(404, "Not Found")
        return content

    def _reach(self, call: Call) -> bool:
        if chat_id_of(call.params) in self.blocked:
            raise RefusedError(403, "Forbidden: bot was blocked by the user")
        return True

    def _sent(self, call: Call, *, text: str = "", file_id: str | None = None) -> SentMessage:
        self._reach(call)
        message = SentMessage(
            message_id=len(self.messages) + 1,
            chat_id=chat_id_of(call.params),
            text=text,
            parameters=call.params,
            method=call.method,
            file_id=file_id,
        )
        self.messages.append(message)
        self._changed()
        return message

    def _shown(self, message: SentMessage, **more: Any) -> dict[str, Any]:
        kind = "private" if message.chat_id > 0 else "supergroup"
        return {
            "message_id": message.message_id,
            "from": self._me,
            "chat": {"id": message.chat_id, "type": kind},
            "date": int(time.time()),
            **more,
        }

    def pressed(self, chat_id: int, button: str) -> tuple[SentMessage, TelegramButton]:
        """Return the latest message of a chat that has a button with these words or this data, and the button.

        Raises:
            LookupError: no message has one, or it sends nothing; the error names the buttons that there are.
        """
        there = [each for each in self.messages if each.chat_id == chat_id and not each.is_deleted]
        known: list[str] = []
        for message in reversed(there):
            buttons = [each for row in message.keyboard for each in row]
            for wanted in ("text", "callback_data"):
                for each in buttons:
                    if getattr(each, wanted) == button and (
                        each.callback_data or not message.has_inline_keyboard
                    ):
                        return message, each
            known += [each.text for each in buttons]
        raise LookupError(f"chat {chat_id} has no button {button!r} that sends something; there are {known}")

    def shown(self, message: SentMessage) -> dict[str, Any]:
        """Return a message as an update about it has it."""
        markup = json.loads(message.parameters.get("reply_markup") or "{}")
        more = {"reply_markup": markup} if "inline_keyboard" in markup else {}
        return self._shown(message, **({"text": message.text} if message.text else {}), **more)

    def _send_message(self, call: Call) -> dict[str, Any]:
        chat_id_of(call.params)  # a chat that isn't there comes before a text that isn't
        text = _checked(call.params.get("text", ""), MAX_TEXT_CHARACTERS, "message")
        if not text:
            raise RefusedError(400, "Bad Request: message text is empty")
        return self._shown(self._sent(call, text=text), text=text)

    def _send_plain(self, call: Call) -> dict[str, Any]:
        kind = call.method.lower().removeprefix("send")
        value = 3 if kind == "dice" else 0
        return self._shown(self._sent(call), **({"dice": {"emoji": "🎲", "value": value}} if value else {}))

    def _send_media(self, call: Call) -> dict[str, Any]:
        kind = _MEDIA[call.method.lower()]
        caption = _checked(call.params.get("caption", ""), MAX_CAPTION_CHARACTERS, "message caption")
        chat_id_of(call.params)
        file_id = self._file_of(call, call.params.get(kind, ""), part=kind)
        message = self._sent(call, text=caption, file_id=file_id)
        return self._shown(
            message, **{kind: self._media(kind, file_id)}, **({"caption": caption} if caption else {})
        )

    def _send_media_group(self, call: Call) -> list[dict[str, Any]]:
        album: list[dict[str, str]] = json.loads(call.params.get("media", "[]"))
        if not 2 <= len(album) <= 10:
            raise RefusedError(400, "Bad Request: group send failed")
        shown: list[dict[str, Any]] = []
        for item in album:
            file_id = self._file_of(call, item["media"], part="")
            caption = item.get("caption", "")
            message = self._sent(call, text=caption, file_id=file_id)
            shown.append(self._shown(message, **{item["type"]: self._media(item["type"], file_id)}))
        return shown

    def _file_of(self, call: Call, said: str, *, part: str) -> str:
        """Store the uploaded file, or find the one that the bot names by its id; one of a URL is empty."""
        upload = call.files.get(said.removeprefix("attach://")) or call.files.get(part)
        if upload is not None:
            return self.add_file(upload.content)
        if said.startswith(("https://", "http://")):
            return self.add_file(b"")
        if said not in self.files:
            raise RefusedError(400, "Bad Request: wrong file identifier/HTTP URL specified")
        return said

    def _media(self, kind: str, file_id: str) -> Any:
        size_bytes = len(self.files[file_id])
        media = {"file_id": file_id, "file_unique_id": f"unique-{file_id}", "file_size": size_bytes}
        match kind:
            case "photo":
                return [{**media, "width": 90, "height": 90}]
            case "animation" | "video":
                return {**media, "width": 90, "height": 90, "duration": 1}
            case "audio" | "voice":
                return {**media, "duration": 1}
            case "video_note":
                return {**media, "length": 90, "duration": 1}
            case "sticker":
                shape = {
                    "width": 512,
                    "height": 512,
                    "is_animated": False,
                    "is_video": False,
                    "type": "regular",
                }
                return {**media, **shape}
            case _:
                return media

    def _copy_message(self, call: Call) -> dict[str, Any]:
        original = self._find(call.params, chat="from_chat_id")
        return {"message_id": self._sent(call, text=original.text, file_id=original.file_id).message_id}

    def _forward_message(self, call: Call) -> dict[str, Any]:
        original = self._find(call.params, chat="from_chat_id")
        return self._shown(self._sent(call, text=original.text), text=original.text)

    def _edit(self, call: Call, text: str | None = None) -> Any:
        if "inline_message_id" in call.params:
            return True
        self._reach(call)
        message = self._find(call.params)
        new = replace(message, text=message.text if text is None else text, parameters=call.params)
        if new.text == message.text and _markup(new) == _markup(message) and "media" not in call.params:
            raise RefusedError(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are exactly"
                " the same as a current content and reply markup of the message",
            )
        self.messages[message.message_id - 1] = new
        self._changed()
        return self._shown(new, text=new.text, edit_date=int(time.time()))

    def _delete_message(self, call: Call) -> bool:
        message = self._find(call.params, missing="message to delete not found")
        self.messages[message.message_id - 1] = replace(message, is_deleted=True)
        self._changed()
        return True

    def _delete_messages(self, call: Call) -> bool:
        for message_id in json.loads(call.params.get("message_ids", "[]")):
            self._delete_message(call._replace(params={**call.params, "message_id": str(message_id)}))
        return True

    def _find(
        self, params: Params, *, chat: str = "chat_id", missing: str = "message to edit not found"
    ) -> SentMessage:
        chat_id = chat_id_of(params, chat)
        message_id = params.get("message_id", "")
        for message in self.messages:
            is_named = str(message.message_id) == message_id and message.chat_id == chat_id
            if is_named and not message.is_deleted:
                return message
        raise RefusedError(400, f"Bad Request: {missing}")

    def _get_chat(self, call: Call) -> dict[str, Any]:
        chat_id = chat_id_of(call.params)
        shape: dict[str, Any] = {"accent_color_id": 0, "max_reaction_count": 11}
        shape["accepted_gift_types"] = dict.fromkeys(
            (
                "unlimited_gifts",
                "limited_gifts",
                "unique_gifts",
                "premium_subscription",
                "gifts_from_channels",
            ),
            False,
        )
        return {"id": chat_id, "type": "private" if chat_id > 0 else "supergroup", **shape}

    def _get_file(self, call: Call) -> dict[str, Any]:
        file_id = call.params.get("file_id", "")
        content = self.files.get(file_id)
        if content is None:
            raise RefusedError(400, "Bad Request: invalid file_id")
        if len(content) > MAX_DOWNLOAD_BYTES:
            raise RefusedError(400, "Bad Request: file is too big")
        return {**self._media("document", file_id), "file_path": f"files/{file_id}"}


def _checked(text: str, most: int, what: str) -> str:
    if len(text) > most:
        raise RefusedError(400, f"Bad Request: {what} is too long")
    return text


def _markup(message: SentMessage) -> str | None:
    return message.parameters.get("reply_markup")
