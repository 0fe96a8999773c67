"""FakeTelegram keeps the Bot API's promises, seen through a real client over real HTTP."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramConflictError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.types import BufferedInputFile

from hybridkit.testing import FakeTelegram, TelegramUser
from hybridkit.testing.__main__ import main

ADA = TelegramUser(id=7, first_name="Ада", language_code="ru")


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    async with FakeTelegram() as server:
        yield server


@pytest.fixture
async def bot(telegram: FakeTelegram) -> AsyncIterator[Bot]:
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
    async with Bot(telegram.token, session=session).context() as client:
        yield client


async def test_a_bot_introduces_itself(telegram: FakeTelegram, bot: Bot) -> None:
    """The bot's id is the one in its token."""
    assert (await bot.get_me()).id == telegram.bot_id == bot.id


async def test_an_update_comes_again_until_an_offset_confirms_it(telegram: FakeTelegram, bot: Bot) -> None:
    """A bot that dies before it confirms an update gets it again."""
    update_id = telegram.push_text("/start", from_user=ADA)
    for _ in range(2):
        [update] = await bot.get_updates()
        assert update.message is not None
        assert (update.update_id, update.message.text) == (update_id, "/start")
        assert update.message.from_user is not None
        assert update.message.from_user.first_name == "Ада"
    assert telegram.confirmed_update_id < update_id
    assert await bot.get_updates(offset=update_id + 1) == []
    await telegram.wait_until_confirmed(update_id)


async def test_a_confirmed_update_can_be_delivered_once_more(telegram: FakeTelegram, bot: Bot) -> None:
    """It comes once, although the bot's offset is beyond it, as Telegram does now and then."""
    update_id = telegram.push_text("hello", from_user=ADA)
    await bot.get_updates(offset=update_id + 1)
    telegram.redeliver(update_id)
    assert [update.update_id for update in await bot.get_updates(offset=update_id + 1)] == [update_id]
    assert await bot.get_updates(offset=update_id + 1) == []


async def test_a_long_poll_ends_with_the_first_update(telegram: FakeTelegram, bot: Bot) -> None:
    """It doesn't wait for its timeout."""
    poll = asyncio.create_task(bot.get_updates(timeout=60))
    await telegram.wait_for_calls("getUpdates")
    update_id = telegram.push_text("hello", from_user=ADA)
    async with asyncio.timeout(60):
        assert [update.update_id for update in await poll] == [update_id]


async def test_a_second_poller_ends_the_first(telegram: FakeTelegram, bot: Bot) -> None:
    """The first one gets 409, as Telegram answers two instances of one bot."""
    first = asyncio.create_task(bot.get_updates(timeout=60))
    await telegram.wait_for_calls("getUpdates")
    assert await bot.get_updates() == []
    with pytest.raises(TelegramConflictError):
        await first


async def test_sent_messages_are_recorded(telegram: FakeTelegram, bot: Bot) -> None:
    """Each has everything that the bot passed, in any script."""
    answer = await bot.send_message(7, "Добро пожаловать & welcome", parse_mode="HTML")
    [message] = await telegram.wait_for_messages(1)
    assert (message.chat_id, message.text) == (7, "Добро пожаловать & welcome")
    assert message.parameters["parse_mode"] == "HTML"
    assert answer.message_id == message.message_id


async def test_a_refused_call_has_no_effect(telegram: FakeTelegram, bot: Bot) -> None:
    """The fault refuses as many calls as it was told, and the next call is done."""
    telegram.fail("sendMessage", status=429, retry_after_seconds=3)
    with pytest.raises(TelegramRetryAfter) as caught:
        await bot.send_message(7, "hello")
    assert caught.value.retry_after == 3
    telegram.fail("sendMessage", status=502, times=2)
    for _ in range(2):
        with pytest.raises(TelegramServerError):
            await bot.send_message(7, "hello")
    assert telegram.messages == []
    await bot.send_message(7, "hello")
    assert len(telegram.messages) == 1


async def test_a_wrong_token_opens_nothing(telegram: FakeTelegram) -> None:
    """It is answered with 401."""
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
    async with Bot("1:another", session=session).context() as stranger:
        with pytest.raises(TelegramUnauthorizedError):
            await stranger.get_me()


async def test_what_telegram_refuses_is_refused(telegram: FakeTelegram, bot: Bot) -> None:
    """The descriptions are Telegram's own, which bots match on."""
    with pytest.raises(TelegramBadRequest, match="chat not found"):
        await bot.send_message("nobody", "hello")
    with pytest.raises(TelegramBadRequest, match="text is empty"):
        await bot.send_message(7, "")
    with pytest.raises(TelegramNotFound, match="sendPhoto"):
        await bot.send_photo(7, BufferedInputFile(b"\x89PNG", "a.png"), caption="an upload, chunked")


async def test_pending_updates_can_be_dropped(telegram: FakeTelegram, bot: Bot) -> None:
    """`deleteWebhook` confirms all of them."""
    telegram.push_text("old", from_user=ADA)
    await bot.delete_webhook(drop_pending_updates=True)
    assert await bot.get_updates() == []


