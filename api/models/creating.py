"""Models that are made from others at once: created with a prompt and parameters of their own, or copied."""

import contextlib
import hashlib
import json
from typing import Any

from sqlalchemy import func, select

from api.jobs.submission import check_model_name
from api.models import service
from api.models.schemas import CreateModel, ModelDeleted, ModelOut
from api.unit_of_work import Unit
from db.errors import InvalidInput, NotFound
from db.ids import new_id
from db.models import Model, ModelFile, ModelVersion
from db.queries.models import Served, find_model, get_model, list_models, list_versions, resolve

CREATED, COPIED = "create", "copy"
# How many characters of a hash end a name that a backend knows a published model by.
HASH_LENGTH = 12


def create(unit: Unit, body: CreateModel) -> ModelOut:
    """Make a version of `name` that answers as `from_` does, with what the body adds.

    Raises:
        InvalidInput: there is no such base, or its server cannot do what is asked.
        Unavailable: Ollama does not answer.
    """
    base = _base(unit, body.from_)
    given = body.model_dump(include={"system", "template", "messages"}, exclude_none=True)
    given["parameters"] = body.parameters.model_dump(exclude_none=True)
    files = base.version.files if ":" not in body.from_ else [base.file]
    for file in files:
        _check_backend(file, given)
    model = _name(unit, body.name)
    version = _version(unit, model, base, CREATED)
    version.prompting = _inherited(base.version.prompting, given)
    for position, file in enumerate(files):
        backend_name = file.backend_name
        if file.backend == "ollama":
            backend_name = _create_on_ollama(unit, file.backend_name, body.name, given)
        version.files.append(_file(file, position, backend_name))
    return _let_answer(unit, model, version)


def copy(unit: Unit, reference: str, name: str) -> ModelOut:
    """Let another name answer as `reference` does, whatever becomes of that one.

    Raises:
        NotFound: there is no such model.
        InvalidInput: the name is not free for it.
    """
    served = resolve(unit.session, unit.project_id, reference)
    files = served.version.files if ":" not in reference else [served.file]
    model = _name(unit, name)
    version = _version(unit, model, served, COPIED)
    version.prompting = served.version.prompting
    for position, file in enumerate(files):
        version.files.append(_file(file, position, file.backend_name))
    return _let_answer(unit, model, version)


def delete_all(unit: Unit) -> list[ModelDeleted]:
    """Delete every version that was created or copied; what jobs have made stays."""
    deleted = []
    for model in list_models(unit.session, unit.project_id):
        versions = list_versions(unit.session, model.id)
        made = [row for row in versions if row.details.get("kind") in (CREATED, COPIED)]
        if made and len(made) == len(versions):
            deleted.append(service.delete(unit, model.name))
        else:
            deleted += [service.delete(unit, f"{model.name}@{row.number}") for row in made]
    return deleted


def _base(unit: Unit, reference: str) -> Served:
    try:
        return resolve(unit.session, unit.project_id, reference)
    except NotFound as error:
        raise InvalidInput(f"from: {error.message}", param="from", code=error.code) from error


def _check_backend(file: ModelFile, given: dict[str, Any]) -> None:
    if file.backend == "ollama":
        return
    if "template" in given:
        raise InvalidInput(
            "template: llama-server takes the chat template that lies in the model's file. Serve the model "
            "by Ollama to give it another.",
            param="template",
            code="not_supported",
        )
    if "num_ctx" in given["parameters"]:
        raise InvalidInput(
            "parameters.num_ctx: llama-server fixes the context when it loads a model: LATHE_CONTEXT_SIZE.",
            param="parameters.num_ctx",
            code="not_supported",
        )


def _name(unit: Unit, name: str) -> Model:
    """The model of that name, locked, and made where there is none."""
    check_model_name(name)
    model = find_model(unit.session, unit.project_id, name, lock=True)
    if model is not None and model.recipe is not None:
        raise InvalidInput(
            f"name: {name!r} is a base model of this server, which must not be replaced. Take another name.",
            param="name",
        )
    if model is None:
        unit.session.add(Model(id=new_id("model"), project_id=unit.project_id, name=name, recipe=None))
        unit.session.flush()
        model = get_model(unit.session, unit.project_id, name, lock=True)
    return model


def _version(unit: Unit, model: Model, source: Served, kind: str) -> ModelVersion:
    newest = select(func.coalesce(func.max(ModelVersion.number), 0)).where(ModelVersion.model_id == model.id)
    reference = f"{source.model.name}@{source.version.number}"
    kept = {name: source.version.details.get(name) for name in ("context_length", "architecture", "source")}
    return ModelVersion(
        id=new_id("version"),
        model_id=model.id,
        number=unit.session.scalars(newest).one() + 1,
        base_model=reference,
        details={"kind": kind, "from": reference, **kept},
    )


def _inherited(before: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """Parameters add up; a system prompt, a template and messages take the place of the base's."""
    before = before or {}
    return {**before, **given, "parameters": {**before.get("parameters", {}), **given["parameters"]}}


def _create_on_ollama(unit: Unit, base: str, name: str, given: dict[str, Any]) -> str:
    from serving.ollama import Ollama  # 4 MB that a process without it need not hold

    content = json.dumps([base, given], sort_keys=True)
    made = f"{name.strip('.-')}-v-{hashlib.sha256(content.encode()).hexdigest()[:HASH_LENGTH]}"
    with contextlib.closing(Ollama(unit.settings.ollama_url)) as server:
        server.create_from(made, base, **given)
    return made


def _file(file: ModelFile, position: int, backend_name: str) -> ModelFile:
    return ModelFile(
        position=position,
        quantization=file.quantization,
        backend=file.backend,
        backend_name=backend_name,
        bytes=file.bytes,
        sha256=file.sha256,
        verification=file.verification,
    )


def _let_answer(unit: Unit, model: Model, version: ModelVersion) -> ModelOut:
    unit.session.add(version)
    unit.session.flush()
    model.current_version = version
    unit.session.flush()
    return service.show(unit, model.name)
