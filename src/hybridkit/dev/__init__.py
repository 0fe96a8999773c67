"""Local servers for developers and tests: real ones by one ladder, and a broker with faults on demand."""

from hybridkit.dev._broker import BrokerFaults, DevelopmentBroker, QueueState
from hybridkit.dev._servers._local import LocalServers
from hybridkit.dev._servers._server import KINDS, Kind, Server
from hybridkit.dev._servers._shared import SharedServers

__all__ = [
    "KINDS",
    "BrokerFaults",
    "DevelopmentBroker",
    "Kind",
    "LocalServers",
    "QueueState",
    "Server",
    "SharedServers",
]
