"""The PostgreSQL data service, on port 8001: the only process that connects to that database."""

from pathlib import Path

from examples.contracts.users import USERS, UserCreated
from examples.db_postgres_service.tables import UserTable
from hybridkit.adapters.fastapi import run_api
from hybridkit.dataservice import Grant, create_data_service
from hybridkit.settings import PostgresSettings

__all__ = ["Settings", "app", "main"]


class Settings(PostgresSettings):
    """The settings, read from the environment when the service starts."""

    service_name: str = "db_postgres_service"


app = create_data_service(
    Settings,
    {USERS: UserTable},
    migrations=Path(__file__).with_name("migrations"),
    grants={
        "api_service": Grant(write=[USERS], emit=[UserCreated]),
        "bot_service": Grant(read=[USERS]),
        "demo": Grant(read="*"),
    },
    title="Users in PostgreSQL",
)


def main() -> None:
    """Serve until SIGTERM."""
    run_api(app)


if __name__ == "__main__":
    main()
