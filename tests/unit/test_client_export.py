"""Exports: every record once, whatever the pieces are, and never a silent end."""

from collections.abc import AsyncGenerator, Sequence

import pytest
from pydantic import BaseModel, TypeAdapter

from hybridkit.clients._export import read_export
from hybridkit.errors import ResponseError, UnavailableError

WHOLE = b'{"n":1}\n{"n":2}\n{"n":3}\n{"$end":true,"count":3}\n'


class Row(BaseModel):
    n: int


async def pieces(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(chunks: Sequence[bytes], *, max_line_bytes: int = 1000) -> list[int]:
    """What came out, in a list that survives the error."""
    found: list[int] = []
    try:
        async for row in read_export(
            pieces(*chunks), TypeAdapter(Row), what="rows", max_line_bytes=max_line_bytes
        ):
            found.append(row.n)  # noqa: PERF401 - what came before an error is looked at
    except (UnavailableError, ResponseError) as error:
        error.add_note(str(found))
        raise
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000])
async def test_pieces_of_any_size(size: int) -> None:
    """Records are found wherever the chunks of the body cut them."""
    assert await read([WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]) == [1, 2, 3]


@pytest.mark.parametrize("end", [b'{"$end":true,"count":0}', b'{ "$end": true, "count": 0 }\r\n\n'])
async def test_an_end_written_by_others(end: bytes) -> None:
    """The last line is known with other spaces and another order of members too."""
    assert await read([end]) == []


@pytest.mark.parametrize("length", range(len(WHOLE) - 1))
async def test_a_cut_anywhere_is_an_error_after_the_records_so_far(length: int) -> None:
    """A cut raises too where the last piece is a whole record, or where nothing came at all."""
    cut = WHOLE[:length]
    whole = [n for n in (1, 2, 3) if b'{"n":%d}\n' % n in cut]
    with pytest.raises(UnavailableError, match=f"cut after {len(whole)}") as caught:
        await read([cut])
    assert caught.value.__notes__ == [str(whole)]


async def test_a_count_that_does_not_fit() -> None:
    """An export with fewer records than its last line says was cut."""
    with pytest.raises(UnavailableError, match="cut after 1 of 2 records"):
        await read([b'{"n":1}\n{"$end":true,"count":2}\n'])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"n":"x"}\n{"$end":true,"count":1}\n', "should be a record of rows.*/n"),
        (b"<html>\n", "should be a record of rows"),
        (b'{"$end":false}\n', "should be the end of an export of rows"),
        (WHOLE + b'{"n":4}\n', "goes on after its end"),
        (b"x" * 2000, "more than 1000 bytes"),
    ],
)
async def test_garbage_is_a_typed_error(body: bytes, message: str) -> None:
    """A line that is no record, too long, or behind the end raises `ResponseError`."""
    with pytest.raises(ResponseError, match=message):
        await read([body[at : at + 100] for at in range(0, len(body), 100)])
