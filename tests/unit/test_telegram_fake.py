"""FakeTelegram keeps the Bot API's promises, seen through a real client over real HTTP."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.types import (
    BotCommand,
    BufferedInputFile,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InputMediaDocument,
    InputMediaPhoto,
    KeyboardButton,
    ReplyKeyboardMarkup,
)

from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit.testing import FakeTelegram, LimitViolation, TelegramUser
from hybridkit.testing.__main__ import main
from hybridkit.testing._telegram._limits import Limits
from hybridkit.testing._telegram._updates import chat_of

ADA = TelegramUser(id=7, first_name="Ада", language_code="ru")


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    async with FakeTelegram() as server:
        yield server


def keyboard(*rows: list[InlineKeyboardButton]) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup(inline_keyboard=list(rows))


async def test_a_button_is_pressed_by_its_words_or_its_data(telegram: FakeTelegram, bot: Bot) -> None:
    """The bot gets a query about the latest message that has the button, as its own client reads it."""
    rent = InlineKeyboardButton(text="Rent it", callback_data="rent:1")
    shop = InlineKeyboardButton(text="Our shop", url="https://shop.example.com")
    await bot.send_message(ADA.id, "Emma", reply_markup=keyboard([rent], [shop]))
    await bot.send_message(99, "Emma", reply_markup=keyboard([rent]))
    later = InlineKeyboardButton(text="Rent it", callback_data="rent:2")
    await bot.send_message(ADA.id, "Persuasion", reply_markup=keyboard([later]))
    assert [[each.text for each in row] for row in telegram.messages[0].keyboard] == [
        ["Rent it"],
        ["Our shop"],
    ]
    assert telegram.messages[0].keyboard[1][0].url == "https://shop.example.com"
    telegram.press("Rent it", from_user=ADA)
    telegram.press("rent:1", from_user=ADA)
    first, second = [update.callback_query for update in await bot.get_updates()]
    assert first is not None
    assert second is not None
    assert (first.data, first.from_user.id, first.message and first.message.message_id) == (
        "rent:2",
        ADA.id,
        3,
    )
    assert (second.data, second.message and second.message.message_id) == ("rent:1", 1)


async def test_a_button_of_a_reply_keyboard_sends_its_words(telegram: FakeTelegram, bot: Bot) -> None:
    """As a user's own keyboard would."""
    asking = ReplyKeyboardMarkup(keyboard=[[KeyboardButton(text="Yes"), KeyboardButton(text="No")]])
    await bot.send_message(ADA.id, "Sure?", reply_markup=asking)
    telegram.press("No", from_user=ADA)
    [update] = await bot.get_updates()
    assert update.message is not None
    assert update.message.text == "No"


async def test_a_button_that_is_not_there_names_those_that_are(telegram: FakeTelegram, bot: Bot) -> None:
    """One that opens an address sends nothing, and an edited or deleted message has lost its own."""
    rent = InlineKeyboardButton(text="Rent it", callback_data="rent:1")
    shop = InlineKeyboardButton(text="Our shop", url="https://shop.example.com")
    for book in ("Emma", "Persuasion"):
        await bot.send_message(ADA.id, book, reply_markup=keyboard([rent, shop]))
    for button in ("Buy it", "Our shop"):
        with pytest.raises(LookupError, match=r"no button .* there are \['Rent it', 'Our shop', 'Rent it'"):
            telegram.press(button, from_user=ADA)
    await bot.edit_message_text("Rented", chat_id=ADA.id, message_id=1)
    await bot.delete_message(ADA.id, 2)
    assert list(telegram.messages[0].keyboard) == []
    with pytest.raises(LookupError, match=r"there are \[\]"):
        telegram.press("Rent it", from_user=ADA)


@asynccontextmanager
async def client_of(telegram: FakeTelegram) -> AsyncGenerator[Bot]:
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
    async with Bot(telegram.token, session=session).context() as client:
        yield client


@pytest.fixture
async def bot(telegram: FakeTelegram) -> AsyncIterator[Bot]:
    async with client_of(telegram) as client:
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
    with pytest.raises(TelegramBadRequest, match="message is too long"):
        await bot.send_message(7, "x" * 4097)


