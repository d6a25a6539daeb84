"""Alembic runs the migrations through this; the connection comes from `database.upgrade`."""

from alembic import context

from outrider_cloud.fleet.registry.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
