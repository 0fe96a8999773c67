"""Local servers for developers and tests: real ones on any machine, by one ladder."""

from hybridkit.dev._local import LocalServers
from hybridkit.dev._servers import KINDS, Kind, Server
from hybridkit.dev._shared import SharedServers

__all__ = ["KINDS", "Kind", "LocalServers", "Server", "SharedServers"]
