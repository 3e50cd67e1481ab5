"""Fine-tune: LoRA on a quantised base (QLoRA), by trl, peft and bitsandbytes; CPU and CUDA alike.

What differs between learning answers and learning preferences is in `methods.py`.

Rows are turned into tokens and labels here and not by trl: so any chat template can be trained on its
answers only, and what is cut is known before it is cut.
"""

import csv
import shutil
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.hyperparameters import schedule
from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.checkpoints import STATE_FILE
from worker.step import Step, Stopped
from worker.steps.base_model import check_type, fetch_base
from worker.steps.methods import LENGTH, METHODS, Method, TokenRow
from worker.steps.resuming import take_also, take_newest
from worker.steps.runtime import memory_errors_explained, peak_memory_bytes, prepare_runtime, require_disk

LOGS_PER_RUN = 500
RESULTS_FILE = "step_metrics.csv"
# By the names that transformers and trl log them under.
RESULT_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "mean_token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_mean_token_accuracy",
}
PAIR_COLUMNS = {
    "train_reward_accuracy": "rewards/accuracies",
    "train_reward_margin": "rewards/margins",
    "valid_reward_accuracy": "eval_rewards/accuracies",
    "valid_reward_margin": "eval_rewards/margins",
}
GROUP_BY_LENGTH_FROM_BATCHES = 4
LEAST_ADVICE = (
    "One row at a time is too much: lower max_length, set gradient_checkpointing to true, or bits to 4."
)


def run(step: Step) -> dict[str, Any]:
    """Train; leaves `adapter/` and `checkpoints/`."""
    prepare_runtime(step.input.settings.threads)
    base = step.input.base
    if base is None:
        raise InvalidInput("A fine-tune needs a base model.", param="base_model")
    folder = fetch_base(base, step)
    chosen = {**step.input.results["prepare"]["hyperparameters"], **step.input.adjustments}
    less = halved(chosen["batch_size"], chosen["gradient_accumulation_steps"])
    step.if_memory_runs_out(less, LEAST_ADVICE)
    with memory_errors_explained(LEAST_ADVICE if less is None else ""):
        return _train(step, folder, chosen)