async def test_closing_ends_a_poll_in_progress() -> None:
    """A bot that still polls doesn't keep the test from ending."""
    async with FakeTelegram() as telegram:
        session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
        async with Bot(telegram.token, session=session).context() as bot:
            poll = asyncio.create_task(bot.get_updates(timeout=60))
            await telegram.wait_for_calls("getUpdates")
            async with asyncio.timeout(60):
                await telegram.__aexit__(None, None, None)
                with suppress(Exception):
                    await poll


async def test_waiting_says_what_did_not_happen(telegram: FakeTelegram) -> None:
    """The error names what did, so that a failing test explains itself."""
    with pytest.raises(TimeoutError, match="0 of 1 messages"):
        await telegram.wait_for_messages(1, timeout_seconds=0.01)
    with pytest.raises(TimeoutError, match="getMe was not called 2 times"):
        await telegram.wait_for_calls("getMe", count=2, timeout_seconds=0.01)
    with pytest.raises(TimeoutError, match="update 5 was not confirmed"):
        await telegram.wait_until_confirmed(5, timeout_seconds=0.01)


# ── driven from another process ──────────────────────────────────────────────────────────────────


async def test_another_process_drives_it_over_http(telegram: FakeTelegram, bot: Bot) -> None:
    """Updates, faults and redeliveries go in, and the state comes out."""
    async with httpx.AsyncClient(base_url=telegram.url) as client:
        said = {"text": "hello", "from_user": {"id": 7, "first_name": "Ada"}}
        text = (await client.post("/control/updates", json=said)).json()["result"]["update_id"]
        raw = (await client.post("/control/updates", json={"poll": {}})).json()["result"]["update_id"]
        assert (text, raw) == (1001, 1002)
        await client.post("/control/faults", json={"method": "sendMessage", "status": 502})
        with pytest.raises(TelegramServerError):
            await bot.send_message(7, "lost")
        await bot.send_message(7, "hello", disable_notification=True)
        assert (await client.get("/health")).json() == {"ok": True, "result": True}
        state = (await client.get("/control/state")).json()["result"]
        assert [sent["text"] for sent in state["messages"]] == ["hello"]
        assert state["messages"][0]["parameters"]["disable_notification"] == "true"
        await bot.get_updates(offset=raw + 1)
        await client.post("/control/redeliver", json={"update_id": text})
        assert [update.update_id for update in await bot.get_updates(offset=raw + 1)] == [text]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/control/nonsense", "{}", 404),
        ("/control/redeliver", '{"update_id": 7}', 400),
        ("/control/faults", "not JSON", 400),
    ],
)
async def test_what_it_is_not_told_clearly_it_refuses(
    telegram: FakeTelegram, path: str, body: str, status: int
) -> None:
    """The HTTP status tells it to a script."""
    async with httpx.AsyncClient(base_url=telegram.url) as client:
        assert (await client.post(path, content=body)).status_code == status


async def test_parameters_come_in_the_url_as_json_or_as_a_form(telegram: FakeTelegram) -> None:
    """Clients of the Bot API use all of these forms; of a file only its name is kept."""
    url = f"{telegram.url}/bot{telegram.token}/sendMessage"
    async with httpx.AsyncClient() as client:
        await client.get(f"{url}?chat_id=7&text=one")
        await client.post(url, json={"chat_id": 7, "text": "two"})
        await client.post(url, data={"chat_id": "7", "text": "three"})
        await client.post(
            url, files={"chat_id": (None, "7"), "text": (None, "four"), "photo": ("a.png", b"\x89")}
        )
    assert [message.text for message in telegram.messages] == ["one", "two", "three", "four"]
    assert telegram.messages[3].parameters["photo"] == "a.png"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hybridkit.testing", "telegram", *arguments]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_as_a_process_it_answers_a_bot_until_a_signal(number: signal.Signals) -> None:
    """It prints the settings of a bot, and ends on Ctrl-C or SIGTERM with 0."""
    process = await asyncio.create_subprocess_exec(*command("--port", "0"), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
            settings = dict(line.split("=", 1) for line in lines)
            session = AiohttpSession(api=TelegramAPIServer.from_base(settings["TELEGRAM_API_URL"]))
            async with Bot(settings["BOT_TOKEN"], session=session).context() as bot:
                assert (await bot.send_message(7, "hello")).text == "hello"
            process.send_signal(number)
            assert await process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_as_a_process_it_says_that_its_port_is_taken(telegram: FakeTelegram) -> None:
    """It ends with exit code 1, and without a traceback."""
    process = await asyncio.create_subprocess_exec(
        *command("--port", telegram.url.rpartition(":")[2], "--token", "7:secret"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.startswith(b"fake Telegram: ")
    assert b"Traceback" not in errors


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names the options, their defaults, and how another process drives the fake."""
    with pytest.raises(SystemExit) as end:
        main(["telegram", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--port", "8081", "--token", "/control/updates"))
