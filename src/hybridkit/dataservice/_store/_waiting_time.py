"""How long a request has waited for its database: a store adds it up, a route tells it (`Server-Timing: db;dur=1.8`).

```python
waited = start_waiting_time()                     # a route, before it asks the store
...
headers["server-timing"] = waited.header      # afterwards
```

https://www.w3.org/TR/server-timing/
"""

from contextvars import ContextVar


class WaitingTime:
    """What one request has waited so far.

    Attributes:
        seconds: for the database, connecting included.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"WaitingTime({self.seconds:.6f})"

    @property
    def header(self) -> str:
        """The value of `Server-Timing`, in milliseconds: `db;dur=1.8`."""
        return f"db;dur={self.seconds * 1000:.1f}"


_watched: ContextVar[WaitingTime | None] = ContextVar("hybridkit_database_time", default=None)


def start_waiting_time() -> WaitingTime:
    """Add up from now on, in this task and those that it starts."""
    waited = WaitingTime()
    _watched.set(waited)
    return waited


def add_waiting_seconds(seconds: float) -> None:
    """Count that time for the request that is being answered, if somebody watches."""
    waited = _watched.get()
    if waited is not None:
        waited.seconds += seconds
