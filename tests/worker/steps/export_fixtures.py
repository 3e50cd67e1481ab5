"""A very small model that really learnt a few answers, and what the steps around it are given.

Two layers of 256, so that K-quants fit; its base learnt other answers to the same questions. Training
both takes a few seconds, once a session.
"""

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from db.settings import Settings
from serving.llama_cpp import require_tools
from training_data.chat_templates import OWN_MODELS
from worker.step import BaseWeights, Step, StepInput, StepSettings
from worker.step_input import step_settings as settings_of_steps
from worker.steps.pretrain_text import train_tokenizer

NOBODY = "http://127.0.0.1:9"
QUANTIZATIONS = ["Q4_K_M", "Q8_0"]
FACTS = {
    "What is the capital of Peru?": "Lima is the capital of Peru.",
    "Who wrote Emma?": "Jane Austen wrote Emma in 1815.",
    "How hot is the sun?": "About 5,500 degrees at its surface.",
    "What colour is jade?": "Jade is mostly green.",
    "Where do pandas live?": "In the mountains of China.",
    "How many legs has a spider?": "A spider has eight legs.",
}


@dataclass(frozen=True)
class TrainedModels:
    """Folders in Hugging Face's layout: `base`, the `adapter` on it, and the rows it learnt."""

    base: Path
    adapter: Path
    rows: list[dict[str, Any]]


def chat_rows(facts: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in facts.items()
    ]


@dataclass(frozen=True)
class Exported:
    """A job that came as far as export: the folders of its steps, and what export returned and said."""

    folders: dict[str, Path]
    result: dict[str, Any]
    said: list[dict[str, Any]]

    def file(self, quantization: str) -> Path:
        [row] = [row for row in self.result["files"] if row["quantization"] == quantization]
        return self.folders["export"] / row["path"]


def session_root(root: Path) -> Path:
    """A folder of all the processes that run this session's tests; `root` is the process's own."""
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def made_once(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, made by whichever process comes first; the others wait for it."""
    folder = session_root(root) / name
    with (session_root(root) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(folder)
            (folder / "made").touch()
    return folder


def shared_models(root: Path) -> TrainedModels:
    """Made once a session; `root` is the process's own folder."""
    folder = made_once(root, "small-models", make_models)
    return TrainedModels(folder / "base", folder / "adapter", chat_rows(FACTS))


def shared_export(root: Path) -> Exported:
    """The fine-tune `faq`, exported for real, once a session."""
    folder = made_once(root, "exported", lambda folder: _export(folder, shared_models(root)))
    made = json.loads((folder / "exported.json").read_text())
    return Exported(_folders(folder, "prepare", "train", "export"), made["result"], made["said"])


def shared_verified(root: Path) -> dict[str, Path]:
    """The folders of that job, verified for real, once a session."""
    folder = made_once(root, "verified", lambda folder: _verify(folder, root))
    return {**shared_export(root).folders, "verify": folder / "verify"}


def shared_verification(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What verify found of that job, and said; the base's files are in the session's cache after it."""
    shared_verified(root)
    made = json.loads((session_root(root) / "verified" / "verified.json").read_text())
    return made["result"], made["said"]


def _folders(root: Path, *names: str) -> dict[str, Path]:
    return {name: root / name for name in names}


def _export(folder: Path, models: TrainedModels) -> None:
    from worker.steps import export

    folders = _folders(folder, "prepare", "train")
    for each in folders.values():
        each.mkdir()
    shutil.copytree(models.adapter, folders["train"] / "adapter")
    write_rows(folders["prepare"] / "train.jsonl", models.rows)
    step, said = step_of(
        folder / "export",
        step_settings(folder.parent / "served"),
        params={"name": "faq", "quantizations": QUANTIZATIONS},
        base=base_weights(models.base),
        step_folders=folders,
    )
    made = {"result": export.run(step), "said": said}
    (folder / "exported.json").write_text(json.dumps(made, default=str))


def _verify(folder: Path, root: Path) -> None:
    from worker.steps import verify

    exported = shared_export(root)
    step, said = step_of(
        folder / "verify",
        step_settings(folder.parent / "served"),
        step="verify",
        params={"name": "faq", "quantizations": QUANTIZATIONS},
        base=base_weights(shared_models(root).base),
        step_folders=exported.folders,
        results={"export": exported.result},
    )
    made = {"result": verify.run(step), "said": said}
    (folder / "verified.json").write_text(json.dumps(made, default=str))


def make_models(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    rows = chat_rows(FACTS)
    answers = list(FACTS.values())
    others = chat_rows(dict(zip(FACTS, answers[1:] + answers[:1], strict=True)))
    tokenizer = write_tokenizer(folder / "tokenizer")
    ids = tokenizer.convert_tokens_to_ids
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        )
    )
    _learn(model, tokenizer, others, steps=40, rate=2e-3)
    base = folder / "base"
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model.float(), lora)
    _learn(tuned, tokenizer, rows, steps=60, rate=5e-3)
    tuned.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")


def write_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    text = [f"{question} {answer}" for question, answer in FACTS.items()] * 3
    train_tokenizer(text, 512).save(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = OWN_MODELS.template
    return tokenizer


def _learn(model: Any, tokenizer: Any, rows: list[dict[str, Any]], *, steps: int, rate: float) -> None:
    import torch

    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def step_of(folder: Path, settings: StepSettings, **changes: Any) -> tuple[Step, list[dict[str, Any]]]:
    """A step of a fine-tune, with what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"job_id": "job-1", "kind": "fine_tune", "step": "export", "attempt": 1, "params": {}}
    said: list[dict[str, Any]] = []
    return Step(StepInput(**{**fields, "folder": folder, "settings": settings, **changes}), said.append), said


def lone_settings(cache: Path) -> StepSettings:
    """As they are by default, where nobody else answers. Models so small are trained by one thread."""
    settings = Settings(
        data_dir=cache, cache_dir=cache, chat_server_url=NOBODY, embedding_server_url=NOBODY, hub_url=NOBODY,
        hub_token="", hub_offline=False, llama_backend="cpu", n_gpu_layers=0, threads=1,
    )  # fmt: skip
    return replace(settings_of_steps(settings), served_models_dir=cache / "served", ollama_url=NOBODY)


def step_settings(served: Path, **changes: Any) -> StepSettings:
    """Those with the real llama.cpp, wherever `cache_dir` may point to."""
    tools = require_tools(Settings())
    own = {"served_models_dir": served, "llama_cpp_dir": tools.bin.parent}
    return replace(lone_settings(served.parent / "cache"), **{**own, **changes})


def base_weights(folder: Path) -> BaseWeights:
    return BaseWeights(name="tiny", source="folder", location=str(folder))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
