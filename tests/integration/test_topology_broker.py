"""Topologies against a real RabbitMQ: planned without a trace, applied once, verified, and every conflict named."""

from typing import Any

import aio_pika
import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    NotConnectedError,
    NotSupportedError,
    TopologyError,
)
from hybridkit.events import Event
from hybridkit.messaging import (
    Broker,
    BrokerConnection,
    Exchange,
    Finding,
    Order,
    Queue,
    RobustConsumer,
    RobustPublisher,
    Topology,
    TopologyDifference,
    apply_topology,
    plan_topology,
    topology_of,
    verify_topology,
)
from hybridkit.messaging._topology import _plan as module
from hybridkit.testing import _isolation, plugin
from tests.helpers import until

pytestmark = pytest.mark.real_server


class Planned(Event, type="topology.planned", key="number"):
    number: int


async def handle(event: Planned) -> None: ...


async def ignore(_: object) -> None: ...


def consumer(name: str = "topology.consumer", *, order: Order | None = None) -> RobustConsumer:
    made = RobustConsumer(name, order=order)
    made.on(Planned)(handle)
    return made


@pytest.fixture
def topology() -> Topology:
    return topology_of([consumer()])


@pytest.fixture
def management_url(request: pytest.FixtureRequest) -> str:
    return str(plugin._find(request, "rabbitmq").management_url)


async def test_a_plan_creates_nothing(rabbitmq_url: str, topology: Topology) -> None:
    """On an empty virtual host a plan says that all is missing, and leaves it so."""
    plan = await plan_topology(topology, rabbitmq_url)
    assert {(each.kind, each.state) for each in plan.findings} == {
        ("exchange", "missing"),
        ("queue", "missing"),
        ("binding", "unknown"),
    }
    assert plan.broker.product == "RabbitMQ"
    assert not plan.is_clean
    assert await plan_topology(topology, rabbitmq_url) == plan


async def test_what_is_applied_is_verified(
    rabbitmq_url: str, management_url: str, topology: Topology
) -> None:
    """What `apply_topology` declares over a shared connection is verified, and a second time there is nothing to do."""
    async with BrokerConnection(rabbitmq_url, name="tests") as connection:
        before = await apply_topology(topology, connection)
        again = await apply_topology(topology, connection)
        plan = await verify_topology(topology, connection, management_url=management_url)
    assert len(before.of("missing")) == len(again.of("present")) == len(topology.exchanges + topology.queues)
    assert {each.state for each in plan.findings} == {"present"}


@pytest.mark.parametrize("order", [None, Order.SKIP, Order.PARK], ids=["any order", "skips", "parks"])
async def test_what_a_consumer_declares_itself_is_what_is_planned(
    rabbitmq_url: str, management_url: str, order: Order | None
) -> None:
    """A consumer's own declarations are exactly what `topology_of` plans."""
    started = consumer(order=order)
    async with (
        BrokerConnection(rabbitmq_url, name="tests") as connection,
        RobustPublisher(rabbitmq_url, service="tests") as publisher,
        started.running(connection, publisher=publisher),
    ):
        plan = await verify_topology(topology_of([started]), connection, management_url=management_url)
    assert {each.state for each in plan.findings} == {"present"}


async def test_every_conflict_is_named_and_stops_everything(rabbitmq_url: str, topology: Topology) -> None:
    """A conflict is reported with every differing property and both values, and nothing is declared."""
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange("hk.dlx", "fanout", durable=False)
        await channel.declare_queue(
            "topology.consumer",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-delivery-limit": 10, "x-max-length": 7},
        )
    plan = await plan_topology(topology, rabbitmq_url)
    exchange, queue = plan.of("conflicting")
    assert exchange.name == "hk.dlx"
    assert set(exchange.differences) == {
        TopologyDifference(name="type", declared="direct", actual="fanout"),
        TopologyDifference(name="durable", declared=True, actual=False),
        TopologyDifference(name="alternate-exchange", declared="hk.unrouted", actual=None),
    }
    assert queue.name == "topology.consumer"
    assert set(queue.differences) == {
        TopologyDifference(name="x-delivery-limit", declared=20, actual=10),
        TopologyDifference(name="x-max-length", declared=None, actual=7),
        TopologyDifference(name="x-dead-letter-exchange", declared="hk.dlx", actual=None),
        TopologyDifference(name="x-dead-letter-routing-key", declared="topology.consumer", actual=None),
        TopologyDifference(name="x-dead-letter-strategy", declared="at-least-once", actual=None),
        TopologyDifference(name="x-overflow", declared="reject-publish", actual=None),
    }
    with pytest.raises(TopologyError, match="nothing was declared") as refused:
        await apply_topology(topology, rabbitmq_url)
    assert refused.value.differences == (str(exchange), str(queue))
    assert (await plan_topology(topology, rabbitmq_url)).of("missing") == plan.of("missing")


