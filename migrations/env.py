"""Alembic's entry: runs the revisions on the engine that `migrations.config` was given."""

from alembic import context
from sqlalchemy import create_engine

from db.models import Base
from db.settings import load_settings

engine = context.config.attributes.get("engine") or create_engine(load_settings().require_database_url())

with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()
