"""What an export or a push is made from, held by hard links in that job's own folder.

The links are made when the job is submitted: afterwards the training may let the checkpoint go for newer
ones, its attempt may be given up, its job deleted. Files of a checkpoint or of a finished attempt never
change, so a link is as good as a copy and costs nothing. What lies where, and how the job
checks it before it begins, stands in `source_files.py`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.disk import DISK_FULL, link_or_copy
from db.errors import Conflict, Exhausted
from db.ids import new_id
from db.models import Checkpoint, File, Job, Step
from db.source_files import ATTEMPT_MANIFEST, CHECKPOINT_MANIFEST, DESCRIPTION
from db.states import JobKind, StepStatus
from db.storage import attempt_folder, file_path, job_folder

# Of a checkpoint, an adapter or a whole model; the optimiser's state is for who trains on.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
MODEL_FILES = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json)")


@dataclass(frozen=True)
class Held:
    """A file to be held: where it is, how it is called in the source, and what it was when written."""

    path: Path
    name: str
    bytes: int
    sha256: str


@dataclass
class Source:
    """What is exported. `about` is kept with the published version."""

    about: dict[str, Any]
    files: list[Held] = field(default_factory=list)


def source_folder(root: Path, job_id: str) -> Path:
    return job_folder(root, job_id) / "source"


def start_folder(root: Path, job_id: str) -> Path:
    """What a fine-tune that goes on from an earlier one begins with."""
    return job_folder(root, job_id) / "start"


def of_checkpoint(root: Path, job: Job, checkpoint: Checkpoint, text: File | None) -> Source:
    """The files that an export of `checkpoint` needs.

    Args:
        text: of a model from scratch, the file it is trained on.
    Raises:
        Conflict: they are no longer there, or not what an export can be made from.
    """
    _check_that_it_writes(job)
    folder = root / checkpoint.path
    try:
        listed = _listed(folder / CHECKPOINT_MANIFEST)
        source = Source(_about(job, checkpoint))
        for name in _weights_of(job, listed):
            source.files.append(_held(folder, listed, name, f"trained/{name}"))
        if job.kind == JobKind.PRETRAIN:
            source.files += _tokenizer(folder, listed)
        source.files += _proof(root, job, text, tokenizer=True)
    except (FileNotFoundError, KeyError) as error:
        raise gone(f"checkpoint {checkpoint.id}") from error
    return source


def of_job(root: Path, job: Job, text: File | None) -> Source:
    """The files that an export of what `job` has trained needs.

    Raises:
        Conflict: its training is not done, or they are no longer there.
    """
    _check_that_it_writes(job)
    train = next((step for step in job.steps if step.name == "train"), None)
    if train is None or train.status != StepStatus.SUCCEEDED or train.succeeded_attempt is None:
        raise Conflict(
            f"The training of job {job.id} is not done: export one of its checkpoints, or wait.",
            code="training_not_done",
        )
    folder = attempt_folder(root, job.id, train.name, train.succeeded_attempt)
    inner = "adapter" if trains_adapter(job) else "model"
    try:
        listed = _listed(folder / ATTEMPT_MANIFEST)
        source = Source(_about(job, None))
        for name in listed:
            if name.startswith(f"{inner}/"):
                source.files.append(_held(folder, listed, name, f"trained/{name.removeprefix(inner + '/')}"))
        if not source.files:
            raise KeyError(inner)
        source.files += _proof(root, job, text, tokenizer=False)
    except (FileNotFoundError, KeyError) as error:
        raise gone(f"job {job.id}") from error
    return source


def _check_that_it_writes(job: Job) -> None:
    if job.params.get("method") == "reward":
        raise Conflict(
            f"Job {job.id} has trained a reward model, which judges answers and writes none: nothing can be "
            "made of it here but what its artifacts are used for.",
            code="reward_model",
        )


def trains_adapter(job: Job) -> bool:
    """Whether a training leaves an adapter to its base; else it leaves a whole model."""
    return job.kind == JobKind.FINE_TUNE and job.params.get("tuning") != "full"


def _weights_of(job: Job, listed: dict[str, Any]) -> Iterable[str]:
    if trains_adapter(job):
        return ADAPTER_FILES
    found = [name for name in listed if MODEL_FILES.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in found):
        raise KeyError("model.safetensors")
    return found


def of_weights(root: Path, weights: str) -> Source:
    """The files of a model that lies in a finished attempt's folder, whole.

    Args:
        weights: its folder, relative to the root.
    Raises:
        Conflict: they are no longer there.
    """
    attempt, _, inner = weights.rpartition("/")
    try:
        listed = _listed(root / attempt / ATTEMPT_MANIFEST)
    except FileNotFoundError as error:
        raise gone("the model") from error
    names = [name for name in listed if name.startswith(f"{inner}/")]
    held = (
        _held(root / attempt, listed, name, f"trained/{name.removeprefix(inner + '/')}") for name in names
    )
    return Source({}, list(held))


def held_by(root: Path, job_id: str) -> Source | None:
    """What another job holds; None once it has let go."""
    folder = source_folder(root, job_id)
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
    except FileNotFoundError:
        return None
    files = described["files"].items()
    return Source(
        described["about"],
        [Held(folder / name, name, entry["bytes"], entry["sha256"]) for name, entry in files],
    )


def hold(source: Source, folder: Path) -> None:
    """Link all files of `source` into `folder`, and list them. What an error leaves there is the caller's.

    Raises:
        Conflict: one has gone meanwhile.
        Exhausted: the disk is full.
    """
    try:
        for held in source.files:
            target = folder / held.name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(held.path, target)
            if target.stat().st_size != held.bytes:
                raise FileNotFoundError(held.path)
        listed = {held.name: {"bytes": held.bytes, "sha256": held.sha256} for held in source.files}
        (folder / DESCRIPTION).write_text(json.dumps({"about": source.about, "files": listed}, indent=1))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise gone("what was chosen") from error
        if error.errno in DISK_FULL:
            raise Exhausted(
                "The disk of the data folder is full: free some space.", code="disk_full"
            ) from None
        raise


def link_as_file(root: Path, path: str) -> str:
    """Let what lies at `path`, relative to the root, be a file as well; its row is the caller's to insert.

    Returns:
        the id of the file.
    """
    file_id = new_id("file")
    place = root / file_path(file_id)
    place.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(root / path, place)
    return file_id


def _about(job: Job, checkpoint: Checkpoint | None) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "adapter": trains_adapter(job),
        "job": job.id,
        "checkpoint": checkpoint.id if checkpoint else None,
        "step_number": checkpoint.step_number if checkpoint else None,
        "metrics": checkpoint.metrics if checkpoint else None,
        "base_weights": next((_base_weights(step) for step in job.steps if step.name == "prepare"), None),
    }


def _base_weights(prepare: Step) -> str | None:
    """The hash of the base that the training began with."""
    found = (prepare.result or {}).get("base_weights")
    return str(found) if found else None


def _proof(root: Path, job: Job, text: File | None, *, tokenizer: bool) -> Iterator[Held]:
    """What the exported model is verified by; for an adapter's checkpoint, the tokenizer that it lacks."""
    if job.kind == JobKind.PRETRAIN:
        if text is not None:
            yield Held(root / text.path, "text", text.bytes, text.sha256)
        return
    prepare: Step = next(step for step in job.steps if step.name == "prepare")
    folder = attempt_folder(root, job.id, prepare.name, prepare.succeeded_attempt or 0)
    listed = _listed(folder / ATTEMPT_MANIFEST)
    if tokenizer:
        yield from _tokenizer(folder, listed)
    for name in listed:
        if name.endswith(".jsonl") and "/" not in name:
            yield _held(folder, listed, name, f"rows/{name}")


def _tokenizer(folder: Path, listed: dict[str, Any]) -> Iterator[Held]:
    for name in listed:
        if name.startswith("tokenizer/"):
            yield _held(folder, listed, name, f"trained/{name.removeprefix('tokenizer/')}")


def _held(folder: Path, listed: dict[str, Any], name: str, called: str) -> Held:
    return Held(folder / name, called, listed[name]["bytes"], listed[name]["sha256"])


def _listed(manifest: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return files


def gone(what: str) -> Conflict:
    return Conflict(
        f"The files of {what} are no longer all there. A training keeps its newest checkpoints "
        "(keep_checkpoints): GET /v1/jobs/{id}/checkpoints lists them.",
        code="source_gone",
    )
