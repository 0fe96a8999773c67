"""Page tokens: where a page ended, signed, and bound to the query that it belongs to.

Nothing is kept between requests: the token holds the values by which the last record stands in the order. It is not
secret, as the reader has just read them; the signature keeps it from being made up.
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
    """The token for the page after that position.

    Args:
        resource: what was read.
        query: how.
        position: the values of `Query.total_order` in the last record; JSON-able.
        key: the store's signing key.
    """
    payload = _binding(resource, query) + orjson.dumps(list(position), default=str)
    return _text(_signature(payload, key) + payload)


def read_token(resource: AnyResource, query: Query, *, key: bytes) -> Sequence[Any] | None:
    """The position that the query's token names; None without a token.

    Raises:
        PageTokenError: it belongs to another resource, filter or order, or was not made with this key.
    """
    if query.page_token is None:
        return None
    try:
        token = urlsafe_b64decode(query.page_token.encode("ascii") + b"==")
    except (UnicodeEncodeError, Base64Error):
        raise _mismatch() from None
    if (
        _text(token) != query.page_token
    ):  # padding, line feeds and strange characters, which Python leaves out
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
    """What the token holds for: resource, filter and order. Page size and selection may change on the way."""
    bound = replace(query, page_token=None, page_size=1, select=())
    return hashlib.sha256(encode_json([resource.name, bound.to_json()])).digest()[:_BINDING_BYTES]


def _mismatch() -> PageTokenError:
    return PageTokenError(
        "the page token belongs to another filter or order; start again without a token",
        pointer="/page_token",
    )
