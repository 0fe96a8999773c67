"""Page tokens: the position where a page ended, signed and bound to the query that it belongs to.

The service keeps nothing between requests: the token has the last record's values of the fields in the order. They are
not secret, as the reader has just read them; the signature keeps others from making tokens up.
"""

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from hybridkit.codec import encode_json
from hybridkit.errors import PageTokenError
from hybridkit.resources import Query
from hybridkit.resources._resource import AnyResource

_SIGNATURE_BYTES: Final = 16
_BINDING_BYTES: Final = 8


def write_token(resource: AnyResource, query: Query, position: Sequence[Any], *, key: bytes) -> str:
    """Return the token for the page after a position.

    Args:
        resource: the resource that was read.
        query: the query of the page.
        position: the last record's values of the fields in `Query.total_order`; they have a JSON form.
        key: the store's signing key.
    """
    payload = _binding(resource, query) + orjson.dumps(list(position), default=str)
    return _text(_signature(payload, key) + payload)


def read_token(resource: AnyResource, query: Query, *, key: bytes) -> Sequence[Any] | None:
    """Return the position in the query's token; None without a token.

    Raises:
        PageTokenError: the token belongs to another resource, filter or order, or was not signed with this key.
    """
    if query.page_token is None:
        return None
    try:
        token = urlsafe_b64decode(query.page_token.encode("ascii") + b"==")
    except (UnicodeEncodeError, Base64Error):
        raise _mismatch() from None
    if (
        _text(token) != query.page_token
    ):  # Python ignores padding, line feeds and characters of other alphabets
        raise _mismatch()
    signature, payload = token[:_SIGNATURE_BYTES], token[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(payload, key)):
        raise _mismatch()
    if payload[:_BINDING_BYTES] != _binding(resource, query):
        raise _mismatch()
    position: list[Any] = orjson.loads(payload[_BINDING_BYTES:])
    return position


def _text(token: bytes) -> str:
    return urlsafe_b64encode(token).decode().rstrip("=")


def _signature(payload: bytes, key: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:_SIGNATURE_BYTES]


def _binding(resource: AnyResource, query: Query) -> bytes:
    """Hash resource, filter and order. Page size and selection may change from page to page."""
    bound = replace(query, page_token=None, page_size=1, select=())
    return hashlib.sha256(encode_json([resource.name, bound.to_json()])).digest()[:_BINDING_BYTES]


def _mismatch() -> PageTokenError:
    return PageTokenError(
        "the page token belongs to another filter or order; start again without a token",
        pointer="/page_token",
    )
