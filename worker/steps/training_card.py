"""The card that a fine-tune leaves with its artifacts: README.md for people, with the metadata that a hub
reads, recipe.json for programs, and the curves."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from training_data.json_files import write_json
from worker.step import Step
from worker.steps.curves import draw_curves
from worker.steps.evaluation_report import table_of
from worker.steps.markdown_table import markdown_table
from worker.steps.model_card import CARD, HYPERPARAMETERS
from worker.steps.recipe import RECIPE, make_recipe
from worker.steps.training_results import RESULTS_FILE

JSON = dict[str, Any]
CURVES = "curves.png"


def leave_card(step: Step, published: JSON) -> None:
    """Write the card of a fine-tune into the attempt's folder, and offer its files."""
    folder = step.input.folder
    recipe = make_recipe(step, published)
    write_json(folder / RECIPE, recipe)
    has_curves = draw_curves(step.input.step_folders["train"] / RESULTS_FILE, folder / CURVES)
    (folder / CARD).write_text(card_of(recipe, curves=has_curves), encoding="utf-8")
    for name in (CARD, RECIPE, *([CURVES] if has_curves else [])):
        step.artifact(name)


def card_of(recipe: JSON, *, curves: bool) -> str:
    base = recipe["base"]
    on_hub = base is not None and base["source"] == "hub"
    whole = recipe["hyperparameters"].get("tuning") == "full"
    relation: JSON = {"base_model_relation": "finetune" if whole else "adapter"} if on_hub else {}
    metadata = ModelCardData(
        model_name=recipe["name"],
        base_model=base["name"] if on_hub else None,
        library_name="transformers" if whole else "peft",
        pipeline_tag="text-generation",
        tags=["lathe", recipe["hyperparameters"].get("method", "supervised")],
        **relation,
    )
    what = "All weights" if whole else "A LoRA adapter"
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {recipe['name']}",
        f"{what} of {base['name'] if base else 'a base'}, trained on {recipe['data']['rows']['train']} rows "
        f"by job {recipe['job']}. The same again: `lathe reproduce {recipe['name']}`.",
        *_section("Data", ["what", "name", "sha256"], _data_rows(recipe)),
        *_section("Training", ["", ""], _training_rows(recipe)),
        *(
            [f"![{'Reward' if recipe.get('rewards') else 'Loss'} by training step]({CURVES})"]
            if curves
            else []
        ),
        *_evaluation(recipe["evaluation"]),
        *_quantised(recipe),
        *_section("Made with", ["", ""], _environment_rows(recipe["environment"])),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"## {title}", markdown_table(head, rows)] if rows else []


def _data_rows(recipe: JSON) -> list[list[Any]]:
    data, base = recipe["data"], recipe["base"]
    rows = [["file", file["filename"], file["sha256"]] for file in data["files"].values()]
    if data["dataset"]:
        rows.append(["rows of a database", data["dataset"]["name"], data["dataset"]["sha256"]])
    for name, sha256 in data["splits"].items():
        rows.append([f"{data['rows'].get(Path(name).stem, '')} rows", name, sha256])
    if base is not None:
        rows.append(["base", base["name"], base.get("weights") or f"revision {base['revision']}"])
    rows.append(["chat template", recipe["template"]["source"], recipe["template"]["sha256"]])
    return rows + [["trained", name, sha256] for name, sha256 in recipe["trained"].items()]


def _training_rows(recipe: JSON) -> list[list[Any]]:
    chosen = recipe["hyperparameters"]
    rows = [[name, chosen[name]] for name in HYPERPARAMETERS if chosen.get(name) is not None]
    return [*rows, ["seed", recipe["seed"]], *([name, value] for name, value in recipe["result"].items())]


def _evaluation(evaluation: JSON | None) -> list[str]:
    if not evaluation:
        return []
    data = evaluation["data"]
    head, cells = table_of(evaluation["table"])
    return [
        "## Evaluation",
        f"On {data['rows']} of {data['of']} rows that were held out. More of it: `lathe evaluate`.",
        markdown_table(head, cells),
        *_samples(evaluation["samples"]),
    ]


def _samples(samples: list[JSON]) -> list[str]:
    if not samples:
        return []
    names = list(samples[0]["answers"])
    rows = [[each["asked"], each["expected"], *(each["answers"][name] for name in names)] for each in samples]
    return ["### Samples", markdown_table(["asked", "the row's answer", *names], rows)]


def _quantised(recipe: JSON) -> list[str]:
    sizes = {file["quantization"]: file["bytes"] for file in recipe["files"]}
    figures = (
        "top1_agreement", "kl", "kl_base", "perplexity", "perplexity_weights", "tokens_compared", "split",
        "tokens_per_second",
    )  # fmt: skip
    rows = [
        [row["quantization"], sizes.get(row["quantization"]), *(row.get(name) for name in figures)]
        for row in recipe["verification"]
    ]
    head = [
        "quantization", "bytes", "same next token as the trained weights", "KL from them",
        "KL that it costs the base", "perplexity", "of the weights", "tokens", "rows of",
        "tokens a second of one answer",
    ]  # fmt: skip
    section = _section("Verified", head, rows)
    return [*section[:1], *_beside(recipe), *section[1:]]


def _beside(recipe: JSON) -> list[str]:
    """Which files of the base an adapter is served beside, where it is published alone."""
    bases = [
        f"{file['quantization']} ({file['base']['bytes'] / 1e6:.1f} MB, sha256 {file['base']['sha256']})"
        for file in recipe["files"]
        if file.get("base")
    ]
    if not bases:
        return []
    return [
        "Published as an adapter: a GGUF LoRA, served beside the base's own file (`llama-server --lora`). "
        f"The base's: {', '.join(bases)}."
    ]


def _environment_rows(environment: JSON | None) -> list[list[Any]]:
    if environment is None:
        return []
    rest = [[name, value] for name, value in environment.items() if name != "packages" and value is not None]
    return [[name, version] for name, version in environment["packages"].items()] + rest
