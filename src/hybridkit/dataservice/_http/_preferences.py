"""The preferences of a request, and the ones that were honoured.

`Prefer: return=minimal, max-affected=10` is answered by `Preference-Applied: return=minimal, max-affected=10`. A route
ignores the preferences that it doesn't know, and so doesn't name them.

https://www.rfc-editor.org/rfc/rfc7240
"""

from collections.abc import Mapping
from typing import Literal

from hybridkit.errors import InvalidRequestError


class Preferences:
    """The preferences of one request.

    Args:
        wanted: values by name in lower case; the case of a value doesn't matter.
    """

    __slots__ = ("_applied", "_wanted")

    def __init__(self, wanted: Mapping[str, str]) -> None:
        self._wanted = {name: value.lower() for name, value in wanted.items()}
        self._applied: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Preferences({self._wanted!r}, applied={self.applied!r})"

    @property
    def applied(self) -> str:
        """The value of `Preference-Applied`; empty where no preference was honoured."""
        return ", ".join(f"{name}={value}" for name, value in self._applied.items())

    def minimal(self) -> bool:
        """Return whether the response to a write has no body."""
        return self._takes("return", "minimal")

    def rolled_back(self) -> bool:
        """Return whether a write is only tried, and rolled back."""
        return self._takes("tx", "rollback")

    def count(self) -> Literal["exact", "estimated"] | None:
        """Return how to count the records that fit a query; None for not at all."""
        if self._takes("count", "exact"):
            return "exact"
        return "estimated" if self._takes("count", "estimated") else None

    def max_affected(self) -> int | None:
        """Return the number of records that a write may touch; None for any.

        Raises:
            InvalidRequestError: the limit is no number. To ignore it would be to exceed it.
        """
        value = self._wanted.get("max-affected")
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) <= 9):
            raise InvalidRequestError("Prefer: max-affected is a whole number")
        self._applied["max-affected"] = value
        return int(value)

    def _takes(self, name: str, value: str) -> bool:
        if self._wanted.get(name) != value:
            return False
        self._applied[name] = value
        return True
