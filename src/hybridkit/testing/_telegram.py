"""A fake Telegram: the part of the Bot API, over real HTTP, that the tests of a bot need.

```python
async with FakeTelegram() as telegram:              # point the bot's API base URL at telegram.url
    telegram.push_text("/start", from_user=TelegramUser(id=7, language_code="ru"))
    [answer] = await telegram.wait_for_messages(1)
    telegram.fail("sendMessage", status=429, retry_after_seconds=1)
```

It behaves like Telegram where a bot's safety depends on it: an update is delivered until a later `getUpdates` confirms
it by its offset, a second poller ends the first one with 409, a wrong token gets 401. As a process,
`python -m hybridkit.testing telegram`, it is controlled by `POST /control/updates`, `/control/redeliver`,
`/control/faults` and `GET /control/state`.

https://core.telegram.org/bots/api#making-requests
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer

DEFAULT_TOKEN: Final = "4242:fake-telegram-token"  # noqa: S105  # a stand-in that opens nothing
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_UPDATES_AT_ONCE: Final = 100

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
class SentMessage:
    """A message that the bot has sent.

    Attributes:
        message_id: the message's number, from 1.
        chat_id: the id of the chat; in a private chat that of the user.
        text: the text.
        parameters: all parameters of the method call, as text.
    """

    message_id: int
    chat_id: int
    text: str
    parameters: Params = field(repr=False)


@dataclass(slots=True)
class _Fault:
    method: str
    status: int
    description: str
    retry_after_seconds: int | None
    times: int


class _RefusedError(Exception):
    """The refusal of a call, which is answered with `{"ok": false, …}`."""

    def __init__(self, status: int, description: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.description = description
        self.retry_after_seconds = retry_after_seconds

    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"ok": False, "error_code": self.status, "description": self.description}
        if self.retry_after_seconds is not None:
            answer["parameters"] = {"retry_after": self.retry_after_seconds}
        return answer


class FakeTelegram:
    """A Bot API server on loopback for one bot, controlled by its test.

    Args:
        token: the only token it accepts; the bot's id is the part before the colon.
        port: the port to listen on; 0 for a free one.
    """

    def __init__(self, *, token: str = DEFAULT_TOKEN, port: int = 0) -> None:
        self.token = token
        self.bot_id = int(token.partition(":")[0])
        self.messages: list[SentMessage] = []
        """All messages that the bot has sent, the oldest first."""
        self.calls: list[str] = []
        """The names of all methods that were called, in order."""
        self.confirmed_update_id = 0
        """The highest update id that a `getUpdates` offset has confirmed."""
        self._parameters: list[tuple[str, Params]] = []
        self._port = port
        self._server = HttpServer(
            self._respond,
            refuse=_refuse,
            name="fake Telegram connection",
            limits=HttpLimits(body_bytes=MAX_BODY_BYTES),
        )
        self._updates: dict[int, dict[str, Any]] = {}
        self._again: list[int] = []
        self._next_update_id = 1001
        self._faults: list[_Fault] = []
        self._poll = 0
        self._changed = asyncio.Event()
        self._methods: Mapping[str, Callable[[Params], Any]] = {
            "getme": lambda _: self._me(),
            "sendmessage": self._send_message,
            "deletewebhook": self._delete_webhook,
            "answercallbackquery": lambda _: True,
            "answerinlinequery": lambda _: True,
            "answerprecheckoutquery": lambda _: True,
            "answershippingquery": lambda _: True,
            "sendchataction": lambda _: True,
            "setmycommands": lambda _: True,
        }

    def __repr__(self) -> str:
        return f"FakeTelegram({self.url!r}, messages={len(self.messages)})"

    @property
    def url(self) -> str:
        """The base URL to use instead of `https://api.telegram.org`."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._port = await self._server.listen("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    # ── what a test does ─────────────────────────────────────────────────────────────────────────

    def push_text(self, text: str, *, from_user: TelegramUser) -> int:
        """Send a text from a user to the bot, and return the update's id."""
        sender = {name: value for name, value in asdict(from_user).items() if value is not None}
        message: dict[str, Any] = {
            "message_id": self._next_update_id,
            "from": {**sender, "is_bot": False},
            "chat": {"id": from_user.id, "type": "private", "first_name": from_user.first_name},
            "date": int(time.time()),
            "text": text,
        }
        if text.startswith("/"):
            message["entities"] = [
                {"type": "bot_command", "offset": 0, "length": len(text.split(maxsplit=1)[0])}
            ]
        return self.push_update({"message": message})

    def push_update(self, update: Mapping[str, Any]) -> int:
        """Deliver any update, in the Bot API's JSON form without `update_id`, and return the id that it gets."""
        update_id = self._next_update_id
        self._next_update_id += 1
        self._updates[update_id] = {"update_id": update_id, **update}
        self._notify()
        return update_id

    def redeliver(self, update_id: int) -> None:
        """Deliver an update once more, although the bot has confirmed it.

        Raises:
            KeyError: no update has had this id.
        """
        self._again.append(self._updates[update_id]["update_id"])
        self._notify()

    def fail(
        self,
        method: str,
        *,
        status: int,
        retry_after_seconds: int | None = None,
        times: int = 1,
        description: str = "",
    ) -> None:
        """Refuse the next calls of a method, without doing what they ask for.

        Args:
            method: the name in the Bot API, such as `sendMessage`.
            status: the HTTP status, such as 429, 500, 502, or 403 where the user has blocked the bot.
            retry_after_seconds: the `retry_after` of a 429.
            times: the number of calls.
            description: the description; by default the phrase of the HTTP status.
        """
        words = description or HTTPStatus(status).phrase
        if retry_after_seconds is not None:
            words = f"{words}: retry after {retry_after_seconds}"
        self._faults.append(_Fault(method.lower(), status, words, retry_after_seconds, times))

    def parameters_of(self, method: str) -> list[Params]:
        """Return the parameters of each call of a method, as text, in order."""
        return [parameters for name, parameters in self._parameters if name == method]

    async def wait_for_messages(self, count: int, *, timeout_seconds: float = 10) -> list[SentMessage]:
        """Wait until the bot has sent at least `count` messages, and return all of them.

        Raises:
            TimeoutError: the bot has sent fewer in that time; the error names them.
        """
        if not await self._wait_until(lambda: len(self.messages) >= count, timeout_seconds):
            sent = [message.text for message in self.messages]
            raise TimeoutError(f"the bot sent {len(sent)} of {count} messages in {timeout_seconds} s: {sent}")
        return list(self.messages)

    async def wait_for_calls(self, method: str, *, count: int = 1, timeout_seconds: float = 10) -> None:
        """Wait until the bot has called a method at least `count` times.

        Raises:
            TimeoutError: the bot has called it less often in that time; the error names all calls.
        """
        if not await self._wait_until(lambda: self.calls.count(method) >= count, timeout_seconds):
            raise TimeoutError(f"{method} was not called {count} times in {timeout_seconds} s: {self.calls}")

    async def wait_until_confirmed(self, update_id: int, *, timeout_seconds: float = 10) -> None:
        """Wait until the bot has confirmed an update by the offset of `getUpdates`.

        Raises:
            TimeoutError: the bot has not confirmed it in that time.
        """
        if not await self._wait_until(lambda: self.confirmed_update_id >= update_id, timeout_seconds):
            raise TimeoutError(
                f"update {update_id} was not confirmed in {timeout_seconds} s, only {self.confirmed_update_id}"
            )

    # ── the Bot API ──────────────────────────────────────────────────────────────────────────────

    async def _call(self, method: str, params: Params) -> Any:
        self.calls.append(method)
        self._parameters.append((method, params))
        self._notify()
        name = method.lower()
        self._raise_fault(name)
        if name == "getupdates":
            return await self._get_updates(params)
        found = self._methods.get(name)
        if found is None:
            raise _RefusedError(404, f"Not Found: FakeTelegram does not know the method {method}")
        return found(params)

    def _raise_fault(self, method: str) -> None:
        for fault in self._faults:
            if fault.method == method:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                raise _RefusedError(
                    fault.status, fault.description, retry_after_seconds=fault.retry_after_seconds
                )

    async def _get_updates(self, params: Params) -> list[dict[str, Any]]:
        self._poll += 1
        poll = self._poll
        self._confirm(int(params.get("offset", 0)))
        limit = int(params.get("limit", MAX_UPDATES_AT_ONCE))

        def over() -> bool:
            return poll != self._poll or bool(self._pending())

        await self._wait_until(over, float(params.get("timeout", 0)))
        if poll != self._poll:
            raise _RefusedError(409, "Conflict: terminated by other getUpdates request")
        delivered = self._pending()[:limit]
        self._again = [update_id for update_id in self._again if update_id not in delivered]
        return [self._updates[update_id] for update_id in delivered]

    def _confirm(self, offset: int) -> None:
        self.confirmed_update_id = max(self.confirmed_update_id, offset - 1)
        self._notify()  # also ends an older poll

    def _pending(self) -> list[int]:
        unconfirmed = (update_id for update_id in self._updates if update_id > self.confirmed_update_id)
        return sorted({*unconfirmed, *self._again})

    def _send_message(self, params: Params) -> dict[str, Any]:
        if not params.get("chat_id", "").lstrip("-").isdecimal():
            raise _RefusedError(400, "Bad Request: chat not found")
        if not params.get("text"):
            raise _RefusedError(400, "Bad Request: message text is empty")
        message = SentMessage(
            message_id=len(self.messages) + 1,
            chat_id=int(params["chat_id"]),
            text=params["text"],
            parameters=params,
        )
        self.messages.append(message)
        self._notify()
        return {
            "message_id": message.message_id,
            "from": self._me(),
            "chat": {"id": message.chat_id, "type": "private"},
            "date": int(time.time()),
            "text": message.text,
        }

    def _delete_webhook(self, params: Params) -> bool:
        if params.get("drop_pending_updates", "").lower() == "true":
            self._confirm(self._next_update_id)
        return True

    def _me(self) -> dict[str, Any]:
        return {"id": self.bot_id, "is_bot": True, "first_name": "Fake", "username": "fake_bot"}

    # ── control, for a test in another process ───────────────────────────────────────────────────

    def _control(self, name: str, body: bytes) -> Any:
        if name == "state":
            sent = [{**asdict(message), "parameters": dict(message.parameters)} for message in self.messages]
            return {"messages": sent, "calls": self.calls, "confirmed_update_id": self.confirmed_update_id}
        order: dict[str, Any] = json.loads(body)
        match name:
            case "updates" if "text" in order:
                user = TelegramUser(**order["from_user"])
                return {"update_id": self.push_text(order["text"], from_user=user)}
            case "updates":
                return {"update_id": self.push_update(order)}
            case "redeliver":
                return self.redeliver(order["update_id"])
            case "faults":
                return self.fail(order.pop("method"), **order)
            case _:
                raise _RefusedError(404, "Not Found: control knows state, updates, redeliver and faults")

    # ── HTTP ─────────────────────────────────────────────────────────────────────────────────────

    async def _respond(self, request: HttpRequest) -> HttpResponse:
        url = urlsplit(request.target)
        content_type = dict(request.headers).get(b"content-type", b"").decode("latin-1")
        return _json_response(*await self._answer(url.path, url.query, content_type, request.body))

    async def _answer(
        self, path: str, query: str, content_type: str, body: bytes
    ) -> tuple[int, dict[str, Any]]:
        try:
            return 200, {"ok": True, "result": await self._route(path, query, content_type, body)}
        except _RefusedError as refused:
            return refused.status, refused.answer()
        except (ValueError, KeyError, TypeError) as error:
            return 400, _RefusedError(400, f"Bad Request: {type(error).__name__}: {error}").answer()

    async def _route(self, path: str, query: str, content_type: str, body: bytes) -> Any:
        first, _, name = path.lstrip("/").partition("/")
        if first == "health":
            return True
        if first == "control":
            return self._control(name, body)
        if first != f"bot{self.token}":
            raise _RefusedError(401, "Unauthorized")
        return await self._call(name, dict(parse_qsl(query)) | _params(content_type, body))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_until(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    await self._changed.wait()
        return condition()


def _refuse(status: int, reason: str) -> HttpResponse:
    return _json_response(status, _RefusedError(status, f"Bad Request: {reason}").answer())


def _json_response(status: int, answer: Mapping[str, Any]) -> HttpResponse:
    return HttpResponse(status, [(b"content-type", b"application/json")], json.dumps(answer).encode())


def _params(content_type: str, body: bytes) -> dict[str, str]:
    """Read a call's parameters from a body in any form of the Bot API; a file stands for its name."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in json.loads(body).items()
        }
    if kind == "multipart/form-data":
        form = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
        return {
            str(part.get_param("name", header="content-disposition")): part.get_filename()
            or part.get_content().strip()
            for part in form.iter_parts()
        }
    return dict(parse_qsl(body.decode(), keep_blank_values=True))
