"""The fence: who is not current writes nothing."""

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.queries.jobs import cancel_job
from db.queries.states import move
from db.states import JobStatus, StepStatus
from tests.rows import add_job
from worker.claim import Claim, claim_step
from worker.lease import LeaseLost, hold_fence, job_status, renew


@pytest.fixture
def claim(session: Session) -> Claim:
    add_job(session)
    found = claim_step(session, "train", worker="w", host="h", lease_seconds=15)
    assert found is not None
    return found


class TestCurrent:
    def test_writes_and_renews(self, session: Session, claim: Claim) -> None:
        step = hold_fence(session, claim)
        before = step.lease_expires_at
        status, deadline = renew(session, claim, 60)
        session.refresh(step)
        assert status == JobStatus.RUNNING
        assert deadline > claim.deadline
        assert before is not None
        assert step.lease_expires_at is not None
        assert step.lease_expires_at > before

    def test_a_heartbeat_tells_of_a_cancel(self, session: Session, claim: Claim) -> None:
        cancel_job(session, claim.job_id, project_id="default")
        assert renew(session, claim, 15)[0] == JobStatus.CANCELLING
        assert job_status(session, claim) == JobStatus.CANCELLING


class TestZombie:
    """An attempt that is no longer current, in each way that may happen."""

    @pytest.fixture(params=["lapsed", "requeued", "taken over"])
    def zombie(self, request: pytest.FixtureRequest, session: Session, claim: Claim) -> Claim:
        step = hold_fence(session, claim)
        if request.param == "lapsed":
            session.execute(text("UPDATE steps SET lease_expires_at = clock_timestamp() - interval '1 ms'"))
        else:
            move(session, step, StepStatus.QUEUED)
        if request.param == "taken over":
            assert claim_step(session, "train", worker="w2", host="h", lease_seconds=15) is not None
        return claim

    def test_writes_nothing(self, session: Session, zombie: Claim) -> None:
        with pytest.raises(LeaseLost):
            hold_fence(session, zombie)

    def test_renews_nothing(self, session: Session, zombie: Claim) -> None:
        with pytest.raises(LeaseLost):
            renew(session, zombie, 15)
