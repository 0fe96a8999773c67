"""Refusal of text that databases can't store: U+0000, and halves of surrogate pairs."""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any, Final, cast
from urllib.parse import parse_qsl

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit._syntax import escape_token
from hybridkit.codec import MAX_FIELD_ERRORS
from hybridkit.errors import FieldProblem, InvalidRequestError

_ESCAPES: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\x00")
"""The bytes that such text may have in JSON: escapes, or a zero byte, which JSON in UTF-16 also has."""

_NO_TEXT: Final = re.compile("[\x00\ud800-\udfff]")
_CODE: Final = "string_unicode"


class TextMiddleware:
    """Refuses such text in a path, a query, and a JSON body that FastAPI reads.

    A body that the route reads itself is not checked: it may be signed, or stored as it is.

    Args:
        app: the application.
        reads_body: returns whether FastAPI reads the body for the route of a request.
    """

    def __init__(self, app: ASGIApp, *, reads_body: Callable[[Scope], bool]) -> None:
        self.app = app
        self.reads_body = reads_body

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request, without a coroutine of its own.

        Raises:
            InvalidRequestError: the request has such text; the error has a pointer to each.
        """
        if scope["type"] == "http":
            if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
                _refuse(_in_url(scope))
            receive = self._checked(receive, scope, scope.get("root_path", ""))
        return self.app(scope, receive, send)

    def _checked(self, receive: Receive, scope: Scope, root_path: str) -> Receive:
        chunks: list[bytes] = []

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                chunks.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = b"".join(chunks)
                    is_suspect = _ESCAPES.search(body) and _may_be_json(scope)
                    if is_suspect and self.reads_body({**scope, "root_path": root_path}):  # as before routing
                        _refuse(_in_json(body))
            return message

        return receive_checked


def _may_be_json(scope: Scope) -> bool:
    return "json" in (Fields(scope["headers"]).listed("content-type") or "json").lower()


def _refuse(found: Iterator[str]) -> None:
    errors = [FieldProblem(pointer, _CODE) for pointer in islice(found, MAX_FIELD_ERRORS)]
    if errors:
        raise InvalidRequestError("text has neither U+0000 nor half of a surrogate pair", errors=errors)


def _in_url(scope: Scope) -> Iterator[str]:
    if "\x00" in scope["path"]:
        yield "/path"
    if b"%00" not in scope["query_string"]:
        return
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if "\x00" in name:
            yield "/query"
        elif "\x00" in value:
            yield f"/query/{escape_token(name)}"


def _in_json(body: bytes) -> Iterator[str]:
    try:
        waiting: list[tuple[str, Any]] = [("", json.loads(body))]
    except (ValueError, RecursionError):
        return  # the application refuses malformed JSON
    while waiting:
        pointer, value = waiting.pop()
        if isinstance(value, str):
            if _NO_TEXT.search(value):
                yield pointer
        elif isinstance(value, list):
            members = cast("list[Any]", value)
            waiting += reversed([(f"{pointer}/{index}", member) for index, member in enumerate(members)])
        elif isinstance(value, dict):
            named = cast("dict[str, Any]", value)
            if any(map(_NO_TEXT.search, named)):
                yield pointer
                continue
            waiting += reversed(
                [(f"{pointer}/{escape_token(name)}", member) for name, member in named.items()]
            )
