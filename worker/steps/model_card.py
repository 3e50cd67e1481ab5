"""The card of a model that is pushed: its training's (`training_card.py`), with what a hub asks for besides.

That is the license, the library that loads the files, and what they are. What is nobody else's stays here:
names of files and sources, held-out rows, and anything of this machine. Of a model without a recipe (pulled,
or pretrained here) the card says what is known.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from worker.steps.card_sections import (
    HYPERPARAMETERS,
    curves_section,
    data_section,
    environment_section,
    evaluation_section,
    section,
    training_section,
)

JSON = dict[str, Any]
CARD = "README.md"
# Who changes the card takes this out, and keeps what was written.
MARK = "<!-- Written by Lathe, and written anew with each push while this line stands. -->"
RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
JUDGING = "reward"  # the method of models that give a number, and no text


def metadata_of(recipe: JSON, what: str) -> JSON:
    """What a hub is told of the files of a training.

    Args:
        what: they are: adapter, merged or gguf.
    """
    base, method = recipe["base"], recipe["hyperparameters"].get("method", "supervised")
    on_hub = base is not None and base["source"] == "hub"
    return {
        "base_model": base["name"] if on_hub else None,
        "base_model_relation": RELATIONS[what] if on_hub else None,
        "library_name": LIBRARIES[what],
        "pipeline_tag": "text-classification" if method == JUDGING else "text-generation",
        "tags": ["lathe", method],
    }


def front_matter(**metadata: Any) -> str:
    given = {name: value for name, value in metadata.items() if value is not None}
    return f"---\n{ModelCardData(**given).to_yaml()}\n---"


def write_card(
    folder: Path, repository: str, about: JSON, recipe: JSON | None, *, license: JSON, curves: bool
) -> None:
    """Write README.md.

    Args:
        about: what is pushed, as it was submitted.
        recipe: of its training; None: it has left none.
        license: `license` and what goes with it, as a hub's metadata have it; empty: it is not known.
        curves: lie beside it.
    """
    base = about["base"]
    hub_base = base["location"] if base is not None and base["source"] == "hub" else None
    told = (
        metadata_of(recipe, about["what"])
        if recipe is not None
        else {
            "base_model": hub_base,
            "base_model_relation": RELATIONS[about["what"]] if hub_base else None,
            "library_name": LIBRARIES[about["what"]],
            "pipeline_tag": "text-generation",
            "tags": ["lathe"],
        }
    )
    known_base = hub_base or (base["name"] if base is not None else None)
    if known_base is None and recipe is not None and recipe["base"] is not None:
        known_base = recipe["base"]["name"]
    parts = [
        front_matter(**license, **told),
        MARK,
        f"# {repository.partition('/')[2]}",
        _sentence(about, known_base),
        *(_of_recipe(recipe, about, curves=curves) if recipe is not None else _of_what_is_known(about)),
        *_files(about["published"] if about["what"] == "gguf" else []),
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _sentence(about: JSON, base: str | None) -> str:
    what = {
        "adapter": "A LoRA adapter",
        "merged": "A causal language model in 16 bits, as safetensors",
        "gguf": "A causal language model as GGUF, for llama.cpp and what is built on it",
    }[about["what"]]
    if about.get("hub"):
        return f"{what}, pulled from {about['hub']}."
    of = f" of {base}" if about["what"] == "adapter" else f", fine-tuned from {base}"
    at = f", as of step {about['step_number']} of its training" if about.get("step_number") else ""
    return f"{what}{of if base else ', trained from scratch'}{at}. Its chat template comes with it."


def _of_recipe(recipe: JSON, about: JSON, *, curves: bool) -> list[str]:
    """Of a checkpoint, what was measured at its step, in place of what the training came to."""
    at_checkpoint = about.get("step_number") is not None
    return [
        *data_section(recipe | ({"trained": {}} if at_checkpoint else {}), public=True),
        *training_section(recipe, about.get("metrics") or {} if at_checkpoint else recipe["result"]),
        *(curves_section(recipe) if curves else []),
        *([] if at_checkpoint else evaluation_section(recipe["evaluation"], public=True)),
        *environment_section(recipe["environment"]),
    ]


def _of_what_is_known(about: JSON) -> list[str]:
    rows, trained = dict(about.get("metrics") or {}), about["trained"]
    if trained is not None:
        hyperparameters = trained.get("hyperparameters") or {}
        rows |= {name: hyperparameters[name] for name in HYPERPARAMETERS if name in hyperparameters}
        rows |= {name: value for name, value in trained.items() if name != "hyperparameters"}
    return section("Training", ["", ""], [[name, value] for name, value in rows.items()])


def _files(published: list[JSON]) -> list[str]:
    """How the quantised files answer beside the weights that they were made from."""
    rows = []
    for file in published:
        figures = file["verification"] or {}
        told = (figures.get(name) for name in ("top1_agreement", "kl", "perplexity", "perplexity_weights"))
        rows.append([file["quantization"], file["bytes"], *told])
    if not any(row[2] is not None for row in rows):
        return []
    head = [
        "quantization", "bytes", "same next token as the trained weights", "KL divergence from them",
        "perplexity", "of the weights",
    ]  # fmt: skip
    return section("Quantised", head, rows)
