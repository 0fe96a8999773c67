"""JSON as PostgreSQL prints it, which not every reader takes: numbers of any size, halves of surrogate pairs."""

import json
import re
from decimal import Decimal
from math import isfinite
from typing import Any, Final

import orjson

from hybridkit.codec import decode_json, encode_json
from hybridkit.errors import MalformedPayloadError

_MANY_DIGITS: Final = re.compile(rb"[0-9]{19}")
"""An integer with more digits than orjson keeps."""
_HALF_PAIR: Final = re.compile(
    r"(?<!\\)((?:\\\\)*)(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})"
    r"\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


def canonical(body: bytes | str) -> bytes:
    """Return JSON with documents in it in the form of `encode_json`: PostgreSQL has spaces in them, and other numbers.

    What nothing here can read or write again (a document nested hundreds of levels deep) goes out as PostgreSQL
    printed it, which is JSON too: one record must not hide the others.
    """
    try:
        return encode_json(read_document(body))
    except (ValueError, RecursionError, MalformedPayloadError):
        return _mended(body).encode()


def read_document(body: bytes | str) -> Any:
    """Read a value of JSON; integers are exact, a number beyond a float's range is an integer or a decimal."""
    raw = body.encode() if isinstance(body, str) else body
    try:
        return decode_json(raw, limit_bytes=len(raw)) if _MANY_DIGITS.search(raw) else orjson.loads(raw)
    except (orjson.JSONDecodeError, MalformedPayloadError):
        return json.loads(_mended(body), parse_float=_number, parse_int=_integer)


def _mended(body: bytes | str) -> str:
    """Replace each half of a surrogate pair, which is no character, by U+FFFD."""
    return _HALF_PAIR.sub(r"\1\\ufffd", body if isinstance(body, str) else body.decode())


def _number(text: str) -> float | int | Decimal:
    found = float(text)
    return found if isfinite(found) else _integer(text)


def _integer(text: str) -> int | Decimal:
    """Return an integer, or a decimal where the integer's text would be megabytes of zeros."""
    number = Decimal(text)
    return int(number) if number.adjusted() < MAX_DIGITS else number


MAX_DIGITS: Final = 4000
