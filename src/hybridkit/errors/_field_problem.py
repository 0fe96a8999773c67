"""One problem of a request or message, by the field that has it."""

import re
from typing import Final

_OPERATION: Final = re.compile("/operations/([0-9]{1,4})(?:/|$)")


def named_operation(problems: "tuple[FieldProblem, ...]") -> int | None:
    """Return the number of the operation in a transaction that the first problem is about; None for no operation."""
    found = _OPERATION.match(problems[0].pointer) if problems else None
    return int(found[1]) if found else None


class FieldProblem:
    """One problem at one place of a request; no exception, but a part of some.

    It never holds the value, which may be a secret. Two are equal if pointer and code are.

    Args:
        pointer: the field, as an RFC 6901 JSON pointer; empty for the whole body.
        code: the kind of problem, for programs, such as `missing`.
        message: the same in words for people; empty if the code says enough.
    """

    __slots__ = ("code", "message", "pointer")

    def __init__(self, pointer: str, code: str, message: str = "") -> None:
        self.pointer = pointer
        self.code = code
        self.message = message

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FieldProblem):
            return NotImplemented
        return (self.pointer, self.code) == (other.pointer, other.code)

    def __hash__(self) -> int:
        return hash((self.pointer, self.code))

    def __repr__(self) -> str:
        return f"FieldProblem(pointer={self.pointer!r}, code={self.code!r})"

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.message or self.code}"
