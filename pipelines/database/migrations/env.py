"""Alembic's entry point; `pipelines.database.migrate` hands over a live connection."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
