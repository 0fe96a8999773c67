"""Declare the columns that every table of a data service has, and the tables that hybridkit adds.

```python
class Base(DeclarativeBase):
    pass

class UserTable(RecordColumns, Base):
    __tablename__ = "users"
    email: Mapped[str] = mapped_column(unique=True)
```
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement

from hybridkit.dataservice._outbox._protocol import PARTITIONS

_NOW: Final = "date_trunc('milliseconds', now())"


def now_in_milliseconds() -> ColumnElement[datetime]:
    """Return the start of the transaction by the database's clock, to the millisecond as on the wire and in MongoDB."""
    return func.date_trunc("milliseconds", func.now(), type_=DateTime(timezone=True))


class RecordColumns:
    """The columns of `hybridkit.Record`, to inherit from beside a declarative base.

    The id is a UUID; a resource with natural keys declares `id: Mapped[str] = mapped_column(primary_key=True)`. The
    other columns have defaults in the database, so that a row made by SQL is as good as one made over HTTP.

    Attributes:
        id: the record's id, made by the client.
        version: 1 for a new record, one more with each change.
        created_at: the instant of the create, to the millisecond.
        updated_at: the instant of the last change, to the millisecond.
        incarnation: a random number that tells a record from an earlier one with the same id; part of its ETag, never
            shown by itself.
    """

    id: Mapped[Any] = mapped_column(Uuid(), primary_key=True, sort_order=-1)
    version: Mapped[int] = mapped_column(BigInteger(), server_default=text("1"), sort_order=1)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=text(_NOW), sort_order=2
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=text(_NOW), sort_order=3
    )
    incarnation: Mapped[int] = mapped_column(
        BigInteger(), server_default=text("(random() * 4611686018427387903)::bigint"), sort_order=4
    )


class SoftDeleteColumns:
    """The column that a table needs beside `RecordColumns` if its resource is declared with `soft_delete=True`.

    Attributes:
        deleted_at: when the record was deleted; NULL for a record that is not. Readers never see it.
    """

    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), sort_order=5)


class LoginSessionColumns(RecordColumns):
    """The columns of a table for `hybridkit.security.LOGIN_SESSIONS`, with those of `RecordColumns`.

    Attributes:
        user_id: the user who has signed in.
        family_key: the key of the session's tokens.
        token_hash: the hash of the present token.
        previous_hash: the hash of the token before.
        salt: the random number of the last rotation.
        rotated_at: the time of the last rotation.
        expires_at: the end of the session.
        label: the device.
    """

    user_id: Mapped[str] = mapped_column(String(), index=True)
    family_key: Mapped[str] = mapped_column(String())
    token_hash: Mapped[str] = mapped_column(String())
    previous_hash: Mapped[str] = mapped_column(String(), server_default=text("''"))
    salt: Mapped[str] = mapped_column(String(), server_default=text("''"))
    rotated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    label: Mapped[str] = mapped_column(String(), server_default=text("''"))


ORDERING_KEY: Final = "COALESCE(key, event_id::text)"
"""The key by which rows of the outbox are in order."""
PARTITION: Final = f"(hashtextextended({ORDERING_KEY}, 0) & {PARTITIONS - 1})"
"""The partition of a row. It is computed, not stored, so it is right for rows of an older release too. The function is
that of hash partitions, whose values PostgreSQL keeps from version to version."""

SYSTEM: Final = MetaData()
"""The tables of hybridkit; `_migrations` makes them, and a test compares the two."""

