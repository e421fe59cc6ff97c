"""Runs migrations on the connection that the service hands over, in its transaction."""

from alembic import context

from lossguard_service.store.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations with: lossguard db upgrade --database URL")
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False)
context.run_migrations()
