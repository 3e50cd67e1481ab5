"""The sections of a model's card, from the recipe of its training (`recipe.py`)."""

from pathlib import Path
from typing import Any

from worker.steps.evaluation_report import table_of
from worker.steps.markdown_table import markdown_table

JSON = dict[str, Any]
CURVES = "curves.png"
HYPERPARAMETERS = (
    "method", "beta", "epochs", "total_steps", "learning_rate", "lr_scheduler", "batch_size",
    "gradient_accumulation_steps", "rewards", "reward_weights", "num_generations", "max_completion_length",
    "temperature", "bits", "lora_rank", "lora_alpha", "lora_dropout", "max_length",
)  # fmt: skip


def section(title: str, head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"## {title}", markdown_table(head, rows)] if rows else []


def data_section(recipe: JSON, *, public: bool) -> list[str]:
    """What went in, by its sha256; `public`: without the names that its owner gave."""
    data, base = recipe["data"], recipe["base"]
    rows = [["file", "" if public else file["filename"], file["sha256"]] for file in data["files"].values()]
    if data["dataset"]:
        name = "" if public else data["dataset"]["name"]
        rows.append(["rows of a database", name, data["dataset"]["sha256"]])
    for name, sha256 in data["splits"].items():
        rows.append([f"{data['rows'].get(Path(name).stem, '')} rows", name, sha256])
    if base is not None:
        rows.append(["base", base["name"], base.get("weights") or f"revision {base['revision']}"])
    rows.append(["chat template", recipe["template"]["source"], recipe["template"]["sha256"]])
    rows += [["trained", name, sha256] for name, sha256 in recipe["trained"].items()]
    return section("Data", ["what", "name", "sha256"], rows)


def training_section(recipe: JSON, figures: JSON) -> list[str]:
    """How it was trained, and `figures` of what came of it."""
    chosen = recipe["hyperparameters"]
    rows = [[name, chosen[name]] for name in HYPERPARAMETERS if chosen.get(name) is not None]
    rewards = [[f"reward {name}", sha256] for name, sha256 in (recipe.get("rewards") or {}).items()]
    rows += [["seed", recipe["seed"]], *rewards, *([name, value] for name, value in figures.items())]
    return section("Training", ["", ""], rows)


def curves_section(recipe: JSON) -> list[str]:
    return [f"![{'Reward' if recipe.get('rewards') else 'Loss'} by training step]({CURVES})"]


def evaluation_section(evaluation: JSON | None, *, public: bool) -> list[str]:
    """Figures of held-out rows; `public`: without any of these rows."""
    if not evaluation:
        return []
    data = evaluation["data"]
    head, cells = table_of(evaluation["table"])
    more = "" if public else " More of it: `lathe evaluate`."
    return [
        "## Evaluation",
        f"On {data['rows']} of {data['of']} rows that were held out.{more}",
        markdown_table(head, cells),
        *([] if public else _samples(evaluation["samples"])),
    ]


def _samples(samples: list[JSON]) -> list[str]:
    if not samples:
        return []
    names = list(samples[0]["answers"])
    rows = [[each["asked"], each["expected"], *(each["answers"][name] for name in names)] for each in samples]
    return ["### Samples", markdown_table(["asked", "the row's answer", *names], rows)]


def verified_section(recipe: JSON) -> list[str]:
    """How each file that is served answers beside the weights."""
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
    verified = section("Verified", head, rows)
    return [*verified[:1], *_beside(recipe), *verified[1:]]


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


def environment_section(environment: JSON | None) -> list[str]:
    if environment is None:
        return []
    rows = [[name, version] for name, version in environment["packages"].items()]
    rows += [[name, value] for name, value in environment.items() if name != "packages" and value is not None]
    return section("Made with", ["", ""], rows)
