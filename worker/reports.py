"""What a running step says, and how it becomes rows."""

from dataclasses import dataclass, field

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import Attempt, Checkpoint, Step
from db.queries.jobs import add_event
from db.storable import storable
from worker.claim import Claim
from worker.step import Message
from worker.step_process import LAST_WORDS

PROGRESS = ("done", "total", "eta_seconds", "unit", "failed")


@dataclass
class Reports:
    """Messages of one attempt that are not in SQL yet, and those that are kept for its end."""

    waiting: list[Message] = field(default_factory=list)
    artifacts: dict[str, Message] = field(default_factory=dict)  # by name
    documents: list[Message] = field(default_factory=list)  # each is written in a transaction of its own
    last_word: Message | None = None
    fallback: Message | None = None  # how to try again with less memory

    def take(self, messages: list[Message]) -> None:
        """Sort what a child sent. Only the newest progress is kept."""
        for message in map(storable, messages):
            if message["type"] in LAST_WORDS:
                self.last_word = message
            elif message["type"] == "artifact":
                self.artifacts[message["name"]] = message
            elif message["type"] == "document":
                self.documents.append(message)
            elif message["type"] == "fallback":
                self.fallback = message
            else:
                if message["type"] == "progress":
                    self.waiting = [old for old in self.waiting if old["type"] != "progress"]
                self.waiting.append(message)


def write_reports(session: Session, claim: Claim, step: Step, messages: list[Message]) -> None:
    """Write a step's messages as rows. The caller holds the fence: `step` is locked and current."""
    if not messages:
        return
    step.progressed_at = func.clock_timestamp()
    for message in messages:
        if message["type"] == "progress":
            step.progress = {key: message[key] for key in PROGRESS if key in message}
        elif message["type"] == "checkpoint":
            _write_checkpoint(session, claim, message)
        elif message["type"] == "resumed":
            session.execute(
                update(Attempt)
                .where(Attempt.step_id == claim.step_id, Attempt.number == claim.attempt)
                .values(resumed_from=message["step_number"])
            )
        elif message["type"] == "checkpoint_removed":
            path = f"jobs/{claim.marker}/{message['path']}"
            session.execute(
                delete(Checkpoint).where(Checkpoint.job_id == claim.job_id, Checkpoint.path == path)
            )
        else:
            _write_event(session, claim, message)


def _write_event(session: Session, claim: Claim, message: Message) -> None:
    metrics = message["type"] == "metrics"
    add_event(
        session,
        claim.job_id,
        "" if metrics else message["message"],
        level=message.get("level", "info"),
        type="metrics" if metrics else "message",
        step=claim.step,
        attempt=claim.attempt,
        data=message["values"] if metrics else message["data"] or None,
    )


def _write_checkpoint(session: Session, claim: Claim, message: Message) -> None:
    earlier = (
        Checkpoint.job_id == claim.job_id,
        Checkpoint.step_number == message["step_number"],
        Checkpoint.attempt < claim.attempt,
        Checkpoint.path.startswith(f"jobs/{claim.job_id}/{claim.step}/"),
    )
    path = f"jobs/{claim.marker}/{message['path']}"
    if not message["metrics"]:
        # Taken over from an earlier attempt: its row, with its id and what was measured, follows.
        newest = select(Checkpoint.id).where(*earlier).order_by(Checkpoint.attempt.desc()).limit(1)
        moved = update(Checkpoint).where(Checkpoint.id == newest.scalar_subquery())
        session.execute(moved.values(attempt=claim.attempt, path=path))
    session.execute(delete(Checkpoint).where(*earlier))
    statement = insert(Checkpoint).values(
        id=new_id("checkpoint"),
        job_id=claim.job_id,
        attempt=claim.attempt,
        step_number=message["step_number"],
        path=path,
        metrics=message["metrics"],
        bytes=message["bytes"],
    )
    # A step that registers the same checkpoint again knows more about it now.
    known = ("metrics", "path", "bytes") if message["metrics"] else ("path", "bytes")
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Checkpoint.job_id, Checkpoint.attempt, Checkpoint.step_number],
            set_={name: getattr(statement.excluded, name) for name in known},
        )
    )
