"""Events and commands over RabbitMQ: confirmed publishing, and consumers that outlive faults of the broker.

```python
async with (
    BrokerConnection(url, name="worker_service") as connection,
    RobustPublisher(url, service="worker_service") as publisher,
    consumer.running(connection, publisher=publisher, providers={MongoDataClient: mongo}, guard=guard),
):
    await stopped.wait()
```
"""

from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._consuming._consumer import Order, RobustConsumer, topology_of
from hybridkit.messaging._consuming._guarded_runner import Guard
from hybridkit.messaging._consuming._pause_gate import Paused
from hybridkit.messaging._dead_letters._letter import DeadLetter, DeadLetterFilter, DeadLetterGroup
from hybridkit.messaging._dead_letters._queue import DeadLetters, DeadLetterSummary, Redriven
from hybridkit.messaging._publishing._publisher import Receipt, RobustPublisher
from hybridkit.messaging._topology._broker_version import Broker
from hybridkit.messaging._topology._declared import Binding, Exchange, Queue, Topology
from hybridkit.messaging._topology._inspection import TopologyDifference
from hybridkit.messaging._topology._plan import (
    Finding,
    Plan,
    apply_topology,
    plan_topology,
    verify_topology,
)

__all__ = [
    "Binding",
    "Broker",
    "BrokerConnection",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetterGroup",
    "DeadLetterSummary",
    "DeadLetters",
    "Exchange",
    "Finding",
    "Guard",
    "Order",
    "Paused",
    "Plan",
    "Queue",
    "Receipt",
    "Redriven",
    "RobustConsumer",
    "RobustPublisher",
    "Topology",
    "TopologyDifference",
    "apply_topology",
    "plan_topology",
    "topology_of",
    "verify_topology",
]