async def test_a_method_that_it_does_not_know_is_not_found(telegram: FakeTelegram) -> None:
    """The answer has the shape of Telegram's own for an unknown method."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{telegram.url}/bot{telegram.token}/sendNonsense")
    assert answer.status_code == 404
    assert answer.json() == {"ok": False, "error_code": 404, "description": "Not Found: method not found"}


async def test_a_file_goes_up_and_comes_down_again(telegram: FakeTelegram, bot: Bot) -> None:
    """An upload, in the form that aiogram sends in chunks, is found by the id that Telegram gives it."""
    content = b"\x89PNG" + bytes(range(256)) * 100
    sent = await bot.send_document(7, BufferedInputFile(content, "a.png"), caption="an upload")
    assert sent.document is not None
    assert telegram.messages[0].text == "an upload"
    assert telegram.files[sent.document.file_id] == content
    found = await bot.download(sent.document.file_id)
    assert found is not None
    assert found.read() == content
    with pytest.raises(TelegramBadRequest, match="invalid file_id"):
        await bot.get_file("unknown")
    again = await bot.send_photo(8, sent.document.file_id)
    assert again.photo is not None
    assert again.photo[0].file_id == sent.document.file_id


async def test_a_message_is_edited_and_deleted(telegram: FakeTelegram, bot: Bot) -> None:
    """The list of messages has each as it is now; an edit that changes nothing is refused."""
    sent = await bot.send_message(7, "one")
    await bot.edit_message_text("two", chat_id=7, message_id=sent.message_id)
    assert telegram.messages[0].text == "two"
    with pytest.raises(TelegramBadRequest, match="message is not modified"):
        await bot.edit_message_text("two", chat_id=7, message_id=sent.message_id)
    await bot.delete_message(7, sent.message_id)
    assert telegram.messages[0].is_deleted
    with pytest.raises(TelegramBadRequest, match="message to edit not found"):
        await bot.edit_message_text("three", chat_id=7, message_id=sent.message_id)
    with pytest.raises(TelegramBadRequest, match="message to delete not found"):
        await bot.delete_message(8, sent.message_id)


async def test_a_user_who_has_blocked_the_bot_gets_nothing(telegram: FakeTelegram, bot: Bot) -> None:
    """Sending is refused with 403 until the user starts the bot again."""
    telegram.block(7)
    with pytest.raises(TelegramForbiddenError, match="bot was blocked by the user"):
        await bot.send_message(7, "hello")
    telegram.unblock(7)
    await bot.send_message(7, "hello")
    assert [message.text for message in telegram.messages] == ["hello"]


async def test_messages_over_telegrams_limits_are_noted_and_may_be_refused() -> None:
    """A chat takes one message a second with short bursts; a call before its time is noted once more."""
    async with FakeTelegram(enforces_limits=True) as telegram, client_of(telegram) as bot:
        now = 100.0
        telegram._limits._clock = lambda: now
        for _ in range(8):
            await bot.send_message(7, "hello")
        with pytest.raises(TelegramRetryAfter) as caught:
            await bot.send_message(7, "too much")
        assert caught.value.retry_after == 5
        await bot.send_chat_action(7, "typing")  # no message
        assert [violation.limit for violation in telegram.violations] == ["chat"]
        now += 4
        with pytest.raises(TelegramRetryAfter):
            await bot.send_message(7, "too early")
        assert [violation.limit for violation in telegram.violations] == ["chat", "retry_after", "chat"]
        now += 1
        await bot.send_message(7, "in time")
        assert len(telegram.messages) == 9


@pytest.mark.parametrize(
    ("chats", "limit", "most"), [(["-5"], "group", 20), ([str(n) for n in range(50)], "bot", 30)]
)
def test_groups_and_the_bot_itself_have_limits_too(chats: list[str], limit: str, most: int) -> None:
    """A group takes twenty messages a minute, and all chats together thirty a second."""
    limits = Limits(enforces=False, clock=lambda: 100.0)
    for number in range(most + 1):
        limits.check("sendMessage", {"chat_id": chats[number % len(chats)]})
    assert [violation.limit for violation in limits.violations] == [limit]


async def test_a_429_names_the_time_before_which_no_message_may_come(
    telegram: FakeTelegram, bot: Bot
) -> None:
    """A bot that doesn't wait for it is found out; another chat isn't concerned."""
    telegram.fail("sendMessage", status=429, retry_after_seconds=60, chat_id=7)
    await bot.send_message(8, "hello")
    with pytest.raises(TelegramRetryAfter):
        await bot.send_message(7, "hello")
    await bot.send_message(7, "too early")
    assert telegram.violations == [LimitViolation("retry_after", "sendMessage", "7")]


# ── the webhook ──────────────────────────────────────────────────────────────────────────────────


class Receiver:
    """A webhook that answers as it was told, and 200 otherwise."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.secrets: list[str | None] = []
        self.answers: list[HttpResponse] = []

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        self.texts.append(json.loads(request.body)["message"]["text"])
        secret = dict(request.headers).get(b"x-telegram-bot-api-secret-token")
        self.secrets.append(None if secret is None else secret.decode())
        return self.answers.pop(0) if self.answers else HttpResponse(200)


