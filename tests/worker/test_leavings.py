"""How many checkpoints of a step stay, over all its attempts: folders and rows."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from db.models import Attempt, Checkpoint, Step
from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.states import Outcome
from db.storage import attempt_folder
from tests.rows import add_job
from worker.checkpoints import STATE_FILE, take_over, write_checkpoint
from worker.claim import Claim, claim_step
from worker.endings import Ending, end_attempt
from worker.lease import hold_fence
from worker.leavings import remove_leavings
from worker.reports import write_reports

KILLED = Ending(Outcome.LOST, signal=9, error={"code": "step_failed", "message": "It was killed."})
RELEASED = Ending(Outcome.RELEASED, exit_code=0)
REFUSED = Ending(Outcome.REFUSED, error={"code": "invalid_input", "message": "It diverged."})


class Training:
    """A train step whose attempts write and take over checkpoints of real folders, as steps do."""

    def __init__(self, factory: SessionFactory, root: Path, keep: int) -> None:
        self.factory, self.root = factory, root
        with transaction(factory) as session:
            params = {"name": "m", "keep_checkpoints": keep}
            job = add_job(session, params=params)
            self.job_id = job.id

    def begin(self) -> None:
        with transaction(self.factory) as session:
            session.connection().exec_driver_sql("UPDATE steps SET not_before = NULL")
            claim = claim_step(session, "train", worker="w", host="h", lease_seconds=60)
        assert claim is not None
        self.claim: Claim = claim

    def folder(self, attempt: int) -> Path:
        return attempt_folder(self.root, self.job_id, "train", attempt)

    def write(self, *numbers: int, best: int = 0) -> None:
        for number in numbers:

            def write(staging: Path, number: int = number) -> None:
                folder = staging / f"checkpoint-{number}"
                folder.mkdir()
                (folder / STATE_FILE).write_text(json.dumps({"best_step": best}))

            write_checkpoint(self.folder(self.claim.attempt) / "checkpoints", number, write)
            self._report(number, {"loss": float(number)})

    def take(self, attempt: int, number: int, *, resume: bool = True) -> None:
        source = self.folder(attempt) / "checkpoints" / f"checkpoint-{number}"
        take_over(source, self.folder(self.claim.attempt) / "checkpoints")
        self._report(number, {}, resume=resume)

    def _report(self, number: int, metrics: dict[str, float], *, resume: bool = False) -> None:
        path = f"checkpoints/checkpoint-{number}"
        messages = [{"type": "resumed", "step_number": number}] if resume else []
        saved = {"type": "checkpoint", "step_number": number, "path": path, "metrics": metrics, "bytes": 1}
        with transaction(self.factory) as session:
            write_reports(session, self.claim, hold_fence(session, self.claim), [*messages, saved])

    def end(self, ending: Ending) -> None:
        with transaction(self.factory) as session:
            job = get_job(session, self.job_id, project_id="default", lock=True)
            end_attempt(session, job, hold_fence(session, self.claim), ending)

    def tidied(self) -> list[str]:
        """What lies there once leavings are removed, as `attempt/number`; the rows say the same."""
        remove_leavings(self.factory, self.root, Step.job_id == self.job_id)
        folders = sorted(self.folder(1).parent.glob("*/checkpoints/checkpoint-*"))
        with self.factory() as session:
            rows = list(session.scalars(select(Checkpoint.path).where(Checkpoint.job_id == self.job_id)))
        assert sorted(rows) == [str(path.relative_to(self.root)) for path in folders]
        return [f"{path.parents[1].name}/{path.name.removeprefix('checkpoint-')}" for path in folders]


@pytest.fixture
def training(session_factory: SessionFactory, tmp_path: Path) -> Training:
    return Training(session_factory, tmp_path, keep=2)


class TestHowManyStay:
    def test_the_newest_of_all_attempts_and_each_number_once(self, training: Training) -> None:
        training.begin()
        training.write(10, 20, 30)
        training.end(KILLED)
        assert training.tidied() == ["1/20", "1/30"]
        training.begin()
        assert training.tidied() == ["1/20", "1/30"]
        training.take(1, 30)
        assert training.tidied() == ["1/20", "2/30"]
        training.write(40)
        assert training.tidied() == ["2/30", "2/40"]
        assert not training.folder(1).exists()
        training.end(RELEASED)
        assert training.tidied() == ["2/30", "2/40"]

    def test_nothing_goes_while_an_attempt_looks_for_one_to_go_on_from(self, training: Training) -> None:
        training.begin()
        training.write(10, 20, 30)
        training.end(KILLED)
        training.begin()
        assert training.tidied() == ["1/10", "1/20", "1/30"]

    def test_a_running_attempt_is_left_to_rotate_its_own(self, training: Training) -> None:
        training.begin()
        training.write(10)
        training.end(KILLED)
        training.begin()
        training.take(1, 10)
        training.write(20, 30, 40)
        assert training.tidied() == ["2/10", "2/20", "2/30", "2/40"]

    def test_the_best_stays_besides(self, training: Training) -> None:
        training.begin()
        training.write(10, 20, 30, 40, best=10)
        training.end(KILLED)
        assert training.tidied() == ["1/10", "1/30", "1/40"]
        training.begin()
        training.take(1, 40)
        assert training.tidied() == ["1/10", "1/30", "2/40"]
        training.take(1, 10, resume=False)
        assert training.tidied() == ["1/30", "2/10", "2/40"]

    def test_one_that_was_passed_over_makes_room(self, training: Training) -> None:
        """An attempt that found 30 broken has gone on from 20: what it wrote counts, and 30 no more."""
        training.begin()
        training.write(20, 30)
        training.end(KILLED)
        training.begin()
        training.take(1, 20)
        training.write(25)
        training.end(KILLED)
        assert training.tidied() == ["2/20", "2/25"]

    def test_what_begins_anew_outlives_what_was_broken(self, training: Training) -> None:
        training.begin()
        training.write(20, 30)
        training.end(KILLED)
        training.begin()
        training.write(10)
        training.end(KILLED)
        assert training.tidied() == ["2/10"]

    def test_a_refused_attempt_keeps_what_it_took_over(self, training: Training) -> None:
        training.begin()
        training.write(20, 30)
        training.end(KILLED)
        training.begin()
        training.take(1, 30)
        training.tidied()
        training.end(REFUSED)
        assert training.tidied() == ["1/20", "2/30"]

    def test_keeping_one_keeps_one(self, session_factory: SessionFactory, tmp_path: Path) -> None:
        training = Training(session_factory, tmp_path, keep=1)
        training.begin()
        training.write(10, 20)
        training.end(KILLED)
        training.begin()
        training.take(1, 20)
        training.end(KILLED)
        assert training.tidied() == ["2/20"]


class TestRow:
    def test_of_one_that_is_taken_over_keeps_its_id_and_what_was_measured(self, training: Training) -> None:
        training.begin()
        training.write(30)
        with training.factory() as session:
            before = session.scalars(select(Checkpoint)).one()
        training.end(KILLED)
        training.begin()
        training.take(1, 30)
        with training.factory() as session:
            after = session.scalars(select(Checkpoint)).one()
            assert session.scalars(select(Attempt.resumed_from).order_by(Attempt.number)).all() == [None, 30]
        assert (after.id, after.attempt, after.metrics) == (before.id, 2, {"loss": 30.0})
