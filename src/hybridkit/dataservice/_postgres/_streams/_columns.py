"""Declare the columns of a table that keeps a kind of stream.

```python
class AccountEvents(StreamColumns, Base):
    __tablename__ = "account_events"
```
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Identity, Index, Integer, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

_NOW = "date_trunc('milliseconds', now())"


class StreamColumns:
    """The columns of a table of events, to inherit from beside a declarative base; a row is one event.

    Rows are only added, never changed, but for personal data that is removed. Readers of the log follow the index on
    `(epoch, xid, position)`: the transaction's number decides, as `position` alone would hide events that commit late.

    Attributes:
        stream_id: the id of the stream; with `version` the primary key, which is what two appends race for.
        version: the event's number in the stream, from 1.
        epoch: counts the clusters that the database has been restored into; `hybridkit streams rebase` raises it.
        xid: the number of the transaction that appended the event.
        position: the event's number in the table, in the order of the inserts.
        event_id: the event's identity.
        event_type: the event's type.
        event_version: the version of the type.
        data: the event's fields.
        occurred_at: when the event was made, by the clock of the service that appended it.
        recorded_at: when its transaction began.
        caller: the service that appended it.
        request_id: the request that caused it.
        user_id: the user on whose behalf it happened.
        causation_id: the event that it answers.
        redacted_at: when personal data was removed from it.
    """

    stream_id: Mapped[str] = mapped_column(Text(), primary_key=True, sort_order=-3)
    version: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False, sort_order=-2)
    epoch: Mapped[int] = mapped_column(Integer(), server_default=text("1"))
    xid: Mapped[int] = mapped_column(
        BigInteger(), server_default=text("(pg_current_xact_id()::text)::bigint")
    )
    position: Mapped[int] = mapped_column(BigInteger(), Identity(always=True))
    event_id: Mapped[UUID] = mapped_column(Uuid())
    event_type: Mapped[str] = mapped_column(Text())
    event_version: Mapped[int] = mapped_column(Integer())
    data: Mapped[dict[str, Any]] = mapped_column(JSONB())
    occurred_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    recorded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text(_NOW))
    caller: Mapped[str] = mapped_column(Text())
    request_id: Mapped[str] = mapped_column(Text())
    user_id: Mapped[str | None] = mapped_column(Text())
    causation_id: Mapped[UUID | None] = mapped_column(Uuid())
    redacted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        """Index the log; a class with arguments of its own has `*super().__table_args__` among them."""
        name: str = getattr(cls, "__tablename__", cls.__name__.lower())
        return (Index(f"{name}_log", "epoch", "xid", "position"),)
