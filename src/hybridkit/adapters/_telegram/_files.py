"""Files from and to Telegram, in pieces and within limits.

https://core.telegram.org/bots/api#getfile
"""

import asyncio
import math
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.types import Downloadable, InputFile

from hybridkit.errors import HybridkitError, PayloadTooLargeError, UnavailableError

MAX_DOWNLOAD_BYTES: Final = 20 * 1024 * 1024
"""The largest file that Telegram lets a bot download."""

MAX_UPLOAD_BYTES: Final = 50 * 1024 * 1024
"""The largest file that Telegram takes from a bot; photos may have 10 MB: https://core.telegram.org/bots/api#sending-files"""

TRANSFER_SECONDS: Final = 60.0
CHUNK_BYTES: Final = 64 * 1024

_UNSAFE: Final = re.compile(r'[\x00-\x1f\x7f"\\/]')


@asynccontextmanager
async def stream_file(
    bot: Bot,
    file: str | Downloadable,
    *,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout_seconds: float = TRANSFER_SECONDS,
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Open a file of Telegram's, whose pieces the `async with` block iterates over.

    ```python
    async with stream_file(bot, message.document, max_bytes=5_000_000) as chunks:
        async for chunk in chunks: ...
    ```

    Args:
        bot: the bot that has received the file.
        file: the file, such as `message.document` or `message.photo[-1]`, or its `file_id`.
        max_bytes: the limit of its size. One that Telegram tells to be larger is not opened.
        timeout_seconds: the time limit of the block.

    Raises:
        PayloadTooLargeError: the file is larger, as Telegram says or as its content turns out.
        UnavailableError: Telegram doesn't deliver the file; its address, which has the token, isn't shown.
    """
    deadline = asyncio.timeout(timeout_seconds)
    try:
        async with deadline:
            url = await _address(bot, file, max_bytes)
            content = bot.session.stream_content(
                url, timeout=math.ceil(timeout_seconds), chunk_size=CHUNK_BYTES
            )
            async with aclosing(content), aclosing(_limited(content, max_bytes)) as chunks:
                yield chunks
    except TimeoutError:
        if not deadline.expired():
            raise
        raise UnavailableError(f"a file of Telegram's took longer than {timeout_seconds:g} s") from None


async def _address(bot: Bot, file: str | Downloadable, max_bytes: int) -> str:
    try:
        found = await bot.get_file(file if isinstance(file, str) else file.file_id)
    except TelegramBadRequest as error:
        if "file is too big" in error.message:
            raise _too_large(MAX_DOWNLOAD_BYTES + 1, MAX_DOWNLOAD_BYTES) from None
        raise
    if found.file_size is not None and found.file_size > max_bytes:
        raise _too_large(found.file_size, max_bytes)
    return bot.session.api.file_url(bot.token, found.file_path or "")


async def download_file(
    bot: Bot,
    file: str | Downloadable,
    destination: Path | str,
    *,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    timeout_seconds: float = TRANSFER_SECONDS,
) -> int:
    """Write a file of Telegram's to a path in pieces, and return its size in bytes.

    The path has the whole file or, after an error, what it had before.

    Args:
        bot: the bot that has received the file.
        file: the file, or its `file_id`.
        destination: the path, in a folder that exists.
        max_bytes: the limit of its size.
        timeout_seconds: the time limit.

    Raises:
        PayloadTooLargeError: the file is larger.
        UnavailableError: Telegram doesn't deliver the file.
        OSError: the file can't be written.
    """
    target = Path(destination)
    number, partial = await asyncio.to_thread(
        tempfile.mkstemp, dir=target.parent, prefix=f".{target.name}.", suffix=".part"
    )
    size_bytes = 0
    try:
        with os.fdopen(number, "wb") as output:
            async with stream_file(bot, file, max_bytes=max_bytes, timeout_seconds=timeout_seconds) as chunks:
                async for chunk in chunks:
                    size_bytes += await asyncio.to_thread(output.write, chunk)
        await asyncio.to_thread(os.replace, partial, target)
    except BaseException:
        os.unlink(partial)  # noqa: PTH108 - a name of tempfile's; quick, also when this is cancelled
        raise
    return size_bytes


async def _limited(content: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[bytes]:
    size_bytes = 0
    while True:
        try:
            chunk = await anext(content)
        except StopAsyncIteration:
            return
        except Exception as error:  # noqa: BLE001 - errors of aiohttp, whose message has the address with the token
            raise UnavailableError(f"Telegram does not deliver a file: {type(error).__name__}") from None
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise _too_large(size_bytes, max_bytes)
        yield chunk


class StreamedFile(InputFile):
    """A file to send, read in pieces while it is sent, and refused when it turns out too large.

    ```python
    await message.answer_document(StreamedFile(Path("report.pdf")))
    await message.answer_document(StreamedFile(rows_as_csv, filename="rows.csv"))     # async def rows_as_csv(): yield …
    ```

    Args:
        source: a path, or a function that returns the pieces; it is called again when the message has to be sent again.
        filename: the name that the receiver sees; by default that of the path.
        max_bytes: the limit of the size. `PayloadTooLargeError` is raised beyond it, by the method that sends.
    """

    def __init__(
        self,
        source: Path | Callable[[], AsyncIterator[bytes]],
        *,
        filename: str | None = None,
        max_bytes: int = MAX_UPLOAD_BYTES,
    ) -> None:
        name = filename or (source.name if isinstance(source, Path) else "file")
        super().__init__(filename=_UNSAFE.sub("_", name), chunk_size=CHUNK_BYTES)
        self.source = source
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"StreamedFile({self.filename!r}, max_bytes={self.max_bytes})"

    async def read(self, bot: Bot) -> AsyncGenerator[bytes]:  # noqa: ARG002 - aiogram's signature
        """Yield the pieces.

        Raises:
            PayloadTooLargeError: there is more than the limit; of a path before anything is sent.
        """
        size_bytes = 0
        async for chunk in self.source() if callable(self.source) else _read(self.source, self.max_bytes):
            size_bytes += len(chunk)
            if size_bytes > self.max_bytes:
                raise _too_large(size_bytes, self.max_bytes)
            yield chunk


async def _read(path: Path, max_bytes: int) -> AsyncGenerator[bytes]:
    def opened() -> BinaryIO:
        return cast("BinaryIO", path.open("rb"))

    with await asyncio.to_thread(opened) as content:
        size_bytes = os.fstat(content.fileno()).st_size
        if size_bytes > max_bytes:
            raise _too_large(size_bytes, max_bytes)
        while chunk := await asyncio.to_thread(content.read, CHUNK_BYTES):
            yield chunk


def own_cause(error: BaseException) -> HybridkitError | None:
    """Return the error of ours for which a request was broken off: aiohttp and aiogram wrap those of an upload."""
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None or isinstance(cause, HybridkitError):
            return cause
        cause = cause.__cause__
    return None


def _too_large(size_bytes: int, limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the file has {size_bytes} bytes or more, {limit_bytes} are allowed",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )
