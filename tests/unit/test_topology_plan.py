"""Plans without a broker: what a 406 says, what a version means, how bindings differ."""

from typing import Any

import pytest

from hybridkit.messaging import Binding, Broker, Exchange, Finding, Plan, Queue, Topology, TopologyDifference
from hybridkit.messaging._topology._declared import Value, delayed_to
from hybridkit.messaging._topology._inspection import difference_in
from hybridkit.messaging._topology._management import Policies, VirtualHostState
from hybridkit.messaging._topology._plan import _altered, _bindings

FULL = Queue(name="a", arguments={"x-delivery-limit": 20, "x-overflow": "reject-publish"}).properties
TOPIC = Exchange(name="a", kind="topic").properties


# What RabbitMQ 3.10.8 and 4.3.6 answer, word for word.
@pytest.mark.parametrize(
    ("said", "declared", "name", "actual"),
    [
        (
            "'x-delivery-limit' for queue 'a' in vhost '/': received '20' but current is '21'",
            FULL,
            "x-delivery-limit",
            21,
        ),
        (
            "'x-delivery-limit' for queue 'a' in vhost '/': received the value '20' of type 'byte' but current is none",
            FULL,
            "x-delivery-limit",
            None,
        ),
        (
            "'x-overflow' for queue 'a' in vhost '/': received 'reject-publish' but current is 'drop-head'",
            FULL,
            "x-overflow",
            "drop-head",
        ),
        (
            "'x-message-ttl' for queue 'a' in vhost '/': received none but current is the value '1000' of type 'short'",
            FULL,
            "x-message-ttl",
            1000,
        ),
        (
            "'x-sac' for queue 'a' in vhost '/': received none but current is the value 'true' of type 'bool'",
            FULL,
            "x-sac",
            True,
        ),
        (
            "'x-queue-type' for queue 'a' in vhost '/': received 'quorum' but current is 'stream'",
            FULL,
            "x-queue-type",
            "stream",
        ),
        (
            "'durable' for queue 'a' in vhost '/': received 'true' but current is 'false'",
            FULL,
            "durable",
            False,
        ),
        (
            "'type' for exchange 'a' in vhost 'it's': received 'topic' but current is 'direct'",
            TOPIC,
            "type",
            "direct",
        ),
        (
            "'x-b' for exchange 'a' in vhost '/': received none but current is the value '7' of type 'longstr'",
            TOPIC,
            "x-b",
            "7",
        ),
    ],
)
def test_a_refusal_names_the_property_with_its_value(
    said: str, declared: dict[str, Value], name: str, actual: Value
) -> None:
    """A 406 gives the property and its actual value in the type that the next declare needs."""
    found = difference_in(f"PRECONDITION_FAILED - inequivalent arg {said}", declared)
    assert found == TopologyDifference(name=name, declared=declared.get(name), actual=actual)
    assert found is not None
    assert type(found.actual) is type(actual)


@pytest.mark.parametrize(
    "said",
    [
        f"PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue '{'l' * 170}...",
        "PRECONDITION_FAILED - inequivalent arg 'x-max' for queue 'a' in vhost '/': received '1' but current is '2...",
        "PRECONDITION_FAILED - invalid arg 'x-dead-letter-strategy' for queue 'a' in vhost '/'",
    ],
    ids=["cut off in the name", "cut off in the value", "another refusal"],
)
def test_a_refusal_that_can_not_be_read_is_no_difference(said: str) -> None:
    """A 406 whose text is cut off, or is about something else, names no property."""
    assert difference_in(said, FULL) is None


def test_differences_are_told_in_words() -> None:
    """A difference is shown with both values, and a property without a value as not set."""
    assert (
        str(TopologyDifference(name="durable", declared=True, actual=False))
        == "durable is false, declared true"
    )
    assert str(TopologyDifference(name="x-a", declared=None, actual="b")) == "x-a is b, declared not set"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.10.8", ["until 4.0.1", "-1 drops"]),
        ("3.13", ["until 4.0.1", "-1 drops"]),
        ("4.0.0-rc.1", ["until 4.0.1", "one of 20"]),
        ("4.0.1", ["one of 20"]),
        ("4.3.6", ["one of 20", "x-delayed-retry-type"]),
    ],
)
def test_the_limits_of_a_version_are_named(version: str, words: list[str]) -> None:
    """Each version of RabbitMQ has the notes that hold for it, also a pre-release."""
    broker = Broker(product="RabbitMQ", version=version)
    assert broker.is_supported
    assert len(broker.notes) == len(words)
    assert [word for word in words if word not in "".join(broker.notes)] == []


def test_an_old_rabbitmq_is_not_supported() -> None:
    """RabbitMQ before 3.10 is refused, with the reason as its only note."""
    broker = Broker(product="RabbitMQ", version="3.9.29")
    assert not broker.is_supported
    assert broker.notes == (
        "RabbitMQ 3.9.29 is too old: quorum queues dead-letter at least once since RabbitMQ 3.10",
    )


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"product": "LavinMQ", "version": "2.4.0"}, "LavinMQ 2.4.0"),
        ({"product": b"qpid-cpp", "version": b"1.39"}, "qpid-cpp 1.39"),
        ({"product": "RabbitMQ", "version": "main"}, "RabbitMQ main"),
        ({}, "unknown unknown"),
    ],
)
def test_another_broker_is_named_and_not_refused(properties: dict[str, Any], name: str) -> None:
    """A broker or version that isn't known counts as supported, with a note that says so."""
    broker = Broker.from_properties(properties)
    assert broker.is_supported
    assert broker.notes[0].startswith(f"{name} is no RabbitMQ that is known")


EVENTS = Binding(source="hk.events", target="a", key="user.created")
STALE = Binding(source="hk.events", target="a", key="user.deleted")
FOREIGN = Binding(source="hk.events", target="b", key="user.deleted")
CHAIN = Binding(source="hk.delay.L1", target="hk.delay.L0", key="0.#", to_exchange=True)
ONE_QUEUE = Topology(
    exchanges=(Exchange(name="hk.delay.L0", kind="topic"),), queues=(Queue(name="a"),), bindings=(EVENTS,)
)


def managed(*bindings: Binding, **policies: Policies) -> VirtualHostState:
    return VirtualHostState(bindings=frozenset(bindings), policies=policies)


def states(known: VirtualHostState | None) -> dict[str, str]:
    return {finding.name: finding.state for finding in _bindings(ONE_QUEUE, known)}


def test_a_binding_is_shown_in_short() -> None:
    """The stars of a delay binding are shown as a number, and an empty key not at all."""
    assert str(delayed_to("a.b")) == "hk.delay.deliver -> a.b (*{17}.a.b)"
    assert str(Binding(source="hk.unrouted", target="hk.unrouted")) == "hk.unrouted -> hk.unrouted"


def test_bindings_that_nobody_can_list_are_unknown() -> None:
    """Without the management API the state of every binding is `unknown`."""
    assert states(None) == {"hk.events -> a (user.created)": "unknown"}


def test_bindings_are_compared_where_they_are_known() -> None:
    """An undeclared binding to a declared queue is `extra`; one that leads elsewhere isn't in the plan."""
    assert states(managed(STALE, FOREIGN, CHAIN)) == {
        "hk.events -> a (user.created)": "missing",
        "hk.events -> a (user.deleted)": "extra",
        "hk.delay.L1 -> hk.delay.L0 (0.#)": "extra",
    }
    assert states(managed(EVENTS)) == {"hk.events -> a (user.created)": "present"}


def test_a_stale_binding_says_what_becomes_of_its_events() -> None:
    """A binding for a type without a handler is `extra`, and says that its events become dead letters."""
    stale = _bindings(ONE_QUEUE, managed(EVENTS, STALE))[1]
    assert str(stale) == (
        "binding hk.events -> a (user.deleted) is extra:"
        " no handler is declared for these events, so they become dead letters"
    )


def test_a_policy_that_tightens_a_limit_is_named() -> None:
    """A queue is `altered` by a policy with a lower limit than its argument, and not by one with a higher limit."""
    topology = Topology(
        queues=(
            Queue(name="a", arguments={"x-delivery-limit": 20, "x-message-ttl": 1000}),
            Queue(name="b", arguments={"x-delivery-limit": 20}),
            Queue(name="c"),
        )
    )
    lower = Policies(
        names=("one", "two"), definition={"delivery-limit": 5, "message-ttl": 2000, "expires": 60}
    )
    higher = Policies(names=("one",), definition={"delivery-limit": 30, "overflow": "drop-head"})
    assert [str(each) for each in _altered(topology, managed(a=lower, b=higher))] == [
        "queue a is altered: expires 60, delivery-limit 5 (set by one and two)"
    ]
    assert _altered(topology, None) == []


def test_a_plan_shows_what_is_not_as_declared() -> None:
    """A printed plan lists conflicts and missing things, and only counts what could not be compared."""
    difference = TopologyDifference(name="x-delivery-limit", declared=20, actual=10)
    plan = Plan(
        broker=Broker(product="RabbitMQ", version="4.0.1"),
        findings=(
            Finding(kind="queue", name="there", state="present"),
            Finding(kind="queue", name="other", state="conflicting", differences=(difference,)),
            Finding(kind="queue", name="new", state="missing"),
            Finding(kind="binding", name="a -> b", state="unknown"),
        ),
    )
    assert not plan.is_clean
    first, *lines = str(plan).splitlines()
    assert first == "RabbitMQ 4.0.1"
    assert lines[:2] == [
        "queue other is conflicting: x-delivery-limit is 10, declared 20",
        "queue new is missing",
    ]
    assert lines[-1].startswith("bindings not compared: 1.")


def test_topologies_are_joined_without_repeating_anything() -> None:
    """Joining keeps one of two equal queues, and both of two that differ."""
    joined = ONE_QUEUE + Topology(queues=(Queue(name="a"), Queue(name="b")), bindings=(EVENTS,))
    assert joined == Topology(
        exchanges=ONE_QUEUE.exchanges, queues=(Queue(name="a"), Queue(name="b")), bindings=(EVENTS,)
    )
    different = Queue(name="a", arguments={"x-max-length": 1})
    assert (ONE_QUEUE + Topology(queues=(different,))).queues == (Queue(name="a"), different)
