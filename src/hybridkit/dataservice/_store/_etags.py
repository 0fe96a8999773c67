"""Entity tags: the version of a record and its incarnation, so that delete and create again never repeats one.

https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3
"""

import re
from typing import NamedTuple

_SYNTAX = re.compile(r'"([1-9][0-9]{0,17})-([0-9a-f]{1,15}|[1-7][0-9a-f]{15})"')  # both fit into 64 bits


class State(NamedTuple):
    """What an entity tag says.

    Attributes:
        version: 1 for a new record.
        incarnation: a number, made with the record, that tells it from an earlier one with the same id.
    """

    version: int
    incarnation: int

    @property
    def tag(self) -> str:
        """The strong tag, quotes included: `"7-1f3a"`."""
        return f'"{self.version}-{self.incarnation:x}"'

    @classmethod
    def of(cls, tag: str) -> "State | None":
        """The state that a tag names; None for a tag that no record can have."""
        match = _SYNTAX.fullmatch(tag)
        return cls(int(match[1]), int(match[2], 16)) if match else None
