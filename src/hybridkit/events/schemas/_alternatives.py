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

__all__ = ["Branch", "branches", "canonical", "constraints", "follow", "same", "summary"]

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
class Branch:
    """One alternative, with `const` or at most one `type`.

    Attributes:
        keywords: what it demands, without annotations.
        origin: which place of the document it comes from; recursive schemas come by there again.
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


def branches(schema: Any, document: Schema) -> list[Branch]:
    """The alternatives of a schema; none for `false`.

    Args:
        schema: a part of the document.
        document: where its references point to.

    Raises:
        MalformedPayloadError: it is no schema, or a reference leads nowhere or in a circle.
    """
    return list(_branches(schema, document, MAX_REFERENCES))


def constraints(schema: Any) -> Schema:
    """A schema without what explains and does not demand.

    Raises:
        MalformedPayloadError: it is no schema.
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
    """What a reference within the document points to (RFC 6901).

    Raises:
        MalformedPayloadError: nothing is there.
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
    """What a keyword demands, with references replaced by what they point to, to be compared as it is.

    Args:
        value: the keyword's value.
        document: where its references point to.
        names: its members are names, as those of `properties`, and no keywords.
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
    """Whether two JSON values are equal; `1` and `true` are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def summary(alternatives: Iterable[Branch]) -> str:
    """What the alternatives allow, in a few words: `integer or null`, `"red", "blue"`."""
    constants: list[str] = []
    types: list[str] = []
    for branch in alternatives:
        if branch.is_constant:
            constants.append(json.dumps(branch.keywords["const"]))
        else:
            types.append(branch.type or "anything")
    return " or ".join(dict.fromkeys([*([", ".join(constants)] if constants else []), *types])) or "nothing"


def _branches(schema: Any, document: Schema, references: int) -> Iterator[Branch]:
    if schema is False:
        return
    keywords = constraints(schema)
    if "$ref" in keywords:
        if not references:
            raise MalformedPayloadError(f"the reference {keywords['$ref']!r} leads in a circle")
        target = follow(keywords.pop("$ref"), document)
        yield from (_with(branch, keywords) for branch in _branches(target, document, references - 1))
        return
    for union in ("anyOf", "oneOf"):
        if union in keywords:
            options = keywords.pop(union)
            for option in options:
                yield from (_with(branch, keywords) for branch in _branches(option, document, references))
            return
    origin = id(schema)
    if "enum" in keywords:
        values = keywords.pop("enum")
        yield from (Branch({**keywords, "const": value}, origin) for value in values)
    elif isinstance(kinds := keywords.get("type"), list):
        yield from (Branch({**keywords, "type": kind}, origin) for kind in cast("list[str]", kinds))
    else:
        yield Branch(keywords, origin)


def _with(branch: Branch, more: Schema) -> Branch:
    """The branch with what was demanded beside the reference or union; what both demand differently is kept aside."""
    if not more:
        return branch
    keywords = {**more, **branch.keywords}
    aside = {name: value for name, value in more.items() if not same(value, keywords[name])}
    if aside:
        keywords["allOf"] = [aside, *keywords.get("allOf", [])]
    return Branch(keywords, branch.origin)
