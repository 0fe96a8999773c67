"""The server of the webhook: it checks who sends an update, and answers when the update is safe.

Telegram repeats an update that is not answered with 2xx, also when it has waited for about a minute, and sends the
updates of a chat one after another. https://core.telegram.org/bots/api#setwebhook
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from aiogram import Bot
from aiogram.exceptions import AiogramError, TelegramBadRequest, TelegramUnauthorizedError

from hybridkit._header_fields import Fields
from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit._tasks import is_set_within
from hybridkit.adapters._telegram._reading import id_of, token_error
from hybridkit.errors import SettingsError, UnavailableError
from hybridkit.observability import get_logger, metrics
from hybridkit.settings import BotSettings, SecretUrl

SECRET_HEADER: Final = "x-telegram-bot-api-secret-token"  # noqa: S105  # nosec B105  # the name of a header

MAX_CONNECTIONS: Final = 100
"""The most updates that Telegram sends at a time; it allows no more."""

MAX_BODY_BYTES: Final = 1024 * 1024
"""The largest update; Telegram's are far smaller."""

READ_SECONDS: Final = 30.0
"""How long a connection may wait for a whole request."""

ANSWER_SECONDS: Final = 50.0
"""How long a request waits for its update; Telegram gives up after a minute, and repeats it."""

CHECK_SECONDS: Final = 60.0
"""The interval of the question where Telegram sends updates, and how many wait there."""

CHECK_AGAIN_SECONDS: Final = 5.0

_log = get_logger("hybridkit.bot")


