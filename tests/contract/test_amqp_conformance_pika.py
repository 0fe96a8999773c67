"""Both brokers behave alike for pika, a client with other habits."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from pika.exceptions import (
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAuthenticationError,
    UnroutableError,
)

# pika comes without types, and nothing here is about them.
Channel = Any


@contextmanager
def connected(url: str) -> Generator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


@pytest.fixture
def connection(amqp_url: str) -> Iterator[Any]:
    with connected(amqp_url) as connection:
        yield connection


@pytest.fixture
def channel(connection: Any) -> Channel:
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("queue", durable=True)
    return channel


def take(channel: Channel, queue: str = "queue", **options: Any) -> Iterator[tuple[Any, bytes]]:
    """Deliveries, until there has been none for a second."""
    for method, _, body in channel.consume(queue, inactivity_timeout=1, **options):
        if method is None:
            return
        yield method, body


def test_publish_consume_and_ack(channel: Channel) -> None:
    """The messages are in order, with their properties."""
    properties = pika.BasicProperties(headers={"key": "value"}, delivery_mode=2, content_type="text/plain")
    for body in (b"1", b"2"):
        channel.basic_publish("", "queue", body, properties, mandatory=True)
    taken: list[bytes] = []
    for method, received, body in channel.consume("queue", inactivity_timeout=10):
        assert (received.headers, received.delivery_mode, received.content_type) == (
            {"key": "value"},
            2,
            "text/plain",
        )
        channel.basic_ack(method.delivery_tag)
        taken.append(body)
        if len(taken) == 2:
            break
    assert taken == [b"1", b"2"]
    channel.cancel()
    assert channel.queue_declare("queue", passive=True).method.message_count == 0


def test_unroutable_and_nacked(channel: Channel) -> None:
    """Each raises its own error."""
    with pytest.raises(UnroutableError):
        channel.basic_publish("", "nowhere", b"", mandatory=True)
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    channel.queue_declare("full", durable=True, arguments=arguments)
    with pytest.raises(NackError):
        channel.basic_publish("", "full", b"")


def test_what_is_given_back_comes_again(channel: Channel) -> None:
    """It is marked as redelivered, at its old place."""
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "queue", body)
    first = channel.basic_get("queue")[0]
    channel.basic_nack(first.delivery_tag)
    deliveries = list(take(channel, auto_ack=True))
    assert [body for _, body in deliveries] == [b"1", b"2", b"3"]
    assert [method.redelivered for method, _ in deliveries] == [True, False, False]


def test_prefetch(channel: Channel) -> None:
    """No more messages than that are unacknowledged."""
    for _ in range(3):
        channel.basic_publish("", "queue", b"")
    channel.basic_qos(prefetch_count=2)
    assert len(list(take(channel))) == 2


def test_an_error_closes_the_channel_only(connection: Any, channel: Channel) -> None:
    """The client gets code and text, and the connection goes on."""
    with pytest.raises(ChannelClosedByBroker) as caught:
        channel.queue_declare("nowhere", passive=True)
    assert caught.value.reply_code == 404
    assert "no queue 'nowhere' in vhost" in caught.value.reply_text
    connection.channel().queue_declare("queue", passive=True)


def test_a_worse_error_closes_the_connection(channel: Channel) -> None:
    """A 540 does so."""
    with pytest.raises(ConnectionClosedByBroker) as caught:
        channel.basic_qos(prefetch_size=1)
    assert caught.value.reply_code == 540


def test_a_deleted_queue_cancels_its_consumer(amqp_url: str, connection: Any, channel: Channel) -> None:
    """pika ends the iteration or calls back."""
    cancelled: list[Any] = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    tag = channel.basic_consume("queue", lambda *_: None)
    with connected(amqp_url) as other:
        other.channel().queue_delete("queue")
    for _ in range(100):
        connection.process_data_events(0.1)
        if cancelled:
            break
    assert cancelled == [tag]


def test_a_wrong_password(amqp_url: str) -> None:
    """The client gets the reason."""
    with (
        pytest.raises(ProbableAuthenticationError, match="Login was refused"),
        connected(amqp_url.replace("guest:guest", "guest:wrong")),
    ):
        pass


def test_exchanges_and_bindings(channel: Channel) -> None:
    """Exchanges are bound to queues and to exchanges."""
    channel.exchange_declare("topic", "topic")
    channel.exchange_declare("fanout", "fanout")
    channel.exchange_bind("fanout", "topic", "a.#")
    channel.queue_bind("queue", "fanout")
    channel.basic_publish("topic", "a.b", b"1", mandatory=True)
    channel.exchange_unbind("fanout", "topic", "a.#")
    with pytest.raises(UnroutableError):
        channel.basic_publish("topic", "a.b", b"2", mandatory=True)
    channel.queue_unbind("queue", "fanout")
    channel.exchange_delete("fanout")
    assert channel.queue_purge("queue").method.message_count == 1


def test_a_large_message(channel: Channel) -> None:
    """It takes many frames in both directions."""
    channel.basic_publish("", "queue", b"x" * 1_000_000)
    assert channel.basic_get("queue", auto_ack=True)[2] == b"x" * 1_000_000


def until(connection: Any, condition: Callable[[], object]) -> None:
    """Let pika do its work until then."""
    ends_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_at
        connection.process_data_events(0.05)


def test_an_alarm_blocks_who_publishes(memory_alarm: Any) -> None:
    """What a publisher sends waits unread until the end of the alarm, and others go on."""
    with connected(memory_alarm.url) as publisher, connected(memory_alarm.url) as other:
        told: list[str] = []
        publisher.add_on_connection_blocked_callback(lambda *_: told.append("blocked"))
        publisher.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
        channel, looking = publisher.channel(), other.channel()
        looking.queue_declare("queue", durable=True)
        memory_alarm.raise_it()
        # The alarm takes a moment to reach everybody.
        until(publisher, lambda: channel.basic_publish("", "queue", b"1") or told)
        told_after = looking.queue_declare("queue", passive=True).method.message_count
        channel.basic_publish("", "queue", b"last")
        assert looking.queue_declare("queue", passive=True).method.message_count == told_after
        memory_alarm.end_it()
        until(publisher, lambda: len(told) == 2)
        assert told == ["blocked", "unblocked"]
        until(other, lambda: looking.basic_get("queue", auto_ack=True)[2] == b"last")
