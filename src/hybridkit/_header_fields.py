"""HTTP header fields: lists over several lines, quoted values, media types, preferences, entity tags.

The readers raise `ValueError`; `Fields.read` turns it into the error that names the field.

https://www.rfc-editor.org/rfc/rfc9110#section-5
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from hybridkit.errors import InvalidHeaderError

SINGLE_FIELDS: Final = frozenset(
    {
        b"authorization",
        b"content-type",
        b"idempotency-key",
        b"x-request-id",
        b"x-request-timeout",
        b"x-retry-count",
        b"x-service-name",
        b"x-user-id",
    }
)
"""The fields with one value: where two lines differ, a proxy and the service may act on different requests."""


class Fields:
    """The header fields of one request.

    Args:
        lines: the names, in lower case, and values, as in an ASGI scope.
    """

    __slots__ = ("_repeated", "_values")

    def __init__(self, lines: Iterable[tuple[bytes, bytes]]) -> None:
        lines = list(lines)
        self._values: dict[bytes, bytes] = dict(lines)
        self._repeated: dict[bytes, list[bytes]] = {}
        if len(self._values) < len(lines):
            for name, value in lines:
                self._repeated.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        return f"Fields({sorted(name.decode('latin-1') for name in self._values)})"  # values may be secrets

    def has_any(self, names: Iterable[bytes]) -> bool:
        """Return whether one of these fields is there; the names are in lower case."""
        return not self._values.keys().isdisjoint(names)

    def count(self, name: bytes) -> int:
        """Return the number of lines of a field; its name is in lower case."""
        return (
            len(self._repeated[name]) if self._repeated and name in self._repeated else name in self._values
        )

    def check(self) -> None:
        """Refuse a request that has different values for a field with one value.

        Raises:
            InvalidHeaderError: a field of `SINGLE_FIELDS` has several values.
        """
        if self._repeated:
            for name in self._repeated.keys() & SINGLE_FIELDS:
                self.single(name.decode())

    def single(self, name: str) -> str | None:
        """Return the value of a field that has one; None where it is missing.

        Args:
            name: the name in lower case.

        Raises:
            InvalidHeaderError: the field has lines with different values.
        """
        key = name.encode()
        if self._repeated and len(set(self._repeated.get(key, ()))) > 1:
            raise InvalidHeaderError(f"{name} is given more than once, with different values", field=name)
        value = self._values.get(key)
        return None if value is None else value.decode("latin-1")

    def listed(self, name: str) -> str | None:
        """Return the value of a list field, with its lines joined in their order; None where it is missing.

        https://www.rfc-editor.org/rfc/rfc9110#section-5.3
        """
        key = name.encode()
        value = b", ".join(self._repeated[key]) if key in self._repeated else self._values.get(key)
        return None if value is None else value.decode("latin-1")

    def read[T](self, name: str, reader: Callable[[str], T]) -> T | None:
        """Return a list field's value, parsed by the reader; None where the field is missing.

        Raises:
            InvalidHeaderError: the reader raised `ValueError`.
        """
        value = self.listed(name)
        if value is None:
            return None
        try:
            return reader(value)
        except ValueError as error:
            raise InvalidHeaderError(f"{name}: {error}", field=name) from None


# ── parts ────────────────────────────────────────────────────────────────────────────────────────

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"  # noqa: S105 - RFC 9110's word for it
_QUOTED: Final = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
_UNTIL: Final = {mark: re.compile(rf'(?:{_QUOTED}|[^"{mark}])*+') for mark in ",;"}
_PARAMETER: Final = re.compile(
    rf'(?P<name>{_TOKEN})(?:[ \t]*=[ \t]*(?:(?P<quoted>{_QUOTED})|(?P<bare>[^" \t]*+)))?'
)
_ESCAPED: Final = re.compile(r"\\(.)")
_BLANKS: Final = " \t"


def split_list(value: str) -> list[str]:
    """Split a list into its elements, without the empty ones; a comma in a quoted string ends none.

    Raises:
        ValueError: a quotation mark is not closed.
    """
    return [element for element in _split(value, ",") if element]


def _split(text: str, mark: str) -> list[str]:
    parts: list[str] = []
    at = 0
    while at <= len(text):
        match = _UNTIL[mark].match(text, at)
        end = match.end() if match else at
        if text[end : end + 1] == '"':
            raise ValueError("a quotation mark is not closed")
        parts.append(text[at:end].strip(_BLANKS))
        at = end + 1
    return parts


def _parameter(text: str) -> tuple[str, str]:
    """Split `name=value`, with the name in lower case; no value means the same as an empty one (RFC 7240)."""
    match = _PARAMETER.fullmatch(text)
    if match is None:
        raise ValueError("a name is expected, with a value after `=` or without one")
    value = _ESCAPED.sub(r"\1", match["quoted"][1:-1]) if match["quoted"] else match["bare"] or ""
    return match["name"].lower(), value


# ── structured strings ───────────────────────────────────────────────────────────────────────────

_ITEM: Final = re.compile(
    r'"(?P<text>(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+)"'
    rf'(?:; *[a-z*][a-z0-9_.*\-]*+(?:=(?:{_QUOTED}|[^" ;,]++))?)*+'
)


def quote_string(text: str) -> str:
    """Write printable ASCII as a structured field's string, https://www.rfc-editor.org/rfc/rfc9651#section-4.1.6."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_string(value: str) -> str:
    """Return the text of a structured field's string, without the parameters after it, which have no meaning here.

    https://www.rfc-editor.org/rfc/rfc9651#section-4.2.5

    Raises:
        ValueError: the value is no such string.
    """
    match = _ITEM.fullmatch(value.strip(" "))
    if match is None:
        raise ValueError('not a quoted string of printable ASCII, with a backslash before `"` and `\\` only')
    return _ESCAPED.sub(r"\1", match["text"])