class WebhookServer:
    """Listens for Telegram's requests, and has Telegram send them.

    Secret and path derive from the bot's token, so that all replicas have the same without a setting.

    Args:
        bot: the bot whose webhook is set.
        settings: say where to listen, and the public URL.
        types: the types of updates that Telegram is to send.
        accept: is awaited with the id and the JSON value of each update, and returns False where Telegram has to send
            it again.

    Attributes:
        port: the port that it listens on, once entered.
        url: the URL that Telegram sends to.
        secret: the secret that each request has to have.
    """

    def __init__(
        self,
        bot: Bot,
        settings: BotSettings,
        types: Sequence[str],
        accept: Callable[[int, object], Awaitable[bool]],
    ) -> None:
        self.port = settings.port
        self.url = _url(settings.webhook_url, token=bot.token)
        self.secret = _derived(bot.token, "secret")
        self._bot = bot
        self._host = settings.host
        self._networks = settings.webhook_networks
        self._types = types
        self._accept = accept
        self._path = urlsplit(self.url).path.encode()
        self._problem = ""
        self._refusal_logged_at = -CHECK_SECONDS
        self._stopping = asyncio.Event()
        self._check: asyncio.Task[None]
        self._server = HttpServer(
            self._answer,
            refuse=lambda status, _: _refused(status),
            name="hybridkit webhook connection",
            limits=HttpLimits(
                body_bytes=MAX_BODY_BYTES,
                read_seconds=READ_SECONDS,
                exchange_seconds=READ_SECONDS + ANSWER_SECONDS + 10.0,
                connections=2 * MAX_CONNECTIONS,
            ),
        )

    def __repr__(self) -> str:
        return f"WebhookServer(port={self.port}, problem={self._problem!r})"

    async def __aenter__(self) -> Self:
        """Listen, then have Telegram send updates.

        Raises:
            OSError: the port is taken, or may not be used.
            SettingsError: Telegram refuses the URL.
            AccessDeniedError: Telegram does not know the token.
            UnavailableError: Telegram does not answer.
        """
        self.port = await self._server.listen(self._host, self.port)
        try:
            await self._set()
        except BaseException:
            await self._server.close()
            raise
        self._check = asyncio.create_task(self._check_often(), name="hybridkit webhook check")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        self._check.cancel()
        await asyncio.wait({self._check})
        await self._server.close()

    async def until(self, stopped: asyncio.Event) -> None:
        """Wait until an event is set.

        Raises:
            AccessDeniedError: Telegram does not accept the token any more.
        """
        waiting = asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({waiting, self._check}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stopped.is_set():
            await self._check

    def check(self) -> None:
        """Check what Telegram has said of the webhook.

        Raises:
            UnavailableError: Telegram does not answer, or sends updates elsewhere; the message says which.
        """
        if self._problem:
            raise UnavailableError(f"Telegram sends no updates: {self._problem}")

    def stop_accepting(self) -> None:
        """Stop listening, and have Telegram repeat what arrives on open connections. The webhook stays set."""
        self._stopping.set()
        self._server.stop_listening()

    async def drain(self, seconds: float) -> None:
        """Wait for the responses to requests that have begun."""
        await self._server.drain(seconds)

    # ── what Telegram knows ──────────────────────────────────────────────────────────────────────

    async def _set(self) -> None:
        try:
            await self._bot.set_webhook(
                self.url,
                secret_token=self.secret,
                allowed_updates=list(self._types),
                max_connections=MAX_CONNECTIONS,
            )
        except TelegramUnauthorizedError:
            raise token_error() from None
        except TelegramBadRequest as error:
            raise SettingsError(
                "Telegram refuses the webhook:", problems=[f"WEBHOOK_URL: {error.message}"]
            ) from None
        except AiogramError as error:
            raise UnavailableError(f"Telegram does not answer: {type(error).__name__}") from error
        _log.info("the webhook is set", host=urlsplit(self.url).netloc, types=len(self._types))

    async def _check_often(self) -> None:
        """Ask Telegram where it sends updates, as another process with the token can change that."""
        while not await is_set_within(
            self._stopping, seconds=CHECK_AGAIN_SECONDS if self._problem else CHECK_SECONDS
        ):
            try:
                info = await self._bot.get_webhook_info()
            except TelegramUnauthorizedError:
                raise token_error() from None
            except Exception as error:  # noqa: BLE001  # an odd answer may raise anything, and the next may be good
                self._note(type(error).__name__)
                continue
            metrics.bot_webhook_backlog.set(info.pending_update_count)
            if info.url == self.url:
                self._note("")
            else:
                self._note(
                    "it has another webhook" if info.url else "another process has deleted the webhook"
                )

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("the webhook", problem=problem or "none any more")
        self._problem = problem

    # ── what Telegram sends ──────────────────────────────────────────────────────────────────────

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if (refusal := self._refusal(request)) is not None:
            return self._refuse(*refusal)
        if self._stopping.is_set():
            return _later()
        try:
            raw: Any = json.loads(request.body)
        except (ValueError, RecursionError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "no JSON")
        update_id = id_of(raw)
        if update_id is None:
            return self._refuse(HTTPStatus.BAD_REQUEST, "no update_id")
        if not await self._accept(update_id, raw):
            return _later()
        metrics.bot_webhook_requests.labels("done").inc()
        return HttpResponse(HTTPStatus.OK)

    def _refusal(self, request: HttpRequest) -> tuple[HTTPStatus, str] | None:
        """Return why a request is not from Telegram; the path and the secret are compared in constant time."""
        path = request.target.partition("?")[0].encode()
        if not hmac.compare_digest(path, self._path):
            return HTTPStatus.NOT_FOUND, "another path"
        if request.method != "POST":
            return HTTPStatus.METHOD_NOT_ALLOWED, "another method than POST"
        fields = Fields(request.headers)
        if self._networks and not self._is_known(_sender(request, fields.listed("x-forwarded-for"))):
            return HTTPStatus.FORBIDDEN, "an address outside of WEBHOOK_NETWORKS"
        secrets = [value for name, value in request.headers if name == SECRET_HEADER.encode()]
        if len(secrets) != 1 or not hmac.compare_digest(secrets[0], self.secret.encode()):
            return HTTPStatus.UNAUTHORIZED, "without the secret"
        return None

    def _is_known(self, sender: str) -> bool:
        try:
            address = ip_address(sender)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def _refuse(self, status: HTTPStatus, reason: str) -> HttpResponse:
        # Anybody can send requests: a line for each would fill the log.
        if time.monotonic() - self._refusal_logged_at >= CHECK_SECONDS:
            self._refusal_logged_at = time.monotonic()
            _log.warning(
                "a request to the webhook is refused; others in this minute are only counted", reason=reason
            )
        return _refused(status)


def _refused(status: int) -> HttpResponse:
    metrics.bot_webhook_requests.labels("refused").inc()
    return HttpResponse(status, [(b"connection", b"close")])


def _later() -> HttpResponse:
    metrics.bot_webhook_requests.labels("later").inc()
    return HttpResponse(HTTPStatus.SERVICE_UNAVAILABLE, [(b"retry-after", b"1")])


def _sender(request: HttpRequest, forwarded: str | None) -> str:
    """Return the address of the sender: the one that the nearest proxy has appended, or the connection's."""
    return request.peer if forwarded is None else forwarded.rpartition(",")[2].strip()


def _url(base: SecretUrl | None, *, token: str) -> str:
    parts = urlsplit("" if base is None else base.get_secret_value())
    path = parts.path if parts.path.strip("/") else f"/telegram/{_derived(token, 'path')[:32]}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _derived(token: str, purpose: str) -> str:
    """Return 64 characters that only those who know the token can know."""
    return hmac.new(token.encode(), f"hybridkit webhook {purpose}".encode(), "sha256").hexdigest()
