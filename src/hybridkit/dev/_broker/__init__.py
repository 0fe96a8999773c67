"""An AMQP 0-9-1 broker in asyncio, so that a stack and its tests run from `pip install` alone.

```
socket -> Connection -> Channel -> VirtualHost -> Exchange -> Queue -> Consumer -> Connection -> socket
           frames        publishes    routes                  holds      limits
```

Everything happens in the turn of the event loop that reads the frame: nothing is a task, so nothing can interleave.
"""

from hybridkit.dev._broker._broker import DevelopmentBroker, QueueState
from hybridkit.dev._broker._faults import BrokerFaults

__all__ = ["BrokerFaults", "DevelopmentBroker", "QueueState"]
