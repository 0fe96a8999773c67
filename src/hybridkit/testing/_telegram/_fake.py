"""A fake Telegram: the part of the Bot API, over real HTTP, that the tests of a bot need.

```python
async with FakeTelegram() as telegram:              # point the bot's API base URL at telegram.url
    telegram.push_text("/start", from_user=TelegramUser(id=7, language_code="ru"))
    [answer] = await telegram.wait_for_messages(1)
    telegram.press("Rent it", from_user=TelegramUser(id=7))
    telegram.fail("sendMessage", status=429, retry_after_seconds=1)
```

It behaves like Telegram where a bot's safety depends on it: an update is delivered until a later `getUpdates` confirms
it by its offset, or the webhook accepts it; a second poller ends the first one with 409, a wrong token gets 401, a user
who has blocked the bot answers with 403. As a process, `python -m hybridkit.testing telegram`, it is controlled by
`POST /control/updates`, `/control/redeliver`, `/control/faults`, `/control/blocked` and `GET /control/state`.

https://core.telegram.org/bots/api#making-requests
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlsplit

from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit.testing._telegram._chats import Chats
from hybridkit.testing._telegram._limits import Limits, LimitViolation
from hybridkit.testing._telegram._records import Call, Params, RefusedError, SentMessage, TelegramUser
from hybridkit.testing._telegram._updates import MAX_UPDATES_AT_ONCE, Updates
from hybridkit.testing._telegram._webhook import Webhook
from hybridkit.testing._telegram._wire import json_params, json_response, read_call, refusing_response

DEFAULT_TOKEN: Final = "4242:fake-telegram-token"  # noqa: S105  # a stand-in that opens nothing
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

# Calls without an effect that a test could see otherwise than by `calls` and `parameters_of`.
_ACCEPTED: Final = (
    "answercallbackquery",
    "answerinlinequery",
    "answerprecheckoutquery",
    "answershippingquery",
    "approvechatjoinrequest",
    "banchatmember",
    "declinechatjoinrequest",
    "deletemycommands",
    "leavechat",
    "pinchatmessage",
    "restrictchatmember",
    "setchatmenubutton",
    "setmessagereaction",
    "setmycommands",
    "setmydescription",
    "setmyname",
    "setmyshortdescription",
    "unbanchatmember",
    "unpinallchatmessages",
    "unpinchatmessage",
)


@dataclass(slots=True)
class _Fault:
    method: str
    status: int
    description: str
    retry_after_seconds: int | None
    times: int
    chat_id: str | None


class FakeTelegram:
    """A Bot API server on loopback for one bot, controlled by its test.

    Args:
        token: the only token it accepts; the bot's id is the part before the colon.
        port: the port to listen on; 0 for a free one.
        enforces_limits: whether a message over one of Telegram's limits is refused with 429. All are noted in
            `violations`.
        webhook_retry_seconds: the time until an update that the webhook has not accepted is delivered to it again.
        webhook_timeout_seconds: how long the webhook may take for its answer.
    """

    def __init__(
        self,
        *,
        token: str = DEFAULT_TOKEN,
        port: int = 0,
        enforces_limits: bool = False,
        webhook_retry_seconds: float = 0.05,
        webhook_timeout_seconds: float = 60.0,
    ) -> None:
        self.token = token
        self.bot_id = int(token.partition(":")[0])
        self.calls: list[str] = []
        """The names of all methods that were called, in order."""
        self._parameters: list[tuple[str, Params]] = []
        self._port = port
        self._server = HttpServer(
            self._respond,
            refuse=refusing_response,
            name="fake Telegram connection",
            limits=HttpLimits(body_bytes=MAX_BODY_BYTES),
        )
        self._changed = asyncio.Event()
        self._faults: list[_Fault] = []
        self._poll = 0
        self._commands: list[Any] = []
        self._limits = Limits(enforces=enforces_limits)
        self._chats = Chats(self._me(), self._notify)
        self._updates = Updates(self._notify)
        self._webhook = Webhook(
            self._updates,
            run_method=self._run_answer,
            changed=self._notify,
            retry_seconds=webhook_retry_seconds,
            timeout_seconds=webhook_timeout_seconds,
        )
        self._methods: Mapping[str, Callable[[Call], Any]] = {
            **self._chats.methods,
            **dict.fromkeys(_ACCEPTED, lambda _: True),
            "getme": lambda _: self._me(),
            "getmycommands": lambda _: self._commands,
            "setmycommands": self._set_my_commands,
            "setwebhook": self._set_webhook,
            "deletewebhook": self._delete_webhook,
            "getwebhookinfo": lambda _: self._webhook.info(),
        }

    def __repr__(self) -> str:
        return f"FakeTelegram({self.url!r}, messages={len(self.messages)})"

    @property
    def url(self) -> str:
        """The base URL to use instead of `https://api.telegram.org`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def messages(self) -> list[SentMessage]:
        """All messages that the bot has sent, the oldest first, as they are now."""
        return self._chats.messages

    @property
    def files(self) -> Mapping[str, bytes]:
        """The content of all files, by their ids."""
        return self._chats.files

    @property
    def violations(self) -> list[LimitViolation]:
        """The calls that were over one of Telegram's limits, in order."""
        return self._limits.violations

    @property
    def confirmed_update_id(self) -> int:
        """The highest update id that a `getUpdates` offset has confirmed."""
        return self._updates.confirmed_update_id

    @property
    def webhook_url(self) -> str:
        """The URL that the bot has set; empty for none."""
        return self._webhook.url

    async def __aenter__(self) -> Self:
        self._port = await self._server.listen("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._webhook.aclose()
        await self._server.close()

    # ── what a test does ─────────────────────────────────────────────────────────────────────────

    def push_text(self, text: str, *, from_user: TelegramUser) -> int:
        """Send a text from a user to the bot, and return the update's id."""
        message: dict[str, Any] = {
            "message_id": self._updates.next_id,
            "from": _sender(from_user),
            "chat": {"id": from_user.id, "type": "private", "first_name": from_user.first_name},
            "date": int(time.time()),
            "text": text,
        }
        if text.startswith("/"):
            message["entities"] = [
                {"type": "bot_command", "offset": 0, "length": len(text.split(maxsplit=1)[0])}
            ]
        return self.push_update({"message": message})

    def press(self, button: str, *, from_user: TelegramUser) -> int:
        """Press a button in a user's private chat, and return the update's id.

        A button under a message sends a `callback_query`, one of a reply keyboard sends its words. Of several messages
        with such a button it is the latest.

        Args:
            button: the words on the button, or its `callback_data`.
            from_user: the user who presses it.

        Raises:
            LookupError: no message of the chat has such a button; the error names those that there are.
        """
        message, found = self._chats.pressed(from_user.id, button)
        if not message.has_inline_keyboard:
            return self.push_text(found.text, from_user=from_user)
        query = {
            "id": str(self._updates.next_id),
            "from": _sender(from_user),
            "message": self._chats.shown(message),
            "chat_instance": str(from_user.id),
            "data": found.callback_data,
        }
        return self.push_update({"callback_query": query})

    def push_update(self, update: Mapping[str, Any]) -> int:
        """Deliver any update, in the Bot API's JSON form without `update_id`, and return the id that it gets."""
        return self._updates.add(update)

    def redeliver(self, update_id: int) -> None:
        """Deliver an update once more, although the bot has confirmed it.

        Raises:
            KeyError: no update has had this id.
        """
        self._updates.redeliver(update_id)

    def deliveries_of(self, update_id: int) -> int:
        """Return how often an update was delivered to the webhook, also in vain."""
        return self._webhook.attempts.get(update_id, 0)

    def add_file(self, content: bytes) -> str:
        """Store a file that the bot may download, and return its `file_id`."""
        return self._chats.add_file(content)

    def block(self, user_id: int) -> None:
        """Have a user block the bot: what it sends to the user is refused with 403."""
        self._chats.blocked.add(user_id)

    def unblock(self, user_id: int) -> None:
        """Have a user start the bot again."""
        self._chats.blocked.discard(user_id)

    def fail(
        self,
        method: str,
        *,
        status: int,
        retry_after_seconds: int | None = None,
        times: int = 1,
        description: str = "",
        chat_id: int | None = None,
    ) -> None:
        """Refuse the next calls of a method, without doing what they ask for.

        Args:
            method: the name in the Bot API, such as `sendMessage`.
            status: the HTTP status, such as 429, 500, 502, or 409 where another instance polls.
            retry_after_seconds: the `retry_after` of a 429. A message to that chat within this time is noted in
                `violations`.
            times: the number of calls.
            description: the description; by default the phrase of the HTTP status.
            chat_id: the chat; calls for others are done. None for any.
        """
        words = description or HTTPStatus(status).phrase
        if retry_after_seconds is not None:
            words = f"{words}: retry after {retry_after_seconds}"
        chat = None if chat_id is None else str(chat_id)
        self._faults.append(_Fault(method.lower(), status, words, retry_after_seconds, times, chat))

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

    async def wait_for_deliveries(
        self, update_id: int, *, count: int = 1, timeout_seconds: float = 10
    ) -> None:
        """Wait until an update was delivered to the webhook at least `count` times, also in vain.

        Raises:
            TimeoutError: it was delivered less often in that time.
        """
        if not await self._wait_until(lambda: self.deliveries_of(update_id) >= count, timeout_seconds):
            raise TimeoutError(
                f"update {update_id} was delivered {self.deliveries_of(update_id)} of {count} times in"
                f" {timeout_seconds} s"
            )

    async def wait_until_confirmed(self, update_id: int, *, timeout_seconds: float = 10) -> None:
        """Wait until the bot has confirmed an update: by the offset of `getUpdates`, or as its webhook.

        Raises:
            TimeoutError: the bot has not confirmed it in that time.
        """
        if not await self._wait_until(lambda: self._updates.is_confirmed(update_id), timeout_seconds):
            raise TimeoutError(
                f"update {update_id} was not confirmed in {timeout_seconds} s, only {self.confirmed_update_id}"
            )

    # ── the Bot API ──────────────────────────────────────────────────────────────────────────────

    async def _call(self, call: Call) -> Any:
        self.calls.append(call.method)
        self._parameters.append((call.method, call.params))
        self._notify()
        name = call.method.lower()
        self._limits.check(call.method, call.params)
        self._raise_fault(name, call.params)
        if name == "getupdates":
            return await self._get_updates(call.params)
        found = self._methods.get(name)
        if found is None:
            raise RefusedError(404, "Not Found: method not found")
        return found(call)

    async def _run_answer(self, order: dict[str, Any]) -> None:
        method = str(order.pop("method"))
        with suppress(RefusedError):  # Telegram doesn't tell either
            await self._call(Call(method, json_params(order), {}))

    def _raise_fault(self, method: str, params: Params) -> None:
        chat_id = params.get("chat_id", "")
        for fault in self._faults:
            if fault.method == method and fault.chat_id in {None, chat_id}:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                if fault.retry_after_seconds is not None:
                    self._limits.hold(chat_id, fault.retry_after_seconds)
                raise RefusedError(
                    fault.status, fault.description, retry_after_seconds=fault.retry_after_seconds
                )

    async def _get_updates(self, params: Params) -> list[dict[str, Any]]:
        if self._webhook.url:
            raise RefusedError(
                409,
                "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the"
                " webhook first",
            )
        self._poll += 1
        poll = self._poll
        if "allowed_updates" in params:
            self._updates.allow(json.loads(params["allowed_updates"]))
        self._updates.confirm_below(int(params.get("offset", 0)))

        def over() -> bool:
            return poll != self._poll or bool(self._updates.pending)

        await self._wait_until(over, float(params.get("timeout", 0)))
        if poll != self._poll:
            raise RefusedError(
                409,
                "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
            )
        return self._updates.take(int(params.get("limit", MAX_UPDATES_AT_ONCE)))

    def _set_my_commands(self, call: Call) -> bool:
        self._commands = json.loads(call.params.get("commands", "[]"))
        return True

    def _set_webhook(self, call: Call) -> bool:
        self._poll += 1  # a webhook ends a poll
        self._webhook.set(call.params, has_certificate="certificate" in call.files)
        self._drop_pending(call.params)
        return True

    def _delete_webhook(self, call: Call) -> bool:
        self._webhook.set({}, has_certificate=False)
        self._drop_pending(call.params)
        return True

    def _drop_pending(self, params: Params) -> None:
        if params.get("drop_pending_updates", "").lower() == "true":
            self._updates.confirm_below(self._updates.next_id)

    def _me(self) -> dict[str, Any]:
        return {"id": self.bot_id, "is_bot": True, "first_name": "Fake", "username": "fake_bot"}

    # ── control, for a test in another process ───────────────────────────────────────────────────

    def _control(self, name: str, body: bytes) -> Any:
        if name == "state":
            return {
                "messages": [{**asdict(each), "parameters": dict(each.parameters)} for each in self.messages],
                "calls": self.calls,
                "confirmed_update_id": self.confirmed_update_id,
                "pending_update_ids": self._updates.pending,
                "violations": [each._asdict() for each in self.violations],
                "webhook_url": self.webhook_url,
            }
        order: dict[str, Any] = json.loads(body)
        match name:
            case "updates" if "text" in order or "button" in order:
                user = TelegramUser(**order["from_user"])
                if "button" in order:
                    return {"update_id": self.press(order["button"], from_user=user)}
                return {"update_id": self.push_text(order["text"], from_user=user)}
            case "updates":
                return {"update_id": self.push_update(order)}
            case "redeliver":
                return self.redeliver(order["update_id"])
            case "faults":
                return self.fail(order.pop("method"), **order)
            case "blocked":
                return self.block(order["user_id"])
            case _:
                raise RefusedError(
                    404, "Not Found: control knows state, updates, redeliver, faults and blocked"
                )

    # ── HTTP ─────────────────────────────────────────────────────────────────────────────────────

    async def _respond(self, request: HttpRequest) -> HttpResponse:
        try:
            return await self._route(request)
        except RefusedError as refused:
            return json_response(refused.status, refused.answer())
        except (ValueError, KeyError, TypeError) as error:
            return refusing_response(400, f"{type(error).__name__}: {error}")

    async def _route(self, request: HttpRequest) -> HttpResponse:
        url = urlsplit(request.target)
        first, _, name = url.path.lstrip("/").partition("/")
        if first == "health":
            return json_response(200, {"ok": True, "result": True})
        if first == "control":
            return json_response(200, {"ok": True, "result": self._control(name, request.body)})
        if first == "file":
            token, _, path = name.partition("/")
            self._check_token(token)
            return HttpResponse(
                200, [(b"content-type", b"application/octet-stream")], self._chats.download(path)
            )
        self._check_token(first)
        content_type = dict(request.headers).get(b"content-type", b"").decode("latin-1")
        call = read_call(name, query=url.query, content_type=content_type, body=request.body)
        return json_response(200, {"ok": True, "result": await self._call(call)})

    def _check_token(self, part: str) -> None:
        if part != f"bot{self.token}":
            raise RefusedError(401, "Unauthorized")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._webhook.start_deliveries()

    async def _wait_until(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    await self._changed.wait()
        return condition()


def _sender(user: TelegramUser) -> dict[str, Any]:
    return {**{name: value for name, value in asdict(user).items() if value is not None}, "is_bot": False}
