"""Make JSON Schemas (draft 2020-12) of registered messages: of the data, and of the envelope around it.

Each message has names of its own in a document, so that a new one changes nothing about the others:

| name | what it describes |
|---|---|
| `user.created.v2` | the envelope, as it travels |
| `user.created.v2.data` | its `data` |
| `user.created.v2.data.Address` | a model or an enumeration inside the data |
"""

import json
from collections.abc import Iterator
from typing import Any, Final, cast

from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

from hybridkit.errors import DeclarationError
from hybridkit.events._declaration import Command, Event, EventRegistry, Message
from hybridkit.events._declaration import registry as default_registry
from hybridkit.events._envelope import EventEnvelope

__all__ = ["DIALECT", "MARK", "Schema", "envelope_schemas", "event_schemas", "schema_name", "to_json"]

type Schema = dict[str, Any]
"""A JSON Schema, or a document made of them: plain JSON values."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MARK: Final = "x-hybridkit"
"""The keyword on each envelope's schema: type, version, key or queue, and the versions that upcasters bring to it.
"""

_DESCRIPTIONS: Final = {
    "event_id": "The event's identity: consumers count it once.",
    "timestamp": "When it happened; written in UTC with milliseconds.",
    "service": "Who says so.",
    "request_id": "The request that caused it.",
    "user_id": "On whose behalf. Always written; read as null where it is absent.",
    "version": "The version of `data`; 1 where it is absent.",
    "causation_id": "The id of the event that this one answers.",
    "reply_to": "The saga that sent this command, and wants to know if it becomes a dead letter.",
    "stream_version": "The version of its stream that this event made.",
}


def event_schemas(registry: EventRegistry = default_registry) -> Schema:
    """Make a document with a schema for every registered type and version; a valid envelope fits one of them.

    The schemas describe what readers accept. What `EventEnvelope.encode` writes is within it, and more regular:
    fields with a default are always there.

    Args:
        registry: the types to describe; importing a module that declares some registers them.

    Raises:
        DeclarationError: nothing is registered, or a field's type has no JSON Schema.
    """
    definitions = envelope_schemas(registry, prefix="#/$defs/")
    messages = [{"$ref": f"#/$defs/{schema_name(message)}"} for message in registry]
    return {"$schema": DIALECT, "title": "Events and commands", "anyOf": messages, "$defs": definitions}


def to_json(document: Schema) -> bytes:
    """Write a document for a file to be committed: indented, keys sorted, so that equal documents have equal bytes."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def envelope_schemas(registry: EventRegistry, *, prefix: str) -> dict[str, Schema]:
    """Make the schemas of all messages, by their names.

    Args:
        registry: the types to describe.
        prefix: the beginning of a reference to a name, such as `#/$defs/`.

    Raises:
        DeclarationError: nothing is registered, or a field's type has no JSON Schema.
    """
    schemas: dict[str, Schema] = {}
    for message in registry:
        schemas |= _schemas_of(message, registry, prefix)
    if not schemas:
        raise DeclarationError("no event or command is declared; import the modules that declare them first")
    return schemas


def schema_name(message: type[Message]) -> str:
    """Return the name of a type and version in a document: `user.created.v2`."""
    return f"{message.message_type}.v{message.message_version}"


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, without what would change the file for no reason."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """Do nothing: a default without a JSON form, for example, is left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave titles out: one that is made from the field's name says nothing new."""
        del schema
        return False

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Leave out OpenAPI's `discriminator`, which AsyncAPI spells otherwise; the tags are constants in any case."""
        union = super().tagged_union_schema(schema)
        union.pop("discriminator", None)
        return union

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Describe a decimal as a number or a text with a format, as pydantic's pattern differs between versions."""
        alternatives = super().decimal_schema(schema)
        text = {"type": "string", "format": "decimal"}
        numbers = [alternative for alternative in alternatives["anyOf"] if alternative["type"] != "string"]
        return {"anyOf": [*numbers, text]}


def _schemas_of(message: type[Message], registry: EventRegistry, prefix: str) -> Iterator[tuple[str, Schema]]:
    name = schema_name(message)
    try:
        data = message.model_json_schema(
            ref_template=f"{prefix}{name}.data.{{model}}", schema_generator=_Generator
        )
    except PydanticUserError as error:
        raise DeclarationError(f"{message.__qualname__} has no JSON Schema: {error.message}") from error
    yield name, _envelope(message, registry, f"{prefix}{name}.data")
    nested: dict[str, Schema] = data.pop("$defs", {})
    yield f"{name}.data", _sorted(data)
    for model, schema in nested.items():
        yield f"{name}.data.{model}", _sorted(schema)


def _envelope(message: type[Message], registry: EventRegistry, data: str) -> Schema:
    """Make the envelope's own schema, with what its type and version settle."""
    general = EventEnvelope[Message].model_json_schema(schema_generator=_Generator)
    properties: dict[str, Schema] = {
        name: {**_inlined(schema, general["$defs"]), **_described(name)}
        for name, schema in general["properties"].items()
    }
    version = message.message_version
    properties["event_type"] = {"const": message.message_type}
    properties["version"] = {"const": version, "default": 1, **_described("version")}
    properties["data"] = {"$ref": data}
    required = {*general["required"]}
    if version != 1:  # absent means 1
        del properties["version"]["default"]
        required.add("version")
    return {
        "title": f"{message.message_type} version {version}",
        "type": "object",
        "properties": properties,
        "required": sorted(required),
        MARK: _mark(message, registry),
    }


def _inlined(schema: Any, definitions: Schema) -> Any:
    """Put the parts of the envelope in the place of references to them."""
    match schema:
        case {"$ref": str(reference)}:
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            members = cast("Schema", schema).items()
            return {name: _inlined(member, definitions) for name, member in members}
        case list():
            return [_inlined(member, definitions) for member in cast("list[Any]", schema)]
        case _:
            return schema


def _described(name: str) -> Schema:
    return {"description": _DESCRIPTIONS[name]} if name in _DESCRIPTIONS else {}


def _mark(message: type[Message], registry: EventRegistry) -> Schema:
    return {
        "type": message.message_type,
        "version": message.message_version,
        **({"key": message.event_key} if issubclass(message, Event) else {}),
        **({"queue": message.queue} if issubclass(message, Command) else {}),
        "reads": registry.upcast_versions(message),
    }


def _sorted(schema: Schema) -> Schema:
    """Put the names of required fields into a stable order."""
    if "required" in schema:
        schema["required"] = sorted(schema["required"])
    return schema
