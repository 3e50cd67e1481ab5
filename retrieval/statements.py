"""The statements of a search: built once, planned once a connection, and run by the driver.

Building and compiling a statement takes SQLAlchemy longer than answering it takes Postgres, and of that
planning is a third. What decides on the plan stands in a prepared statement's text: a partial index is only
of use where the planner sees that its condition holds.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from pgvector.sqlalchemy import HALFVEC
from psycopg2.extensions import AsIs
from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, literal_column
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]
PREPARED = "prepared_statements"
PREPARED_MOST = 32  # on a connection: the plan of each takes some 50 kB of the server
# SQLSTATEs of a name that the server does not have, or has already.
NOT_PREPARED, PREPARED_ALREADY = "26000", "42P05"
# Where the text of a statement that is compiled once has what differs each time.
PLACE = "/* condition */"
CONDITION: ColumnElement[bool] = literal_column(PLACE)

Values = Mapping[str, Any]


class Condition(NamedTuple):
    """A condition in SQL, and its values, as the driver takes them."""

    sql: str
    values: dict[str, Any]


class Statements:
    """Runs statements on a session's connection, and tells the planner what not to try.

    `untried` are ways of the planner's, for one statement; `settings` are the server's, until the transaction
    ends. They come before the statement in one message, since each costs a way to the server and back.
    """

    def __init__(self, session: Session) -> None:
        self._connection = session.connection()
        # Each statement is a transaction of its own: nothing outlives it, or is lost with it.
        driver = self._connection.connection.driver_connection
        self._is_alone = driver is not None and driver.autocommit

    def run(
        self,
        statement: str,
        values: Values,
        *,
        untried: Sequence[str] = (),
        settings: Values | None = None,
    ) -> Sequence[Sequence[Any]]:
        """All rows of a compiled statement."""
        rows = self._rows(_told(untried, settings) + statement, values)
        if untried and not self._is_alone:
            self._connection.exec_driver_sql(_set(dict.fromkeys(untried, "on")))
        return rows

    def run_prepared(
        self,
        statement: str,
        fixed: Values,
        values: Values,
        *,
        untried: Sequence[str] = (),
        settings: Values | None = None,
    ) -> Sequence[Sequence[Any]]:
        """All rows of a compiled statement, which is prepared anew for other `fixed` values.

        Behind a proxy that gives each transaction another of its connections, that server may lack it, or
        have it from somebody else: so a name stands for one text everywhere. Within a longer transaction,
        which would be lost over that, it is run as it is.
        """
        if not self._is_alone:
            return self.run(statement, {**fixed, **values}, untried=untried, settings=settings)
        name, is_known = self._named(statement, fixed, list(values))
        places = {value: AsIs(f"${number}") for number, value in enumerate(values, 1)}
        given = {f"given_{name}": value for name, value in values.items()}
        told = _told(untried, settings)
        execute = f"{told}EXECUTE {name} ({', '.join(f'%({value})s' for value in given)})"
        prepare = f"PREPARE {name} AS {statement}; {execute}"
        attempts = [(execute, given), (prepare, {**fixed, **places, **given})]
        for attempt, of_attempt in attempts if is_known else reversed(attempts):
            try:
                return self._rows(attempt, of_attempt)
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", None) not in (NOT_PREPARED, PREPARED_ALREADY):
                    raise
        return self._rows(told + statement, {**fixed, **values})  # each time by another server

    def _rows(self, statement: str, values: Values) -> Sequence[Sequence[Any]]:
        return self._connection.exec_driver_sql(statement, dict(values)).all()

    def _named(self, statement: str, fixed: Values, given: Sequence[str]) -> tuple[str, bool]:
        """A statement's name, and whether it was prepared on this connection before."""
        names: dict[tuple[str, str], str] = self._connection.info.setdefault(PREPARED, {})
        key = (statement, str(fixed))
        if key in names:
            names[key] = names.pop(key)  # the one that was not used for longest comes first
            return names[key], True
        if len(names) >= PREPARED_MOST:
            self._forget(names.pop(next(iter(names))))
        names[key] = f"search_{sha256(repr((key, given)).encode()).hexdigest()[:32]}"
        return names[key], False

    def _forget(self, name: str) -> None:
        try:
            self._connection.exec_driver_sql(f"DEALLOCATE {name}")
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != NOT_PREPARED:
                raise


def _told(untried: Sequence[str], settings: Values | None) -> str:
    return _set({**dict.fromkeys(untried, "off"), **(settings or {})})


def _set(settings: Values) -> str:
    return "".join(f"SET LOCAL {name} = {value}; " for name, value in settings.items())


def compiled(statement: Select[Any]) -> str:
    """The text that the driver takes."""
    return str(statement.compile(dialect=DIALECT))


def condition_of(where: ColumnElement[bool]) -> Condition:
    """A condition to be put at the `CONDITION` of a statement's text."""
    compiler = where.compile(dialect=DIALECT)
    state = compiler.construct_expanded_state()
    processors = {
        name: bind.type.dialect_impl(DIALECT).bind_processor(DIALECT)
        for bind, name in compiler.bind_names.items()
    }
    values = dict(state.parameters)
    for name, processor in {**processors, **state.processors}.items():
        if processor is not None and name in values:
            values[name] = processor(values[name])
    return Condition(f"({state.statement})", values)


def given_vector(dimensions: int, name: str = "vector") -> ColumnElement[Any]:
    """A vector that is given as `written` writes it."""
    return cast(bindparam(name, type_=Text), HALFVEC(dimensions))


def written(vector: Sequence[float]) -> str:
    """A vector as Postgres reads it, to more digits than half precision keeps."""
    # Three times as fast as joining `repr`, and four times as pgvector's own.
    return f"[{','.join(['%.6g'] * len(vector))}]" % tuple(vector)
