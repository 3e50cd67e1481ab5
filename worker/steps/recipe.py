"""The recipe of a fine-tune: all that it takes to run the same again, and what came of it.

Rows, weights and template are named by their sha256, so that whoever runs it again can tell whether these are
the same. `lathe reproduce` reads it.
"""

import hashlib
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.source_files import ATTEMPT_MANIFEST
from training_data.json_files import read_json
from training_data.tokens import read_template
from worker.step import BaseWeights, Step
from worker.steps.base_files import weights_hash

JSON = dict[str, Any]
RECIPE = "recipe.json"
FORMAT = 1  # raise it when a field comes to mean something else
FILE_FIELDS = ("quantization", "bytes", "sha256", "base")
FIGURES = (
    "train_loss", "final_loss", "eval_loss", "first_reward", "final_reward", "eval_reward", "steps",
    "stopped_early", "trained_tokens", "tokens_per_second", "peak_memory_bytes", "seconds", "adjustments",
)  # fmt: skip


def make_recipe(step: Step, train: JSON, published: JSON | None) -> JSON:
    """Put together what the steps of a fine-tune have left.

    Args:
        train: what the training returned.
        published: what the publish step returns; None: it is not there yet.
    """
    prepared = step.input.results["prepare"]
    verified = step.input.results.get("verify") or {}
    files = published["files"] if published is not None else []
    # The training itself makes one before its step has ended.
    attempt = step.input.step_folders.get("train", step.input.folder)
    trained = attempt / ("adapter" if (attempt / "adapter").is_dir() else "model")
    return {
        "format": FORMAT,
        "kind": step.input.kind,
        "job": step.input.job_id,
        "name": step.input.params["name"],
        "params": step.input.params,
        "data": _data(step, prepared),
        "base": _base(step, prepared.get("base_weights")),
        "start": _start(step),
        "template": _template(trained, prepared),
        "seed": prepared["seed"],
        "hyperparameters": train["hyperparameters"],
        "environment": train.get("environment"),
        "rewards": train.get("rewards"),
        "result": {name: train[name] for name in FIGURES if train.get(name) is not None},
        "trained": _hashes(attempt, trained.name, ".safetensors"),
        "verification": verified.get("files", []),
        "evaluation": verified.get("evaluation"),
        "files": [{name: file[name] for name in FILE_FIELDS if name in file} for file in files],
    }


def _data(step: Step, prepared: JSON) -> JSON:
    """The files as they were given, and the rows that were made of them."""
    given = {
        file_id: {"filename": file.filename, "bytes": file.bytes, "sha256": file_sha256(file.path)}
        for file_id, file in step.input.files.items()
    }
    splits = _hashes(step.input.step_folders["prepare"], "", ".jsonl")
    return {"files": given, "dataset": prepared.get("dataset"), "rows": prepared["rows"], "splits": splits}


def _base(step: Step, weights: str | None) -> JSON | None:
    """The base by its commit at the hub, or else by what its files hold.

    Args:
        weights: that hash, where a step has taken it already.
    """
    base = step.input.base
    if base is None:
        return None
    merged = base.merge_base
    return _described(base, weights) | ({"merge_base": _described(merged)} if merged is not None else {})


def _described(base: BaseWeights, weights: str | None = None) -> JSON:
    if base.source == "hub":
        return {"name": base.location, "source": base.source, "revision": base.revision}
    return {"name": base.name, "source": base.source, "weights": weights or weights_hash(Path(base.location))}


def _start(step: Step) -> JSON | None:
    """What it went on from, where it did."""
    if step.input.start is None:
        return None
    files = sorted(step.input.start.rglob("*.safetensors"))
    return {"from": step.input.params["start_from"], **{path.name: file_sha256(path) for path in files}}


def _template(trained: Path, prepared: JSON) -> JSON:
    text, _ = read_template(trained)
    return {
        "source": prepared["chat_template_source"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _hashes(folder: Path, inner: str, ending: str) -> dict[str, str]:
    """Of an attempt's files, as its manifest has them; of one that has not ended, as they are."""
    if not (folder / ATTEMPT_MANIFEST).is_file():
        found = sorted((folder / inner).glob(f"*{ending}"))
        return {str(path.relative_to(folder)): file_sha256(path) for path in found}
    listed: dict[str, JSON] = read_json(folder / ATTEMPT_MANIFEST).get("files", {})
    return {
        name: entry["sha256"]
        for name, entry in listed.items()
        if name.endswith(ending) and name.rpartition("/")[0] == inner
    }
