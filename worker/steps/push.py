"""Upload an adapter, merged weights or GGUF files to a Hugging Face hub, with a card of what they are."""

import shutil
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.source_files import card_source, check_source, gguf_source, trained_source
from training_data.json_files import read_json, write_json
from worker.step import Step
from worker.steps.card_sections import CURVES
from worker.steps.export import MEMORY_ADVICE, weights_of
from worker.steps.gguf_files import place, write_tokenizer
from worker.steps.hub import Hub
from worker.steps.hub_upload import Target
from worker.steps.merging import write_merged
from worker.steps.model_card import CARD, MARK, write_card
from worker.steps.recipe import RECIPE
from worker.steps.runtime import memory_errors_explained, prepare_runtime


def run(step: Step) -> dict[str, Any]:
    """Leave nothing behind here; the result says which commit holds the files."""
    prepare_runtime(step.input.settings.threads)
    target = Target(step)
    is_private = target.open()
    source = step.input.require_source()
    about = check_source(source)
    if about["prompted"]:
        step.event(
            "The system prompt, the messages and the parameters that this model was created with are not in "
            "its files, and are not pushed.",
            level="warn",
        )
    with memory_errors_explained(MEMORY_ADVICE):
        folder = _gathered(step, source, about)
    existing = target.read(CARD)
    if existing is None or MARK in existing:
        _add_card(step, folder, about)
    else:
        step.event(f"The repository has a {CARD} that is not Lathe's: it stays.", level="warn")
    message = step.input.params["message"] or _message(about)
    pushed = target.upload(folder, message, private=is_private)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    repository, branch = step.input.params["repository"], step.input.params["branch"]
    how = f"{pushed.sent / 1e6:.1f} MB were sent" if pushed.sent else "no large one had to be sent"
    step.event(
        f"{repository} has it on branch {branch}, by commit {pushed.commit}: {len(names)} files, {how}.",
        repository=repository,
        commit=pushed.commit,
        url=pushed.url,
    )
    return {
        "repository": repository,
        "branch": branch,
        "commit": pushed.commit,
        "url": pushed.url,
        "private": pushed.private,
        "what": about["what"],
        "files": names,
    }


def _gathered(step: Step, source: Path, about: dict[str, Any]) -> Path:
    """A folder with the files as the repository is to have them, but for the card."""
    if about["what"] == "merged":
        folder = step.input.folder / "merged"
        write_merged(weights_of(step), folder)
        write_tokenizer(trained_source(source), folder)
        return folder
    folder = step.input.folder / "upload"
    folder.mkdir()
    if about["what"] == "gguf":
        for path in gguf_source(source).iterdir():
            place(path, folder / path.name)
        return folder
    trained = trained_source(source)
    place(trained / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    write_tokenizer(trained, folder)
    _write_adapter_config(step, trained, folder)
    return folder


def _add_card(step: Step, folder: Path, about: dict[str, Any]) -> None:
    """The card of its training, with what a hub asks for besides; its curves come with it."""
    left = card_source(step.input.require_source())
    recipe = read_json(left / RECIPE) if (left / RECIPE).is_file() else None
    has_curves = (left / CURVES).is_file()
    if has_curves:
        place(left / CURVES, folder / CURVES)
    license = _license(step, about, recipe)
    write_card(folder, step.input.params["repository"], about, recipe, license=license, curves=has_curves)


def _license(step: Step, about: dict[str, Any], recipe: dict[str, Any] | None) -> dict[str, str]:
    """The license that the request names, or else its base's, as the base's own card has it."""
    given = step.input.params.get("license")
    if given is not None:
        return {"license": given}
    base = (recipe or about)["base"]
    found: dict[str, str] = {}
    if base is not None and base["source"] == "hub":
        try:
            found = Hub(step.input.settings, param="base_model").license(
                base["name"] if recipe is not None else base["location"], base.get("revision")
            )
        except InvalidInput as error:
            step.event(f"The license of the base cannot be read: {error.message}", level="warn")
    if not found:
        step.event("The card names no license, for none is known of the base: a push takes it as license.")
    return found


def _write_adapter_config(step: Step, trained: Path, folder: Path) -> None:
    """Name the base as others can load it, and no folder of this machine."""
    config, base = read_json(trained / "adapter_config.json"), step.input.base
    config["base_model_name_or_path"] = base.name if base is not None else None
    if base is not None and base.source == "hub":
        config |= {"base_model_name_or_path": base.location, "revision": base.revision}
    else:
        step.event(
            f"The base {config['base_model_name_or_path']} is no model of a hub: whoever takes this adapter "
            'needs it, too. Pushed with what "merged", the model is whole.',
            level="warn",
        )
    write_json(folder / "adapter_config.json", config)


def _message(about: dict[str, Any]) -> str:
    what = {"adapter": "a LoRA adapter", "merged": "merged weights", "gguf": "GGUF files"}[about["what"]]
    of = f" of {about['model'].partition('@')[0]}" if about["model"] else ""
    return f"Upload {what}{of}"
