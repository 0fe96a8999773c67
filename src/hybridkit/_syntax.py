"""The syntax of names on the wire, and of JSON pointers into what is sent."""

import re
from collections.abc import Iterable
from typing import Final

NAME_SYNTAX: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""A name in snake_case, as services, resources and their calls have: at most 63 bytes, like a PostgreSQL identifier."""

_KEY_PART: Final = "[A-Za-z0-9_.-]{1,100}"
KEY_PART_SYNTAX: Final = re.compile(_KEY_PART)
"""A name within a key of Redis, as the first two parts of `context:entity:id` and caches have."""

MAX_ID_CHARS: Final = 300
KEY_SYNTAX: Final = re.compile(rf"{_KEY_PART}:{_KEY_PART}:[!-~]{{1,{MAX_ID_CHARS}}}")
"""A key `context:entity:id`, as idempotency claims and locks have."""


def json_pointer(path: Iterable[int | str]) -> str:
    """Return the JSON pointer to the member at the end of a path, https://www.rfc-editor.org/rfc/rfc6901#section-3."""
    return "".join(f"/{escape_token(str(part))}" for part in path)


def escape_token(name: str) -> str:
    """Escape a member's name for use between the slashes of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def unescape_token(token: str) -> str:
    """Return the member's name that a part of a JSON pointer stands for."""
    return token.replace("~1", "/").replace("~0", "~")
