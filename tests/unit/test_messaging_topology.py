"""The topology as values: the delay levels lead every message to its queue, after exactly its delay."""

from fnmatch import fnmatchcase
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.errors import DeclarationError
from hybridkit.messaging._topology._declared import (
    Binding,
    Exchange,
    Topology,
    consumer_topology,
    delay_route,
    shared_topology,
)

CONSUMERS = ("analytics", "worker_service.analytics", "email_tasks")


@cache
def whole_topology() -> Topology:
    topology = shared_topology()
    for name in CONSUMERS:
        topology += consumer_topology(name, ["user.created"])
    return topology


def matches(pattern: str, key: str) -> bool:
    """Topic matching: `*` is one word, a trailing `#` any number of them."""
    head, found, _ = pattern.partition("#")
    wanted, words = head.rstrip(".").split("."), key.split(".")
    if len(words) < len(wanted) or (not found and len(words) != len(wanted)):
        return False
    return all(fnmatchcase(word, want) for word, want in zip(words, wanted, strict=False))


def travel(topology: Topology, exchange: str, key: str) -> tuple[str, float]:
    """Follow a message through the broker: the queue where it stays, and the seconds it took."""
    queues = {queue.name: queue.arguments for queue in topology.queues}
    seconds = 0.0
    while True:
        hits = [each for each in topology.bindings if each.source == exchange and matches(each.key, key)]
        assert len(hits) == 1, (exchange, key, hits)
        target = hits[0].target
        if hits[0].to_exchange:
            exchange = target
        elif "x-message-ttl" in queues[target]:
            seconds += int(queues[target]["x-message-ttl"]) / 1000
            exchange = str(queues[target]["x-dead-letter-exchange"])
        else:
            return target, seconds


@given(seconds=st.integers(1, 2**17 - 1), queue=st.sampled_from(CONSUMERS))
def test_a_delayed_message_arrives_in_its_queue_after_its_delay(seconds: int, queue: str) -> None:
    """Each set bit is one wait; no other queue gets it, also where one name ends with another."""
    assert travel(whole_topology(), *delay_route(seconds, queue)) == (queue, seconds)


@pytest.mark.parametrize(("seconds", "whole"), [(0, 1), (0.2, 1), (1, 1), (1.01, 2), (59.5, 60)])
def test_delays_are_rounded_up_to_whole_seconds(seconds: float, whole: int) -> None:
    """A delay level counts whole seconds, and no message comes early."""
    assert delay_route(seconds, "q") == delay_route(whole, "q")


@pytest.mark.parametrize("seconds", [-0.1, 2**17])
def test_an_impossible_delay_is_refused(seconds: float) -> None:
    """Seventeen levels add up to 131,071 seconds; a negative delay or none that is a number is refused as well."""
    with pytest.raises(DeclarationError, match="at least 0 and at most 131071 s"):
        delay_route(seconds, "q")


def test_a_consumer_queue_loses_nothing() -> None:
    """Rejects go at least once to the dead-letter exchange, with the key without which they would vanish."""
    topology = consumer_topology("analytics", ["user.created", "user.deleted"])
    assert topology.queues[0].arguments == {
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "hk.dlx",
        "x-dead-letter-routing-key": "analytics",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert Binding(source="hk.dlx", target="analytics.dlq", key="analytics") in topology.bindings
    assert [each.key for each in topology.bindings if each.source == "hk.events"] == [
        "user.created",
        "user.deleted",
    ]


def test_the_event_exchange_has_no_alternate() -> None:
    """With one, an event that no queue wants would be confirmed and never returned."""
    exchanges = {exchange.name: exchange for exchange in shared_topology().exchanges}
    assert exchanges["hk.events"] == Exchange(name="hk.events", kind="topic")
    assert exchanges["hk.dlx"].alternate == exchanges["hk.delay.deliver"].alternate == "hk.unrouted"


def test_queues_that_only_wait_have_a_large_limit() -> None:
    """RabbitMQ 4 gives a quorum queue a limit of 20 deliveries where none is written."""
    queues = whole_topology().queues
    waiting = [queue for queue in queues if queue.name not in CONSUMERS]
    assert len(waiting) == 1 + 17 + len(CONSUMERS)
    assert all(queue.arguments["x-delivery-limit"] == 1_000_000_000 for queue in waiting)
