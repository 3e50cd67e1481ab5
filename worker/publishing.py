"""From a job's results to a model's new version: rows that are written with the job's success or never."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import Job, Model, ModelFile, ModelVersion, Step
from db.queries.aliases import give_aliases
from db.queries.jobs import add_event
from db.queries.models import get_model
from db.queries.runtime import runtime_seconds
from db.sources import trains_adapter
from db.states import JobKind

# Kinds of job that leave a whole model, and the step that does.
MADE_WHOLE = {JobKind.PULL: "pull", JobKind.QUANTIZE: "quantize"}
# Kinds of job that are estimated: by which step, and the one that takes the memory.
ESTIMATED = {JobKind.FINE_TUNE: ("prepare", "train"), JobKind.QUANTIZE: ("quantize", "quantize")}
# What is kept of weights that are stored quantised.
OF_QUANTIZED = ("stored", "quantized_from", "calibration", "bytes", "bytes_before")


def lock_model(session: Session, project_id: str, name: str) -> Model:
    """Lock the model by that name, which is made if need be. Comes before any lock of a job or a step."""
    row = insert(Model).values(id=new_id("model"), project_id=project_id, name=name)
    session.execute(row.on_conflict_do_nothing(index_elements=[Model.project_id, Model.name]))
    return get_model(session, project_id, name, lock=True)


def publish_version(session: Session, job: Job, steps: Sequence[Step]) -> dict[str, Any]:
    """Make what the publish step served the model's newest version, and let its name answer with it.

    Returns:
        the job's result.
    """
    by_name = {step.name: step for step in steps}
    published = by_name["publish"].result or {}
    model = lock_model(session, job.project_id, published["model"])
    numbers = select(func.coalesce(func.max(ModelVersion.number), 0)).where(ModelVersion.model_id == model.id)
    version = ModelVersion(
        id=new_id("version"),
        model_id=model.id,
        number=session.scalars(numbers).one() + 1,
        job_id=job.id,
        checkpoint_id=job.params.get("checkpoint"),
        base_model=job.base["name"] if job.base else None,
        weights=_weights(job, by_name),
        details=_details(job, by_name, published),
        prompting=_prompting(job, by_name),
    )
    figures = {row["quantization"]: row for row in (by_name["verify"].result or {}).get("files", [])}
    for position, file in enumerate(published["files"]):
        version.files.append(
            ModelFile(
                position=position,
                quantization=file["quantization"],
                backend=file["backend"],
                backend_name=file["backend_name"],
                bytes=file["bytes"],
                sha256=file["sha256"],
                verification=_verification(figures.get(file["quantization"]), file),
            )
        )
    session.add(version)
    session.flush()
    model.current_version = version
    session.flush()
    aliases = give_aliases(session, job, version) if job.kind == JobKind.FINE_TUNE else []
    return {
        "model": model.name,
        "version": version.number,
        **({"aliases": aliases} if aliases else {}),
        "quantizations": [file["quantization"] for file in published["files"]],
        "backend": published["files"][0]["backend"] if published["files"] else None,
        "context_length": published.get("context_length"),
        **compared(session, job, by_name),
        **{name: version.details[name] for name in ("stored", "measured") if version.details.get(name)},
    }


def compared(session: Session, job: Job, steps: dict[str, Step]) -> dict[str, Any]:
    """What the job was estimated to take beside what it took, told and for its result."""
    if job.kind not in ESTIMATED:
        return {}
    estimating, main = (steps[name].result or {} for name in ESTIMATED[JobKind(job.kind)])
    told, peak = estimating.get("estimate"), main.get("peak_memory_bytes")
    if not told or not peak:
        return {}
    foretold, seconds = told["foretold"], runtime_seconds(session, job.id)
    add_event(
        session,
        job.id,
        f"It took {seconds:.0f} s, {seconds / foretold['seconds']:.2f} times what was estimated, and at most "
        f"{peak / 1e9:.2f} GB of memory, {peak / foretold['peak_bytes']:.2f} times.",
    )
    return {
        "estimate": {
            "seconds": foretold["seconds"],
            "took_seconds": round(seconds, 1),
            "peak_memory_bytes": foretold["peak_bytes"],
            "took_peak_memory_bytes": peak,
        }
    }


def _verification(figures: dict[str, Any] | None, file: dict[str, Any]) -> dict[str, Any] | None:
    """A file's figures, with those of the server that answers with it now."""
    if figures is None or "live" not in file:
        return figures
    return {**figures, "live": file["live"]}


def _weights(job: Job, steps: dict[str, Step]) -> str | None:
    """A model of which all weights were trained, or that was pulled whole or quantised, keeps them for others
    to start from; a fine-tune otherwise keeps its adapter."""
    if job.kind in MADE_WHOLE:
        made = steps[MADE_WHOLE[JobKind(job.kind)]]
        folder = (made.result or {}).get("folder")
        return f"jobs/{job.id}/{made.name}/{made.succeeded_attempt}/{folder}" if folder else None
    if job.kind not in (JobKind.PRETRAIN, JobKind.FINE_TUNE) or trains_adapter(job):
        return None
    train = steps["train"]
    return f"jobs/{job.id}/{train.name}/{train.succeeded_attempt}/model"


def _prompting(job: Job, steps: dict[str, Step]) -> dict[str, Any] | None:
    """The stops of a chat template that a pulled model did not bring, and so need not have learnt."""
    stops = (steps["pull"].result or {}).get("stops") if job.kind == JobKind.PULL else None
    return {"parameters": {"stop": stops}} if stops else None


def _details(job: Job, steps: dict[str, Step], published: dict[str, Any]) -> dict[str, Any]:
    exported = steps[MADE_WHOLE.get(JobKind(job.kind), "export")].result or {}
    verified = steps["verify"].result or {}
    taken = {file["quantization"] for file in published["files"]}
    return {
        "kind": job.kind,
        "context_length": published.get("context_length"),
        "architecture": exported.get("architecture"),
        "train": steps["train"].result if "train" in steps else None,
        "source": exported.get("source"),
        "imatrix": published["files"][0].get("imatrix") if published["files"] else None,
        "published_as": job.params.get("publish"),
        "bases": {file["quantization"]: file["base"] for file in published["files"] if file.get("base")},
        **{name: exported[name] for name in OF_QUANTIZED if name in exported},
        **({"measured": verified["measured"]} if "measured" in verified else {}),
        # What `auto` has measured and not taken.
        "passed_over": [row for row in verified.get("files", []) if row["quantization"] not in taken],
    }
