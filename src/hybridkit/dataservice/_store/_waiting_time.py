"""The time that a request has waited for its database: a store adds, a route reports (`Server-Timing: db;dur=1.8`).

```python
waited = start_waiting_time()                     # a route, before it asks the store
...
headers["server-timing"] = waited.header      # afterwards
```

https://www.w3.org/TR/server-timing/
"""

from contextvars import ContextVar


class WaitingTime:
    """The time that one request has waited so far.

    Attributes:
        seconds: of waiting for the database, connecting included.
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
    """Count waiting time from now on, in this task and those that it starts, and return the counter."""
    waited = WaitingTime()
    _watched.set(waited)
    return waited


def add_waiting_seconds(seconds: float) -> None:
    """Add seconds to the waiting time of the current request, if it is counted."""
    waited = _watched.get()
    if waited is not None:
        waited.seconds += seconds
