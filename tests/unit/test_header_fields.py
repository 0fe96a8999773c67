"""Header fields mean what their RFCs say: on one line or several, quoted or not, in any case."""

import string
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit._header_fields import (
    SINGLE_FIELDS,
    EntityTags,
    Fields,
    MediaType,
    best_offer,
    quote_string,
    read_accept,
    read_media_type,
    read_preferences,
    read_string,
    read_tags,
    split_list,
)
from hybridkit.errors import InvalidHeaderError

JSON = MediaType("application", "json", frozenset({("charset", "utf-8")}))
LINES = MediaType("application", "x-ndjson", frozenset({("charset", "utf-8")}))

tokens = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
quotable = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), max_size=20)
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
opaque = st.text(
    st.characters(codec="latin-1", exclude_categories=["Cc"], exclude_characters='"'), max_size=20
)
blanks = st.text(" \t", max_size=2)


def lines(*pairs: tuple[str, str]) -> Fields:
    return Fields((name.encode(), value.encode("latin-1")) for name, value in pairs)


def quoted(text: str) -> str:
    """A quoted string of RFC 9110, section 5.6.4."""
    return '"' + "".join("\\" + it if it in '"\\' else it for it in text) + '"'


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


def test_the_lines_of_a_list_are_one_list() -> None:
    """They keep their order, also with other fields between them."""
    fields = lines(("prefer", "a"), ("accept", "*/*"), ("prefer", "b, c"))
    assert (fields.listed("prefer"), fields.listed("accept"), fields.listed("via")) == (
        "a, b, c",
        "*/*",
        None,
    )


@pytest.mark.parametrize("name", sorted(name.decode() for name in SINGLE_FIELDS))
def test_lines_of_one_value_agree_or_are_refused(name: str) -> None:
    """Whoever looked at the other line would act on another request."""
    same = lines((name, "a"), ("accept", "*/*"), (name, "a"))
    same.check()
    assert same.single(name) == "a"
    differing = lines((name, "a"), (name, "b"))
    with pytest.raises(InvalidHeaderError, match=name) as refused:
        differing.check()
    assert refused.value.field == name


def test_fields_that_are_lists_may_differ() -> None:
    """Only fields with one value are refused for several."""
    fields = lines(("prefer", "a"), ("prefer", "b"), ("cookie", "a=1"), ("cookie", "b=2"))
    fields.check()
    assert fields.single("authorization") is None


def test_what_can_t_be_read_is_refused_by_its_name() -> None:
    """The error has the field's name, and shows no value of another one."""
    fields = lines(("if-match", "junk"), ("authorization", "secret"))
    with pytest.raises(InvalidHeaderError, match="if-match: ") as refused:
        fields.read("if-match", read_tags)
    assert refused.value.field == "if-match"
    assert fields.read("if-none-match", read_tags) is None
    assert "secret" not in repr(fields)


@given(st.lists(st.tuples(blanks, st.one_of(st.just(""), tokens, quotable.map(quoted)), blanks)))
def test_a_list_is_split_at_its_commas(elements: list[tuple[str, str, str]]) -> None:
    """Blanks and empty elements don't count, nor does what stands in quotes."""
    assert split_list(",".join(map("".join, elements))) == [element for _, element, _ in elements if element]


# ── strings ──────────────────────────────────────────────────────────────────────────────────────


@given(printable)
def test_a_string_is_read_as_it_was_written(text: str) -> None:
    """Parameters after it mean nothing."""
    assert read_string(quote_string(text)) == text
    assert read_string(f' {quote_string(text)};x=1; y; z="a;b" ') == text


@pytest.mark.parametrize(
    "value",
    ["", "a", '"', '"a', 'a"', '"a" b', '"a", "b"', '"a\\b"', '"\\"', '"a"b"', '"\xe9"', '"a\tb"', '"a";'],
)
def test_what_is_no_string_is_refused(value: str) -> None:
    """Open quotes, stray text and characters beyond ASCII make it unreadable."""
    with pytest.raises(ValueError, match="quoted string"):
        read_string(value)


# ── preferences ──────────────────────────────────────────────────────────────────────────────────


@given(st.dictionaries(tokens.map(str.lower), quotable, max_size=5), st.booleans())
def test_preferences_are_read_as_they_were_written(wanted: dict[str, str], shout: bool) -> None:
    """Names have no case; parameters are left out."""
    elements = [
        f"{name.upper() if shout else name} = {quoted(word)} ; p = {quoted(word)};"
        for name, word in wanted.items()
    ]
    assert read_preferences(", ".join(elements)) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('note="a, tx=rollback"', {"note": "a, tx=rollback"}),
        ('note="a; b"; c="d, e=f", tx=rollback', {"note": "a; b", "tx": "rollback"}),
        ('note="\\", tx=rollback, \\""', {"note": '", tx=rollback, "'}),
        ("max-affected=1, max-affected=5, MAX-AFFECTED=9", {"max-affected": "1"}),
        ("respond-async,, ,wait=10;;foo", {"respond-async": "", "wait": "10"}),
        ("timezone=America/Los_Angeles", {"timezone": "America/Los_Angeles"}),
        ("", {}),
    ],
)
def test_a_preference_ends_where_it_ends(value: str, wanted: dict[str, str]) -> None:
    """Commas and semicolons in quotes end none, and the first of two counts."""
    assert read_preferences(value) == wanted


@pytest.mark.parametrize(
    "value", ['note="a, tx=rollback', "=1", "a b", 'a="b"c', "a=b c", "a;=b", 'a"b"', "tx=rollback;(x)"]
)
def test_a_preference_that_can_t_be_read_is_refused(value: str) -> None:
    """It could be read as another preference."""
    with pytest.raises(ValueError, match=r"quotation mark|a name is expected"):
        read_preferences(value)


