"""Ids and tags as parts of keys."""

import hashlib
import re
from typing import Final
from uuid import UUID

type CacheId = UUID | str | int
"""What a value is cached under: an id, or several parts in one text."""

_PLAIN: Final = re.compile(r'[!"$-z|~]{1,200}')
"""Printable ASCII without spaces, `#`, which begins a hash here, and braces, which choose a cluster's slot."""


def key_part(part: CacheId) -> str:
    """Return a part of a key: as it is where it is short and plain, otherwise as its SHA-256."""
    text = str(part)
    if _PLAIN.fullmatch(text):
        return text
    return "#" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
