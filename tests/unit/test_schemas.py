"""The exported schemas are schemas, describe what travels, and don't change without a reason."""

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from pydantic import BaseModel, Field, JsonValue

from hybridkit.codec import Timestamp
from hybridkit.context import RequestContext, bind
from hybridkit.errors import DeclarationError
from hybridkit.events import Command, Event, EventEnvelope, EventRegistry, Message, decode_envelope
from hybridkit.events.schemas import asyncapi_document, event_schemas, to_json
from hybridkit.ids import new_id


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    tags: list[str] = []


class Node(BaseModel):
    children: list["Node"] = []


class Card(BaseModel):
    kind: Literal["card"]
    digits: str


class Cash(BaseModel):
    kind: Literal["cash"]


class Bought(Event, type="schemas.bought", version=2, key="order_id"):
    """Somebody bought something."""

    order_id: UUID
    at: Timestamp
    price: Decimal
    count: Annotated[int, Field(ge=1, le=100)] = 1
    color: Color = Color.RED
    address: Address
    other: Address | None = None
    sizes: tuple[int, int] = (1, 2)
    notes: dict[str, str] = Field(default_factory=dict)
    anything: JsonValue = None
    tree: Node = Node()
    paid: Annotated[Card | Cash, Field(discriminator="kind")]
    takes: timedelta = timedelta(days=1)
    due: date | None = None


class Sold(Event, type="schemas.sold"):
    order_id: UUID


class Pack(Command, queue="packing", type="command.pack_schemas"):
    order_id: UUID


class Wrap(Command, queue="packing", type="command.wrap_schemas"):
    paper: str | None = None


MESSAGES: list[type[Message]] = [Bought, Sold, Pack, Wrap]


@pytest.fixture
def registry() -> EventRegistry:
    return registered(*MESSAGES)


def registered(*messages: type[Message]) -> EventRegistry:
    registry = EventRegistry()
    for message in messages:
        registry.add(message)
    return registry


def bought(**fields: Any) -> Bought:
    given: dict[str, Any] = {
        "order_id": new_id(),
        "at": datetime(2026, 1, 2),
        "price": Decimal("1.50"),
        "address": Address(street="High Street"),
        "paid": Cash(kind="cash"),
    }
    return Bought.model_validate({**given, **fields})


def wire(message: Message, **options: Any) -> Any:
    return orjson.loads(EventEnvelope.wrap(message, service="shop", **options).encode())


def validator(document: Any) -> Draft202012Validator:
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=FormatChecker())


# ── JSON Schema ──────────────────────────────────────────────────────────────────────────────────


def test_what_travels_fits_the_document(registry: EventRegistry) -> None:
    """With and without a user, a cause, and fields that may be left out."""
    checks = validator(event_schemas(registry))
    messages = [
        bought(),
        bought(
            other=Address(street="Low Street", tags=["a"]), paid=Card(kind="card", digits="1"), due=date.min
        ),
        Sold(order_id=new_id()),
        Pack(order_id=new_id()),
        Wrap(),
    ]
    for message in messages:
        checks.validate(wire(message))
        with bind(RequestContext(user_id="somebody")):
            checks.validate(wire(message, causation_id=new_id()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("event_type", "schemas.unheard_of"),
        ("event_id", "1"),
        ("service", ""),
        ("version", 3),
        ("version", None),
        ("user_id", 7),
        ("data", None),
        ("data.price", "1.5.0"),
        ("data.count", 0),
        ("data.count", "many"),
        ("data.color", "green"),
        ("data.address", {}),
        ("data.sizes", [1, 2, 3]),
        ("data.tree", {"children": [{"children": 1}]}),
        ("data.paid", {"kind": "card"}),
        ("data.order_id", "7"),
    ],
)
def test_what_the_reader_refuses_does_not_fit(registry: EventRegistry, place: str, value: Any) -> None:
    """The schema is as strict as the class."""
    checks = validator(event_schemas(registry))
    envelope = wire(bought())
    *path, name = place.split(".")
    (envelope[path[0]] if path else envelope)[name] = value
    if place != "data.price":  # a text that is no decimal: formats are for the reader to know
        with pytest.raises(ValidationError):
            checks.validate(envelope)
    with pytest.raises(Exception, match=r"envelope|declared|unknown"):
        decode_envelope(orjson.dumps(envelope), registry=registry)