def halved(batch: int, accumulation: int) -> dict[str, int] | None:
    """A micro-batch at most half as large that makes the same effective batch; None below one row."""
    effective = batch * accumulation
    smaller = next((rows for rows in range(batch // 2, 0, -1) if effective % rows == 0), None)
    if smaller is None:
        return None
    return {"batch_size": smaller, "gradient_accumulation_steps": effective // smaller}


def _train(step: Step, base_folder: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    import torch

    from worker.steps.quantized_base import check_targets, compute_dtype, device_name, load_for_training
    from worker.steps.training_progress import BestByEvalLoss, ProgressReporter, SavesInTime

    torch.set_num_threads(step.input.settings.threads)
    seed = int(step.input.results["prepare"]["seed"])
    prepared = step.input.step_folders["prepare"]
    tokenizer = ChatTokenizer(prepared / "tokenizer")
    method = METHODS[chosen.get("method", "supervised")]
    rows = _encode(prepared / "train.jsonl", method, tokenizer, chosen, step)
    validation = _encode(prepared / "validation.jsonl", method, tokenizer, chosen, step, required=False)
    device = device_name(step)
    dtype = compute_dtype(chosen["compute_dtype"])
    chosen["compute_dtype"] = str(dtype).removeprefix("torch.")
    torch.manual_seed(seed)
    check_type(base_folder, step.input.base.name if step.input.base else "")
    model = load_for_training(base_folder, chosen["bits"], dtype)
    check_targets(model, chosen["lora_target_modules"])
    progress = ProgressReporter(step)
    best = BestByEvalLoss(step, chosen["early_stopping_patience"])
    trainer = _build_trainer(
        step,
        method,
        model=model,
        processing_class=_processing(tokenizer),
        args=_arguments(step, method, chosen, seed, rows=len(rows), evaluate=bool(validation)),
        peft_config=_lora(chosen),
        train_dataset=_dataset(rows),
        eval_dataset=_dataset(validation) if validation else None,
        callbacks=[progress, best, SavesInTime(step, step.input.params.get("save_minutes"))],
        keep=step.input.params.get("keep_checkpoints", 2),
        best_step=lambda: best.best_step,
        own_state=lambda: {**best.state(), "tokens": progress.tokens},
    )
    if len(trainer.train_dataset) != step.input.results["prepare"]["rows"]["train"]:
        _reschedule(step, trainer, chosen)
    # A checkpoint holds the adapter and Adam's two moments of it, in float32; one is being written beside.
    kept = step.input.params.get("keep_checkpoints", 2) + 2
    require_disk(
        step.input.folder, 12 * kept * trainer.model.num_parameters(only_trainable=True), "This training"
    )
    step.event(
        f"{trainer.model.num_parameters(only_trainable=True):,} LoRA weights learn from {len(rows)} rows "
        f"in {chosen['total_steps']} steps.",
        trainable_parameters=trainer.model.num_parameters(only_trainable=True),
    )
    _fit(step, trainer, progress, best)
    if validation and best.last_step != trainer.state.global_step:
        trainer.evaluate()  # eval_steps need not divide the steps; the last weights are judged too
    if best.best_loss is not None and best.best_step != trainer.state.global_step:
        _load_adapter(trainer.model, step.input.folder / "checkpoints" / f"checkpoint-{best.best_step}")
        step.event(f"Took the weights of step {best.best_step}, the best by evaluation loss.")
    _save_adapter(step, trainer.model, tokenizer)
    _write_results(step, trainer.state.log_history)
    return {
        "hyperparameters": chosen,
        "train_loss": _mean_loss(trainer),
        "final_loss": _last_loss(trainer),
        "eval_loss": best.best_loss,
        "trained_tokens": progress.tokens,
        "steps": trainer.state.global_step,
        "stopped_early": best.stopped_early,
        "device": device,
        "tokens_per_second": progress.tokens_per_second,
        "peak_memory_bytes": peak_memory_bytes(torch),
        "adjustments": step.input.adjustments,
        "best_checkpoint": f"checkpoints/checkpoint-{best.best_step or trainer.state.global_step}",
    }


def _fit(step: Step, trainer: Any, progress: Any, best: Any) -> None:
    """Train to the end, from the newest checkpoint of an earlier attempt if there is one.

    Raises:
        Stopped: asked to, and saved.
    """
    root = step.input.folder / "checkpoints"
    step.save_when_stopped()
    checkpoint = take_newest(step, root)
    if checkpoint is not None:
        state = read_json(checkpoint / STATE_FILE)
        progress.tokens = state["tokens"]
        if take_also(step, {state["best_step"]} - {0}, root):
            best.restore(state)
        else:
            step.event("The best checkpoint so far is lost: what comes is compared anew.", level="warn")
        reached = int(checkpoint.name.removeprefix("checkpoint-"))
        if best.stopped_early or reached >= trainer_steps(trainer):
            trainer.take_weights(checkpoint)
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if step.stop_asked and not best.stopped_early and trainer.state.global_step < trainer.state.max_steps:
        step.event(f"Saved at step {trainer.state.global_step}, to go on from there.")
        raise Stopped


def trainer_steps(trainer: Any) -> int:
    """How many optimiser steps the trainer will make in all."""
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return int(values[-1])


def _encode(
    path: Path,
    method: Method,
    tokenizer: ChatTokenizer,
    chosen: dict[str, Any],
    step: Step,
    *,
    required: bool = True,
) -> list[TokenRow]:
    """Read prepared rows as the method takes them, cut at max_length; `prepare` has told which are cut.

    Raises:
        InvalidInput: no row keeps an answer within max_length.
    """
    encoded = list(method.rows(path, tokenizer, chosen))
    kept = [row for row in encoded if row is not None]
    left_out = len(encoded) - len(kept)
    if left_out:
        step.event(
            f"{left_out} rows of {path.name} have no answer left within max_length "
            f"{chosen['max_length']} and are left out.",
            level="warn",
            left_out=left_out,
        )
    if required and not kept:
        raise InvalidInput(
            f"No row has a token to learn within max_length {chosen['max_length']}: raise it.",
            param="max_length",
        )
    return kept


def _dataset(rows: list[TokenRow]) -> Any:
    import numpy
    from datasets import Dataset

    columns: dict[str, Any] = {name: [numpy.asarray(row[name]) for row in rows] for name in rows[0]}
    if LENGTH in columns:
        columns[LENGTH] = [int(lengths[0]) for lengths in columns[LENGTH]]
    return Dataset.from_dict(columns)


def _reschedule(step: Step, trainer: Any, chosen: dict[str, Any]) -> None:
    """Place warm-up and evaluations anew: packing, or rows left out, changed how many steps there are."""
    checkpoints = max(1, round(chosen["total_steps"] / chosen["save_steps"]))
    chosen |= schedule(step.input.params, chosen, len(trainer.train_dataset), checkpoints=checkpoints)
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        setattr(trainer.args, name, chosen[name])
    trainer.args.logging_steps = _logging_steps(chosen)


def _logging_steps(chosen: dict[str, Any]) -> int:
    return max(1, int(chosen["total_steps"]) // LOGS_PER_RUN)


def _build_trainer(step: Step, method: Method, **settings: Any) -> Any:
    from transformers.trainer_callback import PrinterCallback

    trainer: Any = method.trainer(
        on_checkpoint=lambda number, folder: step.checkpoint(number, folder, _checkpoint_metrics(trainer)),
        on_removed=step.checkpoint_removed,
        **settings,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _processing(tokenizer: ChatTokenizer) -> Any:
    """The tokenizer in the form that trl asks for; it only pads."""
    from transformers import PreTrainedTokenizerFast

    end = tokenizer.special_tokens.get("eos_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer,
        eos_token=end,
        pad_token=tokenizer.special_tokens.get("pad_token", end),
    )


def _lora(chosen: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=chosen["lora_rank"],
        lora_alpha=chosen["lora_alpha"],
        lora_dropout=chosen["lora_dropout"],
        target_modules=chosen["lora_target_modules"],
        bias=chosen["lora_bias"],
    )


def _arguments(
    step: Step, method: Method, chosen: dict[str, Any], seed: int, *, rows: int, evaluate: bool
) -> Any:
    import torch

    effective_batch = chosen["batch_size"] * chosen["gradient_accumulation_steps"]
    grouped = not chosen["packing"] and rows >= GROUP_BY_LENGTH_FROM_BATCHES * effective_batch
    return method.config(
        chosen,
        output_dir=str(step.input.folder / "checkpoints"),
        per_device_train_batch_size=chosen["batch_size"],
        per_device_eval_batch_size=chosen["batch_size"],
        gradient_accumulation_steps=chosen["gradient_accumulation_steps"],
        num_train_epochs=chosen["epochs"],
        max_steps=chosen["max_steps"] or -1,
        learning_rate=chosen["learning_rate"],
        lr_scheduler_type=chosen["lr_scheduler"],
        warmup_steps=chosen["warmup_steps"],
        weight_decay=chosen["weight_decay"],
        max_grad_norm=chosen["max_grad_norm"],
        gradient_checkpointing=chosen["gradient_checkpointing"],
        optim="adamw_torch_fused",
        bf16=chosen["compute_dtype"] == "bfloat16",
        train_sampling_strategy="group_by_length" if grouped else "random",
        logging_steps=_logging_steps(chosen),
        logging_nan_inf_filter=False,  # a loss that is no number ends the training, and must be seen for that
        eval_strategy="steps" if evaluate else "no",
        eval_steps=chosen["eval_steps"],
        save_strategy="steps",
        save_steps=chosen["save_steps"],
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )


def _checkpoint_metrics(trainer: Any) -> dict[str, float]:
    from worker.steps.training_progress import measured

    metrics = {"epoch": float(trainer.state.epoch or 0)}
    for entry in trainer.state.log_history[-4:]:
        metrics |= measured(entry)
    return metrics


def _write_results(step: Step, log: list[dict[str, Any]]) -> None:
    """Offer what was measured, by step, as OpenAI's result files. The log is that of all attempts."""
    pairs = any(its in entry for its in PAIR_COLUMNS.values() for entry in log)
    columns = RESULT_COLUMNS | (PAIR_COLUMNS if pairs else {})
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        found = {ours: entry[its] for ours, its in columns.items() if its in entry}
        if found:
            rows.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    path = step.input.folder / RESULTS_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows(rows[number] for number in sorted(rows))
    step.artifact(path, purpose="fine-tune-results")


def _mean_loss(trainer: Any) -> float | None:
    """The mean over all steps, of every attempt; the trainer's own begins anew with each."""
    total, before = 0.0, 0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            total += float(entry["loss"]) * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else None


def _last_loss(trainer: Any) -> float | None:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else None


def _load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))


def _save_adapter(step: Step, model: Any, tokenizer: ChatTokenizer) -> None:
    """Write the adapter as a Hugging Face folder that names its base as the request did."""
    folder = step.input.folder / "adapter"
    # save_embedding_layers: "auto" would look the base up at the hub, by whatever its name is here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card is an empty form
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = step.input.base.name if step.input.base else None
    write_json(folder / "adapter_config.json", config)
    shutil.copytree(tokenizer.folder, folder, dirs_exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        step.artifact(folder / name)
