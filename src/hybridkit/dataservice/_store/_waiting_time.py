"""How long a request has waited for its database: a store adds it up, a route tells it (`Server-Timing: db;dur=1.8`).

```python
waited = watch_database()                     # a route, before it asks the store
...
headers["server-timing"] = waited.header      # afterwards
```

https://www.w3.org/TR/server-timing/
"""

from contextvars import ContextVar

__all__ = ["DatabaseTime", "add_database_seconds", "watch_database"]


class DatabaseTime:
    """What one request has waited so far.

    Attributes:
        seconds: for the database, connecting included.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"DatabaseTime({self.seconds:.6f})"

    @property
    def header(self) -> str:
        """The value of `Server-Timing`, in milliseconds: `db;dur=1.8`."""
        return f"db;dur={self.seconds * 1000:.1f}"


_watched: ContextVar[DatabaseTime | None] = ContextVar("hybridkit_database_time", default=None)


def watch_database() -> DatabaseTime:
    """Add up from now on, in this task and those that it starts."""
    waited = DatabaseTime()
    _watched.set(waited)
    return waited


def add_database_seconds(seconds: float) -> None:
    """Count that time for the request that is being answered, if somebody watches."""
    waited = _watched.get()
    if waited is not None:
        waited.seconds += seconds
