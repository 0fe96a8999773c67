"""What a caller would like, and what of it was honoured.

`Prefer: return=minimal, max-affected=10` is answered by `Preference-Applied: return=minimal, max-affected=10`. What a
route doesn't know it ignores, and so doesn't name.

https://www.rfc-editor.org/rfc/rfc7240
"""

from collections.abc import Mapping
from typing import Literal

from hybridkit.errors import InvalidRequestError


class Preferences:
    """The preferences of one request.

    Args:
        wanted: values by name, in lower case; of a value the case doesn't matter.
    """

    __slots__ = ("_applied", "_wanted")

    def __init__(self, wanted: Mapping[str, str]) -> None:
        self._wanted = {name: value.lower() for name, value in wanted.items()}
        self._applied: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Preferences({self._wanted!r}, applied={self.applied!r})"

    @property
    def applied(self) -> str:
        """What was honoured, for `Preference-Applied`; empty for nothing."""
        return ", ".join(f"{name}={value}" for name, value in self._applied.items())

    def minimal(self) -> bool:
        """Whether a write shall be answered without a body."""
        return self._takes("return", "minimal")

    def rolled_back(self) -> bool:
        """Whether a write shall only be tried."""
        return self._takes("tx", "rollback")

    def count(self) -> Literal["exact", "estimated"] | None:
        """How a page shall count everything that fits."""
        if self._takes("count", "exact"):
            return "exact"
        return "estimated" if self._takes("count", "estimated") else None

    def max_affected(self) -> int | None:
        """How many records a write may touch.

        Raises:
            InvalidRequestError: it is no number. Ignored, it would be a limit that doesn't hold.
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
