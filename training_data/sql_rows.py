"""Rows of a SQL source, as they come: by a cursor of the server's, in a transaction that can only read."""

import datetime
import decimal
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import errors, sql

from db.errors import InvalidInput, Unavailable
from training_data.sql_settings import SqlSource, SqlTarget

CONNECT_SECONDS = 10
FETCHED_ROWS = 1000  # at once
OF_OUR_ROLE = "28"  # the class of errors of authentication
AS_TEXT = (decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)


@dataclass(frozen=True)
class SqlRows:
    columns: list[str]
    rows: Iterator[dict[str, Any]]


@contextmanager
def open_rows(source: SqlSource, *, param: str) -> Iterator[SqlRows]:
    """Begin to read a source. All of it is as it was at one moment.

    Raises:
        Unavailable: its database does not answer.
        InvalidInput: it cannot be read, or its role may do more than read.
    """
    with closing(connect(source, "source", param)) as connection, understood(source, "source", param):
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        _refuse_superuser(connection, source, param)
        with connection.cursor(name="lathe_rows") as cursor:
            cursor.itersize = FETCHED_ROWS
            cursor.execute(_statement(source))
            # What the columns are is known once the first rows are there.
            first = cursor.fetchmany(FETCHED_ROWS)
            columns = [column.name for column in cursor.description or ()]
            if len(set(columns)) != len(columns):
                raise InvalidInput(f"{param}: two columns of {source.name!r} have one name.", param=param)
            yield SqlRows(columns, _records(cursor, first, columns, param))


def _statement(source: SqlSource) -> Any:
    if source.table is None:
        return source.query
    return sql.SQL("SELECT * FROM {}").format(table_name(source.table))


def table_name(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split("."))


def _records(cursor: Any, first: list[Any], columns: list[str], param: str) -> Iterator[dict[str, Any]]:
    number, fetched = 0, first
    while fetched:
        for row in fetched:
            number += 1
            yield {name: _value(value, name, number, param) for name, value in zip(columns, row, strict=True)}
        fetched = cursor.fetchmany(FETCHED_ROWS)


def _value(value: Any, column: str, row: int, param: str) -> Any:
    if isinstance(value, (memoryview, bytes)):
        raise InvalidInput(
            f"{param}: row {row}: column {column!r} holds bytes, and no text.", param=param, code="bad_value"
        )
    return str(value) if isinstance(value, AS_TEXT) else value


def _refuse_superuser(connection: Any, source: SqlSource, param: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone()[0]:
            raise InvalidInput(
                f"{param}: the role of {source.name!r} may do anything in its database. Its operator has to "
                "give it one that only reads.",
                param=param,
                code="source_not_read_only",
            )


def connect(database: SqlSource | SqlTarget, kind: str, param: str) -> Any:
    """Connect. What goes wrong is told without address or role, which are the operator's.

    Raises:
        Unavailable: it does not answer, or refuses us.
    """
    milliseconds = int(database.statement_timeout_seconds * 1000)
    try:
        return psycopg2.connect(
            database.url.get_secret_value(),
            connect_timeout=CONNECT_SECONDS,
            application_name="lathe",
            options=f"-c statement_timeout={milliseconds} -c lock_timeout=60s",
        )
    except psycopg2.Error as error:
        refused = (error.pgcode or "").startswith(OF_OUR_ROLE) or "authentication" in str(error)
        how = "refuses the role that its operator gave" if refused else "does not answer"
    raise Unavailable(f"The {kind} {database.name!r} {how}.", param=param, code=f"{kind}_unavailable")


@contextmanager
def understood(database: SqlSource | SqlTarget, kind: str, param: str) -> Iterator[None]:
    """Turn errors of the database into ours.

    Raises:
        Unavailable: the connection broke.
        InvalidInput: the statement did.
    """
    try:
        yield
        return
    except errors.QueryCanceled:
        seconds = f"{database.statement_timeout_seconds:g} s"
        said: InvalidInput | Unavailable = InvalidInput(
            f"{param}: the {kind} {database.name!r} took longer than the {seconds} that it may "
            "(statement_timeout_seconds).",
            param=param,
            code=f"{kind}_timeout",
        )
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        code = f" ({error.pgcode})" if error.pgcode else ""
        message = f"The {kind} {database.name!r} broke off{code}."
        said = Unavailable(message, param=param, code=f"{kind}_unavailable")
    except psycopg2.Error as error:
        what = error.diag.message_primary or "its statement failed"
        said = InvalidInput(
            f"{param}: the {kind} {database.name!r} cannot be used: {what} ({error.pgcode}). Its operator "
            "has to mend it.",
            param=param,
            code=f"{kind}_broken",
        )
    raise said
