"""Statements that a connection's server keeps, and vectors as they are written into them."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Engine, and_, event, select, text
from sqlalchemy.orm import Session

from db.models import Document
from db.queries.collections import create_collection
from db.session import SessionFactory, autocommitting
from retrieval.filters import condition
from retrieval.statements import PLACE, PREPARED, PREPARED_MOST, Statements, condition_of, written
from tests.retrieval.vectors import load_vectors

ADD = "SELECT %(one)s + %(other)s::int"
FITTING = "SELECT id FROM documents WHERE /* condition */"
KEPT = "SELECT name FROM pg_prepared_statements ORDER BY prepare_time, name"
SHOW = "SELECT current_setting('enable_sort'), current_setting('enable_seqscan') WHERE %(yes)s::bool"


def kept(session: Session) -> list[str]:
    return list(session.scalars(text(KEPT)))


def add(session: Session, one: int, other: int) -> int:
    [row] = Statements(session).run_prepared(ADD, {"one": one}, {"other": other})
    return int(row[0])


@pytest.fixture
def alone(session_factory: SessionFactory) -> Iterator[Session]:
    """A session whose every statement is a transaction of its own, as a search has it."""
    with autocommitting(session_factory) as session:
        yield session


class TestPrepared:
    def test_is_planned_once(self, alone: Session) -> None:
        before = kept(alone)
        assert add(alone, 1, 2) == 3
        [name] = set(kept(alone)) - set(before)
        assert add(alone, 1, 5) == 6
        assert set(kept(alone)) - set(before) == {name}

    def test_others_are_prepared_for_other_fixed_values(self, alone: Session) -> None:
        assert (add(alone, 10, 1), add(alone, 20, 1)) == (11, 21)

    def test_those_not_used_for_long_are_forgotten(self, alone: Session) -> None:
        for one in range(2 * PREPARED_MOST):
            add(alone, 0, 0)
            assert add(alone, one, 1) == one + 1
        names = kept(alone)
        assert len(names) == PREPARED_MOST
        assert add(alone, 0, 7) == 7
        assert kept(alone) == names

    def test_is_not_in_a_longer_transaction(self, engine: Engine) -> None:
        with Session(engine) as session:
            assert add(session, 1, 2) == 3
            assert kept(session) == []


class TestBehindAProxy:
    """Whose every transaction may go to another server's connection."""

    def test_is_prepared_again_where_it_is_not(self, alone: Session) -> None:
        assert add(alone, 3, 4) == 7
        alone.execute(text("DEALLOCATE ALL"))
        assert add(alone, 3, 5) == 8
        assert len(kept(alone)) == 1

    def test_takes_what_another_has_prepared(self, alone: Session) -> None:
        assert add(alone, 5, 5) == 10
        before = kept(alone)
        alone.connection().info.pop(PREPARED)
        assert add(alone, 5, 6) == 11
        assert kept(alone) == before

    def test_is_run_as_it_is_where_each_attempt_meets_another(self, alone: Session, engine: Engine) -> None:
        """The first lacks it; the second, where it is to be prepared, has it."""
        assert add(alone, 7, 1) == 8
        [name] = kept(alone)
        alone.execute(text("DEALLOCATE ALL"))
        sent: list[str] = []

        def go_elsewhere(_: object, cursor: Any, statement: str, *__: object) -> None:
            sent.append(statement.split(maxsplit=1)[0])
            if sent == ["EXECUTE", "PREPARE"]:
                cursor.execute(f"PREPARE {name} AS SELECT 1")

        event.listen(engine, "before_cursor_execute", go_elsewhere)
        assert add(alone, 7, 2) == 9
        event.remove(engine, "before_cursor_execute", go_elsewhere)
        assert sent == ["EXECUTE", "PREPARE", "SELECT"]

    def test_forgets_what_is_gone_already(self, alone: Session) -> None:
        for one in range(PREPARED_MOST):
            add(alone, one, 0)
        alone.execute(text("DEALLOCATE ALL"))
        assert add(alone, -1, 2) == 1


class TestPlanner:
    def test_is_told_for_one_statement(self, engine: Engine, alone: Session) -> None:
        with Session(engine) as within:
            for statements in Statements(alone), Statements(within):
                yes = {"yes": True}
                assert statements.run(SHOW, yes, untried=["enable_sort"]) == [("off", "on")]
                assert statements.run_prepared(SHOW, {}, yes, untried=["enable_seqscan"]) == [("on", "off")]
                assert statements.run_prepared(SHOW, {}, yes) == [("on", "on")]


class TestConditions:
    @pytest.mark.parametrize(
        "where",
        [
            condition({"type": "eq", "key": "name", "value": "a%(x)s'\"\\"}),
            condition({"type": "gt", "key": "number", "value": 1}),
            condition({"type": "in", "key": "name", "value": ["b", "c"]}),
            Document.attributes["number"].as_integer() == 2,
            and_(Document.filename.in_(["v.txt", "w.txt"]), Document.attributes["name"].as_string() == "b"),
            Document.filename.in_([]),
        ],
    )
    def test_leave_what_sqlalchemy_leaves(self, session: Session, where: ColumnElement[bool]) -> None:
        collection = create_collection(session, project_id="default", name="c")
        for number, name in enumerate(["a%(x)s'\"\\", "b", "c"], 1):
            load_vectors(session, collection, [], attributes={"name": name, "number": number})
        sql, values = condition_of(where)
        found = Statements(session).run(FITTING.replace(PLACE, sql), values)
        expected = session.scalars(select(Document.id).where(where)).all()
        assert sorted(row[0] for row in found) == sorted(expected)


class TestWritten:
    def test_keeps_what_half_precision_does(self, session: Session) -> None:
        chance = random.Random(1)  # noqa: S311 - the same at every run
        vector = [chance.gauss(0, 1) * 10 ** chance.randrange(-4, 3) for _ in range(500)]
        query = text("SELECT CAST(CAST(:vector AS halfvec) AS real[])")
        read, whole = (
            session.scalars(query, {"vector": given}).one() for given in (written(vector), str(vector))
        )
        # One that lies in the midst of two may become the other of them: half precision keeps eleven bits.
        assert read == pytest.approx(whole, rel=2**-10, abs=1e-7)
        assert sum(one != other for one, other in zip(read, whole, strict=True)) < 5
