"""The database's schema, by Alembic. `python -m migrations` brings a database up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, text

# Any fixed number; two processes that start together take turns on it.
ADVISORY_LOCK = 4_155_301


def config(engine: Engine | None = None) -> Config:
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(__file__).parent))
    alembic.set_main_option("file_template", "%%(year)d_%%(month).2d_%%(day).2d_%%(rev)s_%%(slug)s")
    alembic.attributes["engine"] = engine
    return alembic


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to `revision`, one process at a time."""
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            connection.commit()
            command.upgrade(config(engine), revision)
            # The lock is the session's: it ends with the connection.
    finally:
        engine.dispose()
