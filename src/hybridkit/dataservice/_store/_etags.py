"""Entity tags: version and incarnation of a record, so that no tag comes again after a delete and a create.

https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3
"""

import re
from typing import NamedTuple

_SYNTAX = re.compile(r'"([1-9][0-9]{0,17})-([0-9a-f]{1,15}|[1-7][0-9a-f]{15})"')  # both fit into 64 bits


class State(NamedTuple):
    """The state of a record that an entity tag names.

    Attributes:
        version: from 1.
        incarnation: a random number, made with the record, that tells it from an earlier one with the same id.
    """

    version: int
    incarnation: int

    @property
    def tag(self) -> str:
        """The strong tag, quotes included: `"7-1f3a"`."""
        return f'"{self.version}-{self.incarnation:x}"'

    @classmethod
    def of(cls, tag: str) -> "State | None":
        """Return the state that a tag names, or None for a tag that no record can have."""
        match = _SYNTAX.fullmatch(tag)
        return cls(int(match[1]), int(match[2], 16)) if match else None
