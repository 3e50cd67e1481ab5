"""Connections as they come out of the pool, and sessions whose statements are committed each at once."""

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

import db.session
from db.session import SessionFactory, autocommitting, transaction

PID = text("SELECT pg_backend_pid()")
LAST = text("SELECT query FROM pg_stat_activity WHERE pid = :pid")
CUT = text("SELECT pg_terminate_backend(:pid, 10000)")  # once it is gone


@pytest.fixture
def watcher(database_url: str) -> Iterator[Connection]:
    """Another's connection to the same database."""
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def used(engine: Engine) -> int:
    """The process that serves the pool's only connection."""
    with engine.connect() as connection:
        return int(connection.scalars(PID).one())


class TestPool:
    def test_a_connection_that_was_cut_is_replaced(self, engine: Engine, watcher: Connection) -> None:
        pid = used(engine)
        assert used(engine) == pid
        assert watcher.scalars(CUT, {"pid": pid}).one()
        assert used(engine) != pid

    def test_one_that_was_just_used_is_not_asked(self, engine: Engine, watcher: Connection) -> None:
        pid = used(engine)
        with engine.connect():
            assert watcher.scalars(LAST, {"pid": pid}).one() == "ROLLBACK"

    def test_one_that_was_silent_for_long_is(
        self, engine: Engine, watcher: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(db.session, "TRUSTED_SECONDS", -1.0)
        pid = used(engine)
        with engine.connect():
            assert watcher.scalars(LAST, {"pid": pid}).one() == "SELECT 1"


class TestAutocommitting:
    def test_commits_each_statement_at_once(
        self, session_factory: SessionFactory, watcher: Connection
    ) -> None:
        with contextlib.suppress(ZeroDivisionError), autocommitting(session_factory) as session:
            session.execute(text("CREATE TABLE written (one int)"))
            session.execute(text("INSERT INTO written VALUES (1)"))
            assert watcher.scalars(text("SELECT one FROM written")).all() == [1]
            raise ZeroDivisionError
        with contextlib.suppress(ZeroDivisionError), transaction(session_factory) as session:
            session.execute(text("INSERT INTO written VALUES (2)"))
            raise ZeroDivisionError
        assert watcher.scalars(text("SELECT one FROM written")).all() == [1]
