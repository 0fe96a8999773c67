"""RESP2, the protocol of Redis: by hiredis where it is installed (the extra `fast`), in Python otherwise.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final, Protocol


def _find_hiredis() -> Any:
    try:
        return import_module("hiredis")
    except ImportError:
        return None


_hiredis: Final = _find_hiredis()

INCOMPLETE: Final = object()
"""The answer of `ReplyReader.gets` while the next reply has not arrived in full."""

type Part = str | bytes | int | float
"""A part of a command: its name, a key or an argument."""


def encode_in_python(parts: Sequence[Part]) -> bytes:
    """Encode a command as `encode` does, without hiredis."""
    chunks = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        chunks.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(chunks)


encode: Final[Callable[[tuple[Part, ...]], bytes]] = (
    encode_in_python if _hiredis is None else _hiredis.pack_command
)
"""Encode a command as an array of bulk strings."""


class ReplyError(Exception):
    """An error that Redis has answered.

    Attributes:
        code: the first word, as in `NOSCRIPT`; the rest is for people.
    """

    @property
    def code(self) -> str:
        """The first word of the error."""
        return str(self).partition(" ")[0]


class UnreadableReplyError(Exception):
    """Bytes that are no reply of Redis: the connection can't be used any more."""


class ReplyReader(Protocol):
    """A parser that is fed with bytes and gives replies: bytes, numbers, None, errors, and lists of these."""

    def feed(self, data: bytes, /) -> None:
        """Add bytes that have arrived."""
        ...

    def gets(self) -> Any:
        """Return the next reply, or `INCOMPLETE`.

        Raises:
            UnreadableReplyError: the bytes are no reply.
        """
        ...


def reply_reader() -> ReplyReader:
    """Make a parser for one connection."""
    if _hiredis is None:
        return PythonReplyReader()
    reader: ReplyReader = _hiredis.Reader(
        protocolError=UnreadableReplyError, replyError=ReplyError, notEnoughData=INCOMPLETE
    )
    return reader


class PythonReplyReader:
    """The parser for installations without hiredis."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes, /) -> None:
        """Add bytes that have arrived."""
        self._buffer += data

    def gets(self) -> Any:
        """Return the next reply, or `INCOMPLETE`.

        Raises:
            UnreadableReplyError: the bytes are no reply.
        """
        try:
            reply, end = self._parse(0)
        except _NotEnoughError:
            return INCOMPLETE
        except (ValueError, RecursionError) as error:
            raise UnreadableReplyError(f"Protocol error: {error}") from error
        del self._buffer[:end]
        return reply

    def _parse(self, start: int) -> tuple[Any, int]:
        line_end = self._buffer.find(b"\r\n", start)
        if line_end < 0:
            raise _NotEnoughError
        head, end = bytes(self._buffer[start:line_end]), line_end + 2
        kind, line = head[:1], head[1:]
        match kind:
            case b"+":
                return line, end
            case b"-":
                return ReplyError(line.decode(errors="replace")), end
            case b":":
                return int(line), end
            case b"$":
                return self._parse_string(int(line), end)
            case b"*":
                return self._parse_list(int(line), end)
            case _:
                raise ValueError(f"{kind!r} begins no reply")

    def _parse_string(self, length: int, start: int) -> tuple[bytes | None, int]:
        if length < 0:
            return None, start
        end = start + length
        if len(self._buffer) < end + 2:
            raise _NotEnoughError
        return bytes(self._buffer[start:end]), end + 2

    def _parse_list(self, length: int, start: int) -> tuple[list[Any] | None, int]:
        if length < 0:
            return None, start
        replies: list[Any] = []
        for _ in range(length):
            reply, start = self._parse(start)
            replies.append(reply)
        return replies, start


class _NotEnoughError(Exception):
    pass
