"""Alembic's entry: runs on the connection that `stokerd.store.migrate` hands over."""

from alembic import context
from sqlmodel import SQLModel

from stokerd.store import tables

assert tables
connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
connection.commit()
