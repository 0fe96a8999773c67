"""A change is called breaking when a message can show it, and compatible only when none can."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel, ConfigDict, Field, create_model

from hybridkit.errors import MalformedPayloadError
from hybridkit.events import Command, Event, EventRegistry, Message
from hybridkit.events.schemas import SchemaDifference, asyncapi_document, check, event_schemas


def document(data: Any, *, version: int = 1, **mark: Any) -> Any:
    """A document with one event, whose data has that schema."""
    envelope = {
        "type": "object",
        "properties": {"data": data},
        "required": ["data"],
        "x-hybridkit": {"type": "thing.done", "version": version, "key": None, "reads": [], **mark},
    }
    return {"$defs": {f"thing.done.v{version}": envelope, "Names": {"enum": ["x", "y"]}}}


def fits(data: Any, schema: Any) -> bool:
    return Draft202012Validator(schema, format_checker=FormatChecker()).is_valid(data)


def having(**properties: Any) -> dict[str, Any]:
    """A model whose fields are all required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def may_have(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


INTEGER, NUMBER, STRING, NULL = ({"type": name} for name in ("integer", "number", "string", "null"))
UUID_TEXT = {"type": "string", "format": "uuid"}
A_UUID = "1f1e33c5-0f7c-6d8e-9b7e-0123456789ab"
A_UNION = {"anyOf": [having(kind={"const": "a"}, n=INTEGER), having(kind={"const": "b"})]}
NO_OTHERS = {"additionalProperties": False}
RECURSIVE: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}

