"""Partitions of the outbox, each with its own owner; rows that wait for their time; traces.

Every statement may run again, and none holds up requests: columns are added without a default, indexes are made beside
the writers. That takes them out of the one transaction that a revision is elsewhere.
"""

from alembic import op

revision = "hk_0002"
down_revision = "hk_0001"
branch_labels = None
depends_on = None

PARTITION = "hashtextextended(COALESCE(key, event_id::text), 0) & 15"
WAITING = "published_at IS NULL AND parked_at IS NULL"


def upgrade() -> None:
    """Add the columns and the leases, then the indexes."""
    op.execute(
        "ALTER TABLE hk_outbox ADD COLUMN IF NOT EXISTS not_before timestamptz,"
        " ADD COLUMN IF NOT EXISTS traceparent text, ADD COLUMN IF NOT EXISTS tracestate text"
    )
    op.execute("DELETE FROM hk_leases WHERE name = 'relay'")
    op.execute(
        "INSERT INTO hk_leases (name, owner, fence, expires_at)"
        " SELECT 'relay.partition.' || to_char(number, 'FM00'), '', 0, now() FROM generate_series(0, 15) AS number"
        " ON CONFLICT DO NOTHING"
    )
    with op.get_context().autocommit_block():
        _replace_index("hk_outbox_ready", f"(({PARTITION}), sequence)", f"{WAITING} AND not_before IS NULL")
        _replace_index("hk_outbox_later", "(not_before)", f"{WAITING} AND not_before IS NOT NULL")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS hk_outbox_waiting")


def downgrade() -> None:
    """Drop indexes, leases and columns; rows that wait for their time are published at once."""
    with op.get_context().autocommit_block():
        _replace_index("hk_outbox_waiting", "(sequence)", WAITING)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS hk_outbox_ready")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS hk_outbox_later")
    op.execute("DELETE FROM hk_leases WHERE name LIKE 'relay%'")
    op.execute(
        "ALTER TABLE hk_outbox DROP COLUMN IF EXISTS not_before, DROP COLUMN IF EXISTS traceparent,"
        " DROP COLUMN IF EXISTS tracestate"
    )


def _replace_index(name: str, columns: str, where: str) -> None:
    """Create an index anew, as one that an interrupted run has left is not valid."""
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.execute(f"CREATE INDEX CONCURRENTLY {name} ON hk_outbox {columns} WHERE {where}")
