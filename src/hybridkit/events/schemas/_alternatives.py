"""A JSON Schema as the list of its alternatives: references followed, unions and enumerations taken apart.

`{"anyOf": [{"$ref": "…/Color"}, {"type": "null"}]}` becomes `const: red`, `const: blue` and `type: null`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from hybridkit._syntax import unescape_token
from hybridkit.errors import MalformedPayloadError
from hybridkit.events.schemas._json_schemas import Schema

__all__ = ["Alternative", "alternatives_of", "canonical", "constraints", "follow", "same", "summary"]

MAX_REFERENCES: Final = 100

_ANNOTATIONS: Final = frozenset(
    {
        "$anchor",
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_MAPS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "dependentRequired"})


@dataclass(frozen=True, slots=True)
class Alternative:
    """One alternative, with `const` or at most one `type`.

    Attributes:
        keywords: its demands, without annotations.
        origin: the place of the document that it comes from; recursive schemas come by there again.
    """

    keywords: Schema
    origin: int

    @property
    def type(self) -> str | None:
        """`string`, `object`, …; None where any type will do, or where a constant says it."""
        return self.keywords.get("type")

    @property
    def is_constant(self) -> bool:
        """Whether it allows one value only."""
        return "const" in self.keywords


def alternatives_of(schema: Any, document: Schema) -> list[Alternative]:
    """List the alternatives of a schema; none for `false`.

    Args:
        schema: a part of the document.
        document: the document that its references point into.

    Raises:
        MalformedPayloadError: the part is no schema, or a reference leads nowhere or in a circle.
    """
    return list(_alternatives_of(schema, document, MAX_REFERENCES))


def constraints(schema: Any) -> Schema:
    """Return a schema without the keywords that explain and do not demand.

    Raises:
        MalformedPayloadError: the value is no schema.
    """
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise MalformedPayloadError("a schema is a JSON object, true or false")
    keywords = cast("Schema", schema)
    return {
        name: value
        for name, value in keywords.items()
        if name not in _ANNOTATIONS and not name.startswith("x-")
    }


def follow(reference: str, document: Schema) -> Any:
    """Return the value that a reference within the document points to (RFC 6901).

    Raises:
        MalformedPayloadError: the document has no value there.
    """
    place: Any = document
    path, _, pointer = reference.partition("#/")
    for part in pointer.split("/"):
        name = unescape_token(part)
        if path or not isinstance(place, dict) or name not in place:
            raise MalformedPayloadError(f"the reference {reference!r} leads nowhere in the document")
        place = cast("Schema", place)[name]
    return place


def canonical(value: Any, document: Schema, *, names: bool = False, depth: int = MAX_REFERENCES) -> Any:
    """Return the value of a keyword with references replaced by their targets, so that two can be compared.

    Args:
        value: the keyword's value.
        document: the document that its references point into.
        names: whether its members are names, as those of `properties`, and no keywords.
        depth: how many references to follow.
    """
    if isinstance(value, list):
        return [canonical(each, document, depth=depth) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    schema = cast("Schema", value)
    if "$ref" in schema and not names and depth:
        target = canonical(follow(schema["$ref"], document), document, depth=depth // 2)
        rest = {name: part for name, part in schema.items() if name != "$ref"}
        return [target, canonical(rest, document, depth=depth)]
    kept = schema if names else constraints(schema)
    return {
        name: canonical(part, document, names=not names and name in _MAPS, depth=depth)
        for name, part in kept.items()
    }


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; `1` and `true` are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def summary(alternatives: Iterable[Alternative]) -> str:
    """Describe the alternatives in a few words: `integer or null`, `"red", "blue"`."""
    constants: list[str] = []
    types: list[str] = []
    for alternative in alternatives:
        if alternative.is_constant:
            constants.append(json.dumps(alternative.keywords["const"]))
        else:
            types.append(alternative.type or "anything")
    return " or ".join(dict.fromkeys([*([", ".join(constants)] if constants else []), *types])) or "nothing"


def _alternatives_of(schema: Any, document: Schema, references: int) -> Iterator[Alternative]:
    if schema is False:
        return
    keywords = constraints(schema)
    if "$ref" in keywords:
        if not references:
            raise MalformedPayloadError(f"the reference {keywords['$ref']!r} leads in a circle")
        target = follow(keywords.pop("$ref"), document)
        yield from (
            _with(alternative, keywords) for alternative in _alternatives_of(target, document, references - 1)
        )
        return
    for union in ("anyOf", "oneOf"):
        if union in keywords:
            options = keywords.pop(union)
            for option in options:
                yield from (
                    _with(alternative, keywords)
                    for alternative in _alternatives_of(option, document, references)
                )
            return
    origin = id(schema)
    if "enum" in keywords:
        values = keywords.pop("enum")
        yield from (Alternative({**keywords, "const": value}, origin) for value in values)
    elif isinstance(kinds := keywords.get("type"), list):
        yield from (Alternative({**keywords, "type": kind}, origin) for kind in cast("list[str]", kinds))
    else:
        yield Alternative(keywords, origin)


def _with(alternative: Alternative, more: Schema) -> Alternative:
    """Add the demands beside a reference or union to an alternative; keywords with two values are kept aside."""
    if not more:
        return alternative
    keywords = {**more, **alternative.keywords}
    aside = {name: value for name, value in more.items() if not same(value, keywords[name])}
    if aside:
        keywords["allOf"] = [aside, *keywords.get("allOf", [])]
    return Alternative(keywords, alternative.origin)
