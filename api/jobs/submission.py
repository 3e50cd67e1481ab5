"""What a job must pass before it is queued: files that exist and can be read, a base model, a free name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ValidationError

from api.jobs import asking, evaluating, exporting, pushing, quantizing, stacking
from api.jobs.asking import find_file
from api.jobs.schemas import ESTIMATED, REQUESTS, JobRequestBase
from api.quotas import admit_job
from api.unit_of_work import Unit
from api.validation import explain, refuse_unstorable
from api.vector_stores import ingesting
from api.webhooks.service import check_receiver, own_secret
from db.errors import InvalidInput
from db.models import Document, Job
from db.params.evaluate import EvaluateParams
from db.params.export import ExportParams
from db.params.fine_tune import FineTuneParams
from db.params.ingest import IngestParams
from db.params.inspect import InspectParams
from db.params.predict import BatchParams, PredictParams
from db.params.pretrain import PretrainParams
from db.params.pull import PullParams
from db.params.push import PushParams
from db.params.quantize import QuantizeParams
from db.params.values import CHECKPOINT_ID, Params
from db.queries.base_models import BaseModel, resolve_base_model
from db.queries.ingests import assign
from db.queries.jobs import add_event, get_job, insert_job
from db.queries.models import find_model
from db.states import JobKind
from db.storable import refuse_deep
from serving.model_formats import HEAD_BYTES, kind_of
from training_data.deepspeed_settings import find_configuration
from training_data.formats import Reading, check_file, find_method, validation_reading
from training_data.ray_clusters import find_cluster
from training_data.reward_settings import find_rewards
from training_data.shapes import LEARNS_FROM, WHAT

# It names the embedding model on every surface.
RESERVED_NAMES = frozenset({"default"})


def read_request(body: dict[str, Any]) -> JobRequestBase:
    """Check a submit that was put together here as one that comes from outside is.

    Raises:
        InvalidInput: `param` names the field.
    """
    model = REQUESTS[body["kind"]]
    try:
        return model.model_validate(body)
    except ValidationError as error:
        rows = error.errors()
        for row in rows:
            row["loc"] = ("body", *row["loc"])
        message, param, code = explain(rows, model)
        raise InvalidInput(message, param=param, code=code) from None


def submit(unit: Unit, request: JobRequestBase, *, cloned_from: str | None = None) -> Job:
    """Check everything that can be checked now, then queue the job.

    Raises:
        InvalidInput: nothing is queued; `param` names the field.
        QuotaExceeded: the project has as many jobs, minutes or bytes as it may.
    """
    params = request.params
    if request.webhook_url is not None:
        unit.takes_long()
        check_receiver(unit.settings, request.webhook_url, param="webhook_url")
        own_secret(unit)
    params, told = _with_method(unit, request)
    params, hold = _made_from(unit, params)
    documents: list[Document] = []
    if isinstance(params, PredictParams):
        refuse_deep(dict(params.inference_kwargs), "inference_kwargs")
    stored = params.model_dump(mode="json")
    refuse_unstorable({**stored, "metadata": request.metadata})
    waits_for = None
    if isinstance(params, FineTuneParams | InspectParams):
        base = _check_data(unit, params)
        waits_for = base.waits_for_job_id
        if isinstance(params, FineTuneParams):
            stored["merge_base"] = quantizing.merge_base_of(unit, params, base)
    elif isinstance(params, PretrainParams):
        _check_pretrain(unit, params)
    elif isinstance(params, QuantizeParams):
        _check_new_name(unit, params.name, replaced_by="quantised model")
        quantized = quantizing.choose(unit, params)
        waits_for, hold = quantized.base.waits_for_job_id, partial(quantizing.hold_source, unit, quantized)
    elif isinstance(params, PullParams):
        _check_pull(unit, params)
    elif isinstance(params, PredictParams):
        asking.check_predict(unit, params)
    elif isinstance(params, BatchParams):
        asking.check_batch(unit, params)
    elif isinstance(params, IngestParams):
        documents = ingesting.take_in(unit, params)
    admit_job(unit, awaited=waits_for)
    job = insert_job(
        unit.session,
        project_id=unit.project_id,
        kind=JobKind(request.kind),
        params=stored,
        priority=request.priority,
        max_attempts=request.max_attempts,
        max_runtime_seconds=request.max_runtime_seconds,
        waits_for_job_id=waits_for,
        webhook_url=request.webhook_url,
        notes=request.metadata,
        cloned_from=cloned_from,
    )
    if told is not None:
        add_event(unit.session, job.id, told, data={"method": stored["method"]})
    if hold is not None:
        job = get_job(unit.session, job.id, project_id=unit.project_id)
        hold(job)
    assign(unit.session, documents, job)
    return job


def _with_method(unit: Unit, request: JobRequestBase) -> tuple[Params, str | None]:
    """Take the first method that learns from the rows, where none is named; gives also what to tell."""
    params = request.params
    if not isinstance(params, FineTuneParams) or "method" in params.model_fields_set:
        return params, None
    check_model_name(params.name)  # before a file is opened
    field, file_id, reading = _files_of(params)[0]
    if file_id is None:
        return params, None  # a database's rows, which only the worker sees
    file = find_file(unit, file_id, field)
    path = unit.settings.storage_root / file.path
    method = find_method(path, file.filename, reading=reading, param=field)
    if method in (None, params.method):
        return params, None
    given = params.model_dump(mode="json", exclude_unset=True)
    settled = read_request({"kind": request.kind, "params": {**given, "method": method}})
    others = [name for name, taught in LEARNS_FROM.items() if taught == LEARNS_FROM[str(method)]]
    besides = f" {' and '.join(others[1:])} would too." if len(others) > 1 else ""
    return settled.params, (
        f"No method was named: {file.filename} has {WHAT[LEARNS_FROM[str(method)][0]]}, which {method} "
        f"learns from.{besides}"
    )


def _files_of(params: FineTuneParams | InspectParams) -> list[tuple[str, str | None, Reading]]:
    """Of each file of rows its field, its id, and how it is to be read; training files first."""
    several: list[tuple[str, str | None, Reading]] = [
        (f"training_files[{i}].file", each.file, Reading(each.format, each.columns))
        for i, each in enumerate(params.training_files)
    ]
    whole = ("training_file", params.training_file, Reading(params.format, params.columns))
    held_out = ("validation_file", params.validation_file, validation_reading(params))
    return [*(several or [whole]), held_out]


def _made_from(unit: Unit, params: Params) -> tuple[Params, Callable[[Job], None] | None]:
    """Find what a job is made from; gives the params with what that fills in, and how its files are held."""
    if isinstance(params, ExportParams):
        unit.takes_long()  # its files are held
        chosen = exporting.choose(unit, params)
        named = exporting.named(unit, params, chosen)
        check_model_name(named.name or "")
        return named, partial(exporting.hold_source, unit, chosen)
    if isinstance(params, PushParams):
        unit.takes_long()
        pushed = pushing.choose(unit, params)
        return pushed.params, partial(pushing.hold_source, unit, pushed)
    if isinstance(params, EvaluateParams):
        unit.takes_long()
        return params, partial(evaluating.hold_source, unit, evaluating.choose(unit, params))
    if isinstance(params, FineTuneParams) and params.start_from is not None:
        unit.takes_long()
        return params, partial(stacking.hold, unit, stacking.choose(unit, params))
    return params, None


def estimate_of(request: JobRequestBase) -> JobRequestBase:
    """The submit of an estimate, from that of the job that it is of."""
    given = request.model_dump(mode="json", exclude_unset=True)
    return read_request({**given, "kind": ESTIMATED[request.kind]})


def _check_new_name(unit: Unit, name: str, *, replaced_by: str) -> None:
    """Refuse a name that no model can have, or that a model of the catalogue has."""
    check_model_name(name)
    model = find_model(unit.session, unit.project_id, name)
    if model is not None and model.recipe is not None:
        raise InvalidInput(
            f"name: {name!r} is a base model of this server, which a {replaced_by} must not replace. "
            "Take another name.",
            param="name",
        )


def _check_data(unit: Unit, params: FineTuneParams | InspectParams) -> BaseModel:
    """Look at the beginning of each file, and find the base model."""
    if isinstance(params, FineTuneParams):
        _check_new_name(unit, params.name, replaced_by="fine-tune")
        if params.name == params.base_model.partition("@")[0]:
            raise InvalidInput(
                "name must differ from base_model, or the base would be replaced.", param="name"
            )
        if params.cluster is not None:
            find_cluster(unit.settings.ray_clusters, params.cluster, project_id=unit.project_id)
        find_rewards(unit.settings.rewards, params.rewards, project_id=unit.project_id)
        if params.deepspeed is not None:
            find_configuration(unit.settings.deepspeed, params.deepspeed)
    asking.check_databases(unit, params)
    for field, file_id, reading in _files_of(params):
        if file_id is not None:
            file = find_file(unit, file_id, field)
            path = unit.settings.storage_root / file.path
            try:
                check_file(path, file.filename, method=params.method, reading=reading)
            except InvalidInput as error:
                raise InvalidInput(error.message, param=field, code=error.code) from error
    return resolve_base_model(unit.session, unit.settings, unit.project_id, params.base_model)


def _check_pretrain(unit: Unit, params: PretrainParams) -> None:
    check_model_name(params.name)
    if params.training_file is not None:
        find_file(unit, params.training_file, "training_file")
    for field, reference in (("start_from", params.start_from), ("tokenizer", params.tokenizer)):
        if reference is None:
            continue
        base = resolve_base_model(unit.session, unit.settings, unit.project_id, reference, param=field)
        if base.waits_for_job_id is not None:
            raise InvalidInput(
                f"{field}: {reference!r} has not been made yet. A job that fine-tunes it makes it.",
                param=field,
            )


def _check_pull(unit: Unit, params: PullParams) -> None:
    _check_new_name(unit, params.name, replaced_by="pull")
    source = params.source
    if source.ollama is not None and unit.settings.chat_backend != "ollama":
        raise InvalidInput(
            "source.ollama: no Ollama serves this Lathe; OLLAMA_HOST in its settings would name one. "
            "Pull the model from a hub, or upload its GGUF.",
            param="source.ollama",
        )
    if source.hub is not None and unit.settings.hub_offline:
        raise InvalidInput(
            "source.hub: LATHE_HUB_OFFLINE is set, so only uploads are taken.", param="source.hub"
        )
    if source.file is not None:
        file = find_file(unit, source.file, "source.file")
        with (unit.settings.storage_root / file.path).open("rb") as opened:
            kind_of(opened.read(HEAD_BYTES), file.filename, param="source.file")


def check_model_name(name: str) -> None:
    """See that no other surface means something else by a new model's name."""
    if name in RESERVED_NAMES:
        raise InvalidInput(f"name: {name!r} is the embedding model's. Take another name.", param="name")
    if CHECKPOINT_ID.fullmatch(name):
        raise InvalidInput(
            "name: that is what a checkpoint's id looks like. Take another name.", param="name"
        )
