"""Going on from the newest checkpoint of earlier attempts that is whole."""

from collections.abc import Collection
from pathlib import Path

from worker.checkpoints import BrokenCheckpoint, number_of, take_over
from worker.step import Step


def take_newest(step: Step, root: Path) -> Path | None:
    """Take over the newest checkpoint that verifies, and tell which those are that do not.

    Args:
        root: where this attempt keeps its own checkpoints.
    Returns:
        the attempt's own copy, or None when there is none to go on from.
    """
    for checkpoint in step.input.resume_from:
        own = _taken(step, checkpoint, root)
        if own is not None:
            number = number_of(own)
            step.resumed(number)
            step.event(f"Going on from the checkpoint of step {number}.", step_number=number)
            return own
    if step.input.resume_from:
        step.event("No checkpoint is whole: starting from the beginning.", level="warn")
    return None


def take_also(step: Step, numbers: Collection[int], root: Path) -> bool:
    """Take over the checkpoints of these step numbers as well. Whether all of them are whole."""
    missing = {number for number in numbers if not (root / f"checkpoint-{number}").exists()}
    for checkpoint in step.input.resume_from:
        if number_of(checkpoint) in missing and _taken(step, checkpoint, root) is not None:
            missing.remove(number_of(checkpoint))
    return not missing


def as_seen_here(step: Step, checkpoint: Path | None) -> Path | None:
    """The checkpoint that the first process took over, on this one's disk, which may be another machine's."""
    if checkpoint is None or checkpoint.exists():
        return checkpoint
    return next(path for path in step.input.resume_from if path.name == checkpoint.name)


def tell_passed_over(step: Step, number: int, broken: BrokenCheckpoint) -> None:
    step.event(
        f"The checkpoint of step {number} is not whole and is passed over: {broken}.",
        level="warn",
        step_number=number,
    )


def _taken(step: Step, checkpoint: Path, root: Path) -> Path | None:
    number = number_of(checkpoint)
    try:
        own = take_over(checkpoint, root)
    except BrokenCheckpoint as broken:
        tell_passed_over(step, number, broken)
        return None
    step.checkpoint(number, own, {})
    return own