# what changed: old, new, the field, data from before that is refused now, data from now that was refused before
CASES: dict[str, tuple[Any, Any, str, Any, Any]] = {
    "type changed": (having(a=INTEGER), having(a=STRING), "/a", {"a": 1}, {"a": "1"}),
    "type wider": (having(a=INTEGER), having(a=NUMBER), "/a", None, {"a": 1.5}),
    "type narrower": (having(a=NUMBER), having(a=INTEGER), "/a", {"a": 1.5}, None),
    "null allowed": (having(a=STRING), having(a={"anyOf": [STRING, NULL]}), "/a", None, {"a": None}),
    "null no longer allowed": (
        having(a={"type": ["string", "null"]}),
        having(a=STRING),
        "/a",
        {"a": None},
        None,
    ),
    "anything no longer allowed": (having(a={}), having(a=STRING), "/a", {"a": 1}, None),
    "required added": (having(a=STRING), having(a=STRING, b=STRING), "/b", {"a": ""}, None),
    "required removed": (having(a=STRING, b=STRING), having(a=STRING), "/b", None, {"a": ""}),
    "required now": (may_have(a=STRING), having(a=STRING), "/a", {}, None),
    "optional now": (having(a=STRING), may_have(a=STRING), "/a", None, {}),
    "optional changed its type": (may_have(a=STRING), may_have(a=INTEGER), "/a", {"a": ""}, {"a": 1}),
    "others forbidden": (
        may_have(a=STRING),
        {**may_have(), **NO_OTHERS},
        "/a",
        {"a": ""},
        None,
    ),
    "added where others are forbidden": (
        {**may_have(), **NO_OTHERS},
        {**may_have(a=STRING), **NO_OTHERS},
        "/a",
        None,
        {"a": ""},
    ),
    "fewer values": (having(a={"enum": ["x", "y"]}), having(a={"enum": ["x"]}), "/a", {"a": "y"}, None),
    "more values": (having(a={"enum": ["x"]}), having(a={"enum": ["x", 1]}), "/a", None, {"a": 1}),
    "constant changed": (having(a={"const": 1}), having(a={"const": True}), "/a", {"a": 1}, {"a": True}),
    "values opened": (having(a={"const": "x"}), having(a=STRING), "/a", None, {"a": "y"}),
    "format added": (having(a=STRING), having(a=UUID_TEXT), "/a", {"a": "x"}, None),
    "format removed": (having(a=UUID_TEXT), having(a=STRING), "/a", None, {"a": "x"}),
    "pattern changed": (
        having(a={**STRING, "pattern": "^a"}),
        having(a={**STRING, "pattern": "^b"}),
        "/a",
        {"a": "a"},
        {"a": "b"},
    ),
    "shorter": (
        having(a={**STRING, "maxLength": 2}),
        having(a={**STRING, "maxLength": 1}),
        "/a",
        {"a": "ab"},
        None,
    ),
    "shortest shorter": (having(a={**STRING, "minLength": 1}), having(a=STRING), "/a", None, {"a": ""}),
    "least greater": (
        having(a={**NUMBER, "minimum": 1}),
        having(a={**NUMBER, "exclusiveMinimum": 1}),
        "/a",
        {"a": 1},
        None,
    ),
    "most greater": (
        having(a={**INTEGER, "exclusiveMaximum": 1}),
        having(a={**INTEGER, "maximum": 7}),
        "/a",
        None,
        {"a": 7},
    ),
    "other steps": (
        having(a={**INTEGER, "multipleOf": 2}),
        having(a={**INTEGER, "multipleOf": 3}),
        "/a",
        {"a": 2},
        {"a": 3},
    ),
    "unique now": (
        having(a={"type": "array"}),
        having(a={"type": "array", "uniqueItems": True}),
        "/a",
        {"a": [1, 1]},
        None,
    ),
    "elements": (
        having(a={"type": "array", "items": STRING}),
        having(a={"type": "array", "items": INTEGER}),
        "/a/*",
        {"a": [""]},
        {"a": [1]},
    ),
    "longer tuple": (
        having(a={"type": "array", "prefixItems": [STRING], "minItems": 1, "maxItems": 1}),
        having(a={"type": "array", "prefixItems": [STRING, STRING], "minItems": 2, "maxItems": 2}),
        "/a",
        {"a": ["x"]},
        {"a": ["x", "y"]},
    ),
    "place in a tuple": (
        having(a={"type": "array", "prefixItems": [STRING, STRING], "items": False}),
        having(a={"type": "array", "prefixItems": [STRING, INTEGER], "items": False}),
        "/a/1",
        {"a": ["x", "y"]},
        {"a": ["x", 1]},
    ),
    "values of a map": (
        having(a={"type": "object", "additionalProperties": STRING}),
        having(a={"type": "object", "additionalProperties": {"anyOf": [STRING, NULL]}}),
        "/a/*",
        None,
        {"a": {"x": None}},
    ),
    "keys of a map": (
        having(a={"type": "object", "additionalProperties": True, "propertyNames": {"format": "uuid"}}),
        having(a={"type": "object", "additionalProperties": True}),
        "/a/*",
        None,
        {"a": {"x": 1}},
    ),
    "names of a map": (
        having(
            a={"type": "object", "additionalProperties": INTEGER, "propertyNames": {"$ref": "#/$defs/Names"}}
        ),
        having(a={"type": "object", "additionalProperties": INTEGER, "propertyNames": {"enum": ["x"]}}),
        "/a/*",
        None,
        None,
    ),
    "beside a union": (
        having(a={"anyOf": [STRING], "maxLength": 2}),
        having(a={"anyOf": [STRING], "maxLength": 1}),
        "/a",
        {"a": "xx"},
        None,
    ),
    "map to model": (
        having(a={"type": "object", "additionalProperties": STRING}),
        having(a=may_have(x=INTEGER)),
        "/a/x",
        {"a": {"x": "y"}},
        {"a": {"x": 1}},
    ),
    "nested": (having(**{"a/b": having(c=STRING)}), having(**{"a/b": having(c=NULL)}), "/a~1b/c", None, None),
    "one kind of a union": (
        having(a=A_UNION),
        having(a={"oneOf": [having(kind={"const": "a"}, n=INTEGER)]}),
        "/a/kind",
        {"a": {"kind": "b"}},
        None,
    ),
    "what is not understood": (
        having(a={"not": STRING}),
        having(a={"not": INTEGER}),
        "/a",
        {"a": 1},
        {"a": "x"},
    ),
    "patterned members": (
        having(a={"type": "object", "patternProperties": {"^x": STRING}}),
        having(a=may_have(x=INTEGER)),
        "/a",
        {"a": {"x": ""}},
        {"a": {"x": 1}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_breaking_change_is_found_with_its_field_and_shown_by_a_message(case: str) -> None:
    """A message exists that one side writes and the other refuses."""
    old, new, pointer, refused, refusing = CASES[case]
    found = check(document(old), document(new))
    assert pointer in {each.pointer.removeprefix("/data") for each in found if each.breaking}, found
    if refused is not None:
        assert fits(refused, old)
        assert not fits(refused, new)
        assert any(each.breaks_old_messages for each in found)
    if refusing is not None:
        assert fits(refusing, new)
        assert not fits(refusing, old)
        assert any(each.breaks_old_readers for each in found)
    if (refused is None) != (refusing is None):  # only one direction
        assert any(each.breaks_old_messages for each in found) == (refused is not None)
        assert any(each.breaks_old_readers for each in found) == (refusing is not None)
    assert check(document(old), document(old)) == []
    assert check(document(new), document(new)) == []


def test_forbidden_fields_are_told_from_changed_types() -> None:
    """The words of the change say what happened."""
    closed, open_model = document({**may_have(), **NO_OTHERS}), document(may_have(a=STRING))
    assert "fields that are not declared are forbidden now" in [
        each.change for each in check(open_model, closed)
    ]
    assert "added where fields that are not declared were forbidden" in [
        each.change for each in check(closed, open_model)
    ]


COMPATIBLE: dict[str, tuple[Any, Any, str]] = {
    "optional added": (having(a=STRING), having(a=STRING) | may_have(a=STRING, b=INTEGER), "/b"),
    "optional removed": (may_have(a=STRING, b=INTEGER), may_have(a=STRING), "/b"),
    "nested": (may_have(a=may_have()), may_have(a=may_have(b=STRING)), "/a/b"),
    "default": (may_have(a={**STRING, "default": ""}), may_have(a={**STRING, "default": "x"}), "/a"),
}


@pytest.mark.parametrize("case", COMPATIBLE)
def test_a_compatible_change_is_noted(case: str) -> None:
    """One line, not breaking."""
    old, new, pointer = COMPATIBLE[case]
    (found,) = check(document(old), document(new))
    assert (found.pointer, found.breaking) == (f"/data{pointer}", False)
    assert str(found) == f"thing.done version 1 /data{pointer}: {found.change}"


EQUIVALENT: list[tuple[Any, Any]] = [
    ({"anyOf": [STRING, NULL]}, {"type": ["null", "string"]}),
    ({"enum": ["x", "y"]}, {"oneOf": [{"const": "y"}, {"const": "x"}]}),
    ({**STRING, "title": "Old", "description": "o", "examples": ["x"], "x-y": 1}, STRING),
    ({"$ref": "#/$defs/Text", "default": 1}, STRING),
    (True, {}),
    ({"type": "object"}, {"type": "object", "properties": {}, "required": []}),
    ({"type": "array", "items": False}, {"type": "array", "items": False}),
    ({"not": {"$ref": "#/$defs/Text"}}, {"not": {"$ref": "#/$defs/Text", "description": "x"}}),
    (
        {"anyOf": [{**STRING, "maxLength": 9}], "maxLength": 1},
        {"oneOf": [{**STRING, "maxLength": 9}], "maxLength": 1, "title": "x"},
    ),
    ({"properties": {"title": STRING}}, {"properties": {"title": STRING}, "title": "other"}),
]


@pytest.mark.parametrize(("one", "other"), EQUIVALENT)
def test_another_way_to_write_the_same_is_no_change(one: Any, other: Any) -> None:
    """In both directions."""
    definitions = {"Text": {**STRING, "title": "Text"}}
    old, new = document(having(a=one)), document(having(a=other))
    old["$defs"] |= definitions
    new["$defs"] |= definitions
    assert check(old, new) == []
    assert check(new, old) == []


def test_values_of_an_enumeration_are_measured() -> None:
    """A constant fits whatever type, limit, step and pattern it keeps to."""
    wide = {
        "anyOf": [
            {**STRING, "pattern": "^a", "maxLength": 2},
            {**INTEGER, "minimum": 2, "multipleOf": 2},
            NULL,
        ]
    }

    def refused(*values: Any) -> bool:
        old, new = document(having(a={"enum": [*values]})), document(having(a=wide))
        return any(each.breaks_old_messages for each in check(old, new))

    assert not refused("ab", 4, None, 4.0)
    assert all(map(refused, ["b", "abc", 1, 5, True, 4.5, ["a"], {}]))


def test_an_array_among_the_values_fits_anything_only() -> None:
    """Its items are not compared, so any demand counts as breaking."""
    old = document(having(a={"enum": [["x"]]}))
    assert not any(each.breaks_old_messages for each in check(old, document(having(a={}))))
    assert any(each.breaks_old_messages for each in check(old, document(having(a={"maxItems": 3}))))


def test_a_pattern_of_another_dialect_is_not_judged() -> None:
    """It counts as breaking, as it can't be decided here."""
    old = document(having(a={"enum": ["x"]}))
    new = document(having(a={**STRING, "pattern": r"\p{L}"}))
    assert any(each.breaks_old_messages for each in check(old, new))


def test_a_recursive_type_is_compared_once() -> None:
    """The comparison ends, and finds what changed in it."""
    old, new = document({"$ref": "#/$defs/Node"}), document({"$ref": "#/$defs/Node"})
    old["$defs"]["Node"] = RECURSIVE
    new["$defs"]["Node"] = {**RECURSIVE, "properties": {**RECURSIVE["properties"], "a": STRING}}
    assert [each.pointer for each in check(old, new)] == ["/data/a"]
    new["$defs"]["Node"]["required"] = ["a"]
    assert {each.pointer for each in check(old, new) if each.breaking} >= {"/data/a"}


def test_a_type_in_two_places_is_compared_in_both() -> None:
    """Each place has its line."""
    old, new = (document(having(a={"$ref": "#/$defs/Part"}, b={"$ref": "#/$defs/Part"})) for _ in range(2))
    old["$defs"]["Part"], new["$defs"]["Part"] = having(c=STRING), having(c=INTEGER)
    assert [each.pointer for each in check(old, new)] == ["/data/a/c", "/data/b/c"]


def test_what_stands_beside_a_union_counts_too() -> None:
    """Also where the union says something else about the same."""
    long = {"anyOf": [{**STRING, "maxLength": 9}]}
    (found,) = check(document(having(a={**long, "maxLength": 1})), document(having(a=long)))
    assert (found.pointer, found.breaks_old_messages, found.breaks_old_readers) == ("/data/a", False, True)


# ── types and versions ───────────────────────────────────────────────────────────────────────────


def registered(*messages: type[Message], upcasts: tuple[int, ...] = ()) -> EventRegistry:
    registry = EventRegistry()
    for message in messages:
        registry.add(message)
        for version in upcasts:
            registry.add_upcaster(message.message_type, version, lambda data: data)
    return registry


def declared(version: int = 1, *, key: str | None = None, **fields: Any) -> type[Event]:
    """The class `thing.made` of that version; not for the registry of the process."""
    create: Any = create_model
    made = create(
        "Made", __base__=Event, id=(str, ...), **{name: (kind, ...) for name, kind in fields.items()}
    )
    made.message_type, made.message_version, made.event_key = "thing.made", version, key
    return cast("type[Event]", made)


def compared(old: EventRegistry, new: EventRegistry) -> list[tuple[str, int, str, bool]]:
    found = check(event_schemas(old), event_schemas(new))
    return [(each.event_type, each.version, each.change, each.breaking) for each in found]


def test_a_version_that_an_upcaster_replaces_is_compatible() -> None:
    """Both versions have their line."""
    found = compared(registered(declared(1)), registered(declared(2, more=int), upcasts=(1,)))
    assert found == [
        ("thing.made", 1, "replaced by version 2, which an upcaster makes of it", False),
        ("thing.made", 2, "added", False),
    ]


def test_a_version_that_is_gone_breaks_what_is_queued() -> None:
    """The advice is an upcaster."""
    found = check(event_schemas(registered(declared(1))), event_schemas(registered(declared(2))))
    assert str(found[0]) == (
        "thing.made version 1: removed; messages sent before are refused;"
        " add an upcaster from version 1 to the class of version 2"
    )


def test_a_type_that_is_gone_breaks_what_is_queued() -> None:
    """The advice is to keep the class."""
    found = check(event_schemas(registered(declared(1))), document({}))
    assert "removed; messages sent before are refused; keep the class" in str(found[0])


def test_an_upcaster_that_is_gone_breaks_what_is_queued() -> None:
    """Messages of that version may still wait."""
    found = compared(registered(declared(3), upcasts=(1, 2)), registered(declared(3), upcasts=(2,)))
    assert found == [("thing.made", 3, "messages of version 1 have no upcaster any more", True)]


def test_the_key_may_be_added_and_not_changed() -> None:
    """Events of one thing would go different ways."""
    keyless, keyed, other = declared(), declared(key="id"), declared(key="more", more=str)
    assert compared(registered(keyless), registered(keyed)) == [
        ("thing.made", 1, "the key was absent, is id", False)
    ]
    assert ("thing.made", 1, "the key was id, is more", True) in compared(
        registered(keyed), registered(other)
    )
    assert compared(registered(keyed), registered(keyless))[0][3]


def test_a_command_that_moves_to_another_queue_breaks() -> None:
    """What waits in the old one would not be consumed."""

    class Move(Command, queue="moves_a", type="command.move_schemas"):
        pass

    old = event_schemas(registered(Move))
    Move.queue = "moves_b"
    (found,) = check(old, event_schemas(registered(Move)))
    assert found.change == "the queue was moves_a, is moves_b"
    assert found.breaking


def test_both_forms_can_be_compared_with_each_other() -> None:
    """A release may have saved either."""
    old, new = registered(declared(more=int)), registered(declared(more=str))
    one, other = (asyncapi_document(registry, service="x") for registry in (old, new))
    found = check(one, other)
    assert [each.pointer for each in found] == ["/data/more"]
    assert found == check(one, event_schemas(new)) == check(event_schemas(old), other)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"$defs": []},
        {"asyncapi": "3.0.0", "components": 1},
        {"$defs": {"a": 1}},
        {"$defs": {"a": {"x-hybridkit": {}}}},
        document({"$ref": "#/nowhere"}),
        document({"$ref": "other.json#/x"}),
        document({"properties": {"a": 7}}),
        {"$defs": {**document({"$ref": "#/$defs/a"})["$defs"], "a": {"$ref": "#/$defs/a"}}},
    ],
)
def test_what_is_no_such_document_is_refused(broken: Any) -> None:
    """With the typed error, also where references go in circles."""
    with pytest.raises(MalformedPayloadError):
        check(broken, broken)


