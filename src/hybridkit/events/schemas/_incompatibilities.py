"""Decide whether a reader of one schema can read everything that a writer of another one may write, and name where not.

Reading is as pydantic reads: members that the reader doesn't declare are ignored, unless it forbids them. A writer
writes the members that its schema declares, and others only where `additionalProperties` says which. Keywords that
can't be decided here must be equal on both sides, so that nothing passes for readable that isn't.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from hybridkit._syntax import escape_token
from hybridkit.events.schemas._alternatives import Alternative, alternatives_of, canonical, same, summary
from hybridkit.events.schemas._json_schemas import Schema

__all__ = ["Comparison", "Incompatibility", "below"]

_AT_LEAST: Final = ("minLength", "minItems", "minProperties")
_AT_MOST: Final = ("maxLength", "maxItems", "maxProperties")
_DECIDED: Final = frozenset(
    {
        *_AT_LEAST,
        *_AT_MOST,
        "additionalProperties",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "items",
        "maximum",
        "minimum",
        "multipleOf",
        "prefixItems",
        "properties",
        "propertyNames",
        "required",
        "type",
    }
)


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """A reason why a written message may be refused.

    Attributes:
        pointer: the place in the message, as an RFC 6901 JSON pointer; `*` stands for every element or member.
        keyword: the keyword of JSON Schema; `enum` also for constants.
        written: the keyword's value in the writer's schema; for `required` one of `required`, `optional`, `absent`.
        read: the keyword's value in the reader's schema.
    """

    pointer: str
    keyword: str
    written: Any
    read: Any


@dataclass(slots=True)
class Comparison:
    """The comparison of a writer's document with a reader's.

    Attributes:
        writer: the document that the written schema's references point into.
        reader: the document that the read schema's references point into.
    """

    writer: Schema
    reader: Schema
    _under_way: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]], repr=False)

    def incompatibilities(self, written: Any, read: Any, pointer: str = "") -> list[Incompatibility]:
        """List the reasons why messages of the first schema may be refused by a reader of the second one.

        Raises:
            MalformedPayloadError: one of them is no schema.
        """
        writable, readable = alternatives_of(written, self.writer), alternatives_of(read, self.reader)
        found: list[Incompatibility] = []
        for alternative in writable:
            attempts = [self._between(alternative, other, pointer) for other in readable]
            if [] in attempts:
                continue
            meant = [
                attempt
                for attempt, other in zip(attempts, readable, strict=True)
                if not alternative.is_constant and not other.is_constant and alternative.type == other.type
            ]
            closest = min(meant, key=len, default=[_other_kind(writable, readable, pointer)])
            found += [incompatibility for incompatibility in closest if incompatibility not in found]
        return found

    def _between(self, written: Alternative, read: Alternative, pointer: str) -> list[Incompatibility]:
        if written.is_constant or read.is_constant:
            fits = _takes_constant(written.keywords, read.keywords)
            return [] if fits else [_other_kind([written], [read], pointer)]
        if read.type not in {None, written.type} and (written.type, read.type) != ("integer", "number"):
            return [_other_kind([written], [read], pointer)]
        found = [*_limits(written.keywords, read.keywords, pointer)]
        found += self._undecided(written.keywords, read.keywords, pointer)
        pair = (written.origin, read.origin)
        if pair in self._under_way:  # a recursive type: it fits if the rest of it does
            return found
        self._under_way.add(pair)
        try:
            if written.type in {"object", None}:
                found += self._members(written.keywords, read.keywords, pointer)
            if written.type in {"array", None}:
                found += self._elements(written.keywords, read.keywords, pointer)
        finally:
            self._under_way.remove(pair)
        return found

    def _undecided(self, written: Schema, read: Schema, pointer: str) -> Iterator[Incompatibility]:
        """Yield the keywords that have to be the same and aren't: `pattern`, `format`, and unknown ones."""
        names = {
            *read,
            *({"patternProperties"} & {*written}),
        }  # a writer's are members that a reader may declare
        for name in sorted(names - _DECIDED):
            theirs, ours = (
                canonical({name: side[name]}, document) if name in side else None
                for side, document in ((written, self.writer), (read, self.reader))
            )
            if not same(theirs, ours):
                yield Incompatibility(pointer, name, written.get(name), read.get(name))

    def _members(self, written: Schema, read: Schema, pointer: str) -> Iterator[Incompatibility]:
        writes, reads = written.get("properties", {}), read.get("properties", {})
        others = written.get(
            "additionalProperties", False
        )  # a model writes no member that it doesn't declare
        other_reads = read.get("additionalProperties", True)  # and ignores the others, unless it forbids them
        always = {*written.get("required", ())}
        for name in sorted({*read.get("required", ())} - always):
            state = "optional" if name in writes or others is not False else "absent"
            yield Incompatibility(below(pointer, name), "required", state, "required")
        for name in sorted(writes):
            place = below(pointer, name)
            if name not in reads and other_reads is False:
                yield Incompatibility(place, "additionalProperties", "written", "forbidden")
            else:
                yield from self.incompatibilities(writes[name], reads.get(name, other_reads), place)
        if others is False:
            return
        for name in sorted({*reads} - {*writes}):
            yield from self.incompatibilities(others, reads[name], below(pointer, name))
        yield from self.incompatibilities(others, other_reads, below(pointer, "*"))
        if "propertyNames" in read:
            names = written.get("propertyNames", {})
            yield from self.incompatibilities(_text(names), _text(read["propertyNames"]), below(pointer, "*"))

    def _elements(self, written: Schema, read: Schema, pointer: str) -> Iterator[Incompatibility]:
        writes, reads = written.get("prefixItems", []), read.get("prefixItems", [])
        most = written.get("maxItems", math.inf)
        known = max(len(writes), len(reads))
        for index in range(int(min(known, most))):
            theirs, ours = (
                prefix[index] if index < len(prefix) else side.get("items", True)
                for prefix, side in ((writes, written), (reads, read))
            )
            yield from self.incompatibilities(theirs, ours, below(pointer, str(index)))
        if most > known:
            yield from self.incompatibilities(
                written.get("items", True), read.get("items", True), below(pointer, "*")
            )


