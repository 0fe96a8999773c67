"""Topic patterns, compared with the regular expressions that they stand for."""

import re

from hypothesis import given
from hypothesis import strategies as st

from hybridkit.dev._broker._exchanges import topic_matches

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=5)


def as_expression(pattern: list[str]) -> str:
    return "".join({"*": "[^.]+[.]", "#": "([^.]+[.])*"}.get(part, f"{part}[.]") for part in pattern)


@given(pattern=PATTERNS, words=WORDS)
def test_topics_match_as_their_expression(pattern: list[str], words: list[str]) -> None:
    """Each word is followed by a dot in both, so that the expression stays simple."""
    text = "".join(f"{word}." for word in words)
    assert topic_matches(pattern, words) == bool(re.fullmatch(as_expression(pattern), text))


def test_many_signs_cost_little() -> None:
    """A pattern with many `#` takes no exponential time."""
    assert not topic_matches(["#", "a"] * 30, ["a"] * 200 + ["b"])
