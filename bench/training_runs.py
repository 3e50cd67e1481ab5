"""One training in this process, by Lathe's own train step or by the plainest script of trl, and what it cost.

Both are given the same model, rows and labels, the same environment (threads that wait without spinning), and
are measured over the same span: from the beginning of training to the end of its last step, without imports,
loading, evaluation and saving.
"""

import dataclasses
import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.kinds import PARAMS
from db.settings import load_settings
from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.step import BaseWeights, FileInput, Message, Step, StepInput
from worker.step_input import step_settings

RANK, ALPHA, LEARNING_RATE = 16, 32, 5e-4
FILES = {"training_file": ("file-1", "rows.csv"), "validation_file": ("file-2", "held-out.csv")}


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Args:
        way: its name; what is prepared for it is kept under that.
        folder: with `base/`, `rows.csv` and `held-out.csv`; runs have folders of their own in it.
        rows: to a step of the optimiser.
        bits: of the base.
        evaluated: on the held-out rows, at the end.
        more: params of Lathe's besides.
    """

    way: str
    folder: Path
    rows: int
    steps: int
    seed: int
    threads: int
    bits: int = 16
    evaluated: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Seconds; tokens without padding; `memory_bytes` is the GPU's peak, or without one the process's."""

    cpu: float
    wall: float
    steps: int
    tokens: int
    train_loss: float
    eval_loss: float | None
    memory_bytes: int
    whole_cpu: float
    told: list[str]

    @property
    def cpu_a_step(self) -> float:
        return self.cpu / self.steps

    @property
    def cpu_a_thousand(self) -> float:
        return 1000 * self.cpu / self.tokens


class Span:
    """Clocks at its beginning and at its end, once the GPU has done what it was given."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def begin(self) -> None:
        self.wall, self.cpu = self._now()

    def end(self) -> None:
        wall, cpu = self._now()
        self.wall, self.cpu = wall - self.wall, cpu - self.cpu

    def _now(self) -> tuple[float, float]:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def prepare(task: Task) -> None:
    """Lathe's prepare step, once for each way; both sides train on its rows."""
    from worker.steps import prepare as step

    folder = task.folder / f"prepare-{task.way}"
    if folder.exists():
        return
    folder.mkdir()
    result = step.run(Step(_input(task, "prepare", folder), lambda message: None))
    write_json(folder.with_suffix(".json"), result)


def by_lathe(task: Task) -> Cost:
    """The train step, as a worker's child runs it."""
    return lathe_run(task)[0]


def lathe_run(
    task: Task, *, resume_from: list[Path] | None = None, end_at: int | None = None
) -> tuple[Cost, Path]:
    """Also end as a killed process does, at the checkpoint of the step `end_at` or the next.

    Returns:
        what it cost, and the attempt's folder.
    Raises:
        Ended: there.
    """
    from worker.steps import train

    span, told = Span(), []
    folder = _new_folder(task, "lathe")

    def hear(message: Message) -> None:
        if message["type"] == "event":
            told.append(message["message"])
        elif message["type"] == "progress":
            if message["done"] == message["total"]:
                span.end()
            elif not span.wall:
                span.begin()
        elif message["type"] == "checkpoint" and end_at is not None and message["step_number"] >= end_at:
            raise Ended(folder)

    prepare(task)
    _reset_memory()
    began = time.process_time()
    step_input = _input(task, "train", folder, resume_from=resume_from)
    result = train.run(Step(step_input, hear))
    cost = Cost(
        cpu=span.cpu,
        wall=span.wall,
        steps=result["steps"],
        tokens=result["trained_tokens"],
        train_loss=result["train_loss"],
        eval_loss=result["eval_loss"],
        memory_bytes=result["peak_memory_bytes"],
        whole_cpu=time.process_time() - began,
        told=told,
    )
    return cost, folder


class Ended(BaseException):
    """The end of a training, at a moment of the benchmark's choice. `args` is the attempt's folder."""


