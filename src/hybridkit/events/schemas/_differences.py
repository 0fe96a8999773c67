"""Compare two documents: list each change, and say which side it breaks.

Producers and consumers are deployed one after another, in either order, and messages wait in queues meanwhile. So a
change within one version has to hold in both directions: new code reads old messages, and old code reads new ones.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from hybridkit.errors import MalformedPayloadError
from hybridkit.events.schemas._alternatives import Alternative, alternatives_of, same
from hybridkit.events.schemas._incompatibilities import Comparison, below
from hybridkit.events.schemas._json_schemas import MARK, Schema, to_json

__all__ = ["SchemaDifference", "check"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDifference:
    """One change of one version of an event or command.

    Attributes:
        event_type: its type on the wire.
        version: the version that changed.
        pointer: the field, as an RFC 6901 JSON pointer into the envelope (`/data/email`); `*` stands for every
            element of an array or member of a map; empty for the type or version as a whole.
        change: what was there and what is there now, as a sentence.
        breaks_old_messages: code with the change may refuse messages from before it, as they wait in queues.
        breaks_old_readers: code from before the change may refuse messages that are sent with it.
        advice: what to do; empty for a compatible change.
    """

    event_type: str
    version: int
    pointer: str
    change: str
    breaks_old_messages: bool = False
    breaks_old_readers: bool = False
    advice: str = ""

    @property
    def breaking(self) -> bool:
        """Whether a message can be refused because of it."""
        return self.breaks_old_messages or self.breaks_old_readers

    def __str__(self) -> str:
        place = " ".join(filter(None, [f"{self.event_type} version {self.version}", self.pointer]))
        if not self.breaking:
            return f"{place}: {self.change}"
        broken = [
            *(["messages sent before are refused"] if self.breaks_old_messages else []),
            *(["services not yet deployed refuse new messages"] if self.breaks_old_readers else []),
        ]
        return f"{place}: {self.change}; {' and '.join(broken)}; {self.advice}"


def check(old: Schema, new: Schema) -> list[SchemaDifference]:
    """Compare two documents, each from `event_schemas` or `asyncapi_document`; the breaking differences come first.

    Args:
        old: the document as it was released.
        new: the document of the code at hand.

    Raises:
        MalformedPayloadError: one of them is no such document.
    """
    before, after = _Document(old), _Document(new)
    found: list[SchemaDifference] = []
    for key, was in before.messages.items():
        found += _gone(*key, after) if key not in after.messages else _changed(was, before, after)
    for event_type, version in after.messages.keys() - before.messages.keys():
        found.append(SchemaDifference(event_type=event_type, version=version, pointer="", change="added"))
    return sorted(found, key=lambda each: (not each.breaking, each.event_type, each.version, each.pointer))


class _Document:
    """The envelopes of a document, by type and version."""

    def __init__(self, document: Schema) -> None:
        self.root: Schema = json.loads(
            to_json(document)
        )  # JSON values only, as if it had been read from a file
        self.messages: dict[tuple[str, int], Schema] = {}
        for schema in _objects(_definitions(self.root)).values():
            envelope = _objects(schema)
            if MARK in envelope:
                self.messages[_key(envelope[MARK])] = envelope
        if not self.messages:
            raise MalformedPayloadError(
                "the document describes no events; write it with `hybridkit events export`"
            )

    def reads(self, event_type: str, version: int) -> int | None:
        """Return the version that a message of a version becomes here; None where it can't be read."""
        for (known_type, known), schema in self.messages.items():
            if known_type == event_type and (version == known or version in schema[MARK].get("reads", ())):
                return known
        return None

    def versions(self, event_type: str) -> list[int]:
        return sorted(version for known_type, version in self.messages if known_type == event_type)


def _definitions(document: Schema) -> Any:
    return (
        _objects(document.get("components")).get("schemas")
        if "asyncapi" in document
        else document.get("$defs")
    )


