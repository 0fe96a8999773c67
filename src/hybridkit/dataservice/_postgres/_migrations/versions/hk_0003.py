"""The table of sagas, empty where a service has none."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "hk_0003"
down_revision = "hk_0002"
branch_labels = None
depends_on = None

NOW = "date_trunc('milliseconds', now())"
INCARNATION = "(random() * 4611686018427387903)::bigint"


def upgrade() -> None:
    """Create the table and its indexes."""
    op.create_table(
        "hk_sagas",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("definition", sa.BigInteger(), nullable=False),
        sa.Column("started_definition", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("entry", sa.BigInteger(), nullable=False),
        sa.Column("wake_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("timer_id", sa.Uuid(), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("data", JSONB(), nullable=False),
        sa.Column("sent", JSONB(), nullable=False),
        sa.Column("undo", JSONB(), nullable=False),
        sa.Column("history", JSONB(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("visited", ARRAY(sa.Text()), nullable=False),
        sa.Column("notes", JSONB(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text(NOW), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text(NOW), nullable=False),
        sa.Column("incarnation", sa.BigInteger(), server_default=sa.text(INCARNATION), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("hk_sagas_live", "hk_sagas", ["saga", "status", "state", "updated_at"])
    op.create_index(
        "hk_sagas_wake_at",
        "hk_sagas",
        ["wake_at"],
        postgresql_where=sa.text("status IN ('running', 'undoing')"),
    )
    op.create_index("hk_sagas_error", "hk_sagas", ["saga"], postgresql_where=sa.text("error IS NOT NULL"))


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("hk_sagas")