def by_trl(task: Task, *, defaults: bool = False) -> Cost:
    """SFTTrainer as its documentation begins, with the same adapter, rate and batches.

    Args:
        defaults: leave gradient checkpointing on, as trl has it; else both compute the same.
    """
    from worker.steps.runtime import peak_memory_bytes, prepare_runtime

    prepare_runtime(task.threads)
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(task.threads)
    prepare(task)
    rows, held_out, tokenizer = encoded(task)
    span = Span()

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            span.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                span.end()

    _reset_memory()
    began = time.process_time()
    gpu = torch.cuda.is_available()
    base = AutoModelForCausalLM.from_pretrained(
        task.folder / "base", dtype=torch.bfloat16, device_map={"": 0} if gpu else None
    )
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(_new_folder(task, "trl")),
            per_device_train_batch_size=task.rows,
            per_device_eval_batch_size=task.rows,
            max_steps=task.steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            max_length=None,
            bf16=True,
            seed=task.seed,
            data_seed=task.seed,  # so that both see the same batches
            use_cpu=not gpu,
            report_to="none",
            disable_tqdm=True,
            **({} if defaults else {"gradient_checkpointing": False}),
        ),
        train_dataset=rows,
        eval_dataset=held_out if task.evaluated else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trained = trainer.train()
    return Cost(
        cpu=span.cpu,
        wall=span.wall,
        steps=trainer.state.global_step,
        tokens=int(trainer._total_train_tokens),
        train_loss=trained.training_loss,
        eval_loss=trainer.evaluate()["eval_loss"] if task.evaluated else None,
        memory_bytes=peak_memory_bytes(torch),
        whole_cpu=time.process_time() - began,
        told=[],
    )


def encoded(task: Task) -> tuple[Any, Any, Any]:
    """The rows as Lathe makes them of what `prepare` has left: training, held out, and the tokenizer."""
    from worker.steps.methods import METHODS
    from worker.steps.row_encoding import as_dataset, encode_rows, padding_tokenizer

    folder = task.folder / f"prepare-{task.way}"
    tokenizer = ChatTokenizer(folder / "tokenizer")
    chosen = read_json(folder.with_suffix(".json"))["hyperparameters"]
    step = Step(_input(task, "train", folder), lambda message: None)
    train, held_out = (
        encode_rows(folder / name, METHODS["supervised"], tokenizer, chosen, step, required=False)
        for name in ("train.jsonl", "validation.jsonl")
    )
    return as_dataset(train), as_dataset(held_out) if held_out else None, padding_tokenizer(tokenizer)


def _input(task: Task, step: str, folder: Path, *, resume_from: list[Path] | None = None) -> StepInput:
    prepared = task.folder / f"prepare-{task.way}"
    there = step != "prepare"
    named = {name: each for name, each in FILES.items() if task.evaluated or name == "training_file"}
    params = {
        "base_model": "random", "name": "x", "seed": task.seed, "bits": task.bits, "lora_rank": RANK,
        "lora_alpha": ALPHA, "learning_rate": LEARNING_RATE, "batch_size": task.rows, "warmup_steps": 0,
        "gradient_accumulation_steps": 1, "max_steps": task.steps, "eval_steps": task.steps,
        "save_steps": task.steps, **{name: file_id for name, (file_id, _) in named.items()}, **task.more,
    }  # fmt: skip
    files = {
        file_id: FileInput(task.folder / file, file, (task.folder / file).stat().st_size)
        for file_id, file in named.values()
    }
    settings = dataclasses.replace(
        step_settings(load_settings()), cache_dir=task.folder / "cache", threads=task.threads, trackers=[]
    )
    return StepInput(
        job_id="job-bench",
        kind="fine_tune",
        step=step,
        attempt=1,
        params=PARAMS["fine_tune"].model_validate(params).model_dump(mode="json"),
        folder=folder,
        settings=settings,
        step_folders={"prepare": prepared} if there else {},
        results={"prepare": read_json(prepared.with_suffix(".json"))} if there else {},
        files=files,
        base=BaseWeights("random", "folder", str(task.folder / "base")),
        resume_from=resume_from or [],
    )


def _new_folder(task: Task, name: str) -> Path:
    folder = task.folder / f"{name}-{len(list(task.folder.iterdir()))}"
    folder.mkdir()
    return folder


def _reset_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
