"""What would end a training only once its base is loaded, or once it is done: seen by `prepare` and by an
estimate, so that no GPU's time is spent on it.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from training_data.chat_templates import ChatTemplateError
from training_data.model_shape import ModelShape
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.methods import METHODS
from worker.steps.parallel import require_shares
from worker.steps.quantized_base import check_targets
from worker.steps.row_encoding import see_that_there_is_something_to_learn
from worker.steps.trainer_arguments import refusals_explained

# By which the device is told how to compute: what it can is seen where it is.
OF_THE_DEVICE = {"tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"}
JUDGES = "reward"


def see_that_it_can_be_trained(
    step: Step,
    params: FineTuneParams,
    chosen: dict[str, Any],
    *,
    base: Path,
    tokenizer: ChatTokenizer,
    shape: ModelShape,
    evaluated: bool,
) -> None:
    """Refuse what the training would refuse, and tell what in it can have no effect.

    Args:
        chosen: the hyperparameters, resolved; the rows are written.
        base: a folder with its config; its weights need not be there.
        evaluated: whether rows are held out to evaluate on.
    Raises:
        InvalidInput: it cannot be trained so; the message names the field and the fix.
    """
    if chosen["method"] != JUDGES:
        _see_that_answers_end(tokenizer)
    require_shares(step, base, chosen)
    rows = step.input.folder / "train.jsonl"
    see_that_there_is_something_to_learn(rows, METHODS[chosen["method"]], tokenizer, chosen)
    if params.lora_target_modules != "auto" and step.input.start is None and params.tuning == "lora":
        _see_targets(base, params.lora_target_modules)
    if chosen["training_args"]:
        _see_training_args(step, chosen, evaluated=evaluated)
    _tell_what_is_idle(step, chosen, shape, evaluated=evaluated)


def _see_that_answers_end(tokenizer: ChatTokenizer) -> None:
    try:
        end = tokenizer.end_of_answers()
    except ChatTemplateError:
        return  # it takes no conversation so short; the rows' own are held against it
    if end is None:
        raise InvalidInput(
            "The base model's chat template writes no token that ends an answer, so a model could not learn "
            "to stop: choose a base whose template writes eos_token, or its end of turn, after each answer, "
            "or put such a chat_template.jinja into its folder.",
            param="base_model",
            code="answers_do_not_end",
        )


def _see_targets(base: Path, targets: list[str]) -> None:
    """Hold the names against the base's modules, of which no weight is made for this."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    check_targets(model, targets)


def _see_training_args(step: Step, chosen: dict[str, Any], *, evaluated: bool) -> None:
    """Make the optimiser and the schedule of one weight, as the training makes those of all."""
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.optimization import get_scheduler

    known = {field.name for field in fields(TrainingArguments)} - OF_THE_DEVICE
    given = {name: value for name, value in chosen["training_args"].items() if name in known}
    with refusals_explained(chosen):
        arguments = TrainingArguments(
            **{
                "output_dir": str(step.input.folder / "checkpoints"),
                "lr_scheduler_type": chosen["lr_scheduler"],
                "learning_rate": chosen["learning_rate"],
                "eval_strategy": "steps" if evaluated else "no",
                "eval_steps": chosen["eval_steps"],
                "use_cpu": not torch.cuda.is_available(),
                "report_to": "none",
                **given,
            }
        )
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        get_scheduler(
            arguments.lr_scheduler_type,
            kind([torch.nn.Parameter(torch.zeros(1))], **settings),
            num_warmup_steps=chosen["warmup_steps"],
            num_training_steps=chosen["total_steps"],
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )


def _tell_what_is_idle(step: Step, chosen: dict[str, Any], shape: ModelShape, *, evaluated: bool) -> None:
    """Say what was asked for and comes to nothing in a training of so many steps, of such a base."""
    total, patience = chosen["total_steps"], chosen.get("early_stopping_patience")
    if chosen["warmup_steps"] >= total:
        step.event(
            f"warmup_steps {chosen['warmup_steps']} are no fewer than the {total} steps of the training: the "
            f"learning rate ends on its way up to {chosen['learning_rate']:g}. Lower warmup_steps.",
            level="warn",
            warmup_steps=chosen["warmup_steps"],
        )
    evaluations = total // chosen["eval_steps"]
    if patience is not None and evaluated and evaluations <= patience:
        step.event(
            f"early_stopping_patience {patience} can stop nothing: there are {evaluations} evaluations in "
            f"{total} steps. Lower it, or eval_steps, which is {chosen['eval_steps']}.",
            level="warn",
            evaluations=evaluations,
        )
    _tell_rank(step, chosen, shape)


def _tell_rank(step: Step, chosen: dict[str, Any], shape: ModelShape) -> None:
    if chosen.get("tuning") == "full":
        return
    targets = shape.targets(chosen["lora_target_modules"])
    side = max((min(matrix.outputs, matrix.inputs) for matrix in targets), default=0)
    if side and chosen["lora_rank"] > side:
        step.event(
            f"lora_rank {chosen['lora_rank']} is more than the {side} rows or columns of the largest layer: "
            "what is beyond takes memory, and holds nothing more.",
            level="warn",
            lora_rank=chosen["lora_rank"],
        )
