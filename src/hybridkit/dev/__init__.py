"""Local servers, a development broker and supervised processes, for developers and tests."""

from hybridkit.dev._broker import BrokerFaults, DevelopmentBroker, QueueState
from hybridkit.dev._processes._logs import LogLine, merge_logs
from hybridkit.dev._processes._supervisor import Service, Supervisor
from hybridkit.dev._servers._local import LocalServers
from hybridkit.dev._servers._probes import free_port
from hybridkit.dev._servers._server import KINDS, Kind, Server
from hybridkit.dev._servers._shared import SharedServers

__all__ = [
    "KINDS",
    "BrokerFaults",
    "DevelopmentBroker",
    "Kind",
    "LocalServers",
    "LogLine",
    "QueueState",
    "Server",
    "Service",
    "SharedServers",
    "Supervisor",
    "free_port",
    "merge_logs",
]
