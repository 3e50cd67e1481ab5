"""What an attempt may read, put together from rows and settings when it starts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.kinds import files_of
from db.models import Attempt, Device, Job, Step
from db.queries.base_models import resolve_base_model
from db.queries.devices import find_refusing
from db.queries.files import get_file
from db.queries.finished import finished_fine_tunes, finished_quantizations
from db.queries.jobs import get_job
from db.queries.languages import text_search_configurations
from db.queries.workers import training_machines
from db.settings import Settings
from db.sources import source_folder, start_folder
from db.states import JobKind, Outcome
from db.storage import attempt_folder, prepared_folder
from serving.backends.configuration import read_backends
from serving.backends.routing import find_destination, find_embedding_destination
from training_data.deepspeed_settings import find_configuration
from training_data.ray_clusters import PARAM as CLUSTER
from training_data.ray_clusters import find_cluster
from training_data.reward_settings import find_rewards
from training_data.sql_settings import SQL_FIELDS
from worker.claim import Claim
from worker.documents import documents_to_ingest
from worker.lease import hold_fence
from worker.resumable import checkpoints_to_resume
from worker.step import Asked, BaseWeights, FileInput, StepInput, StepSettings

ASK_STEP = "ask"
TRAIN_STEP = "train"
SQL_STEPS = ("read", "write", "prepare", "inspect", "estimate")
ESTIMATING_STEPS = ("prepare", "estimate", "quantize")
REWARDING_STEPS = ("prepare", "train", "verify")
READING_STEPS = ("prepare", "estimate", "inspect")  # rows for a training
MACHINES_SEEN_SECONDS = 60.0  # a worker that restarts is still a place to train on
# The param of a kind that names the weights it starts from; an export's are known when it is submitted.
BASE_PARAM = {
    JobKind.FINE_TUNE: "base_model",
    JobKind.INSPECT: "base_model",
    JobKind.ESTIMATE: "base_model",
    JobKind.PRETRAIN: "start_from",
    JobKind.QUANTIZE: "base_model",
    JobKind.ESTIMATE_QUANTIZE: "base_model",
}
# That of the 16-bit model which a quantised base was made from.
MERGE_PARAM = "merge_base"
# Kinds of job for which files are held from the moment of their submit.
HOLDING = (JobKind.EXPORT, JobKind.PUSH, JobKind.EVALUATE)
QUANTIZING = (JobKind.QUANTIZE, JobKind.ESTIMATE_QUANTIZE)


def build_step_input(session: Session, settings: Settings, claim: Claim) -> StepInput:
    """Gather the input of a claimed attempt; the base's weights are fixed at a job's first step.

    Raises:
        InvalidInput, NotFound: what the params name is no longer there.
        LeaseLost: the attempt is no longer current.
    """
    base = _base(session, settings, claim)
    tokenizer = _tokenizer(session, settings, claim)
    job = get_job(session, claim.job_id, project_id=claim.project_id, lock=True)
    hold_fence(session, claim)
    job.base = base
    root = settings.storage_root
    earlier = _earlier_steps(job, claim)
    return StepInput(
        job_id=job.id,
        kind=job.kind,
        step=claim.step,
        attempt=claim.attempt,
        params=job.params,
        folder=attempt_folder(root, job.id, claim.step, claim.attempt),
        settings=step_settings(settings),
        step_folders={
            step.name: attempt_folder(root, job.id, step.name, step.succeeded_attempt or 0)
            for step in earlier
        },
        results={step.name: step.result or {} for step in earlier},
        files=_files(session, root, job),
        base=_weights(root, base) if base is not None else None,
        tokenizer=_weights(root, tokenizer) if tokenizer is not None else None,
        resume_from=checkpoints_to_resume(session, root, claim),
        adjustments=_adjustments(session, claim),
        configurations=text_search_configurations(session) if job.kind == JobKind.INGEST else [],
        documents=documents_to_ingest(session, claim, root, job) if job.kind == JobKind.INGEST else [],
        device=_device_names(session, claim),
        source=_source(root, job),
        start=start_folder(root, job.id) if _goes_on(job) else None,
        asked=_asked(session, settings, job) if claim.step == ASK_STEP and not claim.cancelling else None,
        databases=_databases(settings, job) if claim.step in SQL_STEPS else {},
        rewards=_rewards(settings, job) if claim.step in REWARDING_STEPS else [],
        machines=_machines(session, settings, job) if claim.step in ESTIMATING_STEPS else [],
        finished=_finished(session, job) if claim.step in ESTIMATING_STEPS else [],
        cluster=_cluster(settings, job) if claim.step == TRAIN_STEP else None,
        prepared=_prepared(settings, claim),
        deepspeed=_deepspeed(settings, job),
        chat_unloaded=find_refusing(session, settings.chat_backend) is not None,
    )


def _device_names(session: Session, claim: Claim) -> str | None:
    held = select(Device.name).where(Device.id.in_(claim.device_ids)).order_by(Device.index)
    return ", ".join(session.scalars(held)) or None if claim.device_ids else None


def _deepspeed(settings: Settings, job: Job) -> dict[str, Any] | None:
    """The operator's configuration that the job names.

    Raises:
        InvalidInput: it is there no more, or wrong.
    """
    name = job.params.get("deepspeed")
    return find_configuration(settings.deepspeed, name) if name is not None else None


def _source(root: Path, job: Job) -> Path | None:
    folder = source_folder(root, job.id)
    # A model may be quantised by what is not held for it: a file, or text that comes with Python.
    held = job.kind in HOLDING or (job.kind in QUANTIZING and folder.is_dir())
    return folder if held else None


def _goes_on(job: Job) -> bool:
    return job.kind in (JobKind.FINE_TUNE, JobKind.ESTIMATE) and job.params.get("start_from") is not None


def _prepared(settings: Settings, claim: Claim) -> Path | None:
    if claim.step not in READING_STEPS or settings.prepared_max_bytes == 0:
        return None
    return prepared_folder(settings.storage_root, claim.project_id)


def _machines(session: Session, settings: Settings, job: Job) -> list[dict[str, Any]]:
    if job.params.get(CLUSTER) is not None:
        return []  # what its machines have is not known before it trains there
    return training_machines(session, within_seconds=max(MACHINES_SEEN_SECONDS, settings.lease_seconds))


def _finished(session: Session, job: Job) -> list[dict[str, Any]]:
    return finished_quantizations(session) if job.kind in QUANTIZING else finished_fine_tunes(session)


def _cluster(settings: Settings, job: Job) -> dict[str, Any] | None:
    """The cluster that a fine-tune names.

    Raises:
        InvalidInput: it is there no more.
    """
    name = job.params.get(CLUSTER)
    if name is None:
        return None
    return find_cluster(settings.ray_clusters, name, project_id=job.project_id).model_dump(mode="json")


def _asked(session: Session, settings: Settings, job: Job) -> Asked:
    """Whom the job's rows are asked of.

    Raises:
        NotFound: there is no such model any more.
        Unavailable: nobody who has it can be asked now.
    """
    read = next(step.result or {} for step in job.steps if step.name == "read")
    configs = read_backends(settings)
    find = find_embedding_destination if read["endpoint"] == "/v1/embeddings" else find_destination
    found = find(session, job.project_id, configs, read["model"])
    seconds = job.params["finish_within_seconds"]
    return Asked(
        places=[(place.backend, place.model) for place in found.places],
        backends={place.backend: configs[place.backend].revealed() for place in found.places},
        prompting=asdict(found.prompting) if found.prompting is not None else None,
        ends_at=job.created_at.timestamp() + seconds if seconds is not None else None,
    )


def _databases(settings: Settings, job: Job) -> dict[str, dict[str, Any]]:
    """Those of the operator's SQL sources and targets that the job's params name, by param.

    Raises:
        InvalidInput: one is there no more.
    """
    found: dict[str, dict[str, Any]] = {}
    for param, find in SQL_FIELDS.items():
        name = job.params.get(param)
        if name is not None:
            found[param] = find(settings.sql, name, project_id=job.project_id, param=param).revealed()
    return found


def _rewards(settings: Settings, job: Job) -> list[dict[str, Any]]:
    """Those that the job's params name, in their order.

    Raises:
        InvalidInput: one is there no more.
    """
    names: list[str] = job.params.get("rewards") or []
    found = find_rewards(settings.rewards, names, project_id=job.project_id)
    return [each.model_dump(mode="json") for each in found]


def _adjustments(session: Session, claim: Claim) -> dict[str, int]:
    """How the step is to be done since an attempt of it ran out of memory."""
    query = (
        select(Attempt.error)
        .where(Attempt.step_id == claim.step_id, Attempt.outcome == Outcome.EXHAUSTED)
        .order_by(Attempt.number.desc())
    )
    errors = (error or {} for error in session.scalars(query))
    return next((error["adjustments"] for error in errors if error.get("adjustments")), {})


def step_settings(settings: Settings) -> StepSettings:
    return StepSettings(
        cache_dir=settings.cache_dir,
        served_models_dir=settings.served_models_dir,
        chat_backend=settings.chat_backend,
        chat_server_url=settings.chat_url,
        chat_server_key=settings.chat_server_key.get_secret_value(),
        ollama_url=settings.ollama_url,
        llama_cpp_dir=settings.llama_cpp_dir,
        llama_backend=settings.llama_backend,
        n_gpu_layers=settings.n_gpu_layers,
        context_size=settings.context_size,
        threads=settings.threads,
        train_processes=settings.train_processes,
        embedding_server_url=settings.embedding_url,
        embedding_server_key=settings.embedding_server_key.get_secret_value(),
        embedder=embedder_of(settings),
        embed_on_gpu=settings.embed_on_gpu,
        embedding_tokenizer=settings.embedding_tokenizer,
        embedding_max_tokens=settings.embedding_max_tokens,
        hub_url=settings.hub_url.rstrip("/"),
        hub_token=settings.hub_token.get_secret_value(),
        hub_cache=str(settings.hub_cache_dir) if settings.hub_cache_dir is not None else None,
        hub_offline=settings.hub_offline,
        min_top1_agreement=settings.min_top1_agreement,
        max_kl_ratio=settings.max_kl_ratio,
        auto_max_kl=settings.auto_max_kl,
        trackers=list(settings.trackers),
        tracker_project=settings.tracker_project,
        tracking_dir=settings.tracking_dir,
        eval_tasks_dir=settings.eval_tasks,
    )


def embedder_of(settings: Settings) -> Literal["auto", "server", "local"]:
    """Whose server it is, is for the user to know: another model's is not worth the trial."""
    others = settings.embedding_server_url is not None
    return "server" if settings.embedder == "auto" and others else settings.embedder


