"""Statements that a connection's server keeps, and vectors as they are written into them."""

import random

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from retrieval.statements import PREPARED, PREPARED_MOST, Statements, written

ADD = "SELECT %(one)s + %(other)s::int"
KEPT = "SELECT name FROM pg_prepared_statements ORDER BY prepare_time, name"


def kept(session: Session) -> list[str]:
    return list(session.scalars(text(KEPT)))


def add(session: Session, one: int, other: int) -> int:
    [row] = Statements(session).run_prepared(ADD, {"one": one}, {"other": other})
    return int(row[0])


class TestPrepared:
    def test_is_planned_once_and_outlives_its_transaction(self, engine: Engine) -> None:
        with Session(engine) as session:
            before = kept(session)
            assert add(session, 1, 2) == 3
            [name] = set(kept(session)) - set(before)
            session.rollback()
            assert add(session, 1, 5) == 6
            assert set(kept(session)) - set(before) == {name}

    def test_others_are_prepared_for_other_fixed_values(self, engine: Engine) -> None:
        with Session(engine) as session:
            assert (add(session, 10, 1), add(session, 20, 1)) == (11, 21)

    def test_those_not_used_for_long_are_forgotten(self, engine: Engine) -> None:
        with Session(engine) as session:
            for one in range(2 * PREPARED_MOST):
                add(session, 0, 0)
                assert add(session, one, 1) == one + 1
            names = kept(session)
            assert len(names) == PREPARED_MOST
            assert add(session, 0, 7) == 7
            assert kept(session) == names


class TestBehindAProxy:
    """Whose every transaction may go to another server's connection."""

    def test_is_prepared_again_where_it_is_not(self, engine: Engine) -> None:
        with Session(engine) as session:
            statements = Statements(session)
            assert add(session, 3, 4) == 7
            session.execute(text("CREATE TEMPORARY TABLE written (one int) ON COMMIT DROP"))
            session.execute(text("DEALLOCATE ALL"))
            fixed, given, untried = {"one": 3}, {"other": 5}, ["enable_sort"]
            [row] = statements.run_prepared(ADD, fixed, given, untried=untried)
            assert row[0] == 8
            assert session.scalars(text("SHOW enable_sort")).one() == "off"
            # The transaction was not lost over it.
            assert session.scalars(text("SELECT count(*) FROM written")).one() == 0

    def test_takes_what_another_has_prepared(self, engine: Engine) -> None:
        with Session(engine) as session:
            assert add(session, 5, 5) == 10
            before = kept(session)
            session.connection().info.pop(PREPARED)
            assert add(session, 5, 6) == 11
            assert kept(session) == before

    def test_forgets_what_is_gone_already(self, engine: Engine) -> None:
        with Session(engine) as session:
            for one in range(PREPARED_MOST):
                add(session, one, 0)
            session.execute(text("DEALLOCATE ALL"))
            assert add(session, -1, 2) == 1


class TestPlanner:
    def test_is_told_until_the_next_statement(self, engine: Engine) -> None:
        with Session(engine) as session:
            statements = Statements(session)
            show = "SELECT current_setting('enable_sort'), current_setting('enable_seqscan')"
            assert tuple(statements.run(show, {}, untried=["enable_sort"])[0]) == ("off", "on")
            assert tuple(statements.run(show, {}, untried=["enable_seqscan"])[0]) == ("on", "off")
            statements.let_planner_choose()
            assert tuple(session.execute(text(show)).one()) == ("on", "on")


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
