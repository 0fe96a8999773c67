"""The heads of HTTP/1.1 messages: a request's, and an answer's if it is as plain as nearly all are.

An answer's head is plain if its length is announced once and nothing in it needs an interpretation. Any other head is
h11's to read, which costs ten times as much (https://www.rfc-editor.org/rfc/rfc9112).
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from hybridkit.clients._transports._base import MAX_LENGTH_DIGITS, Request

USER_AGENT: Final = "hybridkit"
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304

_WITH_BODY: Final = {"POST", "PUT", "PATCH"}
"""The methods whose requests announce a length even without a body."""
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OWN: Final = {
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""The fields that say where a message ends, or what becomes of its connection."""


class PlainHead(NamedTuple):
    """The head of an answer whose body has a known length.

    Attributes:
        status: from 200 on.
        headers: as in `Response`.
        length: the bytes of the body.
        keeps_alive: whether the connection can take the next request.
    """

    status: int
    headers: dict[str, str]
    length: int
    keeps_alive: bool


def encode_head(request: Request, *, target: str, authority: str) -> bytes:
    """Encode the head of a request.

    Args:
        request: the request, whose URL doesn't count.
        target: path and query.
        authority: host and port, for the field `host`.

    Raises:
        ValueError: the method, the target or a field has a character that would end it, or the field is one that the
            transport sets itself.
    """
    method, headers, size_bytes = request.method, request.headers, len(request.body)
    if (
        not _is_token(method)
        or not (target.isascii() and target.isprintable())
        or " " in target
        or "#" in target
    ):
        raise ValueError(f"{request} is no method and percent-encoded path")
    values = "".join(headers.values())
    if not (values.isascii() and values.replace("\t", " ").isprintable()):
        raise ValueError("a header's value takes printable ASCII only")
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {authority}\r\n"]
    if "user-agent" not in headers:
        lines.append(f"user-agent: {USER_AGENT}\r\n")
    for name, value in headers.items():
        if not _can_be_sent(name):
            raise ValueError(f"{name[:100]!r} is no name of a header that a caller sets")
        lines.append(f"{name}: {value}\r\n")
    if size_bytes or method in _WITH_BODY:
        lines.append(f"content-length: {size_bytes}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("ascii")


def plain_head(head: bytes) -> PlainHead | None:
    """Return the head of an answer, without the empty line at its end; None if it is not a plain one."""
    text = head.decode("latin-1")
    # Printable: no tab, no line end but the pairs, nothing that another reader could take for an end.
    if not text.replace("\r\n", "").isprintable():
        return None
    first, *lines = text.split("\r\n")
    digits = first[9:12]
    if (
        first[:9] != "HTTP/1.1 "
        or first[12:13] not in {" ", ""}
        or not (len(digits) == 3 and digits.isdecimal())
    ):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        key = _field(name)
        if not colon or not key or key in headers:
            return None
        headers[key] = value.strip(" ")
    status = int(digits)
    length = _length(status, headers)
    if length is None:
        return None
    connection = headers.get("connection", "keep-alive").lower()
    return PlainHead(status, headers, length, connection == "keep-alive")


def _length(status: int, headers: dict[str, str]) -> int | None:
    if status < 200 or status == NOT_MODIFIED or "transfer-encoding" in headers:
        return None
    announced = headers.get("content-length", "0" if status == NO_CONTENT else "")
    if not announced.isdecimal() or len(announced) > MAX_LENGTH_DIGITS:
        return None
    length = int(announced)
    return None if status == NO_CONTENT and length else length


@lru_cache(maxsize=1024)
def _field(name: str) -> str:
    """Return a field's name in lower case; the empty text for what is no name."""
    return name.lower() if _is_token(name) else ""


@lru_cache(maxsize=1024)
def _can_be_sent(name: str) -> bool:
    return _is_token(name) and name.lower() not in _OWN


@lru_cache(maxsize=1024)
def _is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None
