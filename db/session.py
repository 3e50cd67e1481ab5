"""Connections to Postgres: one engine a process, one short transaction a piece of work."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

SessionFactory = sessionmaker[Session]

QUEUES_WITH_WORK = "queues_with_work"


def make_engine(database_url: str, *, pool_size: int = 10) -> Engine:
    """Make the process's engine.

    Idle connections are checked before use, so that a restarted Postgres costs nobody an error; a
    statement that waits a minute for a lock is given up.
    """
    return create_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10, "options": "-c lock_timeout=60s -c timezone=UTC"},
    )


def make_session_factory(engine: Engine) -> SessionFactory:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(factory: SessionFactory) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back by any exception."""
    with factory() as session, session.begin():
        yield session


def note_work(session: Session, queue: str) -> None:
    """Remember that this transaction puts work on `queue`; a `db.doorbell.Doorbell` rings after commit."""
    session.info.setdefault(QUEUES_WITH_WORK, set()).add(queue)
