"""Snapshots and epochs of streams."""

import sqlalchemy as sa
from alembic import op

revision = "hk_0006"
down_revision = "hk_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "hk_snapshots",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("state_version", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("stream", "id", name="hk_snapshots_pkey"),
    )
    op.create_table(
        "hk_stream_epochs",
        sa.Column("stream", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables; snapshots are made anew."""
    op.drop_table("hk_stream_epochs")
    op.drop_table("hk_snapshots")
