"""Header fields of the contract, media types, and the limits of bodies and pages."""

from typing import Final

from hybridkit._header_fields import quote_string, read_string
from hybridkit.errors import InvalidRequestError

IDEMPOTENCY_KEY_HEADER: Final = "idempotency-key"
IDEMPOTENCY_REPLAYED_HEADER: Final = "idempotency-replayed"
IDEMPOTENCY_REREAD_HEADER: Final = "idempotency-reread"
"""Marks the repetition of a response that was too large to keep: its records were read again."""
CALLER_HEADER: Final = "x-service-name"
"""Names the calling service. It tells callers apart; it doesn't authenticate them."""
NDJSON_MEDIA_TYPE: Final = "application/x-ndjson"
"""The media type of exports: a record per line, and `{"$end": true, "count": n}` as the last line, to notice a cut."""

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""The largest size of the records in one page, or one response to `:batch_get`; a larger record comes alone."""
MAX_KEY_LENGTH: Final = 255


def quote_key(key: str) -> str:
    """Write a key as a structured-field string (RFC 9651, section 3.3.3), the form of `Idempotency-Key`.

    Raises:
        InvalidRequestError: the key is empty, longer than 255 characters, or not printable ASCII.
    """
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise InvalidRequestError(f"an idempotency key has 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    return quote_string(key)


def parse_key(value: str) -> str:
    """Read the key in a value of `Idempotency-Key`: quoted or, as many clients send it, bare.

    Raises:
        InvalidRequestError: `quote_key` would refuse the key, or the value has a quotation mark out of place.
    """
    value = value.strip()
    if '"' in value:
        try:
            value = read_string(value)
        except ValueError as error:
            raise InvalidRequestError(f"the idempotency key can't be read: {error}") from None
    quote_key(value)
    return value
