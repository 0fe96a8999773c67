"""Files go to Telegram and come from it in pieces, and never more of them than allowed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import Document
from fakeredis import FakeAsyncRedis

from hybridkit.adapters._telegram import _files
from hybridkit.adapters._telegram._failures import is_temporary
from hybridkit.adapters.aiogram import Sender, StreamedFile, download_file, stream_file
from hybridkit.errors import PayloadTooLargeError, UnavailableError
from hybridkit.testing import FakeTelegram
from hybridkit.testing._telegram._records import RefusedError

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
async def telegram() -> AsyncGenerator[FakeTelegram]:
    async with FakeTelegram() as server:
        yield server


@pytest.fixture
async def bot(telegram: FakeTelegram) -> AsyncGenerator[Bot]:
    async with client_of(telegram) as client:
        yield client


@asynccontextmanager
async def client_of(telegram: FakeTelegram) -> AsyncGenerator[Bot]:
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram.url))
    async with (
        FakeAsyncRedis(decode_responses=True) as redis,
        Bot(telegram.token, session=session).context() as client,
    ):
        session.middleware(Sender(redis))
        yield client


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


# ── down ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_is_read_in_pieces(telegram: FakeTelegram, bot: Bot) -> None:
    """By its id, or by what a message has; no piece is the whole file."""
    file_id = telegram.add_file(CONTENT)
    for file in (file_id, Document(file_id=file_id, file_unique_id="x")):
        async with stream_file(bot, file) as chunks:
            pieces = [chunk async for chunk in chunks]
        assert b"".join(pieces) == CONTENT
        assert max(map(len, pieces)) <= 64 * 1024


async def test_a_file_is_written_to_a_path(telegram: FakeTelegram, bot: Bot, tmp_path: Path) -> None:
    """It appears as a whole, in place of an older one, and nothing else is left in the folder."""
    target = tmp_path / "photo.jpg"
    target.write_bytes(b"old")
    assert await download_file(bot, telegram.add_file(CONTENT), target) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["photo.jpg"]


@pytest.mark.parametrize("told", [True, False])
async def test_a_file_over_the_limit_is_refused(
    telegram: FakeTelegram, bot: Bot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Before it is opened where Telegram tells its size, and otherwise in the middle; the path keeps what it had."""
    target = tmp_path / "photo.jpg"
    target.write_bytes(b"old")
    if not told:
        media = telegram._chats._media
        monkeypatch.setattr(
            telegram._chats, "_media", lambda kind, file_id: {**media(kind, file_id), "file_size": None}
        )
    with pytest.raises(PayloadTooLargeError) as caught:
        await download_file(bot, telegram.add_file(CONTENT), target, max_bytes=100_000)
    assert caught.value.limit_bytes == 100_000
    assert 100_000 < caught.value.size_bytes < len(CONTENT) + told
    assert not is_temporary(caught.value)
    assert (target.read_bytes(), names_in(tmp_path)) == (b"old", ["photo.jpg"])


async def test_what_telegram_itself_does_not_deliver_is_too_large(
    telegram: FakeTelegram, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit is 20 MiB, whatever the bot would take; another refusal stays Telegram's."""
    monkeypatch.setattr("hybridkit.testing._telegram._chats.MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(PayloadTooLargeError):
        async with stream_file(bot, telegram.add_file(CONTENT), max_bytes=10**9):
            pass
    with pytest.raises(TelegramBadRequest, match="invalid file_id"):
        async with stream_file(bot, "unknown"):
            pass


async def test_a_failed_download_may_be_tried_again_and_shows_no_token(
    telegram: FakeTelegram, bot: Bot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own error has the address of the file, and that has the token."""
    monkeypatch.setattr(telegram._chats, "download", _not_there)
    with pytest.raises(UnavailableError) as caught:
        await download_file(bot, telegram.add_file(CONTENT), tmp_path / "photo.jpg")
    assert telegram.token not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert is_temporary(caught.value)
    assert names_in(tmp_path) == []


async def test_a_download_ends_in_time(
    telegram: FakeTelegram, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether Telegram or the block takes too long; an error of the block's own stays what it is."""
    file_id = telegram.add_file(CONTENT)
    with pytest.raises(UnavailableError, match="took longer than"):
        async with stream_file(bot, file_id, timeout_seconds=0.3):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError, match="my own"):
        async with stream_file(bot, file_id):
            raise TimeoutError("my own")


def _not_there(_: str) -> bytes:
    raise RefusedError(404, "Not Found")


# ── up ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_is_sent_in_pieces(telegram: FakeTelegram, bot: Bot, tmp_path: Path) -> None:
    """From a path, or from a function, which is called again when the message has to be sent again."""
    path = tmp_path / "report.pdf"
    path.write_bytes(CONTENT)
    calls = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal calls
        calls += 1
        for start in range(0, len(CONTENT), 1000):
            yield CONTENT[start : start + 1000]

    await bot.send_document(7, StreamedFile(path))
    telegram.fail("sendDocument", status=429, retry_after_seconds=1)
    await bot.send_document(7, StreamedFile(pieces, filename='a"b/../c\r\n.csv'))
    assert calls == 2
    sent = [(telegram.files[message.file_id or ""], message.parameters) for message in telegram.messages]
    assert [content for content, _ in sent] == [CONTENT, CONTENT]
    names = [name for _, parameters in sent for name in parameters.values() if "." in name]
    assert names == ["report.pdf", "a_b_.._c__.csv"]


@pytest.mark.parametrize("is_path", [True, False])
async def test_a_file_to_send_that_is_too_large_is_refused_by_the_method(
    telegram: FakeTelegram, bot: Bot, tmp_path: Path, is_path: bool
) -> None:
    """The error isn't one of the network, which would be tried again; nothing arrives."""
    path = tmp_path / "report.pdf"
    path.write_bytes(CONTENT)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(CONTENT), 50_000):
            yield CONTENT[start : start + 50_000]

    file = StreamedFile(path if is_path else pieces, max_bytes=100_000)
    with pytest.raises(PayloadTooLargeError):
        await bot.send_document(7, file)
    assert telegram.messages == []
    assert repr(file).endswith("max_bytes=100000)")


async def test_an_error_of_the_network_stays_one(bot: Bot, telegram: FakeTelegram) -> None:
    """The handler is tried again for it."""
    await telegram._server.close()
    with pytest.raises(Exception, match=r"ClientConnectorError|ServerDisconnected|ClientOSError") as caught:
        await bot.send_message(7, "hello")
    assert is_temporary(caught.value)
    assert _files.own_cause(caught.value) is None


def test_a_long_chain_of_causes_has_an_end() -> None:
    """An error may even be its own cause."""
    error: Any = ValueError()
    error.__cause__ = error
    assert _files.own_cause(error) is None