def test_a_reader_can_do_without_the_optional_members(registry: EventRegistry) -> None:
    """The schema says so, and the reader does."""
    envelope = wire(Sold(order_id=new_id()))
    del envelope["user_id"]
    validator(event_schemas(registry)).validate(envelope)
    assert decode_envelope(orjson.dumps(envelope), registry=registry).user_id is None


def test_a_version_after_the_first_is_written_and_demanded(registry: EventRegistry) -> None:
    """A message without one is version 1."""
    schemas = event_schemas(registry)["$defs"]
    assert "version" in schemas["schemas.bought.v2"]["required"]
    assert "version" not in schemas["schemas.sold.v1"]["required"]


def test_each_message_has_its_own_definitions(registry: EventRegistry) -> None:
    """A model of the same name in another message renames nothing."""
    alone = event_schemas(registered(Bought))["$defs"]
    together = event_schemas(registry)["$defs"]
    assert {name: together[name] for name in alone} == alone
    assert "schemas.bought.v2.data.Address" in alone


def test_the_bytes_depend_on_the_declarations_only(registry: EventRegistry) -> None:
    """Not on the order of imports, so a committed file changes only with them."""
    assert to_json(event_schemas(registry)) == to_json(event_schemas(registered(*reversed(MESSAGES))))
    assert to_json(event_schemas(registry)).endswith(b"\n}\n")


def test_the_mark_names_key_queue_and_the_versions_that_are_read(registry: EventRegistry) -> None:
    """These break readers too, and JSON Schema has no word for them."""
    registry.add_upcaster("schemas.bought", 1, lambda data: data)
    schemas = event_schemas(registry)["$defs"]
    assert schemas["schemas.bought.v2"]["x-hybridkit"] == {
        "type": "schemas.bought",
        "version": 2,
        "key": "order_id",
        "reads": [1],
    }
    assert schemas["command.pack_schemas.v1"]["x-hybridkit"]["queue"] == "packing"


def test_nothing_declared_is_a_mistake() -> None:
    """The message says that modules have to be imported first."""
    with pytest.raises(DeclarationError, match="import the modules"):
        event_schemas(EventRegistry())


def test_a_field_without_a_schema_is_named() -> None:
    """By the class that has it."""

    class Impossible(Event, type="schemas.impossible"):
        thing: Callable[[], None]

    with pytest.raises(DeclarationError, match="Impossible has no JSON Schema"):
        event_schemas(registered(Impossible))


def test_a_default_without_a_json_form_is_left_out() -> None:
    """The field stays."""

    class Odd(Event, type="schemas.odd"):
        thing: Any = object()

    assert event_schemas(registered(Odd))["$defs"]["schemas.odd.v1.data"]["properties"] == {"thing": {}}


# ── AsyncAPI ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def document(registry: EventRegistry) -> Any:
    made = asyncapi_document(
        registry,
        service="shop",
        sends=[Bought, Pack],
        receives={"analytics": [Bought], "packing": [Pack, Wrap]},
    )
    return orjson.loads(to_json(made))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def pointed_to(document: Any, reference: str) -> Any:
    assert reference.startswith("#/")
    place = document
    for part in reference[2:].split("/"):
        place = place[part]
    return place


