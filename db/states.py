"""The states of jobs and steps, what each means, and each legal move.

The same moves are enforced by a trigger in the database (see `migrations/`), which is built from these
tables; `db.queries.states.move` is the only function that makes one.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class JobStatus(StrEnum):
    QUEUED = "queued"  # accepted; no step of it has started since it was last queued
    RUNNING = "running"  # a step of it has been claimed
    PAUSING = "pausing"  # to be put aside; its running step has been asked to save what it has and stop
    PAUSED = "paused"  # put aside by its owner; nothing of it runs
    CANCELLING = "cancelling"  # asked to stop; a process of it may still be ending, or have to write answers
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    PENDING = "pending"  # waits for the step before it, or for another job
    QUEUED = "queued"  # may be claimed
    RUNNING = "running"  # an attempt holds its lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    LOST = "lost"  # worker, host or process died: tried again up to max_attempts
    REFUSED = "refused"  # the input cannot work: never tried again
    EXHAUSTED = "exhausted"  # memory, the disk or the job's time ran out
    RELEASED = "released"  # drained, paused or cancelled: not counted


# The code of the error of an attempt whose worker is gone.
WORKER_LOST = "worker_lost"

JOB_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {
            JobStatus.RUNNING,
            JobStatus.PAUSED,
            JobStatus.CANCELLING,
            JobStatus.CANCELLED,
            JobStatus.FAILED,
        }
    ),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLING,
            JobStatus.CANCELLED,
            JobStatus.PAUSING,
            JobStatus.PAUSED,
        }
    ),
    # running: resumed before its step had stopped; succeeded, failed: that was how the step ended
    JobStatus.PAUSING: frozenset(
        {
            JobStatus.PAUSED,
            JobStatus.RUNNING,
            JobStatus.CANCELLING,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
        }
    ),
    # failed: the job that it waited for has made nothing
    JobStatus.PAUSED: frozenset(
        {JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.CANCELLED, JobStatus.FAILED}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}

STEP_MOVES: dict[StepStatus, frozenset[StepStatus]] = {
    StepStatus.PENDING: frozenset({StepStatus.QUEUED, StepStatus.CANCELLED, StepStatus.FAILED}),
    StepStatus.QUEUED: frozenset({StepStatus.RUNNING, StepStatus.CANCELLED, StepStatus.PENDING}),
    # back to queued: its attempt was lost or released and another may take it
    StepStatus.RUNNING: frozenset(
        {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.QUEUED}
    ),
    StepStatus.SUCCEEDED: frozenset(),
    StepStatus.FAILED: frozenset({StepStatus.PENDING, StepStatus.QUEUED}),
    StepStatus.CANCELLED: frozenset({StepStatus.PENDING, StepStatus.QUEUED}),
}

ENDED_JOB: frozenset[JobStatus] = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class JobKind(StrEnum):
    FINE_TUNE = "fine_tune"
    PRETRAIN = "pretrain"
    EXPORT = "export"
    INGEST = "ingest"
    PULL = "pull"
    PUSH = "push"
    PREDICT = "predict"
    BATCH = "batch"
    EVALUATE = "evaluate"
    INSPECT = "inspect"
    ESTIMATE = "estimate"
    ESTIMATE_QUANTIZE = "estimate_quantize"
    QUANTIZE = "quantize"


class Queue(StrEnum):
    """Queues go by how long their work takes, so that none mixes seconds with hours."""

    TRAIN = "train"
    GPU = "gpu"
    CPU = "cpu"
    IO = "io"
    BULK = "bulk"
    ASK = "ask"  # for hours perhaps, and most of it is waiting for somebody else's answers
    HOOKS = "hooks"


# What they ask a model is kept row by row, also of a job that is cancelled.
ASKING_KINDS: frozenset[str] = frozenset({JobKind.PREDICT, JobKind.BATCH})

# Their steps hold the device of a worker that has one, one step at a time.
DEVICE_QUEUES: frozenset[str] = frozenset({Queue.GPU, Queue.TRAIN})

STEPS: dict[JobKind, tuple[tuple[str, Queue], ...]] = {
    JobKind.FINE_TUNE: (
        ("prepare", Queue.CPU),
        ("train", Queue.TRAIN),
        ("export", Queue.CPU),
        ("verify", Queue.GPU),
        ("publish", Queue.IO),
    ),
    JobKind.PRETRAIN: (
        ("train", Queue.TRAIN),
        ("export", Queue.CPU),
        ("verify", Queue.GPU),
        ("publish", Queue.IO),
    ),
    JobKind.EXPORT: (("export", Queue.CPU), ("verify", Queue.GPU), ("publish", Queue.IO)),
    JobKind.PULL: (("pull", Queue.BULK), ("verify", Queue.GPU), ("publish", Queue.IO)),
    JobKind.PUSH: (("push", Queue.BULK),),
    JobKind.EVALUATE: (("evaluate", Queue.GPU),),
    # Both ask a model for each row of a file; they differ in what a row is, and what is made of the answers.
    JobKind.PREDICT: (("read", Queue.IO), ("ask", Queue.ASK), ("write", Queue.IO)),
    JobKind.BATCH: (("read", Queue.IO), ("ask", Queue.ASK), ("write", Queue.IO)),
    JobKind.INSPECT: (("inspect", Queue.CPU),),
    JobKind.ESTIMATE: (("estimate", Queue.CPU),),
    JobKind.ESTIMATE_QUANTIZE: (("estimate", Queue.CPU),),
    JobKind.QUANTIZE: (("quantize", Queue.TRAIN), ("verify", Queue.GPU), ("publish", Queue.IO)),
    # An upload does not wait for a training: only a large ingest is embedded on `gpu`, if LATHE_EMBED_ON_GPU
    # says so (the `extract` step knows how large it is).
    JobKind.INGEST: (("extract", Queue.CPU), ("embed", Queue.BULK), ("index", Queue.BULK)),
}


def steps_of(kind: JobKind, params: Mapping[str, Any]) -> tuple[tuple[str, Queue], ...]:
    """A job's steps with their queues. A reward model judges answers and writes none: nothing is exported."""
    steps = STEPS[kind]
    if kind == JobKind.FINE_TUNE and params.get("method") == "reward":
        return steps[:2]
    return steps


class DocumentStatus(StrEnum):
    """How far a document's ingest is. `cancelled` is never stored: it is said of one whose job has ended
    without it."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def how_ended(status: str) -> str:
    """An ended job's state as the end of a sentence: has succeeded, has failed, is cancelled."""
    return "is cancelled" if status == JobStatus.CANCELLED else f"has {status}"