async def test_a_classic_queue_is_in_conflict(rabbitmq_url: str) -> None:
    """A classic queue is in conflict, also on RabbitMQ 3.10, which reports no type for it."""
    async with await aio_pika.connect(rabbitmq_url) as connection:
        await (await connection.channel()).declare_queue("tasks", durable=True)
    plan = await plan_topology(Topology(queues=(Queue(name="tasks"),)), rabbitmq_url)
    (difference,) = plan.of("conflicting")[0].differences
    assert (difference.name, difference.declared) == ("x-queue-type", "quorum")
    assert difference.actual in {"classic", None}


async def test_a_queue_of_another_connection_is_in_conflict(rabbitmq_url: str) -> None:
    """Another connection's exclusive queue is in conflict, with the broker's error as the only detail."""
    async with await aio_pika.connect(rabbitmq_url) as connection:
        await (await connection.channel()).declare_queue("tasks", exclusive=True)
        plan = await plan_topology(Topology(queues=(Queue(name="tasks"),)), rabbitmq_url)
    assert [(each.state, each.differences) for each in plan.findings] == [("conflicting", ())]
    assert "RESOURCE_LOCKED" in plan.findings[0].detail


async def test_a_conflict_that_the_broker_can_not_tell_in_full_is_one(rabbitmq_url: str) -> None:
    """A conflict whose error is cut off at 255 bytes is reported with the broker's words."""
    name = "a" * 200
    async with await aio_pika.connect(rabbitmq_url) as connection:
        await (await connection.channel()).declare_queue(
            name, durable=True, arguments={"x-queue-type": "quorum"}
        )
    queue = Queue(name=name, arguments={"x-delivery-limit": 20})
    plan = await plan_topology(Topology(queues=(queue,)), rabbitmq_url)
    assert [(each.state, each.differences) for each in plan.findings] == [("conflicting", ())]
    assert "x-delivery-limit" in plan.findings[0].detail


async def test_verifying_names_what_is_missing(
    rabbitmq_url: str, management_url: str, topology: Topology
) -> None:
    """`verify_topology` names every missing thing, bindings only with the management API."""
    with pytest.raises(TopologyError, match="does not have") as refused:
        await verify_topology(topology, rabbitmq_url)
    assert "exchange hk.events is missing" in refused.value.differences
    await apply_topology(topology, rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        queue = await (await connection.channel()).get_queue("topology.consumer")
        await queue.unbind("hk.events", "topology.planned")
    await verify_topology(topology, rabbitmq_url)
    with pytest.raises(TopologyError) as refused:
        await verify_topology(topology, rabbitmq_url, management_url=management_url)
    assert refused.value.differences == (
        "binding hk.events -> topology.consumer (topology.planned) is missing",
    )


async def test_what_a_renamed_consumer_leaves_behind_is_found(
    rabbitmq_url: str, management_url: str, topology: Topology
) -> None:
    """A renamed consumer's queue is found by its former name, or by its bindings with the management API."""
    old = topology_of([consumer("topology.old")])
    await apply_topology(old, rabbitmq_url)
    await apply_topology(topology, rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"left"), "topology.old")
        named = await plan_topology(topology, rabbitmq_url, renamed_from=["topology.old", "topology.older"])
        assert [str(each) for each in named.of("orphaned")] == [
            "queue topology.old is orphaned: messages: 1, consumers: 0",
            "queue topology.old.dlq is orphaned: messages: 0, consumers: 0",
        ]
        found = await plan_topology(topology, rabbitmq_url, management_url=management_url)
        assert [str(each) for each in found.of("orphaned")] == [
            "queue topology.old is orphaned: messages: 1, consumers: 0, event types that still go there: 1",
            "queue topology.old.dlq is orphaned: messages: 0, consumers: 0",
        ]
        assert found.is_clean
        await (await channel.get_queue("topology.old")).consume(ignore, no_ack=True)
        found = await plan_topology(topology, rabbitmq_url, management_url=management_url)
        assert found.of("orphaned", "extra") == ()
        named = await plan_topology(topology, rabbitmq_url, renamed_from=["topology.old"])
        assert [each.name for each in named.of("extra")] == ["topology.old"]