KEYS: Final = Table(
    "hk_keys",
    SYSTEM,
    Column("caller", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("results", LargeBinary, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("caller", "key", name="hk_keys_pkey"),
    Index("hk_keys_expires_at", "expires_at"),
)
"""Idempotency keys with their outcomes, written in the transaction that they protect."""

OUTBOX: Final = Table(
    "hk_outbox",
    SYSTEM,
    Column("sequence", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Uuid, nullable=False, unique=True),
    Column("event_type", Text, nullable=False),
    Column("key", Text),
    Column("queue", Text),
    Column("request_id", Text, nullable=False),
    Column("user_id", Text),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("published_at", DateTime(timezone=True)),
    Column("parked_at", DateTime(timezone=True)),
    Column("reason", Text),
    Column("not_before", DateTime(timezone=True)),
    Column("traceparent", Text),
    Column("tracestate", Text),
    Index(
        "hk_outbox_ready",
        text(PARTITION),
        "sequence",
        postgresql_where=text("published_at IS NULL AND parked_at IS NULL AND not_before IS NULL"),
    ),
    Index(
        "hk_outbox_later",
        "not_before",
        postgresql_where=text("published_at IS NULL AND parked_at IS NULL AND not_before IS NOT NULL"),
    ),
    Index("hk_outbox_parked", "sequence", postgresql_where=text("parked_at IS NOT NULL")),
    Index("hk_outbox_published_at", "published_at", postgresql_where=text("published_at IS NOT NULL")),
)
"""Events and commands, in commit order per key; published ones stay for a while, so that none is added twice."""

LEASES: Final = Table(
    "hk_leases",
    SYSTEM,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
"""The owners of tasks that only one replica may do at a time."""

SNAPSHOTS: Final = Table(
    "hk_snapshots",
    SYSTEM,
    Column("stream", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state_version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("digest", Text, nullable=False),
    PrimaryKeyConstraint("stream", "id", name="hk_snapshots_pkey"),
)
"""The last snapshot of each stream, a cache: readers ignore one that doesn't fit."""

STREAM_EPOCHS: Final = Table(
    "hk_stream_epochs",
    SYSTEM,
    Column("stream", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)
"""The epoch of each kind of stream that was restored into another cluster; 1 for one that has no row."""

SECRETS: Final = Table(
    "hk_secrets",
    SYSTEM,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""Secrets that all replicas share: the key that page tokens are signed with."""


class SystemBase(DeclarativeBase):
    """The base of hybridkit's own tables that are resources."""

    metadata = SYSTEM


class SagaTable(RecordColumns, SystemBase):
    """The table of `hybridkit.sagas.SAGAS`; its columns are the fields of `NewSaga`."""

    __tablename__ = "hk_sagas"

    saga: Mapped[str] = mapped_column(Text())
    key: Mapped[str] = mapped_column(Text())
    definition: Mapped[int] = mapped_column(BigInteger())
    started_definition: Mapped[int] = mapped_column(BigInteger())
    status: Mapped[str] = mapped_column(Text())
    state: Mapped[str | None] = mapped_column(Text())
    error: Mapped[str | None] = mapped_column(Text())
    entry: Mapped[int] = mapped_column(BigInteger())
    wake_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    timer_id: Mapped[Any | None] = mapped_column(Uuid())
    deadline_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    data: Mapped[Any] = mapped_column(JSONB())
    sent: Mapped[Any] = mapped_column(JSONB())
    undo: Mapped[Any] = mapped_column(JSONB())
    history: Mapped[Any] = mapped_column(JSONB())
    steps: Mapped[int] = mapped_column(BigInteger())
    visited: Mapped[Any] = mapped_column(ARRAY(Text()))
    notes: Mapped[Any] = mapped_column(JSONB())
    reason: Mapped[str | None] = mapped_column(Text())
    request_id: Mapped[str] = mapped_column(Text())
    user_id: Mapped[str | None] = mapped_column(Text())
    traceparent: Mapped[str | None] = mapped_column(Text())
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    __table_args__ = (
        Index("hk_sagas_live", "saga", "status", "state", "updated_at"),
        Index("hk_sagas_wake_at", "wake_at", postgresql_where=text("status IN ('running', 'undoing')")),
        Index("hk_sagas_error", "saga", postgresql_where=text("error IS NOT NULL")),
    )


class ProjectionTable(RecordColumns, SystemBase):
    """The table of `hybridkit.streams.PROJECTIONS`; its columns are the fields of `ProjectionFields`."""

    __tablename__ = "hk_projections"

    id: Mapped[str] = mapped_column(Text(), primary_key=True)
    name: Mapped[str] = mapped_column(Text())
    projection_version: Mapped[int] = mapped_column(Integer())
    source: Mapped[str] = mapped_column(Text())
    position: Mapped[str | None] = mapped_column(Text())
    events: Mapped[int] = mapped_column(BigInteger())
    recorded_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    resources: Mapped[Any] = mapped_column(JSONB())
    status: Mapped[str] = mapped_column(Text())
    error: Mapped[str | None] = mapped_column(Text())
    failed_position: Mapped[str | None] = mapped_column(Text())
    failed_event: Mapped[str | None] = mapped_column(Text())
    failed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    skipped: Mapped[Any] = mapped_column(JSONB())
