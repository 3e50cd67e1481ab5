"""Which checkpoints of a step's earlier attempts the next one may go on from."""

from pathlib import Path
from signal import SIGKILL, SIGTERM

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Attempt
from db.states import Outcome
from db.storage import attempt_folder
from worker.checkpoints import list_checkpoints, number_of
from worker.claim import Claim, say

ENDED_FROM_OUTSIDE = (SIGKILL, SIGTERM)


def checkpoints_to_resume(session: Session, root: Path, claim: Claim) -> list[Path]:
    """The checkpoints of the step's earlier attempts, newest first; of two alike, the later attempt's.

    One that verifies may still be what crashes the training: if an attempt that went on from it crashed
    before it wrote a newer one, it is passed over, and the job's events say so.
    """
    found = sorted(
        (
            (number_of(path), attempt, path)
            for attempt in range(1, claim.attempt)
            for path in list_checkpoints(attempt_folder(root, claim.job_id, claim.step, attempt))
        ),
        reverse=True,
    )
    # Each number that an attempt stumbled over, and the last attempt that did.
    stumbled = {
        number: attempt
        for attempt, number in _crashed_after_resuming(session, claim)
        # Its newer ones may have been taken over by a later attempt, or made room for such a one's.
        if max((row[0] for row in found if row[1] >= attempt), default=0) <= number
    }
    usable = [row for row in found if row[1] > stumbled.get(row[0], 0)]
    reached = usable[0][0] if usable else 0
    for number in sorted({row[0] for row in found if row[0] > reached}, reverse=True):
        told = f"attempt {stumbled[number]} went on from it and crashed before it wrote a newer one."
        message = f"The checkpoint of step {number} is passed over: {told}"
        say(session, claim, message, level="warn", step_number=number)
    if found and not usable:
        message = "No other checkpoint is left: starting from the beginning."
        say(session, claim, message, level="warn")
    return [path for _, _, path in usable]


def _crashed_after_resuming(session: Session, claim: Claim) -> list[tuple[int, int]]:
    """The attempts that went on from a checkpoint and then fell by themselves, with its step number.

    Not those whose worker or host went away, or that somebody killed: that is no checkpoint's fault.
    """
    query = (
        select(Attempt)
        .where(
            Attempt.step_id == claim.step_id,
            Attempt.outcome == Outcome.LOST,
            Attempt.resumed_from.is_not(None),
        )
        .order_by(Attempt.number)
    )
    return [
        (attempt.number, attempt.resumed_from or 0)
        for attempt in session.scalars(query)
        if attempt.exit_code is not None
        or (attempt.signal is not None and attempt.signal not in ENDED_FROM_OUTSIDE)
        or (attempt.error or {}).get("code") == "step_stalled"
    ]
