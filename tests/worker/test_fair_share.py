"""Slots are shared fairly between projects, and the line that is foretold is the one that comes about."""

import random

import pytest
from sqlalchemy import and_, select, text
from sqlalchemy.orm import Session

from db.models import Attempt, Project, Step
from db.queries.jobs import get_job
from db.queries.line import LINE
from db.states import Outcome, StepStatus
from tests.rows import add_job
from worker.claim import Claim, claim_step
from worker.endings import Ending, end_attempt

RUNNING = (
    select(Step)
    .join(Attempt, and_(Attempt.step_id == Step.id, Attempt.number == Step.attempt))
    .where(Step.status == StepStatus.RUNNING, Step.queue == "train")
    .order_by(Attempt.started_at)
)
THE_LINE = text(f"{LINE} SELECT project_id, job_id FROM line ORDER BY place")  # noqa: S608


@pytest.fixture(autouse=True)
def _projects(session: Session) -> None:
    session.add_all(Project(id=name) for name in "ABC")
    session.flush()


def submit(session: Session, projects: str, *, priority: int = 0) -> None:
    """One job for each letter, in this order."""
    for project in projects:
        add_job(session, project_id=project, priority=priority)


def work(session: Session, number: int, *, slots: int = 1) -> list[Claim]:
    """Claim `number` steps on so many slots: to free one, the oldest attempt ends."""
    claims: list[Claim] = []
    for _ in range(number):
        running = list(session.scalars(RUNNING))
        if len(running) >= slots:
            session.refresh(running[0])
            job = get_job(session, running[0].job_id, project_id=running[0].job.project_id, lock=True)
            end_attempt(session, job, job.steps[0], Ending(Outcome.DONE))
        found = claim_step(session, "train", worker="w", host="h", lease_seconds=60)
        assert found is not None
        claims.append(found)
    return claims


def served(claims: list[Claim]) -> str:
    return "".join(claim.project_id for claim in claims)


class TestOneSlot:
    def test_fifty_jobs_of_one_do_not_starve_the_one_of_another(self, session: Session) -> None:
        submit(session, "A" * 50 + "B")
        assert served(work(session, 5)) == "ABAAA"

    def test_one_that_comes_later_waits_for_a_single_step(self, session: Session) -> None:
        submit(session, "A" * 20)
        work(session, 3)
        submit(session, "B")
        assert served(work(session, 2)) == "BA"

    def test_three_take_turns_until_one_has_nothing_left(self, session: Session) -> None:
        submit(session, "AAAAABBBC")
        assert served(work(session, 9)) == "ABCABABAA"

    def test_who_was_served_the_longest_ago_is_next(self, session: Session) -> None:
        submit(session, "ABC")
        work(session, 3)
        submit(session, "CCBBAA")
        assert served(work(session, 6)) == "ABCABC"

    def test_priority_goes_before_the_turn(self, session: Session) -> None:
        submit(session, "AABB")
        submit(session, "AAA", priority=5)
        assert served(work(session, 7)) == "AAA" + "BABA"


class TestSeveralSlots:
    def test_each_project_gets_its_part_of_them(self, session: Session) -> None:
        submit(session, "A" * 10 + "B" * 10)
        assert served(work(session, 12, slots=4)) == "ABABABABABAB"

    def test_who_needs_less_leaves_the_rest(self, session: Session) -> None:
        submit(session, "A" * 10 + "B")
        assert served(work(session, 6, slots=4)) == "ABAAAA"

    def test_those_of_another_queue_are_no_part(self, session: Session) -> None:
        submit(session, "AB")
        work(session, 2)
        session.execute(text("UPDATE steps SET queue = 'cpu' WHERE status = 'running'"))
        submit(session, "BA")
        assert served(work(session, 2)) == "AB"


class TestForetold:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_line_is_what_comes_about(self, session: Session, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - reproducible on purpose
        for _ in range(dice.randint(2, 5)):
            submit(session, dice.choice("ABC") * dice.randint(1, 6))
        work(session, 1)
        foretold = [row.job_id for row in session.execute(THE_LINE, {"queue": "train", "depth": 1000})]
        assert [claim.job_id for claim in work(session, len(foretold))] == foretold

    def test_its_head_is_claimed_next_whatever_runs(self, session: Session) -> None:
        submit(session, "AAAAAABBBC")
        for slots in (1, 2, 3, 4, 5, 6):
            [head, *_] = session.execute(THE_LINE, {"queue": "train", "depth": 1000})
            [claim] = work(session, 1, slots=slots)
            assert claim.job_id == head.job_id

    def test_higher_priorities_come_first(self, session: Session) -> None:
        submit(session, "AB")
        submit(session, "BBA", priority=3)
        foretold = session.execute(THE_LINE, {"queue": "train", "depth": 1000})
        assert "".join(row.project_id for row in foretold) == "BAB" + "AB"
