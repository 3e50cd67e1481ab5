"""Which checkpoints an attempt is offered, after earlier ones of its step have ended in this or that way."""

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Attempt, Checkpoint, Event
from db.states import Outcome
from db.storage import attempt_folder
from tests.rows import add_job
from worker.claim import Claim, claim_step
from worker.endings import Ending, end_attempt
from worker.lease import hold_fence
from worker.reports import write_reports
from worker.resumable import checkpoints_to_resume

CRASH = Ending(Outcome.LOST, exit_code=1, error={"code": "step_failed", "message": "It crashed."})
SEGFAULT = Ending(Outcome.LOST, signal=11, error={"code": "step_failed", "message": "It fell."})
STALL = Ending(Outcome.LOST, signal=9, error={"code": "step_stalled", "message": "It hung."})
KILLED = Ending(Outcome.LOST, signal=9, error={"code": "step_failed", "message": "It was killed."})
WORKER_LOST = Ending(Outcome.LOST, error={"code": "worker_lost", "message": "The worker is gone."})
NO_MEMORY = Ending(
    Outcome.EXHAUSTED, exit_code=3, error={"message": "No memory.", "adjustments": {"batch_size": 1}}
)
RELEASED = Ending(Outcome.RELEASED, exit_code=0)


class Training:
    """A train step whose attempts come and go."""

    def __init__(self, session: Session, root: Path) -> None:
        self.session, self.root = session, root
        self.job = add_job(session, max_attempts=99)

    def claim(self) -> Claim:
        self.session.connection().exec_driver_sql("UPDATE steps SET not_before = NULL")
        found = claim_step(self.session, "train", worker="w", host="h", lease_seconds=15)
        assert found is not None
        return found

    def attempt(self, ending: Ending, *, resumed: int | None = None, wrote: tuple[int, ...] = ()) -> None:
        """One attempt: what it went on from, which checkpoints lie in its folder then, how it ended."""
        claim = self.claim()
        folder = attempt_folder(self.root, claim.job_id, claim.step, claim.attempt)
        for number in (*wrote, *((resumed,) if resumed else ())):
            (folder / "checkpoints" / f"checkpoint-{number}").mkdir(parents=True)
        step = hold_fence(self.session, claim)
        query = select(Attempt).where(Attempt.step_id == step.id, Attempt.number == claim.attempt)
        self.session.scalars(query).one().resumed_from = resumed
        end_attempt(self.session, self.job, step, ending)

    def offered(self) -> list[str]:
        """`attempt/number` of each checkpoint that the next attempt may go on from."""
        found = checkpoints_to_resume(self.session, self.root, self.claim())
        return [f"{path.parents[1].name}/{path.name.removeprefix('checkpoint-')}" for path in found]

    def warnings(self) -> list[str]:
        query = select(Event.message).where(Event.level == "warn", Event.message.contains("checkpoint"))
        return list(self.session.scalars(query.order_by(Event.id)))


@pytest.fixture
def training(session: Session, tmp_path: Path) -> Training:
    return Training(session, tmp_path)


class TestOrder:
    def test_the_newest_first_and_of_two_alike_the_later_attempts(self, training: Training) -> None:
        training.attempt(CRASH, wrote=(8, 10))
        training.attempt(CRASH, resumed=10, wrote=(12,))
        assert training.offered() == ["2/12", "2/10", "1/10", "1/8"]
        assert training.warnings() == []


class TestTakenOver:
    def test_a_checkpoint_keeps_what_was_measured_at_it(self, training: Training) -> None:
        written = {"type": "checkpoint", "step_number": 10, "path": "checkpoints/checkpoint-10", "bytes": 1}
        for metrics in ({"loss": 2.5}, {}):
            claim = training.claim()
            step = hold_fence(training.session, claim)
            write_reports(training.session, claim, step, [{**written, "metrics": metrics}])
            end_attempt(training.session, training.job, step, RELEASED)
        rows = training.session.scalars(select(Checkpoint).order_by(Checkpoint.attempt)).all()
        assert [(row.attempt, row.metrics) for row in rows] == [(2, {"loss": 2.5})]


class TestPassedOver:
    @pytest.mark.parametrize("ending", [CRASH, SEGFAULT, STALL])
    def test_what_an_attempt_went_on_from_and_crashed(self, training: Training, ending: Ending) -> None:
        training.attempt(KILLED, wrote=(2, 4))
        training.attempt(ending, resumed=4)
        assert training.offered() == ["1/2"]
        assert training.warnings() == [
            "The checkpoint of step 4 is passed over: attempt 2 went on from it and crashed before it wrote "
            "a newer one."
        ]

    @pytest.mark.parametrize("ending", [KILLED, WORKER_LOST, NO_MEMORY, RELEASED])
    def test_not_what_others_ended(self, training: Training, ending: Ending) -> None:
        training.attempt(KILLED, wrote=(2, 4))
        training.attempt(ending, resumed=4)
        assert training.offered() == ["2/4", "1/4", "1/2"]

    def test_not_one_that_led_to_a_newer_one(self, training: Training) -> None:
        training.attempt(KILLED, wrote=(4,))
        training.attempt(CRASH, resumed=4, wrote=(6,))
        assert training.offered() == ["2/6", "2/4", "1/4"]

    def test_one_of_that_step_written_anew_is_offered(self, training: Training) -> None:
        training.attempt(KILLED, wrote=(2, 4))
        training.attempt(CRASH, resumed=4)
        training.attempt(KILLED, resumed=2, wrote=(4,))
        assert training.offered() == ["3/4", "3/2", "1/2"]

    def test_when_none_is_left_it_starts_from_the_beginning(self, training: Training) -> None:
        training.attempt(KILLED, wrote=(4,))
        training.attempt(CRASH, resumed=4)
        assert training.offered() == []
        assert training.warnings()[-1] == "No other checkpoint is left: starting from the beginning."

    def test_not_one_whose_newer_one_a_later_attempt_took_over(self, training: Training) -> None:
        """The attempt's own of step 6 has gone then."""
        training.attempt(KILLED, wrote=(4,))
        training.attempt(CRASH, resumed=4)
        training.attempt(KILLED, resumed=6)
        assert training.offered() == ["3/6", "2/4", "1/4"]
