"""The MongoDB data service, on port 8002: the only process that connects to that database."""

from examples.contracts.analytics import USER_STATS
from hybridkit.adapters.fastapi import run_api
from hybridkit.dataservice import DocumentCollection, DocumentIndex, Grant, create_data_service
from hybridkit.settings import MongoSettings

__all__ = ["Settings", "app", "main"]


class Settings(MongoSettings):
    """The settings, read from the environment when the service starts."""

    service_name: str = "db_mongo_service"


app = create_data_service(
    Settings,
    {USER_STATS: DocumentCollection(indexes=(DocumentIndex("registration_source", "created_at"),))},
    grants={"worker_service": Grant(write=[USER_STATS]), "demo": Grant(read="*")},
    title="Analytics in MongoDB",
)


def main() -> None:
    """Serve until SIGTERM."""
    run_api(app)


if __name__ == "__main__":
    main()
