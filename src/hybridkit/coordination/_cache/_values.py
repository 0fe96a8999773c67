"""The values of a cache as JSON."""

from collections.abc import Callable, Collection
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from hybridkit.observability import get_logger

NOTHING: Final = b"null"
"""The stored form of "there is none"."""

_log = get_logger("hybridkit.coordination")


class UnreadableValueError(Exception):
    """A stored value is not one of the type: another version of the class has written it."""


class Values[T]:
    """Values of one type, written and read by pydantic.

    Args:
        name: the cache's name, for logs.
        type_: the type.
        tags: returns the tags of a value; None for a cache without tags.
    """

    def __init__(self, name: str, type_: type[T], tags: Callable[[T], Collection[str]] | None) -> None:
        self._name = name
        self._adapter: TypeAdapter[T] = TypeAdapter(type_)
        self._validator: Any = self._adapter.validator
        self._tags = tags
        self._has_warned = False

    def read(self, body: bytes) -> T | None:
        """Return the value of a stored body.

        Raises:
            UnreadableValueError: the body is not of the type.
        """
        if body == NOTHING:
            return None
        try:
            value: T = self._validator.validate_json(body)
        except (ValidationError, RecursionError) as error:
            raise UnreadableValueError from error
        return value

    def write(self, value: T | None) -> bytes | None:
        """Return the body to store, None for a value that could not be read again."""
        if value is None:
            return NOTHING
        try:
            body = self._adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
            self._validator.validate_json(body)
        except (ValueError, RecursionError) as error:  # pydantic's own errors are ValueErrors
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "a value can't be cached: its JSON can't be read as its type",
                    cache=self._name,
                    reason=type(error).__name__,
                )
            return None
        return body

    def tags_of(self, value: T | None) -> list[str]:
        """Return the tags of a value, each once."""
        return [] if value is None or self._tags is None else sorted(set(self._tags(value)))


def write_tags(tags: list[str]) -> bytes:
    """Return tags as they are stored; empty without any."""
    return orjson.dumps(tags) if tags else b""


def read_tags(stored: bytes) -> list[str]:
    """Return stored tags."""
    tags: list[str] = orjson.loads(stored)
    return tags
