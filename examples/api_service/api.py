"""The routes, which only translate between HTTP and the application."""

from uuid import UUID

from fastapi import APIRouter

from examples.api_service import application
from examples.contracts.users import NewUser, User
from hybridkit.adapters.dependencies import Postgres

__all__ = ["users"]

users = APIRouter(prefix="/users", tags=["users"])


@users.post("", status_code=201)
async def register(body: NewUser, postgres: Postgres) -> User:
    """Register a user. A repetition with the same `Idempotency-Key` gets the same response, and writes nothing."""
    return await application.register(postgres, body)


@users.get("/{user_id}")
async def read_user(user_id: UUID, postgres: Postgres) -> User:
    """Return the user with that id."""
    return await application.find_user(postgres, user_id)
