"""Texts for a URL or a header: percent-encoded, or refused before anything is sent.

A `str` may hold halves of surrogate pairs, which no encoding has; a header may hold no line break.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from hybridkit.codec import encode_json
from hybridkit.errors import InvalidQueryError, InvalidRequestError, MalformedPayloadError


def quoted(text: str, *, safe: str = "") -> str:
    """Percent-encode a text for a path.

    Raises:
        InvalidRequestError: the text is no Unicode text.
    """
    try:
        return quote(text, safe=safe)
    except UnicodeEncodeError:
        raise InvalidRequestError("a path can't hold half a surrogate pair") from None


def query_string(params: Any) -> str:
    """Encode parameters as they stand behind the `?`; a list gives its name several times.

    Raises:
        InvalidQueryError: a parameter is no Unicode text.
    """
    try:
        return urlencode(params, doseq=True)
    except UnicodeEncodeError:
        raise InvalidQueryError("a query can't hold half a surrogate pair") from None


def encode_query(query: Mapping[str, Any]) -> bytes:
    """Encode a query as a body.

    Raises:
        InvalidQueryError: a value in it has no JSON form.
    """
    try:
        return encode_json(query)
    except MalformedPayloadError as error:
        raise InvalidQueryError(f"the query can't be sent: {error}") from None


def checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers unchanged if every transport can send them.

    Raises:
        InvalidRequestError: a value is not printable ASCII; the message has the header's name only.
    """
    for name, value in headers.items():
        if not value.isascii() or not value.replace("\t", " ").isprintable():
            raise InvalidRequestError(
                f"the header {name[:100]!r} can't be sent: it takes printable ASCII only"
            )
    return headers