def test_the_document_has_what_asyncapi_demands(document: Any) -> None:
    """https://www.asyncapi.com/docs/reference/specification/v3.0.0#fixed-fields."""
    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {"title": "shop", "version": "1.0.0"}
    for operation in document["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = pointed_to(document, operation["channel"]["$ref"])
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")
            assert pointed_to(document, message["$ref"]) in channel["messages"].values()


def test_every_reference_leads_somewhere(document: Any) -> None:
    """In the AsyncAPI document, where schemas stand elsewhere than in the other one."""
    found = list(references(document))
    assert len(found) > 30
    for reference in found:
        pointed_to(document, reference)


def test_names_are_what_asyncapi_allows(document: Any) -> None:
    """Generators refuse other characters."""
    names = [name for part in document["components"].values() for name in part]
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
    assert [
        name for name in [*names, *document["channels"], *document["operations"]] if set(name) - allowed
    ] == []


def test_a_union_names_its_kinds_by_constants_only(document: Any) -> None:
    """OpenAPI's `discriminator` is an object, AsyncAPI's a text: neither form would be right in both documents."""
    assert b"discriminator" not in orjson.dumps(document)


def test_an_event_s_channel_is_its_routing_key(document: Any) -> None:
    """Bound to the exchange of all events."""
    channel = document["channels"]["event.schemas.bought"]
    assert channel["address"] == "schemas.bought"
    assert channel["bindings"]["amqp"] == {
        "is": "routingKey",
        "exchange": {"name": "hk.events", "type": "topic", "durable": True, "autoDelete": False},
        "bindingVersion": "0.3.0",
    }
    assert list(channel["messages"]) == ["schemas.bought.v2"]


def test_names_of_the_broker_are_those_of_messaging() -> None:
    """The core may not import them."""
    from hybridkit.events.schemas import _asyncapi
    from hybridkit.messaging._amqp import _headers
    from hybridkit.messaging._topology import _declared as _topology

    assert _asyncapi.EVENT_EXCHANGE == _topology.EVENT_EXCHANGE
    assert _asyncapi.EVENT_ID_HEADER == _headers.EVENT_ID


def test_a_command_s_channel_is_its_queue(document: Any) -> None:
    """Two commands of one queue share it."""
    channel = document["channels"]["queue.packing"]
    assert channel["bindings"]["amqp"]["queue"] == {
        "name": "packing",
        "durable": True,
        "exclusive": False,
        "autoDelete": False,
    }
    assert sorted(channel["messages"]) == ["command.pack_schemas.v1", "command.wrap_schemas.v1"]


def test_a_message_has_payload_and_headers(document: Any, registry: EventRegistry) -> None:
    """The payload's schema takes its own event and refuses others."""
    message = document["components"]["messages"]["schemas.bought.v2"]
    payload = pointed_to(document, message["payload"]["$ref"])
    schema = {**payload, "components": document["components"]}
    validator(schema).validate(wire(bought()))
    with pytest.raises(ValidationError):
        validator(schema).validate(wire(Sold(order_id=new_id())))
    headers = pointed_to(document, message["headers"]["$ref"])["properties"]
    assert {"hk_event_id", "x-request-id", "x-user-id", "traceparent", "tracestate"} == set(headers)
    assert message["name"] == message["bindings"]["amqp"]["messageType"] == "schemas.bought"


def test_operations_are_the_ones_that_the_caller_knows(document: Any, registry: EventRegistry) -> None:
    """Without being told, the document has none."""
    assert sorted(document["operations"]) == [
        "receive.analytics.schemas.bought.v2",
        "receive.packing.command.pack_schemas.v1",
        "receive.packing.command.wrap_schemas.v1",
        "send.command.pack_schemas.v1",
        "send.schemas.bought.v2",
    ]
    assert asyncapi_document(registry, service="shop")["operations"] == {}


BOUGHT_SCHEMAS = event_schemas(registered(Bought))


@given(price=st.decimals(allow_nan=False, allow_infinity=False), count=st.integers(1, 100), at=st.datetimes())
def test_whatever_is_encoded_fits(price: Decimal, count: int, at: datetime) -> None:
    """For any decimal and any time."""
    envelope = wire(bought(price=price, count=count, at=at))
    Draft202012Validator(BOUGHT_SCHEMAS).validate(envelope)
