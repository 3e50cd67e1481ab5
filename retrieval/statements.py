"""The statements of a search: built once, planned once a connection, and run by the driver.

Building and compiling a statement takes SQLAlchemy longer than answering it takes Postgres, and of that
planning is a third. What decides on the plan stands in a prepared statement's text: a partial index is only
of use where the planner sees that its condition holds.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from psycopg2.extensions import AsIs
from sqlalchemy import ColumnElement, Connection, CursorResult, Select, Text, bindparam, cast
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]
PREPARED = "prepared_statements"
PREPARED_MOST = 32  # on a connection: the plan of each takes some 50 kB of the server
# SQLSTATEs of a name that the server does not have, or has already.
NOT_PREPARED, PREPARED_ALREADY = "26000", "42P05"

Values = Mapping[str, Any]


class Statements:
    """Runs statements in a session's transaction, and tells the planner what not to try.

    `untried` are ways of the planner's, until the next statement; `settings` are the server's, until the
    transaction ends.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._untried: Sequence[str] = ()

    def run(
        self,
        statement: str | Select[Any],
        values: Values,
        *,
        untried: Sequence[str] = (),
        settings: Values | None = None,
    ) -> Sequence[Sequence[Any]]:
        """All rows of a statement, compiled or not."""
        told = self._told(untried, settings or {})
        connection = self._session.connection()
        if isinstance(statement, str):
            return connection.exec_driver_sql(told + statement, dict(values)).all()
        if told:
            connection.exec_driver_sql(told)
        return self._session.execute(statement, dict(values)).all()

    def run_prepared(
        self,
        statement: str,
        fixed: Values,
        values: Values,
        *,
        untried: Sequence[str] = (),
        settings: Values | None = None,
    ) -> Sequence[Sequence[Any]]:
        """All rows of a compiled statement, which is prepared anew for other `fixed` values."""
        connection = self._session.connection()
        name = _prepared(connection, statement, fixed, list(values))
        given = ", ".join(f"%({value})s" for value in values)
        execute = f"EXECUTE {name} ({given})"
        told = self._told(untried, settings or {})
        rows = _unless(NOT_PREPARED, connection, execute, values, first=told)
        if rows is None:
            _prepare(connection, name, statement, fixed, list(values))
            rows = connection.exec_driver_sql(execute, dict(values))
        return rows.all()

    def let_planner_choose(self) -> None:
        """Take back what the last statement's `untried` said."""
        if told := self._told((), {}):
            self._session.connection().exec_driver_sql(told)

    def _told(self, untried: Sequence[str], settings: Values) -> str:
        again = [name for name in self._untried if name not in untried]
        now = [name for name in untried if name not in self._untried]
        self._untried = untried
        told = {**dict.fromkeys(again, "on"), **dict.fromkeys(now, "off"), **settings}
        return "".join(f"SET LOCAL {name} = {value}; " for name, value in told.items())


def _prepared(connection: Connection, statement: str, fixed: Values, given: Sequence[str]) -> str:
    """The name by which the connection's server has the statement. It outlives transactions.

    Behind a proxy that gives each transaction another of its connections, that server may lack it, or have it
    from somebody else: so a name stands for one text everywhere.
    """
    names: dict[tuple[str, str], str] = connection.info.setdefault(PREPARED, {})
    key = (statement, str(fixed))
    if key not in names:
        if len(names) >= PREPARED_MOST:
            _unless(NOT_PREPARED, connection, f"DEALLOCATE {names.pop(next(iter(names)))}", {})
        name = f"search_{sha256(repr((key, given)).encode()).hexdigest()[:32]}"
        _prepare(connection, name, statement, fixed, given)
        names[key] = name
    else:
        names[key] = names.pop(key)  # the one that was not used for longest comes first
    return names[key]


def _prepare(connection: Connection, name: str, statement: str, fixed: Values, given: Sequence[str]) -> None:
    places = {value: AsIs(f"${number}") for number, value in enumerate(given, 1)}
    _unless(PREPARED_ALREADY, connection, f"PREPARE {name} AS {statement}", {**fixed, **places})


def _unless(
    sqlstate: str, connection: Connection, statement: str, values: Values, *, first: str = ""
) -> CursorResult[Any] | None:
    """What a statement gives; None where it fails with `sqlstate`, and the transaction goes on.

    Args:
        first: statements that stay done in any case.
    """
    try:
        # In one request, since each costs a way to the server and back.
        return connection.exec_driver_sql(f"{first}SAVEPOINT prepared; {statement}", dict(values))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != sqlstate:
            raise
    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT prepared")
    return None


def compiled(statement: Select[Any]) -> str:
    """The text that the driver takes."""
    return str(statement.compile(dialect=DIALECT))


def given_vector(dimensions: int, name: str = "vector") -> ColumnElement[Any]:
    """A vector that is given as `written` writes it."""
    return cast(bindparam(name, type_=Text), HALFVEC(dimensions))


def written(vector: Sequence[float]) -> str:
    """A vector as Postgres reads it, to more digits than half precision keeps."""
    # Three times as fast as joining `repr`, and four times as pgvector's own.
    return f"[{','.join(['%.6g'] * len(vector))}]" % tuple(vector)
