"""The statements of a search: built and compiled once, run by the driver, the planner told what not to try.

Building and compiling a statement takes SQLAlchemy longer than answering it takes Postgres. The driver puts
the values into its text, so that the planner sees them: a partial index is of use only to whom it is shown
that the condition holds, which a prepared statement's parameters do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import ColumnElement, Select, Text, bindparam, cast
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.orm import Session

DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]


class Statements:
    """Runs statements in a session's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._untried: Sequence[str] = ()

    def run(
        self,
        statement: str | Select[Any],
        values: Mapping[str, Any],
        *,
        untried: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> Sequence[Sequence[Any]]:
        """All rows of a statement; of one that is compiled, with a single message to the server.

        Args:
            untried: the planner's ways that it is not to try, until the next statement.
            settings: of the server, until the transaction ends.
        """
        told = self._told(untried, settings or {})
        connection = self._session.connection()
        if isinstance(statement, str):
            return connection.exec_driver_sql(told + statement, dict(values)).all()
        if told:
            connection.exec_driver_sql(told)
        return self._session.execute(statement, dict(values)).all()

    def let_planner_choose(self) -> None:
        """Take back what the last statement's `untried` said."""
        if told := self._told((), {}):
            self._session.connection().exec_driver_sql(told)

    def _told(self, untried: Sequence[str], settings: Mapping[str, str]) -> str:
        again = [name for name in self._untried if name not in untried]
        now = [name for name in untried if name not in self._untried]
        self._untried = untried
        told = {**dict.fromkeys(again, "on"), **dict.fromkeys(now, "off"), **settings}
        return "".join(f"SET LOCAL {name} = {value}; " for name, value in told.items())


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
