"""The tables: only columns, constraints and indexes, and no business rules."""

from sqlalchemy import BigInteger, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hybridkit.dataservice import RecordColumns

__all__ = ["Base", "UserTable"]


class Base(DeclarativeBase):
    """The metadata that migrations are generated from."""


class UserTable(RecordColumns, Base):
    """One row per user, with the columns of `RecordColumns` (id, version, times)."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    language: Mapped[str] = mapped_column(server_default=text("'en'"))
    telegram_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
