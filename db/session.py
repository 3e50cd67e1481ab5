"""Connections to Postgres: one engine a process, one short transaction a piece of work."""

import json
import select as sockets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, cast

import structlog
from sqlalchemy import Engine, Table, TextClause, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

SessionFactory = sessionmaker[Session]

QUEUES_WITH_WORK = "queues_with_work"
JOBS_WITH_EVENTS = "jobs_with_events"
# Of triggers, when who answers for a model may have changed, and who may ask for a project.
DESTINATIONS_CHANGED, CALLERS_CHANGED = "destinations_changed", "callers_changed"
WAITING_ROWS = "waiting_rows"
CLOCK = "clock"
LAST_USED = "last_used"
TRUSTED_SECONDS = 30.0
TELL = text("SELECT pg_notify(:channel, job_id) FROM unnest(CAST(:job_ids AS text[])) AS job_id")
SILENCE = text("SET LOCAL idle_in_transaction_session_timeout = '10min'")

log = structlog.get_logger(__name__)


def make_engine(database_url: str, *, pool_size: int = 10, idle_seconds: float = 60) -> Engine:
    """Make the process's engine.

    Connections are checked before use, so that a restarted Postgres costs nobody an error; a statement that
    waits a minute for a lock is given up.

    Args:
        idle_seconds: a process that is silent for so long within a transaction, frozen perhaps, loses it,
            and with it the locks that others wait for.
    """
    options = f"-c lock_timeout=60s -c timezone=UTC -c idle_in_transaction_session_timeout={idle_seconds}s"
    # Compiling a search takes longer than running it.
    options += " -c jit=off"
    engine = create_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"connect_timeout": 10, "options": options},
    )
    _check_before_use(engine)
    return engine


def _check_before_use(engine: Engine) -> None:
    """Replace a connection that the server has closed by a new one.

    The server is asked after `TRUSTED_SECONDS` of silence, as one is that went without a word. Before, a look
    at the socket does: there is nothing to read on an idle one, unless the server says that it goes.
    """

    def check(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        idle = time.monotonic() - record.info.get(LAST_USED, time.monotonic())
        try:
            if idle > TRUSTED_SECONDS or _has_to_be_read(connection):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error

    def note_use(connection: object, record: ConnectionPoolEntry) -> None:
        record.info[LAST_USED] = time.monotonic()

    event.listen(engine, "checkout", check)
    event.listen(engine, "checkin", note_use)


def _has_to_be_read(connection: Any) -> bool:
    # Not select(), which takes no more than 1,024 files; a thousand watchers are as many sockets.
    socket = sockets.poll()
    socket.register(connection.fileno(), sockets.POLLIN)
    return bool(socket.poll(0))


def make_session_factory(engine: Engine) -> SessionFactory:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(factory: SessionFactory) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back by any exception.

    Who listens for a job's events is told of them afterwards.
    """
    with factory() as session:
        with session.begin():
            yield session
        _tell_listeners(session)


@contextmanager
def autocommitting(factory: SessionFactory) -> Iterator[Session]:
    """A session of which each statement is a transaction of its own, which saves BEGIN and COMMIT.

    For what reads. What was committed meanwhile, its next statement sees, as within a transaction.
    """
    with factory() as session:
        # SQLAlchemy's own way to say so takes as long as what it saves.
        driver: Any = session.connection().connection.driver_connection
        driver.autocommit = True
        try:
            yield session
        finally:
            if not driver.closed:
                driver.autocommit = False


def allow_silence(session: Session) -> None:
    """Let this transaction be silent for long, as one is that removes or copies large folders.

    Nobody may have to wait for what it holds.
    """
    session.execute(SILENCE)


def _tell_listeners(session: Session) -> None:
    """Notify of the events that have just been committed.

    In a transaction of its own, which has nothing to flush: one that notifies holds a lock of the whole
    server while it commits, and 32 connections that wrote events under it came to a sixth of the speed.
    A word that is lost is made up for by `db.listener`'s hearers.
    """
    job_ids = session.info.pop(JOBS_WITH_EVENTS, None)
    if not job_ids:
        return
    try:
        with session.begin():
            session.execute(TELL, {"channel": JOBS_WITH_EVENTS, "job_ids": sorted(job_ids)})
    except SQLAlchemyError as error:
        log.warning("listeners_not_told", error=str(error))


def note_events(session: Session, job_id: str) -> None:
    """Remember that this transaction writes events of a job, of which listeners are told after commit."""
    session.info.setdefault(JOBS_WITH_EVENTS, set()).add(job_id)


def clock(session: Session) -> datetime:
    """The database's time, read once a transaction."""
    read_in, now = session.info.get(CLOCK, (None, None))
    if now is None or read_in is not session.get_transaction():
        now = session.scalars(select(func.clock_timestamp())).one()
        session.info[CLOCK] = (session.get_transaction(), now)
    time: datetime = now
    return time


def insert_rows(session: Session, model: type[DeclarativeBase], rows: list[dict[str, Any]]) -> None:
    """Insert rows of the same columns without the ORM's bookkeeping, which costs several times the CPU.

    Inside `inserting_together` they wait for others of their table.

    Args:
        rows: by the columns' names; what JSON holds, and times. The model's own defaults are not filled in.
    """
    waiting = session.info.get(WAITING_ROWS)
    if waiting is None:
        _insert(session, model, rows)
    else:
        waiting.setdefault(model, []).extend(rows)


def _insert(session: Session, model: type[DeclarativeBase], rows: list[dict[str, Any]]) -> None:
    statement = _insert_all(cast(Table, model.__table__), tuple(rows[0]))
    session.execute(statement, {"rows": json.dumps(rows, default=datetime.isoformat)})


@cache
def _insert_all(table: Table, columns: tuple[str, ...]) -> TextClause:
    """Takes the rows as one value: a parameter for each column of each costs the driver twice the time."""
    names = ", ".join(columns)
    read = f"SELECT {names} FROM json_populate_recordset(CAST(NULL AS {table.name}), :rows)"  # noqa: S608
    return text(f"INSERT INTO {table.name} ({names}) {read}")


@contextmanager
def inserting_together(session: Session) -> Iterator[None]:
    """Within the block, gather the rows of `insert_rows`, for one statement a table.

    They are inserted before any other statement of the session, and at the end of the block.
    """

    def insert_waiting(*_: object) -> None:
        waiting, session.info[WAITING_ROWS] = session.info[WAITING_ROWS], {}
        for model, rows in waiting.items():
            _insert(session, model, rows)

    session.info[WAITING_ROWS] = {}
    moments = ("do_orm_execute", "before_flush")
    for moment in moments:
        event.listen(session, moment, insert_waiting)
    try:
        yield
        insert_waiting()
    finally:
        for moment in moments:
            event.remove(session, moment, insert_waiting)
        del session.info[WAITING_ROWS]


def note_work(session: Session, queue: str) -> None:
    """Remember that this transaction puts work on `queue`; a `db.doorbell.Doorbell` rings after commit."""
    session.info.setdefault(QUEUES_WITH_WORK, set()).add(queue)


@contextmanager
def unless_away() -> Iterator[None]:
    """Leave the block without an error where the database is away for the moment, and log that."""
    try:
        yield
    except DBAPIError as error:
        if not is_passing(error):
            raise
        log.warning("database_away", error=str(error.orig))


def is_passing(error: DBAPIError) -> bool:
    """Whether a statement failed for a reason that passes: a server that restarts, a lock, a deadlock."""
    return isinstance(error, (OperationalError, InterfaceError))
