"""Migrate by Alembic, on the connection with which `hybridkit.dataservice._postgres._schema` starts this file."""

from alembic import context

_options = context.config.attributes

context.configure(
    connection=_options["connection"],
    # Without a connection the statements are only written down.
    dialect_name="postgresql",
    literal_binds=context.is_offline_mode(),
    target_metadata=_options["metadata"],
    version_table=_options["version_table"],
    include_name=_options["include_name"],
    # One that can't run inside a transaction (`CREATE INDEX CONCURRENTLY`) then doesn't end that of the others.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