# ── models ───────────────────────────────────────────────────────────────────────────────────────


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Part(BaseModel):
    name: str
    parts: list["Part"] = []


class Strict(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    n: Annotated[int, Field(gt=0)] | None = None


def test_models_equal_themselves() -> None:
    """With everything that pydantic makes of a declaration."""
    fields: dict[str, Any] = {
        "uuid": UUID,
        "level": Level,
        "part": Part,
        "strict": Strict | None,
        "kinds": dict[Annotated[str, Field(pattern="^x")], tuple[int, str] | Literal["x", 1] | None],
        "ids": dict[UUID, frozenset[bytes]],
        "anything": Any,
    }
    document = event_schemas(registered(declared(**fields)))
    assert check(document, document) == []


# ── whatever the schemas are ─────────────────────────────────────────────────────────────────────


def limits(kind: str, least: str, most: str) -> st.SearchStrategy[Any]:
    low, high = st.integers(0, 2), st.integers(2, 4)
    return st.fixed_dictionaries({"type": st.just(kind)}, optional={least: low, most: high})


FILTERED = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

LEAVES = st.one_of(
    limits("integer", "minimum", "maximum"),
    limits("integer", "exclusiveMinimum", "exclusiveMaximum"),
    limits("number", "minimum", "exclusiveMaximum"),
    limits("string", "minLength", "maxLength"),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from([1, 2, "a", "bb", None, True]), min_size=1)}),
    st.sampled_from([NULL, {"type": "boolean"}, {"type": "integer", "multipleOf": 2}]),
)


