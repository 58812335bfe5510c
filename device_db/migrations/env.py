"""Run by Alembic to migrate: works on the connection, in the transaction, of the store."""

from alembic import context

from bignas.device_db.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
