"""Users: the record, what creates and changes it, and the event about a new one.

Shared by `db_postgres_service`, which stores users, and by every service that asks for them.
"""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from hybridkit.events import Event
from hybridkit.resources import Record, Resource

Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", max_length=254)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Language = Literal["en", "ru"]


class NewUser(BaseModel):
    """The data of a registration.

    Attributes:
        telegram_id: the Telegram account to be welcomed.
    """

    email: Email
    name: Name
    language: Language = "en"
    telegram_id: int | None = None


class User(NewUser, Record):
    """A registered user."""

    is_active: bool = True


class UserChanges(BaseModel):
    """The fields that may change later; a field that is not set stays."""

    name: Name | None = None
    language: Language | None = None
    telegram_id: int | None = None
    is_active: bool | None = None


USERS = Resource(
    "users",
    record=User,
    create=NewUser,
    update=UserChanges,
    filterable=("email", "telegram_id", "is_active", "created_at"),
    sortable=("created_at",),
)


class UserCreated(Event, type="user.created", version=1, key="user_id"):
    """A user has registered."""

    user_id: UUID
    email: str
    registration_source: Literal["web", "bot"] = "web"
