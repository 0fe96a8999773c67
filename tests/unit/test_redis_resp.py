"""The protocol of Redis, by hiredis and in Python."""

from collections.abc import Sequence
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.coordination._redis import _resp
from hybridkit.coordination._redis._resp import (
    INCOMPLETE,
    PythonReplyReader,
    ReplyError,
    ReplyReader,
    UnreadableReplyError,
    encode_in_python,
    reply_reader,
)

PARTS = st.one_of(st.text(), st.binary(), st.integers(), st.floats())
LINES = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))


def line(kind: bytes, text: str) -> bytes:
    return kind + text.encode() + b"\r\n"


def text(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def listed(replies: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(replies) + b"".join(replies)


SINGLE = st.one_of(
    LINES.map(lambda words: line(b"+", words)),
    LINES.map(lambda words: line(b"-", words)),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: line(b":", str(number))),
    st.binary(max_size=200).map(text),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n"]),
)
REPLIES = st.recursive(SINGLE, lambda inner: st.lists(inner, max_size=5).map(listed), max_leaves=20)


def comparable(reply: Any) -> Any:
    if isinstance(reply, list):
        return [comparable(one) for one in reply]
    return ("error", str(reply)) if isinstance(reply, ReplyError) else reply


def read(reader: ReplyReader, chunks: Sequence[bytes]) -> list[Any]:
    replies: list[Any] = []
    for chunk in chunks:
        reader.feed(chunk)
        while (reply := reader.gets()) is not INCOMPLETE:
            replies.append(comparable(reply))
    return replies


@given(st.lists(PARTS, min_size=1).map(tuple))
def test_both_encoders_agree(parts: tuple[Any, ...]) -> None:
    """Texts, bytes and numbers are written the same with hiredis and without."""
    assert encode_in_python(parts) == hiredis.pack_command(parts)


@given(st.lists(REPLIES, max_size=8), st.data())
def test_both_readers_agree_wherever_the_bytes_are_split(replies: list[bytes], data: st.DataObject) -> None:
    """A reply is the same with hiredis and without, and so is the number of them."""
    sent = b"".join(replies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    chunks = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    read_in_python = read(PythonReplyReader(), chunks)
    assert read_in_python == read(reply_reader(), chunks)
    assert len(read_in_python) == len(replies)


@pytest.mark.parametrize(
    "sent", [b"!\r\n", b":one\r\n", b"$x\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"*1\r\n" * 5000]
)
def test_bytes_that_are_no_reply_are_an_error(sent: bytes) -> None:
    """Both parsers tell it, so that the connection is closed."""
    for reader in (PythonReplyReader(), reply_reader()):
        reader.feed(sent)
        with pytest.raises(UnreadableReplyError):
            reader.gets()


def test_an_error_reply_has_its_code() -> None:
    """The first word says what to do."""
    assert ReplyError("NOSCRIPT No matching script.").code == "NOSCRIPT"


def test_without_hiredis_python_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not needed."""
    monkeypatch.setattr(_resp, "_hiredis", None)
    assert isinstance(reply_reader(), PythonReplyReader)


def test_hiredis_is_found_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module is no error."""

    def import_module(name: str) -> object:
        raise ImportError(name)

    assert _resp._find_hiredis() is hiredis
    monkeypatch.setattr(_resp, "import_module", import_module)
    assert _resp._find_hiredis() is None
