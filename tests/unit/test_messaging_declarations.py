"""Consumers and handlers are checked where they are declared, and once more before they start."""

from typing import Any
from uuid import UUID

import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.errors import DeclarationError, MalformedPayloadError, MisuseError
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.ids import new_id
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.retry import Retry


class Declared(Event, type="declarations.declared"):
    number: int


class Another(Event, type="declarations.another"):
    number: int


class Untyped(Event):
    number: int


class Work(Command, queue="declared_tasks", type="declarations.work"):
    number: int


class Anywhere(Command):
    number: int


class Database: ...


nothing: Any = object()


URL = "amqp://guest:secret@127.0.0.1:1/"


@pytest.fixture
def consumer() -> RobustConsumer:
    return RobustConsumer("declared_tasks")


@pytest.mark.parametrize("name", ["", "Tasks", "tasks-mail", "tasks.", "täsks", "t" * 201])
def test_a_name_is_snake_case(name: str) -> None:
    """A consumer's name that is empty, too long or not snake_case is refused when it is declared."""
    with pytest.raises(DeclarationError, match="snake_case"):
        RobustConsumer(name)


@pytest.mark.parametrize("concurrency", [0, -1, 30_000])
def test_concurrency_is_a_number_that_the_broker_takes(concurrency: int) -> None:
    """The prefetch, three for each handler, has to fit into AMQP's 16 bits."""
    with pytest.raises(DeclarationError, match="concurrency is from 1 to 21845"):
        RobustConsumer("tasks", concurrency=concurrency)


@pytest.mark.parametrize("timeout_seconds", [0, 1201])
def test_a_handler_ends_before_the_broker_wants_its_message_back(timeout_seconds: float) -> None:
    """A handler's time limit is positive and at most 20 minutes, below RabbitMQ's consumer timeout."""
    with pytest.raises(DeclarationError, match="timeout_seconds is at most 1200"):
        RobustConsumer("tasks", timeout_seconds=timeout_seconds)


async def test_a_handler_stays_a_plain_function(consumer: RobustConsumer) -> None:
    """A registered handler is still the function, so that a test can call it."""
    seen: list[int] = []

    @consumer.on(Declared, retry=Retry.immediate())
    async def handle(event: Declared, envelope: EventEnvelope[Declared], context: RequestContext) -> None:
        seen.append(event.number)

    event = Declared(number=1)
    await handle(event, EventEnvelope.wrap(event, service="tests"), RequestContext())
    assert seen == [1]
    assert "declarations.declared" in repr(consumer)
    assert "handlers=1" not in repr(consumer)


def test_one_handler_per_type(consumer: RobustConsumer) -> None:
    """A second handler for a type is refused, and the error names both handlers."""

    @consumer.on(Declared)
    async def first(event: Declared) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"declarations\.declared.*first already.*second\) belongs into"
    ):

        @consumer.on(Declared)
        async def second(event: Declared) -> None: ...


def test_a_handler_is_a_coroutine_function(consumer: RobustConsumer) -> None:
    """A plain function is refused as a handler."""

    def handle(event: Declared) -> None: ...

    with pytest.raises(DeclarationError, match="handle must be `async def`"):
        consumer.on(Declared)(handle)  # type: ignore[type-var] # pyright: ignore[reportArgumentType] - what is tested


@pytest.mark.parametrize("message", [Untyped, Anywhere])
def test_a_base_class_can_not_be_handled(consumer: RobustConsumer, message: Any) -> None:
    """`Event` and `Command` subclasses without a type have no handler."""

    async def handle() -> None: ...

    with pytest.raises(DeclarationError, match="is a base class"):
        consumer.on(message)(handle)


def test_a_command_is_handled_where_it_is_sent() -> None:
    """A command can only be handled by the consumer that is named like its queue."""

    async def handle(command: Work) -> None: ...

    with pytest.raises(DeclarationError, match="goes to the queue 'declared_tasks'"):
        RobustConsumer("other_tasks").on(Work)(handle)
    RobustConsumer("declared_tasks").on(Work)(handle)


async def wants_another(event: Another) -> None: ...


async def wants_another_envelope(envelope: EventEnvelope[Another]) -> None: ...


@pytest.mark.parametrize("handler", [wants_another, wants_another_envelope])
def test_a_handler_asks_for_what_it_gets(consumer: RobustConsumer, handler: Any) -> None:
    """A handler that asks for another event, or for its envelope, is refused when it is registered."""
    with pytest.raises(DeclarationError, match="is called with Declared; it asks for"):
        consumer.on(Declared)(handler)


