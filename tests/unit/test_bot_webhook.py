"""Updates by webhook, from a fake Telegram over real HTTP."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiogram import Dispatcher
from aiogram.types import Message
from pydantic import SecretStr

from hybridkit.adapters._telegram import _webhook, _webhook_server
from hybridkit.adapters._telegram._handling import UpdateRunner
from hybridkit.adapters._telegram._webhook import Webhook
from hybridkit.errors import AccessDeniedError, SettingsError, UnavailableError
from hybridkit.observability import metrics
from hybridkit.settings import BotSettings
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.helpers import until
from tests.helpers.bots import ADA, BEA, World, crowd, dispatcher, lines, texts, world

__all__ = ["dispatcher", "lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")

SECRET = "x-telegram-bot-api-secret-token"


@asynccontextmanager
async def connected(webhook: Webhook) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", webhook.server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def post(
    webhook: Webhook,
    body: bytes,
    *,
    path: str | None = None,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    more: str = "",
) -> int:
    """Send a request as anybody could, with the right secret unless headers say otherwise; return its status."""
    path = path or urlsplit(webhook.server.url).path
    fields = {SECRET: webhook.server.secret} if headers is None else headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + more
    head = f"{method} {path} HTTP/1.1\r\nHost: bot\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    async with connected(webhook) as (reader, writer):
        writer.write(head.encode() + body)
        status_line = await reader.readline()
    return int(status_line.split()[1])


def update(update_id: int, text: str = "hello") -> bytes:
    chat = {"id": 7, "type": "private"}
    user = {"id": 7, "is_bot": False, "first_name": "Ada"}
    message = {"message_id": 1, "date": 1, "chat": chat, "from": user, "text": text}
    return json.dumps({"update_id": update_id, "message": message}).encode()


async def test_telegram_sends_updates_after_the_bot_has_set_its_webhook(
    world: World, dispatcher: Dispatcher
) -> None:
    """It is told the URL, the secret, the types that have handlers and the most connections, and is answered."""
    async with world.webhook(dispatcher) as webhook:
        sent = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        await world.telegram.wait_until_confirmed(sent)
        await webhook.probe()
        [told] = world.telegram.parameters_of("setWebhook")
        assert told["url"] == webhook.server.url
        assert told["secret_token"] == webhook.server.secret
        assert told["max_connections"] == "100"
        assert json.loads(told["allowed_updates"]) == ["message"]
        assert "getUpdates" not in world.telegram.calls
    assert dispatcher["seen"] == ["hello"]


async def test_path_and_secret_derive_from_the_token(world: World, dispatcher: Dispatcher) -> None:
    """All replicas have the same ones, another token has others, and neither contains the token."""
    found = []
    for token in ("4242:first-token", "4242:first-token", "4242:second-token"):
        async with (
            FakeTelegram(token=token) as telegram,
            World(telegram).webhook(dispatcher, bot_token=SecretStr(token)) as webhook,
        ):
            found.append((urlsplit(webhook.server.url).path, webhook.server.secret))
    first, same, other = found
    assert first == same
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert all("token" not in part for part in first)
    assert len(first[0]) == len("/telegram/") + 32
    assert len(first[1]) == 64


async def test_a_url_with_a_path_is_used_as_it_is(world: World, dispatcher: Dispatcher) -> None:
    """The path of `webhook_url` is the webhook's own, and any other is not found."""
    async with world.webhook(dispatcher, webhook_url="http://127.0.0.1:1/bots/ours", port=0) as webhook:
        assert webhook.server.url == "http://127.0.0.1:1/bots/ours"
        assert await post(webhook, update(1), path="/bots/ours?x=1") == 200
        assert await post(webhook, update(2), path="/bots/ours/") == 404
    assert dispatcher["seen"] == ["hello"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"headers": {}}, 401),
        ({"headers": {SECRET: ""}}, 401),
        ({"headers": {SECRET: "a" * 64}}, 401),
        ({"more": f"{SECRET}: other\r\n"}, 401),
        ({"path": "/telegram/00000000000000000000000000000000"}, 404),
        ({"path": "/"}, 404),
        ({"method": "GET"}, 405),
        ({"method": "PUT"}, 405),
    ],
)
async def test_a_request_that_is_not_from_telegram_is_refused(
    world: World, dispatcher: Dispatcher, changed: dict[str, Any], status: int
) -> None:
    """Without the one secret, to another path or by another method nothing runs, and the request is counted."""
    before = metrics.bot_webhook_requests.labels("refused")._value.get()
    async with world.webhook(dispatcher) as webhook:
        assert await post(webhook, update(1), **changed) == status
        assert await post(webhook, update(2, "after")) == 200
    assert dispatcher["seen"] == ["after"]
    assert metrics.bot_webhook_requests.labels("refused")._value.get() == before + 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b'{"update_id": "1"}', 400),
        (b'{"update_id": -1}', 400),
        (b'{"update_id": true}', 400),
        (b" " * (_webhook_server.MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_a_body_that_is_no_update_is_refused(
    world: World, dispatcher: Dispatcher, body: bytes, status: int
) -> None:
    """It is answered with 4xx, and the next update is handled."""
    async with world.webhook(dispatcher) as webhook:
        assert await post(webhook, body) == status
        assert await post(webhook, update(2, "after")) == 200
    assert dispatcher["seen"] == ["after"]


async def test_an_update_that_the_library_can_not_parse_is_not_repeated(
    world: World, dispatcher: Dispatcher
) -> None:
    """It is skipped, as it would be with polling."""
    async with world.webhook(dispatcher) as webhook:
        assert await post(webhook, b'{"update_id": 1, "message": {"date": "x"}}') == 200
        assert await post(webhook, b'{"update_id": 2, "later_kind": {}}') == 200


async def test_a_refusal_is_logged_once_a_minute(
    world: World, dispatcher: Dispatcher, lines: list[Any]
) -> None:
    """Anybody can cause refusals, and nobody can fill the log with them."""
    async with world.webhook(dispatcher) as webhook:
        for _ in range(5):
            assert await post(webhook, update(1), headers={}) == 401
    refused = [line for line in lines if "is refused" in line["event"]]
    assert len(refused) == 1
    assert refused[0]["reason"] == "without the secret"


@pytest.mark.parametrize(
    ("networks", "forwarded", "status"),
    [
        (["127.0.0.0/8"], None, 200),
        (["149.154.160.0/20"], None, 403),
        (["149.154.160.0/20", "91.108.4.0/22"], "91.108.7.255", 200),
        (["149.154.160.0/20"], "149.154.160.1, 203.0.113.9", 403),
        (["149.154.160.0/20"], "203.0.113.9, ::ffff:149.154.175.255", 200),
        (["149.154.160.0/20"], "149.154.176.0", 403),
        (["149.154.160.0/20"], "nonsense", 403),
        (["2001:db8::/32"], "2001:db8::1", 200),
        (["2001:db8::/32"], "149.154.160.1", 403),
    ],
)
async def test_only_the_networks_in_the_settings_may_send(
    world: World, dispatcher: Dispatcher, networks: list[str], forwarded: str | None, status: int
) -> None:
    """The address is the connection's or, behind a proxy, the last one in X-Forwarded-For, which the proxy appends."""
    more = "" if forwarded is None else f"X-Forwarded-For: {forwarded}\r\n"
    async with world.webhook(dispatcher, webhook_networks=networks) as webhook:
        assert await post(webhook, update(1), more=more) == status
    assert len(dispatcher["seen"]) == (status == 200)


async def test_the_chats_do_not_wait_for_each_other_and_each_is_in_order(
    world: World, dispatcher: Dispatcher
) -> None:
    """While one chat's handler waits, another chat is answered, and the first chat's next update waits."""
    async with world.webhook(dispatcher):
        world.telegram.push_text("wait", from_user=ADA)
        world.telegram.push_text("second", from_user=ADA)
        world.telegram.push_text("other", from_user=BEA)
        await world.telegram.wait_for_messages(1)
        assert texts(world.telegram) == ["other"]
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(3)
    assert texts(world.telegram) == ["other", "wait", "second"]


async def test_an_update_that_telegram_repeats_while_it_runs_runs_once(dispatcher: Dispatcher) -> None:
    """The repeated request waits for the handlers that run, and is answered when they end."""
    async with FakeTelegram(webhook_timeout_seconds=0.1) as telegram, World(telegram).webhook(dispatcher):
        sent = telegram.push_text("wait", from_user=ADA)
        await telegram.wait_for_deliveries(sent, count=3)
        dispatcher["release"].set()
        await telegram.wait_until_confirmed(sent)
    assert dispatcher["seen"] == ["wait"]


async def test_a_request_ends_before_telegram_gives_up_and_its_handlers_go_on(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time it is answered with 503, and the repeated one with 200 when they have ended."""
    monkeypatch.setattr(_webhook, "ANSWER_SECONDS", 0.05)
    async with world.webhook(dispatcher) as webhook:
        assert await post(webhook, update(1, "wait")) == 503
        assert await post(webhook, update(1, "wait")) == 503
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(1)
        assert await post(webhook, update(1, "wait")) == 200
    assert dispatcher["seen"] == ["wait"]


async def test_what_fails_unexpectedly_is_sent_again(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error outside of the handlers is answered with 503, and the repeated update is handled."""
    run, failures = UpdateRunner.run, [OSError("once"), OSError("twice")]

    async def failing(self: UpdateRunner, *given: Any, **named: Any) -> bool:
        if failures:
            raise failures.pop()
        return await run(self, *given, **named)

    monkeypatch.setattr(UpdateRunner, "run", failing)
    async with world.webhook(dispatcher):
        sent = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_until_confirmed(sent)
    assert world.telegram.deliveries_of(sent) == 3
    assert dispatcher["seen"] == ["hello"]


async def test_more_updates_than_fit_are_sent_again(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bot is not ready then, and takes them when there is room."""
    monkeypatch.setattr(_webhook, "MAX_RUNNING", 2)
    async with world.webhook(dispatcher) as webhook:
        for number in range(2):
            world.telegram.push_text("wait", from_user=TelegramUser(id=10 + number))
        await until(lambda: len(dispatcher["seen"]) == 2)
        third = world.telegram.push_text("third", from_user=ADA)
        await world.telegram.wait_for_deliveries(third, count=2)
        with pytest.raises(UnavailableError, match="2 updates are in hand"):
            await webhook.probe()
        dispatcher["release"].set()
        await world.telegram.wait_until_confirmed(third)
        await webhook.probe()
    assert dispatcher["seen"] == ["wait", "wait", "third"]


async def test_a_stop_finishes_what_runs_and_leaves_the_rest_to_the_next_process(
    world: World, dispatcher: Dispatcher
) -> None:
    """The running update is answered; what waits behind it is handled by the next process, as the webhook stays set."""
    async with world.webhook(dispatcher) as webhook:
        running = world.telegram.push_text("wait", from_user=ADA)
        await until(lambda: dispatcher["seen"])
        await webhook.stop_accepting(1)
        draining = asyncio.create_task(webhook.drain(30))
        behind = world.telegram.push_text("behind", from_user=ADA)
        other = world.telegram.push_text("other", from_user=BEA)
        await world.telegram.wait_for_deliveries(other, count=2)
        dispatcher["release"].set()
        await draining
        await world.telegram.wait_until_confirmed(running)
    assert world.telegram.deliveries_of(running) == 1
    assert dispatcher["seen"] == ["wait"]
    assert world.telegram.webhook_url == webhook.server.url
    async with world.webhook(dispatcher):
        await world.telegram.wait_until_confirmed(behind)
        await world.telegram.wait_until_confirmed(other)
    assert sorted(dispatcher["seen"]) == ["behind", "other", "wait"]


async def test_a_handler_that_takes_too_long_at_the_stop_is_cancelled_and_repeated(
    world: World, dispatcher: Dispatcher
) -> None:
    """Its request is answered with 503, and the next process runs it."""
    async with world.webhook(dispatcher) as webhook:
        sent = world.telegram.push_text("wait", from_user=ADA)
        await until(lambda: dispatcher["seen"])
        await webhook.stop_accepting(1)
        await webhook.drain(0)
    dispatcher["release"].set()
    async with world.webhook(dispatcher):
        await world.telegram.wait_until_confirmed(sent)
    assert dispatcher["seen"] == ["wait", "wait"]


async def test_polling_deletes_the_webhook(world: World, dispatcher: Dispatcher) -> None:
    """What Telegram still has for the webhook is then polled for."""
    async with world.webhook(dispatcher):
        pass
    assert world.telegram.webhook_url
    world.telegram.push_text("hello", from_user=ADA)
    async with world.polling(dispatcher):
        await world.telegram.wait_for_messages(1)
    assert not world.telegram.webhook_url


async def test_a_url_that_telegram_refuses_is_a_problem_of_the_settings(
    world: World, dispatcher: Dispatcher
) -> None:
    """The error names the setting and has Telegram's words."""
    with pytest.raises(SettingsError, match=r"WEBHOOK_URL: .*HTTPS URL must be provided"):
        async with world.webhook(dispatcher, webhook_url="http://bot.example.com"):
            pass


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDeniedError), (500, UnavailableError), (429, UnavailableError)]
)
async def test_a_start_without_telegram_fails(
    world: World, dispatcher: Dispatcher, status: int, error: type[Exception]
) -> None:
    """It can be tried again, except with a token that Telegram does not know."""
    world.telegram.fail("setWebhook", status=status)
    with pytest.raises(error):
        async with world.webhook(dispatcher):
            pass
    async with world.webhook(dispatcher) as webhook:
        await webhook.probe()


async def test_a_webhook_that_was_changed_elsewhere_turns_readiness_red(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason says that another process has set or deleted it, or that Telegram does not answer."""
    monkeypatch.setattr(_webhook_server, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(_webhook_server, "CHECK_AGAIN_SECONDS", 0.02)
    async with world.webhook(dispatcher) as webhook:
        ours = webhook.server.url

        async def problem() -> str:
            try:
                await webhook.probe()
            except UnavailableError as error:
                return str(error)
            return ""

        async def until_problem(words: str) -> None:
            async def is_told() -> bool:
                return (await problem()).endswith(words) if words else not await problem()

            await until(is_told)

        world.telegram._webhook.set({"url": "http://127.0.0.1:1/other"}, has_certificate=False)
        await until_problem("it has another webhook")
        calls = world.telegram.calls.count("getWebhookInfo")
        await world.telegram.wait_for_calls("getWebhookInfo", count=calls + 2)
        world.telegram._webhook.set({"url": ""}, has_certificate=False)
        await until_problem("another process has deleted the webhook")
        world.telegram._webhook.set({"url": ours}, has_certificate=False)
        await until_problem("")
        world.telegram.fail("getWebhookInfo", status=500, times=1_000_000)
        await until_problem("TelegramServerError")
        world.telegram._faults.clear()
        await until_problem("")
        stopped = asyncio.Event()
        waiting = asyncio.create_task(webhook.until(stopped))
        world.telegram.fail("getWebhookInfo", status=401)
        with pytest.raises(AccessDeniedError):
            await waiting


async def test_until_ends_with_its_event(world: World, dispatcher: Dispatcher) -> None:
    """A stop that was asked for is no error."""
    async with world.webhook(dispatcher) as webhook:
        stopped = asyncio.Event()
        stopped.set()
        await webhook.until(stopped)


async def test_many_chats_are_handled_through_one_webhook(world: World, dispatcher: Dispatcher) -> None:
    """Two hundred chats are answered once each."""
    async with world.webhook(dispatcher):
        crowd(world.telegram, 200)
        await world.telegram.wait_for_messages(200, timeout_seconds=60)
    assert len(dispatcher["seen"]) == 200


def test_a_webhook_needs_its_url() -> None:
    """The report says what to set; polling and a queue need none."""
    values: dict[str, Any] = {
        "service_name": "bot",
        "bot_token": "1:x",
        "redis_url": "redis://127.0.0.1:1/0",
        "rabbitmq_url": "amqp://127.0.0.1:1/",
    }
    with pytest.raises(SettingsError, match="WEBHOOK_URL: should be the public HTTPS URL"):
        BotSettings(**values, updates="webhook")
    assert BotSettings(**values).updates == "polling"
    assert BotSettings(**values, updates="queue").webhook_url is None


async def test_an_answer_of_a_handler_is_sent_by_the_bot(world: World) -> None:
    """A method that a handler returns is called, as with polling; the response to Telegram has no body."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def answer(message: Message) -> Any:
        return message.answer("returned")

    async with world.webhook(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
    assert texts(world.telegram) == ["returned"]


async def test_an_open_connection_is_told_to_come_again_at_the_stop(
    world: World, dispatcher: Dispatcher
) -> None:
    """The next request on it is answered with 503 and not handled, and the connection ends."""
    async with world.webhook(dispatcher) as webhook, connected(webhook) as (reader, writer):
        path = urlsplit(webhook.server.url).path
        head = f"POST {path} HTTP/1.1\r\nHost: bot\r\n{SECRET}: {webhook.server.secret}\r\n"
        for update_id in (1, 2):
            body = update(update_id)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if update_id == 1:
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200")
                await webhook.stop_accepting(1)
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
        await webhook.drain(1)
    assert dispatcher["seen"] == ["hello"]


async def test_its_representation_shows_no_secret(world: World, dispatcher: Dispatcher) -> None:
    """Neither the path nor the secret nor the token can end in a log by it."""
    async with world.webhook(dispatcher) as webhook:
        shown = repr(webhook)
        assert webhook.server.secret not in shown
        assert urlsplit(webhook.server.url).path not in shown
        assert world.telegram.token not in shown
    assert shown.endswith("RunningUpdates(0 updates of 0 chats))")
