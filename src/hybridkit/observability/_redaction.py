"""Mask secrets in texts that leave the process: log lines, spans and error reports, all by the same rules.

Masked are user and password of a URL, the token in a URL of the Telegram Bot API, bearer tokens, JSON Web Tokens and
refresh tokens, `Authorization` and `Cookie` wherever a text quotes them, parameters whose names tell of a secret, and
the secrets of the settings.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast
from urllib.parse import quote, unquote, urlsplit

from pydantic import Secret, SecretBytes, SecretStr

from hybridkit.settings import SecretUrl, ServiceSettings

MASK: Final = "**********"
SHORTEST_SECRET: Final = 12
"""A shorter value of the settings is not looked for: `postgres` as a password is a word in every second line."""

_IN_URLS: Final = re.compile(rb"(://)[^\s/@\"]+(?=@)|(/bot)[0-9]+:[A-Za-z0-9_-]+")
# After the name a separator, as in HTTP, JSON, a mapping's `repr` and that of ASGI's pairs of bytes.
_SEPARATOR: Final = rb"[\"'\\]*\s*(?:[:=]|,(?=\s*b[\"']))\s*(?:b(?=[\"']))?[\"'\\]*"
_IN_HEADERS: Final = re.compile(
    rb"(bearer\s+)[\w.~+/=-]{8,}"
    rb"|(authorization" + _SEPARATOR + rb")[^\s\"'\\,;})]+(?:[ ]+[^\s\"'\\,;})]+)?"
    rb"|(cookie" + _SEPARATOR + rb")[^\"'\\\r\n})]+",
    re.IGNORECASE,
)
_IN_PARAMETERS: Final = re.compile(
    rb"([?&][\w.%-]*(?:token|secret|passw|pwd|key|sig|auth|credential|session|code)[\w.%-]*=)[^&\s\"'#<>\\]+",
    re.IGNORECASE,
)
_QUERY: Final = re.compile(rb"(://[^\s\"'<>?]*\?)[^\s\"'<>]+")
_TOKENS: Final = re.compile(rb"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*|\bhkr_[\w-]{16,}[\w.-]*")
"""JSON Web Tokens, and the refresh tokens of `hybridkit.security`, wherever they stand."""
_KEPT: Final = rb"\g<1>\g<2>" + MASK.encode()
_KEPT_OF_HEADERS: Final = rb"\g<1>\g<2>\g<3>" + MASK.encode()
_KEPT_OF_QUERY: Final = rb"\g<1>" + MASK.encode()

_known: set[bytes] = set()


def remember_secrets(settings: ServiceSettings) -> None:
    """Mask the secrets of these settings from now on, however they get into a text.

    Those are every `SecretStr`, and of every `SecretUrl` the password and the query, from 12 characters on.
    """
    for value in _secrets_in(vars(settings)):
        if len(value) >= SHORTEST_SECRET:
            forms = (value, quote(value, safe=""), json.dumps(value)[1:-1])
            _known.update(form.encode("utf-8", "backslashreplace") for form in forms)


def masked_line(line: bytes) -> bytes:
    """Return a line of UTF-8 with its secrets masked."""
    # Each rule is tried only where its sign is there: looking for a word costs a hundredth of a regular expression, and
    # in a text half as much as in bytes. No rule makes the sign of another.
    text = line.decode("latin-1")
    if "://" in text or "/bot" in text:
        line = _IN_URLS.sub(_KEPT, line)
    lowered = text.lower()
    if "bearer" in lowered or "authorization" in lowered or "cookie" in lowered:
        line = _IN_HEADERS.sub(_KEPT_OF_HEADERS, line)
    if ("J" in text and "eyJ" in text) or "hkr_" in text:
        line = _TOKENS.sub(MASK.encode(), line)
    if "?" in text:
        line = _IN_PARAMETERS.sub(_KEPT_OF_QUERY, line)
    for secret in _known:
        if secret in line:
            line = line.replace(secret, MASK.encode())
    return line


def masked(text: str) -> str:
    """Return a text with its secrets masked, and with the query of every URL, for reports that go to other systems."""
    line = masked_line(text.encode("utf-8", "backslashreplace"))
    return (_QUERY.sub(_KEPT_OF_QUERY, line) if b"://" in line else line).decode("utf-8", "backslashreplace")


def _secrets_in(value: object) -> Iterator[str]:
    match value:
        case SecretUrl():
            yield from _secrets_of_url(value.get_secret_value())
        case SecretBytes():
            yield value.get_secret_value().decode("utf-8", "backslashreplace")
        case SecretStr() | Secret():
            yield str(cast("Secret[Any]", value).get_secret_value())
        case Mapping():
            yield from _secrets_in(list(cast("Mapping[Any, object]", value).values()))
        case list() | tuple() | set() | frozenset():
            for each in cast("Iterable[object]", value):
                yield from _secrets_in(each)
        case _:
            return


def _secrets_of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    for text in (password or user, parts.query):
        yield text
        yield unquote(text)