def _earlier_steps(job: Job, claim: Claim) -> list[Step]:
    position = next(step.position for step in job.steps if step.id == claim.step_id)
    return [step for step in job.steps if step.position < position]


def _files(session: Session, root: Path, job: Job) -> dict[str, FileInput]:
    files = {}
    for param, file_id in files_of(job.params).items():
        row = get_file(session, file_id, project_id=job.project_id, param=param, also_expired=True)
        files[row.id] = FileInput(path=root / row.path, filename=row.filename, bytes=row.bytes)
    return files


def _base(session: Session, settings: Settings, claim: Claim) -> dict[str, Any] | None:
    """What the job starts from: as it was fixed, or as its reference resolves now."""
    job = get_job(session, claim.job_id, project_id=claim.project_id)
    param = BASE_PARAM.get(JobKind(job.kind), "")
    reference = job.params.get(param)
    if job.base is not None or reference is None:
        return job.base
    base, merged = _resolved(session, settings, claim, param, reference), job.params.get(MERGE_PARAM)
    if merged is None:
        return base
    return {**base, MERGE_PARAM: _resolved(session, settings, claim, MERGE_PARAM, merged)}


def _tokenizer(session: Session, settings: Settings, claim: Claim) -> dict[str, Any] | None:
    """The model whose tokenizer the first step shall take, as its reference resolves now."""
    job = get_job(session, claim.job_id, project_id=claim.project_id)
    reference = job.params.get("tokenizer")
    if reference is None or _earlier_steps(job, claim):
        return None
    return _resolved(session, settings, claim, "tokenizer", reference)


def _resolved(
    session: Session, settings: Settings, claim: Claim, param: str, reference: str
) -> dict[str, Any]:
    found = resolve_base_model(session, settings, claim.project_id, reference, param=param)
    if found.location is None:
        raise InvalidInput(
            f"The weights of {reference!r} are no longer there: submit the job again to have them made.",
            param=param,
            code="model_not_found",
        )
    return {
        "name": found.name,
        "source": found.source,
        "location": found.location,
        "revision": found.revision,
    }


def _weights(root: Path, base: dict[str, Any]) -> BaseWeights:
    merged = base.get(MERGE_PARAM)
    merge_base = _weights(root, merged) if merged is not None else None
    if base["source"] == "hub":
        return BaseWeights(base["name"], "hub", base["location"], base["revision"], merge_base)
    # An absolute location, which is an operator's folder, stays as it is.
    return BaseWeights(base["name"], "folder", str(root / base["location"]), merge_base=merge_base)
