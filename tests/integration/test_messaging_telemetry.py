"""What traces and metrics say about messages, on a real RabbitMQ, by OpenTelemetry's names.

https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hybridkit.context import RequestContext, bind
from hybridkit.errors import HybridkitError, RejectedError, UnroutableError
from hybridkit.events import Command, Event
from hybridkit.ids import new_id
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.observability import _metrics, span
from hybridkit.retry import Retry
from hybridkit.testing import FaultProxy
from tests.helpers import until
from tests.helpers.spans import attributes_of, recording

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("no_jitter")]

IN_A_SECOND = Retry.exponential(first_seconds=1, cap_seconds=1, attempts=2)


class Spoken(Event, type="telemetry.spoken"):
    number: int = 0


class Answered(Event, type="telemetry.answered"):
    number: int = 0


class Speak(Command, queue="telemetry_tasks", type="telemetry.speak"):
    pass


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [each for each in self._exporter.get_finished_spans() if each.kind is kind]

    @property
    def published(self) -> list[ReadableSpan]:
        return self.of(SpanKind.PRODUCER)

    @property
    def processed(self) -> list[ReadableSpan]:
        return self.of(SpanKind.CONSUMER)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    with recording(monkeypatch) as exporter:
        yield Spans(exporter)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """Return a queue name that no other test's metrics have."""
    return f"telemetry.{request.node.name}"


@asynccontextmanager
async def consuming(
    consumer: RobustConsumer, connection: BrokerConnection, publisher: RobustPublisher, calls: int
) -> AsyncGenerator[None]:
    """Run the consumer until its handlers were called that often and their messages are settled."""
    reached = asyncio.Semaphore(0)
    for handler in consumer._handlers:
        object.__setattr__(handler, "function", counted(handler.function, reached))
    async with consumer.running(connection, publisher=publisher, drain_seconds=30):
        yield
        async with asyncio.timeout(60):
            for _ in range(calls):
                await reached.acquire()


def counted(function: Any, reached: asyncio.Semaphore) -> Any:
    async def call(**arguments: Any) -> None:
        try:
            await function(**arguments)
        finally:
            reached.release()

    return call


def linked(consumed: ReadableSpan) -> tuple[int, int]:
    """Return the trace and the span to which a span links."""
    (link,) = consumed.links
    return link.context.trace_id, link.context.span_id


def identity(made: ReadableSpan) -> tuple[int, int]:
    context = made.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def sample(name: str, **labels: str) -> float:
    return _metrics.registry.get_sample_value(f"hybridkit_{name}", labels) or 0.0


async def read(url: str, name: str) -> Any:
    """Take the next message of a queue."""
    async with await aio_pika.connect(url) as plain, asyncio.timeout(60):
        channel = await plain.channel()
        await channel.set_qos(prefetch_count=1)
        async with (await channel.get_queue(name)).iterator() as messages:
            message = await anext(messages)
            await message.ack()
            return message


# ── spans ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_publish_has_a_span_that_names_where_it_goes(
    spans: Spans, publisher: RobustPublisher
) -> None:
    """The producer's span has the attributes of OpenTelemetry's conventions, and no status when it succeeds."""
    event = Spoken()
    await publisher.publish(event, allow_unrouted=True)
    (published,) = spans.published
    assert published.name == "publish hk.events:telemetry.spoken"
    attributes = attributes_of(published)
    assert attributes.pop("messaging.message.body.size") > 100
    assert attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "hk.events:telemetry.spoken",
        "messaging.rabbitmq.destination.routing_key": "telemetry.spoken",
        "messaging.message.id": str(event.event_id),
    }
    assert published.status.is_unset


async def test_a_failed_publish_says_so(spans: Spans, publisher: RobustPublisher) -> None:
    """The span of a publish that raises has the status ERROR and the error's class."""
    with pytest.raises(UnroutableError):
        await publisher.publish(Spoken())
    (published,) = spans.published
    assert published.status.status_code is StatusCode.ERROR
    assert attributes_of(published)["error.type"] == "UnroutableError"


