"""A table of the operator's that takes answers: one row for each job and row key, however often written."""

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import Any

from psycopg2 import sql
from psycopg2.extras import execute_values

from training_data.sql_rows import connect, table_name, understood
from training_data.sql_settings import SqlTarget

PARAM = "output_target"
ROWS_AT_ONCE = 500  # in a transaction
KEY = ("job_id", "row_key")


def check_target(target: SqlTarget) -> None:
    """See that answers can be written, without writing any.

    Raises:
        Unavailable: its database does not answer.
        InvalidInput: the table is not there or lacks a column, its role may not write to it, or no unique
            index is over job and row key.
    """
    with closing(connect(target, "target", PARAM)) as connection, understood(target, "target", PARAM):
        with connection.cursor() as cursor:
            nothing = sql.SQL(", ").join([sql.NULL] * len(target.columns))
            # It is planned, and its rights are looked at; nothing is run.
            cursor.execute(
                sql.SQL("EXPLAIN {}").format(_insert(target, sql.SQL("VALUES ({})").format(nothing)))
            )
        connection.rollback()


def write_rows(target: SqlTarget, rows: Iterable[dict[str, Any]]) -> int:
    """Write answers, each over the one that the same job and key have already.

    Returns:
        how many.
    Raises:
        Unavailable, InvalidInput: as for `check_target`.
    """
    written, waiting = 0, iter(rows)
    statement = _insert(target, sql.SQL("VALUES %s"))
    with closing(connect(target, "target", PARAM)) as connection, understood(target, "target", PARAM):
        while some := list(islice(waiting, ROWS_AT_ONCE)):
            values = [[row.get(name) for name in target.columns] for row in some]
            with connection, connection.cursor() as cursor:
                execute_values(cursor, statement, values, page_size=ROWS_AT_ONCE)
            written += len(some)
    return written


def _insert(target: SqlTarget, values: sql.Composable) -> sql.Composed:
    names = {field: sql.Identifier(column) for field, column in target.columns.items()}
    changed = [name for field, name in names.items() if field not in KEY]
    return sql.SQL("INSERT INTO {} ({}) {} ON CONFLICT ({}) DO UPDATE SET {}").format(
        table_name(target.table),
        sql.SQL(", ").join(names.values()),
        values,
        sql.SQL(", ").join(names[field] for field in KEY),
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in changed),
    )
