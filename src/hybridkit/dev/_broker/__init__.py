"""An AMQP 0-9-1 broker in asyncio, so that a stack and its tests run from `pip install` alone.

```
socket -> Connection -> Channel -> VirtualHost -> Exchange -> Queue -> Consumer -> Connection -> socket
           frames        publishes    routes                  stores     limits
```

Each frame is handled within the callback of the event loop that has read it. There are no tasks, so no interleaving.
"""

from hybridkit.dev._broker._broker import DevelopmentBroker, QueueState
from hybridkit.dev._broker._faults import BrokerFaults

__all__ = ["BrokerFaults", "DevelopmentBroker", "QueueState"]
