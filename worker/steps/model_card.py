"""The card of a model that is pushed: what is known of it, and no file or folder of this machine by name."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from worker.steps.markdown_table import markdown_table

CARD = "README.md"
# Who changes the card takes this out, and keeps what was written.
MARK = "<!-- Written by Lathe, and written anew with each push while this line stands. -->"
RELATIONS = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
HYPERPARAMETERS = (
    "method", "beta", "epochs", "total_steps", "learning_rate", "lr_scheduler", "batch_size",
    "gradient_accumulation_steps", "rewards", "reward_weights", "num_generations", "max_completion_length",
    "temperature", "bits", "lora_rank", "lora_alpha", "lora_dropout", "max_length",
)  # fmt: skip


def write_card(folder: Path, repository: str, about: dict[str, Any]) -> None:
    """Write README.md: metadata that the hub reads, then tables for people."""
    base = about["base"]
    hub_base = base["location"] if base is not None and base["source"] == "hub" else None
    relation: dict[str, Any] = {"base_model_relation": RELATIONS[about["what"]]} if hub_base else {}
    metadata = ModelCardData(
        base_model=hub_base,
        library_name=LIBRARIES[about["what"]],
        pipeline_tag="text-generation",
        tags=["lathe"],
        **relation,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        MARK,
        f"# {repository.partition('/')[2]}",
        _sentence(about, hub_base or (base["name"] if base is not None else None)),
        *_training(about["trained"], about),
        *_files(about["published"] if about["what"] == "gguf" else []),
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _sentence(about: dict[str, Any], base: str | None) -> str:
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


def _training(trained: dict[str, Any] | None, about: dict[str, Any]) -> list[str]:
    rows = dict(about.get("metrics") or {})
    if trained is not None:
        hyperparameters = trained.get("hyperparameters") or {}
        rows |= {name: hyperparameters[name] for name in HYPERPARAMETERS if name in hyperparameters}
        rows |= {name: value for name, value in trained.items() if name != "hyperparameters"}
    return (
        ["## Training", markdown_table(["", ""], [[name, value] for name, value in rows.items()])]
        if rows
        else []
    )


def _files(published: list[dict[str, Any]]) -> list[str]:
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
    return ["## Quantised", markdown_table(head, rows)]
