"""Keys and fingerprints: they decide which work is the same, and which payload."""

import hashlib
import re
from typing import Any, Final
from urllib.parse import quote

from hybridkit._syntax import KEY_PART_SYNTAX, KEY_SYNTAX, MAX_ID_CHARS
from hybridkit.codec import canonical_json, decode_json, encode_json

__all__ = ["check_key", "claim_key", "fingerprint"]

_UNRESERVED: Final = re.compile(r"[A-Za-z0-9_.~/-]*")
"""Text in which only slashes are percent-encoded, https://www.rfc-editor.org/rfc/rfc3986#section-2.3."""


def claim_key(context: str, entity: str, *identity: object) -> str:
    """Make a key `context:entity:id` of parts that other systems choose, whatever they are.

    Characters outside the syntax are percent-encoded, and an id that gets too long is replaced by its SHA-256. Equal
    parts give equal keys, different parts different ones.

    Args:
        context: the kind of work, for example the consumer's queue, or `http`. It has few values: it is also the
            `scope` of the guard's metric.
        entity: the owner, for example the service that sent an event, or the user.
        identity: the id; several parts are joined with `:`.
    """
    parts = ":".join(map(_quoted, identity))
    return f"{_word(context)}:{_word(entity)}:{parts if 0 < len(parts) <= MAX_ID_CHARS else _digest(parts)}"


def check_key(key: str) -> str:
    """Return a key that has the syntax `context:entity:id`.

    Context and entity are up to 100 characters out of `A-Z a-z 0-9 _ . -`; the id is up to 300 printable ASCII
    characters without spaces.

    Raises:
        ValueError: the key does not have three such parts.
    """
    if not KEY_SYNTAX.fullmatch(key):
        raise ValueError(
            f"an idempotency key is context:entity:id, like orders:order:42, not {key[:80]!r};"
            " claim_key() makes one from any parts"
        )
    return key


def fingerprint(payload: Any) -> str:
    """Hash a payload to 32 hexadecimal characters that are equal for equal payloads.

    Args:
        payload: bytes as they are; anything else by its JSON form, in which the order of members doesn't count.
    """
    body = payload if isinstance(payload, bytes) else canonical_json(decode_json(encode_json(payload)))
    return hashlib.sha256(body).hexdigest()[:32]


def _quoted(part: object) -> str:
    text = str(part)
    return text.replace("/", "%2F") if _UNRESERVED.fullmatch(text) else quote(text, safe="")


def _word(text: str) -> str:
    if KEY_PART_SYNTAX.fullmatch(text):
        return text
    return f"_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
