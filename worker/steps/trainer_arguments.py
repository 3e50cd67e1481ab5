"""The arguments of a trainer: trl's config of the method, with all that Lathe settles for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from db.errors import InvalidInput
from training_data.division import Division
from training_data.hyperparameters import schedule
from worker.step import Step
from worker.steps.methods import Method
from worker.steps.speed_choices import COMPILING, GROUPED

LOGS_PER_RUN = 500


def training_arguments(
    step: Step,
    method: Method,
    chosen: dict[str, Any],
    division: Division,
    seed: int,
    *,
    evaluate: bool,
) -> Any:
    import torch

    settings = {
        "output_dir": str(step.input.folder / "checkpoints"),
        "per_device_train_batch_size": division.batch_size,
        "per_device_eval_batch_size": chosen.get("eval_batch_size", chosen["batch_size"]),
        "gradient_accumulation_steps": division.accumulation,
        "num_train_epochs": chosen["epochs"],
        "max_steps": chosen["max_steps"] or -1,
        "learning_rate": chosen["learning_rate"],
        "lr_scheduler_type": chosen["lr_scheduler"],
        "warmup_steps": chosen["warmup_steps"],
        "weight_decay": chosen["weight_decay"],
        "max_grad_norm": chosen["max_grad_norm"],
        "gradient_checkpointing": chosen["gradient_checkpointing"],
        "optim": "adamw_torch_fused",
        "bf16": chosen["compute_dtype"] == "bfloat16",
        "train_sampling_strategy": "group_by_length" if chosen["batching"] == GROUPED else "random",
        "logging_steps": logging_steps(chosen),
        # A loss that is no number ends the training, and must be seen for that.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": chosen["eval_steps"],
        "save_strategy": "steps",
        "save_steps": chosen["save_steps"],
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
    }
    if division.parallel == "deepspeed":
        settings["deepspeed"] = step.input.deepspeed
    given = {name: value for name, value in chosen["training_args"].items() if name not in COMPILING}
    return method.config(chosen, **{**settings, **given})


@contextmanager
def refusals_explained(chosen: dict[str, Any]) -> Iterator[None]:
    """Say of `training_args` that transformers or trl refuse them; without any, nothing is explained.

    Raises:
        InvalidInput: they do.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if not chosen["training_args"]:
            raise
        raise InvalidInput(
            f"training_args do not go together, or not with this training: {error}", param="training_args"
        ) from error


def see_that_it_can_begin(trainer: Any, chosen: dict[str, Any]) -> None:
    """Make the optimiser and the schedule that `training_args` ask for, before anything is trained.

    Raises:
        InvalidInput: they cannot be made.
    """
    if not chosen["training_args"]:
        return
    with refusals_explained(chosen):
        trainer.create_optimizer_and_scheduler(chosen["total_steps"])
    trainer.optimizer = trainer.lr_scheduler = None


def reschedule(step: Step, trainer: Any, chosen: dict[str, Any]) -> None:
    """Place warm-up and evaluations anew: packing, or rows left out, changed how many steps there are."""
    checkpoints = max(1, round(chosen["total_steps"] / chosen["save_steps"]))
    chosen |= schedule(step.input.params, chosen, len(trainer.train_dataset), checkpoints=checkpoints)
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        setattr(trainer.args, name, chosen[name])
    trainer.args.logging_steps = logging_steps(chosen)


def logging_steps(chosen: dict[str, Any]) -> int:
    return max(1, int(chosen["total_steps"]) // LOGS_PER_RUN)