# ── preferences ──────────────────────────────────────────────────────────────────────────────────


def read_preferences(value: str) -> Mapping[str, str]:
    """Read the preferences by name, in lower case, without their parameters; of one that comes twice the first counts.

    https://www.rfc-editor.org/rfc/rfc7240#section-2

    Raises:
        ValueError: the value can't be read. A preference may be ignored; one that is misread would be another one.
    """
    wanted: dict[str, str] = {}
    for element in split_list(value):
        preference, *parameters = _split(element, ";")
        name, word = _parameter(preference)
        for parameter in filter(None, parameters):
            _parameter(parameter)
        wanted.setdefault(name, word)
    return wanted


# ── media types ──────────────────────────────────────────────────────────────────────────────────

_TYPE: Final = re.compile(rf"({_TOKEN})/({_TOKEN})")
_WEIGHT: Final = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?|\.\d{1,3})", re.ASCII)  # Java sends `q=.2`


class MediaType(NamedTuple):
    """A media type; only the values of its parameters keep their case.

    Attributes:
        type: the type, such as `application`.
        subtype: the subtype, such as `json`.
        parameters: the names with their values; a charset is in lower case.
    """

    type: str
    subtype: str
    parameters: frozenset[tuple[str, str]] = frozenset()

    @property
    def name(self) -> str:
        """Type and subtype, such as `application/json`."""
        return f"{self.type}/{self.subtype}"


class MediaRange(NamedTuple):
    """A range of media types in `Accept`, and its weight.

    Attributes:
        media_type: the media type, with `*` for any type or subtype.
        weight: from 0, not at all, to 1.
    """

    media_type: MediaType
    weight: float

    def takes(self, offer: MediaType) -> bool:
        """Return whether the offer is in the range."""
        wanted = self.media_type
        return (
            wanted.type in ("*", offer.type)
            and wanted.subtype in ("*", offer.subtype)
            and wanted.parameters <= offer.parameters
        )

    @property
    def specificity(self) -> tuple[bool, bool, int]:
        """A sort key; the most specific range decides, https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1."""
        wanted = self.media_type
        return wanted.type != "*", wanted.subtype != "*", len(wanted.parameters)


