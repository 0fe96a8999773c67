"""Typed building blocks for microservices that reach data over HTTP and each other through events.

Every name here is loaded when it is first used (PEP 562), so `import hybridkit` costs nothing and needs no extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridkit.context import RequestContext as RequestContext
    from hybridkit.envelope import EventEnvelope as EventEnvelope
    from hybridkit.errors import HybridkitError as HybridkitError
    from hybridkit.events import Command as Command
    from hybridkit.events import Event as Event
    from hybridkit.queries import Query as Query
    from hybridkit.resources import Call as Call
    from hybridkit.resources import Record as Record
    from hybridkit.resources import Resource as Resource
    from hybridkit.retry import Retry as Retry

_HOMES = {
    "Call": "resources",
    "Command": "events",
    "Event": "events",
    "EventEnvelope": "envelope",
    "HybridkitError": "errors",
    "Query": "queries",
    "Record": "resources",
    "RequestContext": "context",
    "Resource": "resources",
    "Retry": "retry",
}

__all__ = [
    "Call",
    "Command",
    "Event",
    "EventEnvelope",
    "HybridkitError",
    "Query",
    "Record",
    "RequestContext",
    "Resource",
    "Retry",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