# ── media types ──────────────────────────────────────────────────────────────────────────────────


@given(tokens, tokens, st.dictionaries(tokens.map(str.lower), quotable, max_size=3))
def test_a_media_type_is_read_as_it_was_written(kind: str, subtype: str, given_words: dict[str, str]) -> None:
    """Type, subtype and names have no case, values of parameters do."""
    written = f"{kind}/{subtype}" + "".join(f"; {name}={quoted(word)}" for name, word in given_words.items())
    found = read_media_type(written)
    assert found.name == f"{kind}/{subtype}".lower()
    assert {**dict(found.parameters), "charset": ""} == {**given_words, "charset": ""}


@pytest.mark.parametrize(
    "value", ["", "json", "application/", "/json", "a/b/c", "a/b, c/d", 'a/b;c="', "a/b c"]
)
def test_what_is_no_media_type_is_refused(value: str) -> None:
    """A list of media types and half a type are none."""
    with pytest.raises(ValueError, match=r"expected|closed"):
        read_media_type(value)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("APPLICATION/X-NDJSON", LINES),
        ("application/x-ndjson; charset=UTF-8", LINES),
        ("application/x-ndjson;q=0, application/json", JSON),
        ("application/x-ndjson;q=0, */*", JSON),
        ("application/x-ndjson;q=0.1, application/json", JSON),
        ("application/json;q=0.1, application/x-ndjson;q=0.2", LINES),
        ("application/json;q=0, */*", LINES),
        ("application/json;q=0, */*;q=0.001", LINES),
        ("application/x-ndjson, */*", LINES),
        ("*/*, application/x-ndjson", LINES),
        ("application/x-ndjson, */*;q=0.5", LINES),
        ("application/x-ndjson;q=0.5, */*", JSON),
        ("application/x-ndjson, application/json", JSON),
        ("application/json;version=2;q=0, application/json", JSON),
        ("application/json;charset=utf-8;q=0, application/json, application/x-ndjson;q=0.1", LINES),
        ("application/json;q=0, application/json", JSON),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", JSON),
        ('text/plain;note="a, application/x-ndjson", application/json;Q=0.5', JSON),
        ("application/x-ndjson-foo", None),
        ("application/json;version=2", None),
        ("application/json;q=0", None),
        ("*/*;q=0", None),
        ("*/*;q=0.000, application/*;q=0", None),
        ("text/html", None),
        ("application/json;charset=iso-8859-1", None),
    ],
)
def test_the_most_welcome_answer_is_given(accept: str, expected: MediaType | None) -> None:
    """Weights decide, the most specific range has the say, and a wildcard asks for nothing unusual."""
    assert best_offer(read_accept(accept), (JSON, LINES)) == expected


def test_without_accept_the_usual_answer_is_given() -> None:
    """The first offer is the default."""
    assert best_offer(None, (JSON, LINES)) == JSON


@pytest.mark.parametrize(
    "accept",
    [
        "json",
        "*/json",
        "a/b;q=2",
        "a/b;q=-1",
        "a/b;q=nan",
        "a/b;q=0.1234",
        "a/b;q=",
        "a/b;q",
        'a/b;x="',
        "a b/c",
    ],
)
def test_ranges_that_can_t_be_read_are_refused(accept: str) -> None:
    """One of them spoils the whole field."""
    with pytest.raises(ValueError, match=r"expected|weight|subtype|closed"):
        read_accept(f"text/plain, {accept}")


# ── entity tags ──────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.booleans(), opaque), min_size=1, max_size=4), blanks)
def test_tags_are_read_as_they_were_written(tags: list[tuple[bool, str]], blank: str) -> None:
    """A comma or a backslash in a tag is part of it."""
    written = [f'W/"{text}"' if weak else f'"{text}"' for weak, text in tags]
    found = read_tags(f"{blank},{blank}".join([blank, *written, ""]))
    assert found == EntityTags(any=False, tags=written)
    assert found.opaque == [f'"{text}"' for _, text in tags]


def test_a_star_is_any_state() -> None:
    """Blanks around it don't matter."""
    assert read_tags(" * ") == EntityTags(any=True, tags=())


@pytest.mark.parametrize(
    "value",
    ["", ",", "1-2a", 'w/"a"', "W/1-2a", '"a', 'a"', '"a" "b"', '*, "a"', '"a", *', '"a", b', "**", '"a"b'],
)
def test_what_is_no_tag_is_refused(value: str) -> None:
    """A tag without quotes, a list with `*` and an empty value are none."""
    with pytest.raises(ValueError, match="entity tags"):
        read_tags(value)


# ── anything ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "reader", [split_list, read_string, read_preferences, read_media_type, read_accept, read_tags]
)
@given(value=st.text('aW*/"\\,;= \t.q01', max_size=30) | st.text(max_size=30))
def test_any_text_is_read_or_refused(reader: Callable[[str], Any], value: str) -> None:
    """No input leads to another exception, or to an endless search."""
    try:
        reader(value)
    except ValueError as error:
        assert len(str(error)) > 10


@pytest.mark.parametrize(
    "value", ['"' * 20001, "\\" * 20001, '"\\' * 10001, "," * 20001, 'W/"a",' * 5000 + "x"]
)
@pytest.mark.parametrize("reader", [split_list, read_string, read_preferences, read_accept, read_tags])
def test_a_long_field_costs_no_more_than_its_length(reader: Callable[[str], Any], value: str) -> None:
    """Nothing is tried twice; a test that does takes minutes, and ends at the suite's limit."""
    with suppress(ValueError):
        reader(value)