def read_media_type(value: str) -> MediaType:
    """Read a media type, https://www.rfc-editor.org/rfc/rfc9110#section-8.3.1.

    Raises:
        ValueError: the value is no media type.
    """
    name, *parts = _split(value, ";")
    match = _TYPE.fullmatch(name)
    if match is None:
        raise ValueError("a media type is expected, such as application/json")
    parameters: dict[str, str] = {}
    for key, word in map(_parameter, filter(None, parts)):
        parameters.setdefault(key, word.lower() if key == "charset" else word)
    return MediaType(match[1].lower(), match[2].lower(), frozenset(parameters.items()))


def read_accept(value: str) -> Sequence[MediaRange]:
    """Read the ranges of an `Accept` field.

    Raises:
        ValueError: a range can't be read.
    """
    return [_media_range(element) for element in split_list(value)]


def _media_range(element: str) -> MediaRange:
    name, mark, parameters = element.partition(";")
    wanted = read_media_type(
        "*/*" + mark + parameters if name.strip(_BLANKS) == "*" else element
    )  # Java's `*`
    if wanted.type == "*" != wanted.subtype:
        raise ValueError("no subtype can follow `*`")
    weight = next((word for key, word in wanted.parameters if key == "q"), "1")
    if not _WEIGHT.fullmatch(weight):
        raise ValueError("a weight is a number from 0 to 1")
    others = wanted.parameters - {("q", weight)}
    return MediaRange(wanted._replace(parameters=others), float(weight))


def best_offer(ranges: Sequence[MediaRange] | None, offers: Sequence[MediaType]) -> MediaType | None:
    """Return the offer with the highest weight; among equals one that `Accept` names, then the first.

    Args:
        ranges: the ranges of `Accept`; None or none accept everything.
        offers: the media types to choose from, the default first.

    Returns:
        The media type; None where `Accept` allows none of them.
    """
    if not ranges:
        return offers[0]
    found: list[tuple[float, bool, MediaType]] = []
    for offer in offers:
        fitting = [(entry.specificity, entry.weight) for entry in ranges if entry.takes(offer)]
        (_, is_named, _), weight = max(fitting, default=((False, False, 0), 0.0))
        found.append((weight, is_named, offer))
    weight, _, best = max(found, key=lambda entry: entry[:2])
    return best if weight > 0 else None


# ── entity tags ──────────────────────────────────────────────────────────────────────────────────

_TAG: Final = r'(?:W/)?"[\x20\x21\x23-\x7e\x80-\xff]*+"'  # a blank too, as RFC 2616 had it
_TAGS: Final = re.compile(rf"[ \t,]*+{_TAG}(?:[ \t]*+,[ \t,]*+(?:{_TAG})?)*+[ \t]*+")


class EntityTags(NamedTuple):
    """The entity tags in `If-Match` or `If-None-Match`.

    Attributes:
        any: whether the value is `*`, which every state fits.
        tags: the tags with their quotes and, where they are weak, `W/`.
    """

    any: bool
    tags: Sequence[str]

    @property
    def opaque(self) -> Sequence[str]:
        """The tags without `W/`, for the weak comparison."""
        return [tag.removeprefix("W/") for tag in self.tags]


def read_tags(value: str) -> EntityTags:
    """Read entity tags, or `*` alone, https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3.

    Raises:
        ValueError: the value is neither; a tag needs its quotes.
    """
    if value.strip(_BLANKS) == "*":
        return EntityTags(any=True, tags=())
    if not _TAGS.fullmatch(value):
        raise ValueError('`*`, or entity tags in their quotes are expected, such as "1-2a"')
    return EntityTags(any=False, tags=re.findall(_TAG, value))
