"""Idempotency keys, the outbox, leases, and the key that page tokens are signed with."""

import sqlalchemy as sa
from alembic import op

revision = "hk_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create hybridkit's own tables."""
    op.create_table(
        "hk_keys",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("results", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name="hk_keys_pkey"),
    )
    op.create_index("hk_keys_expires_at", "hk_keys", ["expires_at"])
    op.create_table(
        "hk_outbox",
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("parked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("sequence", name="hk_outbox_pkey"),
        sa.UniqueConstraint("event_id", name="hk_outbox_event_id_key"),
    )
    op.create_index(
        "hk_outbox_waiting",
        "hk_outbox",
        ["sequence"],
        postgresql_where=sa.text("published_at IS NULL AND parked_at IS NULL"),
    )
    op.create_index(
        "hk_outbox_parked",
        "hk_outbox",
        ["sequence"],
        postgresql_where=sa.text("parked_at IS NOT NULL"),
    )
    op.create_index(
        "hk_outbox_published_at",
        "hk_outbox",
        ["published_at"],
        postgresql_where=sa.text("published_at IS NOT NULL"),
    )
    op.create_table(
        "hk_leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="hk_leases_pkey"),
    )
    op.create_table(
        "hk_secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="hk_secrets_pkey"),
    )
    # Made by the database (244 bits of its strong generator), so that a script of these statements tells no secret.
    op.execute(
        "INSERT INTO hk_secrets (name, value) VALUES ('page_token',"
        " sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())))"
    )


def downgrade() -> None:
    """Drop hybridkit's own tables, with every event that waits in the outbox."""
    for name in ("hk_secrets", "hk_leases", "hk_outbox", "hk_keys"):
        op.drop_table(name)
