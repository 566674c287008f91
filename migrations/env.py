"""Alembic's entry. `kms.database.migrate` hands over a connection; there is no configuration file."""

from alembic import context

from kms.database.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
