"""The delivery of updates to a webhook.

Updates of a chat are delivered in order: one that the bot doesn't accept is repeated, and holds up those behind it.
Other chats go on.

https://core.telegram.org/bots/api#setwebhook
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast
from urllib.parse import urlsplit

from hybridkit._tasks import TaskSet
from hybridkit.clients._transports._base import Request, Response
from hybridkit.clients._transports._http1 import Http1Transport
from hybridkit.errors import HybridkitError
from hybridkit.retry import retry_after_seconds
from hybridkit.testing._telegram._records import Params, RefusedError
from hybridkit.testing._telegram._updates import Updates, chat_of

SECRET_HEADER: Final = "x-telegram-bot-api-secret-token"  # noqa: S105  # the name of a header
DEFAULT_CONNECTIONS: Final = 40
MAX_CONNECTIONS: Final = 100
MAX_ANSWER_BYTES: Final = 1024 * 1024

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(slots=True, kw_only=True)
class _Target:
    url: str
    secret_token: str | None
    max_connections: int
    allowed_updates: list[str]
    has_certificate: bool
    errors: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


class Webhook:
    """The bot's webhook, if it has set one, and the deliveries to it.

    Args:
        updates: the updates to deliver.
        run_method: runs the method that the bot may give in its answer, `{"method": "sendMessage", …}`.
        changed: is called after each change.
        retry_seconds: the time until a delivery that has failed is repeated, unless `Retry-After` asks for more.
        timeout_seconds: how long the bot may take for its answer.
    """

    def __init__(
        self,
        updates: Updates,
        *,
        run_method: Callable[[dict[str, Any]], Awaitable[object]],
        changed: Callable[[], None],
        retry_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._updates = updates
        self._run_method = run_method
        self._changed = changed
        self._retry_seconds = retry_seconds
        self._timeout_seconds = timeout_seconds
        self._target: _Target | None = None
        self._transport = Http1Transport()
        self._deliveries = TaskSet()
        self._in_hand: dict[object, int] = {}
        self.attempts: dict[int, int] = {}
        """How often each update was delivered, also in vain."""

    def __repr__(self) -> str:
        return f"Webhook({self.url!r}, {len(self._in_hand)} in hand)"

    @property
    def url(self) -> str:
        """The URL; empty for none."""
        return "" if self._target is None else self._target.url

    def set(self, params: Params, *, has_certificate: bool) -> None:
        """Deliver to another URL from now on; an empty one turns the webhook off.

        Raises:
            RefusedError: Telegram refuses a parameter. A URL of loopback may also be one of plain HTTP here.
        """
        url = params.get("url", "")
        parts = urlsplit(url)
        if url and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise RefusedError(400, "Bad Request: bad webhook: An HTTPS URL must be provided for webhook")
        secret = params.get("secret_token") or None
        if secret is not None and not _SECRET.fullmatch(secret):
            raise RefusedError(400, "Bad Request: secret token contains unallowed characters")
        allowed = json.loads(params["allowed_updates"]) if "allowed_updates" in params else None
        self._updates.allow(allowed)
        before = [] if self._target is None else self._target.allowed_updates
        connections = int(params.get("max_connections", DEFAULT_CONNECTIONS))
        self._target = None
        for task in self._deliveries:
            task.cancel()
        if url:
            self._target = _Target(
                url=url,
                secret_token=secret,
                max_connections=min(max(connections, 1), MAX_CONNECTIONS),
                allowed_updates=before if allowed is None else allowed,
                has_certificate=has_certificate,
            )
        self._changed()

    def info(self) -> dict[str, Any]:
        """Return the state, as `getWebhookInfo` does."""
        target = self._target
        info: dict[str, Any] = {
            "url": self.url,
            "has_custom_certificate": target is not None and target.has_certificate,
            "pending_update_count": len(self._updates.pending),
        }
        if target is None:
            return info
        info |= {"max_connections": target.max_connections, "ip_address": "127.0.0.1"}
        if target.allowed_updates:
            info["allowed_updates"] = target.allowed_updates
        if target.errors:
            info["last_error_date"], info["last_error_message"] = target.errors[-1]
        return info

    def start_deliveries(self) -> None:
        """Start the deliveries of updates that wait, as far as the order of chats and `max_connections` allow."""
        target = self._target
        if target is None:
            return
        for update_id in self._updates.pending:
            chat = chat_of(self._updates[update_id])
            if len(self._in_hand) >= target.max_connections:
                return
            if chat not in self._in_hand:
                self._in_hand[chat] = update_id
                task = self._deliveries.start(self._deliver(update_id, target), name=f"webhook {update_id}")
                task.add_done_callback(partial(self._end, chat))

    def _end(self, chat: object, _: object) -> None:
        del self._in_hand[chat]
        self._changed()

    async def _deliver(self, update_id: int, target: _Target) -> None:
        """Deliver an update until the bot accepts it, or has another webhook or none."""
        while self._target is target and update_id in self._updates.pending:
            self.attempts[update_id] = self.attempts.get(update_id, 0) + 1
            self._changed()
            pause_seconds = self._retry_seconds
            try:
                answer = await self._post(target, self._updates[update_id])
            except (HybridkitError, TimeoutError) as error:
                self._note(
                    target, "Read timeout expired" if isinstance(error, TimeoutError) else "Connection failed"
                )
            else:
                if 200 <= answer.status < 300:
                    self._updates.confirm(update_id)
                    await self._run_answer(answer)
                    return
                self._note(target, f"Wrong response from the webhook: {answer.status}")
                asked = retry_after_seconds(answer.headers.get("retry-after"))
                pause_seconds = max(pause_seconds, asked or 0.0)
            await asyncio.sleep(pause_seconds)

    async def _post(self, target: _Target, update: dict[str, Any]) -> Response:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if target.secret_token is not None:
            headers[SECRET_HEADER] = target.secret_token
        request = Request(
            method="POST",
            url=target.url,
            headers=headers,
            body=json.dumps(update).encode(),
            timeout_seconds=self._timeout_seconds,
            connect_timeout_seconds=self._timeout_seconds,
            max_response_bytes=MAX_ANSWER_BYTES,
        )
        async with asyncio.timeout(self._timeout_seconds):
            return await self._transport.send(request)

    async def _run_answer(self, answer: Response) -> None:
        try:
            order: Any = json.loads(answer.body or b"null")
        except ValueError:
            return
        if isinstance(order, dict) and "method" in order:
            await self._run_method(cast("dict[str, Any]", order))

    def _note(self, target: _Target, problem: str) -> None:
        target.errors[:] = [(int(time.time()), problem)]

    async def aclose(self) -> None:
        """End all deliveries."""
        self._target = None
        await self._deliveries.cancel()
        await self._transport.aclose()
