"""Give the verified files to the server that answers for them, and prove that it does.

A backend's name holds the content's hash, so publishing the same file again changes nothing, and a file
that is being served is never overwritten.
"""

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput, Unavailable
from serving.llama_cpp import ADAPTER_PRESETS, require_tools
from serving.openai_compatible import LlamaServer
from serving.served_adapters import BaseFile, put_beside, withdraw
from training_data.tokens import ChatTokenizer
from worker.step import Step, StepInput
from worker.steps.export import trained_folder
from worker.steps.gguf_files import place
from worker.steps.golden_answers import Golden, read_golden
from worker.steps.live_check import ask_again
from worker.steps.programs import ServedFile
from worker.steps.publish_ollama import (
    publish_foreign_to_ollama,
    publish_to_ollama,
    see_that_ollama_answers,
)
from worker.steps.served_files import served_file
from worker.steps.training_card import leave_card

PROOF: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
PROOF_TOKENS = 8


def run(step: Step) -> dict[str, Any]:
    """Publish every file; the first quantization is the one that the model's name answers with. Of a
    fine-tune, leave its card."""
    backend = step.input.settings.chat_backend
    made, folder = made_by(step.input)
    chosen, files = chosen_files(step.input), []
    if not chosen:
        step.event(
            f"Nothing of {step.input.params['name']} is served: it is a base for fine-tunes, whose weights "
            f"lie in {folder / made['folder']}. A backend of type transformers answers with them.",
            folder=str(folder / made["folder"]),
        )
    for done, row in enumerate(chosen):
        step.progress(done, len(chosen), unit="files")
        name = row.get("backend_name") or backend_name(step.input.params["name"], content_hash(row))
        started = time.monotonic()
        # A model that was pulled has none: nothing is known of it to hold the server against.
        golden = read_golden(step.input.step_folders.get("verify"), row["quantization"])
        live: dict[str, Any] | None = None
        if row["path"] is None:
            see_that_ollama_answers(step, name)
        elif backend == "ollama":
            live = _publish_to_ollama(step, made, _file_of(step, row, folder), name, golden)
        else:
            live = publish_to_llama_server(step, _file_of(step, row, folder), name, row, golden)
        seconds = time.monotonic() - started
        step.event(
            f"{row['quantization']} answers as {name} on {backend} ({seconds:.1f} s).",
            quantization=row["quantization"],
            backend=backend,
            backend_name=name,
            seconds=round(seconds, 2),
        )
        asked = {"live": live} if live is not None else {}
        files.append({**row, "backend": backend, "backend_name": name, **asked})
    published = {
        "model": step.input.params["name"],
        "default": files[0] if files else None,
        "files": files,
        "context_length": made["context_length"],
    }
    if step.input.kind == "fine_tune":
        leave_card(step, step.input.results["train"], published)
    return published


def chosen_files(step_input: StepInput) -> list[dict[str, Any]]:
    """The files that verification has settled on, in the order in which their types were asked for."""
    files: list[dict[str, Any]] = made_by(step_input)[0]["files"]
    published = step_input.results.get("verify", {}).get("published")
    if published is None:
        return files
    by_name = {row["quantization"]: row for row in files}
    return [by_name[name] for name in published]


def made_by(step_input: StepInput) -> tuple[dict[str, Any], Path]:
    """What the step that made the files returned, and its folder."""
    name = step_input.kind if step_input.kind in ("pull", "quantize") else "export"
    return step_input.results[name], step_input.step_folders[name]


def _file_of(step: Step, row: dict[str, Any], folder: Path) -> ServedFile:
    if row.get("base") is None:
        return ServedFile(folder / row["path"])
    return served_file(step, require_tools(step.input.settings), row, folder)


def content_hash(row: dict[str, Any]) -> str:
    """Of what answers: the file, or an adapter and its base's file."""
    if row.get("base") is None:
        return str(row["sha256"])
    return hashlib.sha256(f"{row['base']['sha256']} {row['sha256']}".encode()).hexdigest()


def _publish_to_ollama(
    step: Step, made: dict[str, Any], file: ServedFile, name: str, golden: Golden | None
) -> dict[str, Any] | None:
    trained = int(made["context_length"])
    context = min(trained, step.input.settings.context_size or trained)
    if step.input.kind != "pull":
        tokenizer = ChatTokenizer(trained_folder(step.input))
    elif made["folder"] is not None:
        tokenizer = ChatTokenizer(step.input.step_folders["pull"] / made["folder"])
    else:
        publish_foreign_to_ollama(step, file.model, name, made, context)
        return None
    return publish_to_ollama(step, file, name, tokenizer, context, golden=golden)


def backend_name(name: str, sha256: str) -> str:
    """A name that every backend takes, and that only this content has."""
    slug = re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip(".-") or "model"
    return f"{slug}-v-{sha256[:12]}"


def publish_to_llama_server(
    step: Step, file: ServedFile, name: str, row: dict[str, Any], golden: Golden | None
) -> dict[str, Any] | None:
    """Put the file into the router's folder, let it look, and ask it, unless that is to wait.

    An adapter is put there, and its base's file beside it, which is one for all its adapters.

    Args:
        row: as the export step returned it.

    Returns:
        what was asked of it, in figures; None where it was not asked for golden prompts.
    Raises:
        Unavailable: the router does not answer, or not with this model; worth another try.
        StepFailed: it answers otherwise than the verified file did.
    """
    settings = step.input.settings
    source = file.adapter or file.model
    target = settings.served_models_dir / f"{name}.gguf"
    place(source, target)
    if file.adapter is not None:
        put_beside(settings.served_models_dir, name, BaseFile(file.model, row["base"]["sha256"]))
    with LlamaServer(settings.chat_server_url, api_key=settings.chat_server_key, model=name) as server:
        if name not in server.model_names(reload=True):
            raise Unavailable(
                f"llama-server does not list {name}: does it serve {settings.served_models_dir}?",
                code="model_not_served",
            )
        if file.adapter is not None and not server.serves_adapter(name, target):
            withdraw(settings.served_models_dir, name)
            raise InvalidInput(
                f"The llama-server at {settings.chat_server_url} does not serve adapters: start it with "
                f'--models-preset {settings.served_models_dir / ADAPTER_PRESETS}, or publish "merged".',
                param="publish",
                code="adapters_not_served",
            )
        if _is_another(source, target, row["sha256"]):
            _place_anew(step, source, target, server)
        if step.input.chat_unloaded:
            step.event(f"{name} is listed, and not asked: another step holds the GPU that it is served from.")
            return None
        answer = server.chat(PROOF, max_tokens=PROOF_TOKENS)
        if not answer.get("choices"):
            raise Unavailable(f"llama-server gave no answer for {name}.", code="model_not_served")
        if golden is None:
            return None
        return ask_again(step, server, golden, ChatTokenizer(trained_folder(step.input)))


def _is_another(source: Path, target: Path, sha256: str) -> bool:
    """Whether what lies there under the file's name and size is something else: a disk may have failed."""
    return not target.samefile(source) and file_sha256(target) != sha256


def _place_anew(step: Step, source: Path, target: Path, server: LlamaServer) -> None:
    step.event(
        f"{target.name} was in the served folder already, with other content than was verified: it is put "
        "there anew.",
        level="warn",
    )
    target.unlink()
    place(source, target)
    server.unload(target.stem)  # it may have loaded what was there