def _objects(value: Any) -> dict[str, Any]:
    """Return the members of a JSON object; none of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _key(mark: Any) -> tuple[str, int]:
    match mark:
        case {"type": str(event_type), "version": int(version)}:
            return event_type, version
        case _:
            raise MalformedPayloadError(f"{MARK} of an envelope has a type and a version")


def _gone(event_type: str, version: int, after: _Document) -> Iterator[SchemaDifference]:
    reached = after.reads(event_type, version)
    if reached is not None:
        change = f"replaced by version {reached}, which an upcaster makes of it"
        yield SchemaDifference(event_type=event_type, version=version, pointer="", change=change)
        return
    newest = max(after.versions(event_type), default=None)
    advice = (
        "keep the class until no service sends it and no queue holds it"
        if newest is None
        else f"add an upcaster from version {version} to the class of version {newest}"
    )
    yield SchemaDifference(
        event_type=event_type,
        version=version,
        pointer="",
        change="removed",
        breaks_old_messages=True,
        advice=advice,
    )


def _changed(was: Schema, before: _Document, after: _Document) -> Iterator[SchemaDifference]:
    event_type, version = _key(was[MARK])
    now = after.messages[event_type, version]

    def difference(pointer: str, change: str, **more: Any) -> SchemaDifference:
        return SchemaDifference(
            event_type=event_type, version=version, pointer=pointer, change=change, **more
        )

    raised = f"raise the version to {max(after.versions(event_type)) + 1} and add an upcaster from {version}"
    for name in ("key", "queue"):
        old, new = was[MARK].get(name), now[MARK].get(name)
        if old == new:
            continue
        change = f"the {name} was {old or 'absent'}, is {new or 'absent'}"
        if name == "key" and old is None:
            yield difference("", change)
        else:
            yield difference("", change, breaks_old_messages=True, breaks_old_readers=True, advice=raised)
    for lost in was[MARK].get("reads", ()):
        if after.reads(event_type, lost) is None:
            change = f"messages of version {lost} have no upcaster any more"
            advice = f"keep the upcaster from version {lost} until no queue holds such messages"
            yield difference("", change, breaks_old_messages=True, advice=advice)
    refused = {
        (incompatibility.pointer, incompatibility.keyword): (incompatibility.written, incompatibility.read)
        for incompatibility in Comparison(before.root, after.root).incompatibilities(was, now)
    }
    refusing = {
        (incompatibility.pointer, incompatibility.keyword): (incompatibility.read, incompatibility.written)
        for incompatibility in Comparison(after.root, before.root).incompatibilities(now, was)
    }
    for place, values in {**refusing, **refused}.items():
        pointer, keyword = place
        yield difference(
            pointer,
            _change(keyword, *values),
            breaks_old_messages=place in refused,
            breaks_old_readers=place in refusing,
            advice=f"{way_out}, or {raised}" if (way_out := _way_out(keyword, *values)) else raised,
        )
    broken = {pointer for pointer, _ in {**refusing, **refused}}
    for pointer, change in _Notes(before.root, after.root).between(was, now):
        if pointer not in broken:
            yield difference(pointer, change)


def _change(keyword: str, old: Any, new: Any) -> str:
    match keyword, old, new:
        case "required", "absent", _:
            return "added as a required field"
        case "required", _, "absent":
            return "the required field was removed"
        case "required", _, _:
            return f"was {old}, is {new}"
        case "additionalProperties", _, "forbidden":
            return "fields that are not declared are forbidden now"
        case "additionalProperties", _, _:
            return "added where fields that are not declared were forbidden"
        case "enum", _, _:
            return f"what is allowed was {old}, is {new}"
        case "type", _, _:
            return f"the type was {old}, is {new}"
        case _:
            return f"{keyword} was {_told(old)}, is {_told(new)}"


def _way_out(keyword: str, old: Any, new: Any) -> str:
    """Say what can be done within the same version."""
    match keyword, old, new:
        case "required", _, "required":
            return "give it a default"
        case "required", _, _:
            return "keep it as it was"
        case _:
            return ""


def _told(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


@dataclass(slots=True)
class _Notes:
    """Changes that break nothing: optional fields that were added or removed, and defaults."""

    old: Schema
    new: Schema
    _seen: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])

    def between(self, was: Any, now: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
        """Yield a pointer and a sentence for each change."""
        old, new = _fields(alternatives_of(was, self.old)), _fields(alternatives_of(now, self.new))
        if old is None or new is None or (old.origin, new.origin) in self._seen:
            return
        self._seen.add((old.origin, new.origin))
        before, after = old.keywords["properties"], new.keywords["properties"]
        for name in sorted({*before, *after}):
            place = below(pointer, name)
            if name not in after:
                yield place, "the optional field was removed"
            elif name not in before:
                yield place, "added as an optional field"
            else:
                yield from self._default(before[name], after[name], place)
                yield from self.between(before[name], after[name], place)

    @staticmethod
    def _default(was: Any, now: Any, pointer: str) -> Iterator[tuple[str, str]]:
        old, new = _objects(was), _objects(now)
        if "default" in old and "default" in new and not same(old["default"], new["default"]):
            yield pointer, f"the default was {json.dumps(old['default'])}, is {json.dumps(new['default'])}"


def _fields(alternatives: Iterable[Alternative]) -> Alternative | None:
    """Return the one alternative that has fields; None for none or several."""
    found = [alternative for alternative in alternatives if "properties" in alternative.keywords]
    return found[0] if len(found) == 1 else None
