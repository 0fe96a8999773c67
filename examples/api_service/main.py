"""The public HTTP API, on port 8000, for registrations."""

from examples.api_service.api import users
from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.security import OPEN
from hybridkit.settings import ApiSettings

__all__ = ["Settings", "app", "main"]


class Settings(ApiSettings):
    """The settings, read from the environment when the application starts."""

    service_name: str = "api_service"


app = create_app(Settings, title="Users", security=OPEN)  # anybody may register
app.include_router(users)


def main() -> None:
    """Serve until SIGTERM."""
    run_api(app)


if __name__ == "__main__":
    main()
