"""Users.

Made by `hybridkit.dataservice.write_revision` from `tables.py`, then read and named by a person.
"""

import sqlalchemy as sa
from alembic import op

revision = "users_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("language", sa.String(), server_default=sa.text("'en'"), nullable=False),
        sa.Column("telegram_id", sa.BigInteger(), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("date_trunc('milliseconds', now())"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("date_trunc('milliseconds', now())"),
            nullable=False,
        ),
        sa.Column(
            "incarnation",
            sa.BigInteger(),
            server_default=sa.text("(random() * 4611686018427387903)::bigint"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email"),
    )
    op.create_index(op.f("ix_users_telegram_id"), "users", ["telegram_id"], unique=False)


def downgrade() -> None:
    """Drop it, with every user in it."""
    op.drop_index(op.f("ix_users_telegram_id"), table_name="users")
    op.drop_table("users")
