"""Requests to the contract's routes: caller, idempotency key, condition, preferences and body."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from fastapi import Request
from starlette.requests import ClientDisconnect

from hybridkit._header_fields import (
    EntityTags,
    Fields,
    MediaType,
    read_media_type,
    read_preferences,
    read_tags,
    split_list,
)
from hybridkit._syntax import NAME_SYNTAX
from hybridkit.codec import canonical_json, decode_object
from hybridkit.contract import CALLER_HEADER, IDEMPOTENCY_KEY_HEADER, MAX_BODY_BYTES, parse_key
from hybridkit.dataservice._http._preferences import Preferences
from hybridkit.dataservice._store._protocol import Store
from hybridkit.errors import (
    InvalidRequestError,
    KeyMissingError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)

ANONYMOUS: Final = "anonymous"
MAX_URL_BYTES: Final = 8 * 1024
"""The longest path and query together; a longer query is sent as the body of `:query`."""

JSON_MEDIA_TYPE: Final = "application/json"
MERGE_PATCH_MEDIA_TYPE: Final = "application/merge-patch+json"
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii"})
"""The names of UTF-8, and of ASCII, which is a subset."""


class ContractRequest(Request):
    """A request for a route of the contract.

    Attributes:
        caller: the name of the calling service, once it is known.
        record_id: the id in the URL, as text; empty where there is none.
        media_type: the media type of the response; None where it has no body.
    """

    caller: str = ""
    record_id: str = ""
    media_type: MediaType | None = None
    _preferences: Preferences | None = None

    @property
    def store(self) -> Store:
        """The store of the running application."""
        store: Store = self.app.state.store
        return store

    @cached_property
    def fields(self) -> Fields:
        """The header fields."""
        return Fields(self.scope["headers"])

    @property
    def preferences(self) -> Preferences:
        """The preferences in `Prefer`.

        Raises:
            InvalidHeaderError: `Prefer` can't be read.
        """
        if self._preferences is None:
            self._preferences = Preferences(self.fields.read("prefer", read_preferences) or {})
        return self._preferences

    @property
    def applied(self) -> str:
        """The preferences that were honoured so far; empty for none."""
        return "" if self._preferences is None else self._preferences.applied

    @cached_property
    def condition(self) -> "Condition":
        """The condition in `If-Match` and `If-None-Match`, https://www.rfc-editor.org/rfc/rfc9110#section-13.1.

        Raises:
            InvalidHeaderError: `If-Match` or `If-None-Match` can't be read.
        """
        return Condition(
            self.fields.read("if-match", read_tags), self.fields.read("if-none-match", read_tags)
        )


def check_url(request: ContractRequest) -> None:
    """Refuse a URL that is longer than any route takes.

    Raises:
        UriTooLongError: path and query have more than 8 KiB.
    """
    scope = request.scope
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope["query_string"]
    length = len(path) + len(query) + len(b"?" if query else b"")
    if length > MAX_URL_BYTES:
        raise UriTooLongError(
            f"the URL has {length} bytes, {MAX_URL_BYTES} are allowed; send the query as the body of `:query`"
        )


def caller_of(request: ContractRequest) -> str:
    """Return the service's name in `X-Service-Name`; `anonymous` without it.

    Raises:
        InvalidRequestError: the value is no service name.
    """
    name = request.fields.single(CALLER_HEADER)
    if name is None:
        return ANONYMOUS
    if not NAME_SYNTAX.fullmatch(name):
        raise InvalidRequestError(f"{CALLER_HEADER} is no snake_case name of at most 63 characters")
    return name


def key_of(request: ContractRequest) -> str:
    """Return the idempotency key, unquoted.

    Raises:
        KeyMissingError: the request has none, and every write needs one.
        InvalidRequestError: the key is too long, or not printable ASCII.
    """
    value = request.fields.single(IDEMPOTENCY_KEY_HEADER)
    if value is None:
        raise KeyMissingError(
            "a write needs an Idempotency-Key header, the same for every attempt of one call"
        )
    return parse_key(value)


class Condition(NamedTuple):
    """The condition on which a record is read or written.

    Attributes:
        if_match: the record exists, in one of these states.
        if_none_match: the record is in none of these states; with `any` it does not exist.
    """

    if_match: EntityTags | None = None
    if_none_match: EntityTags | None = None

    @property
    def only(self) -> Literal["absent", "present"] | None:
        """Whether a write needs the record to exist, or not to exist; None for either.

        Raises:
            InvalidRequestError: the request has both headers, or `If-None-Match` with tags.
        """
        if self.if_none_match is None:
            return None if self.if_match is None else "present"
        if self.if_match is not None or not self.if_none_match.any:
            raise InvalidRequestError("a write takes `If-None-Match: *` or If-Match, nothing else")
        return "absent"

    def holds(self, tag: str) -> bool:
        """Return whether `If-Match` allows to read a record in that state."""
        return self.if_match is None or self.if_match.any or tag in self.if_match.opaque

    def knows(self, tag: str) -> bool:
        """Return whether the reader has that state already, as `If-None-Match` says."""
        known = self.if_none_match
        return known is not None and (known.any or tag in known.opaque)

    def to_json(self) -> dict[str, list[str]]:
        """Return a JSON form that is the same for conditions with the same meaning."""
        asked = {"if_match": self.if_match, "if_none_match": self.if_none_match}
        return {
            name: sorted({"*"} if tags.any else set(tags.opaque))
            for name, tags in asked.items()
            if tags is not None
        }


async def read_body(request: ContractRequest) -> bytes:
    """Read the body, whose size and time `RequestContextMiddleware` limits.

    Raises:
        UnsupportedMediaTypeError: the headers say that the body is something else than JSON, or compressed.
        PayloadTooLargeError: the body is longer than 1 MiB.
        InvalidRequestError: the caller left before the body was complete.
    """
    _check_type(request)
    try:
        return await request.body()
    except ClientDisconnect:
        raise InvalidRequestError("the caller left before its body was complete") from None


async def read_object(request: ContractRequest) -> tuple[bytes, dict[str, Any]]:
    """Return the body as it came, and the members of its JSON object, with numbers as exact as they were written.

    Raises:
        MalformedPayloadError: the body is no JSON object.
        HybridkitError: `read_body` raised it.
    """
    body = await read_body(request)
    return body, decode_object(body, limit_bytes=MAX_BODY_BYTES, as_written=True)


def fingerprint(request: ContractRequest, members: Mapping[str, Any] | None) -> bytes:
    """Hash what a repeated request has in common with the first: method, path, condition and body.

    The order of members doesn't matter, nor do preferences: they change the response only, or are not kept.
    """
    asked = canonical_json(members)
    if condition := request.condition.to_json():
        asked += b"\n" + canonical_json(condition)
    return hashlib.sha256(f"{request.method} {request.scope['path']}\n".encode() + asked).digest()


def without_times(transaction: Mapping[str, Any]) -> dict[str, Any]:
    """Return a transaction without the members that a rerun, which makes the same events later, may change."""
    operations: list[Mapping[str, Any]] = transaction.get("operations") or []
    appended = [without_event_times(each) if each.get("op") == "append" else each for each in operations]
    return {**transaction, "operations": appended, "emit": _timeless(transaction.get("emit") or [])}


def without_event_times(append: Mapping[str, Any]) -> dict[str, Any]:
    """Return an append without the members that a rerun may change; its snapshot is a cache."""
    kept = {name: append[name] for name in append if name != "snapshot"}
    return {**kept, "events": _timeless(append["events"])}


def _timeless(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: event[name] for name in event if name not in _VARYING} for event in events]


_VARYING: Final = frozenset({"timestamp", "not_before", "request_id", "traceparent", "tracestate"})


def _check_type(request: ContractRequest) -> None:
    """Refuse a body of another media type, or a compressed one; without a type it is taken for JSON."""
    codings = request.fields.read("content-encoding", split_list) or []
    if any(coding.lower() != "identity" for coding in codings):
        raise UnsupportedMediaTypeError("a compressed body is not taken; send it as it is")
    declared = request.fields.single("content-type")
    if not declared:
        return
    takes = (JSON_MEDIA_TYPE, MERGE_PATCH_MEDIA_TYPE) if request.method == "PATCH" else (JSON_MEDIA_TYPE,)
    try:
        media_type = read_media_type(declared)
    except ValueError:
        media_type = None
    if media_type is None or media_type.name not in takes:
        raise UnsupportedMediaTypeError(f"a body is {' or '.join(takes)} here")
    if dict(media_type.parameters).get("charset", "utf-8") not in _CHARSETS:
        raise UnsupportedMediaTypeError("JSON is UTF-8")
