"""The five services, as processes on this machine."""

import os
import socket
from pathlib import Path
from typing import Final

from hybridkit.dev import Server
from hybridkit.testing import Stack, StackService

DATA_SERVICES: Final = ("db_postgres_service", "db_mongo_service")
SERVICES: Final = (*DATA_SERVICES, "api_service", "worker_service", "bot_service")
OBSERVER: Final = "demo"
"""As whom the scenario itself looks at the data."""
START_SECONDS: Final = 120.0

_PREFERRED_PORTS: Final = {
    "api_service": 8000,
    "db_postgres_service": 8001,
    "db_mongo_service": 8002,
    "worker_service": 8003,
    "bot_service": 8004,
}


def make_stack(servers: list[Server], *, logs: Path) -> Stack:
    """Make the stack on some servers, on the documented ports where they are free."""
    urls = {server.kind: server.url for server in servers}
    return Stack(
        *map(_service, SERVICES),
        postgres=urls["postgres"],
        mongo=urls["mongo"],
        redis=urls["redis"],
        rabbitmq=urls["rabbitmq"],
        callers=[OBSERVER],
        log_directory=logs,
        start_seconds=START_SECONDS,
    )


def _service(name: str) -> StackService:
    port = _PREFERRED_PORTS[name]
    traces = {key: value for key, value in os.environ.items() if key == "OTEL_EXPORTER_OTLP_ENDPOINT"}
    return StackService(
        module=f"examples.{name}.main", environment=traces, port=port if _is_free(port) else None
    )


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services will
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
