"""The use cases of the service, one function each."""

from uuid import UUID

from examples.api_service.domain import canonical_email
from examples.contracts.users import USERS, NewUser, User, UserCreated
from hybridkit.clients import PostgresDataClient

__all__ = ["find_user", "register"]


async def register(postgres: PostgresDataClient, new_user: NewUser) -> User:
    """Create the user and emit the event about it in one transaction, in one HTTP request."""
    new_user = new_user.model_copy(update={"email": canonical_email(new_user.email)})
    async with postgres.transaction() as tx:
        user = tx.create(USERS, new_user)
        tx.emit(UserCreated(user_id=user.id, email=new_user.email))
    return user.result


async def find_user(postgres: PostgresDataClient, user_id: UUID) -> User:
    """Return the user with that id."""
    return await postgres.get(USERS, user_id)
