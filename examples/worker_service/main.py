"""The background worker: the work after a registration that nobody waits for."""

from examples.worker_service.application import analytics
from hybridkit.adapters.worker import run_worker
from hybridkit.settings import WorkerSettings

__all__ = ["Settings", "main"]


class Settings(WorkerSettings):
    """The settings, read from the environment when the worker starts."""

    service_name: str = "worker_service"


def main() -> None:
    """Consume until SIGTERM."""
    run_worker(Settings, consumers=[analytics])


if __name__ == "__main__":
    main()