async def test_a_run_is_a_span_in_the_trace_of_the_publish_and_links_to_it(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """A handler's run continues the publisher's trace, and so does what the handler publishes."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def answer(event: Spoken, publisher: RobustPublisher) -> None:
        await publisher.publish(Answered(), allow_unrouted=True)

    event = Spoken()
    async with consuming(consumer, connection, publisher, calls=1):
        await publisher.publish(event)
    first, second = spans.published
    (processed,) = spans.processed
    assert linked(processed) == identity(first)
    assert processed.parent is not None
    assert (processed.parent.trace_id, processed.parent.span_id) == identity(first)
    assert second.parent is not None
    assert (second.parent.trace_id, second.parent.span_id) == identity(processed)
    attributes = attributes_of(processed)
    assert attributes["messaging.system"] == "rabbitmq"
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.operation.name"] == "process"
    assert attributes["messaging.message.id"] == str(event.event_id)
    assert processed.status.is_unset


async def test_a_command_s_destination_is_its_queue(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """A command's spans are named by its queue, also when it is delayed: a delay's routing key varies."""
    consumer = RobustConsumer("telemetry_tasks")

    @consumer.on(Speak)
    async def speak(command: Speak) -> None:
        pass

    async with consuming(consumer, connection, publisher, calls=2):
        await publisher.send(Speak())
        await publisher.send(Speak(), delay_seconds=1)
    assert {each.name for each in spans.published} == {"publish telemetry_tasks"}
    assert {linked(each) for each in spans.processed} == {identity(each) for each in spans.published}
    names = {attributes_of(each)["messaging.destination.name"] for each in spans.processed}
    assert names == {"telemetry_tasks"}


async def test_a_batch_has_one_span_that_all_its_events_link_to(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """`publish_many` makes one span with the number of events, to which every consumer span links."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    async with consuming(consumer, connection, publisher, calls=3):
        await publisher.publish_many(Spoken(number=number) for number in range(3))
    (published,) = spans.published
    assert published.name == "publish hk.events"
    assert attributes_of(published)["messaging.batch.message_count"] == 3
    assert [linked(each) for each in spans.processed] == [identity(published)] * 3


async def test_a_retry_links_to_the_same_publish_and_keeps_the_request(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """A retry through the delay levels keeps the link to the publish and the request id."""
    consumer = RobustConsumer(queue)
    requests: list[str] = []

    @consumer.on(Spoken, retry=IN_A_SECOND)
    async def fail_once(event: Spoken, context: RequestContext) -> None:
        requests.append(context.request_id)
        if len(requests) == 1:
            raise ConnectionError("not yet")

    async with consuming(consumer, connection, publisher, calls=2):
        with bind(RequestContext(request_id="req-retried")):
            await publisher.publish(Spoken())
    assert requests == ["req-retried"] * 2
    (published,) = spans.published
    first, second = spans.processed
    assert linked(first) == linked(second) == identity(published)
    assert identity(first)[0] == identity(second)[0] == identity(published)[0]


async def test_a_redelivery_links_to_the_same_publish_and_keeps_the_request(
    spans: Spans, publisher: RobustPublisher, rabbitmq_url: str, queue: str
) -> None:
    """A redelivery has the same request id, and its span links to the same publish."""
    consumer = RobustConsumer(queue)
    requests: list[str] = []
    parts = urlsplit(rabbitmq_url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        BrokerConnection(proxy.url_for(rabbitmq_url), name="tests") as connection,
    ):

        @consumer.on(Spoken, retry=IN_A_SECOND)
        async def listen(event: Spoken, context: RequestContext) -> None:
            requests.append(context.request_id)
            if len(requests) == 1:
                proxy.reset()
                await until(lambda: not consumer.is_ready)
                raise ConnectionError("not acknowledged, and no copy sent")

        async with consuming(consumer, connection, publisher, calls=2):
            with bind(RequestContext(request_id="req-redelivered")):
                await publisher.publish(Spoken())
    assert requests == ["req-redelivered"] * 2
    (published,) = spans.published
    assert [linked(each) for each in spans.processed] == [identity(published)] * 2


async def test_a_dead_letter_keeps_the_trace_and_the_request(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str, rabbitmq_url: str
) -> None:
    """A dead letter has the trace and the request id of its event, for its redrive."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def refuse(event: Spoken) -> None:
        raise RejectedError("never")

    async with consuming(consumer, connection, publisher, calls=1):
        with bind(RequestContext(request_id="req-dead", user_id="somebody")):
            await publisher.publish(Spoken())
    (published,), (processed,) = spans.published, spans.processed
    dead = await read(rabbitmq_url, f"{queue}.dlq")
    _, trace_id, span_id, _ = dead.headers["traceparent"].split("-")
    assert (int(trace_id, 16), int(span_id, 16)) == identity(published) == linked(processed)
    assert (dead.headers["x-request-id"], dead.headers["x-user-id"]) == ("req-dead", "somebody")


async def test_a_message_without_a_trace_starts_one(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str, rabbitmq_url: str
) -> None:
    """A message without headers, or with unreadable ones, is consumed in a trace without a link."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    body = (
        f'{{"event_type":"telemetry.spoken","event_id":"{new_id()}","timestamp":"2026-01-01T00:00:00Z",'
        '"service":"plain","request_id":"r","data":{}}'
    ).encode()
    headers: list[Any] = [None, {"traceparent": 7, "tracestate": "x" * 9000}, {"traceparent": "00-zz"}]
    async with (
        consuming(consumer, connection, publisher, calls=3),
        await aio_pika.connect(rabbitmq_url) as plain,
    ):
        exchange = (await plain.channel()).default_exchange
        for each in headers:
            await exchange.publish(aio_pika.Message(body, headers=each), queue)
    assert [list(each.links) for each in spans.processed] == [[], [], []]
    assert {each.parent for each in spans.processed} == {None}


async def test_nothing_is_added_where_nothing_records(
    publisher: RobustPublisher, connection: BrokerConnection, queue: str, rabbitmq_url: str
) -> None:
    """Where no span is recorded none is made, and the current trace still goes on with the message."""
    remote = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def refuse(event: Spoken) -> None:
        raise RejectedError("never")

    async with consuming(consumer, connection, publisher, calls=2):
        await publisher.publish(Spoken())
        with span("request", parent=remote):
            await publisher.publish(Spoken())
    assert "traceparent" not in (await read(rabbitmq_url, f"{queue}.dlq")).headers
    assert (await read(rabbitmq_url, f"{queue}.dlq")).headers["traceparent"] == remote["traceparent"]


async def test_a_run_s_destination_is_exchange_routing_key_and_queue(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """A consumer's span is named by exchange, routing key and queue."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    async with consuming(consumer, connection, publisher, calls=1):
        await publisher.publish(Spoken())
    (processed,) = spans.processed
    assert processed.name == f"process hk.events:telemetry.spoken:{queue}"
    attributes = attributes_of(processed)
    assert attributes["messaging.destination.name"] == f"hk.events:telemetry.spoken:{queue}"
    assert attributes["messaging.rabbitmq.destination.routing_key"] == "telemetry.spoken"


async def test_consuming_that_begins_in_a_span_is_no_part_of_it(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """A message's span belongs to the publisher's trace, although the consumer was started within another one."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    with span("start") as start:
        running = consuming(consumer, connection, publisher, calls=1)
        await running.__aenter__()
    await publisher.publish(Spoken())
    await running.__aexit__(None, None, None)
    (processed,) = spans.processed
    (published,) = spans.published
    assert identity(processed)[0] == identity(published)[0] != start.get_span_context().trace_id


async def test_a_run_that_failed_says_why(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """The span of a failed run has the error, whether it is retried or given up."""
    consumer = RobustConsumer(queue)
    errors: list[Exception] = [ConnectionError("not yet"), RejectedError("never")]

    @consumer.on(Spoken, retry=IN_A_SECOND)
    async def fail(event: Spoken) -> None:
        raise errors.pop(0)

    async with consuming(consumer, connection, publisher, calls=2):
        await publisher.publish(Spoken())
    assert [attributes_of(each)["error.type"] for each in spans.processed] == [
        "ConnectionError",
        "RejectedError",
    ]
    assert {each.status.status_code for each in spans.processed} == {StatusCode.ERROR}
    assert [each.events[0].name for each in spans.processed] == ["exception", "exception"]


async def test_what_cannot_be_read_has_a_span_too(
    spans: Spans, publisher: RobustPublisher, connection: BrokerConnection, queue: str, rabbitmq_url: str
) -> None:
    """A message that can't be read has a span named by its queue, and not by its own content."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    async with (
        consumer.running(connection, publisher=publisher),
        await aio_pika.connect(rabbitmq_url) as plain,
    ):
        exchange = (await plain.channel()).default_exchange
        await exchange.publish(aio_pika.Message(b'{"event_type": "made.up_by_somebody"}'), queue)
        await read(rabbitmq_url, f"{queue}.dlq")
    (processed,) = spans.processed
    assert processed.name == f"process {queue}"
    assert attributes_of(processed)["error.type"] == "UnknownEventTypeError"


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


async def test_publishes_are_counted_by_what_came_of_them(publisher: RobustPublisher) -> None:
    """Unrouted publishes are counted as such, whether they raise or are allowed; only the allowed one is timed."""

    class Counted(Event, type="telemetry.counted"):
        pass

    with pytest.raises(UnroutableError):
        await publisher.publish(Counted())
    await publisher.publish(Counted(), allow_unrouted=True)
    assert sample("events_published_total", event_type="telemetry.counted", outcome="unrouted") == 2
    assert sample("event_publish_duration_seconds_count", event_type="telemetry.counted") == 1


async def test_confirmed_publishes_are_counted(
    publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """Each confirmed publish and each consumed event is counted and timed by its type."""

    class Confirmed(Event, type="telemetry.confirmed"):
        pass

    consumer = RobustConsumer(queue)

    @consumer.on(Confirmed)
    async def listen(event: Confirmed) -> None:
        pass

    async with consuming(consumer, connection, publisher, calls=3):
        await publisher.publish(Confirmed())
        assert sample("event_publish_duration_seconds_count", event_type="telemetry.confirmed") == 1
        receipts = await publisher.publish_many([Confirmed(), Confirmed()])
    assert not any(isinstance(each, HybridkitError) for each in receipts)
    labels = {"event_type": "telemetry.confirmed"}
    assert sample("events_published_total", **labels, outcome="confirmed") == 3
    assert sample("events_consumed_total", consumer=queue, **labels, outcome="done") == 3
    assert sample("handler_duration_seconds_count", consumer=queue, **labels) == 3
    assert sample("event_age_seconds_count", consumer=queue) == 3
    assert 0 < sample("event_age_seconds_sum", consumer=queue) < 60


async def test_retries_and_dead_letters_are_counted_with_their_reasons(
    publisher: RobustPublisher, connection: BrokerConnection, queue: str
) -> None:
    """A retry is counted by its error, and a dead letter by its reason."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken, retry=IN_A_SECOND)
    async def fail(event: Spoken) -> None:
        raise ConnectionError("never")

    async with consuming(consumer, connection, publisher, calls=2):
        await publisher.publish(Spoken())
    labels = {"consumer": queue, "event_type": "telemetry.spoken"}
    assert sample("events_retried_total", **labels, error="ConnectionError") == 1
    assert sample("events_dead_lettered_total", **labels, reason="exhausted") == 1
    assert sample("events_consumed_total", **labels, outcome="retried") == 1
    assert sample("events_consumed_total", **labels, outcome="dead_lettered") == 1
    assert sample("handler_duration_seconds_count", **labels) == 2


async def test_what_cannot_be_read_is_counted_under_no_name_of_its_own(
    publisher: RobustPublisher, connection: BrokerConnection, queue: str, rabbitmq_url: str
) -> None:
    """Messages that can't be read are counted under one label, whatever type they claim."""
    consumer = RobustConsumer(queue)

    @consumer.on(Spoken)
    async def listen(event: Spoken) -> None:
        pass

    async with (
        consumer.running(connection, publisher=publisher),
        await aio_pika.connect(rabbitmq_url) as plain,
    ):
        exchange = (await plain.channel()).default_exchange
        for body in (b"nonsense", b'{"event_type": "made.up_by_somebody"}'):
            await exchange.publish(aio_pika.Message(body), queue)
        for _ in range(2):
            await read(rabbitmq_url, f"{queue}.dlq")
    labels = {"consumer": queue, "event_type": "unknown"}
    assert sample("events_dead_lettered_total", **labels, reason="malformed") == 1
    assert sample("events_dead_lettered_total", **labels, reason="unknown_type") == 1
    assert sample("events_consumed_total", **labels, outcome="dead_lettered") == 2