async def test_a_policy_that_takes_something_away_is_found(
    request: pytest.FixtureRequest, rabbitmq_url: str, management_url: str, topology: Topology
) -> None:
    """A policy that bounds a dead-letter queue is found, as the queue would drop its oldest letters."""
    await apply_topology(topology, rabbitmq_url)
    vhost = rabbitmq_url.rpartition("/")[2]
    policy = {
        "pattern": "dlq$",
        "apply-to": "queues",
        "definition": {"max-length": 7, "overflow": "drop-head"},
    }
    _isolation._manage(plugin._find(request, "rabbitmq"), "PUT", f"policies/{vhost}/bounded", policy)
    async with BrokerConnection(rabbitmq_url, name="tests") as connection:

        async def altered() -> tuple[Finding, ...]:
            return (await plan_topology(topology, connection, management_url=management_url)).of("altered")

        await until(altered)  # the management API caches its lists
        found = await altered()
    assert [str(each) for each in found] == [
        "queue topology.consumer.dlq is altered: max-length 7 (set by bounded)"
    ]


async def test_a_name_that_is_declared_is_no_former_name(rabbitmq_url: str, topology: Topology) -> None:
    """A declared queue in `renamed_from` is a mistake that is named."""
    with pytest.raises(DeclarationError, match=r"topology\.consumer can't be a former name"):
        await plan_topology(topology, rabbitmq_url, renamed_from=["topology.consumer"])


async def test_a_user_without_rights_is_told(request: pytest.FixtureRequest, rabbitmq_url: str) -> None:
    """A user without rights gets an `AccessDeniedError` from the broker and from the management API."""
    await apply_topology(Topology(exchanges=(Exchange(name="there", kind="topic"),)), rabbitmq_url)
    server = plugin._find(request, "rabbitmq")
    vhost = rabbitmq_url.rpartition("/")[2]
    _isolation._manage(server, "PUT", f"users/{vhost}", {"password": "p", "tags": ""})
    try:
        _isolation._manage(
            server, "PUT", f"permissions/{vhost}/{vhost}", {"configure": "", "write": "", "read": ".*"}
        )
        url = rabbitmq_url.replace("guest:guest", f"{vhost}:p")
        with pytest.raises(AccessDeniedError, match="ACCESS_REFUSED"):
            await verify_topology(Topology(exchanges=(Exchange(name="there", kind="topic"),)), url)
        management_url = str(server.management_url).replace("guest:guest", f"{vhost}:p")
        with pytest.raises(AccessDeniedError, match="refuses user"):
            await plan_topology(Topology(), url, management_url=management_url)
    finally:
        _isolation._manage(server, "DELETE", f"users/{vhost}")


async def test_an_old_broker_gets_nothing(
    rabbitmq_url: str, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`apply_topology` declares nothing on RabbitMQ before 3.10."""

    def old(_: Any) -> Broker:
        return Broker(product="RabbitMQ", version="3.9.29")

    with monkeypatch.context() as patched:
        patched.setattr(Broker, "from_properties", old)
        with pytest.raises(NotSupportedError, match=r"RabbitMQ 3\.9\.29 is too old"):
            await apply_topology(topology, rabbitmq_url)
    assert (await plan_topology(topology, rabbitmq_url)).of("present") == ()


async def test_a_conflict_that_comes_while_applying_is_one(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conflict that appears between comparison and declaration is a `TopologyError`."""
    async with await aio_pika.connect(rabbitmq_url) as connection:
        await (await connection.channel()).declare_exchange("there", "fanout", durable=True)

    async def compare(*_: object) -> module.Plan:
        return module.Plan(broker=Broker(product="RabbitMQ", version="4.3.6"), findings=())

    monkeypatch.setattr(module, "_compare", compare)
    with pytest.raises(TopologyError, match=r"meanwhile.*current is 'fanout'"):
        await apply_topology(Topology(exchanges=(Exchange(name="there", kind="topic"),)), rabbitmq_url)


async def test_a_broker_that_is_not_there_is_not_waited_for(topology: Topology) -> None:
    """A plan over a connection that isn't open ends at the deadline."""
    connection = BrokerConnection("amqp://guest:guest@127.0.0.1:1/", name="tests")
    with (
        bind(RequestContext().within(0.05)),
        pytest.raises(NotConnectedError, match=r"no connection .* in 0\.\d s"),
    ):
        await plan_topology(topology, connection)