@st.composite
def schemas(draw: Callable[..., Any], depth: int = 2) -> Any:
    inner = schemas(depth - 1)
    match draw(st.sampled_from(["leaf", "object", "union", "array", "tuple", "map"])) if depth else "leaf":
        case "object":
            properties = draw(st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
            required = [name for name in properties if draw(st.booleans())]
            others: dict[str, Any] = draw(st.sampled_from([{}, NO_OTHERS]))
            return {"type": "object", "properties": properties, "required": required, **others}
        case "union":
            return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}
        case "array":
            most: dict[str, Any] = draw(st.sampled_from([{}, {"maxItems": 2}]))
            return {"type": "array", "items": draw(inner), **most}
        case "tuple":
            places = draw(st.lists(inner, min_size=1, max_size=2))
            return {"type": "array", "prefixItems": places, "maxItems": len(places)}
        case "map":
            return {"type": "object", "additionalProperties": draw(inner)}
        case _:
            return draw(LEAVES)


@st.composite
def changed(draw: Callable[..., Any], schema: Any) -> Any:
    """The schema with a few changes, so that many pairs are nearly or fully compatible."""
    if draw(st.integers(0, 9)) == 0:
        return draw(schemas())
    kept = dict(schema)
    for name, value in schema.items():
        if name in {"anyOf", "prefixItems"}:
            kept[name] = [draw(changed(each)) for each in value]
        elif name == "properties":
            kept[name] = {member: draw(changed(each)) for member, each in value.items()}
        elif name in {"items", "additionalProperties"} and value:
            kept[name] = draw(changed(value))
    if "properties" in kept and draw(st.booleans()):
        kept["properties"]["d"] = draw(LEAVES)
    return {"anyOf": [kept, NULL]} if draw(st.integers(0, 9)) == 0 else kept


