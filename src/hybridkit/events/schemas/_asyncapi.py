"""The registry as an AsyncAPI 3.0 document: channels, messages and operations on RabbitMQ.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
https://github.com/asyncapi/bindings/tree/master/amqp
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hybridkit.context import REQUEST_ID_HEADER, USER_ID_HEADER
from hybridkit.events._declaration import Command, EventRegistry, Message
from hybridkit.events._declaration import registry as default_registry
from hybridkit.events.schemas._json_schemas import Schema, envelope_schemas, schema_name

__all__ = ["asyncapi_document"]

# `messaging` declares them at the broker; the core may not import it.
EVENT_EXCHANGE: Final = "hk.events"
EVENT_ID_HEADER: Final = "hk_event_id"

BINDING_VERSION: Final = "0.3.0"
_HEADERS: Final = "message_headers"
_PERSISTENT: Final = 2


def asyncapi_document(
    registry: EventRegistry = default_registry,
    *,
    service: str,
    version: str = "1.0.0",
    sends: Iterable[type[Message]] = (),
    receives: Mapping[str, Iterable[type[Message]]] | None = None,
) -> Schema:
    """Describe what a service sends and receives: a channel per event type and per queue of commands.

    Args:
        registry: the types to describe.
        service: the service's name, which is the document's title.
        version: the version of the service's contract.
        sends: the messages that it publishes or sends; the registry can't know them.
        receives: the messages that its consumers handle, by the consumer's name.

    Raises:
        DeclarationError: nothing is registered, or a field's type has no JSON Schema.
    """
    schemas = envelope_schemas(registry, prefix="#/components/schemas/")
    operations = {f"send.{schema_name(message)}": _send(message) for message in sends}
    for consumer, messages in (receives or {}).items():
        operations |= {
            f"receive.{consumer}.{schema_name(message)}": _receive(message, consumer) for message in messages
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": service, "version": version},
        "defaultContentType": "application/json",
        "channels": _channels(registry),
        "operations": operations,
        "components": {
            "messages": {schema_name(message): _message(message) for message in registry},
            "schemas": {**schemas, _HEADERS: _headers()},
        },
    }


def _channels(registry: EventRegistry) -> dict[str, Schema]:
    channels: dict[str, Schema] = {}
    for message in registry:
        channel = channels.setdefault(_channel_name(message), _channel(message))
        name = schema_name(message)
        channel["messages"][name] = {"$ref": f"#/components/messages/{name}"}
    return channels


def _channel_name(message: type[Message]) -> str:
    """Return the name of a message's channel with its kind, as a queue may have the name of an event type."""
    if issubclass(message, Command):
        return f"queue.{message.queue}"
    return f"event.{message.message_type}"


def _channel(message: type[Message]) -> Schema:
    kept = {"durable": True, "autoDelete": False}
    if issubclass(message, Command):
        address = message.queue
        binding: Schema = {"is": "queue", "queue": {"name": address, "exclusive": False, **kept}}
    else:
        address = message.message_type
        binding = {"is": "routingKey", "exchange": {"name": EVENT_EXCHANGE, "type": "topic", **kept}}
    return {"address": address, "messages": {}, "bindings": _amqp(binding)}


def _message(message: type[Message]) -> Schema:
    name = schema_name(message)
    return {
        "name": message.message_type,
        "title": f"{message.message_type} version {message.message_version}",
        "contentType": "application/json",
        "correlationId": {
            "description": "The request that caused it.",
            "location": f"$message.header#/{REQUEST_ID_HEADER}",
        },
        "headers": {"$ref": f"#/components/schemas/{_HEADERS}"},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": _amqp({"messageType": message.message_type}),
    }


def _headers() -> Schema:
    texts = {
        REQUEST_ID_HEADER: "The request that caused it.",
        USER_ID_HEADER: "On whose behalf.",
        "traceparent": "The trace of the sender: https://www.w3.org/TR/trace-context/",
        "tracestate": "What its vendors add to the trace.",
    }
    properties: dict[str, Any] = {
        name: {"type": "string", "description": text} for name, text in texts.items()
    }
    properties[EVENT_ID_HEADER] = {
        "type": "string",
        "format": "uuid",
        "description": "As `event_id` in the body.",
    }
    return {
        "type": "object",
        "description": "All of them are optional: the body decides.",
        "properties": properties,
    }


def _send(message: type[Message]) -> Schema:
    return {"action": "send", **_operation(message), "bindings": _amqp({"deliveryMode": _PERSISTENT})}


def _receive(message: type[Message], consumer: str) -> Schema:
    return {
        "action": "receive",
        "title": f"{consumer} handles {message.message_type}",
        **_operation(message),
        "bindings": _amqp({"ack": True}),
    }


def _operation(message: type[Message]) -> Schema:
    channel = f"#/channels/{_channel_name(message)}"
    return {
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{schema_name(message)}"}],
    }


def _amqp(binding: Schema) -> Schema:
    return {"amqp": {**binding, "bindingVersion": BINDING_VERSION}}