def test_a_handler_may_ask_for_any_envelope_and_for_other_values(consumer: RobustConsumer) -> None:
    """An envelope of any data, generic types and parameters with defaults are accepted."""

    async def handle(envelope: EventEnvelope[Any], names: list[str], number: int = 1) -> None: ...

    consumer.on(Declared)(handle)


class Limits:
    """A value that a process may or may not provide."""


@pytest.mark.parametrize("providers", [{}, {Limits: Limits()}], ids=["absent", "provided"])
async def test_a_handler_gets_what_it_asks_for(providers: dict[Any, object]) -> None:
    """A parameter with a default keeps it where nothing provides its type; the message itself is always there."""
    given: list[object] = []

    async def handle(
        context: RequestContext,
        database: Database,
        limits: Limits | None = None,
        more: Limits = nothing,
        event: Declared | None = None,
        *,
        envelope: EventEnvelope[Declared],
    ) -> None:
        given.extend((context, database, limits, more, event, envelope))

    handlers, database, event = Handlers("tasks"), Database(), Declared(number=1)
    handlers.add(Declared, handle, Retry.immediate())
    envelope = EventEnvelope.wrap(event, service="tests")
    handler = handlers.find(event)
    assert handler
    with bind(RequestContext()) as context:
        await handler.run(envelope, {Database: database, **providers})
    assert given == [context, database, None, providers.get(Limits, nothing), None, envelope]


async def test_nothing_starts_without_what_handlers_want(consumer: RobustConsumer) -> None:
    """A consumer without handlers, or with a parameter that nothing provides, fails before it connects."""
    publisher = RobustPublisher(URL, service="tests")
    connection = BrokerConnection(URL, name="tests")
    with pytest.raises(DeclarationError, match="declared_tasks has no handlers"):
        await consumer.start(connection, publisher=publisher)

    @consumer.on(Declared)
    async def handle(event: Declared, publisher: RobustPublisher, database: Database, id: UUID) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"nothing provides database: Database, id: UUID for the handler .*handle"
    ):
        await consumer.start(connection, publisher=publisher)


async def test_a_consumer_that_is_not_running_is_drained_at_once(consumer: RobustConsumer) -> None:
    """Draining a consumer that isn't running succeeds, and it is neither ready nor busy."""
    assert await consumer.drain(budget_seconds=0)
    assert not consumer.is_ready
    assert consumer.in_flight == 0


async def test_a_running_consumer_is_not_changed(
    consumer: RobustConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running consumer can't be started again, nor get a handler for which its queue has no binding."""
    publisher = RobustPublisher(URL, service="tests")

    @consumer.on(Declared)
    async def handle(event: Declared) -> None: ...

    monkeypatch.setattr(consumer, "_run", object())
    with pytest.raises(MisuseError, match="running already"):
        await consumer.start(BrokerConnection(URL, name="tests"), publisher=publisher)
    with pytest.raises(DeclarationError, match="registered before it starts"):

        @consumer.on(Work)
        async def too_late(command: Work) -> None: ...


def test_no_password_is_shown() -> None:
    """The reprs of publisher and connection leave the URL's password out."""
    assert "secret" not in f"{RobustPublisher(URL, service='tests')!r}{BrokerConnection(URL, name='tests')!r}"


@pytest.mark.parametrize("service", ["", "ä" * 128, "a\r\nb", "\x00", "\ud800"], ids=ascii)
def test_a_service_has_a_name_that_fits(service: str) -> None:
    """A service's name fits into a header and one line of a log, or is refused."""
    with pytest.raises(DeclarationError, match="1 to 255 bytes and is printable"):
        RobustPublisher(URL, service=service)


@pytest.mark.parametrize(
    ("event_type", "queue"), [("ä" * 128, None), ("a.b", "q" * 256)], ids=["type", "queue"]
)
async def test_a_name_that_amqp_can_not_carry_is_refused(event_type: str, queue: str | None) -> None:
    """A type or queue that AMQP can't carry raises `MalformedPayloadError`, on which an outbox parks the row."""
    publisher = RobustPublisher(URL, service="tests")
    publisher._writer._is_open = True
    with pytest.raises(MalformedPayloadError, match="255 bytes"):
        await publisher.publish_encoded(b"{}", event_id=new_id(), event_type=event_type, queue=queue)


@pytest.mark.parametrize("data", [b"9" * 400, b"[" * 250 + b"]" * 250], ids=["digits", "levels"])
async def test_bytes_that_no_consumer_could_read_are_refused(data: bytes) -> None:
    """Encoded envelopes that no consumer could read, such as an older release's, raise before anything is sent."""
    publisher = RobustPublisher(URL, service="tests")
    with pytest.raises(MalformedPayloadError):
        await publisher.publish_encoded(b'{"data":' + data + b"}", event_id=new_id(), event_type="a.b")