def instances(schema: Any) -> st.SearchStrategy[Any]:
    """What a writer with that schema writes."""
    if "anyOf" in schema:
        return st.one_of([instances(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "integer" | "number" as kind:
            numbers = st.integers(-1, 6) if kind == "integer" else st.sampled_from([0, 0.5, 1.0, 2, 3.5, 9])
            return numbers.filter(lambda number: fits(number, schema))
        case "string":
            return st.text("ab", max_size=5).filter(lambda text: fits(text, schema))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            lists = (
                st.lists(instances(schema["items"]), max_size=3)
                if "items" in schema
                else st.tuples(*map(instances, schema["prefixItems"])).map(list)
            )
            return lists.filter(lambda made: fits(made, schema))
        case _:
            members = {name: instances(each) for name, each in schema.get("properties", {}).items()}
            required = {name: members.pop(name) for name in schema.get("required", ())}
            extra = schema.get("additionalProperties", False)
            if extra:
                return st.dictionaries(st.sampled_from("abc"), instances(extra))
            return st.fixed_dictionaries(required, optional=members)


def breaks(found: list[SchemaDifference]) -> bool:
    return any(each.breaking for each in found)


@FILTERED
@given(schema=schemas())
def test_nothing_differs_from_itself(schema: Any) -> None:
    """For any schema."""
    assert check(document(schema), document(schema)) == []


@settings(FILTERED, max_examples=200)
@given(data=st.data(), old=schemas())
def test_what_is_called_compatible_can_be_read(data: st.DataObject, old: Any) -> None:
    """In both directions, whatever is written."""
    new = data.draw(changed(old))
    found = check(document(old), document(new))
    if not any(each.breaks_old_messages for each in found):
        assert fits(data.draw(instances(old)), new)
    if not any(each.breaks_old_readers for each in found):
        assert fits(data.draw(instances(new)), old)


@FILTERED
@given(data=st.data(), old=schemas())
def test_the_reverse_change_breaks_the_others(data: st.DataObject, old: Any) -> None:
    """Who writes and who reads change places."""
    new = data.draw(changed(old))
    there, back = check(document(old), document(new)), check(document(new), document(old))
    assume(breaks(there))
    assert {
        (each.pointer, each.breaks_old_messages, each.breaks_old_readers) for each in there if each.breaking
    } == {(each.pointer, each.breaks_old_readers, each.breaks_old_messages) for each in back if each.breaking}
