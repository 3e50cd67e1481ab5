"""The arguments of a trainer: trl's config of the method, with all that Lathe settles for it."""

from typing import Any

from training_data.hyperparameters import schedule
from worker.step import Step
from worker.steps.methods import Method

LOGS_PER_RUN = 500
GROUP_BY_LENGTH_FROM_BATCHES = 4


def training_arguments(
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
        logging_steps=logging_steps(chosen),
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


def reschedule(step: Step, trainer: Any, chosen: dict[str, Any]) -> None:
    """Place warm-up and evaluations anew: packing, or rows left out, changed how many steps there are."""
    checkpoints = max(1, round(chosen["total_steps"] / chosen["save_steps"]))
    chosen |= schedule(step.input.params, chosen, len(trainer.train_dataset), checkpoints=checkpoints)
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        setattr(trainer.args, name, chosen[name])
    trainer.args.logging_steps = logging_steps(chosen)


def logging_steps(chosen: dict[str, Any]) -> int:
    return max(1, int(chosen["total_steps"]) // LOGS_PER_RUN)
