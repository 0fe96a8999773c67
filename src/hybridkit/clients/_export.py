"""Reading an export: one record on each line, and a last line with their number, so that a cut is noticed."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final, Literal

from pydantic import BaseModel, Field, TypeAdapter

from hybridkit.codec import validate_json
from hybridkit.errors import MalformedPayloadError, ResponseError, UnavailableError

STATUS: Final = 200
"""The status of the answer whose lines are read: any other has raised before."""


class _End(BaseModel):
    """`{"$end": true, "count": n}`."""

    end: Literal[True] = Field(alias="$end")
    count: int


_END: Final = TypeAdapter(_End)


async def read_export[ItemT](
    chunks: AsyncIterable[bytes], adapter: TypeAdapter[ItemT], *, what: str, max_line_bytes: int
) -> AsyncGenerator[ItemT]:
    """Yield the records in those chunks.

    Args:
        chunks: the body, in pieces of any size.
        adapter: reads one record.
        what: the name of the resource in messages.
        max_line_bytes: the most bytes that one record may have.

    Raises:
        UnavailableError: the body ends before its last line, or has another number of records than that says.
        ResponseError: a line is no such record.
    """
    count = 0
    end: _End | None = None
    async for line in _lines(chunks, what=what, max_bytes=max_line_bytes):
        if end is not None:
            raise ResponseError(f"the export of {what} goes on after its end", response_status=STATUS)
        if _is_end(line):
            end = _read(_END, line, what=f"the end of an export of {what}")
        else:
            yield _read(adapter, line, what=f"a record of {what}")
            count += 1
    if end is None or end.count != count:
        expected = "" if end is None else f" of {end.count}"
        raise UnavailableError(f"the export of {what} was cut after {count}{expected} records")


async def _lines(chunks: AsyncIterable[bytes], *, what: str, max_bytes: int) -> AsyncGenerator[bytes]:
    """Yield the whole lines that are not empty."""
    begun: list[bytes] = []
    begun_bytes = 0
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        begun_bytes += len(first)
        if others:
            for line in (b"".join(begun), *others[:-1]):
                if line:
                    yield line
            begun, begun_bytes = [others[-1]], len(others[-1])
        if begun_bytes > max_bytes:
            raise ResponseError(
                f"an exported record of {what} has more than {max_bytes} bytes", response_status=STATUS
            )
    # Without a line feed a record may have been cut, even where what is left of it is JSON.
    if _is_end(last := b"".join(begun)):
        yield last


def _is_end(line: bytes) -> bool:
    """Return whether the line is the last one, and whole; not every service writes it without spaces."""
    return line.lstrip(b"{ \t").startswith(b'"$end"') and line.rstrip().endswith(b"}")


def _read[T](adapter: TypeAdapter[T], line: bytes, *, what: str) -> T:
    try:
        return validate_json(adapter, line, what="it")
    except MalformedPayloadError as error:
        raise ResponseError(
            f"a line of {len(line)} bytes should be {what}, but {error}", response_status=STATUS
        ) from None