def _other_kind(written: list[Alternative], read: list[Alternative], pointer: str) -> Incompatibility:
    keyword = "enum" if any(alternative.is_constant for alternative in (*written, *read)) else "type"
    return Incompatibility(pointer, keyword, summary(written), summary(read))


def _takes_constant(written: Schema, read: Schema) -> bool:
    """Return whether a reader takes the one value that is written."""
    if "const" in read:
        return "const" in written and same(written["const"], read["const"])
    value = written["const"]
    if read.get("type") not in {None, *_types_of(value)}:
        return False
    if isinstance(value, (list, dict)):
        return not read
    exact: Schema = {**written}
    if isinstance(value, str):
        exact |= {"minLength": len(value), "maxLength": len(value)}
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        exact |= {"minimum": value, "maximum": value, "multipleOf": value}
    if any(_limits(exact, read, "")):
        return False
    return all(
        (name == "pattern" and isinstance(value, str) and _matches(limit, value))
        or same(written.get(name), limit)
        for name, limit in read.items()
        if name not in _DECIDED
    )


def _types_of(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", *(["integer"] if value.is_integer() else [])}
        case str():
            return {"string"}
        case _:
            return set()


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:  # a dialect that Python doesn't know
        return False


def _limits(written: Schema, read: Schema, pointer: str) -> Iterator[Incompatibility]:
    """Yield the limits of the reader that a written value may go beyond."""

    def incompatibility(keyword: str) -> Incompatibility:
        return Incompatibility(pointer, keyword, written.get(keyword), read.get(keyword))

    yield from (
        incompatibility(keyword) for keyword in _AT_LEAST if written.get(keyword, 0) < read.get(keyword, 0)
    )
    yield from (
        incompatibility(keyword)
        for keyword in _AT_MOST
        if written.get(keyword, math.inf) > read.get(keyword, math.inf)
    )
    for inclusive, exclusive, sign in (
        ("minimum", "exclusiveMinimum", 1),
        ("maximum", "exclusiveMaximum", -1),
    ):
        theirs, ours = (_bound(side, inclusive, exclusive, sign) for side in (written, read))
        if theirs < ours:
            yield incompatibility(exclusive if ours[1] and exclusive in read else inclusive)
    step = read.get("multipleOf")
    if step is not None and not _is_multiple(written.get("multipleOf"), step):
        yield incompatibility("multipleOf")


def _bound(schema: Schema, inclusive: str, exclusive: str, sign: int) -> tuple[float, bool]:
    """Return the stricter of both bounds: the greater, whichever side it is on."""
    return max(
        (sign * schema[inclusive] if inclusive in schema else -math.inf, False),
        (sign * schema[exclusive] if exclusive in schema else -math.inf, exclusive in schema),
    )


def _is_multiple(number: float | None, step: float) -> bool:
    return number is not None and float(number / step).is_integer()


def _text(schema: Any) -> Any:
    """Return the schema of a member's name, which is a text in any case."""
    if not isinstance(schema, dict) or "$ref" in schema:
        return cast("Any", schema)
    return {"type": "string", **cast("Schema", schema)}


def below(pointer: str, name: str) -> str:
    """Extend a pointer by a member's name (RFC 6901)."""
    return f"{pointer}/{escape_token(name)}"
