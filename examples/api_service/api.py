"""The routes: from HTTP to the application and back, nothing else."""

from uuid import UUID

from fastapi import APIRouter

from examples.api_service import application
from examples.contracts.users import NewUser, User
from hybridkit.adapters.dependencies import Postgres

__all__ = ["users"]

users = APIRouter(prefix="/users", tags=["users"])


@users.post("", status_code=201)
async def register(body: NewUser, postgres: Postgres) -> User:
    """Register. Sent again with the same `Idempotency-Key`, the answer is the same and nothing is done twice."""
    return await application.register(postgres, body)


@users.get("/{user_id}")
async def read_user(user_id: UUID, postgres: Postgres) -> User:
    """Return the user of an id."""
    return await application.find_user(postgres, user_id)
