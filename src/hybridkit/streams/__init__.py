"""Keep what happened as streams of events, and compute the state of each from them.

```python
class Account(BaseModel):
    balance: Decimal = Decimal(0)

ACCOUNTS = Stream("accounts", state=Account, key="account_id", snapshot_every=200)

@ACCOUNTS.apply(Deposited)
def deposited(account: Account, event: Deposited) -> Account:
    return account.model_copy(update={"balance": account.balance + event.amount})
```

A declaration does no input or output: a data service on PostgreSQL keeps the events, and `PostgresDataClient` appends
and reads them. The events are those of `hybridkit.events`, so registry, upcasters and `hybridkit events check` hold for
those that are stored.
"""

from hybridkit._personal import Personal
from hybridkit.streams._changes import Changes
from hybridkit.streams._positions import PROJECTIONS, ProjectionRow, SkippedEvent
from hybridkit.streams._projection import Projection
from hybridkit.streams._recorded import LogPage, RecordedEvent
from hybridkit.streams._stream import Loaded, Stream

__all__ = [
    "PROJECTIONS",
    "Changes",
    "Loaded",
    "LogPage",
    "Personal",
    "Projection",
    "ProjectionRow",
    "RecordedEvent",
    "SkippedEvent",
    "Stream",
]