@pytest.fixture
async def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def webhook_url(receiver: Receiver) -> AsyncIterator[str]:
    server = HttpServer(
        receiver, refuse=lambda status, _: HttpResponse(status), name="webhook", limits=HttpLimits()
    )
    port = await server.listen("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}/telegram"
    await server.close()


async def test_a_webhook_gets_the_updates_with_its_secret(
    telegram: FakeTelegram, bot: Bot, receiver: Receiver, webhook_url: str
) -> None:
    """Those that wait and those that come; an accepted one is not delivered again, and polling is refused."""
    first = telegram.push_text("one", from_user=ADA)
    await bot.set_webhook(webhook_url, secret_token="s-3_cret", max_connections=5)
    second = telegram.push_text("two", from_user=ADA)
    for update_id in (first, second):
        await telegram.wait_until_confirmed(update_id)
    assert (receiver.texts, receiver.secrets) == (["one", "two"], ["s-3_cret"] * 2)
    info = await bot.get_webhook_info()
    assert (info.url, info.pending_update_count, info.max_connections) == (webhook_url, 0, 5)
    with pytest.raises(TelegramConflictError, match="while webhook is active"):
        await bot.get_updates()
    await bot.delete_webhook()
    assert (await bot.get_webhook_info()).url == telegram.webhook_url == ""
    third = telegram.push_text("three", from_user=ADA)
    assert [update.update_id for update in await bot.get_updates()] == [third]


async def test_a_webhook_that_fails_gets_the_update_again_before_the_chats_next(
    telegram: FakeTelegram, bot: Bot, receiver: Receiver, webhook_url: str
) -> None:
    """The order of a chat is kept, and `getWebhookInfo` tells of the failure."""
    receiver.answers = [HttpResponse(500), HttpResponse(503, [(b"retry-after", b"0")])]
    await bot.set_webhook(webhook_url)
    first = telegram.push_text("one", from_user=ADA)
    second = telegram.push_text("two", from_user=ADA)
    await telegram.wait_until_confirmed(second)
    assert receiver.texts == ["one", "one", "one", "two"]
    assert (telegram.deliveries_of(first), telegram.deliveries_of(second)) == (3, 1)
    assert (await bot.get_webhook_info()).last_error_message == "Wrong response from the webhook: 503"


async def test_updates_wait_for_a_webhook_that_is_not_there(
    telegram: FakeTelegram, bot: Bot, receiver: Receiver, webhook_url: str
) -> None:
    """They go to the next address that the bot sets."""
    await bot.set_webhook("http://127.0.0.1:1/nobody")
    update_id = telegram.push_text("one", from_user=ADA)
    await telegram.wait_for_deliveries(update_id, count=2)
    assert (await bot.get_webhook_info()).last_error_message == "Connection failed"
    await bot.set_webhook(webhook_url)
    await telegram.wait_until_confirmed(update_id)
    assert receiver.texts == ["one"]


async def test_a_webhooks_answer_may_be_a_method(
    telegram: FakeTelegram, bot: Bot, receiver: Receiver, webhook_url: str
) -> None:
    """Telegram runs it as if the bot had called it."""
    order = {"method": "sendMessage", "chat_id": 7, "text": "at once"}
    receiver.answers = [
        HttpResponse(200, body=json.dumps(order).encode()),
        HttpResponse(200, body=b"no JSON"),
    ]
    await bot.set_webhook(webhook_url)
    for text in ("one", "two"):
        await telegram.wait_until_confirmed(telegram.push_text(text, from_user=ADA))
    assert [message.text for message in await telegram.wait_for_messages(1)] == ["at once"]


async def test_a_bot_gets_the_types_of_updates_that_it_has_named(telegram: FakeTelegram, bot: Bot) -> None:
    """Without a name reactions and members are left out, as at Telegram."""
    telegram.push_update({"message_reaction": {}})
    await bot.get_updates(allowed_updates=["poll"])
    telegram.push_text("hello", from_user=ADA)
    async with httpx.AsyncClient() as client:
        telegram.push_update({"poll": {}})
        answer = await client.get(f"{telegram.url}/bot{telegram.token}/getUpdates")
    assert [list(update) for update in answer.json()["result"]] == [["update_id", "poll"]]


async def test_telegram_refuses_a_bad_webhook(bot: Bot) -> None:
    """It has to be HTTPS, and its secret of harmless characters."""
    with pytest.raises(TelegramBadRequest, match="An HTTPS URL"):
        await bot.set_webhook("http://example.com/x")
    with pytest.raises(TelegramBadRequest, match="unallowed characters"):
        await bot.set_webhook("https://example.com/x", secret_token="no spaces")


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


# ── the methods of ordinary bots ─────────────────────────────────────────────────────────────────


async def test_every_kind_of_message_is_recorded(telegram: FakeTelegram, bot: Bot) -> None:
    """Aiogram reads each answer as the type that the method returns."""
    file = BufferedInputFile(b"content", "a.bin")
    sent = [
        await bot.send_audio(7, file),
        await bot.send_voice(7, file),
        await bot.send_video(7, file),
        await bot.send_video_note(7, file),
        await bot.send_animation(7, file, caption="moves"),
        await bot.send_sticker(7, file),
        await bot.send_photo(7, "https://example.com/a.png"),
        await bot.send_dice(7),
        await bot.send_location(7, 41.7, 44.8),
        await bot.send_contact(7, "+995", "Ada"),
    ]
    album = await bot.send_media_group(7, [InputMediaDocument(media=file) for _ in "ab"])
    assert [message.message_id for message in [*sent, *album]] == list(range(1, 13))
    assert telegram.messages[4].text == "moves"
    assert [telegram.files[each.file_id] for each in telegram.messages[10:] if each.file_id] == [
        b"content"
    ] * 2
    with pytest.raises(TelegramBadRequest, match="wrong file identifier"):
        await bot.send_photo(7, "unknown")
    with pytest.raises(TelegramBadRequest, match="message caption is too long"):
        await bot.send_photo(7, file, caption="x" * 1025)
    with pytest.raises(TelegramBadRequest, match="group send failed"):
        await bot.send_media_group(7, [InputMediaDocument(media=file)])


async def test_messages_are_copied_forwarded_and_changed(telegram: FakeTelegram, bot: Bot) -> None:
    """Captions, keyboards and media too; messages of the inline mode belong to no chat of the bot's."""
    first = await bot.send_message(7, "hello")
    await bot.copy_message(8, 7, first.message_id)
    await bot.forward_message(-9, 7, first.message_id)
    assert [(message.chat_id, message.text) for message in telegram.messages[1:]] == [
        (8, "hello"),
        (-9, "hello"),
    ]
    photo = await bot.send_photo(7, BufferedInputFile(b"content", "a.png"), caption="one")
    await bot.edit_message_caption(chat_id=7, message_id=photo.message_id, caption="two")
    assert telegram.messages[3].text == "two"
    keyboard = InlineKeyboardMarkup(inline_keyboard=[[InlineKeyboardButton(text="go", callback_data="go")]])
    await bot.edit_message_reply_markup(chat_id=7, message_id=first.message_id, reply_markup=keyboard)
    media = InputMediaPhoto(media=telegram.messages[3].file_id or "")
    await bot.edit_message_media(media, chat_id=7, message_id=photo.message_id)
    assert await bot.edit_message_text("inline", inline_message_id="x") is True
    await bot.delete_messages(7, [first.message_id, photo.message_id])
    assert [message.is_deleted for message in telegram.messages] == [True, False, False, True]


async def test_a_bot_describes_itself_and_asks_about_chats(telegram: FakeTelegram, bot: Bot) -> None:
    """Commands are kept, and a chat has the type that its id tells."""
    await bot.set_my_commands([BotCommand(command="start", description="Begin")])
    assert [command.command for command in await bot.get_my_commands()] == ["start"]
    assert [(await bot.get_chat(chat)).type for chat in (7, -7)] == ["private", "supergroup"]
    assert await bot.answer_callback_query("1", "done")
    assert await bot.pin_chat_message(7, 1)
    telegram.block(7)
    with pytest.raises(TelegramForbiddenError):
        await bot.send_chat_action(7, "typing")


async def test_a_wrong_address_of_a_file_is_not_found(telegram: FakeTelegram) -> None:
    """As is the file of another bot."""
    async with httpx.AsyncClient(base_url=telegram.url) as client:
        assert (await client.get(f"/file/bot{telegram.token}/files/unknown")).status_code == 404
        assert (await client.get("/file/bot1:other/files/unknown")).status_code == 401
        await client.post("/control/blocked", json={"user_id": 7})
        assert (await client.get("/control/state")).json()["result"]["violations"] == []


async def test_a_busy_webhook_gets_no_more_connections_than_it_wants(
    telegram: FakeTelegram, bot: Bot, webhook_url: str, receiver: Receiver
) -> None:
    """With one connection the updates of several chats come one after the other."""
    await bot.set_webhook(webhook_url, max_connections=1, allowed_updates=["message"])
    last = [telegram.push_text(f"{n}", from_user=TelegramUser(id=n)) for n in range(1, 6)][-1]
    telegram.push_update({"poll": {}})
    await telegram.wait_until_confirmed(last)
    assert receiver.texts == ["1", "2", "3", "4", "5"]
    info = await bot.get_webhook_info()
    assert (info.allowed_updates, info.max_connections) == (["message"], 1)


async def test_a_webhook_that_does_not_answer_in_time_is_asked_again() -> None:
    """The failure is told by `getWebhookInfo`."""

    async def slow(_: HttpRequest) -> HttpResponse:
        await asyncio.Event().wait()
        return HttpResponse(200)

    server = HttpServer(
        slow, refuse=lambda status, _: HttpResponse(status), name="webhook", limits=HttpLimits()
    )
    async with FakeTelegram(webhook_timeout_seconds=0.1) as telegram, client_of(telegram) as bot:
        port = await server.listen("127.0.0.1", 0)
        await bot.set_webhook(f"http://127.0.0.1:{port}/")
        update_id = telegram.push_text("hello", from_user=ADA)
        await telegram.wait_for_deliveries(update_id, count=2)
        assert (await bot.get_webhook_info()).last_error_message == "Read timeout expired"
        assert (await bot.get_webhook_info()).pending_update_count == 1
        await bot.delete_webhook(drop_pending_updates=True)
        assert await bot.get_updates() == []
    await server.close()


@pytest.mark.parametrize(
    ("update", "owner"),
    [
        ({"message": {"chat": {"id": 5}, "from": {"id": 6}}}, 5),
        ({"callback_query": {"message": {"chat": {"id": 5}}, "from": {"id": 6}}}, 5),
        ({"inline_query": {"from": {"id": 6}}}, 6),
        ({"poll_answer": {"user": {"id": 6}}}, 6),
        ({"poll": {"id": "x"}}, 1),
        ({"poll": None}, 1),
    ],
)
def test_updates_of_one_chat_or_user_are_delivered_in_order(update: dict[str, Any], owner: int) -> None:
    """The others stand for themselves."""
    assert chat_of({"update_id": 1, **update}) == owner
