"""The statistics of a user, stored as documents by `db_mongo_service`. The id of a record is the user's."""

from typing import Literal

from pydantic import BaseModel

from hybridkit.resources import Record, Resource


class NewUserStats(BaseModel):
    """The statistics of a user at their registration."""

    registered: bool
    registration_source: Literal["web", "bot"]


class UserStats(NewUserStats, Record):
    """All statistics of a user."""

    messages_received: int = 0


class UserStatsChanges(BaseModel):
    """The statistics that change later."""

    messages_received: int | None = None


USER_STATS = Resource(
    "user_stats",
    record=UserStats,
    create=NewUserStats,
    update=UserStatsChanges,
    filterable=("registration_source", "created_at"),
    sortable=("created_at",),
)
